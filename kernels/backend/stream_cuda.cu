/* stream_cuda.cu - the `cuda` backend's streams, copies, signals, events and graphs.
 *
 * Streams are non-blocking: none waits for the legacy default stream, which nobody uses. Signals
 * are stream memory operations: the wait {EQ value, then write 0} is one batch, so that it can be
 * captured into a graph and replayed with its value baked in; no kernel spins, no multiprocessor is
 * held while waiting.
 * Threads: as backend.h says. Shutdown: destroying a stream waits for its work.
 * Between streams copies and flags are ordered by the flag's write, which the driver performs
 * behind a memory barrier (the default flavour of the write).
 */
#include "kernels/backend/cuda_common.cuh"

#include <stdio.h>
#include <stdlib.h>

struct krn_event {
    krn_device *device; /* borrowed */
    cudaEvent_t handle; /* owned */
    uint32_t anchor;    /* of the device's clock, from the last recording */
};

struct krn_graph {
    krn_device *device;   /* borrowed */
    cudaGraphExec_t exec; /* owned */
};

extern "C" moe_status krn_cuda_stream_create(krn_device *d, const char *name, krn_stream **out,
                                             moe_err *err)
{
    char what[64];
    snprintf(what, sizeof what, "create stream %.32s", name);
    krn_stream *s = (krn_stream *)calloc(1, sizeof *s);
    if (s == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%s", what);
    }
    s->device = d;
    moe_status st = krn_cuda_use(d, err);
    if (st == MOE_OK) {
        st = KRN_CUDA(err, cudaStreamCreateWithFlags(&s->handle, cudaStreamNonBlocking), what);
    }
    if (st == MOE_OK) {
        st = KRN_CUDA(err, cudaMalloc((void **)&s->scratch, sizeof *s->scratch), what);
    }
    if (st == MOE_OK) {
        st = KRN_CUDA(err, cudaMemsetAsync(s->scratch, 0, sizeof *s->scratch, s->handle), what);
    }
    if (st != MOE_OK) {
        krn_cuda_stream_destroy(s);
        return st;
    }
    *out = s;
    return MOE_OK;
}

extern "C" void krn_cuda_stream_destroy(krn_stream *s)
{
    if (s == NULL) {
        return;
    }
    (void)krn_cuda_use(s->device, NULL);
    if (s->handle != NULL) {
        (void)cudaStreamSynchronize(s->handle);
        (void)cudaStreamDestroy(s->handle);
    }
    (void)cudaFree(s->scratch);
    (void)cudaGetLastError();
    free(s);
}

extern "C" moe_status krn_cuda_stream_sync(krn_stream *s, moe_err *err)
{
    moe_status st = krn_cuda_use(s->device, err);
    return st == MOE_OK ? KRN_CUDA(err, cudaStreamSynchronize(s->handle), "synchronise") : st;
}

/* ---- copies ---- */

/* How much of [p, p+bytes) lies in one registered piece: CUDA refuses copies that span two. */
static size_t within_piece(const krn_device *d, const void *p, size_t bytes)
{
    const char *at = (const char *)p;
    for (int i = 0; i < KRN_CUDA_MAX_REGISTRATIONS; i++) {
        const krn_cuda_registration *r = &d->registrations[i];
        const char *base = __atomic_load_n(&r->base, __ATOMIC_ACQUIRE);
        if (base != NULL && at >= base && at < base + r->bytes) {
            size_t left = KRN_CUDA_PIECE_BYTES - (size_t)(at - base) % KRN_CUDA_PIECE_BYTES;
            return bytes < left ? bytes : left;
        }
    }
    return bytes;
}

extern "C" moe_status krn_cuda_copy_async(krn_stream *s, void *dst, const void *src, size_t bytes,
                                          moe_err *err)
{
    if (bytes == 0) {
        return MOE_OK;
    }
    if (dst == NULL || src == NULL) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "copy of %zu bytes from or to NULL", bytes);
    }
    moe_status st = krn_cuda_use(s->device, err);
    for (size_t off = 0; off < bytes && st == MOE_OK;) {
        char *to = (char *)dst + off;
        const char *from = (const char *)src + off;
        size_t piece = within_piece(s->device, from, bytes - off);
        piece = within_piece(s->device, to, piece);
        st = KRN_CUDA(err, cudaMemcpyAsync(to, from, piece, cudaMemcpyDefault, s->handle), "copy");
        off += piece;
    }
    return st;
}

extern "C" moe_status krn_cuda_fill_async(krn_stream *s, void *dst, uint8_t value, size_t bytes,
                                          moe_err *err)
{
    if (bytes == 0) {
        return MOE_OK;
    }
    if (dst == NULL) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "fill of %zu bytes at NULL", bytes);
    }
    moe_status st = krn_cuda_use(s->device, err);
    return st == MOE_OK ? KRN_CUDA(err, cudaMemsetAsync(dst, value, bytes, s->handle), "fill") : st;
}

/* ---- signals ---- */

static CUstreamBatchMemOpParams wait_equal(uint32_t *flag, uint32_t value)
{
    CUstreamBatchMemOpParams op;
    memset(&op, 0, sizeof op);
    op.waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
    op.waitValue.address = (CUdeviceptr)(uintptr_t)flag;
    op.waitValue.value = value;
    op.waitValue.flags = CU_STREAM_WAIT_VALUE_EQ;
    return op;
}

static CUstreamBatchMemOpParams write_value(uint32_t *flag, uint32_t value)
{
    CUstreamBatchMemOpParams op;
    memset(&op, 0, sizeof op);
    op.writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
    op.writeValue.address = (CUdeviceptr)(uintptr_t)flag;
    op.writeValue.value = value;
    op.writeValue.flags = CU_STREAM_WRITE_VALUE_DEFAULT; /* earlier work is visible first */
    return op;
}

