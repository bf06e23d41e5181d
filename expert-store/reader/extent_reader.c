/* extent_reader.c - splits experts into reads, verifies their chunks, completes them.
 *
 *   FREE --submit--> WAITING --all reads started--> OPEN --nothing open any more--> DONE
 *    ^                  \---a read or chunk failed: the rest is not started---------->/ |
 *    \------------------------------------harvest------------------------------------<--/
 *
 * Owns the segments, one engine (reader_internal.h), the verify threads and the eventfd both
 * signal. Called by the store's event loop only; verify threads touch chunks, nothing else.
 * Everything is allocated at creation. Shutdown: no new reads are started; those in the engine and
 * the chunks being hashed are waited for; what was queued is dropped.
 */
#include "expert-store/reader/extent_reader.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/checksum.h"
#include "common/clock.h"
#include "expert-store/reader/reader_internal.h"

enum {
    MAX_DEPTH = 4096,           /* entries of a ring, far above any drive's queue */
    MAX_SPLIT_BYTES = 1 << 30,  /* one read; the kernel's own limit is just below 2 GiB */
    SPECULATIVE_SHARE = 8,      /* of the depth: 2 MiB of 256 KiB reads at a depth of 64 */
    MAX_RETRIES_IN_A_ROW = 100, /* EINTR and EAGAIN without progress, then the read fails */
};

typedef struct chunk { /* what one hash covers */
    xs_work work;      /* first member */
    xs_job *job;
    const char *data; /* in the slot */
    size_t bytes;
    uint64_t expected;
    bool matches;        /* written by the verify thread */
    uint64_t bytes_left; /* not landed yet */
} chunk;

struct xs_job {
    xs_job *next; /* in one of the lists free, waiting, speculative, done */
    uint32_t expert, slot;
    bool speculative;
    uint64_t tag;
    xs_extent extent;
    uint64_t next_off; /* reads up to here were started */
    uint32_t n_reads_open, n_chunks_open;
    moe_status status;
    char text[200];
    int64_t submitted_ns; /* 0: the job is free */
    int64_t first_read_ns, last_read_ns, done_ns;
    chunk *chunks; /* [max_chunks], part of xs_reader.chunks */
};

typedef struct job_list {
    xs_job *head, *tail;
} job_list;

struct xs_reader {
    const xs_catalog *catalog; /* borrowed; NULL when synthetic */
    moe_model_shape shape;
    uint64_t synthetic_bytes; /* of one expert */
    char *slots;              /* borrowed */
    uint64_t slot_bytes;
    uint32_t n_slots, n_made;
    uint64_t split_bytes;
    uint32_t max_chunks; /* per expert */
    uint32_t max_jobs;
    int wake_fd;
    xs_segment_files files;
    const xs_engine_ops *ops;
    xs_engine_state *engine;   /* owned; NULL until open */
    xs_work_pool *verify_pool; /* owned; NULL when synthetic */
    xs_job *jobs;              /* [max_jobs] owned */
    chunk *chunks;             /* [max_jobs][max_chunks] owned */
    xs_read *reads;            /* [max_reads] owned */
    xs_read *free_reads;       /* linked by work.next */
    job_list free, done;
    job_list waiting, speculative; /* with reads to start; the second list only after the first */
    uint32_t n_speculative_reads;  /* in flight */
    uint32_t max_speculative_reads;
    xs_reader_report report;
    xs_reader_counters counters;
};

static void append_job(job_list *list, xs_job *job)
{
    job->next = NULL;
    if (list->tail == NULL) {
        list->head = job;
    } else {
        list->tail->next = job;
    }
    list->tail = job;
}

static xs_job *pop_job(job_list *list)
{
    xs_job *job = list->head;
    if (job != NULL) {
        list->head = job->next;
        list->tail = list->head == NULL ? NULL : list->tail;
    }
    return job;
}

