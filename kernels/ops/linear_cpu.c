/* linear_cpu.c - one weight matrix applied to every row: the shared inner loop of matmul.h, behind
 * rms_norm where a norm is asked for. */
#include "kernels/backend/backend_cpu.h"
#include "kernels/ops/matmul.h"
#include "kernels/ops/ops_check.h"
#include "kernels/ops/ops_cpu.h"

static void run(const void *args, krn_team *team)
{
    const krn_linear_args *a = args;
    krn_matmul_args m = {.n_rows = a->n_rows,
                         .d_in = a->d_in,
                         .w_dtype = a->w_dtype,
                         .act = a->act,
                         .scale = a->scale,
                         .accumulate = a->accumulate,
                         .x = a->norm_w != NULL ? a->h : a->x,
                         .w = a->w,
                         .y = a->y,
                         .x_stride = a->d_in,
                         .w_stride = a->d_in,
                         .y_stride = a->y_stride};
    krn_matmul_team(&m, a->d_out, team);
}

moe_status krn_cpu_linear(krn_stream *s, const krn_linear_args *a, moe_err *err)
{
    moe_status st = krn_linear_check(a, err);
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    if (a->norm_w != NULL) {
        const krn_rms_norm_args norm = {.n_rows = a->n_rows,
                                        .d_model = a->d_in,
                                        .w_dtype = a->norm_dtype,
                                        .eps = a->norm_eps,
                                        .x = a->x,
                                        .w = a->norm_w,
                                        .y = a->h};
        st = krn_cpu_rms_norm(s, &norm, err);
        if (st != MOE_OK) {
            return st;
        }
    }
    return krn_cpu_submit(s, run, a, sizeof *a, err);
}
