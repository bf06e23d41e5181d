/* expert_ffn_cuda.cu - the feed-forward of the experts at hand, rows grouped by expert.
 *
 * A wave: stage_wave (one block) reads it once over the bus, marks the rows of failed entries, and
 * leaves a compact list of entries that have rows in the stream's own device memory. All experts at
 * hand: nothing to stage; an expert is met at the place in `order` where its rows begin.
 * Then ffn_kernel runs twice: wi into scratch, wo onto x. Grid: x columns, y experts, z groups of 8
 * rows; y and z stride, because how many experts and rows there are is known on the device only.
 * A warp computes rows x columns outputs like linear_cuda.cu, in the order of device_math.cuh.
 * Cost: a decode step is bound by reading each active expert once.
 */
#include "kernels/backend/device_math.cuh"

enum { WARPS = 8, THREADS = WARPS * WARP };
static const uint32_t GROUP = 8 /* rows */, MAX_GRID_GROUPS = 16;

/* ---- the wave ---- */

typedef struct failed_rows {
    uint32_t n;
    krn_cuda_wave_entry entry[KRN_MAX_WAVE_EXPERTS];
} failed_rows;

/* Appends the entries of those lanes that have `here` set, in lane order. */
static __device__ __forceinline__ void append(bool here, const krn_cuda_wave_entry &mine,
                                              uint32_t &n, krn_cuda_wave_entry *list)
{
    const uint32_t all = __ballot_sync(WHOLE_WARP, here);
    if (here) {
        list[n + __popc(all & ((1u << lane_id()) - 1u))] = mine;
    }
    n += __popc(all);
}

/* One warp; the wave is mapped memory, read once. Entries with rows go to *out or to *failed. */
static __device__ void sort_entries(const krn_expert_ffn_args &a, krn_cuda_wave *out,
                                    failed_rows *failed)
{
    const volatile krn_wave *wave = a.wave;
    const uint32_t n_entries = min(wave->n, (uint32_t)KRN_MAX_WAVE_EXPERTS);
    uint32_t n_out = 0, n_failed = 0;
    for (uint32_t first = 0; first < n_entries; first += WARP) {
        const uint32_t i = first + lane_id();
        krn_cuda_wave_entry mine = {NULL, 0, 0};
        bool has_failed = false;
        if (i < n_entries) {
            const uint32_t expert = (uint32_t)wave->entry[i].expert;
            mine.weights = wave->entry[i].weights;
            has_failed = wave->entry[i].failed != 0;
            if (expert < a.n_experts) {
                mine.first = (uint32_t)a.routing.offsets[expert];
                mine.n = (uint32_t)a.routing.offsets[expert + 1] - mine.first;
            }
        }
        append(mine.n > 0 && !has_failed, mine, n_out, out->entry);
        append(mine.n > 0 && has_failed, mine, n_failed, failed->entry);
    }
    if (lane_id() == 0) {
        out->n = n_out;
        failed->n = n_failed;
    }
}

static __global__ void stage_wave(krn_expert_ffn_args a, krn_cuda_wave *out)
{
    __shared__ failed_rows failed;
    sort_entries(a, out, &failed);
    __syncwarp();
    for (uint32_t f = 0; f < failed.n; f++) {
        const krn_cuda_wave_entry entry = failed.entry[f];
        for (uint32_t i = lane_id(); i < entry.n; i += WARP) {
            a.row_failed[a.routing.order[entry.first + i]] = 1;
        }
    }
}

/* ---- the two matrices ---- */

/* One of the two passes, over rows of `order`: y = act(w x), or y += weight * w x. */
typedef struct ffn_pass {
    const float *x;       /* [row, d_in] */
    float *y;             /* [row, d_out] */
    const float *weights; /* [row]; NULL: the first pass */
    krn_routing routing;
    const krn_cuda_wave *wave;     /* the experts at hand: these, */
    const void *const *weights_of; /* or all of them */
    size_t w_off;                  /* elements from an expert's start to this matrix */
    uint32_t d_in, d_out, act, n_experts;
} ffn_pass;

/* Expert number i of those at hand; n is 0 for a place in the middle of an expert's rows. False
 * past the last. */
static __device__ __forceinline__ bool expert_at(const ffn_pass &p, uint32_t i,
                                                 krn_cuda_wave_entry &out)
{
    if (p.wave != NULL) {
        const bool there = i < p.wave->n;
        out = there ? p.wave->entry[i] : out;
        return there;
    }
    if (i >= (uint32_t)p.routing.offsets[p.n_experts]) {
        return false;
    }
    const uint32_t expert = (uint32_t)p.routing.ids[p.routing.order[i]];
    out.weights = p.weights_of[expert];
    out.first = i;
    out.n =
        (uint32_t)p.routing.offsets[expert] == i ? (uint32_t)p.routing.offsets[expert + 1] - i : 0;
    return true;
}

