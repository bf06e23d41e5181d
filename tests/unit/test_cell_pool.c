/* Which expert is in which cell: states, pins, needs, and what eviction tells. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "gpu-worker/fetch/cell_pool.h"

void *__wrap_calloc(size_t n, size_t size);
void *__real_calloc(size_t n, size_t size);

static int calls_until_failure = -1; /* -1: never */

void *__wrap_calloc(size_t n, size_t size)
{
    if (calls_until_failure > 0 && --calls_until_failure == 0) {
        return NULL;
    }
    return __real_calloc(n, size);
}

static const gw_cell_pool_cfg three_cells = {
    .n_cells = 3, .n_experts_total = 16, .n_experts_per_block = 8};

static int setup(void **state)
{
    gw_cell_pool *p = NULL;
    assert_int_equal(MOE_OK, gw_cell_pool_create(&three_cells, &p, NULL));
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    gw_cell_pool_destroy(*state);
    return 0;
}

/* A cell for the expert, as a wave takes it. */
static uint32_t take(gw_cell_pool *p, uint32_t expert, gw_cell *out_evicted)
{
    assert_true(gw_cell_pool_reserve(p));
    return gw_cell_pool_take(p, expert, true, out_evicted);
}

static uint32_t bring(gw_cell_pool *p, uint32_t expert)
{
    gw_cell evicted;
    uint32_t cell = take(p, expert, &evicted);
    gw_cell_pool_fill(p, cell);
    gw_cell_pool_ready(p, cell, 10, 20);
    gw_cell_pool_unpin(p, cell);
    return cell;
}

static void pin(gw_cell_pool *p, uint32_t expert)
{
    assert_true(gw_cell_pool_pin(p, gw_cell_pool_find(p, expert)));
}

static void free_cells_are_taken_before_anything_is_evicted(void **state)
{
    gw_cell_pool *p = *state;
    gw_cell evicted;
    for (uint32_t e = 0; e < 3; e++) {
        assert_int_equal(e, take(p, e, &evicted));
        assert_int_equal(GW_NO_EXPERT, evicted.expert);
        assert_int_equal(e, gw_cell_pool_find(p, e));
        assert_int_equal(e + 1, gw_cell_pool_n_used(p));
    }
}

static void cells_in_use_or_being_filled_cannot_be_taken(void **state)
{
    gw_cell_pool *p = *state;
    gw_cell evicted;
    bring(p, 0);
    pin(p, 0);
    uint32_t filling = take(p, 1, &evicted);
    gw_cell_pool_fill(p, filling);
    gw_cell_pool_unpin(p, filling); /* nobody waits for it, but its bytes are on the way */
    take(p, 2, &evicted);
    assert_false(gw_cell_pool_reserve(p));
    assert_int_equal(GW_NO_CELL, gw_cell_pool_take(p, 3, false, &evicted));
    gw_cell_pool_ready(p, filling, 1, 2);
    assert_int_equal(filling, take(p, 3, &evicted));
    assert_int_equal(1, evicted.expert);
    assert_int_equal(GW_NO_CELL, gw_cell_pool_find(p, 1));
}

static void a_reservation_evicts_nothing_until_it_is_used(void **state)
{
    gw_cell_pool *p = *state;
    gw_cell evicted;
    for (uint32_t e = 0; e < 3; e++) {
        bring(p, e);
    }
    assert_true(gw_cell_pool_reserve(p));
    assert_true(gw_cell_pool_reserve(p));
    for (uint32_t e = 0; e < 3; e++) {
        assert_int_not_equal(GW_NO_CELL, gw_cell_pool_find(p, e));
    }
    pin(p, 2); /* the one cell that is not promised */
    assert_false(gw_cell_pool_pin(p, gw_cell_pool_find(p, 1)));
    pin(p, 2); /* is locked already: no promise is broken */
    assert_false(gw_cell_pool_reserve(p));
    assert_int_equal(GW_NO_CELL, gw_cell_pool_take(p, 9, false, &evicted));
    gw_cell_pool_unreserve(p);
    pin(p, 1);
    assert_int_equal(0, gw_cell_pool_take(p, 8, true, &evicted));
    assert_int_equal(0, evicted.expert);
    assert_false(gw_cell_pool_reserve(p));
}

static void a_cell_given_back_can_be_reserved_at_once(void **state)
{
    gw_cell_pool *p = *state;
    gw_cell evicted;
    for (uint32_t e = 0; e < 3; e++) {
        assert_true(gw_cell_pool_reserve(p));
    }
    uint32_t cell = gw_cell_pool_take(p, 5, true, &evicted);
    assert_false(gw_cell_pool_reserve(p));
    gw_cell_pool_give_back(p, cell);
    assert_int_equal(GW_NO_CELL, gw_cell_pool_find(p, 5));
    assert_true(gw_cell_pool_reserve(p));
}

static void eviction_tells_whether_the_copy_was_used(void **state)
{
    gw_cell_pool *p = *state;
    gw_cell evicted;
    bring(p, 0);
    bring(p, 1);
    bring(p, 2);
    gw_cell_pool_use(p, gw_cell_pool_find(p, 0));
    take(p, 3, &evicted);
    assert_int_equal(1, evicted.expert);
    assert_true(evicted.unused);
    assert_int_equal(10, evicted.copy_begin_ns);
    assert_int_equal(20, evicted.copy_end_ns);
    take(p, 4, &evicted);
    assert_int_equal(2, evicted.expert);
    take(p, 5, &evicted);
    assert_int_equal(0, evicted.expert);
    assert_false(evicted.unused);
}

