/* verify.c - see verify.h. Called by main.c; owns its threads and buffers while it runs.
 *
 * Threads take extents in the order they lie on the medium, so the reads of all of them together
 * are nearly sequential. A bad extent does not end the run: people want the whole list. */
#include "expert-store/pack/verify.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checksum.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/lock.h"
#include "expert-store/catalog/tensor_names.h"

enum { MAX_THREADS = 64, BUFFER_BYTES = 4 << 20 };
_Static_assert(BUFFER_BYTES % MOE_CHUNK_BYTES == 0, "chunks do not straddle reads");

typedef struct verifier {
    const xs_catalog *c;
    const xs_verify_options *opt;
    uint32_t n_experts, n_extents;
    uint64_t total_bytes;

    moe_mutex mu;
    uint32_t next;           /* extent to be taken, guarded by mu */
    xs_verify_result result; /* guarded by mu */
    uint32_t first_bad;      /* extent of first_err, guarded by mu */
    moe_err first_err;       /* guarded by mu */
} verifier;

typedef struct reader {
    verifier *v;
    void *buf; /* owned */
    int fd;    /* owned; of `segment`; -1 when none is open */
    uint32_t segment;
    bool direct;
} reader;

static const xs_extent *extent_at(const verifier *v, uint32_t i)
{
    return i < v->n_experts ? &xs_catalog_expert(v->c, i)->extent
                            : &xs_catalog_tensor(v->c, i - v->n_experts)->extent;
}

/* "expert 17 of dec0 (segment 000000, offset 4096)" */
static void extent_name(const verifier *v, uint32_t i, char *out, size_t out_bytes)
{
    char what[XS_NAME_BYTES + 16];
    const xs_extent *e = extent_at(v, i);
    if (i < v->n_experts) {
        const moe_model_shape *s = &xs_catalog_get_info(v->c)->shape;
        char block[8];
        moe_block_name(s, moe_block_of_expert(s, i), block, sizeof block);
        snprintf(what, sizeof what, "expert %u of %s", i % s->n_experts, block);
    } else {
        snprintf(what, sizeof what, "tensor '%s'", xs_catalog_tensor(v->c, i - v->n_experts)->name);
    }
    snprintf(out, out_bytes, "%s (segment %06u, offset %" PRIu64 ")", what, e->segment, e->off);
}

/* ---- reading ---- */

static moe_status open_segment(reader *r, uint32_t segment, moe_err *err)
{
    if (r->fd >= 0 && r->segment == segment) {
        return MOE_OK;
    }
    if (r->fd >= 0) {
        close(r->fd);
        r->fd = -1;
    }
    char path[1200];
    xs_catalog_segment_path(r->v->c, segment, path, sizeof path);
    int fd = open(path, O_RDONLY | O_CLOEXEC | (r->direct ? O_DIRECT : 0));
    if (fd < 0 && r->direct && errno == EINVAL) {
        r->direct = false;
        fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    if (fd < 0) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "cannot open %s", path);
    }
    r->fd = fd;
    r->segment = segment;
    return MOE_OK;
}

static moe_status check_padding(const char *p, size_t n, const char *name, moe_err *err)
{
    for (size_t i = 0; i < n; i++) {
        if (p[i] != 0) {
            return MOE_FAIL(err, MOE_ERR_CORRUPT, "%s: its padding is not zero", name);
        }
    }
    return MOE_OK;
}

/* bytes of the extent from off are in the buffer. */
static moe_status check_buffer(const reader *r, const xs_extent *e, uint64_t off, size_t bytes,
                               const char *name, moe_err *err)
{
    const char *buf = r->buf;
    size_t payload = bytes;
    if (off + bytes > e->payload_bytes) {
        payload = off < e->payload_bytes ? (size_t)(e->payload_bytes - off) : 0;
    }
    for (size_t at = 0; at < payload; at += MOE_CHUNK_BYTES) {
        size_t n = payload - at < MOE_CHUNK_BYTES ? payload - at : MOE_CHUNK_BYTES;
        uint32_t chunk = (uint32_t)((off + at) / MOE_CHUNK_BYTES);
        if (moe_xxh3(buf + at, n) != e->hashes[chunk]) {
            return MOE_FAIL(err, MOE_ERR_CORRUPT, "%s: chunk %u of %u does not match its checksum",
                            name, chunk, e->n_chunks);
        }
    }
    return check_padding(buf + payload, bytes - payload, name, err);
}

