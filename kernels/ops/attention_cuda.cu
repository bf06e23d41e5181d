/* attention_cuda.cu - softmax attention of each row over its own sequence's cache.
 *
 * One block of 16 warps per (row, head). Warp w takes positions 8w + 128n + (0..7), n rising
 * (groups of fewer for d_head over 64): a lane holds d_head / 32 dims of the query, keys and values
 * of a group are under way at once (a decode step waits for memory, little else), and a running
 * maximum, sum and weighted values are carried. At the end the warps are merged in order. The split
 * depends on positions alone, so a row's result depends neither on other rows nor on whether this
 * is a prefill or a decode step. Shared memory: 16 * (d_head + 2) floats, 17 KB at most. Cost:
 * reads k and v once per row and head, from the second-level cache when several rows share a
 * sequence.
 */
#include "kernels/backend/device_math.cuh"

enum { WARPS = 16, THREADS = WARPS * WARP };

/* Positions a warp takes at once: as many as fit the registers. */
template <int dims> struct group {
    static constexpr uint32_t size = dims <= 2 ? 8 : 16 / dims;
};

static __device__ __forceinline__ uint32_t visible_positions(const krn_attention_args &a,
                                                             uint32_t t)
{
    int32_t len = a.kv_len[a.row_seq[t]];
    if (a.causal && a.row_pos[t] + 1 < len) {
        len = a.row_pos[t] + 1;
    }
    return len > 0 ? (uint32_t)len : 0;
}

static __device__ __forceinline__ float bias_of(const krn_attention_args &a, uint32_t head,
                                                int32_t distance)
{
    const int32_t half = (int32_t)a.bias_half;
    const int32_t clamped = min(max(distance, -half), half);
    return a.rel_bias[(size_t)head * (2 * a.bias_half + 1) + (size_t)(clamped + half)];
}

/* Row t's own key and value of this head go where the cache keeps them. */
static __device__ __forceinline__ void keep_new(const krn_attention_args &a, uint32_t t,
                                                uint32_t head)
{
    const size_t at_head = (size_t)head * a.d_head, from = (size_t)t * a.q_stride + at_head;
    const size_t to = (size_t)(a.kv_off[a.row_seq[t]] + a.row_pos[t]) * a.kv_stride + at_head;
    for (uint32_t d = threadIdx.x; d < a.d_head; d += THREADS) {
        a.k[to + d] = a.new_k[from + d];
        a.v[to + d] = a.new_v[from + d];
    }
    __syncthreads();
}

/* What a warp has seen so far: out = sum of exp(score - largest) * v, over lanes and `dims`. */
template <int dims> struct partial {
    float largest, sum, out[dims];
};

/* A group's positions from j; past the end: the last position again. */
template <int dims>
static __device__ __forceinline__ void load_group(const krn_attention_args &a, const float *rows,
                                                  size_t row0, uint32_t j, uint32_t n_visible,
                                                  float (&out)[group<dims>::size][dims])
{
#pragma unroll
    for (uint32_t g = 0; g < group<dims>::size; g++) {
        const float *at = rows + (row0 + min(j + g, n_visible - 1)) * a.kv_stride;
#pragma unroll
        for (uint32_t i = 0; i < dims; i++) {
            const uint32_t d = lane_id() + i * WARP;
            out[g][i] = d < a.d_head ? at[d] : 0.0f;
        }
    }
}

/* Takes a group's positions from j, those below n_visible. */
template <int dims>
static __device__ __forceinline__ void take_group(const krn_attention_args &a, uint32_t t,
                                                  uint32_t head, uint32_t j, uint32_t n_visible,
                                                  const float (&q)[dims], partial<dims> &p)
{
    const size_t row0 = (size_t)a.kv_off[a.row_seq[t]], at_head = (size_t)head * a.d_head;
    constexpr uint32_t GROUP = group<dims>::size;
    float k[GROUP][dims], v[GROUP][dims], score[GROUP];
    load_group<dims>(a, a.k + at_head, row0, j, n_visible, k);
    load_group<dims>(a, a.v + at_head, row0, j, n_visible, v);
    float largest = p.largest;
#pragma unroll
    for (uint32_t g = 0; g < GROUP; g++) {
        score[g] = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < dims; i++) {
            score[g] = fmaf(q[i], k[g][i], score[g]);
        }
        score[g] = warp_sum(score[g]);
        if (a.rel_bias != NULL) {
            score[g] += bias_of(a, head, (int32_t)(j + g) - a.row_pos[t]);
        }
        largest = j + g < n_visible ? fmaxf(largest, score[g]) : largest;
    }
    const float shrink = expf(p.largest - largest);
    p.largest = largest;
    p.sum *= shrink;
