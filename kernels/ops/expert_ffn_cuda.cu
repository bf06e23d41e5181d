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
static constexpr uint32_t GROUP = 8 /* rows */, MAX_PLACES = 64, MAX_GRID_GROUPS = 4;

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
    begin_kernel();
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
template <bool single_row>
static __device__ __forceinline__ bool expert_at(const ffn_pass &p, uint32_t i,
                                                 krn_cuda_wave_entry &out)
{
    if (p.wave != NULL) {
        const uint32_t n = p.wave->n;
        out = p.wave->entry[min(i, KRN_MAX_WAVE_EXPERTS - 1u)];
        return i < n;
    }
    if (single_row) { /* fewer steps from load to load */
        const int32_t only = p.routing.ids[0];
        out.weights = only >= 0 ? p.weights_of[only] : NULL;
        out.n = only >= 0 ? 1 : 0;
        return i == 0;
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
template <int rows, int columns, bool is_bf16, bool single_row, bool vector>
static __device__ __forceinline__ void compute_rows(const ffn_pass &p,
                                                    const krn_cuda_wave_entry &entry, uint32_t row0,
                                                    uint32_t n_rows, uint32_t column0)
{
    const float *x[rows];
    size_t w_at[columns];
#pragma unroll
    for (uint32_t r = 0; r < rows; r++) { /* past the end: the last row again, not written */
        const uint32_t at = entry.first + row0 + min(r, n_rows - 1);
        x[r] = p.x + (single_row ? 0 : (size_t)p.routing.order[at]) * p.d_in;
    }
#pragma unroll
    for (uint32_t c = 0; c < columns; c++) {
        w_at[c] = p.w_off + (size_t)min(column0 + c, p.d_out - 1) * p.d_in;
    }
    if (rows == 1 && p.weights == NULL) { /* as much of the second matrix is asked for */
        constexpr size_t element = is_bf16 ? 2 : 4;
        const size_t second = (size_t)p.d_out * p.d_in + (size_t)column0 * p.d_in;
        warp_prefetch((const char *)entry.weights + second * element, columns * p.d_in * element);
    }
    constexpr uint32_t lanes_per_sum = WARP / (rows * columns);
    const uint32_t number = lane_id() / lanes_per_sum;
    const uint32_t mine = number / columns, column = column0 + number % columns;
    const bool writes = lane_id() % lanes_per_sum == 0 && mine < n_rows && column < p.d_out;
    const size_t y_row =
        single_row ? 0 : (size_t)p.routing.order[entry.first + row0 + min(mine, n_rows - 1)];
    float *y = p.y + y_row * p.d_out + column;
    const bool adds = p.weights != NULL && writes; /* these are under way while others come */
    const float before = adds ? *y : 0.0f, weight = adds ? p.weights[y_row] : 0.0f;
    const float sum = warp_tile<rows, columns, is_bf16, vector>(x, entry.weights, w_at, p.d_in);
    if (writes) {
        *y = p.weights == NULL ? activate(p.act, sum) : before + weight * sum;
    }
}

/* Kinds of kernels, each with as little code as will do. */
enum ffn_kind {
    ONE_ROW,   /* the step has one row: more blocks fit a multiprocessor */
    FEW_ROWS,  /* one column a warp */
    MANY_ROWS, /* four columns a warp */
    UNALIGNED  /* rows that are no whole vectors */
};

template <ffn_kind kind, bool is_bf16>
static __global__ void __launch_bounds__(THREADS, kind == ONE_ROW ? 4 : 2) ffn_kernel(ffn_pass p)
{
    constexpr bool single_row = kind == ONE_ROW, vector = kind != UNALIGNED;
    constexpr int columns = kind == MANY_ROWS ? 4 : 1, rows = single_row ? 1 : GROUP;
    const uint32_t column0 = (blockIdx.x * WARPS + threadIdx.x / WARP) * columns;
    krn_cuda_wave_entry entry = {NULL, 0, 0};
    begin_kernel();
    if (column0 >= p.d_out) {
        return; /* a whole warp, and there is no block-wide barrier */
    }
    for (uint32_t i = blockIdx.y; expert_at<single_row>(p, i, entry); i += gridDim.y) {
        for (uint32_t row0 = blockIdx.z * rows; row0 < entry.n; row0 += gridDim.z * rows) {
            const uint32_t n_rows = min(entry.n - row0, (uint32_t)rows);
            if (rows > 1 && n_rows == 1) {
                compute_rows<1, columns, is_bf16, single_row, vector>(p, entry, row0, 1, column0);
            } else {
                compute_rows<rows, columns, is_bf16, single_row, vector>(p, entry, row0, n_rows,
                                                                         column0);
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

template <ffn_kind kind, bool is_bf16>
static void launch_kind(const krn_stream *s, const ffn_pass *p, uint32_t n_rows, uint32_t n_places)
{
    const dim3 grid(ceil_div(p->d_out, WARPS * (kind == MANY_ROWS ? 4 : 1)), n_places,
                    smaller(ceil_div(n_rows, GROUP), MAX_GRID_GROUPS));
    krn_cuda_launch<ffn_kernel<kind, is_bf16>>(s, grid, THREADS, 0, *p);
}

/* Cells are aligned; the second matrix is if the first is whole vectors. */
template <bool is_bf16>
static void launch_rows(const krn_stream *s, const ffn_pass *p, uint32_t n_rows, uint32_t n_places)
{
    if (p->d_in % VECTOR != 0 || p->w_off % VECTOR != 0 || (uintptr_t)p->x % 16 != 0) {
        launch_kind<UNALIGNED, is_bf16>(s, p, n_rows, n_places);
    } else if (n_rows == 1) {
        launch_kind<ONE_ROW, is_bf16>(s, p, n_rows, 1);
    } else if (n_rows <= GROUP) {
        launch_kind<FEW_ROWS, is_bf16>(s, p, n_rows, n_places);
    } else {
        launch_kind<MANY_ROWS, is_bf16>(s, p, n_rows, n_places);
    }
}

static void launch(const krn_stream *s, const krn_expert_ffn_args *a, const ffn_pass *p)
{
    /* At least one row for an expert to count; without a wave, a place for each row. What does not
     * fit the grid is met by striding: blocks that find nothing to do cost, too. */
    const uint32_t bound = a->wave != NULL && a->max_experts > 0 ? a->max_experts : a->n_rows;
    const uint32_t n_places = smaller(smaller(bound, a->n_rows), MAX_PLACES);
    if (a->w_dtype == MOE_BF16) {
        launch_rows<true>(s, p, a->n_rows, n_places);
    } else {
        launch_rows<false>(s, p, a->n_rows, n_places);
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
        krn_cuda_launch<stage_wave>(s, 1, WARP, 0, *a, &s->scratch->wave);
    }
    launch(s, a, &wi);
    launch(s, a, &wo);
    return krn_cuda_launched(err, "expert_ffn");
}
