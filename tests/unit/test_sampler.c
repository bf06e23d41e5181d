/* The sampler: what temperature, nucleus, seed and position do to the choice. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "gpu-worker/engine/sampler.h"

enum { VOCAB = 8, DRAWS = 20000 };

/* Probabilities 0.4, 0.3, 0.2, 0.1 of ids 5, 2, 7, 0; nothing else has any weight. */
static void four_tokens(float *logits)
{
    for (int i = 0; i < VOCAB; i++) {
        logits[i] = -INFINITY;
    }
    logits[5] = logf(0.4f);
    logits[2] = logf(0.3f);
    logits[7] = logf(0.2f);
    logits[0] = logf(0.1f);
}

static void frequencies(const float *logits, float temperature, float top_p, double *out)
{
    gw_candidate scratch[VOCAB];
    for (int i = 0; i < VOCAB; i++) {
        out[i] = 0.0;
    }
    for (uint32_t position = 0; position < DRAWS; position++) {
        out[gw_sample(logits, VOCAB, temperature, top_p, 1, position, scratch)] += 1.0 / DRAWS;
    }
}

/* Five standard deviations of a frequency over 20,000 draws are at most 0.018. */
static void assert_near(double expected, double got)
{
    if (fabs(expected - got) > 0.018) {
        fail_msg("expected about %g, got %g", expected, got);
    }
}

static void draws_follow_the_probabilities(void **state)
{
    (void)state;
    float logits[VOCAB];
    double f[VOCAB];
    four_tokens(logits);
    frequencies(logits, 1.0f, 1.0f, f);
    assert_near(0.4, f[5]);
    assert_near(0.3, f[2]);
    assert_near(0.2, f[7]);
    assert_near(0.1, f[0]);
    assert_true(f[1] == 0.0 && f[3] == 0.0 && f[4] == 0.0 && f[6] == 0.0);
}

static void temperature_sharpens_and_flattens(void **state)
{
    (void)state;
    float logits[VOCAB];
    double f[VOCAB];
    four_tokens(logits);
    frequencies(logits, 0.5f, 1.0f, f); /* squares: 16, 9, 4, 1 of 30 */
    assert_near(16.0 / 30, f[5]);
    assert_near(1.0 / 30, f[0]);
    frequencies(logits, 1e-6f, 1.0f, f);
    assert_true(f[5] > 0.9999);
    frequencies(logits, 1e6f, 1.0f, f);
    assert_near(0.25, f[0]);
}

static void nucleus_is_the_smallest_set_that_reaches_top_p(void **state)
{
    (void)state;
    float logits[VOCAB];
    double f[VOCAB];
    four_tokens(logits);
    frequencies(logits, 1.0f, 0.65f, f); /* 0.4 + 0.3 reach it */
    assert_near(4.0 / 7, f[5]);
    assert_near(3.0 / 7, f[2]);
    assert_true(f[7] == 0.0 && f[0] == 0.0);
    frequencies(logits, 1.0f, 0.75f, f);
    assert_near(2.0 / 9, f[7]);
    assert_true(f[0] == 0.0);
    frequencies(logits, 1.0f, 1e-7f, f);
    assert_true(f[5] > 0.9999);
}

static void equal_tokens_enter_the_nucleus_by_lower_id(void **state)
{
    (void)state;
    const float logits[VOCAB] = {0};
    double f[VOCAB];
    frequencies(logits, 1.0f, 0.5f, f);
    assert_near(0.25, f[0]);
    assert_near(0.25, f[3]);
    assert_true(f[4] == 0.0 && f[7] == 0.0);
}

static void same_seed_and_position_give_the_same_token(void **state)
{
    (void)state;
    gw_candidate scratch[VOCAB];
    float logits[VOCAB];
    int differ_by_seed = 0;
    int differ_by_position = 0;
    four_tokens(logits);
    for (uint32_t i = 0; i < 100; i++) {
        int32_t id = gw_sample(logits, VOCAB, 1.0f, 0.9f, 42, i, scratch);
        assert_int_equal(id, gw_sample(logits, VOCAB, 1.0f, 0.9f, 42, i, scratch));
        differ_by_seed += id != gw_sample(logits, VOCAB, 1.0f, 0.9f, 43, i, scratch);
        differ_by_position += id != gw_sample(logits, VOCAB, 1.0f, 0.9f, 42, i + 1, scratch);
    }
    assert_true(differ_by_seed > 20);
    assert_true(differ_by_position > 20);
}

static void nan_is_never_drawn(void **state)
{
    (void)state;
    float logits[VOCAB];
    double f[VOCAB];
    four_tokens(logits);
    logits[5] = NAN;
    frequencies(logits, 1.0f, 1.0f, f);
    assert_true(f[5] == 0.0);
    assert_near(0.5, f[2]);
}

static void an_infinite_logit_takes_all(void **state)
{
    (void)state;
    float logits[VOCAB] = {0};
    double f[VOCAB];
    logits[3] = INFINITY;
    frequencies(logits, 1.0f, 0.9f, f);
    assert_true(f[3] > 0.9999);
}

static void uniform_fills_its_range_evenly(void **state)
{
    (void)state;
    double buckets[10] = {0};
    for (uint32_t position = 0; position < DRAWS; position++) {
        double u = gw_uniform(7, position);
        assert_true(u >= 0.0 && u < 1.0);
        buckets[(int)(u * 10)] += 1.0 / DRAWS;
    }
    for (int i = 0; i < 10; i++) {
        assert_near(0.1, buckets[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_follow_the_probabilities),
        cmocka_unit_test(temperature_sharpens_and_flattens),
        cmocka_unit_test(nucleus_is_the_smallest_set_that_reaches_top_p),
        cmocka_unit_test(equal_tokens_enter_the_nucleus_by_lower_id),
        cmocka_unit_test(same_seed_and_position_give_the_same_token),
        cmocka_unit_test(nan_is_never_drawn),
        cmocka_unit_test(an_infinite_logit_takes_all),
        cmocka_unit_test(uniform_fills_its_range_evenly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
