/* attention_cuda.cu - softmax attention of each row over its own sequence's cache.
 *
 * One block of 4 warps per (row, head). Warp w takes positions 4w + 16n + (0..3), n rising: a lane
 * holds d_head / 32 dims of the query, four scores are summed over the warp at once, and a running
 * maximum, sum and weighted values are carried. At the end the four warps are merged in order.
 * The split depends on positions alone, so a row's result depends neither on other rows nor on
 * whether this is a prefill or a decode step.
 * Shared memory: 4 * (d_head + 2) floats, 4.1 KB at most. Cost: reads k and v once per row and
 * head, from the second-level cache when several rows share a sequence.
 */
#include "kernels/backend/device_math.cuh"

enum { WARPS = 4, THREADS = WARPS * WARP, GROUP = 4 /* positions a warp takes at once */ };

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

/* What a warp has seen so far: out = sum of exp(score - largest) * v, over lanes and `dims`. */
template <int dims> struct partial {
    float largest, sum, out[dims];
};

/* Takes positions j .. j+GROUP, those below n_visible. */
template <int dims>
static __device__ __forceinline__ void take_group(const krn_attention_args &a, uint32_t t,
                                                  uint32_t head, uint32_t j, uint32_t n_visible,
                                                  const float (&q)[dims], partial<dims> &p)
{
    const size_t width = (size_t)a.n_heads * a.d_head;
    const size_t row0 = (size_t)a.kv_off[a.row_seq[t]];
    const size_t at_head = (size_t)head * a.d_head;
    float score[GROUP];
#pragma unroll
    for (uint32_t g = 0; g < GROUP; g++) { /* past the end: the last position again, not counted */
        const float *k = a.k + (row0 + min(j + g, n_visible - 1)) * width + at_head;
        score[g] = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < dims; i++) {
            const uint32_t d = lane_id() + i * WARP;
            score[g] = fmaf(q[i], d < a.d_head ? __ldg(k + d) : 0.0f, score[g]);
        }
    }
    float largest = p.largest;
#pragma unroll
    for (uint32_t g = 0; g < GROUP; g++) {
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
        if (j + g >= n_visible) {
            break; /* the whole warp */
        }
        const float *v = a.v + (row0 + j + g) * width + at_head;
        const float weight = expf(score[g] - largest);
        p.sum += weight;
#pragma unroll
        for (uint32_t i = 0; i < dims; i++) {
            const uint32_t d = lane_id() + i * WARP;
            p.out[i] = fmaf(weight, d < a.d_head ? __ldg(v + d) : 0.0f, p.out[i]);
        }
    }
}

template <int dims>
static __global__ void __launch_bounds__(THREADS) attention_kernel(krn_attention_args a)
{
    __shared__ float largest_of[WARPS], sum_of[WARPS], out_of[WARPS][dims * WARP];
    const uint32_t t = blockIdx.x, head = blockIdx.y, warp = threadIdx.x / WARP;
    const size_t row = (size_t)t * a.n_heads * a.d_head + (size_t)head * a.d_head;
    const uint32_t n_visible = visible_positions(a, t);
    partial<dims> p = {-CUDART_INF_F, 0.0f, {0.0f}};
    float q[dims];
#pragma unroll
    for (uint32_t i = 0; i < dims; i++) { /* q[t, head, :] */
        const uint32_t d = lane_id() + i * WARP;
        q[i] = d < a.d_head ? a.q[row + d] : 0.0f;
    }
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
    for (uint32_t d = threadIdx.x; d < a.d_head; d += THREADS) {
        float out = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            out += weight[w] * out_of[w][d];
        }
        a.out[row + d] = n_visible > 0 ? out / sum : 0.0f;
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
