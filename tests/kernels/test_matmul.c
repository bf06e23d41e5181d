/* The inner loop of the cpu backend: every build of it, and every way to share it out, gives the
 * same bits. */
#include "tests/support/kernel_rig.h"

#include "kernels/backend/team.h"
#include "kernels/ops/matmul.h"

enum { MAX_ROWS = 19, MAX_IN = 70, MAX_OUT = 150 };

typedef struct problem {
    float w[MAX_OUT * MAX_IN], x[MAX_ROWS * MAX_IN], y[MAX_ROWS * MAX_OUT];
    krn_matmul_args args;
    uint32_t d_out;
} problem;

static void random_problem(problem *p, uint64_t *seed)
{
    static float wide[MAX_OUT * MAX_IN];
    const uint32_t d_in = next_in(seed, 1, MAX_IN), dtype = next_in(seed, MOE_F32, MOE_BF16);
    p->d_out = next_in(seed, 1, MAX_OUT);
    fill_weights(p->w, wide, p->d_out * d_in, dtype, seed);
    fill_floats(p->x, MAX_ROWS * MAX_IN, seed);
    memset(p->y, 0xFF, sizeof p->y);
    p->args = (krn_matmul_args){.n_rows = next_in(seed, 1, MAX_ROWS),
                                .d_in = d_in,
                                .w_dtype = dtype,
                                .scale = 1.0f,
                                .x = p->x,
                                .w = p->w,
                                .y = p->y,
                                .x_stride = d_in,
                                .w_stride = d_in,
                                .y_stride = MAX_OUT};
}

/* The order of additions as matmul.h states it, in the plainest code. volatile keeps the product
 * from being fused into the sum. */
static float in_stated_order(const problem *p, uint32_t r, uint32_t o)
{
    float sum[KRN_MATMUL_PARTIAL_SUMS] = {0};
    for (uint32_t i = 0; i < p->args.d_in; i++) {
        size_t at = (size_t)o * p->args.d_in + i;
        float w =
            p->args.w_dtype == MOE_BF16 ? moe_bf16_to_f32(((const uint16_t *)p->w)[at]) : p->w[at];
        volatile float product = p->x[(size_t)r * p->args.d_in + i] * w;
        sum[i % KRN_MATMUL_PARTIAL_SUMS] += product;
    }
    for (int half = KRN_MATMUL_PARTIAL_SUMS / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; l++) {
            sum[l] += sum[l + half];
        }
    }
    return sum[0];
}

static void check_build(void (*build)(const krn_matmul_args *, uint32_t, uint32_t))
{
    static problem p;
    uint64_t seed = 20;
    for (int i = 0; i < 60; i++) {
        random_problem(&p, &seed);
        build(&p.args, 0, p.d_out);
        for (uint32_t r = 0; r < p.args.n_rows; r++) {
            for (uint32_t o = 0; o < p.d_out; o++) {
                float want = in_stated_order(&p, r, o);
                if (want != p.y[r * MAX_OUT + o]) {
                    fail_msg("problem %d, y[%u,%u]: want %a, got %a", i, r, o, (double)want,
                             (double)p.y[r * MAX_OUT + o]);
                }
            }
        }
    }
}

static void the_base_build_adds_in_the_stated_order(void **state)
{
    (void)state;
    check_build(krn_matmul_base);
}

static void the_wider_builds_add_in_the_same_order(void **state)
{
    (void)state;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        check_build(krn_matmul_avx2);
    }
    if (__builtin_cpu_supports("avx512f")) {
        check_build(krn_matmul_avx512);
    }
#endif
    check_build(krn_matmul);
}

/* ---- team ---- */

typedef struct tally {
    uint8_t n_times[5000];
} tally;

static void count_items(void *ctx, uint32_t begin, uint32_t end)
{
    tally *t = ctx;
    for (uint32_t i = begin; i < end; i++) {
        t->n_times[i]++;
    }
}

static void a_team_runs_every_item_once(void **state)
{
    (void)state;
    uint64_t seed = 21;
    for (uint32_t n_threads = 1; n_threads <= 5; n_threads += 2) {
        krn_team *team = NULL;
        assert_int_equal(MOE_OK, krn_team_create(n_threads, &team, NULL));
        for (int round = 0; round < 300; round++) {
            static tally t;
            uint32_t n = next_in(&seed, 0, sizeof t.n_times);
            memset(&t, 0, sizeof t);
            krn_team_for(team, n, next_in(&seed, 1, 700), count_items, &t);
            for (uint32_t i = 0; i < sizeof t.n_times; i++) {
                assert_int_equal(i < n ? 1 : 0, t.n_times[i]);
            }
        }
        krn_team_destroy(team);
    }
    krn_team_destroy(NULL);
}

static void sharing_out_over_a_team_changes_no_bit(void **state)
{
    (void)state;
    enum { D_IN = 256, D_OUT = 2048, N_ROWS = 5 };
    static float w[D_OUT * D_IN], x[N_ROWS * D_IN], alone[N_ROWS * D_OUT], shared[N_ROWS * D_OUT];
    uint64_t seed = 22;
    fill_floats(w, D_OUT * D_IN, &seed);
    fill_floats(x, N_ROWS * D_IN, &seed);
    krn_matmul_args a = {.n_rows = N_ROWS,
                         .d_in = D_IN,
                         .w_dtype = MOE_F32,
                         .scale = 1.0f,
                         .x = x,
                         .w = w,
                         .y = alone,
                         .x_stride = D_IN,
                         .w_stride = D_IN,
                         .y_stride = D_OUT};
    assert_true(krn_matmul_grain(N_ROWS, D_IN) < D_OUT / 4); /* there is something to share */
    krn_matmul(&a, 0, D_OUT);
    krn_team *team = NULL;
    assert_int_equal(MOE_OK, krn_team_create(4, &team, NULL));
    a.y = shared;
    krn_matmul_team(&a, D_OUT, team);
    krn_team_destroy(team);
    assert_memory_equal(alone, shared, sizeof alone);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_base_build_adds_in_the_stated_order),
        cmocka_unit_test(the_wider_builds_add_in_the_same_order),
        cmocka_unit_test(a_team_runs_every_item_once),
        cmocka_unit_test(sharing_out_over_a_team_changes_no_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
