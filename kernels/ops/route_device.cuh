/* route_device.cuh - what happens at a gate position, as device functions: choose experts, sort
 * rows by them, tell the host. gate_topk, dispatch and publish are these alone, route is all in
 * one.
 */
#ifndef KRN_ROUTE_DEVICE_CUH
#define KRN_ROUTE_DEVICE_CUH

#include "kernels/backend/device_math.cuh"

/* ---- choosing (one warp) ---- */

struct choice {
    float p;
    uint32_t expert;
};

static __device__ __forceinline__ choice better(choice a, choice b)
{
    return b.p > a.p || (b.p == a.p && b.expert < a.expert) ? b : a;
}

static __device__ __forceinline__ choice warp_best(choice c)
{
#pragma unroll
    for (int distance = WARP / 2; distance >= 1; distance /= 2) {
        choice other;
        other.p = __shfl_xor_sync(WHOLE_WARP, c.p, distance);
        other.expert = __shfl_xor_sync(WHOLE_WARP, c.expert, distance);
        c = better(c, other);
    }
    return c;
}

/* exp(logit - largest) of expert lane + 32 i, -1 where there is no expert; returns their sum.
 * volatile: other blocks may have written the logits. */
template <int per_lane>
static __device__ __forceinline__ float exponentials(const volatile float *logit,
                                                     uint32_t n_experts, float (&p)[per_lane])
{
    float largest = -CUDART_INF_F, sum = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < per_lane; i++) {
        const uint32_t e = lane_id() + i * WARP;
        p[i] = e < n_experts ? logit[e] : -CUDART_INF_F;
        largest = fmaxf(largest, p[i]);
    }
    largest = warp_max(largest);
#pragma unroll
    for (uint32_t i = 0; i < per_lane; i++) {
        const uint32_t e = lane_id() + i * WARP;
        p[i] = e < n_experts ? expf(p[i] - largest) : -1.0f;
        sum += e < n_experts ? p[i] : 0.0f;
    }
    return warp_sum(sum);
}

/* Row t's top_k. One total order (exponential, then lower expert): no tie depends on lanes. */
template <int per_lane>
static __device__ __forceinline__ void choose_of(const krn_gate_topk_args &a, uint32_t t,
                                                 const volatile float *logit)
{
    float p[per_lane];
    const float sum = exponentials<per_lane>(logit, a.n_experts, p);
    const bool is_number = isfinite(sum);
#pragma unroll 1
    for (uint32_t k = 0; k < a.top_k; k++) {
        choice best = {-1.0f, KRN_MAX_EXPERTS};
#pragma unroll
        for (uint32_t i = 0; i < per_lane; i++) {
            const choice mine = {p[i], lane_id() + i * WARP};
            best = better(best, mine);
        }
        best = warp_best(best);
#pragma unroll
        for (uint32_t i = 0; i < per_lane; i++) { /* chosen once */
            p[i] = best.expert == lane_id() + i * WARP ? -1.0f : p[i];
        }
        if (lane_id() == 0) {
            const size_t pair = (size_t)t * a.top_k + k;
            a.out.ids[pair] = (int32_t)(is_number ? best.expert : k);
            a.out.weights[pair] = is_number ? best.p / sum : CUDART_NAN_F;
        }
    }
}

static __device__ __forceinline__ void choose_experts(const krn_gate_topk_args &a, uint32_t t,
                                                      const volatile float *logit)
{
    if (a.n_experts <= 4 * WARP) { /* as little code as will do: device_math.cuh, loads */
        choose_of<4>(a, t, logit);
    } else {
        choose_of<KRN_MAX_EXPERTS / WARP>(a, t, logit);
    }
}

/* ---- sorting (one block of KRN_MAX_EXPERTS threads) ---- */

/* Thread e owns expert e: it walks all pairs in row order, so counting, capacity and placing are
 * each in order without atomics. Pairs come through shared memory, TILE at a time, where all
 * threads read the same word (a broadcast). */
enum { SORT_THREADS = KRN_MAX_EXPERTS, TILE = 1024 };

struct sort_memory {
    int32_t tile[TILE];
    int32_t warp_total[SORT_THREADS / WARP];
};

/* ids of pairs [first, first + TILE) into tile; -1 past the end. */
static __device__ void load_tile(const krn_dispatch_args &a, uint32_t first, uint32_t n_pairs,
                                 int32_t *tile)
{
    __syncthreads(); /* everyone is done with the tile before */
    for (uint32_t i = threadIdx.x; i < TILE && first + i < n_pairs; i += SORT_THREADS) {
        tile[i] = a.routing.ids[first + i];
    }
    __syncthreads();
}

/* How many pairs this thread's expert keeps; marks those over capacity. */
static __device__ int32_t count_pairs(const krn_dispatch_args &a, uint32_t n_pairs, int32_t *tile)
{
    const int32_t expert = (int32_t)threadIdx.x;
    int32_t n = 0;
    for (uint32_t first = 0; first < n_pairs; first += TILE) {
        load_tile(a, first, n_pairs, tile);
        for (uint32_t i = 0; i < TILE && first + i < n_pairs; i++) {
            if (tile[i] != expert) {
                continue;
            }
            if (a.capacity > 0) { /* column `expert` of scratch is this thread's alone */
                const size_t seq = (size_t)a.row_seq[(first + i) / a.top_k];
                int32_t *taken = &a.scratch[seq * a.n_experts + (size_t)expert];
                if ((uint32_t)*taken >= a.capacity) {
                    a.routing.ids[first + i] = -1;
                    continue;
                }
                (*taken)++;
            }
            n++;
        }
    }
    return n;
}

