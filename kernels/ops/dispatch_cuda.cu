/* dispatch_cuda.cu - sorts (row, k) pairs by expert, stably, after applying expert capacity. One
 * block. Shared memory: 4 KB. Cost: grows with pairs, a few us up to a thousand; a decode step goes
 * through route instead. */
#include "kernels/ops/route_device.cuh"

static __global__ void __launch_bounds__(SORT_THREADS) dispatch_kernel(krn_dispatch_args a)
{
    __shared__ sort_memory shared;
    begin_kernel();
    sort_pairs(a, shared);
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
    krn_cuda_launch<dispatch_kernel>(s, 1, SORT_THREADS, 0, *a);
    return krn_cuda_launched(err, "dispatch");
}
