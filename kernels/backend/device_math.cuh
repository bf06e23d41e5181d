/* device_math.cuh - the inner loop of the `cuda` backend, and sums over a warp.
 *
 * Order of additions of one output sum_i x[i] * w[i], for every tile shape and number of rows: lane
 * l of a warp takes i = 8l + 256n + (0..7), n and i rising, each product fused into its sum; then
 * the lanes are added pairwise over distances 16, 8, 4, 2, 1. Addition commutes, so which lane
 * keeps a sum does not matter; what a tile changes is only how often a loaded value is used.
 * Everything is compiled with -fmad=false: a multiply and an add are fused only where it says fmaf.
 */
#ifndef KRN_DEVICE_MATH_CUH
#define KRN_DEVICE_MATH_CUH

#include <math_constants.h>
#include <stdint.h>

#include "kernels/backend/cuda_common.cuh"

enum { WARP = 32, VECTOR = 8 /* elements one lane loads at once: 16 bytes of bf16 */ };
static const unsigned int WHOLE_WARP = 0xffffffffu;

static __device__ __forceinline__ uint32_t lane_id()
{
    return threadIdx.x % WARP;
}

static __device__ __forceinline__ float bf16_to_float(uint16_t v)
{
    return __uint_as_float((uint32_t)v << 16);
}

template <bool is_bf16>
static __device__ __forceinline__ float load_weight(const void *w, size_t at)
{
    return is_bf16 ? bf16_to_float(__ldg((const unsigned short *)w + at))
                   : __ldg((const float *)w + at);
}

static __device__ __forceinline__ float activate(uint32_t act, float v)
{
    switch (act) {
    case MOE_ACT_RELU:
        return v > 0.0f ? v : (v <= 0.0f ? 0.0f : v); /* NaN stays */
    case MOE_ACT_GELU_ERF:
        return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f));
    case MOE_ACT_GELU_TANH:
        return 0.5f * v * (1.0f + tanhf(0.79788456080286536f * (v + 0.044715f * v * v * v)));
    default:
        return v;
    }
}

/* ---- over a warp ---- */

static __device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int distance = WARP / 2; distance >= 1; distance /= 2) {
        v += __shfl_xor_sync(WHOLE_WARP, v, distance);
    }
    return v;
}

static __device__ __forceinline__ float warp_max(float v)
{
#pragma unroll
    for (int distance = WARP / 2; distance >= 1; distance /= 2) {
        v = fmaxf(v, __shfl_xor_sync(WHOLE_WARP, v, distance));
    }
    return v;
}

/* Each lane hands `half` of its 2 * half sums over, and keeps the other half; and so on down to
 * one. A recursion, not a loop: every index must be a constant, or v leaves the registers. */
template <int half, int n> static __device__ __forceinline__ void hand_over(float (&v)[n])
{
    const int distance = half * WARP / n;
    const bool upper = (lane_id() & (uint32_t)distance) != 0;
#pragma unroll
    for (int i = 0; i < half; i++) {
        const float keep = upper ? v[i + half] : v[i];
        const float give = upper ? v[i] : v[i + half];
        v[i] = keep + __shfl_xor_sync(WHOLE_WARP, give, distance);
    }
    if constexpr (half > 1) {
        hand_over<half / 2>(v);
    }
}

/* n sums at once, n a power of two up to 32. Lane l returns the sum number l / (32 / n). */
template <int n> static __device__ __forceinline__ float warp_sums(float (&v)[n])
{
    if constexpr (n > 1) {
        hand_over<n / 2>(v);
    }
    float sum = v[0];
#pragma unroll
    for (int distance = WARP / n / 2; distance >= 1; distance /= 2) {
        sum += __shfl_xor_sync(WHOLE_WARP, sum, distance);
    }
    return sum;
}

/* ---- loads ---- */

static __device__ __forceinline__ bool is_aligned16(const void *p)
{
    return ((uintptr_t)p & 15u) == 0;
}

/* out[0..8) = p[at..at+8), zeros from n_left on. vector: p + at is 16-byte aligned. p: global or
 * shared memory. */
