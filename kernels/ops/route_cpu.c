/* route_cpu.c - everything at a gate position: the operations that define it, one after another. */
#include "kernels/ops/ops_check.h"
#include "kernels/ops/ops_cpu.h"

moe_status krn_cpu_route(krn_stream *s, const krn_route_args *a, moe_err *err)
{
    moe_status st = krn_route_check(a, err);
    if (st == MOE_OK && a->norm.x != NULL) {
        st = krn_cpu_rms_norm(s, &a->norm, err);
    }
    if (st == MOE_OK) {
        st = krn_cpu_gate_topk(s, &a->gate, err);
    }
    if (st == MOE_OK) {
        st = krn_cpu_dispatch(s, &a->dispatch, err);
    }
    for (uint32_t i = 0; i < a->n_mails && st == MOE_OK; i++) {
        st = krn_cpu_publish(s, &a->mail[i], err);
    }
    return st;
}
