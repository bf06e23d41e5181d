/* A worker's end of the store, against the real program.
 * argv: path of expert-store. */
#include <pthread.h>
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

static const char *store_program;

enum { N_EXPERTS = 32, SLOT_BYTES = 8192, SEED = 7, PATIENCE_S = 10 };

static const char *const roomy[] = {"--synthetic",       "switch-tiny", "--seed", "7",
                                    "--worker-probe-ms", "20",          NULL};
static const char *const tight[] = {
    "--synthetic", "switch-tiny",       "--seed", "7", "--ram-bytes", "40960", "--max-workers",
    "1",           "--worker-probe-ms", "20",     NULL};

typedef struct fixture {
    store_rig rig;
    gw_store_client *client;
    moe_status create_status;
    moe_err err;
} fixture;

static int setup(void **state)
{
    static fixture f;
    memset(&f, 0, sizeof f);
    store_rig_init(&f.rig, store_program);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    gw_store_client_destroy(f->client);
    store_rig_fini(&f->rig);
    return 0;
}

static gw_store_client_cfg config(const fixture *f)
{
    return (gw_store_client_cfg){.endpoint = f->rig.endpoint,
                                 .name = "test",
                                 .connect_timeout_ns = PATIENCE_S * MOE_NS_PER_S};
}

static void join(fixture *f)
{
    const gw_store_client_cfg cfg = config(f);
    if (gw_store_client_create(&cfg, &f->client, &f->err) != MOE_OK) {
        fail_msg("%s", f->err.text);
    }
}

static void serve(fixture *f, const char *const *args)
{
    store_rig_start(&f->rig, args);
    join(f);
}

