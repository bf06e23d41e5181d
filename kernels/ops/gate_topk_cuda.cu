/* gate_topk_cuda.cu - softmax over the experts and the top_k largest of each row.
 *
 * One block of 16 warps per row: warp w computes the logits of experts w, w + 16, ...; then warp 0
 * alone does softmax and choice, lane l holding experts l, l + 32, ... up to KRN_MAX_EXPERTS.
 * Shared memory: 2 KB. Cost: reads w once per row, mostly from the second-level cache. A decode
 * step goes through route instead.
 */
#include "kernels/ops/route_device.cuh"

enum { WARPS = 16, THREADS = WARPS * WARP };

template <bool is_bf16, bool vector>
static __global__ void __launch_bounds__(THREADS) gate_topk_kernel(krn_gate_topk_args a)
{
    __shared__ float logit[KRN_MAX_EXPERTS];
    begin_kernel();
    const uint32_t t = blockIdx.x;
    const float *const x[1] = {a.h + (size_t)t * a.d_model};
    for (uint32_t e = threadIdx.x / WARP; e < a.n_experts; e += WARPS) {
        const size_t w_at[1] = {(size_t)e * a.d_model};
        const float sum = warp_tile<1, 1, is_bf16, vector>(x, a.w, w_at, a.d_model);
        if (lane_id() == 0) {
            logit[e] = sum;
        }
    }
    __syncthreads();
    if (threadIdx.x < WARP) {
        choose_experts(a, t, logit);
    }
}

template <bool is_bf16>
static void launch(const krn_stream *s, const krn_gate_topk_args *a, bool vector)
{
    if (vector) {
        krn_cuda_launch<gate_topk_kernel<is_bf16, true>>(s, a->n_rows, THREADS, 0, *a);
    } else {
        krn_cuda_launch<gate_topk_kernel<is_bf16, false>>(s, a->n_rows, THREADS, 0, *a);
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
    const bool vector =
        a->d_model % VECTOR == 0 && (uintptr_t)a->h % 16 == 0 && (uintptr_t)a->w % 16 == 0;
    if (a->w_dtype == MOE_BF16) {
        launch<true>(s, a, vector);
    } else {
        launch<false>(s, a, vector);
    }
    return krn_cuda_launched(err, "gate_topk");
}