static void remove_job(job_list *list, const xs_job *job)
{
    xs_job *previous = NULL;
    for (xs_job *j = list->head; j != NULL; previous = j, j = j->next) {
        if (j != job) {
            continue;
        }
        if (previous == NULL) {
            list->head = j->next;
        } else {
            previous->next = j->next;
        }
        list->tail = list->tail == j ? previous : list->tail;
        return;
    }
}

/* Where the job is while it has reads to start. */
static job_list *list_of(xs_reader *r, const xs_job *job)
{
    return job->speculative ? &r->speculative : &r->waiting;
}

void xs_reader_note(xs_reader_report *report, const char *fmt, ...)
{
    size_t used = strlen(report->note);
    if (used > 0 && used + 2 < sizeof report->note) {
        memcpy(report->note + used, "; ", 3);
        used += 2;
    }
    va_list args;
    va_start(args, fmt);
    vsnprintf(report->note + used, sizeof report->note - used, fmt, args);
    va_end(args);
}

/* ---- creation ---- */

static moe_status check_cfg(const xs_reader_cfg *cfg, moe_err *err)
{
    bool synthetic = cfg->engine == XS_ENGINE_SYNTHETIC;
    if (synthetic ? cfg->shape == NULL : cfg->catalog == NULL) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "reader: %s missing",
                        synthetic ? "shape" : "catalog");
    }
    if (cfg->slots == NULL || cfg->n_slots == 0 || cfg->slot_bytes == 0 ||
        (uintptr_t)cfg->slots % XS_EXTENT_ALIGN != 0 || cfg->slot_bytes % XS_EXTENT_ALIGN != 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "reader: %u slots of %llu bytes at %p: not aligned "
                        "to %d, or none",
                        cfg->n_slots, (unsigned long long)cfg->slot_bytes, cfg->slots,
                        XS_EXTENT_ALIGN);
    }
    if (cfg->depth == 0 || cfg->depth > MAX_DEPTH) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "reader: depth %u is not in 1..%d", cfg->depth,
                        MAX_DEPTH);
    }
    if (cfg->split_bytes == 0 || cfg->split_bytes > MAX_SPLIT_BYTES ||
        cfg->split_bytes % XS_EXTENT_ALIGN != 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "reader: split of %llu bytes is not a multiple of %d up to %d",
                        (unsigned long long)cfg->split_bytes, XS_EXTENT_ALIGN, MAX_SPLIT_BYTES);
    }
    if (cfg->n_verify_threads == 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "reader: no verify threads");
    }
    return MOE_OK;
}

static moe_status check_geometry(xs_reader *r, const xs_reader_cfg *cfg, moe_err *err)
{
    uint64_t needed = 0;
    if (cfg->engine == XS_ENGINE_SYNTHETIC) {
        r->shape = *cfg->shape;
        r->synthetic_bytes =
            moe_expert_params(cfg->shape) * moe_dtype_bytes((moe_dtype)cfg->synthetic_dtype);
        needed = r->synthetic_bytes;
    } else {
        const xs_catalog_info *info = xs_catalog_get_info(cfg->catalog);
        r->shape = info->shape;
        needed = info->slot_bytes;
    }
    if (needed == 0 || needed > cfg->slot_bytes) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "reader: slots of %llu bytes for experts of %llu",
                        (unsigned long long)cfg->slot_bytes, (unsigned long long)needed);
    }
    return MOE_OK;
}

/* As many experts as fill the drive's queue, and one more, so that the next one's reads start
 * while the last one's are still open and its chunks hashed. More would only tie up slots and
 * take the order of reading away from the fetch queue. */
static uint32_t jobs_for_depth(const xs_reader_cfg *cfg)
{
    uint64_t reads_per_job = 1;
    if (cfg->engine != XS_ENGINE_SYNTHETIC) {
        reads_per_job = (cfg->slot_bytes + cfg->split_bytes - 1) / cfg->split_bytes;
    }
    uint64_t n = (cfg->depth + reads_per_job - 1) / reads_per_job + 1;
    return (uint32_t)(n < cfg->n_slots ? n : cfg->n_slots);
}

