/* argmax_cpu.c - the index of each row's largest logit. */
#include "kernels/backend/backend_cpu.h"
#include "kernels/ops/ops_check.h"
#include "kernels/ops/ops_cpu.h"

#include <math.h>

static int32_t argmax_row(const float *logits, uint32_t vocab)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++) {
        if (logits[i] > logits[best] || (isnan(logits[best]) && !isnan(logits[i]))) {
            best = i;
        }
    }
    return (int32_t)best;
}

static void run(const void *args, krn_team *team)
{
    (void)team;
    const krn_argmax_args *a = args;
    for (uint32_t r = 0; r < a->n_rows; r++) {
        a->out[r] = argmax_row(a->logits + (size_t)r * a->vocab, a->vocab);
    }
}

moe_status krn_cpu_argmax(krn_stream *s, const krn_argmax_args *a, moe_err *err)
{
    moe_status st = krn_argmax_check(a, err);
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    return krn_cpu_submit(s, run, a, sizeof *a, err);
}
