/* embed_cuda.cu - looks up rows of the embedding table. One block per row; a copy, bound by
 * latency. */
#include "kernels/backend/device_math.cuh"

enum { THREADS = 128 };

template <bool is_bf16> static __global__ void embed_kernel(krn_embed_args a)
{
    begin_kernel();
    const uint32_t t = blockIdx.x;
    const size_t row = (size_t)a.ids[t] * a.d_model; /* table[ids[t], :] */
    for (uint32_t i = threadIdx.x; i < a.d_model; i += THREADS) {
        a.x[(size_t)t * a.d_model + i] = load_weight<is_bf16>(a.table, row + i);
    }
}

extern "C" moe_status krn_cuda_embed(krn_stream *s, const krn_embed_args *a, moe_err *err)
{
    moe_status st = krn_embed_check(a, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(s->device, err);
    }
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    if (a->w_dtype == MOE_BF16) {
        krn_cuda_launch<embed_kernel<true>>(s, a->n_rows, THREADS, 0, *a);
    } else {
        krn_cuda_launch<embed_kernel<false>>(s, a->n_rows, THREADS, 0, *a);
    }
    return krn_cuda_launched(err, "embed");
}
