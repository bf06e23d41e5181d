/* workers: places and lease tables, liveness by flock, and what keeps a slot for whom. The tables
 * are real shared memory; the test holds the locks that workers would. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include <cmocka.h>

#include "expert-store/server/regions.h"
#include "expert-store/server/workers.h"
#include "tests/support/fake_store.h"

enum { HOLD_NS = 2000, GRACE_NS = 500 };

static const fake_store_cfg four_slots = {.n_experts = 8, .n_slots = 4, .max_pinned = 1};

typedef struct fixture {
    fake_store store;
    char prefix[XS_REGION_PREFIX_BYTES];
    xs_workers_cfg cfg;
    xs_workers *workers;
} fixture;

static void make_workers(fixture *f)
{
    assert_int_equal(MOE_OK, xs_workers_create(&f->cfg, &f->workers, NULL));
}

static int setup(void **state)
{
    static fixture f;
    fake_store_init(&f.store, &four_slots);
    snprintf(f.prefix, sizeof f.prefix, "/pregate-test-workers-%d", (int)getpid());
    f.cfg = (xs_workers_cfg){.board = f.store.board,
                             .prefix = f.prefix,
                             .n_experts = four_slots.n_experts,
                             .n_blocks = FAKE_BLOCKS,
                             .max_workers = 2,
                             .mode = 0600,
                             .grace_ns = GRACE_NS,
                             .hold_ns = HOLD_NS,
                             .leases = &f.store.leases};
    memcpy(f.cfg.store_uuid, f.store.geometry.store_uuid, sizeof f.cfg.store_uuid);
    make_workers(&f);
    xs_workers_attach(f.workers, f.store.residency, 2);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    xs_workers_destroy(f->workers);
    for (uint32_t id = 1; id < 8; id++) {
        char name[MOE_SHM_NAME_BYTES];
        xs_lease_region_name(f->prefix, id, name);
        moe_shm_unlink(name);
    }
    fake_store_fini(&f->store);
    return 0;
}

static wire_peer peer_of(uint8_t n)
{
    return (wire_peer){.id = {n}, .id_bytes = 1, .pid = 1000u + n};
}

static moe_status join(fixture *f, uint8_t peer, uint32_t worker_id, uint32_t *out_place)
{
    const wire_hello hello = {.name = "test", .worker_id = worker_id};
    const wire_peer p = peer_of(peer);
    return xs_workers_join(f->workers, &hello, &p, 0, out_place, NULL);
}

static uint32_t joined(fixture *f, uint8_t peer)
{
    uint32_t place = 99;
    assert_int_equal(MOE_OK, join(f, peer, 0, &place));
    return place;
}

/* What the worker's process would do: its own descriptor, locked. */
static int lock_table(fixture *f, uint32_t place)
{
    const xs_worker *w = xs_workers_at(f->workers, place);
    char path[MOE_SHM_NAME_BYTES + 16];
    snprintf(path, sizeof path, "/dev/shm%s", w->table.name);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(0, flock(fd, LOCK_EX | LOCK_NB));
    return fd;
}

static void *table_of(fixture *f, uint32_t place)
{
    return xs_workers_at(f->workers, place)->table.base;
}

static void use(fixture *f, uint32_t place, uint32_t expert)
{
    atomic_fetch_add(&moe_lease_uses(table_of(f, place))[expert].count, 1);
}

static bool is_held(fixture *f, uint32_t slot)
{
    return xs_residency_slot(f->store.residency, slot)->n_holds > 0;
}

static xs_ask *ask(fixture *f, uint32_t place, uint32_t expert, uint64_t step, int64_t now_ns)
{
    bool is_new = false;
    return xs_workers_ask(f->workers, place, expert, step, now_ns, &is_new);
}

/* WANT, load, READY. */
static uint32_t want(fixture *f, uint32_t place, uint32_t expert, int64_t now_ns)
{
    xs_ask *a = ask(f, place, expert, 0, now_ns);
    uint32_t slot = fake_store_load(&f->store, expert, now_ns);
    xs_workers_hold(f->workers, place, a, slot, now_ns);
    return slot;
}

