/* prompt_linear_cuda.cu - one weight matrix applied to the rows of a prompt, on tensor cores.
 *
 * Tensor cores multiply bf16. Weights are; an activation is f32, so it is cut into three parts of 8
 * bits each, x = high + middle + low exactly, whose products with w are made by one call of
 * cuBLASLt (rows of all high parts, then of all middle, then of all low) and added, smallest first.
 * Products of bf16 are exact in f32, so what is lost is what f32 sums lose (measured: 3e-7 of the
 * sum of absolute products, as linear_cuda.cu). Three times the work on units fifteen times as
 * fast: 256 rows of 768 x 2304 take 20 us instead of 45. Weights in f32 would need nine products:
 * they are left to linear_cuda.cu. Rows go in chunks of KRN_LINEAR_CHUNK, for scratch. Cost: tensor
 * cores, and 18 bytes moved per number of x and y.
 */
#include "kernels/backend/cublas_lt.cuh"
#include "kernels/backend/device_math.cuh"
#include "kernels/ops/prompt_linear_cuda.h"

enum { THREADS = 256, PARTS_OF_X = 3, AT_ONCE = 4 };

/* The first 8 bits of a number; what is left is exact. */
static __device__ __forceinline__ uint16_t take_part(float &x)
{
    const uint32_t bits = __float_as_uint(x);
    x -= __uint_as_float(bits & 0xffff0000u);
    return (uint16_t)(bits >> 16);
}

/* parts: [3, n] bf16 of x: [n] f32, n a multiple of 4. */
static __global__ void split_kernel(const float *x, uint16_t *parts, uint32_t n)
{
    begin_kernel();
    const uint32_t i = (blockIdx.x * THREADS + threadIdx.x) * AT_ONCE;
    if (i >= n) {
        return;
    }
    float4 v = *(const float4 *)(x + i);
#pragma unroll
    for (uint32_t part = 0; part < PARTS_OF_X; part++) {
        ushort4 taken;
        taken.x = take_part(v.x);
        taken.y = take_part(v.y);
        taken.z = take_part(v.z);
        taken.w = take_part(v.w);
        *(ushort4 *)(parts + (size_t)part * n + i) = taken;
    }
}

/* y of a's rows from the products: [3, n_rows, d_out]. A block has columns of one row. */
static __global__ void add_parts_kernel(krn_linear_args a, const float *products)
{
    begin_kernel();
    const uint32_t row = blockIdx.y, column = (blockIdx.x * THREADS + threadIdx.x) * AT_ONCE;
    if (column >= a.d_out) {
        return;
    }
    const size_t at = (size_t)row * a.d_out + column, all = (size_t)a.n_rows * a.d_out;
    const float4 high = *(const float4 *)(products + at);
    const float4 middle = *(const float4 *)(products + all + at);
    const float4 low = *(const float4 *)(products + 2 * all + at);
    const float sum[AT_ONCE] = {(low.x + middle.x) + high.x, (low.y + middle.y) + high.y,
                                (low.z + middle.z) + high.z, (low.w + middle.w) + high.w};
    float *y = a.y + (size_t)row * a.y_stride + column;
#pragma unroll
    for (uint32_t i = 0; i < AT_ONCE; i++) {
        const float v = activate(a.act, a.scale * sum[i]);
        y[i] = a.accumulate ? y[i] + v : v;
    }
}

bool krn_cuda_can_prompt_linear(const krn_stream *s, const krn_linear_args *a)
{
    const uintptr_t x = (uintptr_t)(a->norm_w != NULL ? a->h : a->x);
    const uintptr_t all = x | (uintptr_t)a->w | (uintptr_t)a->scratch;
    return a->scratch != NULL && s->device->cublas_lt != NULL && a->w_dtype == MOE_BF16 &&
           a->d_in % 8 == 0 && a->d_out % 4 == 0 && all % 16 == 0;
}

static moe_status multiply_chunk(krn_stream *s, const krn_linear_args *a, moe_err *err)
{
    uint16_t *parts = (uint16_t *)a->scratch;
    float *products = (float *)(parts + (size_t)PARTS_OF_X * KRN_LINEAR_CHUNK * a->d_in);
    const uint32_t n = a->n_rows * a->d_in, n_vectors = n / AT_ONCE;
    const dim3 grid((a->d_out / AT_ONCE + THREADS - 1) / THREADS, a->n_rows);
    const krn_product product = {PARTS_OF_X * a->n_rows, a->d_in, a->d_out, parts, a->w, products};
    krn_cuda_launch<split_kernel>(s, (n_vectors + THREADS - 1) / THREADS, THREADS, 0, a->x, parts,
                                  n);
    moe_status st = krn_cuda_launched(err, "linear");
    if (st == MOE_OK) {
        st = krn_cublas_lt_multiply(s->device->cublas_lt, s->handle, &product, err);
    }
    if (st == MOE_OK) {
        krn_cuda_launch<add_parts_kernel>(s, grid, THREADS, 0, *a, (const float *)products);
        st = krn_cuda_launched(err, "linear");
    }
    return st;
}

moe_status krn_cuda_prompt_linear(krn_stream *s, const krn_linear_args *a, moe_err *err)
{
    moe_status st = MOE_OK;
    for (uint32_t first = 0; first < a->n_rows && st == MOE_OK; first += KRN_LINEAR_CHUNK) {
        krn_linear_args chunk = *a;
        const uint32_t left = a->n_rows - first;
        chunk.n_rows = left < KRN_LINEAR_CHUNK ? left : (uint32_t)KRN_LINEAR_CHUNK;
        chunk.x += (size_t)first * a->d_in;
        chunk.y += (size_t)first * a->y_stride;
        st = multiply_chunk(s, &chunk, err);
    }
    return st;
}
