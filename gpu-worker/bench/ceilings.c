/* ceilings.c - see ceilings.h. */
#include "gpu-worker/bench/ceilings.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "common/clock.h"
#include "common/dtype.h"
#include "gpu-worker/bench/bench_stats.h"

enum {
    ROUNDS = 5,
    LINK_TARGETS = 4,             /* device blocks written in turn, as cells are */
    LINK_COPIES = 64,             /* of a round, at most */
    LINK_BYTES = 256 << 20,       /* of a round, at most (but one block) */
    MATRIX_COLS = 4096,           /* of the product: rows of 8 KiB in bf16 */
    CPU_MEMORY_BYTES = 128 << 20, /* both: several times what caches hold */
    GPU_MEMORY_BYTES = 512 << 20
};

/* What the measurements share; everything is owned. */
typedef struct lab {
    const krn_ops *ops;
    krn_device *device;
    krn_stream *stream;
    krn_event *begin, *end;
    void *device_block, *host_block;
} lab;

static void close_lab(lab *l)
{
    const krn_backend_fns *b = &l->ops->backend;
    b->stream_destroy(l->stream); /* first: finishes what is queued */
    b->event_destroy(l->begin);
    b->event_destroy(l->end);
    if (l->device_block != NULL) {
        b->mem_free(l->device, l->device_block);
    }
    if (l->host_block != NULL) {
        b->host_free(l->device, l->host_block);
    }
}

static moe_status open_lab(const krn_ops *ops, krn_device *device, const char *name,
                           uint64_t device_bytes, uint64_t host_bytes, lab *out, moe_err *err)
{
    const krn_backend_fns *b = &ops->backend;
    lab l = {.ops = ops, .device = device};
    moe_status st = b->stream_create(device, name, &l.stream, err);
    if (st == MOE_OK) {
        st = b->event_create(device, &l.begin, err);
    }
    if (st == MOE_OK) {
        st = b->event_create(device, &l.end, err);
    }
    if (st == MOE_OK) {
        st = b->mem_alloc(device, (size_t)device_bytes, &l.device_block, err);
    }
    if (st == MOE_OK && host_bytes > 0) {
        st = b->host_alloc(device, (size_t)host_bytes, &l.host_block, err);
    }
    if (st == MOE_OK) {
        st = b->fill_async(l.stream, l.device_block, 0, (size_t)device_bytes, err);
    }
    if (st == MOE_OK) {
        st = b->stream_sync(l.stream, err);
    }
    if (st != MOE_OK) {
        close_lab(&l);
        return st;
    }
    *out = l;
    return MOE_OK;
}

