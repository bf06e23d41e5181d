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
template <int rows, bool is_bf16>
static __device__ __forceinline__ void gate_rows(const krn_route_args &a,
                                                 const float *const (&x)[rows], uint32_t row0,
                                                 uint32_t n, uint32_t e, bool vector)
{
    const size_t w_at[1] = {(size_t)e * a.gate.d_model};
    const float sum = warp_tile<rows, 1, is_bf16>(x, a.gate.w, w_at, a.gate.d_model, vector);
    constexpr uint32_t lanes_per_sum = WARP / rows;
    const uint32_t r = lane_id() / lanes_per_sum;
    if (lane_id() % lanes_per_sum == 0 && r < n) {
        a.scratch[(size_t)(row0 + r) * a.gate.n_experts + e] = sum;
    }
}

/* The block's rows of h: normed into shared memory, or as they are. */
static __device__ const float *rows_of(const krn_route_args &a, uint32_t row0, uint32_t n,
                                       bool vector, float *normed)
{
    const uint32_t d = a.gate.d_model, warp = threadIdx.x / WARP;
    if (a.norm.x == NULL) {
        return a.gate.h + (size_t)row0 * d;
    }
    __syncthreads(); /* everyone is done with the rows before */
    if (warp < n) {
        warp_norm(a.norm.x + (size_t)(row0 + warp) * d, a.norm.w, a.norm.w_dtype == MOE_BF16, d,
                  a.norm.eps, vector, normed + warp * d);
    }
    __syncthreads();
    if (blockIdx.x == 0) {
        for (uint32_t i = threadIdx.x; i < n * d; i += THREADS) {
            a.norm.y[(size_t)row0 * d + i] = normed[i];
        }
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

template <bool is_bf16>
static __global__ void __launch_bounds__(THREADS)
    route_kernel(krn_route_args a, bool vector, const int64_t *offset_ns, uint32_t *ticket)
{
    extern __shared__ float4 dynamic[];
    __shared__ sort_memory sort;
    const uint32_t warp = threadIdx.x / WARP, e = blockIdx.x * WARPS + warp;
    for (uint32_t row0 = 0; row0 < a.gate.n_rows; row0 += ROWS) {
        const uint32_t n = min(a.gate.n_rows - row0, (uint32_t)ROWS);
        const float *h = rows_of(a, row0, n, vector, (float *)dynamic);
        if (e < a.gate.n_experts && n == 1) {
            const float *const x[1] = {h};
            gate_rows<1, is_bf16>(a, x, row0, n, e, vector);
        } else if (e < a.gate.n_experts) {
            const float *x[ROWS];
#pragma unroll
            for (uint32_t r = 0; r < ROWS; r++) { /* past the end: the last again, not written */
                x[r] = h + min(r, n - 1) * a.gate.d_model;
            }
            gate_rows<ROWS, is_bf16>(a, x, row0, n, e, vector);
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

static moe_status launch(krn_stream *s, const krn_route_args *a, moe_err *err)
{
    const uint32_t d = a->gate.d_model, n_blocks = (a->gate.n_experts + WARPS - 1) / WARPS;
    const float *x = a->norm.x != NULL ? a->norm.x : a->gate.h;
    const bool vector = d % VECTOR == 0 && (uintptr_t)x % 16 == 0 && (uintptr_t)a->gate.w % 16 == 0;
    const uint32_t rows = a->gate.n_rows < (uint32_t)ROWS ? a->gate.n_rows : (uint32_t)ROWS;
    const size_t shared_bytes = a->norm.x != NULL ? rows * d * sizeof(float) : 0;
    const int64_t *offset_ns = s->device->clock.offset_ns;
    uint32_t *ticket = &s->scratch->ticket;
    if (a->gate.w_dtype == MOE_BF16) {
        route_kernel<true>
            <<<n_blocks, THREADS, shared_bytes, s->handle>>>(*a, vector, offset_ns, ticket);
    } else {
        route_kernel<false>
            <<<n_blocks, THREADS, shared_bytes, s->handle>>>(*a, vector, offset_ns, ticket);
    }
    return krn_cuda_launched(err, "route");
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
    return fits_one_kernel(a) ? launch(s, a, err) : launch_each(s, a, err);
}
