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

enum {
    WARP = 32,
    VECTOR = 8, /* elements one lane loads at once: 16 bytes of bf16 */
    LINE = 128  /* bytes of a cache line */
};
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

/* ---- a kernel's begin ----
 * Kernels are launched to overlap (krn_cuda_launch): one may begin while the one before still runs.
 * Each calls begin_kernel, or let_next_begin and later await_previous; what lies between may read
 * weights only, which nothing writes. */

static __device__ __forceinline__ void let_next_begin()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

static __device__ __forceinline__ void await_previous()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static __device__ __forceinline__ void begin_kernel()
{
    let_next_begin();
    await_previous();
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

/* ---- loads ----
 * vector: rows are whole vectors and 16-byte aligned, so that a step is one load and few
 * instructions. That matters twice: a decode kernel runs each instruction once, from a cold
 * instruction cache, and long straight code costs more than what it computes. */

static __device__ __forceinline__ bool is_aligned16(const void *p)
{
    return ((uintptr_t)p & 15u) == 0;
}

/* out = p[at..at+8), zeros from n_left on. p: global or shared memory. */
template <bool vector>
static __device__ __forceinline__ void load_floats(float (&out)[VECTOR], const float *p, size_t at,
                                                   uint32_t n_left)
{
    if constexpr (vector) {
        const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const float4 *q = (const float4 *)(p + at);
        const float4 a = n_left > 0 ? q[0] : zero, b = n_left > 0 ? q[1] : zero;
        out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
        out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
    } else {
#pragma unroll
        for (uint32_t k = 0; k < VECTOR; k++) {
            out[k] = k < n_left ? p[at + k] : 0.0f;
        }
    }
}

/* 16 bytes of weights, or zeros. Volatile: a kernel asks for its first weights before it waits for
 * the kernel before (await_previous), and the compiler must not ask later. */
static __device__ __forceinline__ uint4 load_weights16(const void *p, bool is_there)
{
    uint4 v;
    asm volatile("{ .reg .pred there;\n"
                 "setp.ne.u32 there, %5, 0;\n"
                 "mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
                 "@there ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
                 : "l"(p), "r"((uint32_t)is_there));
    return v;
}

/* Eight weights as they are stored. */
template <bool is_bf16, bool vector> struct weights8;

template <bool vector> struct weights8<true, vector> {
    uint4 raw;

    __device__ __forceinline__ void load(const void *w, size_t at, uint32_t n_left)
    {
        if constexpr (vector) {
            raw = load_weights16((const uint16_t *)w + at, n_left > 0);
        } else {
            uint32_t pair[4];
#pragma unroll
            for (uint32_t k = 0; k < 4; k++) {
                const unsigned short *p = (const unsigned short *)w + at + 2 * k;
                const uint32_t low = 2 * k < n_left ? __ldg(p) : 0;
                const uint32_t high = 2 * k + 1 < n_left ? __ldg(p + 1) : 0;
                pair[k] = low | high << 16;
            }
            raw = make_uint4(pair[0], pair[1], pair[2], pair[3]);
        }
    }

    __device__ __forceinline__ float at(int k) const
    {
        const uint32_t pair = k < 2 ? raw.x : k < 4 ? raw.y : k < 6 ? raw.z : raw.w;
        return __uint_as_float(k % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
    }
};

template <bool vector> struct weights8<false, vector> {
    float raw[VECTOR];

    __device__ __forceinline__ void load(const void *w, size_t at, uint32_t n_left)
    {
        const float *p = (const float *)w + at;
        if constexpr (vector) {
            const uint4 a = load_weights16(p, n_left > 0), b = load_weights16(p + 4, n_left > 0);
            raw[0] = __uint_as_float(a.x), raw[1] = __uint_as_float(a.y);
            raw[2] = __uint_as_float(a.z), raw[3] = __uint_as_float(a.w);
            raw[4] = __uint_as_float(b.x), raw[5] = __uint_as_float(b.y);
            raw[6] = __uint_as_float(b.z), raw[7] = __uint_as_float(b.w);
        } else {
#pragma unroll
            for (uint32_t k = 0; k < VECTOR; k++) {
                raw[k] = k < n_left ? __ldg(p + k) : 0.0f;
            }
        }
    }

    __device__ __forceinline__ float at(int k) const
    {
        return raw[k];
    }
};

/* Asks for `bytes` from p on, a warp's worth of lines at a time, before anybody needs them. */
static __device__ __forceinline__ void warp_prefetch(const void *p, size_t bytes)
{
    for (size_t at = lane_id() * LINE; at < bytes; at += WARP * LINE) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"((const char *)p + at));
    }
}

/* ---- the norm ---- */

/* 1 / sqrt(mean(x^2) + eps) of one row, by one warp, in the order of additions above. */
template <bool vector>
static __device__ __forceinline__ float warp_inverse_rms(const float *x, uint32_t d, float eps)
{
    constexpr uint32_t steps = vector ? 4 : 1;
    float squares = 0.0f;
#pragma unroll 1
    for (uint32_t first = lane_id() * VECTOR; first < d; first += steps * WARP * VECTOR) {
        float v[steps][VECTOR];
#pragma unroll
        for (uint32_t n = 0; n < steps; n++) { /* all under way at once */
            const uint32_t i = first + n * WARP * VECTOR;
            load_floats<vector>(v[n], x, i, i < d ? d - i : 0);
        }
#pragma unroll
        for (uint32_t n = 0; n < steps; n++) {
#pragma unroll
            for (int k = 0; k < VECTOR; k++) {
                squares = fmaf(v[n][k], v[n][k], squares);
            }
        }
    }
    return 1.0f / sqrtf(warp_sum(squares) / (float)d + eps);
}

static __device__ __forceinline__ float load_scale(const void *w, bool is_bf16, size_t at)
{
    return is_bf16 ? load_weight<true>(w, at) : load_weight<false>(w, at);
}

/* y = x * inverse_rms * w, by n_threads of which this is number `thread`, four elements under way
 * at once. */
static __device__ __forceinline__ void scale_row(const float *x, const void *w, bool w_is_bf16,
                                                 uint32_t d, float inverse_rms, uint32_t thread,
                                                 uint32_t n_threads, float *y)
{
    constexpr uint32_t steps = 4;
#pragma unroll 1
    for (uint32_t first = thread; first < d; first += steps * n_threads) {
        float xv[steps], wv[steps];
#pragma unroll
        for (uint32_t n = 0; n < steps; n++) {
            const uint32_t i = min(first + n * n_threads, d - 1);
            xv[n] = x[i];
            wv[n] = load_scale(w, w_is_bf16, i);
        }
#pragma unroll
        for (uint32_t n = 0; n < steps; n++) {
            const uint32_t i = first + n * n_threads;
            if (i < d) {
                y[i] = xv[n] * inverse_rms * wv[n];
            }
        }
    }
}

/* Rows of a block, normed into shared memory by all its warps; a barrier follows. One row: all
 * warps find the same rms and share out the rest. Several: a warp for each, rows <= warps. */
template <bool vector>
static __device__ __forceinline__ void block_norm(const float *x, const void *w, bool w_is_bf16,
                                                  uint32_t d, float eps, uint32_t n_rows,
                                                  float *normed)
{
    const uint32_t warp = threadIdx.x / WARP;
    if (n_rows == 1) {
        const float inverse_rms = warp_inverse_rms<vector>(x, d, eps);
        scale_row(x, w, w_is_bf16, d, inverse_rms, threadIdx.x, blockDim.x, normed);
    } else if (warp < n_rows) {
        const float *row = x + (size_t)warp * d;
        const float inverse_rms = warp_inverse_rms<vector>(row, d, eps);
        scale_row(row, w, w_is_bf16, d, inverse_rms, lane_id(), WARP, normed + warp * d);
    }
    __syncthreads();
}

/* ---- the inner loop ---- */

/* What one lane has of `columns` weight rows: `steps` steps of its loop, all under way at once. */
template <int columns, int steps, bool is_bf16, bool vector> struct tile_weights {
    weights8<is_bf16, vector> at[steps][columns];

    /* From element `first` of the rows that begin at elements w_at of w. */
    __device__ __forceinline__ void load(const void *w, const size_t (&w_at)[columns],
                                         uint32_t first, uint32_t d_in)
    {
#pragma unroll
        for (uint32_t n = 0; n < steps; n++) {
            const uint32_t i = first + n * WARP * VECTOR;
#pragma unroll
            for (int c = 0; c < columns; c++) {
                at[n][c].load(w, w_at[c] + i, i < d_in ? d_in - i : 0);
            }
        }
    }
};

/* Few rows are bound by latency: they ask for the weights of several steps at once. */
template <int rows, int columns, bool is_bf16, bool vector>
static constexpr int tile_steps = !vector || (rows > 1 && columns > 1) ? 1
                                  : columns > 1                        ? 2
                                  : rows == 1                          ? 4
                                  : is_bf16                            ? 3
                                                                       : 1;

/* The first weights of a tile, which may be asked for before x is there. */
template <int rows, int columns, bool is_bf16, bool vector>
using tile_ahead =
    tile_weights<columns, tile_steps<rows, columns, is_bf16, vector>, is_bf16, vector>;

/* This warp's sums of `rows` rows times `columns` columns, left as warp_sums leaves them: number
 * r * columns + c. x[r] points to a row; w_at[c] is the first element of a weight row in w; `wv`
 * holds what load() gave from element lane_id() * VECTOR on. */
template <int rows, int columns, bool is_bf16, bool vector>
static __device__ __forceinline__ float warp_tile(const float *const (&x)[rows], const void *w,
                                                  const size_t (&w_at)[columns], uint32_t d_in,
                                                  tile_ahead<rows, columns, is_bf16, vector> &wv)
{
    constexpr uint32_t steps = tile_steps<rows, columns, is_bf16, vector>;
    float sum[rows * columns];
#pragma unroll
    for (int i = 0; i < rows * columns; i++) {
        sum[i] = 0.0f;
    }
    uint32_t first = lane_id() * VECTOR;
#pragma unroll 1
    while (true) {
#pragma unroll
        for (uint32_t n = 0; n < steps; n++) {
            const uint32_t i = first + n * WARP * VECTOR;
#pragma unroll
            for (int r = 0; r < rows; r++) {
                float xv[VECTOR];
                load_floats<vector>(xv, x[r], i, i < d_in ? d_in - i : 0);
#pragma unroll
                for (int k = 0; k < VECTOR; k++) {
#pragma unroll
                    for (int c = 0; c < columns; c++) {
                        sum[r * columns + c] = fmaf(xv[k], wv.at[n][c].at(k), sum[r * columns + c]);
                    }
                }
            }
        }
        first += steps * WARP * VECTOR;
        if (first >= d_in) {
            break;
        }
        wv.load(w, w_at, first, d_in);
    }
    return warp_sums(sum);
}

template <int rows, int columns, bool is_bf16, bool vector>
static __device__ __forceinline__ float warp_tile(const float *const (&x)[rows], const void *w,
                                                  const size_t (&w_at)[columns], uint32_t d_in)
{
    tile_ahead<rows, columns, is_bf16, vector> wv;
    wv.load(w, w_at, lane_id() * VECTOR, d_in);
    return warp_tile<rows, columns, is_bf16, vector>(x, w, w_at, d_in, wv);
}

#endif