/* ---- joining ---- */

static void joining_makes_a_table_and_registers_it(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    const xs_worker *w = xs_workers_at(f->workers, place);
    const moe_board_header *board = f->store.board;
    const moe_lease_header *h = w->table.base;
    assert_int_equal(1, w->id);
    assert_int_equal(1, board->registry[place].worker_id);
    assert_int_equal(2, board->registry[place].lease_capacity);
    assert_int_equal(0, memcmp(&h->magic, MOE_LEASE_MAGIC, 8));
    assert_int_equal(2, h->capacity);
    assert_int_equal(1, h->worker_id);
    assert_ptr_equal(h, f->store.leases.at[place].table);
    assert_int_equal(1, xs_workers_count(f->workers));
    const wire_peer p = peer_of(1);
    const wire_peer stranger = peer_of(2);
    assert_int_equal((int)place, xs_workers_find(f->workers, &p));
    assert_int_equal(-1, xs_workers_find(f->workers, &stranger));
}

static void hello_again_is_the_same_worker(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    uint32_t again = 99;
    assert_int_equal(MOE_OK, join(f, 1, 0, &again));
    assert_int_equal(place, again);
    assert_int_equal(1, xs_workers_count(f->workers));
    assert_int_equal(0, xs_workers_get_counters(f->workers)->rejoined);
}

static void an_id_is_given_back_to_its_process_only(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    uint32_t again = 99;
    int fd = lock_table(f, place);
    assert_int_equal(MOE_ERR_BUSY, join(f, 2, 1, &again));
    assert_int_equal(99, again);
    const wire_hello hello = {.worker_id = 1};
    const wire_peer same_process = {.id = {7}, .id_bytes = 1, .pid = 1001};
    assert_int_equal(MOE_OK, xs_workers_join(f->workers, &hello, &same_process, 0, &again, NULL));
    assert_int_equal(place, again);
    assert_int_equal(1, xs_workers_get_counters(f->workers)->rejoined);
    close(fd);
}

static void a_table_nobody_locks_is_reused_without_its_leases(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    uint32_t again = 99;
    atomic_store(&moe_lease_words(table_of(f, place))[1], 77);
    assert_int_equal(MOE_OK, join(f, 2, 1, &again));
    assert_int_equal(place, again);
    assert_int_equal(0, moe_lease_words(table_of(f, place))[1]);
}

static void a_worker_that_came_back_keeps_its_leases(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    uint32_t again = 99;
    int fd = lock_table(f, place);
    atomic_store(&moe_lease_words(table_of(f, place))[1], 77);
    const wire_hello hello = {.worker_id = 1};
    const wire_peer new_connection = {.id = {9}, .id_bytes = 1, .pid = 1001};
    assert_int_equal(MOE_OK, xs_workers_join(f->workers, &hello, &new_connection, 0, &again, NULL));
    assert_int_equal(77, moe_lease_words(table_of(f, place))[1]);
    close(fd);
}

static void places_are_limited_and_ids_are_not_used_again(void **state)
{
    fixture *f = *state;
    uint32_t place = 99;
    uint32_t first = joined(f, 1);
    (void)joined(f, 2);
    moe_err err = {0};
    const wire_hello hello = {.worker_id = 0};
    const wire_peer third = peer_of(3);
    assert_int_equal(MOE_ERR_LIMIT, xs_workers_join(f->workers, &hello, &third, 0, &place, &err));
    assert_non_null(strstr(err.text, "--max-workers"));
    assert_int_equal(99, place);
    xs_workers_remove(f->workers, first);
    assert_int_equal(first, joined(f, 3));
    assert_int_equal(3, xs_workers_at(f->workers, first)->id);
}

/* ---- liveness ---- */

static void a_worker_lives_while_its_lock_is_held(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    int fd = lock_table(f, place);
    assert_int_equal(0, xs_workers_probe(f->workers, 10));
    assert_int_equal(0, xs_workers_probe(f->workers, GRACE_NS * 100));
    close(fd);
    assert_int_equal(1u << place, xs_workers_probe(f->workers, 11));
}

