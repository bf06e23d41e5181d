/* A worker whose messages are lost, repeated and late, against a real store: by seed, in both
 * directions, it still gets every expert, whole, or says clearly why not; and the store forgets
 * nothing it must free. Messages carry intent only (proto/README.md), so nothing may depend on one.
 * argv: path of expert-store.
 * The wrapped functions run on the test's only thread. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/clock.h"
#include "expert-store/catalog/synthetic.h"
#include "gpu-worker/fetch/store_client.h"
#include "tests/support/store_rig.h"

enum {
    N_EXPERTS = 32,
    SLOT_BYTES = 8192,
    SEED = 7,
    PATIENCE_S = 20,
    MAX_HELD = 64,
    N_SEEDS = 6,
    N_STEPS = 12
};

static const char *store_program;
/* Slots for a few of the experts: every step needs the store again. */
/* A HELLO that comes late makes a place that nobody locks: it is free again after the grace, which
 * must be shorter than the patience of a look at the store. */
static const char *const args[] = {"--synthetic",
                                   "switch-tiny",
                                   "--seed",
                                   "7",
                                   "--ram-bytes",
                                   "98304",
                                   "--max-workers",
                                   "1",
                                   "--worker-probe-ms",
                                   "20",
                                   "--worker-grace-ms",
                                   "1000",
                                   NULL};

/* ---- the bad line ---- */

typedef struct held {
    char *data; /* owned */
    size_t bytes;
} held;

typedef struct line { /* one direction */
    held kept[MAX_HELD];
    uint32_t n_kept;
    uint64_t lost, repeated, late;
} line;

static struct {
    uint32_t lose, repeat, delay; /* of 100 messages; all 0: a good line */
    uint64_t random;
    line to_store, from_store;
    char *last; /* owned: what recv lent out */
} bad;

moe_status __real_wire_dealer_send(wire_dealer *d, const void *data, size_t bytes, moe_err *err);
moe_status __wrap_wire_dealer_send(wire_dealer *d, const void *data, size_t bytes, moe_err *err);
moe_status __real_wire_dealer_recv(wire_dealer *d, int64_t timeout_ns, const void **out_data,
                                   size_t *out_bytes, moe_err *err);
moe_status __wrap_wire_dealer_recv(wire_dealer *d, int64_t timeout_ns, const void **out_data,
                                   size_t *out_bytes, moe_err *err);

/* xorshift64 (Marsaglia 2003) */
static uint32_t below(uint32_t n)
{
    bad.random ^= bad.random << 13;
    bad.random ^= bad.random >> 7;
    bad.random ^= bad.random << 17;
    return (uint32_t)(bad.random % n);
}

static void keep(line *l, const void *data, size_t bytes)
{
    if (l->n_kept == MAX_HELD) {
        return; /* lost after all */
    }
    held *h = &l->kept[l->n_kept++];
    *h = (held){.data = malloc(bytes + 1), .bytes = bytes};
    assert_non_null(h->data);
    memcpy(h->data, data, bytes);
}

/* Any of those kept, so that they also overtake each other. */
static held take_kept(line *l)
{
    uint32_t i = below(l->n_kept);
    held h = l->kept[i];
    l->kept[i] = l->kept[--l->n_kept];
    return h;
}

typedef enum fate { PASSES, IS_LOST, PASSES_AND_IS_KEPT, IS_KEPT } fate;

static fate decide(line *l)
{
    uint32_t x = below(100);
    if (x < bad.lose) {
        l->lost++;
        return IS_LOST;
    }
    if (x < bad.lose + bad.repeat) {
        l->repeated++;
        return PASSES_AND_IS_KEPT;
    }
    if (x < bad.lose + bad.repeat + bad.delay) {
        l->late++;
        return IS_KEPT;
    }
    return PASSES;
}

moe_status __wrap_wire_dealer_send(wire_dealer *d, const void *data, size_t bytes, moe_err *err)
{
    line *l = &bad.to_store;
    if (l->n_kept > 0 && below(4) == 0) {
        held h = take_kept(l);
        moe_status st = __real_wire_dealer_send(d, h.data, h.bytes, NULL);
        l->lost += st != MOE_OK;
        free(h.data);
    }
    fate f = decide(l);
    if (f == PASSES_AND_IS_KEPT || f == IS_KEPT) {
        keep(l, data, bytes);
    }
    return f == IS_LOST || f == IS_KEPT ? MOE_OK : __real_wire_dealer_send(d, data, bytes, err);
}

