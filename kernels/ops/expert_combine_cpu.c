/* expert_combine_cpu.c - adds each row's weighted expert outputs to the residual. */
#include "kernels/backend/backend_cpu.h"
#include "kernels/ops/ops_check.h"
#include "kernels/ops/ops_cpu.h"

static void run(const void *args, krn_team *team)
{
    (void)team;
    const krn_expert_combine_args *a = args;
    for (uint32_t pair = 0; pair < a->n_rows * a->top_k; pair++) {
        if (a->routing.ids[pair] < 0) {
            continue;
        }
        const float weight = a->routing.weights[pair];
        const float *y = a->y + (size_t)pair * a->d_model;
        float *x = a->x + (size_t)(pair / a->top_k) * a->d_model;
        for (uint32_t i = 0; i < a->d_model; i++) {
            x[i] += weight * y[i];
        }
    }
}

moe_status krn_cpu_expert_combine(krn_stream *s, const krn_expert_combine_args *a, moe_err *err)
{
    moe_status st = krn_expert_combine_check(a, err);
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    return krn_cpu_submit(s, run, a, sizeof *a, err);
}