/* Rows [row0, row0 + n_rows) of an expert, n_rows <= rows, columns from column0. */
template <int rows, int columns, bool is_bf16>
static __device__ __forceinline__ void compute_rows(const ffn_pass &p,
                                                    const krn_cuda_wave_entry &entry, uint32_t row0,
                                                    uint32_t n_rows, uint32_t column0)
{
    const float *x[rows];
    size_t w_at[columns];
    const int32_t *order = p.routing.order + entry.first + row0;
#pragma unroll
    for (uint32_t r = 0; r < rows; r++) { /* past the end: the last row again, not written */
        x[r] = p.x + (size_t)order[min(r, n_rows - 1)] * p.d_in;
    }
#pragma unroll
    for (uint32_t c = 0; c < columns; c++) {
        w_at[c] = p.w_off + (size_t)min(column0 + c, p.d_out - 1) * p.d_in;
    }
    const bool vector = p.d_in % VECTOR == 0 && p.w_off % VECTOR == 0 && is_aligned16(p.x) &&
                        is_aligned16(entry.weights);
    const float sum = warp_tile<rows, columns, is_bf16>(x, entry.weights, w_at, p.d_in, vector);

    constexpr uint32_t lanes_per_sum = WARP / (rows * columns);
    const uint32_t number = lane_id() / lanes_per_sum;
    const uint32_t r = number / columns, column = column0 + number % columns;
    if (lane_id() % lanes_per_sum == 0 && r < n_rows && column < p.d_out) {
        const size_t row = (size_t)order[r];
        float *y = p.y + row * p.d_out + column;
        *y = p.weights == NULL ? activate(p.act, sum) : *y + p.weights[row] * sum;
    }
}

template <int columns, bool is_bf16>
static __global__ void __launch_bounds__(THREADS, 2) ffn_kernel(ffn_pass p)
{
    const uint32_t column0 = (blockIdx.x * WARPS + threadIdx.x / WARP) * columns;
    krn_cuda_wave_entry entry = {NULL, 0, 0};
    if (column0 >= p.d_out) {
        return; /* a whole warp, and there is no block-wide barrier */
    }
    for (uint32_t i = blockIdx.y; expert_at(p, i, entry); i += gridDim.y) {
        for (uint32_t row0 = blockIdx.z * GROUP; row0 < entry.n; row0 += gridDim.z * GROUP) {
            const uint32_t n_rows = min(entry.n - row0, GROUP);
            if (n_rows > 4) {
                compute_rows<8, columns, is_bf16>(p, entry, row0, n_rows, column0);
            } else if (n_rows > 1) {
                compute_rows<4, columns, is_bf16>(p, entry, row0, n_rows, column0);
            } else {
                compute_rows<1, columns, is_bf16>(p, entry, row0, n_rows, column0);
            }
        }
    }
}

/* ---- launching ---- */

static uint32_t ceil_div(uint32_t n, uint32_t by)
{
    return (n + by - 1) / by;
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

template <int columns, bool is_bf16>
static void launch_pass(const krn_stream *s, const ffn_pass *p, uint32_t n_rows, uint32_t n_places)
{
    const dim3 grid(ceil_div(p->d_out, WARPS * columns), n_places,
                    smaller(ceil_div(n_rows, GROUP), MAX_GRID_GROUPS));
    ffn_kernel<columns, is_bf16><<<grid, THREADS, 0, s->handle>>>(*p);
}

static void launch(const krn_stream *s, const krn_expert_ffn_args *a, const ffn_pass *p)
{
    /* At least one row for an expert to count; without a wave, a place for each row. */
    const uint32_t n_places = a->wave != NULL
                                  ? smaller(smaller(a->n_experts, a->n_rows), KRN_MAX_WAVE_EXPERTS)
                                  : a->n_rows;
    const bool few =
        a->n_rows <= GROUP; /* a decode step: more warps rather than more columns each */
    if (a->w_dtype == MOE_BF16) {
        few ? launch_pass<1, true>(s, p, a->n_rows, n_places)
            : launch_pass<4, true>(s, p, a->n_rows, n_places);
    } else {
        few ? launch_pass<1, false>(s, p, a->n_rows, n_places)
            : launch_pass<4, false>(s, p, a->n_rows, n_places);
    }
}

extern "C" moe_status krn_cuda_expert_ffn(krn_stream *s, const krn_expert_ffn_args *a, moe_err *err)
{
    moe_status st = krn_expert_ffn_check(a, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(s->device, err);
    }
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    ffn_pass wi = {};
    wi.x = a->h;
    wi.y = a->scratch;
    wi.routing = a->routing;
    wi.wave = a->wave != NULL ? &s->scratch->wave : NULL;
    wi.weights_of = a->weights_of;
    wi.d_in = a->d_model;
    wi.d_out = a->d_ff;
    wi.act = a->act;
    wi.n_experts = a->n_experts;
    ffn_pass wo = wi;
    wo.x = a->scratch;
    wo.y = a->x;
    wo.weights = a->routing.weights;
    wo.w_off = (size_t)a->d_ff * a->d_model;
    wo.d_in = a->d_ff;
    wo.d_out = a->d_model;
    if (a->wave != NULL) {
        stage_wave<<<1, WARP, 0, s->handle>>>(*a, &s->scratch->wave);
    }
    launch(s, a, &wi);
    launch(s, a, &wo);
    return krn_cuda_launched(err, "expert_ffn");
}