static moe_status allocate_tables(xs_reader *r, uint32_t max_reads, moe_err *err)
{
    r->jobs = calloc(r->max_jobs, sizeof *r->jobs);
    r->chunks = calloc((size_t)r->max_jobs * r->max_chunks, sizeof *r->chunks);
    r->reads = calloc(max_reads, sizeof *r->reads);
    if (r->jobs == NULL || r->chunks == NULL || r->reads == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "reader: tables of %u experts and %u reads",
                        r->max_jobs, max_reads);
    }
    for (uint32_t i = 0; i < r->max_jobs; i++) {
        r->jobs[i].chunks = &r->chunks[(size_t)i * r->max_chunks];
        append_job(&r->free, &r->jobs[i]);
    }
    for (uint32_t i = 0; i < max_reads; i++) {
        r->reads[i].work.next = (xs_work *)r->free_reads;
        r->free_reads = &r->reads[i];
    }
    return MOE_OK;
}

static moe_status open_engine(xs_reader *r, const xs_reader_cfg *cfg, moe_err *err)
{
    const xs_engine_cfg engine_cfg = {
        .reader = cfg, .files = &r->files, .wake_fd = r->wake_fd, .max_reads = cfg->depth};
    const xs_engine_ops *ops = &xs_engine_uring;
    if (cfg->engine == XS_ENGINE_PREAD) {
        ops = &xs_engine_pread;
    } else if (cfg->engine == XS_ENGINE_SYNTHETIC) {
        ops = &xs_engine_synthetic;
    }
    moe_err why = {0};
    moe_status st = ops->open(&engine_cfg, &r->report, &r->engine, &why);
    if (st == MOE_ERR_UNSUPPORTED && cfg->engine == XS_ENGINE_AUTO) {
        xs_reader_note(&r->report,
                       "%s (errno %d): pread on threads instead, about 50 us more CPU per MiB",
                       why.text, why.native);
        ops = &xs_engine_pread;
        st = ops->open(&engine_cfg, &r->report, &r->engine, &why);
    }
    if (st != MOE_OK) {
        if (err != NULL) {
            *err = why;
        }
        return st;
    }
    r->ops = ops;
    r->report.engine = ops->engine;
    (void)xs_reader_add_slots(r, cfg->n_made,
                              false); /* the report says what is not as it should be */
    return MOE_OK;
}

static moe_status open_files_and_threads(xs_reader *r, const xs_reader_cfg *cfg, moe_err *err)
{
    if (cfg->engine == XS_ENGINE_SYNTHETIC) {
        return MOE_OK;
    }
    char why[sizeof r->report.note] = "";
    moe_status st =
        xs_segment_files_open(cfg->catalog, cfg->direct, &r->files, why, sizeof why, err);
    if (st != MOE_OK) {
        return st;
    }
    r->report.direct = r->files.direct;
    if (why[0] != '\0') {
        xs_reader_note(&r->report, "%s", why);
    }
    return xs_work_pool_create(cfg->n_verify_threads, "xs-verify", r->wake_fd, &r->verify_pool,
                               err);
}

moe_status xs_reader_create(const xs_reader_cfg *cfg, xs_reader **out, moe_err *err)
{
    moe_status st = check_cfg(cfg, err);
    if (st != MOE_OK) {
        return st;
    }
    xs_reader *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "the extent reader");
    }
    r->catalog = cfg->engine == XS_ENGINE_SYNTHETIC ? NULL : cfg->catalog;
    r->slots = cfg->slots;
    r->slot_bytes = cfg->slot_bytes;
    r->n_slots = cfg->n_slots;
    r->split_bytes = cfg->split_bytes;
    r->max_chunks = moe_n_chunks(cfg->slot_bytes);
    r->max_jobs = jobs_for_depth(cfg);
    r->max_speculative_reads = (cfg->depth + SPECULATIVE_SHARE - 1) / SPECULATIVE_SHARE;
    r->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (r->wake_fd < 0) {
        st = MOE_FAIL_NATIVE(err, MOE_ERR_LIMIT, MOE_LAYER_ERRNO, errno, "an eventfd");
        goto fail;
    }
    st = check_geometry(r, cfg, err);
    if (st == MOE_OK) {
        st = allocate_tables(r, cfg->depth, err);
    }
    if (st == MOE_OK) {
        st = open_files_and_threads(r, cfg, err);
    }
    if (st == MOE_OK) {
        st = open_engine(r, cfg, err);
    }
    if (st != MOE_OK) {
        goto fail;
    }
    *out = r;
    return MOE_OK;
