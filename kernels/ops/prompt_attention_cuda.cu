/* prompt_attention_cuda.cu - attention of a prompt's rows, several at a time.
 *
 * One block of 8 warps per (tile of rows, head), a warp for each part of the positions, as in
 * attention_device.cuh; but what a warp loads of 32 positions serves every row of the tile. Keys
 * are loaded by whole lines and handed over in shared memory, so that a lane has a position; a lane
 * then has dims of the values, and the weights lie where the keys were. Every row adds in the order
 * of attention_device.cuh, so its bits are those of a row alone.
 * A tile may hold rows of several sequences: they are taken one sequence after another.
 * Shared memory: about 40 KB. Cost: f32 multiply-adds; reads k and v once per tile and head.
 */
#include "kernels/ops/attention_device.cuh"
#include "kernels/ops/prompt_attention_cuda.h"

enum {
    THREADS = PARTS * WARP,
    KEY_PIECE = 32,            /* dims of keys that lie in shared memory at once */
    KEY_STRIDE = KEY_PIECE + 4 /* so that 8 lanes with a row each use all banks */
};

template <int dims> static constexpr int tile_rows = dims <= 4 ? 8 : 4;

/* Keys of a warp's 32 positions; later the rows' weights of these positions. */
struct warp_space {
    union {
        float key[WARP][KEY_STRIDE];
        float weight[8][WARP];
    };
};

template <int dims> struct tile_space {
    float q[tile_rows<dims>][dims * WARP]; /* zero past d_head */
    union {
        warp_space of[PARTS];
        partials<dims> seen[tile_rows<dims>]; /* at the end */
    };
};

/* The rows [first, end) of a tile, which are of one sequence. */
struct row_run {
    uint32_t first, end;
    uint32_t n_visible;
    size_t first_key; /* row of the cache that position 0 is in */
};

static __device__ __forceinline__ row_run run_from(const krn_attention_args &a, uint32_t t0,
                                                   uint32_t first, uint32_t n_rows)
{
    const int32_t seq = a.row_seq[t0 + first];
    uint32_t end = first + 1;
    while (end < n_rows && a.row_seq[t0 + end] == seq) {
        end++;
    }
    const int32_t len = a.kv_len[seq];
    row_run run = {first, end, len > 0 ? (uint32_t)len : 0, (size_t)a.kv_off[seq]};
    return run;
}

/* Dims first .. first + KEY_PIECE of the keys at j .. j + n, past the end the last again; by one
 * warp. */
