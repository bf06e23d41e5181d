/* dispatch_cpu.c - sorts (row, k) pairs by expert, stably, after applying expert capacity. */
#include "kernels/backend/backend_cpu.h"
#include "kernels/ops/ops_check.h"
#include "kernels/ops/ops_cpu.h"

#include <string.h>

/* Marks pairs beyond the first `capacity` rows of their (sequence, expert) with id -1. */
static void apply_capacity(const krn_dispatch_args *a, uint32_t n_pairs)
{
    memset(a->scratch, 0, (size_t)a->n_seqs * a->n_experts * sizeof *a->scratch);
    for (uint32_t p = 0; p < n_pairs; p++) {
        int32_t e = a->routing.ids[p];
        if (e < 0) {
            continue;
        }
        size_t seq = (size_t)a->row_seq[p / a->top_k];
        int32_t *taken = &a->scratch[seq * a->n_experts + (size_t)e];
        if ((uint32_t)*taken < a->capacity) {
            (*taken)++;
        } else {
            a->routing.ids[p] = -1;
        }
    }
}

static void run(const void *args, krn_team *team)
{
    (void)team;
    const krn_dispatch_args *a = args;
    const uint32_t n_pairs = a->n_rows * a->top_k;
    int32_t *offsets = a->routing.offsets;
    int32_t next[KRN_MAX_EXPERTS];
    if (a->capacity > 0) {
        apply_capacity(a, n_pairs);
    }
    memset(offsets, 0, ((size_t)a->n_experts + 1) * sizeof *offsets);
    for (uint32_t p = 0; p < n_pairs; p++) {
        int32_t e = a->routing.ids[p];
        MOE_ASSERT(e >= -1 && e < (int32_t)a->n_experts);
        if (e >= 0) {
            offsets[e + 1]++;
        }
    }
    for (uint32_t e = 0; e < a->n_experts; e++) {
        next[e] = offsets[e];
        offsets[e + 1] += offsets[e];
    }
    for (uint32_t p = 0; p < n_pairs; p++) {
        int32_t e = a->routing.ids[p];
        if (e >= 0) {
            a->routing.order[next[e]++] = (int32_t)p;
        }
    }
}

moe_status krn_cpu_dispatch(krn_stream *s, const krn_dispatch_args *a, moe_err *err)
{
    moe_status st = krn_dispatch_check(a, err);
    if (st != MOE_OK) {
        return st;
    }
    return krn_cpu_submit(s, run, a, sizeof *a, err);
}
