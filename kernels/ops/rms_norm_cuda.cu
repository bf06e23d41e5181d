/* rms_norm_cuda.cu - root-mean-square norm. One warp per row (device_math.cuh), 8 rows a block.
 * Each lane writes only after all have read: x and y may be the same. */
#include "kernels/backend/device_math.cuh"

enum { WARPS = 8, THREADS = WARPS * WARP };

template <bool vector>
static __global__ void __launch_bounds__(THREADS) rms_norm_kernel(krn_rms_norm_args a)
{
    const size_t row = blockIdx.x * WARPS + threadIdx.x / WARP;
    begin_kernel();
    if (row < a.n_rows) {
        const float *x = a.x + row * a.d_model;
        const float inverse_rms = warp_inverse_rms<vector>(x, a.d_model, a.eps);
        scale_row(x, a.w, a.w_dtype == MOE_BF16, a.d_model, inverse_rms, lane_id(), WARP,
                  a.y + row * a.d_model);
    }
}

extern "C" moe_status krn_cuda_rms_norm(krn_stream *s, const krn_rms_norm_args *a, moe_err *err)
{
    moe_status st = krn_rms_norm_check(a, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(s->device, err);
    }
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    const uint32_t n_blocks = (a->n_rows + WARPS - 1) / WARPS;
    if (a->d_model % VECTOR == 0 && (uintptr_t)a->x % 16 == 0) {
        krn_cuda_launch<rms_norm_kernel<true>>(s, n_blocks, THREADS, 0, *a);
    } else {
        krn_cuda_launch<rms_norm_kernel<false>>(s, n_blocks, THREADS, 0, *a);
    }
    return krn_cuda_launched(err, "rms_norm");
}