static __device__ __forceinline__ void stage_keys(const krn_attention_args &a, const float *keys,
                                                  uint32_t n, uint32_t first, warp_space &mine)
{
    constexpr uint32_t vectors = KEY_PIECE / 4; /* of a position; four positions at a time */
    const uint32_t d = first + lane_id() % vectors * 4;
    float4 loaded[WARP / 4];
#pragma unroll
    for (uint32_t i = 0; i < WARP / 4; i++) {
        const uint32_t position = min(4 * i + lane_id() / vectors, n - 1);
        loaded[i] = d < a.d_head ? *(const float4 *)(keys + (size_t)position * a.kv_stride + d)
                                 : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    __syncwarp(); /* what lay here has been read */
#pragma unroll
    for (uint32_t i = 0; i < WARP / 4; i++) {
        *(float4 *)&mine.key[4 * i + lane_id() / vectors][lane_id() % vectors * 4] = loaded[i];
    }
    __syncwarp();
}

/* score[r] = q_r . k of this lane's position, dims in four interleaved sums (dot_row). */
template <int dims, int rows>
static __device__ __forceinline__ void dot_rows(const krn_attention_args &a, const float *keys,
                                                uint32_t n, const float (&q)[rows][dims * WARP],
                                                warp_space &mine, float (&score)[rows])
{
    float sum[rows][4];
#pragma unroll
    for (int r = 0; r < rows; r++) {
        sum[r][0] = sum[r][1] = sum[r][2] = sum[r][3] = 0.0f;
    }
#pragma unroll 1
    for (uint32_t first = 0; first < a.d_head; first += KEY_PIECE) {
        stage_keys(a, keys, n, first, mine);
#pragma unroll
        for (uint32_t i = 0; i < KEY_PIECE; i += 4) {
            const float4 k = *(const float4 *)&mine.key[lane_id()][i];
#pragma unroll
            for (int r = 0; r < rows; r++) {
                const float4 qv = *(const float4 *)&q[r][first + i];
                sum[r][0] = fmaf(qv.x, k.x, sum[r][0]);
                sum[r][1] = fmaf(qv.y, k.y, sum[r][1]);
                sum[r][2] = fmaf(qv.z, k.z, sum[r][2]);
                sum[r][3] = fmaf(qv.w, k.w, sum[r][3]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < rows; r++) {
        score[r] = (sum[r][0] + sum[r][1]) + (sum[r][2] + sum[r][3]);
    }
}

/* out_r += weight_r * v over the positions at `values`, n of them, for the rows of the run. */
template <int dims, int rows>
static __device__ __forceinline__ void
add_values(const krn_attention_args &a, const float *values, uint32_t n, const row_run &run,
           const warp_space &mine, partial<dims> (&sofar)[rows])
{
    constexpr uint32_t batch = dims <= 2 ? 8 : 4; /* under way at once */
    values += lane_id();
#pragma unroll 1
    for (uint32_t first = 0; first < n; first += batch) {
        float v[batch][dims];
#pragma unroll
        for (uint32_t g = 0; g < batch; g++) { /* past the end: the last again, with weight 0 */
            const float *row = values + (size_t)min(first + g, n - 1) * a.kv_stride;
#pragma unroll
            for (uint32_t i = 0; i < dims; i++) {
                v[g][i] = lane_id() + i * WARP < a.d_head ? row[i * WARP] : 0.0f;
            }
        }
#pragma unroll
        for (uint32_t r = 0; r < rows; r++) {
            if (r < run.first || r >= run.end) {
                continue;
            }
#pragma unroll
            for (uint32_t g = 0; g < batch; g += 4) {
                const float4 weight = *(const float4 *)&mine.weight[r][first + g];
#pragma unroll
                for (uint32_t i = 0; i < dims; i++) {
                    float out = sofar[r].out[i];
                    out = fmaf(weight.x, v[g][i], out);
                    out = fmaf(weight.y, v[g + 1][i], out);
                    out = fmaf(weight.z, v[g + 2][i], out);
                    out = fmaf(weight.w, v[g + 3][i], out);
                    sofar[r].out[i] = out;
                }
            }
        }
    }
}

/* Takes positions j .. j+32 of the run's sequence, those that are visible. */
template <int dims, int rows>
static __device__ __forceinline__ void
take_positions(const krn_attention_args &a, uint32_t t0, uint32_t head, const row_run &run,
               uint32_t j, const float (&q)[rows][dims * WARP], warp_space &mine,
               partial<dims> (&sofar)[rows])
{
    const uint32_t n = min(run.n_visible - j, (uint32_t)WARP);
    const uint32_t position = j + min(lane_id(), n - 1);
    const size_t at = (run.first_key + j) * a.kv_stride + (size_t)head * a.d_head;
    float score[rows];
    dot_rows<dims>(a, a.k + at, n, q, mine, score);
    __syncwarp(); /* the keys have been read: weights take their place */
#pragma unroll
    for (uint32_t r = 0; r < rows; r++) {
        if (r < run.first || r >= run.end) {
            continue;
        }
        partial<dims> &p = sofar[r];
        score[r] +=
            a.rel_bias != NULL ? bias_of(a, head, (int32_t)position - a.row_pos[t0 + r]) : 0.0f;
        const float largest = fmaxf(p.largest, warp_max(score[r]));
        const float shrink = expf(p.largest - largest);
        const float weight = lane_id() < n ? expf(score[r] - largest) : 0.0f;
        p.largest = largest;
        p.sum = p.sum * shrink + weight;
#pragma unroll
        for (uint32_t i = 0; i < dims; i++) {
            p.out[i] *= shrink;
        }
        mine.weight[r][lane_id()] = weight;
    }
    __syncwarp();
    add_values(a, a.v + at, n, run, mine, sofar);
}

template <int dims>
static __global__ void __launch_bounds__(THREADS, 2) prompt_attention_kernel(krn_attention_args a)
{
    constexpr int rows = tile_rows<dims>;
    __shared__ __align__(16) tile_space<dims> space;
    const uint32_t t0 = blockIdx.x * rows, head = blockIdx.y, warp = threadIdx.x / WARP;
    const uint32_t n_rows = min(a.n_rows - t0, (uint32_t)rows);
    partial<dims> sofar[rows];
#pragma unroll
    for (int r = 0; r < rows; r++) {
        sofar[r] = {-CUDART_INF_F, 0.0f, {0.0f}};
    }
    begin_kernel();
    for (uint32_t i = threadIdx.x; i < rows * dims * WARP; i += THREADS) {
        const uint32_t r = min(i / (dims * WARP), n_rows - 1), d = i % (dims * WARP);
        const size_t row = (size_t)(t0 + r) * a.q_stride + (size_t)head * a.d_head;
        space.q[i / (dims * WARP)][d] = d < a.d_head ? a.q[row + d] : 0.0f;
    }
    __syncthreads();
    for (uint32_t first = 0; first < n_rows;) {
        const row_run run = run_from(a, t0, first, n_rows);
        for (uint32_t j = warp * WARP; j < run.n_visible; j += PART_POSITIONS) {
            take_positions<dims>(a, t0, head, run, j, space.q, space.of[warp], sofar);
        }
        first = run.end;
    }
    __syncthreads(); /* nobody reads keys or weights any more */
#pragma unroll
    for (int r = 0; r < rows; r++) {
        put(space.seen[r], warp, sofar[r]);
    }
    __syncthreads();
    for (uint32_t i = warp; i < n_rows * dims; i += PARTS) {
        const uint32_t r = i / dims, d = i % dims * WARP + lane_id();
        const float mean = merge(space.seen[r], d);
        if (d < a.d_head) {
            a.out[((size_t)(t0 + r) * a.n_heads + head) * a.d_head + d] =
                a.kv_len[a.row_seq[t0 + r]] > 0 ? mean : 0.0f;
        }
    }
}

template <int dims> static void launch(const krn_stream *s, const krn_attention_args *a)
{
    const uint32_t rows = tile_rows<dims>;
    const dim3 grid((a->n_rows + rows - 1) / rows, a->n_heads);
    krn_cuda_launch<prompt_attention_kernel<dims>>(s, grid, THREADS, 0, *a);
}

moe_status krn_cuda_prompt_attention(krn_stream *s, const krn_attention_args *a, moe_err *err)
{
    if (a->d_head <= WARP) {
        launch<1>(s, a);
    } else if (a->d_head <= 2 * WARP) {
        launch<2>(s, a);
    } else if (a->d_head <= 4 * WARP) {
        launch<4>(s, a);
    } else {
        launch<KRN_MAX_D_HEAD / WARP>(s, a);
    }
    return krn_cuda_launched(err, "attention");
}
