/* Accounts of guesses: on while they hide more than they waste, off for longer and longer while
 * not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "gpu-worker/fetch/speculation.h"

static uint32_t pause_of(gw_speculation *s)
{
    uint32_t n = 0;
    while (!gw_speculation_allows(s)) {
        n++;
    }
    return n;
}

static void waste(gw_speculation *s, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        gw_speculation_wasted(s, 100, 1000);
    }
}

static void guesses_that_hide_more_than_they_waste_stay_on(void **state)
{
    (void)state;
    gw_speculation s = {.n_used = 0};
    assert_true(gw_speculation_useful(&s) == 1.0);
    for (int i = 0; i < 400; i++) {
        assert_true(gw_speculation_allows(&s));
        gw_speculation_used(&s, 250);
        gw_speculation_wasted(&s, 100, 1000);
        gw_speculation_wasted(&s, 100, 1000);
    }
    assert_false(gw_speculation_is_off(&s));
    assert_int_equal(400, s.n_used);
    assert_int_equal(800, s.n_wasted);
    assert_int_equal(400 * 250, s.hidden_ns);
    assert_int_equal(800 * 100, s.wasted_ns);
    assert_int_equal(800 * 1000, s.wasted_bytes);
    assert_true(gw_speculation_useful(&s) > 0.33 && gw_speculation_useful(&s) < 0.34);
}

static void right_but_late_guesses_do_not_pay_for_wrong_ones(void **state)
{
    (void)state;
    gw_speculation s = {.n_used = 0};
    for (int i = 0; i < GW_JUDGE_AFTER / 2; i++) {
        gw_speculation_used(&s, 99);
        gw_speculation_wasted(&s, 100, 1000);
    }
    assert_true(gw_speculation_is_off(&s));
}

static void pauses_double_until_a_probe_pays(void **state)
{
    (void)state;
    gw_speculation s = {.n_used = 0};
    waste(&s, GW_JUDGE_AFTER - 1);
    assert_false(gw_speculation_is_off(&s));
    waste(&s, 1);
    assert_true(gw_speculation_is_off(&s));
    assert_false(gw_speculation_allows(&s));
    waste(&s, 2 * GW_PROBE); /* copies from before the pause: counted, not judged */
    assert_int_equal(GW_FIRST_PAUSE - 1, pause_of(&s));
    assert_true(gw_speculation_is_off(&s)); /* until the probe is judged */
    uint32_t expected = GW_FIRST_PAUSE;
    for (int i = 0; i < 10; i++) {
        expected = 2 * expected < GW_LAST_PAUSE ? 2 * expected : GW_LAST_PAUSE;
        waste(&s, GW_PROBE);
        assert_int_equal(expected, pause_of(&s));
    }
    for (int i = 0; i < GW_PROBE; i++) {
        gw_speculation_used(&s, 100);
    }
    assert_false(gw_speculation_is_off(&s));
    assert_true(gw_speculation_allows(&s));
    waste(&s, GW_JUDGE_AFTER);
    assert_int_equal(GW_FIRST_PAUSE, pause_of(&s)); /* from the beginning */
    assert_true(s.n_passed_over > GW_LAST_PAUSE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guesses_that_hide_more_than_they_waste_stay_on),
        cmocka_unit_test(right_but_late_guesses_do_not_pay_for_wrong_ones),
        cmocka_unit_test(pauses_double_until_a_probe_pays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