moe_status __wrap_wire_dealer_recv(wire_dealer *d, int64_t timeout_ns, const void **out_data,
                                   size_t *out_bytes, moe_err *err)
{
    line *l = &bad.from_store;
    if (l->n_kept > 0 && below(4) == 0) {
        held h = take_kept(l);
        free(bad.last);
        bad.last = h.data;
        *out_data = h.data;
        *out_bytes = h.bytes;
        return MOE_OK;
    }
    for (;;) {
        moe_status st = __real_wire_dealer_recv(d, timeout_ns, out_data, out_bytes, err);
        if (st != MOE_OK) {
            return st;
        }
        fate f = decide(l);
        if (f == PASSES_AND_IS_KEPT || f == IS_KEPT) {
            keep(l, *out_data, *out_bytes);
        }
        if (f == PASSES || f == PASSES_AND_IS_KEPT) {
            return MOE_OK;
        }
    }
}

static void set_line(uint32_t lose, uint32_t repeat, uint32_t delay, uint64_t seed)
{
    bad.lose = lose;
    bad.repeat = repeat;
    bad.delay = delay;
    bad.random = seed * 0x9e3779b97f4a7c15u + 1;
}

static void forget_line(void)
{
    for (line *l = &bad.to_store; l != NULL; l = l == &bad.to_store ? &bad.from_store : NULL) {
        while (l->n_kept > 0) {
            free(l->kept[--l->n_kept].data);
        }
    }
    free(bad.last);
    memset(&bad, 0, sizeof bad);
    bad.random = 1;
}

/* ---- the worker ---- */

typedef struct fixture {
    store_rig rig;
    gw_store_client *client;
} fixture;

static int setup(void **state)
{
    static fixture f;
    memset(&f, 0, sizeof f);
    forget_line();
    store_rig_init(&f.rig, store_program);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    gw_store_client_destroy(f->client);
    store_rig_fini(&f->rig);
    forget_line();
    return 0;
}

static void join(fixture *f)
{
    moe_err err;
    const gw_store_client_cfg cfg = {.endpoint = f->rig.endpoint,
                                     .name = "bad line",
                                     .connect_timeout_ns = PATIENCE_S * MOE_NS_PER_S};
    if (gw_store_client_create(&cfg, &f->client, &err) != MOE_OK) {
        fail_msg("%s", err.text);
    }
}

static void assert_is_expert(const moe_model_shape *shape, uint32_t expert, const void *data)
{
    static char expected[SLOT_BYTES];
    memset(expected, 0, sizeof expected);
    xs_synthetic_expert(shape, MOE_BF16, SEED, expert, expected);
    assert_memory_equal(expected, data, moe_expert_params(shape) * 2);
}

/* Predicts the next, wants these, leases each, looks at every byte; a status other than MOE_OK is
 * the client's clear word. */
static moe_status do_step(fixture *f, uint64_t step, const uint32_t *experts, uint32_t n)
{
    const moe_model_shape *shape = gw_store_client_shape(f->client);
    int64_t deadline_ns = moe_now_ns() + PATIENCE_S * MOE_NS_PER_S;
    uint32_t guess = below(N_EXPERTS);
    moe_err err = {0};
    gw_store_client_predict(f->client, step, 1, &guess, 1);
    gw_store_client_want(f->client, step, experts, n);
    for (uint32_t i = 0; i < n;) {
        gw_lease lease;
        if (moe_now_ns() > deadline_ns) {
            fail_msg("step %llu is stuck at expert %u", (unsigned long long)step, experts[i]);
        }
        moe_status st = gw_store_client_poll(f->client, moe_now_ns(), &err);
        st = st != MOE_OK ? st : gw_store_client_lease(f->client, experts[i], &lease, &err);
        if (st == MOE_OK) {
            assert_is_expert(shape, experts[i], lease.data);
            gw_store_client_release(f->client, &lease);
            i++;
        } else if (st == MOE_ERR_AGAIN) {
            gw_store_client_want(f->client, step, &experts[i], 1); /* it may have left again */
            moe_sleep_ns(MOE_NS_PER_MS / 10);
        } else {
            assert_int_not_equal('\0', err.text[0]);
            return st;
        }
    }
    return MOE_OK;
}

