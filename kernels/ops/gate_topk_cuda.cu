/* gate_topk_cuda.cu - softmax over the experts and the top_k largest of each row.
 *
 * One block of 16 warps per row: warp w computes the logits of experts w, w + 16, ...; then warp 0
 * alone does softmax and choice, lane l holding experts l, l + 32, ... up to KRN_MAX_EXPERTS.
 * The choice compares (probability, then lower expert): one total order, so no tie depends on
 * lanes. Shared memory: 2 KB. Cost: reads w once per row, mostly from the second-level cache.
 */
#include "kernels/backend/device_math.cuh"

enum { WARPS = 16, THREADS = WARPS * WARP, PER_LANE = KRN_MAX_EXPERTS / WARP };

struct choice {
    float p;
    uint32_t expert;
};

static __device__ __forceinline__ choice better(choice a, choice b)
{
    return b.p > a.p || (b.p == a.p && b.expert < a.expert) ? b : a;
}

static __device__ __forceinline__ choice warp_best(choice c)
{
#pragma unroll
    for (int distance = WARP / 2; distance >= 1; distance /= 2) {
        choice other;
        other.p = __shfl_xor_sync(WHOLE_WARP, c.p, distance);
        other.expert = __shfl_xor_sync(WHOLE_WARP, c.expert, distance);
        c = better(c, other);
    }
    return c;
}

template <bool is_bf16>
static __device__ void compute_logits(const krn_gate_topk_args &a, const float *h, float *logit)
{
    const bool vector = a.d_model % VECTOR == 0 && is_aligned16(h) && is_aligned16(a.w);
    for (uint32_t e = threadIdx.x / WARP; e < a.n_experts; e += WARPS) {
        const float *const x[1] = {h};
        const size_t w_at[1] = {(size_t)e * a.d_model};
        const float sum = warp_tile<1, 1, is_bf16>(x, a.w, w_at, a.d_model, vector);
        if (lane_id() == 0) {
            logit[e] = sum;
        }
    }
}

/* p[i] of expert lane + 32 i; -1 where there is no expert. False when it is not a number. */
static __device__ __forceinline__ bool softmax(const float *logit, uint32_t n_experts,
                                               float (&p)[PER_LANE])
{
    float largest = -CUDART_INF_F, sum = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < PER_LANE; i++) {
        const uint32_t e = lane_id() + i * WARP;
        largest = e < n_experts ? fmaxf(largest, logit[e]) : largest;
    }
    largest = warp_max(largest);
#pragma unroll
    for (uint32_t i = 0; i < PER_LANE; i++) {
        const uint32_t e = lane_id() + i * WARP;
        p[i] = e < n_experts ? expf(logit[e] - largest) : -1.0f;
        sum += e < n_experts ? p[i] : 0.0f;
    }
    sum = warp_sum(sum);
#pragma unroll
    for (uint32_t i = 0; i < PER_LANE; i++) {
        p[i] = p[i] >= 0.0f ? p[i] / sum : p[i];
    }
    return isfinite(sum);
}

template <bool is_bf16>
static __global__ void __launch_bounds__(THREADS) gate_topk_kernel(krn_gate_topk_args a)
{
    __shared__ float logit[KRN_MAX_EXPERTS];
    const uint32_t t = blockIdx.x;
    compute_logits<is_bf16>(a, a.h + (size_t)t * a.d_model, logit);
    __syncthreads();
    if (threadIdx.x >= WARP) {
        return; /* whole warps; no barrier follows */
    }
    float p[PER_LANE];
    const bool is_number = softmax(logit, a.n_experts, p);
    for (uint32_t k = 0; k < a.top_k; k++) {
        choice best = {-1.0f, KRN_MAX_EXPERTS};
#pragma unroll
        for (uint32_t i = 0; i < PER_LANE; i++) {
            const choice mine = {p[i], lane_id() + i * WARP};
            best = better(best, mine);
        }
        best = warp_best(best);
#pragma unroll
        for (uint32_t i = 0; i < PER_LANE; i++) { /* chosen once */
            p[i] = best.expert == lane_id() + i * WARP ? -1.0f : p[i];
        }
        if (lane_id() == 0) {
            const size_t pair = (size_t)t * a.top_k + k;
            a.out.ids[pair] = (int32_t)(is_number ? best.expert : k);
            a.out.weights[pair] = is_number ? best.p : CUDART_NAN_F;
        }
    }
}

extern "C" moe_status krn_cuda_gate_topk(krn_stream *s, const krn_gate_topk_args *a, moe_err *err)
{
    moe_status st = krn_gate_topk_check(a, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(s->device, err);
    }
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    if (a->w_dtype == MOE_BF16) {
        gate_topk_kernel<true><<<a->n_rows, THREADS, 0, s->handle>>>(*a);
    } else {
        gate_topk_kernel<false><<<a->n_rows, THREADS, 0, s->handle>>>(*a);
    }
    return krn_cuda_launched(err, "gate_topk");
}
