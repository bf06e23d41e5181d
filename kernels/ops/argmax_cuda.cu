/* argmax_cuda.cu - the index of each row's largest logit. One block of 1024 threads per row.
 * (is a number, value, lower index) is one total order, so any order of comparing gives the same.
 * Shared memory: 256 bytes. */
#include "kernels/backend/device_math.cuh"

enum { THREADS = 1024, WARPS = THREADS / WARP };

struct candidate {
    float value;
    uint32_t index;
};

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

static __global__ void __launch_bounds__(THREADS) argmax_kernel(krn_argmax_args a)
{
    __shared__ candidate of_warp[WARPS];
    const float *logits = a.logits + (size_t)blockIdx.x * a.vocab;
    candidate best = {CUDART_NAN_F, 0xffffffffu}; /* loses against every logit, NaN too */
    for (uint32_t i = threadIdx.x; i < a.vocab; i += THREADS) {
        const candidate mine = {logits[i], i};
        best = better(best, mine);
    }
    best = warp_best(best);
    if (lane_id() == 0) {
        of_warp[threadIdx.x / WARP] = best;
    }
    __syncthreads();
    if (threadIdx.x < WARP) { /* WARPS == 32 */
        best = warp_best(of_warp[threadIdx.x]);
        if (threadIdx.x == 0) {
            a.out[blockIdx.x] = isnan(best.value) ? 0 : (int32_t)best.index;
        }
    }
}

extern "C" moe_status krn_cuda_argmax(krn_stream *s, const krn_argmax_args *a, moe_err *err)
{
    moe_status st = krn_argmax_check(a, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(s->device, err);
    }
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    argmax_kernel<<<a->n_rows, THREADS, 0, s->handle>>>(*a);
    return krn_cuda_launched(err, "argmax");
}
