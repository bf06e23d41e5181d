/* clock_cuda.cu - device time on the host's monotonic clock.
 *
 * Mails carry the device's global timer plus an offset that lies in device memory. Events give only
 * distances between each other, as float milliseconds: too coarse over hours. So each is measured
 * from an anchor: an event recorded on an idle stream between two readings of the host's clock.
 * Both are renewed every RENEW_NS, when an event is recorded. An anchor's place is used again after
 * KRN_CUDA_ANCHORS renewals; an event whose time is asked for later than that is dated wrongly.
 * Threads: any; the clock locks itself. A renewal waits for its own stream only: some 20 us, longer
 * while kernels of other streams fill the device.
 */
#include "kernels/backend/cuda_common.cuh"

/* The two clocks drift apart by 20 us a second (measured, 19.6 ppm). */
static const int64_t RENEW_NS = MOE_NS_PER_S;
static const int64_t MAX_GAP_NS =
    200 * MOE_NS_PER_US; /* a worse reading does not replace a better */
enum { N_TRIES = 8 };

static __global__ void read_global_timer(volatile uint64_t *out)
{
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    *out = ns;
    __threadfence_system();
}

static __global__ void store_offset(int64_t *out, int64_t offset_ns)
{
    *out = offset_ns;
}

/* The reading with the smallest gap between two looks at the host's clock wins. */
static moe_status measure_offset_locked(krn_cuda_clock *c, int64_t max_gap_ns, moe_err *err)
{
    int64_t offset_ns = 0, smallest_gap_ns = INT64_MAX;
    moe_status st = MOE_OK;
    for (int i = 0; i < N_TRIES && st == MOE_OK; i++) {
        int64_t before = moe_now_ns();
        read_global_timer<<<1, 1, 0, c->stream>>>(c->timer);
        st = krn_cuda_launched(err, "read the device's clock");
        if (st == MOE_OK) {
            st = KRN_CUDA(err, cudaStreamSynchronize(c->stream), "read the device's clock");
        }
        int64_t gap_ns = moe_now_ns() - before;
        if (gap_ns < smallest_gap_ns) {
            smallest_gap_ns = gap_ns;
            offset_ns = before + gap_ns / 2 - (int64_t)*c->timer;
        }
    }
    if (st == MOE_OK && smallest_gap_ns <= max_gap_ns) {
        store_offset<<<1, 1, 0, c->stream>>>(c->offset_ns, offset_ns);
        st = krn_cuda_launched(err, "set the device's clock");
    }
    return st;
}

static moe_status renew_anchor_locked(krn_cuda_clock *c, moe_err *err)
{
    uint32_t next = (c->current + 1) % KRN_CUDA_ANCHORS;
    krn_cuda_anchor *a = &c->anchor[next];
    int64_t before = moe_now_ns();
    moe_status st = KRN_CUDA(err, cudaEventRecord(a->event, c->stream), "record a clock anchor");
    if (st == MOE_OK) {
        st = KRN_CUDA(err, cudaEventSynchronize(a->event), "wait for a clock anchor");
    }
    if (st == MOE_OK) {
        a->host_ns = before + (moe_now_ns() - before) / 2;
        c->current = next;
    }
    return st;
}

moe_status krn_cuda_clock_init(krn_cuda_clock *c, moe_err *err)
{
    void *timer = NULL;
    moe_status st = KRN_CUDA(err, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking),
                             "create the clock's stream");
    if (st != MOE_OK) {
        return st;
    }
    pthread_mutex_init(&c->mu, NULL);
    for (int i = 0; i < KRN_CUDA_ANCHORS && st == MOE_OK; i++) {
        st = KRN_CUDA(err, cudaEventCreate(&c->anchor[i].event), "create a clock anchor");
    }
    if (st == MOE_OK) {
        st = KRN_CUDA(err, cudaHostAlloc(&timer, sizeof *c->timer, cudaHostAllocMapped),
                      "memory of the clock");
        c->timer = (volatile uint64_t *)timer;
    }
    if (st == MOE_OK) {
        st = KRN_CUDA(err, cudaMalloc((void **)&c->offset_ns, sizeof *c->offset_ns),
                      "memory of the clock");
    }
    if (st == MOE_OK) { /* nobody else knows this clock yet: no lock */
        st = measure_offset_locked(c, INT64_MAX, err);
    }
    if (st == MOE_OK) {
        st = renew_anchor_locked(c, err);
    }
    return st;
}

void krn_cuda_clock_fini(krn_cuda_clock *c)
{
    if (c->stream == NULL) {
        return;
    }
    (void)cudaStreamSynchronize(c->stream);
    for (int i = 0; i < KRN_CUDA_ANCHORS; i++) {
        if (c->anchor[i].event != NULL) {
            (void)cudaEventDestroy(c->anchor[i].event);
        }
    }
    (void)cudaFree(c->offset_ns);
    (void)cudaFreeHost((void *)c->timer);
    (void)cudaStreamDestroy(c->stream);
    (void)cudaGetLastError();
    pthread_mutex_destroy(&c->mu);
}

moe_status krn_cuda_clock_anchor(krn_cuda_clock *c, uint32_t *out_anchor, moe_err *err)
{
    moe_status st = MOE_OK;
    pthread_mutex_lock(&c->mu);
    if (moe_now_ns() - c->anchor[c->current].host_ns > RENEW_NS) {
        st = measure_offset_locked(c, MAX_GAP_NS, err);
        if (st == MOE_OK) {
            st = renew_anchor_locked(c, err);
        }
    }
    if (st == MOE_OK) {
        *out_anchor = c->current;
    }
    pthread_mutex_unlock(&c->mu);
    return st;
}

int64_t krn_cuda_clock_ns(krn_cuda_clock *c, uint32_t anchor, cudaEvent_t event)
{
    float ms = 0.0f;
    pthread_mutex_lock(&c->mu);
    int64_t host_ns = c->anchor[anchor].host_ns;
    cudaError_t rc = cudaEventElapsedTime(&ms, c->anchor[anchor].event, event);
    pthread_mutex_unlock(&c->mu);
    if (rc != cudaSuccess) { /* never recorded, or the device failed: the time of asking */
        (void)cudaGetLastError();
        return moe_now_ns();
    }
    return host_ns + (int64_t)((double)ms * 1e6);
}
