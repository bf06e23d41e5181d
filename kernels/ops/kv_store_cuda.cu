/* kv_store_cuda.cu - appends new keys or values to their sequences' cache rows. One block per row.
 */
#include "kernels/backend/device_math.cuh"

enum { THREADS = 128 };

static __global__ void kv_store_kernel(krn_kv_store_args a)
{
    begin_kernel();
    const uint32_t t = blockIdx.x;
    const size_t row = (size_t)(a.kv_off[a.row_seq[t]] + a.row_pos[t]);
    for (uint32_t i = threadIdx.x; i < a.width; i += THREADS) {
        a.dst[row * a.width + i] = a.src[(size_t)t * a.src_stride + i];
    }
}

extern "C" moe_status krn_cuda_kv_store(krn_stream *s, const krn_kv_store_args *a, moe_err *err)
{
    moe_status st = krn_kv_store_check(a, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(s->device, err);
    }
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    krn_cuda_launch<kv_store_kernel>(s, a->n_rows, THREADS, 0, *a);
    return krn_cuda_launched(err, "kv_store");
}
