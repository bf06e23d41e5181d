/* attention_cuda.cu - softmax attention of each row over its own sequence's cache.
 *
 * One block of 8 warps per (row, head), a warp for each part of the positions; how a part is
 * computed and the parts are merged: attention_device.cuh. A projection in front, of few rows:
 * projected_attention_cuda.cu; of more, linear. Rows of a prompt: prompt_attention_cuda.cu. Shared
 * memory: 9 * d_head floats, 9.2 KB at most. Cost: reads k and v once per row and head.
 */
#include "kernels/ops/attention_device.cuh"
#include "kernels/ops/projected_attention_cuda.h"
#include "kernels/ops/prompt_attention_cuda.h"

enum { THREADS = PARTS * WARP };

/* The row's own key and value of this head go where the cache keeps them. */
static __device__ __forceinline__ void keep_new(const krn_attention_args &a, const row_place &p)
{
    const size_t at_head = (size_t)p.head * a.d_head, from = (size_t)p.t * a.q_stride + at_head;
    const size_t to = (p.first + (size_t)p.pos) * a.kv_stride + at_head;
    for (uint32_t d = threadIdx.x; d < a.d_head; d += THREADS) {
        a.k[to + d] = a.new_k[from + d];
        a.v[to + d] = a.new_v[from + d];
    }
}

template <int dims, bool vector>
static __global__ void __launch_bounds__(THREADS, 2) attention_kernel(krn_attention_args a)
{
    constexpr uint32_t q_dims = dims * WARP > PIECE ? dims * WARP : PIECE;
    __shared__ partials<dims> all;
    __shared__ __align__(16) float q[q_dims];
    const uint32_t t = blockIdx.x, head = blockIdx.y, warp = threadIdx.x / WARP;
    partial<dims> p = {-CUDART_INF_F, 0.0f, {0.0f}};
    let_next_begin();
    const row_place place = place_of(a, t, head);
    for (uint32_t j = threadIdx.x; a.new_k != NULL && j < place.n_visible; j += THREADS) {
        prefetch_position(a, place, j);
    }
    await_previous();
    if (threadIdx.x < q_dims) {
        const size_t row = (size_t)t * a.q_stride + (size_t)head * a.d_head;
        q[threadIdx.x] = threadIdx.x < a.d_head ? a.q[row + threadIdx.x] : 0.0f;
    }
    __syncthreads();
    for (uint32_t j = warp * WARP; j < place.n_visible; j += PART_POSITIONS) {
        take_positions<dims, vector>(a, place, j, q, p);
    }
    if (a.new_k != NULL) {
        keep_new(a, place);
    }
    put(all, warp, p);
    __syncthreads();
    const uint32_t d = threadIdx.x; /* whole warps, and as many as there are dims */
    if (d < dims * WARP) {
        const float mean = merge(all, d);
        if (d < a.d_head) {
            a.out[((size_t)t * a.n_heads + head) * a.d_head + d] =
                place.n_visible > 0 ? mean : 0.0f;
        }
    }
}

static bool rows_are_aligned(const krn_attention_args *a)
{
    const uintptr_t all = (uintptr_t)a->k | (uintptr_t)a->new_k;
    return all % 16 == 0 && a->d_head % 4 == 0 && a->kv_stride % 4 == 0 &&
           (a->new_k == NULL || a->q_stride % 4 == 0);
}

template <bool vector> static void launch(const krn_stream *s, const krn_attention_args *a)
{
    const dim3 grid(a->n_rows, a->n_heads);
    if (a->d_head <= WARP) {
        krn_cuda_launch<attention_kernel<1, vector>>(s, grid, THREADS, 0, *a);
    } else if (a->d_head <= 2 * WARP) {
        krn_cuda_launch<attention_kernel<2, vector>>(s, grid, THREADS, 0, *a);
    } else if (a->d_head <= 4 * WARP) {
        krn_cuda_launch<attention_kernel<4, vector>>(s, grid, THREADS, 0, *a);
    } else {
        krn_cuda_launch<attention_kernel<KRN_MAX_D_HEAD / WARP, vector>>(s, grid, THREADS, 0, *a);
    }
}

extern "C" moe_status krn_cuda_attention(krn_stream *s, const krn_attention_args *a, moe_err *err)
{
    moe_status st = krn_attention_check(a, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(s->device, err);
    }
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    if (a->project != NULL && krn_cuda_can_project(s, a)) {
        return krn_cuda_projected_attention(s, a, err);
    }
    if (a->project != NULL) {
        st = krn_cuda_linear(s, a->project, err);
        if (st != MOE_OK) {
            return st;
        }
    }
    if (!rows_are_aligned(a)) {
        launch<false>(s, a);
    } else if (a->rows_share_kv && !a->causal && a->new_k == NULL) {
        return krn_cuda_prompt_attention(s, a, err);
    } else {
        launch<true>(s, a);
    }
    return krn_cuda_launched(err, "attention");
}
