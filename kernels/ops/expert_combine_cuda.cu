/* expert_combine_cuda.cu - adds each row's weighted expert outputs to the residual. One thread per
 * element, k rising. Bound by reading y once. */
#include "kernels/backend/device_math.cuh"

enum { THREADS = 256 };

static __global__ void expert_combine_kernel(krn_expert_combine_args a)
{
    const uint32_t t = blockIdx.x;
    const uint32_t i = blockIdx.y * THREADS + threadIdx.x;
    if (i >= a.d_model) {
        return; /* no barrier follows */
    }
    float x = a.x[(size_t)t * a.d_model + i];
    for (uint32_t k = 0; k < a.top_k; k++) {
        const size_t pair = (size_t)t * a.top_k + k;
        if (a.routing.ids[pair] >= 0) {
            x += a.routing.weights[pair] * a.y[pair * a.d_model + i];
        }
    }
    a.x[(size_t)t * a.d_model + i] = x;
}

extern "C" moe_status krn_cuda_expert_combine(krn_stream *s, const krn_expert_combine_args *a,
                                              moe_err *err)
{
    moe_status st = krn_expert_combine_check(a, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(s->device, err);
    }
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    const dim3 grid(a->n_rows, (a->d_model + THREADS - 1) / THREADS);
    expert_combine_kernel<<<grid, THREADS, 0, s->handle>>>(*a);
    return krn_cuda_launched(err, "expert_combine");
}
