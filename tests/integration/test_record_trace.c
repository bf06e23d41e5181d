/* What a running store records of a worker's doings, and expert-replay's answer to it.
 * argv: paths of expert-store, expert-replay. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/file.h"
#include "expert-store/policy/access_trace.h"
#include "tests/support/store_rig.h"

static const char *store_program, *replay_program;

typedef struct fixture {
    store_rig rig;
    rig_client a;
    char trace[128];
} fixture;

static int setup(void **state)
{
    static fixture f;
    memset(&f, 0, sizeof f);
    f.a.slots = f.a.dense = f.a.board = f.a.leases = MOE_SHM_REGION_NONE;
    store_rig_init(&f.rig, store_program);
    snprintf(f.trace, sizeof f.trace, "%s/record", f.rig.dir);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    rig_client_close(&f->a);
    store_rig_fini(&f->rig);
    return 0;
}

static void start(fixture *f, const char *max_bytes)
{
    const char *const args[] = {"--synthetic",
                                "switch-tiny",
                                "--ram-bytes",
                                "32768", /* four slots */
                                "--max-workers",
                                "1",
                                "--record-trace",
                                f->trace,
                                "--evict",
                                "lru",
                                "--record-trace-bytes",
                                max_bytes,
                                NULL};
    store_rig_start(&f->rig, args);
    rig_client_join(&f->a, f->rig.endpoint);
}

/* ... and lets the store look at the use counts: it looks every millisecond, in a turn with a
 * message after that message, so before the second one's answer. */
static void use(fixture *f, uint32_t expert)
{
    rig_client_want(&f->a, &expert, 1);
    (void)rig_client_lease(&f->a, 0, expert);
    rig_client_release(&f->a, 0);
    moe_sleep_ns(2 * MOE_NS_PER_MS);
    rig_client_ping(&f->a);
    rig_client_ping(&f->a);
}

typedef struct events {
    char *data; /* owned */
    xs_trace_header header;
    xs_trace_event e[256];
    uint32_t n;
} events;

static void read_trace(const fixture *f, events *out)
{
    size_t bytes = 0;
    xs_trace_reader r;
    memset(out, 0, sizeof *out);
    assert_int_equal(MOE_OK, moe_file_read(f->trace, 1 << 20, &out->data, &bytes, NULL));
    assert_int_equal(MOE_OK, xs_trace_open(out->data, bytes, &out->header, &r, NULL));
    for (bool end = false; !end; out->n += !end) {
        assert_true(out->n < 256);
        assert_int_equal(MOE_OK, xs_trace_next(&r, &out->e[out->n], &end, NULL));
    }
}

/* The n-th record of that kind; its expert. */
static uint32_t nth(const events *ev, xs_trace_kind kind, uint32_t n)
{
    for (uint32_t i = 0; i < ev->n; i++) {
        if (ev->e[i].kind == kind && n-- == 0) {
            return ev->e[i].expert;
        }
    }
    fail_msg("no such record");
    return 0;
}

static uint32_t count(const events *ev, xs_trace_kind kind)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < ev->n; i++) {
        n += ev->e[i].kind == kind;
    }
    return n;
}

static void wants_loads_uses_and_evictions_are_recorded(void **state)
{
    fixture *f = *state;
    events ev;
    const uint32_t used[] = {3, 1, 2, 0, 3, 7}; /* 7 takes 1's place */
    start(f, "1MiB");
    for (int i = 0; i < 6; i++) {
        use(f, used[i]);
    }
    const uint32_t predicted[] = {9, 1};
    rig_client_send_experts(&f->a, WIRE_PREDICT, 2, predicted, 2);
    rig_client_ping(&f->a);
    rig_client_close(&f->a);
    assert_int_equal(0, store_rig_stop(&f->rig));
    read_trace(f, &ev);
    assert_int_equal(4, ev.header.n_slots);
    assert_int_equal(8192, ev.header.slot_bytes);
    assert_string_equal("switch-tiny", ev.header.model);
    assert_int_equal(6, count(&ev, XS_TRACE_WANT));
    assert_int_equal(6, count(&ev, XS_TRACE_USE));
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(used[i], nth(&ev, XS_TRACE_WANT, i));
        assert_int_equal(used[i], nth(&ev, XS_TRACE_USE, i));
    }
    assert_int_equal(1, nth(&ev, XS_TRACE_EVICT, 0));
    assert_true(count(&ev, XS_TRACE_LOAD) >= 5);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(used[i], nth(&ev, XS_TRACE_LOAD, i));
    }
    assert_int_equal(7, nth(&ev, XS_TRACE_LOAD, 4));
    assert_int_equal(2, count(&ev, XS_TRACE_PREDICT));
    assert_int_equal(9, nth(&ev, XS_TRACE_PREDICT, 0));
    free(ev.data);
}

