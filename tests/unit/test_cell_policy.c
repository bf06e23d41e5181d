/* Which cell is given up: each policy's order, and what comes before any policy. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gpu-worker/fetch/cell_policy.h"

static void nothing_unlocked_gives_nothing(void **state)
{
    (void)state;
    const gw_cell_candidate c[] = {{.locked = true}, {.locked = true}};
    assert_int_equal(-1, gw_cell_choose(GW_CELL_LRU, c, 2));
    assert_int_equal(-1, gw_cell_choose(GW_CELL_LRU, c, 0));
}

static void lru_gives_up_the_longest_unused(void **state)
{
    (void)state;
    const gw_cell_candidate c[] = {{.last_use = 5, .uses = 1},
                                   {.last_use = 1, .locked = true},
                                   {.last_use = 3, .uses = 9},
                                   {.last_use = 4}};
    assert_int_equal(2, gw_cell_choose(GW_CELL_LRU, c, 4));
}

static void lfu_gives_up_the_fewest_uses_then_the_longest_unused(void **state)
{
    (void)state;
    const gw_cell_candidate c[] = {
        {.uses = 3, .last_use = 1}, {.uses = 2, .last_use = 9}, {.uses = 2, .last_use = 8}};
    assert_int_equal(2, gw_cell_choose(GW_CELL_LFU, c, 3));
    assert_int_equal(1, gw_cell_choose(GW_CELL_LFU, c, 2));
}

/* The example of Expert Buffering: two cells, experts 1, 2, 3 in turn: 2 goes, not 1. */
static void lifo_gives_up_inactive_experts_first_then_the_last_loaded(void **state)
{
    (void)state;
    const gw_cell_candidate both_active[] = {{.loaded = 1, .active = true},
                                             {.loaded = 2, .active = true}};
    const gw_cell_candidate one_idle[] = {
        {.loaded = 1}, {.loaded = 2, .active = true}, {.loaded = 3, .active = true}};
    assert_int_equal(1, gw_cell_choose(GW_CELL_LIFO_INACTIVE, both_active, 2));
    assert_int_equal(0, gw_cell_choose(GW_CELL_LIFO_INACTIVE, one_idle, 3));
}

static void needed_experts_go_last_whatever_the_policy(void **state)
{
    (void)state;
    const gw_cell_candidate c[] = {{.needed = true},
                                   {.last_use = 9, .uses = 9, .loaded = 1, .active = true}};
    for (int policy = GW_CELL_LRU; policy <= GW_CELL_LIFO_INACTIVE; policy++) {
        assert_int_equal(1, gw_cell_choose((gw_cell_policy)policy, c, 2));
        assert_int_equal(0, gw_cell_choose((gw_cell_policy)policy, c, 1));
    }
}

static void ties_go_to_the_lowest_cell(void **state)
{
    (void)state;
    const gw_cell_candidate c[4] = {{.locked = true}};
    for (int policy = GW_CELL_LRU; policy <= GW_CELL_LIFO_INACTIVE; policy++) {
        assert_int_equal(1, gw_cell_choose((gw_cell_policy)policy, c, 4));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_unlocked_gives_nothing),
        cmocka_unit_test(lru_gives_up_the_longest_unused),
        cmocka_unit_test(lfu_gives_up_the_fewest_uses_then_the_longest_unused),
        cmocka_unit_test(lifo_gives_up_inactive_experts_first_then_the_last_loaded),
        cmocka_unit_test(needed_experts_go_last_whatever_the_policy),
        cmocka_unit_test(ties_go_to_the_lowest_cell),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
