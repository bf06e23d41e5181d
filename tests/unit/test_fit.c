/* Linear fits: the closed form against a system solved by hand, the gradient fit against data whose
 * answer is known, and both against chance. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu-worker/quality/fit.h"

enum { D = 6, CLASSES = 4, N_FIT = 600, N_CHECK = 200 };

/* Samples whose class is the largest of CLASSES linear scores, and rows that point into them. */
typedef struct data {
    float x[N_FIT + N_CHECK][D];
    const float *rows[N_FIT + N_CHECK];
    uint16_t y[N_FIT + N_CHECK];
    float truth[CLASSES][D];
} data;

static uint64_t seed = 5;

static float uniform(void)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (float)((double)(seed >> 40) / (double)(1u << 23) - 1.0);
}

static data *new_data(void)
{
    data *d = calloc(1, sizeof *d);
    assert_non_null(d);
    seed = 5;
    for (int c = 0; c < CLASSES; c++) {
        for (int i = 0; i < D; i++) {
            d->truth[c][i] = uniform();
        }
    }
    for (int s = 0; s < N_FIT + N_CHECK; s++) {
        float best = -1e9f;
        d->rows[s] = d->x[s];
        for (int i = 0; i < D; i++) {
            d->x[s][i] = uniform();
        }
        for (uint16_t c = 0; c < CLASSES; c++) {
            float score = 0;
            for (int i = 0; i < D; i++) {
                score += d->truth[c][i] * d->x[s][i];
            }
            if (score > best) {
                best = score;
                d->y[s] = c;
            }
        }
    }
    return d;
}

static gw_fit_set part(const data *d, uint32_t first, uint32_t n)
{
    return (gw_fit_set){
        .n = n, .d = D, .n_classes = CLASSES, .x = d->rows + first, .y = d->y + first};
}

static void ridge_solves_the_normal_equations(void **state)
{
    (void)state;
    /* X = (1 0), (0 2), (1 1); classes 0, 1, 1.  X^T X = (2 1; 1 5), mean diagonal 3.5.
     * lambda 2: (9 1; 1 12), determinant 107;  X^T Y = (1 1; 0 3). */
    const float x[3][2] = {{1, 0}, {0, 2}, {1, 1}};
    const float *rows[] = {x[0], x[1], x[2]};
    const uint16_t y[] = {0, 1, 1};
    const gw_fit_set s = {.n = 3, .d = 2, .n_classes = 2, .x = rows, .y = y};
    gw_gram g;
    gw_linear l;
    assert_int_equal(MOE_OK, gw_gram_init(&s, &g, NULL));
    assert_int_equal(MOE_OK, gw_linear_init(2, 2, &l, NULL));
    assert_int_equal(MOE_OK, gw_fit_ridge(&g, &s, 2.0, &l, NULL));
    const double expected[] = {12.0 / 107, 9.0 / 107, -1.0 / 107, 26.0 / 107};
    for (int i = 0; i < 4; i++) {
        assert_true(fabs(l.w[i] - expected[i]) < 1e-14);
    }
    gw_gram_fini(&g);
    gw_linear_fini(&l);
}

static void a_singular_system_is_refused_without_lambda(void **state)
{
    (void)state;
    const float x[2] = {1, 0};
    const float *rows[] = {x};
    const uint16_t y[] = {0};
    const gw_fit_set s = {.n = 1, .d = 2, .n_classes = 2, .x = rows, .y = y};
    gw_gram g;
    gw_linear l;
    moe_err err = {0};
    assert_int_equal(MOE_OK, gw_gram_init(&s, &g, NULL));
    assert_int_equal(MOE_OK, gw_linear_init(2, 2, &l, NULL));
    assert_int_equal(MOE_ERR_INVALID, gw_fit_ridge(&g, &s, 0.0, &l, &err));
    assert_non_null(strstr(err.text, "singular"));
    assert_int_equal(MOE_OK, gw_fit_ridge(&g, &s, 1e-3, &l, NULL));
    gw_gram_fini(&g);
    gw_linear_fini(&l);
}

