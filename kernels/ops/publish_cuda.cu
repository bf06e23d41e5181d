/* publish_cuda.cu - writes one mail into the ring that the host polls.
 *
 * One warp. Experts are listed 32 at a time by ballot, in rising order. Every lane fences its own
 * writes for the whole system before lane 0 writes seq: whoever sees seq sees the payload.
 * Hardware: the ring is mapped host memory; each mail is a handful of posted writes over the bus.
 */
#include "kernels/backend/device_math.cuh"

static __device__ uint32_t list_experts(const krn_publish_args &a, uint16_t *expert)
{
    uint32_t n = 0;
    for (uint32_t first = 0; first < a.n_experts; first += WARP) {
        const uint32_t e = first + lane_id();
        const bool active = e < a.n_experts && (a.all_experts || a.offsets[e] < a.offsets[e + 1]);
        const uint32_t all = __ballot_sync(WHOLE_WARP, active);
        if (active) {
            expert[n + __popc(all & ((1u << lane_id()) - 1u))] = (uint16_t)e;
        }
        n += __popc(all);
    }
    return n;
}

static __device__ __forceinline__ int64_t host_time_ns(const int64_t *offset_ns)
{
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return (int64_t)ns + *offset_ns;
}

static __global__ void publish_kernel(krn_publish_args a, const int64_t *offset_ns)
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
}

extern "C" moe_status krn_cuda_publish(krn_stream *s, const krn_publish_args *a, moe_err *err)
{
    moe_status st = krn_publish_check(a, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(s->device, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    publish_kernel<<<1, WARP, 0, s->handle>>>(*a, s->device->clock.offset_ns);
    return krn_cuda_launched(err, "publish");
}
