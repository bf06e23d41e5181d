/* route_cuda.cu - everything at a gate position in one kernel, while the rows are few.
 *
 * Blocks of 16 warps; a warp computes one expert's logits of all rows, 8 at a time. The block that
 * finishes last (a ticket in the stream's scratch) chooses, sorts and writes the mails. The order
 * of additions, the choice and the sort are those of rms_norm, gate_topk and dispatch
 * (device_math.cuh, route_device.cuh), which do the work when rows are many. Every block norms the
 * rows for itself, in shared memory: 8 rows of d_model floats.
 */
#include "kernels/ops/route_device.cuh"

enum { THREADS = SORT_THREADS, WARPS = THREADS / WARP, ROWS = 8 };
static const uint32_t MAX_ROWS = 64, MAX_SHARED_BYTES = 40u << 10;

/* One warp: logits of rows x[0..n) and expert e. */
template <int rows, bool is_bf16, bool vector>
static __device__ __forceinline__ void
gate_rows(const krn_route_args &a, const float *const (&x)[rows], uint32_t row0, uint32_t n,
          uint32_t e, tile_ahead<rows, 1, is_bf16, vector> &w)
{
    const size_t w_at[1] = {(size_t)e * a.gate.d_model};
    const float sum = warp_tile<rows, 1, is_bf16, vector>(x, a.gate.w, w_at, a.gate.d_model, w);
    constexpr uint32_t lanes_per_sum = WARP / rows;
    const uint32_t r = lane_id() / lanes_per_sum;
    if (lane_id() % lanes_per_sum == 0 && r < n) {
        a.scratch[(size_t)(row0 + r) * a.gate.n_experts + e] = sum;
    }
}

/* The block's rows of h: normed into shared memory, or as they are. */
template <bool vector>
static __device__ __forceinline__ const float *rows_of(const krn_route_args &a, uint32_t row0,
                                                       uint32_t n, float *normed)
{
    const uint32_t d = a.gate.d_model;
    if (a.norm.x == NULL) {
        return a.gate.h + (size_t)row0 * d;
    }
    __syncthreads(); /* everyone is done with the rows before */
    block_norm<vector>(a.norm.x + (size_t)row0 * d, a.norm.w, a.norm.w_dtype == MOE_BF16, d,
                       a.norm.eps, n, normed);
    for (uint32_t i = threadIdx.x; blockIdx.x == 0 && i < n * d; i += THREADS) {
        a.norm.y[(size_t)row0 * d + i] = normed[i];
    }
    return normed;
}

/* True in the block that gets here last: it then sees what all others wrote. */
static __device__ bool is_last_block(uint32_t *ticket)
{
    __shared__ bool is_last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    __threadfence();
    return is_last;
}

/* rows_at_once: 1 leaves room for other kernels' blocks beside it; ROWS for batches. */
template <int rows_at_once, bool is_bf16, bool vector>
static __global__ void __launch_bounds__(THREADS)
    route_kernel(krn_route_args a, const int64_t *offset_ns, uint32_t *ticket)
{
    extern __shared__ float4 dynamic[];
    __shared__ sort_memory sort;
    const uint32_t warp = threadIdx.x / WARP, e = blockIdx.x * WARPS + warp;
    const size_t w_at[1] = {(size_t)min(e, a.gate.n_experts - 1) * a.gate.d_model};
    tile_ahead<rows_at_once, 1, is_bf16, vector> w;
    let_next_begin();
    w.load(a.gate.w, w_at, lane_id() * VECTOR, a.gate.d_model);
    await_previous();
    for (uint32_t row0 = 0; row0 < a.gate.n_rows; row0 += rows_at_once) {
        const uint32_t n = min(a.gate.n_rows - row0, (uint32_t)rows_at_once);
        const float *h = rows_of<vector>(a, row0, n, (float *)dynamic);
        const float *x[rows_at_once];
#pragma unroll
        for (uint32_t r = 0; r < rows_at_once; r++) { /* past the end: the last, not written */
            x[r] = h + min(r, n - 1) * a.gate.d_model;
        }
        if (e < a.gate.n_experts) {
            if (row0 > 0) {
                w.load(a.gate.w, w_at, lane_id() * VECTOR, a.gate.d_model);
            }
            gate_rows<rows_at_once, is_bf16, vector>(a, x, row0, n, e, w);
        }
    }
    if (!is_last_block(ticket)) {
        return;
    }
    for (uint32_t t = warp; t < a.gate.n_rows; t += WARPS) {
        choose_experts(a.gate, t, a.scratch + (size_t)t * a.gate.n_experts);
    }
    sort_pairs(a.dispatch, sort); /* begins with a barrier: the ids are there */
    __syncthreads();
    if (warp == 0) {
        for (uint32_t i = 0; i < a.n_mails; i++) {
            write_mail(a.mail[i], offset_ns);
        }
    }
}

static bool fits_one_kernel(const krn_route_args *a)
{
    const size_t bytes = ROWS * a->gate.d_model * sizeof(float);
    return a->gate.n_rows > 0 && a->gate.n_rows <= MAX_ROWS && bytes <= MAX_SHARED_BYTES;
}

template <int rows_at_once, bool is_bf16, bool vector>
static void launch_rows(const krn_stream *s, const krn_route_args *a)
{
    const uint32_t n_blocks = (a->gate.n_experts + WARPS - 1) / WARPS;
    const size_t row_bytes = a->gate.d_model * sizeof(float);
    krn_cuda_launch<route_kernel<rows_at_once, is_bf16, vector>>(
        s, n_blocks, THREADS, a->norm.x != NULL ? rows_at_once * row_bytes : 0, *a,
        s->device->clock.offset_ns, &s->scratch->ticket);
}

template <bool is_bf16> static void launch(const krn_stream *s, const krn_route_args *a)
{
    const float *x = a->norm.x != NULL ? a->norm.x : a->gate.h;
    if (a->gate.d_model % VECTOR != 0 || (uintptr_t)x % 16 != 0 || (uintptr_t)a->gate.w % 16 != 0) {
        launch_rows<ROWS, is_bf16, false>(s, a);
    } else if (a->gate.n_rows == 1) {
        launch_rows<1, is_bf16, true>(s, a);
    } else {
        launch_rows<ROWS, is_bf16, true>(s, a);
    }
}

static moe_status launch_each(krn_stream *s, const krn_route_args *a, moe_err *err)
{
    moe_status st = a->norm.x != NULL ? krn_cuda_rms_norm(s, &a->norm, err) : MOE_OK;
    if (st == MOE_OK) {
        st = krn_cuda_gate_topk(s, &a->gate, err);
    }
    if (st == MOE_OK) {
        st = krn_cuda_dispatch(s, &a->dispatch, err);
    }
    for (uint32_t i = 0; i < a->n_mails && st == MOE_OK; i++) {
        st = krn_cuda_publish(s, &a->mail[i], err);
    }
    return st;
}

extern "C" moe_status krn_cuda_route(krn_stream *s, const krn_route_args *a, moe_err *err)
{
    moe_status st = krn_route_check(a, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(s->device, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    if (!fits_one_kernel(a)) {
        return launch_each(s, a, err);
    }
    if (a->gate.w_dtype == MOE_BF16) {
        launch<true>(s, a);
    } else {
        launch<false>(s, a);
    }
    return krn_cuda_launched(err, "route");
}