static void needed_experts_stay_while_others_can_go(void **state)
{
    gw_cell_pool *p = *state;
    gw_cell evicted;
    bring(p, 0);
    bring(p, 1);
    bring(p, 2);
    gw_cell_pool_need(p, 0);
    gw_cell_pool_need(p, 1);
    gw_cell_pool_need(p, 1);
    gw_cell_pool_unneed(p, 1);
    assert_true(gw_cell_pool_is_needed(p, 1));
    take(p, 3, &evicted);
    assert_int_equal(2, evicted.expert);
    assert_int_equal(GW_NO_CELL, gw_cell_pool_take(p, 4, false, &evicted));
    take(p, 4, &evicted);
    assert_int_equal(0, evicted.expert);
}

static void an_expert_needed_before_it_came_is_needed_in_its_cell(void **state)
{
    gw_cell_pool *p = *state;
    gw_cell evicted;
    gw_cell_pool_need(p, 0);
    bring(p, 0);
    bring(p, 1);
    bring(p, 2);
    take(p, 3, &evicted);
    assert_int_equal(1, evicted.expert);
}

static void a_dropped_cell_is_free_again(void **state)
{
    gw_cell_pool *p = *state;
    gw_cell evicted;
    uint32_t cell = take(p, 7, &evicted);
    gw_cell_pool_fill(p, cell);
    gw_cell_pool_unpin(p, cell);
    gw_cell_pool_drop(p, cell);
    assert_int_equal(GW_NO_CELL, gw_cell_pool_find(p, 7));
    assert_int_equal(0, gw_cell_pool_n_used(p));
    assert_int_equal(cell, take(p, 8, &evicted));
}

static void a_new_step_of_a_block_makes_its_experts_inactive(void **state)
{
    gw_cell_pool_cfg cfg = three_cells;
    gw_cell_pool *p = NULL;
    gw_cell evicted;
    (void)state;
    cfg.policy = GW_CELL_LIFO_INACTIVE;
    assert_int_equal(MOE_OK, gw_cell_pool_create(&cfg, &p, NULL));
    for (uint32_t e = 0; e < 2; e++) {
        gw_cell_pool_use(p, bring(p, e));
    }
    gw_cell_pool_use(p, bring(p, 8)); /* of the next block, loaded last */
    gw_cell_pool_begin_block(p, 0);
    gw_cell_pool_use(p, gw_cell_pool_find(p, 1));
    take(p, 9, &evicted);
    assert_int_equal(0, evicted.expert);
    gw_cell_pool_destroy(p);
}

static void uses_are_remembered_over_evictions(void **state)
{
    gw_cell_pool_cfg cfg = three_cells;
    gw_cell_pool *p = NULL;
    gw_cell evicted;
    (void)state;
    cfg.policy = GW_CELL_LFU;
    cfg.n_cells = 2;
    assert_int_equal(MOE_OK, gw_cell_pool_create(&cfg, &p, NULL));
    uint32_t cell = bring(p, 0);
    gw_cell_pool_use(p, cell);
    gw_cell_pool_use(p, cell);
    bring(p, 1);
    pin(p, 1);
    bring(p, 2); /* in place of 0 */
    assert_int_equal(GW_NO_CELL, gw_cell_pool_find(p, 0));
    bring(p, 0); /* in place of 2 */
    gw_cell_pool_unpin(p, gw_cell_pool_find(p, 1));
    gw_cell_pool_use(p, gw_cell_pool_find(p, 1));
    take(p, 3, &evicted);
    assert_int_equal(1, evicted.expert); /* used once and later; 0 was used twice, long ago */
    gw_cell_pool_destroy(p);
}

static void creation_survives_every_failing_allocation(void **state)
{
    (void)state;
    for (int n = 1;; n++) {
        gw_cell_pool *p = NULL;
        calls_until_failure = n;
        moe_status st = gw_cell_pool_create(&three_cells, &p, NULL);
        int failure_was_injected = calls_until_failure == 0;
        calls_until_failure = -1;
        if (!failure_was_injected) {
            assert_int_equal(MOE_OK, st);
            gw_cell_pool_destroy(p);
            return;
        }
        assert_int_equal(MOE_ERR_NO_MEMORY, st);
        assert_null(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(free_cells_are_taken_before_anything_is_evicted, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(cells_in_use_or_being_filled_cannot_be_taken, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_reservation_evicts_nothing_until_it_is_used, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_cell_given_back_can_be_reserved_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(eviction_tells_whether_the_copy_was_used, setup, teardown),
        cmocka_unit_test_setup_teardown(needed_experts_stay_while_others_can_go, setup, teardown),
        cmocka_unit_test_setup_teardown(an_expert_needed_before_it_came_is_needed_in_its_cell,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(a_dropped_cell_is_free_again, setup, teardown),
        cmocka_unit_test(a_new_step_of_a_block_makes_its_experts_inactive),
        cmocka_unit_test(uses_are_remembered_over_evictions),
        cmocka_unit_test(creation_survives_every_failing_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
