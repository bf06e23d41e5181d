/* linear_cuda.cu - one weight matrix applied to every row.
 *
 * One warp computes a tile of rows x columns outputs; 8 warps of a block take neighbouring columns
 * of the same rows, whose x they share through the first-level cache. Weights are read 16 bytes a
 * lane, once per group of 8 rows. Order of additions: device_math.cuh, the same in every tile.
 * Cost: few rows are bound by reading w once; many rows by f32 multiply-adds (activations stay f32,
 * so tensor cores do not serve). No shared memory.
 */
#include "kernels/backend/device_math.cuh"

enum { WARPS = 8, THREADS = WARPS * WARP };

template <int rows, int columns, bool is_bf16>
static __global__ void __launch_bounds__(THREADS, 2) linear_kernel(krn_linear_args a, bool vector)
{
    const uint32_t column0 = (blockIdx.x * WARPS + threadIdx.x / WARP) * columns;
    const uint32_t row0 = blockIdx.y * rows;
    if (column0 >= a.d_out) {
        return; /* a whole warp, and there is no block-wide barrier */
    }
    const float *x[rows];
    size_t w_at[columns];
#pragma unroll
    for (uint32_t r = 0; r < rows; r++) { /* past the end: the last row again, not written */
        x[r] = a.x + (size_t)min(row0 + r, a.n_rows - 1) * a.d_in;
    }
#pragma unroll
    for (uint32_t c = 0; c < columns; c++) {
        w_at[c] = (size_t)min(column0 + c, a.d_out - 1) * a.d_in;
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
    linear_kernel<rows, columns, is_bf16><<<grid, THREADS, 0, stream>>>(*a, vector);
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

extern "C" moe_status krn_cuda_linear(krn_stream *s, const krn_linear_args *a, moe_err *err)
{
    moe_status st = krn_linear_check(a, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(s->device, err);
    }
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    if (a->w_dtype == MOE_BF16) {
        launch<true>(s, a);
    } else {
        launch<false>(s, a);
    }
    return krn_cuda_launched(err, "linear");
}
