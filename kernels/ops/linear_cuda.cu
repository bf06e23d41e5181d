/* linear_cuda.cu - one weight matrix applied to every row, behind a norm where one is asked for.
 *
 * One warp computes a tile of rows x columns outputs; 8 warps of a block take neighbouring columns
 * of the same rows, whose x they share through the first-level cache, or normed in shared memory.
 * Weights are read 16 bytes a lane, once per group of 8 rows. Order of additions: device_math.cuh,
 * the same in every tile.
 * Every block norms its rows for itself: that costs less than a kernel of its own, and the weights
 * are under way meanwhile. Shared memory: 8 rows of d_in floats with a norm, else none. Many rows
 * (a prompt) are normed once instead, by rms_norm, with the same bits.
 * Cost: few rows are bound by reading w once; many rows by f32 multiply-adds (activations stay f32,
 * so tensor cores do not serve).
 */
#include "kernels/backend/device_math.cuh"

enum { WARPS = 8, THREADS = WARPS * WARP };
static const uint32_t MAX_NORMED_ROWS = 64;         /* more are normed once */
static const uint32_t MAX_NORMED_BYTES = 48u << 10; /* shared memory without asking for more */

/* Asks for a warp's weights before anybody needs them. */
template <int columns, bool is_bf16>
static __device__ __forceinline__ void
prefetch_weights(const void *w, const size_t (&w_at)[columns], uint32_t d_in)
{
    constexpr size_t element = is_bf16 ? 2 : 4;
#pragma unroll
    for (uint32_t c = 0; c < columns; c++) {
        const char *row = (const char *)w + w_at[c] * element;
        for (size_t at = lane_id() * 128; at < d_in * element; at += WARP * 128) {
            asm volatile("prefetch.global.L2 [%0];" ::"l"(row + at));
        }
    }
}

/* normed[r] = norm of row row0 + r; all threads of the block take part. */
template <int rows>
static __device__ __forceinline__ void norm_rows(const krn_linear_args &a, uint32_t row0,
                                                 bool vector, float *normed)
{
    const bool w_is_bf16 = a.norm_dtype == MOE_BF16;
    if constexpr (rows == 1) { /* every warp finds the same rms */
        const float *x = a.x + (size_t)row0 * a.d_in;
        const float rms = warp_rms(x, a.d_in, a.norm_eps, vector);
        for (uint32_t i = threadIdx.x; i < a.d_in; i += THREADS) {
            normed[i] =
                x[i] / rms *
                (w_is_bf16 ? load_weight<true>(a.norm_w, i) : load_weight<false>(a.norm_w, i));
        }
    } else {
        const uint32_t r = threadIdx.x / WARP;
        if (r < rows && row0 + r < a.n_rows) {
            warp_norm(a.x + (size_t)(row0 + r) * a.d_in, a.norm_w, w_is_bf16, a.d_in, a.norm_eps,
                      vector, normed + r * a.d_in);
        }
    }
    __syncthreads();
    if (blockIdx.x == 0) {
        const uint32_t n = min((uint32_t)rows, a.n_rows - row0) * a.d_in;
        for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
            a.h[(size_t)row0 * a.d_in + i] = normed[i];
        }
    }
}