static void both_fits_find_linear_classes(void **state)
{
    (void)state;
    data *d = new_data();
    const gw_fit_set fit = part(d, 0, N_FIT), check = part(d, N_FIT, N_CHECK);
    const gw_logistic_cfg how = {.n_epochs = 30, .batch = 20, .rate = 0.05, .seed = 3};
    gw_gram g;
    gw_linear ridge, logistic, truth;
    assert_int_equal(MOE_OK, gw_gram_init(&fit, &g, NULL));
    assert_int_equal(MOE_OK, gw_linear_init(D, CLASSES, &ridge, NULL));
    assert_int_equal(MOE_OK, gw_linear_init(D, CLASSES, &logistic, NULL));
    assert_int_equal(MOE_OK, gw_linear_init(D, CLASSES, &truth, NULL));
    gw_linear_from_rows(&truth, d->truth[0]);
    assert_true(gw_linear_top1(&truth, &check) > 0.98); /* ties of rounding */
    assert_int_equal(MOE_OK, gw_fit_ridge(&g, &fit, 1e-4, &ridge, NULL));
    assert_int_equal(MOE_OK, gw_fit_logistic(&fit, &check, &how, &logistic, NULL));
    assert_true(gw_linear_top1(&ridge, &check) > 0.8);
    assert_true(gw_linear_top1(&logistic, &check) > 0.95);
    gw_gram_fini(&g);
    gw_linear_fini(&ridge);
    gw_linear_fini(&logistic);
    gw_linear_fini(&truth);
    free(d);
}

static void equal_seeds_give_equal_bits(void **state)
{
    (void)state;
    data *d = new_data();
    const gw_fit_set fit = part(d, 0, N_FIT), check = part(d, N_FIT, N_CHECK);
    gw_logistic_cfg how = {.n_epochs = 2, .batch = 20, .rate = 0.05, .seed = 3};
    gw_linear l[3];
    for (int i = 0; i < 3; i++) {
        assert_int_equal(MOE_OK, gw_linear_init(D, CLASSES, &l[i], NULL));
        how.seed = i < 2 ? 3 : 4;
        assert_int_equal(MOE_OK, gw_fit_logistic(&fit, &check, &how, &l[i], NULL));
    }
    const size_t bytes = sizeof(double) * D * CLASSES;
    assert_memory_equal(l[0].w, l[1].w, bytes);
    assert_true(memcmp(l[0].w, l[2].w, bytes) != 0);
    for (int i = 0; i < 3; i++) {
        gw_linear_fini(&l[i]);
    }
    free(d);
}

static void a_start_that_cannot_be_beaten_is_kept(void **state)
{
    (void)state;
    data *d = new_data();
    gw_fit_set fit = part(d, 0, N_FIT);
    const gw_fit_set check = part(d, N_FIT, N_CHECK);
    uint16_t wrong[N_FIT]; /* what it is fitted to has nothing to do with what it is checked on */
    for (int i = 0; i < N_FIT; i++) {
        wrong[i] = (uint16_t)((d->y[i] + 1) % CLASSES);
    }
    fit.y = wrong;
    const gw_logistic_cfg how = {.n_epochs = 3, .batch = 20, .rate = 0.05, .seed = 3};
    gw_linear l, start;
    assert_int_equal(MOE_OK, gw_linear_init(D, CLASSES, &l, NULL));
    assert_int_equal(MOE_OK, gw_linear_init(D, CLASSES, &start, NULL));
    gw_linear_from_rows(&start, d->truth[0]);
    gw_linear_copy(&l, &start);
    assert_int_equal(MOE_OK, gw_fit_logistic(&fit, &check, &how, &l, NULL));
    assert_memory_equal(start.w, l.w, sizeof(double) * D * CLASSES);
    float rows[CLASSES][D];
    gw_linear_to_rows(&l, rows[0]);
    assert_memory_equal(d->truth, rows, sizeof rows);
    gw_linear_fini(&l);
    gw_linear_fini(&start);
    free(d);
}

static void ranks_count_ties_for_the_lower_class(void **state)
{
    (void)state;
    const double scores[] = {2, 5, 5, 1};
    assert_int_equal(2, gw_rank_of(scores, 4, 0));
    assert_int_equal(0, gw_rank_of(scores, 4, 1));
    assert_int_equal(1, gw_rank_of(scores, 4, 2));
    assert_int_equal(3, gw_rank_of(scores, 4, 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ridge_solves_the_normal_equations),
        cmocka_unit_test(a_singular_system_is_refused_without_lambda),
        cmocka_unit_test(both_fits_find_linear_classes),
        cmocka_unit_test(equal_seeds_give_equal_bits),
        cmocka_unit_test(a_start_that_cannot_be_beaten_is_kept),
        cmocka_unit_test(ranks_count_ties_for_the_lower_class),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
