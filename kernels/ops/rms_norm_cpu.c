/* rms_norm_cpu.c - scales each row to root mean square 1, then by the weights. */
#include "kernels/backend/backend_cpu.h"
#include "kernels/ops/matmul.h"
#include "kernels/ops/ops_check.h"
#include "kernels/ops/ops_cpu.h"

#include <math.h>

#include "common/dtype.h"

static void norm_row(const krn_rms_norm_args *a, const float *x, float *y)
{
    float mean = krn_dot_f32(x, x, a->d_model) / (float)a->d_model;
    float rms = sqrtf(mean + a->eps);
    for (uint32_t i = 0; i < a->d_model; i++) {
        float w = a->w_dtype == MOE_BF16 ? moe_bf16_to_f32(((const uint16_t *)a->w)[i])
                                         : ((const float *)a->w)[i];
        y[i] = x[i] / rms * w;
    }
}

static void run(const void *args, krn_team *team)
{
    (void)team;
    const krn_rms_norm_args *a = args;
    for (uint32_t t = 0; t < a->n_rows; t++) {
        size_t at = (size_t)t * a->d_model;
        norm_row(a, a->x + at, a->y + at);
    }
}

moe_status krn_cpu_rms_norm(krn_stream *s, const krn_rms_norm_args *a, moe_err *err)
{
    moe_status st = krn_rms_norm_check(a, err);
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    return krn_cpu_submit(s, run, a, sizeof *a, err);
}
