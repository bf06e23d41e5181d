/* loading: what starts when, over a real reader that makes experts up. No sockets: nobody is told.
 */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/clock.h"
#include "expert-store/server/loading.h"
#include "tests/support/fake_store.h"

static const fake_store_cfg eight_slots = {
    .n_experts = 32, .n_slots = 8, .n_tables = 1, .lease_capacity = 8, .max_pinned = 8};

typedef struct fixture {
    xs_config cfg;
    fake_store fake;
    xs_store store;
    void *slots;
} fixture;

static void open_reader(fixture *f)
{
    xs_store *s = &f->store;
    const xs_reader_cfg cfg = {.shape = &s->model.shape,
                               .synthetic_seed = s->model.seed,
                               .synthetic_dtype = s->model.expert_dtype,
                               .slots = f->slots,
                               .slot_bytes = s->model.slot_bytes,
                               .n_slots = eight_slots.n_slots,
                               .n_made = eight_slots.n_slots,
                               .engine = XS_ENGINE_SYNTHETIC,
                               .depth = 8,
                               .split_bytes = 1 << 20,
                               .n_verify_threads = 1,
                               .lock_fd = -1};
    assert_int_equal(MOE_OK, xs_reader_create(&cfg, &s->reader, NULL));
}

static int setup(void **state)
{
    static fixture f;
    memset(&f, 0, sizeof f);
    f.cfg = (xs_config){.synthetic = "switch-tiny", .seed = 7};
    xs_store *s = &f.store;
    s->cfg = &f.cfg;
    assert_int_equal(MOE_OK, xs_model_open(&f.cfg, &s->model, NULL));
    assert_int_equal(eight_slots.n_experts, s->model.shape.n_experts_total);
    fake_store_init(&f.fake, &eight_slots);
    s->residency = f.fake.residency;
    f.slots = aligned_alloc(4096, eight_slots.n_slots * s->model.slot_bytes);
    assert_non_null(f.slots);
    open_reader(&f);
    assert_int_equal(MOE_OK, xs_fetch_queue_create(eight_slots.n_experts, &s->queue, NULL));
    const xs_workers_cfg none = {.board = f.fake.board, .max_workers = 1, .leases = &f.fake.leases};
    assert_int_equal(MOE_OK, xs_workers_create(&none, &s->workers, NULL));
    s->limits = (xs_limits){.in_flight = 4, .speculative_in_flight = 2, .lease_capacity = 1};
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    xs_store *s = &f->store;
    xs_reader_destroy(s->reader);
    xs_reverify_destroy(s->reverify);
    xs_workers_destroy(s->workers);
    xs_fetch_queue_destroy(s->queue);
    fake_store_fini(&f->fake);
    xs_model_close(&s->model);
    free(f->slots);
    return 0;
}

static void queue(fixture *f, xs_fetch_class cls, uint32_t first, uint32_t n)
{
    for (uint32_t x = first; x < first + n; x++) {
        (void)xs_fetch_queue_push(f->store.queue, x, cls, 0, 0, 1);
    }
}

static void finish(fixture *f)
{
    int64_t deadline_ns = moe_now_ns() + 5 * MOE_NS_PER_S;
    while (f->store.n_in_flight > 0) {
        struct pollfd p = {.fd = xs_reader_fd(f->store.reader), .events = POLLIN};
        (void)poll(&p, 1, 100);
        (void)xs_loading_harvest(&f->store, 2);
        assert_true(moe_now_ns() < deadline_ns);
    }
}

static moe_board_state state_of(const fixture *f, uint32_t expert)
{
    return xs_residency_state(f->fake.residency, expert);
}

