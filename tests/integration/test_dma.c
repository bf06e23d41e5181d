/* Slot -> cell copies over a slow link: order, pieces, leases, signals, a failing device.
 * argv: path of expert-store. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/clock.h"
#include "expert-store/catalog/synthetic.h"
#include "gpu-worker/fetch/dma.h"
#include "tests/support/store_rig.h"

static const char *store_program;

enum { SLOT_BYTES = 8192, PIECES = 8, SEED = 7, N_CELLS = 4, MAX_LANDINGS = 16 };

typedef struct fixture {
    store_rig rig;
    krn_ops ops; /* a copy, so that a test can break it */
    krn_device *device;
    gw_store_client *client;
    gw_slot_pins pins;
    gw_dma *dma;
    char cells[N_CELLS][SLOT_BYTES];
    gw_landing landings[MAX_LANDINGS];
    uint32_t n_landings;
    moe_err err;
} fixture;

static void ok(fixture *f, moe_status st)
{
    if (st != MOE_OK) {
        fail_msg("%s: %s", moe_status_name(st), f->err.text);
    }
}

/* 200 KB/s: an expert takes 40 ms, a piece 5 ms. */
static int setup(void **state)
{
    static fixture f;
    const krn_ops *cpu = NULL;
    const char *const args[] = {"--synthetic", "switch-tiny", "--seed", "7", NULL};
    const krn_open_cfg open = {.n_threads = 1, .link_gbps = 0.0002};
    memset(&f, 0, sizeof f);
    store_rig_init(&f.rig, store_program);
    store_rig_start(&f.rig, args);
    const gw_store_client_cfg client = {
        .endpoint = f.rig.endpoint, .name = "test", .connect_timeout_ns = 10 * MOE_NS_PER_S};
    ok(&f, gw_store_client_create(&client, &f.client, &f.err));
    ok(&f, krn_ops_find("cpu", &cpu, NULL, 0, &f.err));
    f.ops = *cpu;
    ok(&f, f.ops.backend.open(&open, &f.device, &f.err));
    gw_slot_pins_init(&f.pins, &f.ops, f.device, f.client);
    const gw_dma_cfg dma = {.ops = &f.ops,
                            .device = f.device,
                            .client = f.client,
                            .n_cells = N_CELLS,
                            .expert_bytes = SLOT_BYTES,
                            .piece_bytes = SLOT_BYTES / PIECES,
                            .pins = &f.pins};
    ok(&f, gw_dma_create(&dma, &f.dma, &f.err));
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    gw_dma_destroy(f->dma);
    gw_slot_pins_fini(&f->pins);
    gw_store_client_destroy(f->client);
    f->ops.backend.close(f->device);
    store_rig_fini(&f->rig);
    return 0;
}

static moe_status start(fixture *f, uint32_t expert, uint32_t cell, bool speculative)
{
    const gw_dma_copy copy = {
        .expert = expert, .cell = cell, .dst = f->cells[cell], .speculative = speculative};
    return gw_dma_start(f->dma, &copy, &f->err);
}

static void make_resident(fixture *f, uint32_t expert)
{
    int64_t deadline_ns = moe_now_ns() + 10 * MOE_NS_PER_S;
    gw_store_client_want(f->client, 1, &expert, 1);
    while (!gw_store_client_is_resident(f->client, expert)) {
        ok(f, gw_store_client_poll(f->client, moe_now_ns(), &f->err));
        moe_sleep_ns(MOE_NS_PER_MS);
        assert_true(moe_now_ns() < deadline_ns);
    }
}

static void all_resident(fixture *f)
{
    for (uint32_t x = 0; x < N_CELLS; x++) {
        make_resident(f, x);
    }
}

static void on_landed(void *user, const gw_landing *l)
{
    fixture *f = user;
    assert_true(f->n_landings < MAX_LANDINGS);
    f->landings[f->n_landings++] = *l;
}

static void poll_until(fixture *f, uint32_t n_landings)
{
    bool any = false;
    int64_t deadline_ns = moe_now_ns() + 10 * MOE_NS_PER_S;
    while (f->n_landings < n_landings) {
        ok(f, gw_dma_poll(f->dma, on_landed, f, &any, &f->err));
        moe_sleep_ns(100 * MOE_NS_PER_US);
        assert_true(moe_now_ns() < deadline_ns);
    }
}

