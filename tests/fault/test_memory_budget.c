/* The RAM budget of a store that serves: what follows it when memory comes, and when it ends early.
 * Real regions, reader and maker of slots; no sockets, and /dev/shm is as full as the test says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "common/clock.h"
#include "expert-store/server/memory_budget.h"

enum { N_EXPERTS = 32, FEW = 5, MAX_WORKERS = 2 };

static _Atomic int fallocates_until_full; /* negative: never */

int __real_posix_fallocate(int fd, off_t off, off_t bytes);
int __wrap_posix_fallocate(int fd, off_t off, off_t bytes);
int __wrap_posix_fallocate(int fd, off_t off, off_t bytes)
{
    return fallocates_until_full-- == 0 ? ENOSPC : __real_posix_fallocate(fd, off, bytes);
}

typedef struct fixture {
    xs_config cfg;
    xs_store store;
} fixture;

static void open_regions(xs_store *s)
{
    char name[MOE_SHM_NAME_BYTES];
    xs_board_geometry g = {
        .n_experts = N_EXPERTS, .n_slots = N_EXPERTS, .slot_bytes = s->model.slot_bytes};
    s->regions = XS_REGIONS_NONE;
    s->regions.n_slots = N_EXPERTS;
    s->regions.n_budget = FEW;
    snprintf(name, sizeof name, "/pregate-test-budget-%ld", (long)getpid());
    assert_int_equal(MOE_OK, moe_shm_reserve(name, N_EXPERTS * s->model.slot_bytes, 0, 0600,
                                             &s->regions.slots, NULL));
    moe_shm_unlink(name);
    s->regions.board.base = calloc(1, moe_board_bytes(N_EXPERTS));
    assert_non_null(s->regions.board.base);
    xs_board_format(s->regions.board.base, &g);
}

static void open_reader(xs_store *s)
{
    const xs_reader_cfg cfg = {.shape = &s->model.shape,
                               .synthetic_seed = s->model.seed,
                               .synthetic_dtype = s->model.expert_dtype,
                               .slots = s->regions.slots.base,
                               .slot_bytes = s->model.slot_bytes,
                               .n_slots = N_EXPERTS,
                               .engine = XS_ENGINE_SYNTHETIC,
                               .depth = 2,
                               .split_bytes = 1 << 20,
                               .n_verify_threads = 1,
                               .lock_fd = -1};
    assert_int_equal(MOE_OK, xs_reader_create(&cfg, &s->reader, NULL));
}

static void open_tables(xs_store *s)
{
    const xs_workers_cfg workers = {
        .board = s->regions.board.base, .max_workers = MAX_WORKERS, .leases = &s->leases};
    assert_int_equal(MOE_OK, xs_lease_view_init(&s->leases, N_EXPERTS, 2, NULL));
    assert_int_equal(MOE_OK, xs_workers_create(&workers, &s->workers, NULL));
    xs_budget_set_limits(s);
    const xs_residency_cfg residency = {.board = s->regions.board.base,
                                        .n_experts = N_EXPERTS,
                                        .n_slots = N_EXPERTS,
                                        .n_budget = FEW,
                                        .max_pinned = xs_budget_max_pinned(s),
                                        .leases = &s->leases,
                                        .kill = &s->kill};
    assert_int_equal(MOE_OK, xs_residency_create(&residency, &s->residency, NULL));
    xs_workers_attach(s->workers, s->residency, s->limits.lease_capacity);
}

static int setup(void **state)
{
    static fixture f;
    memset(&f, 0, sizeof f);
    xs_store *s = &f.store;
    fallocates_until_full = -1;
    f.cfg = (xs_config){
        .synthetic = "switch-tiny", .seed = 7, .max_workers = MAX_WORKERS, .ram_bytes = "all"};
    s->cfg = &f.cfg;
    assert_int_equal(MOE_OK, xs_model_open(&f.cfg, &s->model, NULL));
    assert_int_equal(N_EXPERTS, s->model.shape.n_experts_total);
    f.cfg.test_memory_piece = s->model.slot_bytes;
    open_regions(s);
    open_reader(s);
    open_tables(s);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    xs_store *s = &f->store;
    xs_slot_memory_destroy(s->slot_memory);
    xs_reader_destroy(s->reader);
    xs_workers_destroy(s->workers);
    xs_residency_destroy(s->residency);
    xs_lease_view_fini(&s->leases);
    xs_model_close(&s->model);
    free(s->regions.board.base);
    moe_shm_close(&s->regions.slots);
    return 0;
}

static void take_until_ended(xs_store *s)
{
    do {
        xs_budget_take(s);
        moe_sleep_ns(MOE_NS_PER_MS / 10);
    } while (!s->memory.ended);
}

static void open_budget(xs_store *s)
{
    assert_int_equal(MOE_OK, xs_budget_open(s, NULL));
    take_until_ended(s);
}

static uint32_t n_that_may_be_pinned(xs_store *s)
{
    uint32_t n = 0;
    while (n < N_EXPERTS && xs_residency_pin(s->residency, n, true, NULL) == MOE_OK) {
        n++;
    }
    for (uint32_t x = 0; x < n; x++) {
        assert_int_equal(MOE_OK, xs_residency_pin(s->residency, x, false, NULL));
    }
    return n;
}

