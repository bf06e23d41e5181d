/* publish_cuda.cu - writes one mail into the ring that the host polls. One warp. Hardware: the ring
 * is mapped host memory; each mail is a handful of posted writes over the bus. */
#include "kernels/ops/route_device.cuh"

static __global__ void publish_kernel(krn_publish_args a, const int64_t *offset_ns)
{
    begin_kernel();
    write_mail(a, offset_ns);
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
    krn_cuda_launch<publish_kernel>(s, 1, WARP, 0, *a, s->device->clock.offset_ns);
    return krn_cuda_launched(err, "publish");
}