static uint64_t counter(_Atomic uint64_t *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

/* Polls, and leases once it can; fails after PATIENCE_S. */
static gw_lease lease_soon(fixture *f, uint32_t expert)
{
    gw_lease lease;
    int64_t deadline_ns = moe_now_ns() + PATIENCE_S * MOE_NS_PER_S;
    for (;;) {
        int64_t now_ns = moe_now_ns();
        assert_int_equal(MOE_OK, gw_store_client_poll(f->client, now_ns, &f->err));
        moe_status st = gw_store_client_lease(f->client, expert, &lease, &f->err);
        if (st == MOE_OK) {
            return lease;
        }
        if (st != MOE_ERR_AGAIN || now_ns > deadline_ns) {
            fail_msg("lease of %u: %s", expert, f->err.text);
        }
        moe_sleep_ns(50 * MOE_NS_PER_US);
    }
}

static void want_and_check(fixture *f, uint32_t expert)
{
    char expected[SLOT_BYTES];
    gw_store_client_want(f->client, 1, &expert, 1);
    gw_lease lease = lease_soon(f, expert);
    xs_synthetic_expert(gw_store_client_shape(f->client), MOE_BF16, SEED, expert, expected);
    assert_memory_equal(expected, lease.data, SLOT_BYTES);
    gw_store_client_release(f->client, &lease);
}

/* Polls until `done` or PATIENCE_S. */
static moe_status poll_until(fixture *f, bool (*done)(const fixture *f))
{
    int64_t deadline_ns = moe_now_ns() + PATIENCE_S * MOE_NS_PER_S;
    moe_status st = MOE_OK;
    while (st == MOE_OK && !done(f)) {
        assert_true(moe_now_ns() < deadline_ns);
        moe_sleep_ns(MOE_NS_PER_MS);
        st = gw_store_client_poll(f->client, moe_now_ns(), &f->err);
    }
    return st;
}

static bool never(const fixture *f)
{
    (void)f;
    return false;
}

/* ---- being served ---- */

static void the_model_is_described_by_the_store(void **state)
{
    fixture *f = *state;
    serve(f, roomy);
    const moe_model_shape *s = gw_store_client_shape(f->client);
    const void *payload = NULL;
    assert_int_equal(N_EXPERTS, s->n_experts_total);
    assert_int_equal(SLOT_BYTES, gw_store_client_welcome(f->client)->expert_bytes);
    assert_non_null(gw_store_client_slots(f->client));
    assert_int_equal(N_EXPERTS, gw_store_client_n_made(f->client));
    assert_true(gw_store_client_is_made(f->client));
    const moe_dense_entry *e =
        gw_store_client_dense(f->client, "shared.weight", MOE_DENSE_TENSOR, &payload);
    assert_non_null(e);
    assert_non_null(payload);
    assert_int_equal(s->vocab, e->dims[0]);
    assert_null(gw_store_client_dense(f->client, "shared.weight", MOE_DENSE_FILE, &payload));
    assert_null(gw_store_client_dense(f->client, "nothing", MOE_DENSE_TENSOR, &payload));
}

static void a_wanted_expert_arrives_with_its_bytes(void **state)
{
    fixture *f = *state;
    serve(f, tight);
    for (uint32_t i = 0; i < 2 * N_EXPERTS; i++) {
        want_and_check(f, i * 13 % N_EXPERTS);
    }
    assert_int_equal(2 * N_EXPERTS, counter(&gw_store_client_counters(f->client)->leases_taken));
}

static void a_resident_expert_costs_no_message(void **state)
{
    fixture *f = *state;
    serve(f, roomy);
    want_and_check(f, 3);
    uint64_t wants = counter(&gw_store_client_counters(f->client)->wants_sent);
    for (int i = 0; i < 100; i++) {
        gw_lease lease;
        assert_true(gw_store_client_is_resident(f->client, 3));
        assert_int_equal(MOE_OK, gw_store_client_lease(f->client, 3, &lease, &f->err));
        assert_int_equal(1, counter(&gw_store_client_counters(f->client)->leases_held));
        gw_store_client_release(f->client, &lease);
    }
    assert_int_equal(0, counter(&gw_store_client_counters(f->client)->leases_held));
    assert_int_equal(wants, counter(&gw_store_client_counters(f->client)->wants_sent));
    static rig_client c;
    rig_client_open(&c, f->rig.endpoint);
    assert_true(rig_client_metric(&c, "pregate_store_requests_total", "kind=\"WANT\"") == 1);
    rig_client_close(&c);
}

static void wanting_twice_asks_once(void **state)
{
    fixture *f = *state;
    const uint32_t experts[] = {4, 5, 4};
    serve(f, roomy);
    gw_store_client_want(f->client, 1, experts, 3);
    gw_store_client_want(f->client, 1, experts, 2);
    assert_int_equal(2, counter(&gw_store_client_counters(f->client)->wants_sent));
}

static void a_leased_expert_is_wanted_no_more(void **state)
{
    fixture *f = *state;
    const uint32_t expert = 6;
    gw_lease lease;
    serve(f, roomy);
    gw_store_client_want(f->client, 1, &expert, 1);
    while (!gw_store_client_is_resident(f->client, expert)) { /* no poll: READY stays unread */
        moe_sleep_ns(MOE_NS_PER_MS);
    }
    assert_int_equal(MOE_OK, gw_store_client_lease(f->client, expert, &lease, &f->err));
    gw_store_client_release(f->client, &lease);
    gw_store_client_want(f->client, 1, &expert, 1);
    assert_int_equal(2, counter(&gw_store_client_counters(f->client)->wants_sent));
}

static void a_predicted_expert_becomes_resident(void **state)
{
    fixture *f = *state;
    const uint32_t experts[] = {9, 10};
    serve(f, roomy);
    gw_store_client_predict(f->client, 1, 1, experts, 2);
    gw_lease lease = lease_soon(f, 9);
    gw_store_client_release(f->client, &lease);
    lease = lease_soon(f, 10);
    gw_store_client_release(f->client, &lease);
    assert_int_equal(0, counter(&gw_store_client_counters(f->client)->wants_sent));
    assert_int_equal(2, counter(&gw_store_client_counters(f->client)->predictions_sent));
}

static void leases_end_at_the_capacity(void **state)
{
    fixture *f = *state;
    gw_lease leases[N_EXPERTS], one_more;
    serve(f, tight);
    uint32_t capacity = gw_store_client_welcome(f->client)->lease_capacity;
    for (uint32_t i = 0; i < capacity; i++) {
        gw_store_client_want(f->client, 1, &i, 1);
        leases[i] = lease_soon(f, i);
    }
    assert_int_equal(MOE_ERR_LIMIT, gw_store_client_lease(f->client, 0, &one_more, &f->err));
    gw_store_client_release(f->client, &leases[0]);
    assert_int_equal(MOE_OK, gw_store_client_lease(f->client, 1, &one_more, &f->err));
    gw_store_client_release(f->client, &one_more);
    for (uint32_t i = 1; i < capacity; i++) {
        gw_store_client_release(f->client, &leases[i]);
    }
}

static void a_place_just_left_is_given_again(void **state)
{
    fixture *f = *state;
    serve(f, tight); /* one worker at most */
    for (int i = 0; i < 3; i++) {
        gw_store_client_destroy(f->client);
        f->client = NULL;
        join(f);
        want_and_check(f, 1);
    }
}

/* ---- no store, another store ---- */

static int n_waiting;
static void count_waiting(void *user, const char *endpoint)
{
    assert_string_equal(((fixture *)user)->rig.endpoint, endpoint);
    n_waiting++;
}

static void an_absent_store_is_waited_for_then_named(void **state)
{
    fixture *f = *state;
    gw_store_client_cfg cfg = config(f);
    gw_store_client *c = NULL;
    n_waiting = 0;
    cfg.connect_timeout_ns = 600 * MOE_NS_PER_MS;
    cfg.on_waiting = count_waiting;
    cfg.user = f;
    assert_int_equal(MOE_ERR_TIMEOUT, gw_store_client_create(&cfg, &c, &f->err));
    assert_null(c);
    assert_int_equal(1, n_waiting);
    assert_non_null(strstr(f->err.text, f->rig.endpoint));
}

/* The store is started by the main thread: it would end with the thread that started it. */
static void *create_early(void *user)
{
    fixture *f = user;
    const gw_store_client_cfg cfg = config(f);
    f->create_status = gw_store_client_create(&cfg, &f->client, &f->err);
    return NULL;
}

static void a_store_that_starts_later_is_found(void **state)
{
    fixture *f = *state;
    pthread_t thread;
    assert_int_equal(0, pthread_create(&thread, NULL, create_early, f));
    moe_sleep_ns(500 * MOE_NS_PER_MS);
    store_rig_spawn(&f->rig, roomy);
    pthread_join(thread, NULL);
    assert_int_equal(MOE_OK, f->create_status);
    want_and_check(f, 2);
}

static bool is_served(const fixture *f)
{
    return gw_store_client_store_alive(f->client);
}

static bool is_silent(const fixture *f)
{
    return !gw_store_client_store_alive(f->client);
}

static void a_killed_store_is_missed_and_found_again(void **state)
{
    fixture *f = *state;
    serve(f, tight);
    want_and_check(f, 7);
    uint32_t worker = gw_store_client_welcome(f->client)->worker_id;
    kill(f->rig.pid, SIGKILL);
    store_rig_wait(&f->rig);
    gw_lease lease;
    assert_int_equal(MOE_OK, gw_store_client_lease(f->client, 7, &lease, &f->err));
    gw_store_client_release(f->client, &lease); /* resident experts keep working */
    const uint32_t absent = 20;
    gw_store_client_want(f->client, 2, &absent, 1); /* ... and a want waits for the next store */
    assert_int_equal(MOE_OK, poll_until(f, is_silent));
    store_rig_spawn(&f->rig, tight);
    lease = lease_soon(f, absent);
    gw_store_client_release(f->client, &lease);
    assert_int_equal(MOE_OK, poll_until(f, is_served));
    assert_int_equal(worker, gw_store_client_welcome(f->client)->worker_id);
    for (uint32_t x = 0; x < N_EXPERTS; x++) {
        want_and_check(f, x);
    }
}

static void a_lease_held_over_the_store_s_death_protects_its_slot(void **state)
{
    fixture *f = *state;
    char expected[SLOT_BYTES];
    const uint32_t held = 3;
    serve(f, tight);
    gw_store_client_want(f->client, 1, &held, 1);
    gw_lease lease = lease_soon(f, held);
    kill(f->rig.pid, SIGKILL);
    store_rig_wait(&f->rig);
    store_rig_start(&f->rig, tight);
    for (uint32_t x = 4; x < N_EXPERTS; x++) { /* four other slots for all of them */
        want_and_check(f, x);
    }
    xs_synthetic_expert(gw_store_client_shape(f->client), MOE_BF16, SEED, held, expected);
    assert_memory_equal(expected, lease.data, SLOT_BYTES);
    gw_store_client_release(f->client, &lease);
}

static void superseded_memory_loses_the_client(void **state)
{
    fixture *f = *state;
    gw_lease lease;
    serve(f, roomy);
    want_and_check(f, 7);
    assert_int_equal(0, store_rig_stop(&f->rig)); /* a clean stop takes its memory away */
    assert_int_equal(MOE_ERR_DISCONNECTED, poll_until(f, never));
    assert_int_equal(MOE_ERR_DISCONNECTED, gw_store_client_lease(f->client, 7, &lease, &f->err));
    assert_non_null(strstr(f->err.text, f->rig.endpoint));
    store_rig_start(&f->rig, roomy);
    assert_int_equal(MOE_ERR_DISCONNECTED, gw_store_client_poll(f->client, moe_now_ns(), NULL));
    gw_store_client_destroy(f->client);
    f->client = NULL;
    join(f); /* a new client is served */
    want_and_check(f, 7);
}

static void memory_of_another_model_loses_the_client(void **state)
{
    fixture *f = *state;
    const char *const other[] = {"--synthetic", "switch-tiny", "--seed", "8", NULL};
    serve(f, roomy);
    kill(f->rig.pid, SIGKILL);
    store_rig_wait(&f->rig);
    store_rig_start(&f->rig, other); /* refuses to adopt, and says so on the old board */
    assert_int_equal(MOE_ERR_DISCONNECTED, poll_until(f, never));
}

static void cancelling_forgets_what_was_wanted(void **state)
{
    fixture *f = *state;
    const uint32_t expert = 11;
    serve(f, tight);
    gw_store_client_want(f->client, 5, &expert, 1);
    gw_store_client_cancel(f->client, 5);
    gw_store_client_want(f->client, 6, &expert, 1);
    assert_int_equal(2, counter(&gw_store_client_counters(f->client)->wants_sent));
    gw_lease lease = lease_soon(f, expert);
    gw_store_client_release(f->client, &lease);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s EXPERT-STORE\n", argv[0]);
        return 2;
    }
    store_program = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_model_is_described_by_the_store, setup, teardown),
        cmocka_unit_test_setup_teardown(a_wanted_expert_arrives_with_its_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(a_resident_expert_costs_no_message, setup, teardown),
        cmocka_unit_test_setup_teardown(wanting_twice_asks_once, setup, teardown),
        cmocka_unit_test_setup_teardown(a_leased_expert_is_wanted_no_more, setup, teardown),
        cmocka_unit_test_setup_teardown(a_predicted_expert_becomes_resident, setup, teardown),
        cmocka_unit_test_setup_teardown(leases_end_at_the_capacity, setup, teardown),
        cmocka_unit_test_setup_teardown(a_place_just_left_is_given_again, setup, teardown),
        cmocka_unit_test_setup_teardown(an_absent_store_is_waited_for_then_named, setup, teardown),
        cmocka_unit_test_setup_teardown(a_store_that_starts_later_is_found, setup, teardown),
        cmocka_unit_test_setup_teardown(a_killed_store_is_missed_and_found_again, setup, teardown),
        cmocka_unit_test_setup_teardown(a_lease_held_over_the_store_s_death_protects_its_slot,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(superseded_memory_loses_the_client, setup, teardown),
        cmocka_unit_test_setup_teardown(memory_of_another_model_loses_the_client, setup, teardown),
        cmocka_unit_test_setup_teardown(cancelling_forgets_what_was_wanted, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