fail:
    xs_reader_destroy(r);
    return st;
}

bool xs_reader_add_slots(xs_reader *r, uint32_t n_made, bool more_come)
{
    MOE_ASSERT(n_made >= r->n_made && n_made <= r->n_slots);
    r->n_made = n_made;
    if (r->ops->add_slots == NULL) {
        return true;
    }
    r->ops->add_slots(r->engine, n_made, more_come, &r->report);
    return r->report.registered_buffers;
}

/* ---- what can go wrong with an expert ---- */

/* The first failure of a job counts; the rest of its reads is not started. */
static void fail_job(xs_reader *r, xs_job *job, moe_status status, const char *fmt, ...)
    MOE_PRINTF(4, 5);
static void fail_job(xs_reader *r, xs_job *job, moe_status status, const char *fmt, ...)
{
    if (job->status != MOE_OK) {
        return;
    }
    job->status = status;
    char block[16];
    moe_block_name(&r->shape, moe_block_of_expert(&r->shape, job->expert), block, sizeof block);
    int used = snprintf(job->text, sizeof job->text, "expert %u (%s/%u): ", job->expert, block,
                        job->expert % r->shape.n_experts);
    va_list args;
    va_start(args, fmt);
    vsnprintf(job->text + used, sizeof job->text - (size_t)used, fmt, args);
    va_end(args);
    if (job->next_off < job->extent.padded_bytes) {
        job->next_off = job->extent.padded_bytes;
        remove_job(list_of(r, job), job);
    }
}

static void finish_if_nothing_is_open(xs_reader *r, xs_job *job)
{
    bool started = job->next_off == job->extent.padded_bytes;
    if (!started || job->n_reads_open > 0 || job->n_chunks_open > 0) {
        return;
    }
    job->done_ns = moe_now_ns();
    if (job->status == MOE_OK) {
        moe_histogram_add_ns(&r->counters.read_latency, job->done_ns - job->submitted_ns);
    } else if (job->status == MOE_ERR_CORRUPT) {
        r->counters.corrupt++;
    } else {
        r->counters.failed++;
    }
    append_job(&r->done, job);
}

/* ---- verification ---- */

static void run_verify(xs_work *work)
{
    chunk *c = (chunk *)work;
    c->matches = moe_xxh3(c->data, c->bytes) == c->expected;
}

/* A read of [off, off + bytes) has landed: the chunks it completes go to the verify threads. */
static void verify_landed(xs_reader *r, xs_job *job, uint64_t off, uint64_t bytes)
{
    uint64_t end = off + bytes;
    for (uint64_t i = off / MOE_CHUNK_BYTES; i < job->extent.n_chunks; i++) {
        chunk *c = &job->chunks[i];
        uint64_t first = i * MOE_CHUNK_BYTES;
        if (first >= end) {
            break;
        }
        uint64_t from = off > first ? off : first;
        uint64_t to = end < first + c->bytes ? end : first + c->bytes;
        c->bytes_left -= to > from ? to - from : 0;
        if (c->bytes_left == 0 && to > from) {
            xs_work_pool_submit(r->verify_pool, &c->work);
            job->n_chunks_open++;
        }
    }
}

