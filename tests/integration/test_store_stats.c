/* Every number that a store counts, driven to a known value that is not zero; and expert-stat,
 * which shows them. argv: paths of expert-store, expert-pack, expert-stat. */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "proto/lease_table.h"
#include "tests/support/store_rig.h"

static const char *store_program, *pack_program, *stat_program;

enum { SLOT_BYTES = 8192 };

/* Four slots: one worker with three leases, and one slot to read into. */
static const char *const four_slots[] = {"--synthetic",
                                         "switch-tiny",
                                         "--ram-bytes",
                                         "32768",
                                         "--max-workers",
                                         "1",
                                         "--leases-per-worker",
                                         "3",
                                         "--worker-probe-ms",
                                         "20",
                                         "--want-hold-ms",
                                         "400",
                                         "--predict-keep-ms",
                                         "100",
                                         NULL};

typedef struct fixture {
    store_rig rig;
    rig_client a, op; /* a worker; an operator, opened by those who need one */
} fixture;

static int setup(void **state)
{
    static fixture f;
    memset(&f, 0, sizeof f);
    f.a.slots = f.a.dense = f.a.board = f.a.leases = MOE_SHM_REGION_NONE;
    f.op.slots = f.op.dense = f.op.board = f.op.leases = MOE_SHM_REGION_NONE;
    store_rig_init(&f.rig, store_program);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    rig_client_close(&f->a);
    rig_client_close(&f->op);
    store_rig_fini(&f->rig);
    return 0;
}

static void start(fixture *f, const char *const *args)
{
    store_rig_start(&f->rig, args);
    rig_client_join(&f->a, f->rig.endpoint);
}

static void open_operator(fixture *f)
{
    char admin[160];
    if (f->op.dealer != NULL) {
        return;
    }
    snprintf(admin, sizeof admin, "%s.admin", f->rig.endpoint);
    rig_client_open(&f->op, admin);
}

static void order(fixture *f, wire_kind kind, uint32_t pin, uint32_t expert)
{
    rig_client_send_experts(&f->op, kind, pin, &expert, 1);
    rig_client_expect(&f->op, WIRE_DONE);
}

static void is(fixture *f, const char *name, const char *labels, double value)
{
    rig_client_await_metric(&f->a, name, labels, value);
}

static void lease(fixture *f, uint32_t index, uint32_t expert)
{
    (void)rig_client_lease(&f->a, index, expert);
}

/* Leases 0 to 2 and pins 3: whatever is asked for next finds no slot. */
static void fill_memory(fixture *f)
{
    uint32_t x = 3;
    open_operator(f);
    rig_client_want(&f->a, &x, 1);
    order(f, WIRE_PIN, 1, 3);
    for (uint32_t i = 0; i < 3; i++) {
        lease(f, i, i);
    }
}

static void send_one(fixture *f, wire_kind kind, uint32_t distance, uint32_t expert)
{
    rig_client_send_experts(&f->a, kind, distance, &expert, 1);
}

/* ---- counters of the store ---- */

static void wants_are_hits_lates_misses_and_repetitions(void **state)
{
    fixture *f = *state;
    start(f, four_slots);
    fill_memory(f); /* misses 0 to 3 */
    is(f, "pregate_store_want_miss_total", NULL, 4);
    send_one(f, WIRE_WANT, 0, 2);
    is(f, "pregate_store_want_hit_total", NULL, 1);
    send_one(f, WIRE_PREDICT, 1, 9);
    send_one(f, WIRE_WANT, 0, 9); /* it cannot come: no slot */
    is(f, "pregate_store_want_late_total", NULL, 1);
    send_one(f, WIRE_WANT, 0, 9);
    send_one(f, WIRE_WANT, 0, 9);
    is(f, "pregate_store_want_repeated_total", NULL, 2);
    is(f, "pregate_store_queue_depth", "class=\"demand\"", 1);
    is(f, "pregate_store_wants_outstanding", "worker=\"1\"", 2); /* 2, held; and 9 */
    is(f, "pregate_store_requests_total", "kind=\"HELLO\"", 1);
    is(f, "pregate_store_requests_total", "kind=\"WANT\"", 8);
    is(f, "pregate_store_requests_total", "kind=\"PREDICT\"", 1);
    is(f, "pregate_store_requests_total", "kind=\"PIN\"", 1);
    is(f, "pregate_store_slots_leased", NULL, 3);
    is(f, "pregate_store_leases", "worker=\"1\"", 3);
    is(f, "pregate_store_slots", "state=\"ready\"", 4);
    rig_client_release(&f->a, 0); /* now 9 comes, in 0's place */
    is(f, "pregate_store_evictions_total", NULL, 1);
    is(f, "pregate_store_loads_total", "class=\"demand\"", 5);
    send_one(f, WIRE_CANCEL, 0, 0);
    is(f, "pregate_store_wants_outstanding", "worker=\"1\"", 0);
}

