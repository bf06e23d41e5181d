/* popularity: counting, halving, seeding. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "expert-store/policy/popularity.h"

enum { ONE = XS_ONE_USE };

static void uses_add_up(void **state)
{
    (void)state;
    xs_popularity p;
    assert_int_equal(MOE_OK, xs_popularity_init(&p, 2, 100, NULL));
    xs_popularity_use(&p, 1, 1);
    xs_popularity_use(&p, 1, 4);
    assert_int_equal(0, xs_popularity_get(&p, 0));
    assert_int_equal(5 * ONE, xs_popularity_get(&p, 1));
    xs_popularity_fini(&p);
}

static void every_count_is_halved_once_per_period_of_anyones_uses(void **state)
{
    (void)state;
    xs_popularity p;
    assert_int_equal(MOE_OK, xs_popularity_init(&p, 3, 10, NULL));
    xs_popularity_use(&p, 0, 8);
    xs_popularity_use(&p, 1, 1);
    assert_int_equal(8 * ONE, xs_popularity_get(&p, 0));
    xs_popularity_use(&p, 1, 1); /* the tenth: the period is over, its own use counts in full */
    assert_int_equal(4 * ONE, xs_popularity_get(&p, 0));
    assert_int_equal(ONE / 2 + ONE, xs_popularity_get(&p, 1));
    xs_popularity_use(&p, 2, 25); /* 35 by now */
    assert_int_equal(ONE, xs_popularity_get(&p, 0));
    assert_int_equal(25 * ONE, xs_popularity_get(&p, 2));
    xs_popularity_use(&p, 0, 1);
    assert_int_equal(2 * ONE, xs_popularity_get(&p, 0));
    xs_popularity_fini(&p);
}

static void what_is_long_unused_fades_to_nothing(void **state)
{
    (void)state;
    xs_popularity p;
    assert_int_equal(MOE_OK, xs_popularity_init(&p, 2, 1, NULL));
    xs_popularity_use(&p, 0, 1 << 20);
    xs_popularity_use(&p, 1, 36);
    assert_int_equal(1, xs_popularity_get(&p, 0));
    xs_popularity_use(&p, 1, 1);
    assert_int_equal(0, xs_popularity_get(&p, 0));
    xs_popularity_use(&p, 1, 100); /* more halvings than a word has bits */
    assert_int_equal(0, xs_popularity_get(&p, 0));
    xs_popularity_fini(&p);
}

static void a_seed_lets_no_time_pass(void **state)
{
    (void)state;
    xs_popularity p;
    assert_int_equal(MOE_OK, xs_popularity_init(&p, 2, 10, NULL));
    xs_popularity_seed(&p, 0, 1000);
    xs_popularity_seed(&p, 1, 999);
    assert_int_equal(1000 * ONE, xs_popularity_get(&p, 0));
    assert_int_equal(999 * ONE, xs_popularity_get(&p, 1));
    xs_popularity_fini(&p);
}

/* A worker writes its own use counts: no claim may make a count wrap. */
static void an_absurd_number_of_uses_is_cut(void **state)
{
    (void)state;
    xs_popularity p;
    assert_int_equal(MOE_OK, xs_popularity_init(&p, 1, 1 << 30, NULL));
    xs_popularity_use(&p, 0, UINT64_MAX);
    assert_int_equal((uint64_t)ONE << 24, xs_popularity_get(&p, 0));
    assert_int_equal(1 << 24, p.uses);
    xs_popularity_fini(&p);
}

static void the_period_grows_with_the_model(void **state)
{
    (void)state;
    assert_int_equal(6, xs_popularity_period(1));
    assert_int_equal(6ull << 31, xs_popularity_period(1u << 31));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(uses_add_up),
        cmocka_unit_test(every_count_is_halved_once_per_period_of_anyones_uses),
        cmocka_unit_test(what_is_long_unused_fades_to_nothing),
        cmocka_unit_test(a_seed_lets_no_time_pass),
        cmocka_unit_test(an_absurd_number_of_uses_is_cut),
        cmocka_unit_test(the_period_grows_with_the_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
