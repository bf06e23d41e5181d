/* pack.c - see pack.h. Called by main.c on the main thread. Owns OUT.partial (under a flock, so
 * that two packers cannot share it), the catalogue writer and the segment writer while it runs. */
#include "expert-store/pack/pack.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checksum.h"
#include "common/clock.h"
#include "common/text.h"
#include "expert-store/catalog/catalog.h"
#include "expert-store/pack/segment_writer.h"
#include "expert-store/pack/store_dir.h"

enum { DIR_BYTES = 900, KILL_BYTES = 64 };
#define CATALOG_SLACK_BYTES (16ull << 20) /* records, hashes, LMDB's spare pages */

typedef struct place {
    uint32_t segment;
    uint64_t off, payload_bytes, padded_bytes;
} place;

typedef struct packer {
    const xs_source *src;       /* borrowed */
    const xs_pack_options *opt; /* borrowed */
    char out[DIR_BYTES], partial[DIR_BYTES + 16];
    int lock_fd; /* owned; -1: none */
    uint64_t align;
    moe_text job;            /* owned */
    place *places;           /* [n_items], owned */
    uint64_t *segment_bytes; /* [n_segments], owned */
    uint32_t n_items, n_segments;
    uint64_t *hashes;            /* of one item, owned */
    xs_catalog_writer *catalog;  /* owned */
    xs_segment_writer *segments; /* owned */
    uint32_t n_commits;
    xs_pack_result result;
} packer;

/* For tests: dies as hard as a power cut would, at a named point of the run.
 * "after-item:N" (N items were handed to the writers), "after-commit:N" (the N-th commit of this
 * run is done), "before-rename" (finished, not yet in place), "after-rename". */
static void kill_point(const packer *p, const char *name, uint32_t n)
{
    char here[KILL_BYTES];
    snprintf(here, sizeof here, n > 0 ? "%s:%u" : "%s", name, n);
    if (strcmp(p->opt->test_kill_at, here) == 0) {
        raise(SIGKILL);
    }
}

static void note(const packer *p, const char *text)
{
    if (p->opt->watch.note != NULL && *text != '\0') {
        p->opt->watch.note(p->opt->watch.user, text);
    }
}

/* ---- layout: decided before anything is written, so a later run decides the same ---- */

static uint64_t payload_bytes(const xs_source *src, uint32_t item)
{
    uint32_t n_experts = src->shape.n_experts_total;
    return item < n_experts ? moe_expert_params(&src->shape) * moe_dtype_bytes(src->expert_dtype)
                            : xs_source_tensor_bytes(&src->tensors[item - n_experts]);
}

static moe_status lay_out(packer *p, moe_err *err)
{
    p->n_items = p->src->shape.n_experts_total + p->src->n_tensors;
    p->places = calloc(p->n_items, sizeof *p->places);
    p->segment_bytes = calloc(p->n_items, sizeof *p->segment_bytes); /* at most one each */
    uint64_t largest = 0;
    uint32_t segment = 0;
    uint64_t off = 0;
    for (uint32_t i = 0; p->places != NULL && p->segment_bytes != NULL && i < p->n_items; i++) {
        uint64_t payload = payload_bytes(p->src, i);
        uint64_t padded = moe_align_up(payload, p->align);
        if (off > 0 && off + padded > p->opt->segment_bytes) {
            segment++;
            off = 0;
        }
        p->places[i] = (place){
            .segment = segment, .off = off, .payload_bytes = payload, .padded_bytes = padded};
        off += padded;
        p->segment_bytes[segment] = off;
        p->result.total_bytes += padded;
        largest = payload > largest ? payload : largest;
    }
    p->n_segments = segment + 1;
    p->hashes = calloc(moe_n_chunks(largest) + 1u, sizeof *p->hashes);
    if (p->places == NULL || p->segment_bytes == NULL || p->hashes == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "layout of %u extents", p->n_items);
    }
    return MOE_OK;
}

/* ---- starting and resuming ---- */

