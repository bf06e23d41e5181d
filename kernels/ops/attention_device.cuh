/* attention_device.cuh - how the `cuda` backend attends, for the kernels of its attention.
 *
 * Positions of one (row, head) are shared out among PARTS warps: part w takes 32w + 256n + (0..31),
 * n rising. For the scores a lane is a position, for the sum of values it is dims l, l + 32, ...;
 * loads of a whole step are under way at once (a decode step waits for memory, little else). A
 * running maximum, sum and weighted values are carried; at the end the parts are merged in order.
 * The split depends on positions alone, so a row's result depends neither on other rows nor on
 * which kernel computed it.
 */
#ifndef KRN_ATTENTION_DEVICE_CUH
#define KRN_ATTENTION_DEVICE_CUH

#include "kernels/backend/device_math.cuh"

enum {
    PARTS = 8,
    PART_POSITIONS = PARTS * WARP,
    PIECE = 64 /* dims of keys that are loaded at once */
};

/* What a block knows of its row before the kernel before has ended: step inputs. */
struct row_place {
    uint32_t t, head, n_visible;
    int32_t pos;
    size_t first; /* row of the cache that position 0 is in */
};

static __device__ __forceinline__ row_place place_of(const krn_attention_args &a, uint32_t t,
                                                     uint32_t head)
{
    const int32_t seq = a.row_seq[t], pos = a.row_pos[t];
    int32_t len = a.kv_len[seq];
    if (a.causal && pos + 1 < len) {
        len = pos + 1;
    }
    row_place p = {t, head, len > 0 ? (uint32_t)len : 0, pos, (size_t)a.kv_off[seq]};
    return p;
}

static __device__ __forceinline__ float bias_of(const krn_attention_args &a, uint32_t head,
                                                int32_t distance)
{
    const int32_t half = (int32_t)a.bias_half;
    const int32_t clamped = min(max(distance, -half), half);
    return a.rel_bias[(size_t)head * (2 * a.bias_half + 1) + (size_t)(clamped + half)];
}

/* Asks for the keys and values of one position, which may lie in the cache already. */
static __device__ __forceinline__ void prefetch_position(const krn_attention_args &a,
                                                         const row_place &p, uint32_t j)
{
    const size_t at = (p.first + j) * a.kv_stride + (size_t)p.head * a.d_head;
    for (uint32_t d = 0; d < a.d_head; d += LINE / sizeof(float)) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(a.k + at + d));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(a.v + at + d));
    }
}

/* The row's own key or value need not have been kept yet where it is read; others lie in the cache.
 */
static __device__ __forceinline__ const float *row_at(const krn_attention_args &a,
                                                      const row_place &p, const float *cache,
                                                      const float *new_rows, uint32_t position)
{
    const size_t at_head = (size_t)p.head * a.d_head;
    return new_rows != NULL && position == (uint32_t)p.pos
               ? new_rows + (size_t)p.t * a.q_stride + at_head
               : cache + (p.first + position) * a.kv_stride + at_head;
}

