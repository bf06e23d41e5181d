/* embed_cpu.c - looks up rows of the embedding table. */
#include "kernels/backend/backend_cpu.h"
#include "kernels/ops/ops_check.h"
#include "kernels/ops/ops_cpu.h"

#include "common/dtype.h"

static void run(const void *args, krn_team *team)
{
    (void)team;
    const krn_embed_args *a = args;
    for (uint32_t t = 0; t < a->n_rows; t++) {
        MOE_ASSERT(a->ids[t] >= 0 && (uint32_t)a->ids[t] < a->vocab);
        size_t at = (size_t)a->ids[t] * a->d_model;
        const char *row = (const char *)a->table + at * moe_dtype_bytes((moe_dtype)a->w_dtype);
        moe_dtype_convert(a->x + (size_t)t * a->d_model, MOE_F32, row, (moe_dtype)a->w_dtype,
                          a->d_model);
    }
}

moe_status krn_cpu_embed(krn_stream *s, const krn_embed_args *a, moe_err *err)
{
    moe_status st = krn_embed_check(a, err);
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    return krn_cpu_submit(s, run, a, sizeof *a, err);
}