static moe_status check_names(packer *p, moe_err *err)
{
    size_t n = strlen(p->opt->out);
    while (n > 1 && p->opt->out[n - 1] == '/') {
        n--;
    }
    if (n == 0 || n >= sizeof p->out) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "--out names the store to make, at most %zu bytes long: '%s'",
                        sizeof p->out - 1, p->opt->out);
    }
    snprintf(p->out, sizeof p->out, "%.*s", (int)n, p->opt->out);
    snprintf(p->partial, sizeof p->partial, "%s.partial", p->out);
    struct stat sb;
    if (lstat(p->out, &sb) != 0) {
        return MOE_OK;
    }
    if (!xs_store_dir_is_store(p->out)) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "%s exists and is not a store: choose another --out, or remove it", p->out);
    }
    if (!p->opt->force) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "%s exists: choose another --out, or replace it with --force", p->out);
    }
    return MOE_OK;
}

static moe_status lock_partial(packer *p, moe_err *err)
{
    moe_status st = xs_store_dir_make(p->partial, err);
    if (st != MOE_OK) {
        return st;
    }
    p->lock_fd = open(p->partial, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (p->lock_fd < 0) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "open %s", p->partial);
    }
    if (flock(p->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        return MOE_FAIL(err, MOE_ERR_BUSY, "another expert-pack is writing %s", p->partial);
    }
    return MOE_OK;
}

static moe_status describe_job(packer *p, moe_err *err)
{
    moe_text_printf(&p->job, "%ssegment_bytes=%" PRIu64 " align=%" PRIu64 "\n", p->src->job,
                    p->opt->segment_bytes, p->align);
    return moe_text_finish(&p->job, err);
}

static moe_status start_over(packer *p, moe_err *err)
{
    xs_catalog_writer_close(p->catalog);
    p->catalog = NULL;
    close(p->lock_fd);
    p->lock_fd = -1;
    moe_status st = xs_store_dir_remove(p->partial, err);
    st = st != MOE_OK ? st : lock_partial(p, err);
    return st != MOE_OK ? st : xs_catalog_writer_open(p->partial, &p->catalog, err);
}

/* Opens the catalogue, new or of an earlier run with the same job. */
static moe_status open_catalog(packer *p, moe_err *err)
{
    moe_status st = xs_catalog_writer_open(p->partial, &p->catalog, err);
    if (st != MOE_OK && p->opt->force) {
        st = start_over(p, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    const char *job = xs_catalog_writer_job(p->catalog);
    if (*job != '\0' && strcmp(job, p->job.data) != 0) {
        if (!p->opt->force) {
            return MOE_FAIL(err, MOE_ERR_INVALID,
                            "%s was begun from another checkpoint or with other settings: remove "
                            "it, or start over with --force",
                            p->partial);
        }
        st = start_over(p, err);
    }
    return st != MOE_OK ? st : xs_catalog_writer_set_job(p->catalog, p->job.data, err);
}

/* What the catalogue counts as done must still be there. */
static moe_status check_done_segments(const packer *p, uint32_t n_done, moe_err *err)
{
    for (uint32_t i = 0; i < n_done; i++) {
        char path[DIR_BYTES + 64];
        struct stat sb;
        if (i + 1 < n_done && p->places[i + 1].segment == p->places[i].segment) {
            continue; /* the last one of each segment reaches furthest */
        }
        xs_segment_path(p->partial, p->places[i].segment, path, sizeof path);
        if (stat(path, &sb) != 0 ||
            (uint64_t)sb.st_size < p->places[i].off + p->places[i].padded_bytes) {
            return MOE_FAIL(err, MOE_ERR_CORRUPT,
                            "%s is missing or cut short: remove %s and pack again", path,
                            p->partial);
        }
    }
    return MOE_OK;
}

static moe_status count_done(packer *p, uint32_t *out, moe_err *err)
{
    xs_catalog_progress done;
    xs_catalog_writer_progress(p->catalog, &done);
    uint32_t n = done.n_experts + done.n_tensors, n_experts = p->src->shape.n_experts_total;
    if (n > p->n_items || (done.n_tensors > 0 && done.n_experts != n_experts)) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "%s makes no sense: remove it and pack again",
                        p->partial);
    }
    moe_status st = check_done_segments(p, n, err);
    if (st != MOE_OK) {
        return st;
    }
    if (n > 0) {
        char text[160];
        snprintf(text, sizeof text, "continuing an earlier run: %u of %u experts and tensors done",
                 n, p->n_items);
        note(p, text);
    }
    *out = p->result.n_resumed = n;
    return MOE_OK;
}