static void take_verified(xs_reader *r)
{
    xs_work *next = NULL;
    for (xs_work *w = xs_work_pool_take_done(r->verify_pool); w != NULL; w = next) {
        next = w->next;
        chunk *c = (chunk *)w;
        xs_job *job = c->job;
        job->n_chunks_open--;
        if (!c->matches) {
            uint32_t i = (uint32_t)(c - job->chunks);
            uint64_t off = job->extent.off + (uint64_t)i * MOE_CHUNK_BYTES;
            fail_job(r, job, MOE_ERR_CORRUPT,
                     "chunk %u of %u does not match its checksum: segment %u, offset %llu, %zu "
                     "bytes",
                     i, job->extent.n_chunks, job->extent.segment, (unsigned long long)off,
                     c->bytes);
        }
        finish_if_nothing_is_open(r, job);
    }
}

/* ---- reads ---- */

static void count_bytes(xs_reader *r, uint64_t bytes)
{
    r->counters.read_bytes += bytes;
    if (r->catalog == NULL) {
        return; /* computed, not read */
    }
    if (r->files.direct) {
        r->counters.direct_bytes += bytes;
    } else {
        r->counters.buffered_bytes += bytes;
    }
}

/* True if the read goes on: it is back in the engine with what is left. Direct reads continue at
 * an aligned place, so what came beyond one is read again. */
static bool continue_read(xs_reader *r, xs_read *read)
{
    bool again = read->result == -EINTR || read->result == -EAGAIN;
    uint64_t moved = read->result > 0 ? (uint64_t)read->result : 0;
    if (moved < read->bytes && r->files.direct) {
        moved &= ~(uint64_t)(XS_EXTENT_ALIGN - 1);
    }
    count_bytes(r, moved);
    read->file_off += moved;
    read->dst += moved;
    read->bytes -= moved;
    read->n_retries = moved > 0 ? 0 : read->n_retries + 1;
    bool go_on =
        read->bytes > 0 && (moved > 0 || (again && read->n_retries < MAX_RETRIES_IN_A_ROW));
    if (go_on) {
        r->ops->start(r->engine, read);
    }
    return go_on;
}

static void end_read(xs_reader *r, xs_read *read)
{
    xs_job *job = read->job;
    job->n_reads_open--;
    job->last_read_ns = moe_now_ns();
    if (read->bytes == 0) {
        verify_landed(r, job, read->extent_off, read->extent_bytes);
    } else {
        const char *why = read->result < 0
                              ? moe_native_text(MOE_LAYER_ERRNO, (int32_t)-read->result)
                              : "unexpected end of file";
        fail_job(r, job, MOE_ERR_IO, "read of %llu bytes from segment %u at offset %llu: %s",
                 (unsigned long long)read->bytes, read->segment, (unsigned long long)read->file_off,
                 why);
    }
    read->work.next = (xs_work *)r->free_reads;
    r->free_reads = read;
    r->counters.reads_in_flight--;
    r->n_speculative_reads -= read->speculative;
    finish_if_nothing_is_open(r, job);
}

static void take_ended_reads(xs_reader *r)
{
    xs_read *next = NULL;
    for (xs_read *read = r->ops->reap(r->engine); read != NULL; read = next) {
        next = (xs_read *)read->work.next;
        if (!continue_read(r, read)) {
            end_read(r, read);
        }
    }
}

static void start_read(xs_reader *r, xs_job *job)
{
    xs_read *read = r->free_reads;
    r->free_reads = (xs_read *)read->work.next;
    uint64_t left = job->extent.padded_bytes - job->next_off;
    uint64_t bytes = left < r->split_bytes || r->catalog == NULL ? left : r->split_bytes;
    *read = (xs_read){.expert = job->expert,
                      .slot = job->slot,
                      .segment = job->extent.segment,
                      .file_off = job->extent.off + job->next_off,
                      .dst = r->slots + job->slot * r->slot_bytes + job->next_off,
                      .bytes = bytes,
                      .job = job,
                      .extent_off = job->next_off,
                      .extent_bytes = bytes,
                      .speculative = job->speculative};
    if (job->next_off == 0) {
        job->first_read_ns = moe_now_ns();
    }
    job->next_off += bytes;
    job->n_reads_open++;
    r->counters.reads++;
    r->counters.reads_in_flight++;
    r->n_speculative_reads += read->speculative;
    r->ops->start(r->engine, read);
}

