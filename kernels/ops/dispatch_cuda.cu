/* dispatch_cuda.cu - sorts (row, k) pairs by expert, stably, after applying expert capacity.
 *
 * One block. Thread e owns expert e: it walks all pairs in row order, so counting, capacity and
 * placing are each in order without atomics. Pairs come through shared memory, TILE at a time,
 * where all threads read the same word (a broadcast). Shared memory: 6 KB. Cost: grows with pairs,
 * a few us up to a thousand; a decode step has few.
 */
#include "kernels/backend/device_math.cuh"

enum { THREADS = KRN_MAX_EXPERTS, TILE = 1024 };

/* ids of pairs [first, first + TILE) into tile; -1 past the end. */
static __device__ void load_tile(const krn_dispatch_args &a, uint32_t first, uint32_t n_pairs,
                                 int32_t *tile)
{
    __syncthreads(); /* everyone is done with the tile before */
    for (uint32_t i = threadIdx.x; i < TILE; i += THREADS) {
        tile[i] = first + i < n_pairs ? a.routing.ids[first + i] : -1;
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
static __device__ int32_t sum_before(int32_t v, int32_t *shared)
{
    shared[threadIdx.x] = v;
    __syncthreads();
    for (uint32_t distance = 1; distance < THREADS; distance *= 2) {
        const int32_t other = threadIdx.x >= distance ? shared[threadIdx.x - distance] : 0;
        __syncthreads();
        shared[threadIdx.x] += other;
        __syncthreads();
    }
    return shared[threadIdx.x] - v;
}

static __global__ void __launch_bounds__(THREADS) dispatch_kernel(krn_dispatch_args a)
{
    __shared__ int32_t tile[TILE], counts[THREADS];
    const uint32_t n_pairs = a.n_rows * a.top_k, expert = threadIdx.x;
    if (a.capacity > 0) {
        for (uint32_t i = threadIdx.x; i < a.n_seqs * a.n_experts; i += THREADS) {
            a.scratch[i] = 0;
        }
        __syncthreads();
    }
    const int32_t n = count_pairs(a, n_pairs, tile); /* 0 in threads past the last expert */
    int32_t next = sum_before(n, counts);
    if (expert < a.n_experts) {
        a.routing.offsets[expert] = next;
    }
    if (expert == a.n_experts - 1) {
        a.routing.offsets[a.n_experts] = next + n;
    }
    for (uint32_t first = 0; first < n_pairs; first += TILE) {
        load_tile(a, first, n_pairs, tile); /* without those over capacity */
        for (uint32_t i = 0; i < TILE && first + i < n_pairs; i++) {
            if (tile[i] == (int32_t)expert) {
                a.routing.order[next++] = (int32_t)(first + i);
            }
        }
    }
}

extern "C" moe_status krn_cuda_dispatch(krn_stream *s, const krn_dispatch_args *a, moe_err *err)
{
    moe_status st = krn_dispatch_check(a, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(s->device, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    dispatch_kernel<<<1, THREADS, 0, s->handle>>>(*a);
    return krn_cuda_launched(err, "dispatch");
}