/* Runs submit between two events; *out_gbps of bytes_moved. */
typedef moe_status (*submit_fn)(lab *l, const void *what, moe_err *err);
static moe_status time_round(lab *l, submit_fn submit, const void *what, double bytes_moved,
                             double *out_gbps, moe_err *err)
{
    const krn_backend_fns *b = &l->ops->backend;
    moe_status st = b->event_record(l->begin, l->stream, err);
    if (st == MOE_OK) {
        st = submit(l, what, err);
    }
    if (st == MOE_OK) {
        st = b->event_record(l->end, l->stream, err);
    }
    if (st == MOE_OK) {
        st = b->stream_sync(l->stream, err);
    }
    if (st == MOE_OK) {
        st = b->event_query(l->begin, err);
    }
    if (st == MOE_OK) {
        st = b->event_query(l->end, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    int64_t ns = b->event_ns(l->end) - b->event_ns(l->begin);
    *out_gbps = ns > 0 ? bytes_moved / (double)ns : 0;
    return MOE_OK;
}

static moe_status time_rounds(lab *l, submit_fn submit, const void *what, double bytes_moved,
                              double *out_gbps, moe_err *err)
{
    double gbps[ROUNDS], warm = 0;
    moe_status st = time_round(l, submit, what, bytes_moved, &warm, err);
    for (int i = 0; i < ROUNDS && st == MOE_OK; i++) {
        st = time_round(l, submit, what, bytes_moved, &gbps[i], err);
    }
    if (st == MOE_OK) {
        *out_gbps = gw_percentile(gbps, ROUNDS, 0.5);
    }
    return st;
}

/* ---- link ------------------------------------------------------------------------------------ */

typedef struct link_work {
    gw_link_source from;
    uint32_t n_copies;
} link_work;

static moe_status copy_blocks(lab *l, const void *what, moe_err *err)
{
    const link_work *w = what;
    moe_status st = MOE_OK;
    for (uint32_t i = 0; i < w->n_copies && st == MOE_OK; i++) {
        const char *src = (const char *)w->from.src + (i % w->from.n_blocks) * w->from.stride_bytes;
        char *dst = (char *)l->device_block + (i % LINK_TARGETS) * w->from.block_bytes;
        st = l->ops->backend.copy_async(l->stream, dst, src, (size_t)w->from.block_bytes, err);
    }
    return st;
}

static moe_status measure_link(const krn_ops *ops, krn_device *device, const gw_link_source *link,
                               double *out_gbps, moe_err *err)
{
    uint64_t most = LINK_BYTES / link->block_bytes;
    link_work w = {.from = *link};
    lab l;
    w.n_copies = most > LINK_COPIES ? LINK_COPIES : most > 1 ? (uint32_t)most : 1;
    moe_status st = open_lab(ops, device, "link", LINK_TARGETS * link->block_bytes,
                             link->src == NULL ? link->n_blocks * link->stride_bytes : 0, &l, err);
    if (st != MOE_OK) {
        return st;
    }
    w.from.src = link->src != NULL ? link->src : l.host_block;
    st = time_rounds(&l, copy_blocks, &w, (double)w.n_copies * (double)link->block_bytes, out_gbps,
                     err);
    close_lab(&l);
    return st;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static moe_status copy_half(lab *l, const void *what, moe_err *err)
{
    const uint64_t *half = what;
    return l->ops->backend.copy_async(l->stream, l->device_block, (char *)l->device_block + *half,
                                      (size_t)*half, err);
}

/* Row and result lie behind the matrix. */
static moe_status multiply(lab *l, const void *what, moe_err *err)
{
    const uint64_t *bytes = what;
    uint32_t rows = (uint32_t)(*bytes / (MATRIX_COLS * sizeof(uint16_t)));
    float *x = (float *)(void *)((char *)l->device_block + *bytes);
    const krn_linear_args a = {.n_rows = 1,
                               .d_in = MATRIX_COLS,
                               .d_out = rows,
                               .w_dtype = MOE_BF16,
                               .y_stride = rows,
                               .act = MOE_ACT_NONE,
                               .scale = 1.0f,
                               .x = x,
                               .w = l->device_block,
                               .y = x + MATRIX_COLS};
    return l->ops->linear(l->stream, &a, err);
}

static moe_status measure_memory(const krn_ops *ops, krn_device *device, double *out_gbps,
                                 moe_err *err)
{
    bool on_cpu = strcmp(ops->name, "cpu") == 0;
    uint64_t bytes = on_cpu ? CPU_MEMORY_BYTES : GPU_MEMORY_BYTES;
    uint64_t rows = bytes / (MATRIX_COLS * sizeof(uint16_t));
    uint64_t behind = (MATRIX_COLS + rows) * sizeof(float), half = bytes / 2;
    double copied = 0, multiplied = 0;
    lab l;
    moe_status st = open_lab(ops, device, "memory", bytes + behind, 0, &l, err);
    if (st != MOE_OK) {
        return st;
    }
    if (!on_cpu) {
        st = time_rounds(&l, copy_half, &half, (double)bytes, &copied, err);
    }
    if (st == MOE_OK) {
        st = time_rounds(&l, multiply, &bytes, (double)bytes, &multiplied, err);
    }
    close_lab(&l);
    if (st == MOE_OK) {
        *out_gbps = copied > multiplied ? copied : multiplied;
    }
    return st;
}

moe_status gw_ceilings_measure(const krn_ops *ops, krn_device *device, const gw_link_source *link,
                               gw_ceilings *out, moe_err *err)
{
    gw_ceilings c = {0};
    MOE_ASSERT(link->n_blocks > 0 && link->block_bytes > 0 &&
               link->block_bytes <= link->stride_bytes);
    moe_status st = measure_link(ops, device, link, &c.link_gbps, err);
    if (st == MOE_OK) {
        st = measure_memory(ops, device, &c.memory_gbps, err);
    }
    if (st == MOE_OK) {
        *out = c;
    }
    return st;
}
