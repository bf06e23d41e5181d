/* Eviction policies: what each gives up, what none ever does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "expert-store/policy/evict.h"

static const xs_evict_policy policies[] = {XS_EVICT_LRU, XS_EVICT_LFU, XS_EVICT_SIEVE,
                                           XS_EVICT_PREDICTED};
enum { N_POLICIES = sizeof policies / sizeof policies[0] };

static void lru_gives_up_the_longest_unused(void **state)
{
    (void)state;
    xs_candidate c[] = {
        {.slot = 0, .last_use_ns = 30, .uses = 1},
        {.slot = 1, .last_use_ns = 10, .uses = 9},
        {.slot = 2, .last_use_ns = 20, .uses = 0},
    };
    uint32_t hand = 0;
    assert_int_equal(1, xs_evict_choose(XS_EVICT_LRU, c, 3, &hand));
}

static void lfu_gives_up_the_least_used_then_the_longest_unused(void **state)
{
    (void)state;
    xs_candidate c[] = {
        {.slot = 0, .uses = 2, .last_use_ns = 1},
        {.slot = 1, .uses = 1, .last_use_ns = 30},
        {.slot = 2, .uses = 1, .last_use_ns = 20},
    };
    uint32_t hand = 0;
    assert_int_equal(2, xs_evict_choose(XS_EVICT_LFU, c, 3, &hand));
    c[2].uses = 3;
    assert_int_equal(1, xs_evict_choose(XS_EVICT_LFU, c, 3, &hand));
}

static void predicted_spares_what_is_wanted_soon(void **state)
{
    (void)state;
    xs_candidate c[] = {
        {.slot = 0, .last_use_ns = 1, .predicted = true},
        {.slot = 1, .last_use_ns = 9},
        {.slot = 2, .last_use_ns = 5},
    };
    uint32_t hand = 0;
    assert_int_equal(2, xs_evict_choose(XS_EVICT_PREDICTED, c, 3, &hand));
    assert_int_equal(0, xs_evict_choose(XS_EVICT_LRU, c, 3, &hand));
    c[2].uses = 2; /* of the others the least used goes */
    c[1].uses = 1;
    assert_int_equal(1, xs_evict_choose(XS_EVICT_PREDICTED, c, 3, &hand));
    c[1].predicted = c[2].predicted = true;
    assert_int_equal(-1, xs_evict_choose(XS_EVICT_PREDICTED, c, 3, &hand));
}

static void ties_go_to_the_lowest_slot_in_any_order(void **state)
{
    (void)state;
    xs_candidate c[] = {{.slot = 7}, {.slot = 3}, {.slot = 5}};
    for (int p = 0; p < N_POLICIES; p++) {
        uint32_t hand = 100; /* no candidate: SIEVE starts at the oldest */
        assert_int_equal(1, xs_evict_choose(policies[p], c, 3, &hand));
    }
}

static void leased_and_pinned_never_go(void **state)
{
    (void)state;
    for (int p = 0; p < N_POLICIES; p++) {
        for (uint32_t free_slot = 0; free_slot < 8; free_slot++) {
            xs_candidate c[8];
            for (uint32_t i = 0; i < 8; i++) {
                c[i] = (xs_candidate){.slot = i,
                                      .last_use_ns = i,
                                      .loaded_ns = i,
                                      .leased = i != free_slot && i % 2 == 0,
                                      .pinned = i != free_slot && i % 2 == 1};
            }
            c[free_slot].visited = true; /* SIEVE must come round again */
            uint32_t hand = 0;
            assert_int_equal(free_slot, xs_evict_choose(policies[p], c, 8, &hand));
        }
    }
}

static void nothing_to_give_up_is_minus_one(void **state)
{
    (void)state;
    xs_candidate c[] = {{.slot = 0, .leased = true}, {.slot = 1, .pinned = true}};
    for (int p = 0; p < N_POLICIES; p++) {
        uint32_t hand = 0;
        assert_int_equal(-1, xs_evict_choose(policies[p], c, 2, &hand));
        assert_int_equal(-1, xs_evict_choose(policies[p], c, 0, &hand));
    }
}

static void sieve_passes_visited_ones_and_clears_them(void **state)
{
    (void)state;
    xs_candidate c[] = {
        {.slot = 0, .loaded_ns = 1, .visited = true},
        {.slot = 1, .loaded_ns = 2, .visited = true},
        {.slot = 2, .loaded_ns = 3},
        {.slot = 3, .loaded_ns = 4, .visited = true},
    };
    uint32_t hand = 0;
    assert_int_equal(2, xs_evict_choose(XS_EVICT_SIEVE, c, 4, &hand));
    assert_false(c[0].visited);
    assert_false(c[1].visited);
    assert_true(c[3].visited); /* not passed */
    assert_int_equal(3, hand);
}

static void sieve_meets_new_loads_last_and_old_ones_in_the_next_lap(void **state)
{
    (void)state;
    xs_candidate c[] = {
        {.slot = 0, .loaded_ns = 1, .visited = true},
        {.slot = 1, .loaded_ns = 2},
        {.slot = 2, .loaded_ns = 3, .visited = true},
    };
    uint32_t hand = 0;
    assert_int_equal(1, xs_evict_choose(XS_EVICT_SIEVE, c, 3, &hand));
    c[1] = (xs_candidate){.slot = 1, .loaded_ns = 10}; /* the slot's new content, the newest */
    /* The hand stands at slot 2 (visited, cleared), then comes the new one, unvisited. */
    assert_int_equal(1, xs_evict_choose(XS_EVICT_SIEVE, c, 3, &hand));
    assert_false(c[2].visited);
    c[1] = (xs_candidate){.slot = 1, .loaded_ns = 20, .visited = true};
    /* The hand wrapped to the oldest, whose bit the first lap cleared. */
    assert_int_equal(0, xs_evict_choose(XS_EVICT_SIEVE, c, 3, &hand));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lru_gives_up_the_longest_unused),
        cmocka_unit_test(lfu_gives_up_the_least_used_then_the_longest_unused),
        cmocka_unit_test(predicted_spares_what_is_wanted_soon),
        cmocka_unit_test(ties_go_to_the_lowest_slot_in_any_order),
        cmocka_unit_test(leased_and_pinned_never_go),
        cmocka_unit_test(nothing_to_give_up_is_minus_one),
        cmocka_unit_test(sieve_passes_visited_ones_and_clears_them),
        cmocka_unit_test(sieve_meets_new_loads_last_and_old_ones_in_the_next_lap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