/* Nothing is left of a run that was refused before it wrote anything. */
static moe_status check_space(packer *p, moe_err *err)
{
    uint64_t free_bytes = 0, need = p->result.total_bytes + CATALOG_SLACK_BYTES;
    for (uint32_t i = 0; i < p->src->n_files; i++) {
        need += 2 * p->src->files[i].bytes;
    }
    uint64_t have = xs_store_dir_allocated(p->partial);
    need = need > have ? need - have : 0;
    moe_status st = xs_store_dir_free_bytes(p->partial, &free_bytes, err);
    if (st == MOE_OK && free_bytes < need) {
        st = MOE_FAIL(err, MOE_ERR_NO_SPACE,
                      "%s needs %.2f GB more, its filesystem has %.2f GB free", p->partial,
                      (double)need / 1e9, (double)free_bytes / 1e9);
        if (p->result.n_resumed == 0) {
            xs_catalog_writer_close(p->catalog);
            p->catalog = NULL;
            moe_status removed = xs_store_dir_remove(p->partial, NULL);
            (void)removed; /* the lack of space is the error to tell */
        }
    }
    return st;
}

static moe_status start_writer(packer *p, moe_err *err)
{
    xs_segment_writer_cfg cfg = {.dir = p->partial,
                                 .segment_bytes = p->segment_bytes,
                                 .n_segments = p->n_segments,
                                 .align = p->align,
                                 .buffer_bytes = moe_align_up(p->opt->buffer_bytes, p->align),
                                 .n_buffers = p->opt->n_buffers,
                                 .n_threads = p->opt->n_writers,
                                 .direct = p->opt->direct};
    return xs_segment_writer_create(&cfg, &p->segments, err);
}

/* ---- writing ---- */

/* Reads and hashes one buffer's worth chunk by chunk, while the chunk is in the cache. */
static moe_status fill_buffer(packer *p, uint32_t item, uint64_t off, size_t bytes, char *buf,
                              moe_err *err)
{
    for (size_t at = 0; at < bytes; at += MOE_CHUNK_BYTES) {
        size_t n = bytes - at < MOE_CHUNK_BYTES ? bytes - at : MOE_CHUNK_BYTES;
        xs_piece piece = {.item = item, .off = off + at, .bytes = n};
        moe_status st = p->src->read(p->src->self, &piece, buf + at, err);
        if (st != MOE_OK) {
            return st;
        }
        p->hashes[(off + at) / MOE_CHUNK_BYTES] = moe_xxh3(buf + at, n);
    }
    return MOE_OK;
}

static moe_status write_payload(packer *p, uint32_t item, moe_err *err)
{
    const place *at = &p->places[item];
    for (uint64_t off = 0; off < at->payload_bytes; off += p->opt->buffer_bytes) {
        uint64_t left = at->payload_bytes - off;
        size_t n = (size_t)(left < p->opt->buffer_bytes ? left : p->opt->buffer_bytes);
        size_t padded = (size_t)moe_align_up(n, p->align);
        void *buf = NULL;
        moe_status st = xs_segment_writer_acquire(p->segments, &buf, err);
        st = st != MOE_OK ? st : fill_buffer(p, item, off, n, buf, err);
        if (st != MOE_OK) {
            return st;
        }
        memset((char *)buf + n, 0, padded - n);
        st = xs_segment_writer_submit(p->segments, buf, padded, at->segment, at->off + off, err);
        if (st != MOE_OK) {
            return st;
        }
        p->result.written_bytes += padded;
    }
    return MOE_OK;
}