static void predictions_come_stale_expire_and_go_to_waste(void **state)
{
    fixture *f = *state;
    start(f, four_slots);
    open_operator(f);
    f->a.step = 5;
    send_one(f, WIRE_PREDICT, 1, 20);
    send_one(f, WIRE_PREDICT, 2, 21);
    is(f, "pregate_store_loads_total", "class=\"near\"", 1);
    is(f, "pregate_store_loads_total", "class=\"far\"", 1);
    is(f, "pregate_store_predicted_total", NULL, 2);
    f->a.step = 4;
    send_one(f, WIRE_PREDICT, 1, 22);
    f->a.step = 6;
    f->a.welcome.h.boot = 77;
    send_one(f, WIRE_PREDICT, 1, 22);
    f->a.welcome.h.boot = 1;
    is(f, "pregate_store_predictions_stale_total", NULL, 2);
    lease(f, 0, 20); /* that one was right */
    rig_client_release(&f->a, 0);
    is(f, "pregate_store_slots", "state=\"ready\"", 2);
    order(f, WIRE_EVICT, 0, 20);
    order(f, WIRE_EVICT, 0, 21);
    is(f, "pregate_store_wasted_total", NULL, 1);
    order(f, WIRE_PREFETCH, 0, 23);
    is(f, "pregate_store_loads_total", "class=\"warm\"", 1);
    is(f, "pregate_store_slots", "state=\"ready\"", 1);
    order(f, WIRE_EVICT, 0, 23);
    is(f, "pregate_store_wasted_total", NULL, 2);
    fill_memory(f);
    send_one(f, WIRE_PREDICT, 1, 24);
    is(f, "pregate_store_predictions_expired_total", NULL, 1);
}

static void cancelled_reads_leave_the_queue(void **state)
{
    fixture *f = *state;
    start(f, four_slots);
    fill_memory(f);
    f->a.step = 8;
    send_one(f, WIRE_WANT, 0, 10);
    f->a.step = 9;
    send_one(f, WIRE_WANT, 0, 11);
    is(f, "pregate_store_queue_depth", "class=\"demand\"", 2);
    f->a.step = 8;
    rig_client_send_experts(&f->a, WIRE_CANCEL, 0, NULL, 0);
    is(f, "pregate_store_cancelled_total", NULL, 1);
    is(f, "pregate_store_wants_outstanding", "worker=\"1\"", 1);
    is(f, "pregate_store_queue_depth", "class=\"demand\"", 1);
}

static void holds_are_broken_and_stalled_workers_noticed(void **state)
{
    fixture *f = *state;
    uint32_t four[] = {0, 1, 2, 3};
    uint32_t fifth = 4;
    start(f, four_slots);
    rig_client_want(&f->a, four, 4); /* and takes none of them */
    rig_client_want(&f->a, &fifth, 1);
    is(f, "pregate_store_holds_broken_total", NULL, 1);
    is(f, "pregate_store_workers_stalled_total", NULL, 1); /* after 400 ms */
    is(f, "pregate_store_wants_outstanding", "worker=\"1\"", 0);
}