static void do_steps(fixture *f, uint64_t first)
{
    for (uint64_t step = first; step < first + N_STEPS; step++) {
        uint32_t experts[3];
        experts[0] = below(N_EXPERTS);
        experts[1] = (experts[0] + 7) % N_EXPERTS;
        experts[2] = (experts[0] + 13) % N_EXPERTS;
        assert_int_equal(MOE_OK, do_step(f, step, experts, 3));
        if (below(3) == 0) {
            gw_store_client_cancel(f->client, step);
        }
    }
}

/* A second look at the store, over a good line: nobody there, nothing leased, read or queued. */
static void assert_store_is_at_rest(fixture *f)
{
    static rig_client look;
    set_line(0, 0, 0, 1);
    rig_client_open(&look, f->rig.endpoint);
    rig_client_await_metric(&look, "pregate_store_workers", NULL, 0);
    rig_client_await_metric(&look, "pregate_store_slots_leased", NULL, 0);
    rig_client_await_metric(&look, "pregate_store_experts_in_flight", NULL, 0);
    rig_client_await_metric(&look, "pregate_store_queue_depth", "class=\"demand\"", 0);
    assert_true(rig_client_metric(&look, "pregate_store_load_failures_total", NULL) == 0);
    rig_client_close(&look);
}

static void work_over(fixture *f, uint32_t lose, uint32_t repeat, uint32_t delay)
{
    uint64_t n_bad = 0;
    store_rig_start(&f->rig, args);
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++) {
        set_line(lose, repeat, delay, seed);
        join(f);
        do_steps(f, 1);
        n_bad += bad.to_store.lost + bad.from_store.lost + bad.to_store.repeated +
                 bad.from_store.repeated + bad.to_store.late + bad.from_store.late;
        gw_store_client_destroy(f->client);
        f->client = NULL;
        assert_store_is_at_rest(f);
        forget_line();
    }
    assert_true(n_bad > 20);
    assert_int_equal(0, store_rig_stop(&f->rig));
}

static void lost_messages_cost_time_only(void **state)
{
    work_over(*state, 30, 0, 0);
}

static void repeated_messages_change_nothing(void **state)
{
    work_over(*state, 0, 60, 0);
}

static void late_messages_in_another_order_change_nothing(void **state)
{
    work_over(*state, 0, 0, 40);
}

static void all_of_it_at_once(void **state)
{
    work_over(*state, 20, 20, 20);
}

/* Messages kept from before a crash reach its successor, and answers of the dead one the worker. */
static void messages_of_another_boot_change_nothing(void **state)
{
    fixture *f = *state;
    store_rig_start(&f->rig, args);
    set_line(0, 30, 30, 11);
    join(f);
    do_steps(f, 1);
    kill(f->rig.pid, SIGKILL);
    assert_int_equal(-SIGKILL, store_rig_wait(&f->rig));
    assert_true(bad.to_store.n_kept + bad.from_store.n_kept > 0);
    store_rig_spawn(&f->rig, args);
    do_steps(f, 1000);
    gw_store_client_destroy(f->client);
    f->client = NULL;
    assert_store_is_at_rest(f);
    assert_int_equal(0, store_rig_stop(&f->rig));
}

/* A line that loses everything: create ends by its deadline and says which store did not answer. */
static void a_dead_line_fails_clearly(void **state)
{
    fixture *f = *state;
    moe_err err = {0};
    store_rig_start(&f->rig, args);
    set_line(100, 0, 0, 1);
    const gw_store_client_cfg cfg = {
        .endpoint = f->rig.endpoint, .name = "dead line", .connect_timeout_ns = MOE_NS_PER_S / 2};
    assert_int_equal(MOE_ERR_TIMEOUT, gw_store_client_create(&cfg, &f->client, &err));
    assert_null(f->client);
    assert_non_null(strstr(err.text, f->rig.endpoint));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(lost_messages_cost_time_only, setup, teardown),
        cmocka_unit_test_setup_teardown(repeated_messages_change_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(late_messages_in_another_order_change_nothing, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(all_of_it_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(messages_of_another_boot_change_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(a_dead_line_fails_clearly, setup, teardown),
    };
    if (argc < 2) {
        fprintf(stderr, "usage: %s EXPERT_STORE\n", argv[0]);
        return 1;
    }
    store_program = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