/* q . k by one lane: dims in four interleaved sums. q is in shared memory, zero past d_head. */
template <bool vector>
static __device__ __forceinline__ float dot_row(const float *q, const float *k, uint32_t d_head)
{
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if constexpr (!vector) {
        for (uint32_t d = 0; d < d_head; d++) {
            sum[d % 4] = fmaf(q[d], k[d], sum[d % 4]);
        }
    } else {
        const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
        for (uint32_t first = 0; first < d_head; first += PIECE) {
            float4 piece[PIECE / 4];
#pragma unroll
            for (uint32_t i = 0; i < PIECE / 4; i++) {
                const uint32_t d = first + 4 * i;
                piece[i] = d < d_head ? *(const float4 *)(k + d) : zero;
            }
#pragma unroll
            for (uint32_t i = 0; i < PIECE / 4; i++) {
                const float4 qv = *(const float4 *)(q + first + 4 * i);
                sum[0] = fmaf(qv.x, piece[i].x, sum[0]);
                sum[1] = fmaf(qv.y, piece[i].y, sum[1]);
                sum[2] = fmaf(qv.z, piece[i].z, sum[2]);
                sum[3] = fmaf(qv.w, piece[i].w, sum[3]);
            }
        }
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* What a warp has seen so far: out = sum of exp(score - largest) * v, over lanes and `dims`; sum is
 * a lane's own part. */
template <int dims> struct partial {
    float largest, sum, out[dims];
};

/* out += weight * v over positions j .. j + n, n <= 32; lane l holds the weight of position j + l.
 */
template <int dims>
static __device__ __forceinline__ void add_values(const krn_attention_args &a, const row_place &p,
                                                  uint32_t j, uint32_t n, float weight,
                                                  float (&out)[dims])
{
    constexpr uint32_t batch = dims <= 2 ? 16 : 32 / dims; /* under way at once */
    const float *rows = row_at(a, p, a.v, NULL, j) + lane_id();
    const float *own = row_at(a, p, a.v, a.new_v, (uint32_t)p.pos) + lane_id();
    const uint32_t own_at = (uint32_t)p.pos - j; /* beyond n where it is another warp's */
#pragma unroll 1
    for (uint32_t first = 0; first < n; first += batch) {
        float v[batch][dims];
#pragma unroll
        for (uint32_t g = 0; g < batch; g++) { /* past the end: the last again, with weight 0 */
            const uint32_t at = min(first + g, n - 1);
            const float *row = at == own_at ? own : rows + at * a.kv_stride;
#pragma unroll
            for (uint32_t i = 0; i < dims; i++) {
                v[g][i] = lane_id() + i * WARP < a.d_head ? row[i * WARP] : 0.0f;
            }
        }
#pragma unroll
        for (uint32_t g = 0; g < batch; g++) {
            const float its_weight = __shfl_sync(WHOLE_WARP, weight, first + g);
#pragma unroll
            for (uint32_t i = 0; i < dims; i++) {
                out[i] = fmaf(its_weight, v[g][i], out[i]);
            }
        }
    }
}

/* Takes positions j .. j+32, those below n_visible. */
template <int dims, bool vector>
static __device__ __forceinline__ void take_positions(const krn_attention_args &a,
                                                      const row_place &p, uint32_t j,
                                                      const float *q, partial<dims> &sofar)
{
    const uint32_t n = min(p.n_visible - j, (uint32_t)WARP);
    const uint32_t position = j + min(lane_id(), n - 1);
    const float bias = a.rel_bias != NULL ? bias_of(a, p.head, (int32_t)position - p.pos) : 0.0f;
    const float score = dot_row<vector>(q, row_at(a, p, a.k, a.new_k, position), a.d_head) + bias;
    const float largest = fmaxf(sofar.largest, warp_max(score));
    const float shrink = expf(sofar.largest - largest);
    const float weight = lane_id() < n ? expf(score - largest) : 0.0f;
    sofar.largest = largest;
    sofar.sum = sofar.sum * shrink + weight;
#pragma unroll
    for (uint32_t i = 0; i < dims; i++) {
        sofar.out[i] *= shrink;
    }
    add_values<dims>(a, p, j, n, weight, sofar.out);
}

/* What each part has seen, side by side in shared memory. */
template <int dims> struct partials {
    float largest_of[PARTS], sum_of[PARTS], out_of[PARTS][dims * WARP];
};

/* By the warp that has `part`. */
template <int dims>
static __device__ __forceinline__ void put(partials<dims> &all, uint32_t part, partial<dims> p)
{
    p.sum = warp_sum(p.sum);
    if (lane_id() == 0) {
        all.largest_of[part] = p.largest;
        all.sum_of[part] = p.sum;
    }
#pragma unroll
    for (uint32_t i = 0; i < dims; i++) {
        all.out_of[part][lane_id() + i * WARP] = p.out[i];
    }
}

/* The weighted mean of values, dim d; by whole warps. */
template <int dims>
static __device__ __forceinline__ float merge(const partials<dims> &all, uint32_t d)
{
    const uint32_t from = lane_id() % PARTS; /* lane l looks at part l % 8 */
    const float its_largest = all.largest_of[from], largest = warp_max(its_largest);
    /* a part without positions has nothing to add */
    const float its_weight = all.sum_of[from] != 0.0f ? expf(its_largest - largest) : 0.0f;
    const float its_sum = its_weight * all.sum_of[from];
    float sum = 0.0f, out = 0.0f;
#pragma unroll
    for (int w = 0; w < PARTS; w++) {
        sum += __shfl_sync(WHOLE_WARP, its_sum, w);
        out += __shfl_sync(WHOLE_WARP, its_weight, w) * all.out_of[w][d];
    }
    return out / sum;
}

#endif