/* Sum of v over the threads before this one. */
static __device__ int32_t sum_before(int32_t v, int32_t *warp_total)
{
    int32_t sum = v;
#pragma unroll
    for (uint32_t distance = 1; distance < WARP; distance *= 2) {
        const int32_t other = __shfl_up_sync(WHOLE_WARP, sum, distance);
        sum += lane_id() >= distance ? other : 0;
    }
    if (lane_id() == WARP - 1) {
        warp_total[threadIdx.x / WARP] = sum;
    }
    __syncthreads();
    for (uint32_t w = 0; w < threadIdx.x / WARP; w++) {
        sum += warp_total[w];
    }
    return sum - v;
}

/* Few pairs and no capacity: every place is a count of smaller ids, without a scan. */
static __device__ void sort_few_pairs(const krn_dispatch_args &a, uint32_t n_pairs, int32_t *tile)
{
    const int32_t expert = (int32_t)threadIdx.x;
    load_tile(a, 0, n_pairs, tile);
    int32_t before = 0, mine = expert < (int32_t)n_pairs ? tile[expert] : -1, place = 0;
    for (uint32_t i = 0; i < n_pairs; i++) {
        before += tile[i] >= 0 && tile[i] < expert;
        place += tile[i] >= 0 && (tile[i] < mine || (tile[i] == mine && (int32_t)i < expert));
    }
    if (threadIdx.x < a.n_experts) {
        a.routing.offsets[threadIdx.x] = before;
    }
    if (threadIdx.x == a.n_experts - 1) { /* its own pairs, too */
        for (uint32_t i = 0; i < n_pairs; i++) {
            before += tile[i] == expert;
        }
        a.routing.offsets[a.n_experts] = before;
    }
    if (mine >= 0) {
        a.routing.order[place] = expert; /* this thread's pair */
    }
}

static __device__ void sort_pairs(const krn_dispatch_args &a, sort_memory &shared)
{
    const uint32_t n_pairs = a.n_rows * a.top_k, expert = threadIdx.x;
    if (n_pairs <= WARP && a.capacity == 0) {
        sort_few_pairs(a, n_pairs, shared.tile);
        return;
    }
    if (a.capacity > 0) {
        for (uint32_t i = threadIdx.x; i < a.n_seqs * a.n_experts; i += SORT_THREADS) {
            a.scratch[i] = 0;
        }
        __syncthreads();
    }
    const int32_t n = count_pairs(a, n_pairs, shared.tile); /* 0 in threads past the last expert */
    int32_t next = sum_before(n, shared.warp_total);
    if (expert < a.n_experts) {
        a.routing.offsets[expert] = next;
    }
    if (expert == a.n_experts - 1) {
        a.routing.offsets[a.n_experts] = next + n;
    }
    for (uint32_t first = 0; first < n_pairs; first += TILE) {
        load_tile(a, first, n_pairs, shared.tile); /* without those over capacity */
        for (uint32_t i = 0; i < TILE && first + i < n_pairs; i++) {
            if (shared.tile[i] == (int32_t)expert) {
                a.routing.order[next++] = (int32_t)(first + i);
            }
        }
    }
}

/* ---- telling the host (one warp) ---- */

/* Experts are listed 32 at a time by ballot, in rising order. */
static __device__ uint32_t list_experts(const krn_publish_args &a, uint16_t *expert)
{
    uint32_t n = 0;
    for (uint32_t first = 0; first < a.n_experts; first += 4 * WARP) {
        bool active[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) { /* all under way before anything is written */
            const uint32_t e = first + i * WARP + lane_id();
            active[i] = e < a.n_experts && (a.all_experts || a.offsets[e] < a.offsets[e + 1]);
        }
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t all = __ballot_sync(WHOLE_WARP, active[i]);
            if (active[i]) {
                expert[n + __popc(all & ((1u << lane_id()) - 1u))] =
                    (uint16_t)(first + i * WARP + lane_id());
            }
            n += __popc(all);
        }
    }
    return n;
}

static __device__ __forceinline__ int64_t host_time_ns(const int64_t *offset_ns)
{
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return (int64_t)ns + *offset_ns;
}

/* Every lane fences its own writes for the whole system before lane 0 writes seq: whoever sees seq
 * sees the payload. */
static __device__ void write_mail(const krn_publish_args &a, const int64_t *offset_ns)
{
    const uint32_t seq = *a.counter + 1;
    krn_mail *mail = &a.ring[seq & (a.depth - 1)];
    uint32_t n = 0;
    if (a.kind == KRN_MAIL_ROUTED || a.kind == KRN_MAIL_GUESSED) {
        n = list_experts(a, mail->expert);
    }
    if (lane_id() == 0) {
        mail->kind = a.kind;
        mail->block = a.block;
        mail->wave = a.wave;
        mail->time_ns = host_time_ns(offset_ns);
        mail->n = n;
    }
    __threadfence_system();
    __syncwarp(); /* every lane has read the counter and fenced its part */
    if (lane_id() == 0) {
        *a.counter = seq;
        *(volatile uint32_t *)&mail->seq = seq; /* pairs with the reader's acquire */
    }
    __syncwarp(); /* a second mail reads the counter */
}

#endif
