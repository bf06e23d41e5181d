/* rms_norm_cuda.cu - root-mean-square norm. One block of 256 threads per row, whatever the number
 * of rows: each thread sums every 256th square, then warps, then the 8 warp sums in order. Shared
 * memory: 32 bytes. Each thread writes only what it read: x and y may be the same. */
#include "kernels/backend/device_math.cuh"

enum { THREADS = 256, WARPS = THREADS / WARP };

static __device__ float block_sum(float v)
{
    __shared__ float of_warp[WARPS];
    v = warp_sum(v);
    if (lane_id() == 0) {
        of_warp[threadIdx.x / WARP] = v;
    }
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < WARPS; i++) {
        sum += of_warp[i];
    }
    return sum;
}

template <bool is_bf16> static __global__ void rms_norm_kernel(krn_rms_norm_args a)
{
    const float *x = a.x + (size_t)blockIdx.x * a.d_model;
    float *y = a.y + (size_t)blockIdx.x * a.d_model;
    float squares = 0.0f;
    for (uint32_t i = threadIdx.x; i < a.d_model; i += THREADS) {
        squares = fmaf(x[i], x[i], squares);
    }
    const float rms = sqrtf(block_sum(squares) / (float)a.d_model + a.eps);
    for (uint32_t i = threadIdx.x; i < a.d_model; i += THREADS) {
        y[i] = x[i] / rms * load_weight<is_bf16>(a.w, i);
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
    if (a->w_dtype == MOE_BF16) {
        rms_norm_kernel<true><<<a->n_rows, THREADS, 0, s->handle>>>(*a);
    } else {
        rms_norm_kernel<false><<<a->n_rows, THREADS, 0, s->handle>>>(*a);
    }
    return krn_cuda_launched(err, "rms_norm");
}