static void a_new_worker_has_time_to_take_its_lock(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    assert_int_equal(0, xs_workers_probe(f->workers, GRACE_NS));
    assert_int_equal(1u << place, xs_workers_probe(f->workers, GRACE_NS + 1));
}

static void a_pid_in_the_table_says_that_the_lock_was_there(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    moe_lease_header *h = table_of(f, place);
    atomic_store(&h->pid, 1001); /* locked, wrote this, died: between two looks */
    assert_int_equal(1u << place, xs_workers_probe(f->workers, 1));
}

static void removing_a_worker_ends_all_it_had(void **state)
{
    fixture *f = *state;
    char name[MOE_SHM_NAME_BYTES];
    moe_shm_region none = MOE_SHM_REGION_NONE;
    uint32_t place = joined(f, 1);
    uint32_t slot = want(f, place, 5, 10);
    (void)ask(f, place, 6, 0, 10);
    use(f, place, 3);
    memcpy(name, xs_workers_at(f->workers, place)->table.name, sizeof name);
    assert_true(is_held(f, slot));
    xs_workers_remove(f->workers, place);
    assert_false(is_held(f, slot));
    assert_null(xs_workers_at(f->workers, place));
    assert_int_equal(0, ((moe_board_header *)f->store.board)->registry[place].worker_id);
    assert_int_equal(MOE_ERR_NOT_FOUND, moe_shm_open(name, false, &none, NULL));
    int64_t last = 0;
    assert_int_equal(1, xs_lease_view_uses(&f->store.leases, 3, &last)); /* counted on */
    assert_int_equal(1, xs_workers_get_counters(f->workers)->gone);
}

/* ---- adoption ---- */

static void registered_tables_are_found_again(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    int fd = lock_table(f, place);
    atomic_store(&moe_lease_words(table_of(f, place))[0], 1234);
    xs_workers_destroy(f->workers); /* a crash: names and registry stay */
    make_workers(f);
    assert_int_equal(MOE_OK, xs_workers_adopt(f->workers, 0, NULL));
    xs_workers_attach(f->workers, f->store.residency, 1); /* other memory now */
    const xs_worker *w = xs_workers_at(f->workers, place);
    assert_int_equal(1, w->id);
    assert_int_equal(2, w->capacity);
    assert_int_equal(1234, moe_lease_words(table_of(f, place))[0]);
    assert_int_equal(0, xs_workers_probe(f->workers, GRACE_NS + 1));
    uint32_t second = joined(f, 2);
    assert_int_equal(2, xs_workers_at(f->workers, second)->id);
    assert_int_equal(1, xs_workers_at(f->workers, second)->capacity);
    close(fd);
}

static void an_unusable_table_is_dropped_or_spoils_all(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    int fd = lock_table(f, place);
    ((moe_lease_header *)table_of(f, place))->capacity = 1;
    xs_workers_destroy(f->workers);
    make_workers(f);
    assert_int_equal(MOE_ERR_FORMAT, xs_workers_adopt(f->workers, 0, NULL));
    xs_workers_destroy(f->workers);
    close(fd); /* nobody uses it any more */
    make_workers(f);
    assert_int_equal(MOE_OK, xs_workers_adopt(f->workers, 0, NULL));
    assert_int_equal(0, xs_workers_count(f->workers));
    assert_int_equal(0, ((moe_board_header *)f->store.board)->registry[place].worker_id);
}

/* ---- asks and holds ---- */

static void asking_again_is_the_same_ask_at_a_later_step(void **state)
{
    fixture *f = *state;
    bool is_new = false;
    uint32_t place = joined(f, 1);
    (void)xs_workers_ask(f->workers, place, 5, 3, 10, &is_new);
    assert_true(is_new);
    xs_ask *a = xs_workers_ask(f->workers, place, 5, 7, 20, &is_new);
    assert_false(is_new);
    assert_int_equal(7, a->step);
    assert_int_equal(10, a->asked_ns);
    (void)xs_workers_ask(f->workers, place, 5, 4, 30, &is_new);
    assert_int_equal(7, a->step);
    assert_null(xs_workers_find_ask(f->workers, place, 6));
}