static const char *run_replay(const char *arguments, int expected_exit)
{
    static char text[16 << 10];
    char command[512];
    snprintf(command, sizeof command, "%s %s 2>&1", replay_program, arguments);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    size_t n = fread(text, 1, sizeof text - 1, p);
    text[n] = '\0';
    int status = pclose(p);
    if (WEXITSTATUS(status) != expected_exit) {
        fail_msg("exit %d: %s", WEXITSTATUS(status), text);
    }
    return text;
}

static void shows(const char *text, const char *what)
{
    if (strstr(text, what) == NULL) {
        fail_msg("no \"%s\" in: %s", what, text);
    }
}

static void the_replayer_reads_it(void **state)
{
    fixture *f = *state;
    char arguments[256];
    const uint32_t used[] = {3, 1, 3, 2, 3, 1};
    start(f, "1MiB");
    for (int i = 0; i < 6; i++) {
        use(f, used[i]);
    }
    rig_client_close(&f->a);
    assert_int_equal(0, store_rig_stop(&f->rig));
    snprintf(arguments, sizeof arguments, "%s --slots 2,4 --json", f->trace);
    const char *json = run_replay(arguments, 0);
    shows(json, "\"n_used\": 3, \"n_uses\": 6, \"n_predictions\": 0, \"n_slots\": 2, \"hit_rate\": "
                "{\"lru\": 0.3333, \"lfu\": 0.3333, \"sieve\": 0.3333, \"predicted\": 0.3333, "
                "\"static\": 0.5000, \"static_plus_1\": 0.8333, \"belady\": 0.5000}");
    shows(json, "\"n_slots\": 4, \"hit_rate\": {\"lru\": 0.5000");
    snprintf(arguments, sizeof arguments, "%s", f->trace);
    shows(run_replay(arguments, 0), "switch-tiny, recorded with 4 slots under lru: ");
}

static void the_store_goes_on_when_the_trace_is_full(void **state)
{
    fixture *f = *state;
    start(f, "4096B");
    rig_client_await_metric(&f->a, "pregate_store_trace_recording", NULL, 1);
    const uint32_t none[] = {5};
    for (int i = 0; i < 2000; i++) {
        rig_client_send_experts(&f->a, WIRE_PREDICT, 1, none, 1);
        if (i % 50 == 0) {
            rig_client_ping(&f->a);
        }
    }
    rig_client_await_metric(&f->a, "pregate_store_trace_recording", NULL, 0);
    use(f, 3);
    assert_int_equal(1, store_rig_log_count(&f->rig, "trace_ended"));
    assert_int_equal(0, store_rig_stop(&f->rig));
}

static void a_file_of_another_kind_keeps_the_store_from_starting(void **state)
{
    fixture *f = *state;
    const char *const args[] = {"--synthetic", "switch-tiny", "--record-trace", f->rig.log, NULL};
    store_rig_spawn(&f->rig, args); /* its own log: something is written there already */
    assert_int_equal(1, store_rig_wait(&f->rig));
    shows(store_rig_log(&f->rig), "there is something that is no trace");
    assert_int_equal(0, store_rig_count_regions(&f->rig));
}

static void the_replayer_says_what_is_wrong(void **state)
{
    (void)state;
    shows(run_replay("", 2), "give either a TRACE");
    shows(run_replay("x.trace --zipf 1", 2), "give either a TRACE");
    shows(run_replay("/nowhere/x.trace", 1), "MOE_ERR_NOT_FOUND");
    shows(run_replay("/proc/self/status", 1), "not a trace");
    shows(run_replay("--zipf 1 --accesses 10 --slots 5,x", 2), "expected at most");
    shows(run_replay("--zipf 1 --accesses 10 --slots 0", 2), "expected at most");
}

static void made_up_traces_take_sizes_and_shares(void **state)
{
    (void)state;
    const char *json = run_replay("--zipf 1.1 --experts 8 --accesses 500 --slots 8,25% --json", 0);
    shows(json, "\"trace\": \"zipf 1.1, 1 topic, seed 1\", \"n_experts\": 8, \"n_used\": 8");
    shows(json, "\"n_slots\": 8, \"hit_rate\": {\"lru\": 0.9840"); /* all but the first uses */
    shows(json, "\"n_slots\": 2,");
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        return 1;
    }
    store_program = argv[1];
    replay_program = argv[2];
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(wants_loads_uses_and_evictions_are_recorded),
        TEST(the_replayer_reads_it),
        TEST(the_store_goes_on_when_the_trace_is_full),
        TEST(a_file_of_another_kind_keeps_the_store_from_starting),
        cmocka_unit_test(the_replayer_says_what_is_wrong),
        cmocka_unit_test(made_up_traces_take_sizes_and_shares),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