static bool holds(fixture *f, uint32_t cell, uint32_t expert)
{
    char expected[SLOT_BYTES];
    xs_synthetic_expert(gw_store_client_shape(f->client), MOE_BF16, SEED, expert, expected);
    return memcmp(expected, f->cells[cell], SLOT_BYTES) == 0;
}

static uint64_t leases_held(const fixture *f)
{
    return gw_store_client_counters(f->client)->leases_held;
}

static void an_absent_expert_is_not_copied(void **state)
{
    fixture *f = *state;
    assert_int_equal(MOE_ERR_AGAIN, start(f, 5, 0, false));
    assert_true(gw_dma_is_idle(f->dma));
}

static void a_lease_lasts_until_the_copy_has_ended(void **state)
{
    fixture *f = *state;
    all_resident(f);
    ok(f, start(f, 0, 0, false));
    ok(f, start(f, 1, 1, false));
    assert_int_equal(2, leases_held(f));
    poll_until(f, 1);
    assert_true(holds(f, 0, 0));
    assert_int_equal(1, leases_held(f));
    poll_until(f, 2);
    assert_true(holds(f, 1, 1));
    assert_int_equal(0, leases_held(f));
    const gw_landing *l = f->landings;
    assert_true(l[0].complete && l[1].complete);
    assert_true(l[0].begin_ns < l[0].end_ns && l[0].end_ns <= l[1].begin_ns &&
                l[1].begin_ns < l[1].end_ns);
    const moe_worker_counters *n = gw_store_client_counters(f->client);
    assert_int_equal(2, n->copies);
    assert_int_equal(2 * SLOT_BYTES, n->copy_bytes);
    assert_int_equal(0, n->copies_pageable);
    assert_true(n->copy_ns >= 60 * MOE_NS_PER_MS); /* 80 of link time, less the throttle's slack */
}

static void a_certain_copy_overtakes_a_speculative_one(void **state)
{
    fixture *f = *state;
    all_resident(f);
    bool any = false;
    ok(f, start(f, 0, 0, true));
    for (int i = 0; i < 2 * PIECES; i++) { /* no look may queue more than is allowed */
        ok(f, gw_dma_poll(f->dma, on_landed, f, &any, &f->err));
    }
    ok(f, start(f, 1, 1, false));
    poll_until(f, 2);
    assert_int_equal(1, f->landings[0].cell);
    assert_int_equal(0, f->landings[1].cell);
    assert_true(holds(f, 0, 0) && holds(f, 1, 1));
}

static void a_hurried_copy_keeps_its_place(void **state)
{
    fixture *f = *state;
    all_resident(f);
    ok(f, start(f, 0, 0, true));
    ok(f, gw_dma_hurry(f->dma, 0, &f->err));
    ok(f, gw_dma_hurry(f->dma, 0, &f->err));
    ok(f, gw_dma_hurry(f->dma, 3, &f->err)); /* nothing is copied there */
    ok(f, start(f, 1, 1, false));
    poll_until(f, 2);
    assert_int_equal(0, f->landings[0].cell);
    assert_true(holds(f, 0, 0) && holds(f, 1, 1));
}

static void an_abandoned_copy_ends_early_and_incomplete(void **state)
{
    fixture *f = *state;
    all_resident(f);
    ok(f, start(f, 0, 0, true));
    gw_dma_abandon(f->dma, 0);
    poll_until(f, 1);
    assert_false(f->landings[0].complete);
    assert_false(holds(f, 0, 0));
    assert_int_equal(0, leases_held(f));
    assert_true(gw_dma_is_idle(f->dma));
    assert_true(gw_store_client_counters(f->client)->copy_bytes < SLOT_BYTES);
    assert_int_equal(0, gw_store_client_counters(f->client)->copies);
    ok(f, start(f, 1, 0, true)); /* and its place is free */
    poll_until(f, 2);
    assert_true(f->landings[1].complete && holds(f, 0, 1));
}

static void an_abandoned_copy_can_be_kept_after_all(void **state)
{
    fixture *f = *state;
    all_resident(f);
    ok(f, start(f, 0, 0, true));
    gw_dma_abandon(f->dma, 0);
    gw_dma_keep(f->dma, 0);
    poll_until(f, 1);
    assert_true(f->landings[0].complete && holds(f, 0, 0));
    ok(f, start(f, 1, 1, true));
    gw_dma_abandon(f->dma, 1);
    ok(f, gw_dma_hurry(f->dma, 1, &f->err));
    poll_until(f, 2);
    assert_true(f->landings[1].complete && holds(f, 1, 1));
}

