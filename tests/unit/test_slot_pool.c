/* slot_pool: which slot is free, and the counts per state that statistics show. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "expert-store/server/slot_pool.h"

enum { N_SLOTS = 5 };

static xs_slot_pool *make(void)
{
    xs_slot_pool *p = NULL;
    assert_int_equal(MOE_OK, xs_slot_pool_create(N_SLOTS, &p, NULL));
    xs_slot_pool_grow(p, N_SLOTS);
    return p;
}

static uint32_t take(xs_slot_pool *p, uint32_t expert)
{
    uint32_t slot = UINT32_MAX;
    assert_int_equal(MOE_OK, xs_slot_pool_acquire(p, expert, XS_FETCH_DEMAND, &slot, NULL));
    return slot;
}

static void slots_are_taken_from_the_lowest_on(void **state)
{
    (void)state;
    xs_slot_pool *p = make();
    for (uint32_t i = 0; i < N_SLOTS; i++) {
        assert_int_equal(i, take(p, 100 + i));
        assert_int_equal(100 + i, xs_slot_pool_at(p, i)->expert);
        assert_int_equal(XS_SLOT_LOADING, xs_slot_pool_at(p, i)->state);
    }
    xs_slot_pool_destroy(p);
}

static void slots_that_are_not_made_are_not_taken(void **state)
{
    (void)state;
    xs_slot_pool *p = NULL;
    uint32_t slot = 77;
    assert_int_equal(MOE_OK, xs_slot_pool_create(N_SLOTS, &p, NULL));
    assert_int_equal(N_SLOTS, xs_slot_pool_count(p, XS_SLOT_UNMADE));
    assert_int_equal(MOE_ERR_NO_SLOT, xs_slot_pool_acquire(p, 9, XS_FETCH_DEMAND, &slot, NULL));
    xs_slot_pool_grow(p, 2);
    assert_int_equal(N_SLOTS - 2, xs_slot_pool_count(p, XS_SLOT_UNMADE));
    assert_int_equal(0, take(p, 1));
    assert_int_equal(1, take(p, 2));
    assert_int_equal(MOE_ERR_NO_SLOT, xs_slot_pool_acquire(p, 9, XS_FETCH_DEMAND, &slot, NULL));
    xs_slot_pool_grow(p, 2);
    xs_slot_pool_grow(p, N_SLOTS);
    assert_int_equal(0, xs_slot_pool_count(p, XS_SLOT_UNMADE));
    assert_int_equal(2, take(p, 9));
    xs_slot_pool_destroy(p);
}

static void acquire_when_full_reports_no_slot(void **state)
{
    (void)state;
    xs_slot_pool *p = make();
    uint32_t slot = 77;
    moe_err err = {0};
    for (uint32_t i = 0; i < N_SLOTS; i++) {
        (void)take(p, i);
    }
    assert_int_equal(MOE_ERR_NO_SLOT, xs_slot_pool_acquire(p, 9, XS_FETCH_DEMAND, &slot, &err));
    assert_int_equal(77, slot); /* untouched */
    assert_int_equal(MOE_ERR_NO_SLOT, err.status);
    xs_slot_pool_release(p, 3);
    assert_int_equal(3, take(p, 9));
    xs_slot_pool_destroy(p);
}

static void the_life_of_a_slot_is_counted(void **state)
{
    (void)state;
    xs_slot_pool *p = make();
    uint32_t slot = take(p, 1);
    assert_int_equal(1, xs_slot_pool_count(p, XS_SLOT_LOADING));
    xs_slot_pool_publish(p, slot, 55);
    assert_int_equal(55, xs_slot_pool_at(p, slot)->loaded_ns);
    assert_int_equal(0, xs_slot_pool_count(p, XS_SLOT_LOADING));
    assert_int_equal(1, xs_slot_pool_count(p, XS_SLOT_READY));
    xs_slot_pool_condemn(p, slot);
    assert_int_equal(0, xs_slot_pool_count(p, XS_SLOT_READY));
    assert_int_equal(1, xs_slot_pool_count(p, XS_SLOT_CONDEMNED));
    assert_int_equal(N_SLOTS - 1, xs_slot_pool_count(p, XS_SLOT_FREE));
    xs_slot_pool_release(p, slot);
    assert_int_equal(N_SLOTS, xs_slot_pool_count(p, XS_SLOT_FREE));
    assert_int_equal(N_SLOTS, xs_slot_pool_size(p));
    xs_slot_pool_destroy(p);
}

static void an_adopted_slot_is_no_longer_handed_out(void **state)
{
    (void)state;
    xs_slot_pool *p = make();
    xs_slot_pool_adopt(p, 2, 42, 7);
    xs_slot_pool_adopt(p, 0, 43, 7);
    xs_slot_pool_condemn(p, 4);
    assert_true(xs_slot_pool_at(p, 2)->unverified);
    assert_int_equal(42, xs_slot_pool_at(p, 2)->expert);
    assert_int_equal(2, xs_slot_pool_count(p, XS_SLOT_READY));
    uint32_t a = take(p, 1);
    uint32_t b = take(p, 2);
    assert_true((a == 1 && b == 3) || (a == 3 && b == 1));
    uint32_t none = 0;
    assert_int_equal(MOE_ERR_NO_SLOT, xs_slot_pool_acquire(p, 3, XS_FETCH_WARM, &none, NULL));
    xs_slot_pool_destroy(p);
}

static void a_new_load_forgets_what_was_noted_of_the_old_one(void **state)
{
    (void)state;
    xs_slot_pool *p = make();
    xs_slot_pool_adopt(p, 4, 42, 7);
    xs_slot *s = xs_slot_pool_at(p, 4);
    s->wanted = true;
    s->n_holds = 0;
    s->uses_at_load = 9;
    xs_slot_pool_release(p, 4);
    for (uint32_t i = 0; i < N_SLOTS; i++) {
        (void)take(p, i);
    }
    assert_false(s->wanted);
    assert_false(s->unverified);
    assert_int_equal(0, s->uses_at_load);
    xs_slot_pool_destroy(p);
}

/* Every order of taking and giving back leaves each slot in exactly one place. */
static void no_slot_is_lost_or_doubled_under_random_use(void **state)
{
    (void)state;
    xs_slot_pool *p = make();
    uint64_t seed = 12345;
    bool taken[N_SLOTS] = {0};
    uint32_t n_taken = 0;
    for (int i = 0; i < 20000; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        uint32_t r = (uint32_t)(seed >> 33);
        uint32_t slot = r % N_SLOTS;
        if ((r & 0x10000) != 0 && n_taken < N_SLOTS) {
            slot = take(p, r);
            assert_false(taken[slot]);
            taken[slot] = true;
            n_taken++;
        } else if (taken[slot]) {
            xs_slot_pool_release(p, slot);
            taken[slot] = false;
            n_taken--;
        }
        assert_int_equal(N_SLOTS - n_taken, xs_slot_pool_count(p, XS_SLOT_FREE));
    }
    xs_slot_pool_destroy(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slots_are_taken_from_the_lowest_on),
        cmocka_unit_test(slots_that_are_not_made_are_not_taken),
        cmocka_unit_test(acquire_when_full_reports_no_slot),
        cmocka_unit_test(the_life_of_a_slot_is_counted),
        cmocka_unit_test(an_adopted_slot_is_no_longer_handed_out),
        cmocka_unit_test(a_new_load_forgets_what_was_noted_of_the_old_one),
        cmocka_unit_test(no_slot_is_lost_or_doubled_under_random_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