#pragma unroll
    for (uint32_t i = 0; i < dims; i++) {
        p.out[i] *= shrink;
    }
#pragma unroll
    for (uint32_t g = 0; g < GROUP; g++) {
        const float weight = j + g < n_visible ? expf(score[g] - largest) : 0.0f;
        p.sum += weight;
#pragma unroll
        for (uint32_t i = 0; i < dims; i++) {
            p.out[i] = fmaf(weight, v[g][i], p.out[i]);
        }
    }
}

template <int dims>
static __global__ void __launch_bounds__(THREADS) attention_kernel(krn_attention_args a)
{
    __shared__ float largest_of[WARPS], sum_of[WARPS], out_of[WARPS][dims * WARP];
    const uint32_t t = blockIdx.x, head = blockIdx.y, warp = threadIdx.x / WARP;
    const uint32_t n_visible = visible_positions(a, t);
    partial<dims> p = {-CUDART_INF_F, 0.0f, {0.0f}};
    float q[dims];
    if (a.new_k != NULL) {
        keep_new(a, t, head);
    }
#pragma unroll
    for (uint32_t i = 0; i < dims; i++) { /* q[t, head, :] */
        const uint32_t d = lane_id() + i * WARP;
        q[i] = d < a.d_head ? a.q[(size_t)t * a.q_stride + (size_t)head * a.d_head + d] : 0.0f;
    }
    constexpr uint32_t GROUP = group<dims>::size;
    for (uint32_t j = warp * GROUP; j < n_visible; j += WARPS * GROUP) {
        take_group<dims>(a, t, head, j, n_visible, q, p);
    }
    if (lane_id() == 0) {
        largest_of[warp] = p.largest;
        sum_of[warp] = p.sum;
    }
#pragma unroll
    for (uint32_t i = 0; i < dims; i++) {
        out_of[warp][lane_id() + i * WARP] = p.out[i];
    }
    __syncthreads();
    float largest = -CUDART_INF_F, sum = 0.0f;
    for (int w = 0; w < WARPS; w++) {
        largest = fmaxf(largest, largest_of[w]);
    }
    float weight[WARPS];
#pragma unroll
    for (int w = 0; w < WARPS; w++) { /* a warp without positions has nothing to add */
        weight[w] = sum_of[w] != 0.0f ? expf(largest_of[w] - largest) : 0.0f;
        sum += weight[w] * sum_of[w];
    }
    float *to = a.out + ((size_t)t * a.n_heads + head) * a.d_head;
    for (uint32_t d = threadIdx.x; d < a.d_head; d += THREADS) {
        float out = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            out += weight[w] * out_of[w][d];
        }
        to[d] = n_visible > 0 ? out / sum : 0.0f;
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
    const dim3 grid(a->n_rows, a->n_heads);
    if (a->d_head <= WARP) {
        attention_kernel<1><<<grid, THREADS, 0, s->handle>>>(*a);
    } else if (a->d_head <= 2 * WARP) {
        attention_kernel<2><<<grid, THREADS, 0, s->handle>>>(*a);
    } else if (a->d_head <= 4 * WARP) {
        attention_kernel<4><<<grid, THREADS, 0, s->handle>>>(*a);
    } else {
        attention_kernel<KRN_MAX_D_HEAD / WARP><<<grid, THREADS, 0, s->handle>>>(*a);
    }
    return krn_cuda_launched(err, "attention");
}