static __device__ __forceinline__ void load_floats(float (&out)[VECTOR], const float *p, size_t at,
                                                   uint32_t n_left, bool vector)
{
    if (vector && n_left >= VECTOR) {
        const float4 *q = (const float4 *)(p + at);
        float4 a = q[0], b = q[1];
        out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
        out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
        return;
    }
#pragma unroll
    for (uint32_t k = 0; k < VECTOR; k++) {
        out[k] = k < n_left ? p[at + k] : 0.0f;
    }
}

template <bool is_bf16>
static __device__ __forceinline__ void load_weights(float (&out)[VECTOR], const void *w, size_t at,
                                                    uint32_t n_left, bool vector)
{
    if (!is_bf16 && vector && n_left >= VECTOR) {
        const float4 *q = (const float4 *)((const float *)w + at);
        float4 a = __ldg(q), b = __ldg(q + 1);
        out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
        out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
        return;
    }
    if (is_bf16 && vector && n_left >= VECTOR) {
        uint4 a = __ldg((const uint4 *)((const uint16_t *)w + at));
        const uint32_t pair[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            out[2 * k] = __uint_as_float(pair[k] << 16);
            out[2 * k + 1] = __uint_as_float(pair[k] & 0xffff0000u);
        }
        return;
    }
#pragma unroll
    for (uint32_t k = 0; k < VECTOR; k++) {
        out[k] = k < n_left ? load_weight<is_bf16>(w, at + k) : 0.0f;
    }
}

/* ---- the norm ---- */

/* sqrt(mean(x^2) + eps) of one row, by one warp, in the order of additions above. */
static __device__ __forceinline__ float warp_rms(const float *x, uint32_t d, float eps, bool vector)
{
    float squares = 0.0f;
#pragma unroll 4
    for (uint32_t i = lane_id() * VECTOR; i < d; i += WARP * VECTOR) {
        float v[VECTOR];
        load_floats(v, x, i, d - i, vector);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) {
            squares = fmaf(v[k], v[k], squares);
        }
    }
    return sqrtf(warp_sum(squares) / (float)d + eps);
}

/* y = x / rms * w of one row, by one warp. */
static __device__ __forceinline__ void warp_norm(const float *x, const void *w, bool w_is_bf16,
                                                 uint32_t d, float eps, bool vector, float *y)
{
    const float rms = warp_rms(x, d, eps, vector);
    for (uint32_t i = lane_id(); i < d; i += WARP) {
        y[i] = x[i] / rms * (w_is_bf16 ? load_weight<true>(w, i) : load_weight<false>(w, i));
    }
}

/* ---- the inner loop ---- */

/* This warp's sums of `rows` rows times `columns` columns, left as warp_sums leaves them: number
 * r * columns + c. x[r] points to a row; w_at[c] is the first element of a weight row in w. */
template <int rows, int columns, bool is_bf16>
static __device__ __forceinline__ float warp_tile(const float *const (&x)[rows], const void *w,
                                                  const size_t (&w_at)[columns], uint32_t d_in,
                                                  bool vector)
{
    float sum[rows * columns];
#pragma unroll
    for (int i = 0; i < rows * columns; i++) {
        sum[i] = 0.0f;
    }
#pragma unroll(rows == 1 ? 8 : 1)
    for (uint32_t i = lane_id() * VECTOR; i < d_in; i += WARP * VECTOR) {
        float wv[columns][VECTOR];
#pragma unroll
        for (int c = 0; c < columns; c++) {
            load_weights<is_bf16>(wv[c], w, w_at[c] + i, d_in - i, vector);
        }
#pragma unroll
        for (int r = 0; r < rows; r++) {
            float xv[VECTOR];
            load_floats(xv, x[r], i, d_in - i, vector);
#pragma unroll
            for (int k = 0; k < VECTOR; k++) {
#pragma unroll
                for (int c = 0; c < columns; c++) {
                    sum[r * columns + c] = fmaf(xv[k], wv[c][k], sum[r * columns + c]);
                }
            }
        }
    }
    return warp_sums(sum);
}

#endif
