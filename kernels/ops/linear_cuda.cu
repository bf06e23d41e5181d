/* linear_cuda.cu - one weight matrix applied to every row, behind a norm where one is asked for.
 *
 * One warp computes a tile of rows x columns outputs; 8 warps of a block take neighbouring columns
 * of the same rows, whose x they share through the first-level cache, or normed in shared memory.
 * Weights are read 16 bytes a lane, once per group of 8 rows. Order of additions: device_math.cuh,
 * the same in every tile.
 * Every block norms its rows for itself: that costs less than a kernel of its own. A single row's
 * weights are asked for, and its first ones loaded, before the kernel before has ended. Shared
 * memory: 8 rows of d_in floats with a norm, else none. Many rows (a prompt) are normed once
 * instead, by rms_norm, with the same bits. Cost: few rows are bound by reading w once; many rows
 * by f32 multiply-adds, so prompts with scratch go to prompt_linear_cuda.cu.
 */
#include "kernels/backend/device_math.cuh"
#include "kernels/ops/prompt_linear_cuda.h"

enum { WARPS = 8, THREADS = WARPS * WARP };
static const uint32_t MAX_NORMED_ROWS = 64;         /* more are normed once */
static const uint32_t MAX_NORMED_BYTES = 48u << 10; /* shared memory without asking for more */

template <int rows, int columns, bool is_bf16, bool has_norm, bool vector>
static __global__ void __launch_bounds__(THREADS, 2) linear_kernel(krn_linear_args a)
{
    extern __shared__ float4 shared[];
    float *normed = (float *)shared; /* [rows, d_in] */
    const uint32_t column0 = (blockIdx.x * WARPS + threadIdx.x / WARP) * columns;
    const uint32_t row0 = blockIdx.y * rows;
    const float *x[rows];
    size_t w_at[columns];
    tile_ahead<rows, columns, is_bf16, vector> ahead;
    constexpr size_t element = is_bf16 ? 2 : 4;
    let_next_begin();
#pragma unroll
    for (uint32_t c = 0; c < columns; c++) { /* past the end: the last again, not written */
        w_at[c] = (size_t)min(column0 + c, a.d_out - 1) * a.d_in;
        if (rows == 1) {
            warp_prefetch((const char *)a.w + w_at[c] * element, a.d_in * element);
        }
    }
    if (rows == 1) {
        ahead.load(a.w, w_at, lane_id() * VECTOR, a.d_in);
    }
    await_previous();
    if constexpr (has_norm) {
        const uint32_t n_rows = min((uint32_t)rows, a.n_rows - row0);
        block_norm<vector>(a.x + (size_t)row0 * a.d_in, a.norm_w, a.norm_dtype == MOE_BF16, a.d_in,
                           a.norm_eps, n_rows, normed);
        for (uint32_t i = threadIdx.x; blockIdx.x == 0 && i < n_rows * a.d_in; i += THREADS) {
            a.h[(size_t)row0 * a.d_in + i] = normed[i];
        }
    }
    if (column0 >= a.d_out) {
        return; /* a whole warp, and no block-wide barrier follows */
    }
#pragma unroll
    for (uint32_t r = 0; r < rows; r++) {
        const uint32_t row = min(row0 + r, a.n_rows - 1);
        x[r] = has_norm ? normed + (row - row0) * a.d_in : a.x + (size_t)row * a.d_in;
    }
    constexpr uint32_t lanes_per_sum = WARP / (rows * columns);
    const uint32_t number = lane_id() / lanes_per_sum;
    const uint32_t row = row0 + number / columns, column = column0 + number % columns;
    const bool writes = lane_id() % lanes_per_sum == 0 && row < a.n_rows && column < a.d_out;
    float *y = a.y + (size_t)row * a.y_stride + column;
    const float before = a.accumulate && writes ? *y : 0.0f; /* under way while others come */
    if (rows > 1) {
        ahead.load(a.w, w_at, lane_id() * VECTOR, a.d_in);
    }
    const float sum = warp_tile<rows, columns, is_bf16, vector>(x, a.w, w_at, a.d_in, ahead);
    if (writes) {
        const float v = activate(a.act, a.scale * sum);
        *y = a.accumulate ? before + v : v;
    }
}

static uint32_t ceil_div(uint32_t n, uint32_t by)
{
    return (n + by - 1) / by;
}

template <int rows, int columns, bool is_bf16, bool vector>
static void launch_tile(const krn_stream *s, const krn_linear_args *a)
{
    const dim3 grid(ceil_div(a->d_out, WARPS * columns), ceil_div(a->n_rows, rows));
    if (a->norm_w != NULL) {
        krn_cuda_launch<linear_kernel<rows, columns, is_bf16, true, vector>>(
            s, grid, THREADS, rows * a->d_in * sizeof(float), *a);
    } else {
        krn_cuda_launch<linear_kernel<rows, columns, is_bf16, false, vector>>(s, grid, THREADS, 0,
                                                                              *a);
    }
}

template <bool is_bf16> static void launch(const krn_stream *s, const krn_linear_args *a)
{
    /* Four columns a warp where that still leaves a block for every multiprocessor. */
    const uint32_t n_blocks = ceil_div(a->d_out, WARPS * 4) * ceil_div(a->n_rows, 8);
    const bool wide = n_blocks >= s->device->n_sms;
    if (a->d_in % VECTOR != 0 || (uintptr_t)a->x % 16 != 0 || (uintptr_t)a->w % 16 != 0) {
        launch_tile<8, 1, is_bf16, false>(s, a);
    } else if (a->n_rows == 1) {
        wide ? launch_tile<1, 4, is_bf16, true>(s, a) : launch_tile<1, 1, is_bf16, true>(s, a);
    } else if (wide) {
        launch_tile<8, 4, is_bf16, true>(s, a);
    } else if (a->n_rows <= 4) { /* a tile computes all its rows, there or not */
        a->n_rows <= 2 ? launch_tile<2, 1, is_bf16, true>(s, a)
                       : launch_tile<4, 1, is_bf16, true>(s, a);
    } else {
        launch_tile<8, 1, is_bf16, true>(s, a);
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
    if (st != MOE_OK || a.n_rows == 0) {
        return st;
    }
    const bool on_tensor_cores = krn_cuda_can_prompt_linear(s, &a);
    if (a.norm_w != NULL && (on_tensor_cores || !norms_in_place(&a))) {
        st = norm_first(s, &a, err);
    }
    if (st != MOE_OK || on_tensor_cores) {
        return st == MOE_OK ? krn_cuda_prompt_linear(s, &a, err) : st;
    }
    if (a.w_dtype == MOE_BF16) {
        launch<true>(s, &a);
    } else {
        launch<false>(s, &a);
    }
    return krn_cuda_launched(err, "linear");
}