static moe_status put_expert(packer *p, uint32_t item, const xs_extent *extent, moe_err *err)
{
    const moe_model_shape *s = &p->src->shape;
    moe_stack stack;
    uint32_t block, expert;
    xs_expert_place(s, item, &stack, &block, &expert);
    uint64_t matrix_bytes = extent->payload_bytes / 2;
    uint32_t dtype = (uint32_t)p->src->expert_dtype;
    xs_expert_record rec = {
        .extent = *extent,
        .layer = s->stack[stack].layer_of_block[block],
        .n_parts = 2,
        .parts = {{.off = 0, .dtype = dtype, .rows = s->d_ff, .cols = s->d_model},
                  {.off = matrix_bytes, .dtype = dtype, .rows = s->d_model, .cols = s->d_ff}}};
    return xs_catalog_put_expert(p->catalog, stack, block, expert, &rec, err);
}

static moe_status put_record(packer *p, uint32_t item, moe_err *err)
{
    const place *at = &p->places[item];
    xs_extent extent = {.segment = at->segment,
                        .n_chunks = moe_n_chunks(at->payload_bytes),
                        .off = at->off,
                        .payload_bytes = at->payload_bytes,
                        .padded_bytes = at->padded_bytes,
                        .hashes = p->hashes};
    uint32_t n_experts = p->src->shape.n_experts_total;
    if (item < n_experts) {
        return put_expert(p, item, &extent, err);
    }
    const xs_source_tensor *t = &p->src->tensors[item - n_experts];
    xs_tensor_record rec = {.dtype = (uint32_t)t->dtype, .n_dims = t->n_dims, .extent = extent};
    memcpy(rec.name, t->name, sizeof rec.name);
    memcpy(rec.dims, t->dims, sizeof rec.dims);
    return xs_catalog_put_tensor(p->catalog, &rec, err);
}

/* The records were put as they came; they count only from here. */
static moe_status commit(packer *p, moe_err *err)
{
    moe_status st = xs_segment_writer_flush(p->segments, err);
    st = st != MOE_OK ? st : xs_catalog_writer_commit(p->catalog, err);
    if (st == MOE_OK) {
        kill_point(p, "after-commit", ++p->n_commits);
        if (p->n_commits == 1 && p->opt->direct && !xs_segment_writer_is_direct(p->segments)) {
            note(p, "the filesystem refuses O_DIRECT: writing through the page cache");
        }
    }
    return st;
}

static bool stop_wanted(const packer *p)
{
    return p->opt->watch.stop != NULL && *p->opt->watch.stop != 0;
}

static moe_status stopped(packer *p, uint32_t n_done, moe_err *err)
{
    moe_status st = commit(p, err);
    return st != MOE_OK
               ? st
               : MOE_FAIL(err, MOE_ERR_CANCELLED, "stopped with %u of %u experts and tensors done",
                          n_done, p->n_items);
}

static void tell_progress(const packer *p, uint64_t done_bytes)
{
    if (p->opt->watch.progress != NULL) {
        p->opt->watch.progress(p->opt->watch.user, done_bytes, p->result.total_bytes);
    }
}

static uint64_t bytes_before(const packer *p, uint32_t n_items)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < n_items; i++) {
        bytes += p->places[i].padded_bytes;
    }
    return bytes;
}

static moe_status write_items(packer *p, uint32_t first, moe_err *err)
{
    uint64_t done_bytes = bytes_before(p, first);
    for (uint32_t i = first; i < p->n_items; i++) {
        if (stop_wanted(p)) {
            return stopped(p, i, err);
        }
        moe_status st = write_payload(p, i, err);
        st = st != MOE_OK ? st : put_record(p, i, err);
        if (st != MOE_OK) {
            return st;
        }
        kill_point(p, "after-item", i + 1 - first);
        done_bytes += p->places[i].padded_bytes;
        tell_progress(p, done_bytes);
        bool due = (i + 1 - first) % p->opt->commit_every == 0 || i + 1 == p->n_items;
        st = due ? commit(p, err) : MOE_OK;
        if (st != MOE_OK) {
            return st;
        }
    }
    return MOE_OK;
}