template <int rows, int columns, bool is_bf16, bool has_norm>
static __global__ void __launch_bounds__(THREADS, 2) linear_kernel(krn_linear_args a, bool vector)
{
    extern __shared__ float4 shared[];
    float *normed = (float *)shared; /* [rows, d_in] */
    const uint32_t column0 = (blockIdx.x * WARPS + threadIdx.x / WARP) * columns;
    const uint32_t row0 = blockIdx.y * rows;
    const float *x[rows];
    size_t w_at[columns];
#pragma unroll
    for (uint32_t c = 0; c < columns; c++) { /* past the end: the last again, not written */
        w_at[c] = (size_t)min(column0 + c, a.d_out - 1) * a.d_in;
    }
    if constexpr (has_norm) {
        prefetch_weights<columns, is_bf16>(a.w, w_at, a.d_in);
        norm_rows<rows>(a, row0, vector, normed);
    }
    if (column0 >= a.d_out) {
        return; /* a whole warp, and no block-wide barrier follows */
    }
#pragma unroll
    for (uint32_t r = 0; r < rows; r++) {
        const uint32_t row = min(row0 + r, a.n_rows - 1);
        x[r] = has_norm ? normed + (row - row0) * a.d_in : a.x + (size_t)row * a.d_in;
    }
    const float sum = warp_tile<rows, columns, is_bf16>(x, a.w, w_at, a.d_in, vector);

    constexpr uint32_t lanes_per_sum = WARP / (rows * columns);
    const uint32_t number = lane_id() / lanes_per_sum;
    const uint32_t row = row0 + number / columns, column = column0 + number % columns;
    if (lane_id() % lanes_per_sum == 0 && row < a.n_rows && column < a.d_out) {
        float *y = a.y + (size_t)row * a.y_stride + column;
        const float v = activate(a.act, a.scale * sum);
        *y = a.accumulate ? *y + v : v;
    }
}

static uint32_t ceil_div(uint32_t n, uint32_t by)
{
    return (n + by - 1) / by;
}

template <int rows, int columns, bool is_bf16>
static void launch_tile(cudaStream_t stream, const krn_linear_args *a)
{
    const bool vector =
        a->d_in % VECTOR == 0 && (uintptr_t)a->x % 16 == 0 && (uintptr_t)a->w % 16 == 0;
    const dim3 grid(ceil_div(a->d_out, WARPS * columns), ceil_div(a->n_rows, rows));
    if (a->norm_w != NULL) {
        linear_kernel<rows, columns, is_bf16, true>
            <<<grid, THREADS, rows * a->d_in * sizeof(float), stream>>>(*a, vector);
    } else {
        linear_kernel<rows, columns, is_bf16, false><<<grid, THREADS, 0, stream>>>(*a, vector);
    }
}

template <bool is_bf16> static void launch(const krn_stream *s, const krn_linear_args *a)
{
    /* Four columns a warp where that still leaves a block for every multiprocessor. */
    const uint32_t n_blocks = ceil_div(a->d_out, WARPS * 4) * ceil_div(a->n_rows, 8);
    const bool wide = n_blocks >= s->device->n_sms;
    if (a->n_rows == 1) {
        wide ? launch_tile<1, 4, is_bf16>(s->handle, a) : launch_tile<1, 1, is_bf16>(s->handle, a);
    } else if (a->n_rows <= 4) {
        wide ? launch_tile<4, 4, is_bf16>(s->handle, a) : launch_tile<4, 1, is_bf16>(s->handle, a);
    } else {
        wide ? launch_tile<8, 4, is_bf16>(s->handle, a) : launch_tile<8, 1, is_bf16>(s->handle, a);
    }
}

static bool norms_in_place(const krn_linear_args *a)
{
    return a->n_rows <= MAX_NORMED_ROWS && 8 * a->d_in * sizeof(float) <= MAX_NORMED_BYTES;
}

static moe_status norm_first(krn_stream *s, krn_linear_args *a, moe_err *err)
{
    krn_rms_norm_args norm = {};
    norm.n_rows = a->n_rows;
    norm.d_model = a->d_in;
    norm.w_dtype = a->norm_dtype;
    norm.eps = a->norm_eps;
    norm.x = a->x;
    norm.w = a->norm_w;
    norm.y = a->h;
    a->x = a->h;
    a->norm_w = NULL;
    return krn_cuda_rms_norm(s, &norm, err);
}

extern "C" moe_status krn_cuda_linear(krn_stream *s, const krn_linear_args *args, moe_err *err)
{
    krn_linear_args a = *args;
    moe_status st = krn_linear_check(&a, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(s->device, err);
    }
    if (st == MOE_OK && a.n_rows > 0 && a.norm_w != NULL && !norms_in_place(&a)) {
        st = norm_first(s, &a, err);
    }
    if (st != MOE_OK || a.n_rows == 0) {
        return st;
    }
    if (a.w_dtype == MOE_BF16) {
        launch<true>(s, &a);
    } else {
        launch<false>(s, &a);
    }
    return krn_cuda_launched(err, "linear");
}
