/* rms_norm_cuda.cu - root-mean-square norm. One warp per row (device_math.cuh), 8 rows a block.
 * Each lane writes only what it read last: x and y may be the same. */
#include "kernels/backend/device_math.cuh"

enum { WARPS = 8, THREADS = WARPS * WARP };

static __global__ void __launch_bounds__(THREADS) rms_norm_kernel(krn_rms_norm_args a, bool vector)
{
    const size_t row = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row < a.n_rows) {
        warp_norm(a.x + row * a.d_model, a.w, a.w_dtype == MOE_BF16, a.d_model, a.eps, vector,
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
    const bool vector = a->d_model % VECTOR == 0 && (uintptr_t)a->x % 16 == 0;
    rms_norm_kernel<<<(a->n_rows + WARPS - 1) / WARPS, THREADS, 0, s->handle>>>(*a, vector);
    return krn_cuda_launched(err, "rms_norm");
}