static xs_job *next_to_read(xs_reader *r)
{
    if (r->waiting.head != NULL || r->n_speculative_reads >= r->max_speculative_reads) {
        return r->waiting.head;
    }
    return r->speculative.head;
}

/* Starts reads, those of either list in the order of submit, until the engine is full, and sends
 * them off. */
static void pump(xs_reader *r)
{
    xs_job *job = NULL;
    while (r->free_reads != NULL && (job = next_to_read(r)) != NULL) {
        start_read(r, job);
        if (job->next_off == job->extent.padded_bytes) {
            pop_job(list_of(r, job));
        }
    }
    r->ops->flush(r->engine);
}

/* ---- the interface ---- */

static moe_status find_extent(const xs_reader *r, uint32_t expert, xs_extent *out, moe_err *err)
{
    if (r->catalog == NULL) {
        *out = (xs_extent){.payload_bytes = r->synthetic_bytes, .padded_bytes = r->synthetic_bytes};
        return MOE_OK;
    }
    const xs_extent *x = &xs_catalog_expert(r->catalog, expert)->extent;
    if (x->padded_bytes == 0 || x->padded_bytes > r->slot_bytes ||
        x->payload_bytes > x->padded_bytes || x->n_chunks != moe_n_chunks(x->payload_bytes) ||
        x->off % XS_EXTENT_ALIGN != 0 || x->segment >= r->files.n) {
        return MOE_FAIL(err, MOE_ERR_FORMAT,
                        "expert %u: segment %u, offset %llu, %llu bytes: not a valid extent",
                        expert, x->segment, (unsigned long long)x->off,
                        (unsigned long long)x->padded_bytes);
    }
    *out = *x;
    return MOE_OK;
}

static void prepare_chunks(const xs_reader *r, xs_job *job)
{
    const char *payload = r->slots + job->slot * r->slot_bytes;
    for (uint32_t i = 0; i < job->extent.n_chunks; i++) {
        uint64_t off = (uint64_t)i * MOE_CHUNK_BYTES;
        uint64_t left = job->extent.payload_bytes - off;
        uint64_t bytes = left < MOE_CHUNK_BYTES ? left : MOE_CHUNK_BYTES;
        job->chunks[i] = (chunk){.work = {.run = run_verify},
                                 .job = job,
                                 .data = payload + off,
                                 .bytes = bytes,
                                 .expected = job->extent.hashes[i],
                                 .bytes_left = bytes};
    }
}

static bool slot_is_in_flight(const xs_reader *r, uint32_t slot)
{
    for (uint32_t i = 0; i < r->max_jobs; i++) {
        if (r->jobs[i].submitted_ns != 0 && r->jobs[i].slot == slot) {
            return true;
        }
    }
    return false;
}

static moe_status submit(xs_reader *r, const xs_job *wanted, moe_err *err)
{
    uint32_t expert = wanted->expert;
    uint32_t slot = wanted->slot;
    if (expert >= r->shape.n_experts_total || slot >= r->n_made) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "read of expert %u of %u into slot %u of %u", expert,
                        r->shape.n_experts_total, slot, r->n_made);
    }
    MOE_ASSERT(!slot_is_in_flight(r, slot));
    if (r->free.head == NULL) {
        return MOE_FAIL(err, MOE_ERR_AGAIN, "%u experts are in flight", r->max_jobs);
    }
    xs_extent extent;
    moe_status st = find_extent(r, expert, &extent, err);
    if (st != MOE_OK) {
        return st;
    }
    xs_job *job = pop_job(&r->free);
    chunk *chunks = job->chunks;
    *job = (xs_job){.expert = expert,
                    .slot = slot,
                    .speculative = wanted->speculative,
                    .tag = wanted->tag,
                    .extent = extent,
                    .submitted_ns = moe_now_ns(),
                    .chunks = chunks};
    prepare_chunks(r, job);
    append_job(list_of(r, job), job);
    r->counters.experts_in_flight++;
    pump(r);
    return MOE_OK;
}