static void refused_and_malformed_messages_are_counted(void **state)
{
    fixture *f = *state;
    start(f, four_slots);
    rig_client_send_bytes(&f->a, "rubbish", 7);
    rig_client_expect(&f->a, WIRE_ERROR);
    send_one(f, WIRE_WANT, 0, 4000);
    rig_client_expect(&f->a, WIRE_ERROR);
    send_one(f, WIRE_EVICT, 0, 1);
    rig_client_expect(&f->a, WIRE_ERROR);
    is(f, "pregate_store_malformed_total", NULL, 1);
    is(f, "pregate_store_refused_total", NULL, 2);
}

static void an_answer_to_a_peer_that_left_is_dropped_and_counted(void **state)
{
    fixture *f = *state;
    start(f, four_slots);
    fill_memory(f);
    send_one(f, WIRE_WANT, 0, 12);
    is(f, "pregate_store_queue_depth", "class=\"demand\"", 1);
    wire_dealer_destroy(f->a.dealer); /* its lock stays: it lives on */
    assert_int_equal(MOE_OK, wire_dealer_create(f->rig.endpoint, &f->a.dealer, NULL));
    rig_client_ping(&f->a);
    rig_client_release(&f->a, 0);
    is(f, "pregate_store_replies_dropped_total", NULL, 1);
    rig_client_hello(&f->a, 1);
    is(f, "pregate_store_workers_rejoined_total", NULL, 1);
}

static void reads_bytes_and_times_add_up(void **state)
{
    fixture *f = *state;
    char store[128];
    char command[512];
    uint32_t four[] = {0, 1, 2, 3};
    snprintf(store, sizeof store, "%s/tiny.store", f->rig.dir);
    snprintf(command, sizeof command, "%s --synthetic switch-tiny --out %s >>%s 2>&1", pack_program,
             store, f->rig.log);
    assert_int_equal(0, system(command));
    const char *const args[] = {"--store", store, "--no-direct", "--metrics-name", "unit", NULL};
    start(f, args);
    rig_client_want(&f->a, four, 4);
    is(f, "pregate_store_reads_total", "store=\"unit\"", 4);
    is(f, "pregate_store_read_bytes_total", NULL, 4 * SLOT_BYTES);
    is(f, "pregate_store_buffered_bytes_total", NULL, 4 * SLOT_BYTES);
    is(f, "pregate_store_direct_bytes_total", NULL, 0);
    is(f, "pregate_store_direct", NULL, 0);
    is(f, "pregate_store_experts_in_flight", NULL, 0);
    assert_true(rig_client_metric(&f->a, "pregate_store_dense_bytes", NULL) > 0);
    assert_true(rig_client_metric(&f->a, "pregate_store_process_resident_bytes", NULL) > 1e6);
    assert_true(rig_client_metric(&f->a, "pregate_store_read_bytes_per_second", NULL) >= 0);
}

static void failed_reads_and_hashes_are_counted(void **state)
{
    fixture *f = *state;
    char store[128];
    char path[160];
    char command[512];
    uint32_t n_failed = 0;
    snprintf(store, sizeof store, "%s/tiny.store", f->rig.dir);
    snprintf(path, sizeof path, "%s/segments/000000.seg", store);
    snprintf(command, sizeof command, "%s --synthetic switch-tiny --out %s >>%s 2>&1", pack_program,
             store, f->rig.log);
    assert_int_equal(0, system(command));
    const char *const args[] = {"--store", store, NULL};
    start(f, args);
    int fd = open(path, O_WRONLY);
    for (off_t off = 0; off < 32 * SLOT_BYTES; off += SLOT_BYTES) { /* one byte of each */
        assert_int_equal(1, pwrite(fd, "x", 1, off + 5));
    }
    close(fd);
    for (uint32_t x = 0; x < 32; x++) {
        send_one(f, WIRE_WANT, 0, x);
        assert_true(rig_client_recv(&f->a, 5 * MOE_NS_PER_S));
        n_failed += f->a.in.h.kind == WIRE_FAILED;
    }
    assert_true(n_failed > 0);
    is(f, "pregate_store_load_failures_total", NULL, n_failed);
    is(f, "pregate_store_verify_failures_total", NULL, n_failed);
}

