/* trace_recorder.c - see trace_recorder.h. */
#include "expert-store/server/trace_recorder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/file.h"

enum { BUFFER_BYTES = 64 << 10, FLUSH_S = 1 };

typedef struct fresh_use { /* found by one look */
    int64_t at_ns;
    uint32_t expert, n;
} fresh_use;

struct xs_recorder {
    const xs_lease_view *leases;
    char path[512];
    int fd;
    uint64_t max_bytes, file_bytes;
    uint8_t buffer[BUFFER_BYTES];
    size_t n_buffered;
    int64_t began_ns; /* 0: the file is not begun */
    int64_t looked_ns, flushed_ns;
    int64_t last_us;     /* of the last record */
    uint64_t *uses_seen; /* [n_experts] owned */
    fresh_use *fresh;    /* [n_experts] owned */
    moe_err why_ended;   /* status MOE_OK while recording */
    bool end_told;
};

/* ---- the file ---- */

static moe_status check_is_ours(int fd, const char *path, moe_err *err)
{
    char magic[8] = {0};
    struct stat st = {0};
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == 0) {
        return MOE_OK;
    }
    if (!S_ISREG(st.st_mode) || pread(fd, magic, sizeof magic, 0) != (ssize_t)sizeof magic ||
        memcmp(magic, XS_TRACE_MAGIC, sizeof magic) != 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "--record-trace %.200s: there is something that is no trace; remove it or "
                        "choose another name",
                        path);
    }
    return MOE_OK;
}

static moe_status open_file(xs_recorder *r, moe_err *err)
{
    r->fd = open(r->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (r->fd < 0) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno,
                               "cannot open --record-trace %.200s", r->path);
    }
    moe_status st = check_is_ours(r->fd, r->path, err);
    if (st == MOE_OK && ftruncate(r->fd, 0) != 0) {
        st = MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "cannot empty %.200s",
                             r->path);
    }
    return st;
}

static void flush(xs_recorder *r)
{
    r->flushed_ns = moe_now_ns();
    if (r->n_buffered == 0 || r->why_ended.status != MOE_OK) {
        return;
    }
    moe_status st =
        moe_pwrite_exact(r->fd, r->buffer, r->n_buffered, r->file_bytes, r->path, &r->why_ended);
    if (st == MOE_OK) {
        r->file_bytes += r->n_buffered;
    }
    r->n_buffered = 0;
}

/* ---- life ---- */

static moe_status allocate(xs_recorder *r, uint32_t n_experts, moe_err *err)
{
    r->uses_seen = calloc(n_experts, sizeof *r->uses_seen);
    r->fresh = calloc(n_experts, sizeof *r->fresh);
    return r->uses_seen != NULL && r->fresh != NULL
               ? MOE_OK
               : MOE_FAIL(err, MOE_ERR_NO_MEMORY, "trace of %u experts", n_experts);
}

static void put_header(xs_recorder *r, const xs_trace_header *header)
{
    xs_trace_header h = *header;
    memcpy(h.magic, XS_TRACE_MAGIC, sizeof h.magic);
    memcpy(r->buffer, &h, sizeof h);
    r->n_buffered = sizeof h;
}

moe_status xs_recorder_create(const xs_recorder_cfg *cfg, xs_recorder **out, moe_err *err)
{
    MOE_ASSERT(cfg->header.n_experts == cfg->leases->n_experts);
    xs_recorder *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "trace recorder");
    }
    r->fd = -1;
    r->leases = cfg->leases;
    r->max_bytes = cfg->max_bytes;
    snprintf(r->path, sizeof r->path, "%s", cfg->path);
    moe_status st = allocate(r, cfg->header.n_experts, err);
    if (st == MOE_OK) {
        st = open_file(r, err);
    }
    if (st != MOE_OK) {
        xs_recorder_destroy(r);
        return st;
    }
    r->began_ns = moe_now_ns();
    r->looked_ns = r->began_ns;
    for (uint32_t x = 0; x < cfg->header.n_experts; x++) { /* workers of an adopted store */
        int64_t last_ns = 0;
        r->uses_seen[x] = xs_lease_view_uses(r->leases, x, &last_ns);
    }
    put_header(r, &cfg->header);
    flush(r);
    *out = r;
    return MOE_OK;
}