static moe_status finish(packer *p, moe_err *err)
{
    moe_status st = MOE_OK;
    for (uint32_t i = 0; st == MOE_OK && i < p->src->n_files; i++) {
        const xs_source_file *f = &p->src->files[i];
        st = xs_catalog_put_file(p->catalog, f->name, f->data, f->bytes, err);
    }
    st = st != MOE_OK ? st
                      : xs_catalog_writer_finish(p->catalog, p->src->model_name,
                                                 (uint32_t)p->src->expert_dtype, err);
    if (st != MOE_OK) {
        return st;
    }
    kill_point(p, "before-rename", 0);
    bool replaced = false;
    st = xs_store_dir_publish(p->partial, p->out, p->opt->force, &replaced, err);
    if (st != MOE_OK) {
        return st;
    }
    kill_point(p, "after-rename", 0);
    return replaced ? xs_store_dir_remove(p->partial, err) : MOE_OK;
}

/* ---- the whole ---- */

static moe_status run(packer *p, moe_err *err)
{
    uint32_t first = 0;
    moe_status st = xs_store_dir_align(p->partial, &p->align, err);
    st = st != MOE_OK ? st : describe_job(p, err);
    st = st != MOE_OK ? st : lay_out(p, err);
    st = st != MOE_OK ? st : open_catalog(p, err);
    st = st != MOE_OK ? st : count_done(p, &first, err);
    st = st != MOE_OK ? st : check_space(p, err);
    st = st != MOE_OK ? st : start_writer(p, err);
    st = st != MOE_OK ? st : write_items(p, first, err);
    if (st == MOE_OK) {
        p->result.direct = xs_segment_writer_is_direct(p->segments);
        st = finish(p, err);
    }
    return st;
}

/* After a failure that a rerun can get over. */
static void add_resume_hint(const packer *p, moe_err *err)
{
    if (err != NULL && (err->status == MOE_ERR_CANCELLED || err->status == MOE_ERR_NO_SPACE) &&
        access(p->partial, F_OK) == 0) {
        size_t n = strlen(err->text);
        snprintf(err->text + n, sizeof err->text - n,
                 "; %s is kept: run the same command again to go on", p->partial);
    }
}

static void release(packer *p)
{
    xs_segment_writer_destroy(p->segments);
    xs_catalog_writer_close(p->catalog);
    if (p->lock_fd >= 0) {
        close(p->lock_fd);
    }
    moe_text_fini(&p->job);
    free(p->hashes);
    free(p->segment_bytes);
    free(p->places);
}

moe_status xs_pack(const xs_source *src, const xs_pack_options *opt, xs_pack_result *out,
                   moe_err *err)
{
    MOE_ASSERT(opt->buffer_bytes > 0 && opt->buffer_bytes % MOE_CHUNK_BYTES == 0);
    packer p = {.src = src, .opt = opt, .lock_fd = -1};
    int64_t start_ns = moe_now_ns();
    moe_text_init(&p.job);
    moe_status st = check_names(&p, err);
    if (st == MOE_OK) {
        st = lock_partial(&p, err);
    }
    if (st == MOE_OK) {
        st = run(&p, err);
        if (st != MOE_OK) {
            add_resume_hint(&p, err);
        }
    }
    release(&p);
    if (st != MOE_OK) {
        return st;
    }
    p.result.n_experts = src->shape.n_experts_total;
    p.result.n_tensors = src->n_tensors;
    p.result.n_segments = p.n_segments;
    p.result.ns = moe_now_ns() - start_ns;
    *out = p.result;
    return MOE_OK;
}