static void adoption_is_counted(void **state)
{
    fixture *f = *state;
    const char *args[] = {"--synthetic",
                          "switch-tiny",
                          "--test-kill-at",
                          "mid_read",
                          "--test-kill-after",
                          "4",
                          "--worker-probe-ms",
                          "20",
                          NULL};
    moe_shm_region slots = MOE_SHM_REGION_NONE;
    start(f, args);
    for (uint32_t x = 0; x < 3; x++) {
        lease(f, 0, x);
        rig_client_release(&f->a, 0);
    }
    lease(f, 1, 2);
    uint32_t slot = moe_board_word_slot(rig_client_word(&f->a, 2));
    send_one(f, WIRE_WANT, 0, 3);
    assert_int_equal(-SIGKILL, store_rig_wait(&f->rig));
    assert_int_equal(MOE_OK, moe_shm_open(f->a.slots.name, true, &slots, NULL));
    ((char *)slots.base)[slot * SLOT_BYTES] ^= 1; /* leased, and bad */
    args[3] = "none";
    store_rig_start(&f->rig, args);
    is(f, "pregate_store_boot", NULL, 2);
    is(f, "pregate_store_adopted_slots", NULL, 3);
    is(f, "pregate_store_adopted_unfinished", NULL, 1);
    is(f, "pregate_store_workers_adopted_total", NULL, 1);
    is(f, "pregate_store_reverified_total", NULL, 3);
    is(f, "pregate_store_reverify_failures_total", NULL, 1);
    is(f, "pregate_store_condemned_total", NULL, 1);
    is(f, "pregate_store_slots", "state=\"condemned\"", 1);
    rig_client_release(&f->a, 1);
    is(f, "pregate_store_slots", "state=\"condemned\"", 0);
    moe_shm_close(&slots);
}

/* ---- counters of workers, shown by the store ---- */

/* Each word of the record gets a value of its own; what comes out names them all. */
static void what_a_worker_counts_is_shown_under_its_name(void **state)
{
    fixture *f = *state;
    start(f, four_slots);
    moe_worker_counters *c = &((moe_lease_header *)f->a.leases.base)->counters;
    _Atomic uint64_t *words = (_Atomic uint64_t *)(void *)c;
    for (size_t i = 0; i < sizeof *c / sizeof *words; i++) {
        atomic_store(&words[i], 1000 + i);
    }
    is(f, "pregate_worker_encode_steps_total", "worker=\"1\"", (double)c->encode_steps);
    is(f, "pregate_worker_decode_steps_total", "worker=\"1\"", (double)c->decode_steps);
    is(f, "pregate_worker_prompt_tokens_total", "worker=\"1\"", (double)c->prompt_tokens);
    is(f, "pregate_worker_output_tokens_total", "worker=\"1\"", (double)c->output_tokens);
    is(f, "pregate_worker_sequences_started_total", "worker=\"1\"", (double)c->sequences_started);
    is(f, "pregate_worker_sequences_finished_total", "worker=\"1\"", (double)c->sequences_finished);
    is(f, "pregate_worker_sequences_failed_total", "worker=\"1\"", (double)c->sequences_failed);
    is(f, "pregate_worker_batch_max", "worker=\"1\"", (double)c->batch_max);
    is(f, "pregate_worker_batch_steps_total", "worker=\"1\",batch=\"4\"",
       (double)c->batch_bucket[2]);
    is(f, "pregate_worker_copies_total", "worker=\"1\"", (double)c->copies);
    is(f, "pregate_worker_copy_bytes_total", "worker=\"1\"", (double)c->copy_bytes);
    is(f, "pregate_worker_copies_pageable_total", "worker=\"1\"", (double)c->copies_pageable);
    is(f, "pregate_worker_copy_seconds_total", "worker=\"1\"", (double)c->copy_ns * 1e-9);
    is(f, "pregate_worker_copy_hidden_seconds_total", "worker=\"1\"",
       (double)c->copy_hidden_ns * 1e-9);
    is(f, "pregate_worker_predictions_sent_total", "worker=\"1\"", (double)c->predictions_sent);
    is(f, "pregate_worker_wants_sent_total", "worker=\"1\"", (double)c->wants_sent);
    is(f, "pregate_worker_leases_taken_total", "worker=\"1\"", (double)c->leases_taken);
    is(f, "pregate_worker_lease_retries_total", "worker=\"1\"", (double)c->lease_retries);
    is(f, "pregate_worker_cells", "worker=\"1\"", (double)c->n_cells);
    is(f, "pregate_worker_cells_used", "worker=\"1\"", (double)c->cells_used);
    is(f, "pregate_worker_cell_bytes", "worker=\"1\"", (double)c->cell_bytes);
}