/* ---- recording ---- */

static void put(xs_recorder *r, xs_trace_kind kind, uint32_t expert, uint32_t n, int64_t at_ns)
{
    const xs_trace_event e = {
        .kind = kind, .at_us = (at_ns - r->began_ns) / MOE_NS_PER_US, .expert = expert, .n = n};
    if (r->why_ended.status != MOE_OK) {
        return;
    }
    if (r->file_bytes + r->n_buffered + XS_TRACE_MAX_RECORD_BYTES > r->max_bytes) {
        flush(r);
        (void)MOE_FAIL(&r->why_ended, MOE_ERR_LIMIT, "%.200s has reached --record-trace-bytes",
                       r->path);
        return;
    }
    r->n_buffered += xs_trace_encode(&e, &r->last_us, r->buffer + r->n_buffered);
    if (r->n_buffered + XS_TRACE_MAX_RECORD_BYTES > sizeof r->buffer) {
        flush(r);
    }
}

void xs_recorder_note(xs_recorder *r, xs_trace_kind kind, uint32_t expert, uint32_t n)
{
    if (r != NULL) {
        put(r, kind, expert, n, moe_now_ns());
    }
}

static int earlier_first(const void *a, const void *b)
{
    const fresh_use *x = a;
    const fresh_use *y = b;
    if (x->at_ns != y->at_ns) {
        return x->at_ns < y->at_ns ? -1 : 1;
    }
    return x->expert < y->expert ? -1 : x->expert > y->expert;
}

/* Workers write these words: a time outside the period and a count that falls are not believed. */
static uint32_t look(xs_recorder *r, int64_t now_ns)
{
    uint32_t n_fresh = 0;
    for (uint32_t x = 0; x < r->leases->n_experts; x++) {
        int64_t last_ns = r->looked_ns;
        uint64_t n = xs_lease_view_uses(r->leases, x, &last_ns);
        if (n > r->uses_seen[x]) {
            uint64_t more = n - r->uses_seen[x];
            r->fresh[n_fresh++] = (fresh_use){.at_ns = last_ns < now_ns ? last_ns : now_ns,
                                              .expert = x,
                                              .n = more < UINT32_MAX ? (uint32_t)more : UINT32_MAX};
        }
        r->uses_seen[x] = n;
    }
    r->looked_ns = now_ns;
    return n_fresh;
}

static void record_uses(xs_recorder *r, int64_t now_ns)
{
    uint32_t n_fresh = look(r, now_ns);
    qsort(r->fresh, n_fresh, sizeof *r->fresh, earlier_first);
    for (uint32_t i = 0; i < n_fresh; i++) {
        put(r, XS_TRACE_USE, r->fresh[i].expert, r->fresh[i].n, r->fresh[i].at_ns);
    }
}

moe_status xs_recorder_tick(xs_recorder *r, moe_err *err)
{
    int64_t now_ns = moe_now_ns();
    if (xs_recorder_active(r)) {
        record_uses(r, now_ns);
    }
    if (now_ns - r->flushed_ns >= FLUSH_S * MOE_NS_PER_S) {
        flush(r);
    }
    if (xs_recorder_active(r) || r->end_told) {
        return MOE_OK;
    }
    r->end_told = true;
    if (err != NULL) {
        *err = r->why_ended;
    }
    return r->why_ended.status;
}

void xs_recorder_destroy(xs_recorder *r)
{
    if (r == NULL) {
        return;
    }
    if (r->began_ns != 0 && xs_recorder_active(r)) { /* else the file may not be ours */
        record_uses(r, moe_now_ns());
        flush(r);
    }
    if (r->fd >= 0) {
        close(r->fd);
    }
    free(r->uses_seen);
    free(r->fresh);
    free(r);
}

uint64_t xs_recorder_bytes(const xs_recorder *r)
{
    return r != NULL ? r->file_bytes : 0;
}

bool xs_recorder_active(const xs_recorder *r)
{
    return r != NULL && r->why_ended.status == MOE_OK;
}