static void ending_asks_in_any_order_keeps_the_others_found(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    static const uint32_t order[] = {2, 7, 0, 5, 1, 6, 3, 4};
    const xs_worker *w = xs_workers_at(f->workers, place);
    for (uint32_t x = 0; x < 8; x++) {
        (void)ask(f, place, x, x, 10);
    }
    for (uint32_t i = 0; i < 8; i++) {
        xs_workers_end_ask(f->workers, place, xs_workers_find_ask(f->workers, place, order[i]));
        for (uint32_t j = 0; j < 8; j++) {
            const xs_ask *a = xs_workers_find_ask(f->workers, place, order[j]);
            assert_true((a != NULL) == (j > i));
            assert_true(a == NULL || a->expert == order[j]);
            assert_true(a == NULL || a < w->asks + w->n_asks);
        }
    }
    assert_int_equal(0, w->n_asks);
}

static void cancelling_ends_asks_up_to_a_step(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    for (uint32_t x = 0; x < 6; x++) {
        (void)ask(f, place, x, x, 10);
    }
    xs_workers_cancel(f->workers, place, 3);
    assert_int_equal(2, xs_workers_at(f->workers, place)->n_asks);
    assert_null(xs_workers_find_ask(f->workers, place, 3));
    assert_non_null(xs_workers_find_ask(f->workers, place, 4));
}

static void a_loaded_slot_is_kept_until_its_lease_is_seen(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    uint32_t slot = want(f, place, 5, 10);
    assert_int_equal(0, xs_workers_settle(f->workers, 20));
    assert_true(is_held(f, slot));
    atomic_store(&moe_lease_words(table_of(f, place))[1], fake_store_word(&f->store, 5));
    assert_int_equal(0, xs_workers_settle(f->workers, 30));
    assert_false(is_held(f, slot));
    assert_int_equal(0, xs_workers_at(f->workers, place)->n_asks);
}

static void a_use_shows_a_lease_that_came_and_went(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    uint32_t other = joined(f, 2);
    uint32_t slot = want(f, place, 5, 10);
    use(f, other, 5); /* somebody else's */
    assert_int_equal(0, xs_workers_settle(f->workers, 20));
    assert_true(is_held(f, slot));
    use(f, place, 5);
    assert_int_equal(0, xs_workers_settle(f->workers, 30));
    assert_false(is_held(f, slot));
}

/* READY is on the board before the store writes down that it holds the slot. */
static void a_use_between_ready_and_hold_counts(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    xs_ask *a = ask(f, place, 5, 0, 10);
    uint32_t slot = fake_store_load(&f->store, 5, 11);
    use(f, place, 5);
    xs_workers_hold(f->workers, place, a, slot, 12);
    assert_int_equal(0, xs_workers_settle(f->workers, 13));
    assert_false(is_held(f, slot));
}

static void two_workers_keep_the_same_slot_each_for_itself(void **state)
{
    fixture *f = *state;
    uint32_t a = joined(f, 1);
    uint32_t b = joined(f, 2);
    uint32_t slot = want(f, a, 5, 10);
    xs_workers_hold(f->workers, b, ask(f, b, 5, 0, 10), slot, 10);
    use(f, a, 5);
    assert_int_equal(0, xs_workers_settle(f->workers, 20));
    assert_true(is_held(f, slot));
    use(f, b, 5);
    assert_int_equal(0, xs_workers_settle(f->workers, 30));
    assert_false(is_held(f, slot));
}

static void an_expert_that_moved_is_kept_where_it_is_now(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    uint32_t slot = want(f, place, 5, 10);
    xs_residency_condemn(f->store.residency, slot);
    uint32_t moved = fake_store_load(&f->store, 5, 20);
    assert_int_not_equal(slot, moved);
    xs_workers_hold(f->workers, place, ask(f, place, 5, 0, 20), moved, 20);
    assert_true(is_held(f, moved));
    assert_false(is_held(f, slot));
    assert_int_equal(1, xs_residency_sweep(f->store.residency));
}

