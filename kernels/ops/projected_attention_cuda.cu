/* projected_attention_cuda.cu - norm, projection and attention of a decode step in one kernel.
 *
 * A cluster of 8 blocks per (row, head). Each block norms the row, computes an eighth of the head's
 * query (key, value) dims, a warp for each dim, and puts them into the shared memory of all eight.
 * Then block w attends to the positions of part w (attention_device.cuh), whose keys and values
 * travelled meanwhile; block 0 merges. Saves the start and the end of a kernel, and spreads the
 * cache's bytes over eight multiprocessors. Orders of additions: device_math.cuh and
 * attention_device.cuh. Every row reads the weights for itself, so rows have to be few.
 * Shared memory: d_in floats, and 20 KB.
 */
#include "kernels/ops/attention_device.cuh"
#include "kernels/ops/projected_attention_cuda.h"

#include <cooperative_groups.h>

namespace cg = cooperative_groups;

enum {
    CLUSTER = PARTS,
    WARPS = 8,
    THREADS = WARPS * WARP,
    STEPS = 4, /* of weights, all loaded ahead */
    MAX_D_IN = STEPS * WARP * VECTOR,
    DIMS = 2, /* of a head, a lane has */
    MAX_D_HEAD = DIMS * WARP,
    KEY_STRIDE = MAX_D_HEAD + 4 /* so that eight lanes' 16 bytes lie in different banks */
};
static const uint32_t MAX_PROJECTED_ROWS = 4;

enum { QUERY, KEY, VALUE };

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900 /* clusters */

struct projected_memory {
    float row[3][MAX_D_HEAD]; /* the row's own query, key and value, zero past d_head */
    float key[WARP][KEY_STRIDE], value[WARP][MAX_D_HEAD]; /* of the part's first positions */
    partials<DIMS> all;                                   /* block 0's is used */
};

/* The row's own key and value are made here, and are not in the cache yet. */
static __device__ __forceinline__ bool is_own(const krn_attention_args &a, const row_place &p,
                                              uint32_t position)
{
    return a.new_k != NULL && position == (uint32_t)p.pos;
}

static __device__ __forceinline__ void copy16(float *to, const float *from)
{
    const uint32_t shared = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from));
}

/* Asks for keys and values of positions j .. j + n. */
static __device__ __forceinline__ void fetch_positions(const krn_attention_args &a,
                                                       const row_place &p, uint32_t j, uint32_t n,
                                                       projected_memory &shared)
{
    const uint32_t n_pieces = a.d_head / 4; /* of a row */
    for (uint32_t i = threadIdx.x; i < n * n_pieces; i += THREADS) {
        const uint32_t at = i / n_pieces, d = i % n_pieces * 4;
        const size_t from = (p.first + j + at) * a.kv_stride + (size_t)p.head * a.d_head + d;
        if (!is_own(a, p, j + at)) {
            copy16(&shared.key[at][d], a.k + from);
            copy16(&shared.value[at][d], a.v + from);
        }
    }
}

/* What take_positions does, of positions that are in shared memory, the first of a part. */
static __device__ __forceinline__ void take_fetched(const krn_attention_args &a, const row_place &p,
                                                    uint32_t j, uint32_t n, float bias,
                                                    const projected_memory &shared,
                                                    partial<DIMS> &sofar)
{
    const uint32_t at = min(lane_id(), n - 1);
    const float *key = is_own(a, p, j + at) ? shared.row[KEY] : shared.key[at];
    const float score = dot_row<true>(shared.row[QUERY], key, a.d_head) + bias;
    const float largest = warp_max(score);
    const float weight = lane_id() < n ? expf(score - largest) : 0.0f;
    sofar.largest = largest;
    sofar.sum = weight;
#pragma unroll 4
    for (uint32_t i = 0; i < n; i++) {
        const float *value = is_own(a, p, j + i) ? shared.row[VALUE] : shared.value[i];
        const float its_weight = __shfl_sync(WHOLE_WARP, weight, i);
#pragma unroll
        for (uint32_t k = 0; k < DIMS; k++) {
            sofar.out[k] = fmaf(its_weight, value[lane_id() + k * WARP], sofar.out[k]);
        }
    }
}

/* This warp's dim of the query (key, value), in the order of warp_tile. */
template <int parts, bool is_bf16>
static __device__ __forceinline__ void project(const krn_linear_args &l, const float *x,
                                               const tile_weights<parts, STEPS, is_bf16, true> &w,
                                               float (&out)[parts])
{
#pragma unroll
    for (int part = 0; part < parts; part++) {
        out[part] = 0.0f;
    }
#pragma unroll
    for (uint32_t n = 0; n < STEPS; n++) {
        const uint32_t i = lane_id() * VECTOR + n * WARP * VECTOR;
        float xv[VECTOR];
        load_floats<true>(xv, x, i, i < l.d_in ? l.d_in - i : 0);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) {
#pragma unroll
            for (int part = 0; part < parts; part++) {
                out[part] = fmaf(xv[k], w.at[n][part].at(k), out[part]);
            }
        }
    }
#pragma unroll
    for (int part = 0; part < parts; part++) {
        out[part] = activate(l.act, l.scale * warp_sum(out[part]));
    }
}

