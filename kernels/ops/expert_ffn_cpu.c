/* expert_ffn_cpu.c - the feed-forward of the experts at hand, rows grouped by expert.
 *
 * Two passes over the experts: wi into scratch, wo onto x. A piece of work is (expert, block of
 * columns), so that many experts with few rows keep a team as busy as one with many. */
#include "kernels/backend/backend_cpu.h"
#include "kernels/ops/matmul.h"
#include "kernels/ops/ops_check.h"
#include "kernels/ops/ops_cpu.h"

#include <string.h>

#include "common/dtype.h"

enum { PIECE_COLUMNS = 64 };

/* The experts at hand: a wave's entries, or all of them. */
static uint32_t n_at_hand(const krn_expert_ffn_args *a)
{
    return a->wave != NULL ? a->wave->n : a->n_experts;
}

static krn_wave_entry at_hand(const krn_expert_ffn_args *a, uint32_t i)
{
    return a->wave != NULL ? a->wave->entry[i]
                           : (krn_wave_entry){.weights = a->weights_of[i], .expert = (int32_t)i};
}

typedef struct pass {
    const krn_expert_ffn_args *a;
    bool is_second; /* wo: scratch -> x; else wi: h -> scratch */
    uint32_t d_in, d_out, pieces_per_expert;
} pass;

static krn_matmul_args matmul_of(const pass *p, const krn_wave_entry *entry)
{
    const krn_expert_ffn_args *a = p->a;
    const int32_t *offsets = a->routing.offsets + entry->expert;
    const size_t wi_bytes = (size_t)a->d_ff * a->d_model * moe_dtype_bytes((moe_dtype)a->w_dtype);
    return (krn_matmul_args){.n_rows = (uint32_t)(offsets[1] - offsets[0]),
                             .d_in = p->d_in,
                             .w_dtype = a->w_dtype,
                             .act = p->is_second ? MOE_ACT_NONE : a->act,
                             .scale = 1.0f,
                             .accumulate = p->is_second,
                             .rows = a->routing.order + offsets[0],
                             .y_weights = p->is_second ? a->routing.weights : NULL,
                             .x = p->is_second ? a->scratch : a->h,
                             .w = (const char *)entry->weights + (p->is_second ? wi_bytes : 0),
                             .y = p->is_second ? a->x : a->scratch,
                             .x_stride = p->d_in,
                             .w_stride = p->d_in,
                             .y_stride = p->d_out};
}

static void run_piece(void *ctx, uint32_t begin, uint32_t end)
{
    const pass *p = ctx;
    for (uint32_t i = begin; i < end; i++) {
        const krn_wave_entry entry = at_hand(p->a, i / p->pieces_per_expert);
        uint32_t column = i % p->pieces_per_expert * PIECE_COLUMNS;
        uint32_t left = p->d_out - column;
        if (entry.failed != 0) {
            continue;
        }
        krn_matmul_args m = matmul_of(p, &entry);
        krn_matmul(&m, column, column + (left < PIECE_COLUMNS ? left : PIECE_COLUMNS));
    }
}

static void run_pass(const krn_expert_ffn_args *a, bool is_second, krn_team *team)
{
    pass p = {.a = a,
              .is_second = is_second,
              .d_in = is_second ? a->d_ff : a->d_model,
              .d_out = is_second ? a->d_model : a->d_ff};
    p.pieces_per_expert = (p.d_out + PIECE_COLUMNS - 1) / PIECE_COLUMNS;
    uint32_t rows_per_expert = a->n_rows > n_at_hand(a) ? a->n_rows / n_at_hand(a) : 1;
    uint32_t columns = krn_matmul_grain(rows_per_expert, p.d_in);
    uint32_t grain = columns > PIECE_COLUMNS ? columns / PIECE_COLUMNS : 1;
    krn_team_for(team, n_at_hand(a) * p.pieces_per_expert, grain, run_piece, &p);
}

static void mark_failed(const krn_expert_ffn_args *a, const krn_wave_entry *entry)
{
    const int32_t *offsets = a->routing.offsets + entry->expert;
    for (int32_t i = offsets[0]; i < offsets[1]; i++) {
        a->row_failed[a->routing.order[i]] = 1;
    }
}

static void run(const void *args, krn_team *team)
{
    const krn_expert_ffn_args *a = args;
    const uint32_t n = n_at_hand(a);
    MOE_ASSERT(n <= (a->wave != NULL ? KRN_MAX_WAVE_EXPERTS : KRN_MAX_EXPERTS));
    if (n == 0) {
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        const krn_wave_entry entry = at_hand(a, i);
        MOE_ASSERT(entry.expert >= 0 && (uint32_t)entry.expert < a->n_experts);
        if (entry.failed != 0) {
            mark_failed(a, &entry);
        }
    }
    run_pass(a, false, team);
    run_pass(a, true, team);
}

moe_status krn_cpu_expert_ffn(krn_stream *s, const krn_expert_ffn_args *a, moe_err *err)
{
    moe_status st = krn_expert_ffn_check(a, err);
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    return krn_cpu_submit(s, run, a, sizeof *a, err);
}
