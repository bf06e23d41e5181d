/* matmul.c - picks the widest build of the inner loop, and shares columns out over a team.
 * Threads: no state. */
#include "kernels/ops/matmul.h"

#include <math.h>

#include "common/dtype.h"
#include "common/model_shape.h"

float krn_activate(uint32_t act, float v)
{
    switch (act) {
    case MOE_ACT_RELU:
        return v > 0.0f ? v : (v <= 0.0f ? 0.0f : v); /* NaN stays */
    case MOE_ACT_GELU_ERF:
        return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f));
    case MOE_ACT_GELU_TANH:
        return 0.5f * v * (1.0f + tanhf(0.79788456080286536f * (v + 0.044715f * v * v * v)));
    default:
        return v;
    }
}

void krn_matmul(const krn_matmul_args *a, uint32_t begin, uint32_t end)
{
#ifdef KRN_MATMUL_X86
    if (__builtin_cpu_supports("avx512f")) {
        krn_matmul_avx512(a, begin, end);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        krn_matmul_avx2(a, begin, end);
        return;
    }
#endif
    krn_matmul_base(a, begin, end);
}

float krn_dot_f32(const float *x, const float *w, uint32_t n)
{
    float y = 0.0f;
    krn_matmul_args a = {.n_rows = 1,
                         .d_in = n,
                         .w_dtype = MOE_F32,
                         .act = MOE_ACT_NONE,
                         .scale = 1.0f,
                         .x = x,
                         .w = w,
                         .y = &y};
    krn_matmul(&a, 0, 1);
    return y;
}

enum {
    MIN_COLUMNS = 32,            /* weights of a piece stay in the first-level cache */
    MIN_PIECE_PRODUCTS = 1 << 18 /* some 15 us of work against some 5 us to wake a thread */
};

uint32_t krn_matmul_grain(uint32_t n_rows, uint32_t d_in)
{
    uint64_t per_column = (uint64_t)n_rows * d_in;
    uint64_t columns = MIN_PIECE_PRODUCTS / (per_column != 0 ? per_column : 1);
    return columns > MIN_COLUMNS ? (uint32_t)columns / MIN_COLUMNS * MIN_COLUMNS : MIN_COLUMNS;
}

static void run_piece(void *ctx, uint32_t begin, uint32_t end)
{
    const krn_matmul_args *a = ctx;
    krn_matmul(a, begin, end);
}

void krn_matmul_team(const krn_matmul_args *a, uint32_t d_out, krn_team *team)
{
    krn_matmul_args copy = *a;
    krn_team_for(team, d_out, krn_matmul_grain(a->n_rows, a->d_in), run_piece, &copy);
}