/* parts: 3 with a new key and value, else 1. */
template <int parts, bool is_bf16>
static __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS)
    projected_attention_kernel(krn_linear_args l, krn_attention_args a)
{
    extern __shared__ float4 dynamic[];
    float *normed = (float *)dynamic;
    __shared__ __align__(16) projected_memory shared;
    const cg::cluster_group cluster = cg::this_cluster();
    const uint32_t rank = cluster.block_rank(), t = blockIdx.x / CLUSTER, head = blockIdx.y;
    const uint32_t warp = threadIdx.x / WARP, dims = a.d_head / CLUSTER, dim = rank * dims + warp;
    const uint32_t j = rank * WARP; /* the part's first position */
    tile_weights<parts, STEPS, is_bf16, true> weights;
    size_t w_at[parts];
    let_next_begin();
    for (uint32_t i = threadIdx.x; i < 3 * MAX_D_HEAD; i += THREADS) {
        (&shared.row[0][0])[i] = 0.0f;
    }
    cluster.barrier_arrive();
#pragma unroll
    for (int part = 0; part < parts; part++) { /* warps without a dim: any, not used */
        w_at[part] =
            ((size_t)(part * a.n_heads + head) * a.d_head + min(dim, a.d_head - 1)) * l.d_in;
    }
    weights.load(l.w, w_at, lane_id() * VECTOR, l.d_in);
    const row_place place = place_of(a, t, head);
    const uint32_t n = place.n_visible > j ? min(place.n_visible - j, (uint32_t)WARP) : 0;
    const uint32_t position = j + min(lane_id(), n > 0 ? n - 1 : 0);
    const float bias = a.rel_bias != NULL ? bias_of(a, head, (int32_t)position - place.pos) : 0.0f;
    if (threadIdx.x < n) {
        prefetch_position(a, place, j + threadIdx.x);
    }
    await_previous();
    fetch_positions(a, place, j, n, shared);
    block_norm<true>(l.x + (size_t)t * l.d_in, l.norm_w, l.norm_dtype == MOE_BF16, l.d_in,
                     l.norm_eps, 1, normed);
    cluster.barrier_wait(); /* all eight run, and their rows are zero */
    if (warp < dims) {
        float out[parts];
        project<parts, is_bf16>(l, normed, weights, out);
        const size_t cached =
            (place.first + (size_t)place.pos) * a.kv_stride + (size_t)head * a.d_head + dim;
#pragma unroll
        for (int part = 0; part < parts; part++) {
            if (lane_id() < CLUSTER) {
                *cluster.map_shared_rank(&shared.row[part][dim], lane_id()) = out[part];
            }
            if (part != QUERY && lane_id() == 0) {
                (part == KEY ? a.k : a.v)[cached] = out[part];
            }
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    cluster.sync();
    if (warp == 0) {
        partial<DIMS> p = {-CUDART_INF_F, 0.0f, {0.0f}};
        krn_attention_args cache = a; /* which has the new key and value by now */
        cache.new_k = cache.new_v = NULL;
        if (n > 0) {
            take_fetched(a, place, j, n, bias, shared, p);
        }
        for (uint32_t next = j + PART_POSITIONS; next < place.n_visible; next += PART_POSITIONS) {
            take_positions<DIMS, true>(cache, place, next, shared.row[QUERY], p);
        }
        put(*cluster.map_shared_rank(&shared.all, 0), rank, p);
    }
    cluster.barrier_arrive();
    if (rank != 0) {
        return;
    }
    cluster.barrier_wait();
    const uint32_t d = threadIdx.x; /* whole warps, and as many as there are dims */
    if (d < MAX_D_HEAD) {
        const float mean = merge(shared.all, d);
        if (d < a.d_head) {
            a.out[((size_t)t * a.n_heads + head) * a.d_head + d] =
                place.n_visible > 0 ? mean : 0.0f;
        }
    }
}

#else

template <int parts, bool is_bf16> /* never launched: krn_cuda_can_project */
static __global__ void projected_attention_kernel(krn_linear_args, krn_attention_args)
{
}

#endif

bool krn_cuda_can_project(const krn_stream *s, const krn_attention_args *a)
{
    const krn_linear_args *l = a->project;
    const uintptr_t all = (uintptr_t)a->k | (uintptr_t)a->v | (uintptr_t)l->x | (uintptr_t)l->w;
    const uint32_t width = a->n_heads * a->d_head;
    if (l->d_out != (a->new_k != NULL ? 3 : 1) * width) {
        return false; /* every row's keys are needed before any row attends */
    }
    return s->device->overlaps_kernels /* and has clusters */ && a->n_rows <= MAX_PROJECTED_ROWS &&
           l->norm_w != NULL && l->d_in <= MAX_D_IN && l->d_in % VECTOR == 0 &&
           a->d_head <= MAX_D_HEAD && a->d_head % CLUSTER == 0 && a->kv_stride % 4 == 0 &&
           all % 16 == 0;
}

template <int parts, bool is_bf16>
static void launch(const krn_stream *s, const krn_attention_args *a)
{
    krn_cuda_launch<projected_attention_kernel<parts, is_bf16>>(
        s, dim3(a->n_rows * CLUSTER, a->n_heads), THREADS, a->project->d_in * sizeof(float),
        *a->project, *a);
}

moe_status krn_cuda_projected_attention(krn_stream *s, const krn_attention_args *a, moe_err *err)
{
    const bool is_bf16 = a->project->w_dtype == MOE_BF16;
    if (a->new_k != NULL) {
        is_bf16 ? launch<3, true>(s, a) : launch<3, false>(s, a);
    } else {
        is_bf16 ? launch<1, true>(s, a) : launch<1, false>(s, a);
    }
    return krn_cuda_launched(err, "attention");
}
