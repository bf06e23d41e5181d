/* gate_topk_cpu.c - softmax over the experts and the top_k largest of each row. */
#include "kernels/backend/backend_cpu.h"
#include "kernels/ops/matmul.h"
#include "kernels/ops/ops_check.h"
#include "kernels/ops/ops_cpu.h"

#include <math.h>

/* p = softmax(p) in place; false when it is not a number anywhere. */
static bool softmax(float *p, uint32_t n)
{
    float largest = p[0], sum = 0.0f;
    for (uint32_t e = 1; e < n; e++) {
        largest = p[e] > largest ? p[e] : largest;
    }
    for (uint32_t e = 0; e < n; e++) {
        p[e] = expf(p[e] - largest);
        sum += p[e];
    }
    for (uint32_t e = 0; e < n; e++) {
        p[e] /= sum;
    }
    return isfinite(sum);
}

/* The largest not chosen yet, the lower expert first; a chosen one is marked by -1. */
static uint32_t take_largest(float *p, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t e = 1; e < n; e++) {
        if (p[e] > p[best]) {
            best = e;
        }
    }
    return best;
}

static void gate_row(const krn_gate_topk_args *a, uint32_t t)
{
    float p[KRN_MAX_EXPERTS];
    krn_matmul_args m = {.n_rows = 1,
                         .d_in = a->d_model,
                         .w_dtype = a->w_dtype,
                         .act = MOE_ACT_NONE,
                         .scale = 1.0f,
                         .x = a->h + (size_t)t * a->d_model,
                         .w = a->w,
                         .w_stride = a->d_model,
                         .y = p};
    krn_matmul(&m, 0, a->n_experts);
    bool is_number = softmax(p, a->n_experts);
    for (uint32_t k = 0; k < a->top_k; k++) {
        uint32_t e = is_number ? take_largest(p, a->n_experts) : k;
        size_t pair = (size_t)t * a->top_k + k;
        a->out.ids[pair] = (int32_t)e;
        a->out.weights[pair] = is_number ? p[e] : NAN;
        p[e] = -1.0f;
    }
}

static void run_piece(void *ctx, uint32_t begin, uint32_t end)
{
    for (uint32_t t = begin; t < end; t++) {
        gate_row(ctx, t);
    }
}

static void run(const void *args, krn_team *team)
{
    krn_gate_topk_args a = *(const krn_gate_topk_args *)args;
    uint32_t grain = krn_matmul_grain(a.n_experts, a.d_model);
    krn_team_for(team, a.n_rows, grain, run_piece, &a);
}

moe_status krn_cpu_gate_topk(krn_stream *s, const krn_gate_topk_args *a, moe_err *err)
{
    moe_status st = krn_gate_topk_check(a, err);
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    return krn_cpu_submit(s, run, a, sizeof *a, err);
}