static void speculation_is_bounded_and_demand_overtakes_it(void **state)
{
    fixture *f = *state;
    queue(f, XS_FETCH_WARM, 0, 6);
    assert_int_equal(2, xs_loading_start(&f->store, 1));
    assert_int_equal(0, xs_loading_start(&f->store, 1));
    queue(f, XS_FETCH_DEMAND, 20, 6);
    assert_int_equal(2, xs_loading_start(&f->store, 1)); /* four in flight are the limit */
    assert_int_equal(MOE_BOARD_LOADING, state_of(f, 20));
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 2));
    assert_false(f->store.starved);
    finish(f);
    assert_int_equal(0, f->store.n_speculative);
    assert_int_equal(MOE_BOARD_READY, state_of(f, 0));
    assert_int_equal(MOE_BOARD_READY, state_of(f, 21));
    assert_int_equal(4, xs_loading_start(&f->store, 1));
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 2)); /* the other demands come first */
    assert_int_equal(2, f->store.counters.loads[XS_FETCH_WARM]);
    assert_int_equal(6, f->store.counters.loads[XS_FETCH_DEMAND]);
    finish(f);
}

static void what_came_in_meanwhile_is_not_read_again(void **state)
{
    fixture *f = *state;
    queue(f, XS_FETCH_DEMAND, 3, 1);
    assert_int_equal(1, xs_loading_start(&f->store, 1));
    queue(f, XS_FETCH_DEMAND, 3, 1);
    assert_int_equal(0, xs_loading_start(&f->store, 1));
    assert_int_equal(0, xs_fetch_queue_length(f->store.queue, XS_FETCH_DEMAND));
    finish(f);
    queue(f, XS_FETCH_DEMAND, 3, 1);
    assert_int_equal(0, xs_loading_start(&f->store, 1));
}

static void old_predictions_are_dropped_unread(void **state)
{
    fixture *f = *state;
    xs_residency_predict(f->fake.residency, 1, 100); /* kept for 1000 ns (fake_store.c) */
    xs_residency_predict(f->fake.residency, 2, 900);
    queue(f, XS_FETCH_NEAR, 1, 2);
    assert_int_equal(1, xs_loading_start(&f->store, 1500));
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 1));
    assert_int_equal(MOE_BOARD_LOADING, state_of(f, 2));
    assert_int_equal(1, f->store.counters.predictions_expired);
    finish(f);
}

static void a_store_that_stops_reads_only_what_was_wanted(void **state)
{
    fixture *f = *state;
    queue(f, XS_FETCH_WARM, 0, 3);
    queue(f, XS_FETCH_DEMAND, 10, 1);
    f->store.stopping = true;
    assert_false(xs_loading_is_idle(&f->store));
    assert_int_equal(1, xs_loading_start(&f->store, 1));
    assert_int_equal(MOE_BOARD_LOADING, state_of(f, 10));
    assert_int_equal(0, xs_fetch_queue_length(f->store.queue, XS_FETCH_WARM));
    assert_false(xs_loading_is_idle(&f->store));
    finish(f);
    assert_true(xs_loading_is_idle(&f->store));
}

static void a_read_that_finds_no_slot_waits_in_the_queue(void **state)
{
    fixture *f = *state;
    for (uint32_t x = 0; x < 8; x++) {
        fake_store_load(&f->fake, x, 1);
        fake_store_lease(&f->fake, 0, x, x);
    }
    queue(f, XS_FETCH_DEMAND, 9, 1);
    assert_int_equal(0, xs_loading_start(&f->store, 2));
    assert_true(f->store.starved);
    assert_int_equal(1, xs_fetch_queue_length(f->store.queue, XS_FETCH_DEMAND));
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 9));
    fake_store_release(&f->fake, 0, 5);
    assert_int_equal(1, xs_loading_start(&f->store, 3));
    assert_false(f->store.starved);
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 5));
    finish(f);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(speculation_is_bounded_and_demand_overtakes_it),
        TEST(what_came_in_meanwhile_is_not_read_again),
        TEST(old_predictions_are_dropped_unread),
        TEST(a_store_that_stops_reads_only_what_was_wanted),
        TEST(a_read_that_finds_no_slot_waits_in_the_queue),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
