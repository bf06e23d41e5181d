/* argmax_cuda.cu - the index of each row's largest logit.
 *
 * (is a number, value, lower index) is one total order, so any order of comparing gives the same.
 * Few rows: each is split over 32 blocks, and the block that finishes last (a ticket in the
 * stream's scratch) compares the parts; many rows: one block each. Shared memory: 64 bytes.
 */
#include "kernels/backend/device_math.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP };

typedef krn_cuda_candidate candidate;
static const uint32_t NOTHING = 0xffffffffu; /* index of what loses against every logit, NaN too */

static __device__ __forceinline__ candidate better(candidate a, candidate b)
{
    if (isnan(a.value) != isnan(b.value)) {
        return isnan(a.value) ? b : a;
    }
    if (a.value > b.value || b.value > a.value) {
        return a.value > b.value ? a : b;
    }
    return a.index < b.index ? a : b; /* equal, or both NaN */
}

static __device__ __forceinline__ candidate warp_best(candidate c)
{
#pragma unroll
    for (int distance = WARP / 2; distance >= 1; distance /= 2) {
        candidate other;
        other.value = __shfl_xor_sync(WHOLE_WARP, c.value, distance);
        other.index = __shfl_xor_sync(WHOLE_WARP, c.index, distance);
        c = better(c, other);
    }
    return c;
}

/* The best of the block's candidates, in thread 0. */
static __device__ candidate block_best(candidate c)
{
    __shared__ candidate of_warp[WARPS];
    c = warp_best(c);
    if (lane_id() == 0) {
        of_warp[threadIdx.x / WARP] = c;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < WARPS; w++) {
            c = better(c, of_warp[w]);
        }
    }
    return c;
}

/* Row blockIdx.x, part blockIdx.y of gridDim.y. */
static __global__ void __launch_bounds__(THREADS)
    argmax_kernel(krn_argmax_args a, krn_cuda_scratch *scratch)
{
    begin_kernel();
    const uint32_t row = blockIdx.x, n_parts = gridDim.y;
    const float *logits = a.logits + (size_t)row * a.vocab;
    candidate best = {CUDART_NAN_F, NOTHING};
#pragma unroll 4
    for (uint32_t i = blockIdx.y * THREADS + threadIdx.x; i < a.vocab; i += n_parts * THREADS) {
        const candidate mine = {logits[i], i};
        best = better(best, mine);
    }
    best = block_best(best);
    if (threadIdx.x >= WARP) {
        return; /* whole warps; no barrier follows */
    }
    if (n_parts > 1) { /* KRN_CUDA_SPLITS of them, a lane for each */
        volatile candidate *part = scratch->split[row];
        uint32_t ticket = 0;
        if (lane_id() == 0) {
            part[blockIdx.y].value = best.value;
            part[blockIdx.y].index = best.index;
            __threadfence();
            ticket = atomicInc(&scratch->split_ticket[row], n_parts - 1);
        }
        if (__shfl_sync(WHOLE_WARP, ticket, 0) != n_parts - 1) {
            return;
        }
        __threadfence();
        const candidate mine = {part[lane_id()].value, part[lane_id()].index};
        best = warp_best(mine);
    }
    if (lane_id() == 0) {
        a.out[row] = isnan(best.value) ? 0 : (int32_t)best.index;
    }
}

static_assert((int)KRN_CUDA_SPLITS == (int)WARP, "a lane for each part of a row");

extern "C" moe_status krn_cuda_argmax(krn_stream *s, const krn_argmax_args *a, moe_err *err)
{
    moe_status st = krn_argmax_check(a, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(s->device, err);
    }
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    const dim3 grid(a->n_rows, a->n_rows <= KRN_CUDA_SPLIT_ROWS ? KRN_CUDA_SPLITS : 1);
    krn_cuda_launch<argmax_kernel>(s, grid, THREADS, 0, *a, s->scratch);
    return krn_cuda_launched(err, "argmax");
}