moe_status xs_reader_submit(xs_reader *r, uint32_t expert, uint32_t slot, uint64_t tag,
                            moe_err *err)
{
    const xs_job wanted = {.expert = expert, .slot = slot, .tag = tag};
    return submit(r, &wanted, err);
}

moe_status xs_reader_submit_speculative(xs_reader *r, uint32_t expert, uint32_t slot, uint64_t tag,
                                        moe_err *err)
{
    const xs_job wanted = {.expert = expert, .slot = slot, .speculative = true, .tag = tag};
    return submit(r, &wanted, err);
}

void xs_reader_hurry(xs_reader *r, uint32_t slot)
{
    for (uint32_t i = 0; i < r->max_jobs; i++) {
        xs_job *job = &r->jobs[i];
        if (job->submitted_ns == 0 || job->slot != slot || !job->speculative) {
            continue;
        }
        bool waits = job->next_off < job->extent.padded_bytes;
        if (waits) {
            remove_job(&r->speculative, job);
        }
        job->speculative = false;
        if (waits) {
            append_job(&r->waiting, job);
            pump(r);
        }
    }
}

static void complete(const xs_job *job, xs_completion *out)
{
    *out = (xs_completion){.expert = job->expert,
                           .slot = job->slot,
                           .tag = job->tag,
                           .status = job->status,
                           .queued_ns = job->first_read_ns - job->submitted_ns,
                           .read_ns = job->last_read_ns - job->first_read_ns,
                           .verify_ns = job->done_ns - job->last_read_ns};
    memcpy(out->text, job->text, sizeof out->text);
}

uint32_t xs_reader_harvest(xs_reader *r, xs_completion *out, uint32_t max)
{
    xs_wake_clear(r->wake_fd);
    take_ended_reads(r);
    if (r->verify_pool != NULL) {
        take_verified(r);
    }
    pump(r);
    uint32_t n = 0;
    while (n < max && r->done.head != NULL) {
        xs_job *job = pop_job(&r->done);
        complete(job, &out[n++]);
        job->submitted_ns = 0;
        append_job(&r->free, job);
        r->counters.experts_in_flight--;
    }
    if (r->done.head != NULL) {
        xs_wake(r->wake_fd); /* max was too small: come again */
    }
    return n;
}

static void stop_reading(xs_reader *r)
{
    xs_job *job = NULL;
    while ((job = pop_job(&r->waiting)) != NULL || (job = pop_job(&r->speculative)) != NULL) {
        job->next_off = job->extent.padded_bytes; /* the rest counts as started */
    }
    while (r->counters.reads_in_flight > 0) {
        r->ops->flush(r->engine);
        r->ops->wait(r->engine);
        take_ended_reads(r);
    }
}

void xs_reader_destroy(xs_reader *r)
{
    if (r == NULL) {
        return;
    }
    if (r->engine != NULL) {
        stop_reading(r);
        r->ops->close(r->engine);
    }
    xs_work_pool_destroy(r->verify_pool); /* hashes what is queued: it may read slots until here */
    xs_segment_files_close(&r->files);
    if (r->wake_fd >= 0) {
        close(r->wake_fd);
    }
    free(r->reads);
    free(r->chunks);
    free(r->jobs);
    free(r);
}

const xs_reader_report *xs_reader_get_report(const xs_reader *r)
{
    return &r->report;
}

const xs_reader_counters *xs_reader_get_counters(const xs_reader *r)
{
    return &r->counters;
}

int xs_reader_fd(const xs_reader *r)
{
    return r->wake_fd;
}

uint32_t xs_reader_max_in_flight(const xs_reader *r)
{
    return r->max_jobs;
}