static moe_status check_extent(reader *r, uint32_t i, moe_err *err)
{
    const xs_extent *e = extent_at(r->v, i);
    char name[XS_NAME_BYTES + 80];
    extent_name(r->v, i, name, sizeof name);
    moe_status st = open_segment(r, e->segment, err);
    for (uint64_t off = 0; st == MOE_OK && off < e->padded_bytes; off += BUFFER_BYTES) {
        uint64_t left = e->padded_bytes - off;
        size_t n = left < BUFFER_BYTES ? (size_t)left : BUFFER_BYTES;
        st = moe_pread_exact(r->fd, r->buf, n, e->off + off, name, err);
        st = st != MOE_OK ? st : check_buffer(r, e, off, n, name, err);
    }
    return st;
}

/* ---- threads ---- */

static void report_locked(verifier *v, uint32_t i, moe_status st, const moe_err *err)
    MOE_REQUIRES(v->mu);
static void report_locked(verifier *v, uint32_t i, moe_status st, const moe_err *err)
{
    const xs_pack_watch *watch = &v->opt->watch;
    v->result.bytes += extent_at(v, i)->padded_bytes;
    if (st != MOE_OK) {
        v->result.n_bad++;
        if (v->first_err.status == MOE_OK || i < v->first_bad) {
            v->first_bad = i;
            v->first_err = *err;
        }
        if (watch->note != NULL) {
            watch->note(watch->user, err->text);
        }
    }
    if (watch->progress != NULL) {
        watch->progress(watch->user, v->result.bytes, v->total_bytes);
    }
}

static bool stop_wanted(const verifier *v)
{
    return v->opt->watch.stop != NULL && *v->opt->watch.stop != 0;
}

static void *reader_main(void *arg)
{
    reader *r = arg;
    verifier *v = r->v;
    moe_mutex_lock(&v->mu);
    while (v->next < v->n_extents && !stop_wanted(v)) {
        uint32_t i = v->next++;
        moe_mutex_unlock(&v->mu);
        moe_err err = {0};
        moe_status st = check_extent(r, i, &err);
        moe_mutex_lock(&v->mu);
        report_locked(v, i, st, &err);
    }
    v->result.direct = v->result.direct && r->direct;
    moe_mutex_unlock(&v->mu);
    return NULL;
}

static moe_status run(verifier *v, reader *readers, uint32_t n, moe_err *err)
{
    pthread_t threads[MAX_THREADS];
    for (uint32_t i = 0; i < n; i++) {
        readers[i] = (reader){.v = v, .fd = -1, .direct = v->opt->direct};
        readers[i].buf = aligned_alloc(XS_EXTENT_ALIGN, BUFFER_BYTES);
        if (readers[i].buf == NULL) {
            return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%u read buffers", n);
        }
    }
    uint32_t started = 1; /* this thread is the first */
    while (started < n &&
           pthread_create(&threads[started], NULL, reader_main, &readers[started]) == 0) {
        started++;
    }
    (void)reader_main(&readers[0]); /* fewer threads than asked for are only slower */
    for (uint32_t i = 1; i < started; i++) {
        pthread_join(threads[i], NULL);
    }
    return MOE_OK;
}

moe_status xs_verify(const char *store_dir, const xs_catalog *c, const xs_verify_options *opt,
                     xs_verify_result *out, moe_err *err)
{
    const uint32_t n_threads = opt->n_threads;
    MOE_ASSERT(n_threads > 0 && n_threads <= MAX_THREADS);
    const xs_catalog_info *info = xs_catalog_get_info(c);
    reader readers[MAX_THREADS] = {0};
    verifier v = {.c = c,
                  .opt = opt,
                  .n_experts = info->shape.n_experts_total,
                  .n_extents = info->shape.n_experts_total + info->n_tensors,
                  .result = {.direct = opt->direct}};
    for (uint32_t i = 0; i < v.n_extents; i++) {
        v.total_bytes += extent_at(&v, i)->padded_bytes;
    }
    int64_t start_ns = moe_now_ns();
    moe_mutex_init(&v.mu);
    moe_status st = run(&v, readers, n_threads, err);
    moe_mutex_fini(&v.mu);
    for (uint32_t i = 0; i < n_threads; i++) {
        if (readers[i].buf != NULL && readers[i].fd >= 0) {
            close(readers[i].fd);
        }
        free(readers[i].buf);
    }
    if (st != MOE_OK) {
        return st;
    }
    v.result.n_extents = v.n_extents;
    v.result.ns = moe_now_ns() - start_ns;
    *out = v.result;
    if (v.result.n_bad > 0) {
        return MOE_FAIL(err, v.first_err.status,
                        "%s: %u of %u extents are bad, the first: %.250s; pack it again", store_dir,
                        v.result.n_bad, v.n_extents, v.first_err.text);
    }
    return v.next < v.n_extents ? MOE_FAIL(err, MOE_ERR_CANCELLED, "stopped") : MOE_OK;
}