static void a_copy_queued_whole_cannot_be_abandoned(void **state)
{
    fixture *f = *state;
    all_resident(f);
    ok(f, start(f, 0, 0, false));
    gw_dma_abandon(f->dma, 0);
    poll_until(f, 1);
    assert_true(f->landings[0].complete && holds(f, 0, 0));
}

static void speculation_waits_its_turn(void **state)
{
    fixture *f = *state;
    bool any = false;
    all_resident(f);
    ok(f, start(f, 0, 0, true)); /* one piece flies */
    ok(f, start(f, 1, 1, true)); /* two */
    assert_int_equal(MOE_ERR_LIMIT, start(f, 2, 2, true));
    ok(f, gw_dma_poll(f->dma, on_landed, f, &any, &f->err));
    poll_until(f, 2);
    assert_true(holds(f, 0, 0) && holds(f, 1, 1));
    ok(f, start(f, 2, 2, true));
    poll_until(f, 3);
}

static void a_signal_comes_behind_the_copies_before_it(void **state)
{
    fixture *f = *state;
    uint32_t flag = 0;
    all_resident(f);
    ok(f, start(f, 0, 0, false));
    ok(f, gw_dma_signal(f->dma, &flag, &f->err));
    assert_int_equal(0, __atomic_load_n(&flag, __ATOMIC_ACQUIRE));
    while (__atomic_load_n(&flag, __ATOMIC_ACQUIRE) == 0) {
        moe_sleep_ns(100 * MOE_NS_PER_US);
    }
    assert_true(holds(f, 0, 0));
    poll_until(f, 1);
}

static void destroying_waits_for_copies_and_gives_leases_back(void **state)
{
    fixture *f = *state;
    all_resident(f);
    ok(f, start(f, 0, 0, false));
    ok(f, start(f, 1, 1, true));
    gw_dma_destroy(f->dma);
    f->dma = NULL;
    assert_true(holds(f, 0, 0));
    assert_int_equal(0, leases_held(f));
}

static moe_status refuse_copy(krn_stream *s, void *dst, const void *src, size_t bytes, moe_err *err)
{
    (void)s;
    (void)dst;
    (void)src;
    (void)bytes;
    return MOE_FAIL(err, MOE_ERR_DEVICE, "the test's device refuses copies");
}

static moe_status fail_query(krn_event *e, moe_err *err)
{
    (void)e;
    return MOE_FAIL(err, MOE_ERR_DEVICE, "the test's device lost an event");
}

static void a_failing_device_is_an_error_with_its_text(void **state)
{
    fixture *f = *state;
    bool any = false;
    all_resident(f);
    ok(f, start(f, 0, 0, false));
    f->ops.backend.copy_async = refuse_copy;
    assert_int_equal(MOE_ERR_DEVICE, start(f, 1, 1, false));
    assert_non_null(strstr(f->err.text, "refuses copies"));
    f->ops.backend.event_query = fail_query;
    assert_int_equal(MOE_ERR_DEVICE, gw_dma_poll(f->dma, on_landed, f, &any, &f->err));
    assert_non_null(strstr(f->err.text, "lost an event"));
    gw_dma_destroy(f->dma); /* still gives every lease back */
    f->dma = NULL;
    assert_int_equal(0, leases_held(f));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s EXPERT-STORE\n", argv[0]);
        return 2;
    }
    store_program = argv[1];
    const struct CMUnitTest tests[] = {
        TEST(an_absent_expert_is_not_copied),
        TEST(a_lease_lasts_until_the_copy_has_ended),
        TEST(a_certain_copy_overtakes_a_speculative_one),
        TEST(a_hurried_copy_keeps_its_place),
        TEST(an_abandoned_copy_ends_early_and_incomplete),
        TEST(an_abandoned_copy_can_be_kept_after_all),
        TEST(a_copy_queued_whole_cannot_be_abandoned),
        TEST(speculation_waits_its_turn),
        TEST(a_signal_comes_behind_the_copies_before_it),
        TEST(destroying_waits_for_copies_and_gives_leases_back),
        TEST(a_failing_device_is_an_error_with_its_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