static void wanting_again_what_one_had_is_a_new_ask(void **state)
{
    fixture *f = *state;
    bool is_new = false;
    uint32_t place = joined(f, 1);
    (void)want(f, place, 5, 10);
    use(f, place, 5);
    (void)xs_workers_ask(f->workers, place, 5, 1, 20, &is_new);
    assert_true(is_new);
}

static void a_worker_that_takes_nothing_is_stalled(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    uint32_t slot = want(f, place, 5, 10);
    (void)ask(f, place, 6, 0, 10);
    assert_int_equal(0, xs_workers_settle(f->workers, 10 + HOLD_NS - 1));
    assert_int_equal(1u << place, xs_workers_settle(f->workers, 10 + HOLD_NS));
    assert_false(is_held(f, slot));
    assert_int_equal(0, xs_workers_at(f->workers, place)->n_asks);
    assert_int_equal(1, xs_workers_get_counters(f->workers)->stalled);
}

static void a_worker_that_takes_one_after_another_is_not_stalled(void **state)
{
    fixture *f = *state;
    uint32_t place = joined(f, 1);
    uint32_t slot = want(f, place, 5, 10);
    (void)want(f, place, 6, 10);
    use(f, place, 6);
    assert_int_equal(0, xs_workers_settle(f->workers, HOLD_NS));
    assert_int_equal(0, xs_workers_settle(f->workers, HOLD_NS + 11)); /* 5 waits for long */
    assert_true(is_held(f, slot));
    assert_int_equal(1u << place, xs_workers_settle(f->workers, 2 * HOLD_NS));
}

static void the_oldest_hold_is_broken_first_and_none_too_early(void **state)
{
    fixture *f = *state;
    uint32_t a = joined(f, 1);
    uint32_t b = joined(f, 2);
    uint32_t first = want(f, b, 5, 10);
    uint32_t second = want(f, a, 6, 20);
    assert_false(xs_workers_break_hold(f->workers, 59, 50));
    assert_true(xs_workers_break_hold(f->workers, 60, 50));
    assert_false(is_held(f, first));
    assert_true(is_held(f, second));
    assert_false(xs_workers_break_hold(f->workers, 69, 50));
    assert_true(xs_workers_break_hold(f->workers, 70, 50));
    assert_false(xs_workers_break_hold(f->workers, 1000, 50));
    assert_int_equal(2, xs_workers_get_counters(f->workers)->holds_broken);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(joining_makes_a_table_and_registers_it),
        TEST(hello_again_is_the_same_worker),
        TEST(an_id_is_given_back_to_its_process_only),
        TEST(a_table_nobody_locks_is_reused_without_its_leases),
        TEST(a_worker_that_came_back_keeps_its_leases),
        TEST(places_are_limited_and_ids_are_not_used_again),
        TEST(a_worker_lives_while_its_lock_is_held),
        TEST(a_new_worker_has_time_to_take_its_lock),
        TEST(a_pid_in_the_table_says_that_the_lock_was_there),
        TEST(removing_a_worker_ends_all_it_had),
        TEST(registered_tables_are_found_again),
        TEST(an_unusable_table_is_dropped_or_spoils_all),
        TEST(asking_again_is_the_same_ask_at_a_later_step),
        TEST(ending_asks_in_any_order_keeps_the_others_found),
        TEST(cancelling_ends_asks_up_to_a_step),
        TEST(a_loaded_slot_is_kept_until_its_lease_is_seen),
        TEST(a_use_shows_a_lease_that_came_and_went),
        TEST(a_use_between_ready_and_hold_counts),
        TEST(two_workers_keep_the_same_slot_each_for_itself),
        TEST(an_expert_that_moved_is_kept_where_it_is_now),
        TEST(wanting_again_what_one_had_is_a_new_ask),
        TEST(a_worker_that_takes_nothing_is_stalled),
        TEST(a_worker_that_takes_one_after_another_is_not_stalled),
        TEST(the_oldest_hold_is_broken_first_and_none_too_early),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