static moe_status submit_flag_ops(krn_stream *s, uint32_t *flag, CUstreamBatchMemOpParams *ops,
                                  unsigned int n, const char *what, moe_err *err)
{
    if (flag == NULL || (uintptr_t)flag % sizeof *flag != 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "flag at %p is not 4-byte aligned memory",
                        (void *)flag);
    }
    moe_status st = krn_cuda_use(s->device, err);
    if (st == MOE_OK) { /* driver codes have the runtime's numbers */
        CUresult rc = s->device->batch_mem_op((CUstream)s->handle, n, ops, 0);
        st = KRN_CUDA(err, (cudaError_t)rc, what);
    }
    return st;
}

extern "C" moe_status krn_cuda_write32_async(krn_stream *s, uint32_t *flag, uint32_t value,
                                             moe_err *err)
{
    CUstreamBatchMemOpParams ops[1] = {write_value(flag, value)};
    return submit_flag_ops(s, flag, ops, 1, "write a flag", err);
}

extern "C" moe_status krn_cuda_wait32_async(krn_stream *s, uint32_t *flag, uint32_t value,
                                            moe_err *err)
{
    CUstreamBatchMemOpParams ops[2] = {wait_equal(flag, value), write_value(flag, 0)};
    return submit_flag_ops(s, flag, ops, 2, "wait for a flag", err);
}

/* ---- events ---- */

extern "C" moe_status krn_cuda_event_create(krn_device *d, krn_event **out, moe_err *err)
{
    krn_event *e = (krn_event *)calloc(1, sizeof *e);
    if (e == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "event");
    }
    e->device = d;
    moe_status st = krn_cuda_use(d, err);
    if (st == MOE_OK) {
        st = KRN_CUDA(err, cudaEventCreate(&e->handle), "create an event");
    }
    if (st != MOE_OK) {
        free(e);
        return st;
    }
    *out = e;
    return MOE_OK;
}

extern "C" void krn_cuda_event_destroy(krn_event *e)
{
    if (e == NULL) {
        return;
    }
    (void)krn_cuda_use(e->device, NULL);
    (void)cudaEventDestroy(e->handle);
    free(e);
}

extern "C" moe_status krn_cuda_event_record(krn_event *e, krn_stream *s, moe_err *err)
{
    uint32_t anchor = 0;
    moe_status st = krn_cuda_use(s->device, err);
    if (st == MOE_OK) {
        st = krn_cuda_clock_anchor(&s->device->clock, &anchor, err);
    }
    if (st == MOE_OK) {
        e->anchor = anchor;
        st = KRN_CUDA(err, cudaEventRecord(e->handle, s->handle), "record an event");
    }
    return st;
}

extern "C" moe_status krn_cuda_event_query(krn_event *e, moe_err *err)
{
    moe_status st = krn_cuda_use(e->device, err);
    return st == MOE_OK ? KRN_CUDA(err, cudaEventQuery(e->handle), "event") : st;
}

extern "C" int64_t krn_cuda_event_ns(krn_event *e)
{
    (void)krn_cuda_use(e->device, NULL);
    return krn_cuda_clock_ns(&e->device->clock, e->anchor, e->handle);
}

/* ---- graphs ---- */

/* Relaxed: other streams of this thread stay usable, and nothing here allocates while recording. */
extern "C" moe_status krn_cuda_graph_begin(krn_stream *s, moe_err *err)
{
    moe_status st = krn_cuda_use(s->device, err);
    if (st == MOE_OK) {
        st = KRN_CUDA(err, cudaStreamBeginCapture(s->handle, cudaStreamCaptureModeRelaxed),
                      "begin to record a graph");
    }
    return st;
}

extern "C" moe_status krn_cuda_graph_end(krn_stream *s, krn_graph **out, moe_err *err)
{
    cudaGraph_t recorded = NULL;
    krn_graph *g = (krn_graph *)calloc(1, sizeof *g);
    moe_status st = krn_cuda_use(s->device, err);
    if (st == MOE_OK) { /* always: a stream left recording is of no further use */
        st = KRN_CUDA(err, cudaStreamEndCapture(s->handle, &recorded), "end recording a graph");
    }
    if (st == MOE_OK && g == NULL) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "graph");
    }
    if (st == MOE_OK) {
        g->device = s->device;
        st = KRN_CUDA(err, cudaGraphInstantiate(&g->exec, recorded, 0), "make a graph");
    }
    if (st == MOE_OK) { /* its device memory now, not at the first launch */
        st = KRN_CUDA(err, cudaGraphUpload(g->exec, s->handle), "upload a graph");
    }
    if (recorded != NULL) {
        (void)cudaGraphDestroy(recorded);
    }
    if (st != MOE_OK) {
        krn_cuda_graph_destroy(g);
        return st;
    }
    *out = g;
    return MOE_OK;
}

extern "C" moe_status krn_cuda_graph_launch(krn_graph *g, krn_stream *s, moe_err *err)
{
    moe_status st = krn_cuda_use(s->device, err);
    return st == MOE_OK ? KRN_CUDA(err, cudaGraphLaunch(g->exec, s->handle), "launch a graph") : st;
}

extern "C" void krn_cuda_graph_destroy(krn_graph *g)
{
    if (g == NULL) {
        return;
    }
    if (g->exec != NULL) {
        (void)krn_cuda_use(g->device, NULL);
        (void)cudaGraphExecDestroy(g->exec);
    }
    free(g);
}