static double per_block(fixture *f, const char *name, const char *labels)
{
    f->a.out.plain = (wire_plain){.h.kind = WIRE_STATS, .flags = 1};
    rig_client_send(&f->a);
    rig_client_expect(&f->a, WIRE_STATS_REPLY);
    double value = moe_metrics_find(&f->a.in.stats_reply.metrics, name, labels);
    moe_metrics_fini(&f->a.in.stats_reply.metrics);
    return value;
}

static void blocks_are_summed_or_shown_one_by_one(void **state)
{
    fixture *f = *state;
    uint32_t x = 9; /* of enc1: 8 a block */
    static const char *const names[] = {
        "pregate_cell_hit_total",    "pregate_cell_late_total",       "pregate_cell_miss_total",
        "pregate_cell_wasted_total", "pregate_slot_hit_total",        "pregate_slot_late_total",
        "pregate_slot_miss_total",   "pregate_fetch_predicted_total", "pregate_fetch_demand_total"};
    start(f, four_slots);
    for (uint32_t b = 0; b < 4; b++) { /* each word of each block its own value */
        _Atomic uint64_t *words =
            (_Atomic uint64_t *)(void *)&moe_lease_blocks(f->a.leases.base)[b];
        for (size_t i = 0; i < sizeof(moe_block_counters) / sizeof *words; i++) {
            atomic_store(&words[i], 100 * b + i + 1);
        }
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        is(f, names[i], NULL, 600 + 4 * ((double)i + 1));
        assert_true(per_block(f, names[i], "block=\"dec1\"") == 300 + (double)i + 1);
    }
    rig_client_want(&f->a, &x, 1);
    assert_true(per_block(f, "pregate_store_block_ready", "block=\"enc1\"") == 1);
    assert_true(per_block(f, "pregate_store_block_ready", "block=\"enc0\"") == 0);
}

/* ---- expert-stat ---- */