static void load_into_every_free_slot(xs_store *s)
{
    uint32_t slot = 0;
    for (uint32_t x = 0; xs_residency_count(s->residency, XS_SLOT_FREE) > 0; x++) {
        assert_int_equal(MOE_OK,
                         xs_residency_begin_load(s->residency, x, XS_FETCH_DEMAND, 1, &slot, NULL));
        xs_residency_publish(s->residency, slot, 1);
    }
}

static void limits_follow_memory_once_it_is_there(void **state)
{
    fixture *f = *state;
    xs_store *s = &f->store;
    char text[WIRE_MAX_TEXT];
    open_budget(s);
    const xs_limits few = s->limits;
    assert_int_equal(FEW, s->memory.n_made);
    assert_int_equal(FEW - MAX_WORKERS - 1, n_that_may_be_pinned(s));
    assert_int_equal(MOE_OK, xs_budget_raise(s, "all", text, NULL));
    assert_non_null(strstr(text, "27 of them still to be made"));
    assert_int_equal(N_EXPERTS, s->regions.n_budget);
    assert_int_equal(few.lease_capacity, s->limits.lease_capacity);
    assert_int_equal(FEW - MAX_WORKERS - 1, n_that_may_be_pinned(s));
    take_until_ended(s);
    assert_int_equal(N_EXPERTS, s->memory.n_made);
    assert_int_equal(N_EXPERTS, xs_residency_count(s->residency, XS_SLOT_FREE));
    assert_true(s->limits.lease_capacity > few.lease_capacity);
    assert_int_equal(N_EXPERTS, n_that_may_be_pinned(s));
    assert_int_equal(N_EXPERTS * s->model.slot_bytes, moe_shm_allocated(&s->regions.slots));
}

static void a_raise_that_finds_no_memory_leaves_a_store_that_serves(void **state)
{
    fixture *f = *state;
    xs_store *s = &f->store;
    char text[WIRE_MAX_TEXT];
    open_budget(s);
    fallocates_until_full = 3;
    assert_int_equal(MOE_OK, xs_budget_raise(s, "all", text, NULL));
    take_until_ended(s);
    assert_int_equal(MOE_OK, s->memory.failure.status); /* it would stop the store */
    assert_int_equal(N_EXPERTS, s->n_ordered);          /* the statistics show both */
    assert_int_equal(FEW + 3, s->memory.n_made);
    assert_int_equal(FEW + 3, s->regions.n_budget);
    assert_int_equal(FEW + 3, xs_store_board(s)->n_budget);
    assert_int_equal(FEW + 3 - MAX_WORKERS - 1, n_that_may_be_pinned(s));
    assert_true(MAX_WORKERS * s->limits.lease_capacity + s->limits.in_flight <= FEW + 3);
    load_into_every_free_slot(s);
    assert_false(xs_residency_waits_for_memory(s->residency));
    fallocates_until_full = -1;
    assert_int_equal(MOE_OK, xs_budget_raise(s, "all", text, NULL));
    take_until_ended(s);
    assert_int_equal(N_EXPERTS, s->memory.n_made);
    assert_int_equal(N_EXPERTS, n_that_may_be_pinned(s));
}

static void a_start_that_finds_too_little_memory_is_a_failure(void **state)
{
    fixture *f = *state;
    xs_store *s = &f->store;
    fallocates_until_full = 2;
    open_budget(s);
    assert_int_equal(MOE_ERR_NO_SPACE, s->memory.failure.status);
    assert_int_equal(2, s->memory.n_made);
}

/* A full store goes on evicting while some more memory comes; it waits where all will fit. */
static void who_waits_for_memory_that_comes(void **state)
{
    fixture *f = *state;
    xs_store *s = &f->store;
    char text[WIRE_MAX_TEXT];
    open_budget(s);
    load_into_every_free_slot(s);
    s->memory.ended = true; /* nothing is taken: the new slots do not show yet */
    snprintf(text, sizeof text, "%llu", (unsigned long long)(9 * s->model.slot_bytes));
    assert_int_equal(MOE_OK, xs_budget_raise(s, text, text, NULL));
    assert_false(xs_residency_waits_for_memory(s->residency));
    assert_int_equal(MOE_OK, xs_budget_raise(s, "all", text, NULL));
    assert_true(xs_residency_waits_for_memory(s->residency));
}

static void less_memory_and_nonsense_are_refused(void **state)
{
    fixture *f = *state;
    xs_store *s = &f->store;
    char text[WIRE_MAX_TEXT];
    moe_err err = {0};
    open_budget(s);
    assert_int_equal(MOE_OK, xs_budget_raise(s, "all", text, NULL));
    assert_int_equal(MOE_ERR_LIMIT, xs_budget_raise(s, "80KiB", text, &err));
    assert_non_null(strstr(err.text, "start it with less"));
    assert_int_equal(MOE_ERR_INVALID, xs_budget_raise(s, "plenty", text, &err));
    assert_int_equal(N_EXPERTS, s->regions.n_budget);
    take_until_ended(s);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(limits_follow_memory_once_it_is_there),
        TEST(a_raise_that_finds_no_memory_leaves_a_store_that_serves),
        TEST(a_start_that_finds_too_little_memory_is_a_failure),
        TEST(who_waits_for_memory_that_comes),
        TEST(less_memory_and_nonsense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
