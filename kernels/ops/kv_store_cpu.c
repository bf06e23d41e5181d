/* kv_store_cpu.c - appends new keys or values to their sequences' cache rows. */
#include "kernels/backend/backend_cpu.h"
#include "kernels/ops/ops_check.h"
#include "kernels/ops/ops_cpu.h"

#include <string.h>

static void run(const void *args, krn_team *team)
{
    (void)team;
    const krn_kv_store_args *a = args;
    for (uint32_t t = 0; t < a->n_rows; t++) {
        size_t row = (size_t)(a->kv_off[a->row_seq[t]] + a->row_pos[t]);
        memcpy(a->dst + row * a->width, a->src + (size_t)t * a->src_stride,
               a->width * sizeof *a->dst);
    }
}

moe_status krn_cpu_kv_store(krn_stream *s, const krn_kv_store_args *a, moe_err *err)
{
    moe_status st = krn_kv_store_check(a, err);
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    return krn_cpu_submit(s, run, a, sizeof *a, err);
}