static const char *run_stat(fixture *f, const char *options, int expected_exit)
{
    static char text[128 << 10];
    char command[512];
    snprintf(command, sizeof command, "%s --endpoint %s %s 2>&1", stat_program, f->rig.endpoint,
             options);
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

static void shows(const char *text, const char *words)
{
    if (strstr(text, words) == NULL) {
        fail_msg("\"%s\" is not in: %s", words, text);
    }
}

static void expert_stat_shows_the_same_numbers_in_every_form(void **state)
{
    fixture *f = *state;
    start(f, four_slots);
    fill_memory(f);
    shows(run_stat(f, "", 0), "switch-tiny");
    shows(run_stat(f, "", 0), "4 of 32 experts, 3 leased, 0 loading, 1 pinned");
    shows(run_stat(f, "", 0), "32.0 KiB in 4 slots of 8.00 KiB");
    shows(run_stat(f, "--json", 0), "\"pregate_store_want_miss_total\": 4");
    shows(run_stat(f, "--prometheus", 0), "# TYPE pregate_store_want_miss_total counter");
    shows(run_stat(f, "--prometheus", 0), "\npregate_store_want_miss_total 4\n");
    shows(run_stat(f, "--prometheus", 0), "pregate_store_want_seconds_count 4");
    shows(run_stat(f, "--per-block", 0), "\nenc0 ");
    shows(run_stat(f, "--per-block", 0), "\ndec1 ");
}

static void expert_stat_gives_orders(void **state)
{
    fixture *f = *state;
    start(f, four_slots);
    shows(run_stat(f, "--prefetch enc1:2-3,31", 0), "3 of 3 experts will be read");
    is(f, "pregate_store_slots", "state=\"ready\"", 3);
    assert_int_equal(MOE_BOARD_READY, moe_board_word_state(rig_client_word(&f->a, 10)));
    assert_int_equal(MOE_BOARD_READY, moe_board_word_state(rig_client_word(&f->a, 31)));
    shows(run_stat(f, "--pin dec1:7", 0), "1 more pinned");
    shows(run_stat(f, "--evict all", 1), "2 evicted, 1 in use or pinned");
    shows(run_stat(f, "--unpin all", 0), "in all: 0");
    shows(run_stat(f, "--evict 31", 0), "1 evicted");
    shows(run_stat(f, "--pin 0-7", 1), "too few slots");
    is(f, "pregate_store_experts_pinned", NULL, 0); /* none of them */
    shows(run_stat(f, "--prefetch dec2", 1), "expected all");
    shows(run_stat(f, "--prefetch 32", 1), "below 32");
    shows(run_stat(f, "--drain", 0), "stopping");
    assert_int_equal(0, store_rig_wait(&f->rig));
}

static void expert_stat_says_when_nobody_answers(void **state)
{
    fixture *f = *state;
    int64_t begin_ns = moe_now_ns();
    shows(run_stat(f, "", 1), "no expert-store answers");
    assert_true(moe_now_ns() - begin_ns < 4 * MOE_NS_PER_S);
    shows(run_stat(f, "--json --prometheus", 2), "exclude");
    shows(run_stat(f, "5", 2), "only --watch takes a number");
    shows(run_stat(f, "--watch 0", 2), "0.05 to 3600");
}

static void expert_stat_watches(void **state)
{
    fixture *f = *state;
    char command[512];
    char text[8192];
    start(f, four_slots);
    snprintf(command, sizeof command, "timeout -s INT 1 %s --endpoint %s --watch 0.2", stat_program,
             f->rig.endpoint);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    size_t n = fread(text, 1, sizeof text - 1, p);
    text[n] = '\0';
    (void)pclose(p);
    shows(text, "model");
    shows(text, "/s\n"); /* rates, from the second time on */
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(wants_are_hits_lates_misses_and_repetitions),
        TEST(predictions_come_stale_expire_and_go_to_waste),
        TEST(cancelled_reads_leave_the_queue),
        TEST(holds_are_broken_and_stalled_workers_noticed),
        TEST(refused_and_malformed_messages_are_counted),
        TEST(an_answer_to_a_peer_that_left_is_dropped_and_counted),
        TEST(reads_bytes_and_times_add_up),
        TEST(failed_reads_and_hashes_are_counted),
        TEST(adoption_is_counted),
        TEST(what_a_worker_counts_is_shown_under_its_name),
        TEST(blocks_are_summed_or_shown_one_by_one),
        TEST(expert_stat_shows_the_same_numbers_in_every_form),
        TEST(expert_stat_gives_orders),
        TEST(expert_stat_says_when_nobody_answers),
        TEST(expert_stat_watches),
    };
    if (argc < 4) {
        fprintf(stderr, "usage: %s EXPERT-STORE EXPERT-PACK EXPERT-STAT [FILTER]\n", argv[0]);
        return 2;
    }
    store_program = argv[1];
    pack_program = argv[2];
    stat_program = argv[3];
    if (argc > 4) {
        cmocka_set_test_filter(argv[4]);
    }
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
