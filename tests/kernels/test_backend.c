/* Streams, copies, signals, events and memory of every backend that answers here.
 * Nothing passes or fails by being slow: a test that needs "not yet" holds the stream at a flag. */
#include "tests/support/kernel_rig.h"

#include <pthread.h>
#include <stdatomic.h>

#include "common/clock.h"

static rig the;

static int release(void **state)
{
    (void)state;
    rig_release(&the);
    return 0;
}

static krn_stream *new_stream(const char *name)
{
    krn_stream *s = NULL;
    rig_ok(&the, the.ops->backend.stream_create(the.device, name, &s, &the.err));
    return s;
}

static void hold(krn_stream *s, uint32_t *gate)
{
    rig_ok(&the, the.ops->backend.wait32_async(s, gate, 1, &the.err));
}

static void open_gate(uint32_t *gate) /* mapped: a plain store by the host */
{
    __atomic_store_n(gate, 1, __ATOMIC_RELEASE);
}

/* ---- memory and copies ---- */

static void the_device_says_who_it_is(void **state)
{
    (void)state;
    krn_device_info info = {0};
    the.ops->backend.info(the.device, &info);
    assert_true(strlen(info.name) > 0);
    assert_true(info.memory_bytes >= info.memory_free_bytes);
    assert_true(info.memory_bytes > 0);
}

static void mapped_memory_is_zeroed_and_registering_is_undone(void **state)
{
    (void)state;
    enum { BYTES = 3 * 4096 };
    const unsigned char *p = rig_mapped(&the, BYTES);
    for (int i = 0; i < BYTES; i++) {
        assert_int_equal(0, p[i]);
    }
    static _Alignas(4096) char region[4 * 4096];
    for (int i = 0; i < 2; i++) {
        rig_ok(&the, the.ops->backend.host_register(the.device, region, sizeof region, &the.err));
        the.ops->backend.host_unregister(the.device, region);
    }
    void *out = &the;
    assert_int_equal(MOE_ERR_INVALID, the.ops->backend.mem_alloc(the.device, 0, &out, NULL));
    assert_ptr_equal(&the, out); /* untouched on failure */
}

static void copies_go_in_every_direction(void **state)
{
    (void)state;
    enum { BYTES = 1 << 20 };
    static unsigned char from[BYTES], back[BYTES];
    for (int i = 0; i < BYTES; i++) {
        from[i] = (unsigned char)(i * 7 + i / 256);
    }
    void *a = rig_device(&the, BYTES), *b = rig_device(&the, BYTES), *m = rig_mapped(&the, BYTES);
    const krn_backend_fns *fns = &the.ops->backend;
    rig_ok(&the, fns->copy_async(the.stream, a, from, BYTES, &the.err));
    rig_ok(&the, fns->copy_async(the.stream, b, a, BYTES, &the.err));
    rig_ok(&the, fns->copy_async(the.stream, m, b, BYTES, &the.err));
    rig_ok(&the, fns->fill_async(the.stream, b, 0, BYTES, &the.err));
    rig_ok(&the, fns->copy_async(the.stream, b, m, BYTES, &the.err));
    rig_ok(&the, fns->fill_async(the.stream, m, 0x5A, BYTES, &the.err));
    rig_copy(&the, back, b, BYTES);
    assert_memory_equal(from, back, BYTES);
    memset(from, 0x5A, BYTES);
    assert_memory_equal(from, m, BYTES);
    assert_int_equal(MOE_ERR_INVALID, fns->copy_async(the.stream, NULL, from, 1, NULL));
    rig_ok(&the, fns->copy_async(the.stream, NULL, NULL, 0, &the.err));
}

/* ---- order ---- */

static void work_on_one_stream_runs_in_order(void **state)
{
    (void)state;
    enum { N = 300 };
    uint8_t *cell = rig_device(&the, 4), *seen = rig_device(&the, N * 4);
    uint32_t *gate = rig_mapped(&the, sizeof *gate), got[N];
    hold(the.stream, gate);
    for (uint32_t i = 0; i < N; i++) {
        const krn_backend_fns *fns = &the.ops->backend;
        rig_ok(&the, fns->fill_async(the.stream, cell, (uint8_t)i, 4, &the.err));
        rig_ok(&the, fns->copy_async(the.stream, seen + i * 4, cell, 4, &the.err));
    }
    open_gate(gate);
    rig_copy(&the, got, seen, sizeof got);
    for (uint32_t i = 0; i < N; i++) {
        assert_int_equal((uint8_t)i * 0x01010101u, got[i]);
    }
}

static void a_waiting_stream_sees_what_was_copied_before_the_signal(void **state)
{
    (void)state;
    enum { BYTES = 1 << 18, N_ROUNDS = 20 };
    const krn_backend_fns *fns = &the.ops->backend;
    krn_stream *copies = new_stream("copies");
    uint8_t *cell = rig_device(&the, BYTES), *result = rig_device(&the, BYTES);
    uint32_t *flag = rig_device(&the, sizeof *flag), *gate = rig_mapped(&the, sizeof *gate);
    static uint8_t got[BYTES];
    rig_ok(&the, fns->fill_async(the.stream, flag, 0, sizeof *flag, &the.err));
    rig_sync(&the);
    for (int round = 1; round <= N_ROUNDS; round++) {
        hold(copies, gate); /* the copy surely comes after the wait began or was submitted */
        rig_ok(&the, fns->fill_async(copies, cell, (uint8_t)round, BYTES, &the.err));
        rig_ok(&the, fns->write32_async(copies, flag, 1, &the.err));
        rig_ok(&the, fns->wait32_async(the.stream, flag, 1, &the.err));
        rig_ok(&the, fns->copy_async(the.stream, result, cell, BYTES, &the.err));
        open_gate(gate);
        rig_copy(&the, got, result, BYTES);
        for (int i = 0; i < BYTES; i++) {
            assert_int_equal(round, got[i]);
        }
        uint32_t flag_after = 99;
        rig_copy(&the, &flag_after, flag, sizeof flag_after);
        assert_int_equal(0, flag_after); /* reset by the wait, for the next round */
    }
    fns->stream_destroy(copies);
}

static void a_wait_ignores_other_values(void **state)
{
    (void)state;
    const krn_backend_fns *fns = &the.ops->backend;
    krn_event *passed = NULL;
    uint32_t *flag = rig_mapped(&the, sizeof *flag);
    krn_stream *other = new_stream("other");
    rig_ok(&the, fns->event_create(the.device, &passed, &the.err));
    rig_ok(&the, fns->wait32_async(the.stream, flag, 7, &the.err));
    rig_ok(&the, fns->event_record(passed, the.stream, &the.err));
    rig_ok(&the, fns->write32_async(other, flag, 8, &the.err));
    rig_ok(&the, fns->stream_sync(other, &the.err));
    moe_sleep_ns(2 * MOE_NS_PER_MS); /* time for a wrong wait to take the 8 */
    assert_int_equal(MOE_ERR_AGAIN, fns->event_query(passed, NULL));
    rig_ok(&the, fns->write32_async(other, flag, 7, &the.err));
    rig_sync(&the);
    assert_int_equal(MOE_OK, fns->event_query(passed, NULL));
    assert_int_equal(0, __atomic_load_n(flag, __ATOMIC_ACQUIRE));
    assert_int_equal(MOE_ERR_INVALID, fns->wait32_async(the.stream, NULL, 1, NULL));
    assert_int_equal(MOE_ERR_INVALID,
                     fns->write32_async(the.stream, (uint32_t *)((char *)flag + 2), 1, NULL));
    fns->stream_destroy(other);
    fns->event_destroy(passed);
}

/* ---- events ---- */

static void an_event_passes_when_its_stream_gets_there(void **state)
{
    (void)state;
    const krn_backend_fns *fns = &the.ops->backend;
    krn_event *e = NULL;
    uint32_t *gate = rig_mapped(&the, sizeof *gate);
    rig_ok(&the, fns->event_create(the.device, &e, &the.err));
    assert_int_equal(MOE_OK, fns->event_query(e, NULL)); /* never recorded: nothing to wait for */
    for (int i = 0; i < 3; i++) {
        hold(the.stream, gate);
        rig_ok(&the, fns->event_record(e, the.stream, &the.err));
        assert_int_equal(MOE_ERR_AGAIN, fns->event_query(e, NULL));
        int64_t before = moe_now_ns();
        open_gate(gate);
        rig_sync(&the);
        int64_t after = moe_now_ns();
        assert_int_equal(MOE_OK, fns->event_query(e, NULL));
        /* 1 ms: a device clock is read through a calibration */
        assert_true(fns->event_ns(e) > before - MOE_NS_PER_MS);
        assert_true(fns->event_ns(e) < after + MOE_NS_PER_MS);
    }
    fns->event_destroy(e);
}

/* ---- queues ---- */

static void *open_later(void *gate)
{
    moe_sleep_ns(5 * MOE_NS_PER_MS);
    open_gate(gate);
    return NULL;
}

static void a_full_queue_blocks_the_submitter_until_there_is_room(void **state)
{
    (void)state;
    enum { N = 3000 }; /* more than any backend queues */
    uint32_t *gate = rig_mapped(&the, sizeof *gate), value = 0;
    uint32_t *word = rig_device(&the, sizeof *word);
    pthread_t opener;
    hold(the.stream, gate);
    assert_int_equal(0, pthread_create(&opener, NULL, open_later, gate));
    for (uint32_t i = 1; i <= N; i++) {
        rig_ok(&the, the.ops->backend.write32_async(the.stream, word, i, &the.err));
    }
    pthread_join(opener, NULL);
    rig_copy(&the, &value, word, sizeof value);
    assert_int_equal(N, value);
}

static void destroying_a_stream_finishes_its_work(void **state)
{
    (void)state;
    enum { N = 500 };
    uint32_t *words = rig_mapped(&the, N * sizeof *words), *gate = rig_mapped(&the, sizeof *gate);
    krn_stream *s = new_stream("short-lived");
    pthread_t opener;
    hold(s, gate);
    for (uint32_t i = 0; i < N; i++) {
        rig_ok(&the, the.ops->backend.write32_async(s, &words[i], i + 1, &the.err));
    }
    assert_int_equal(0, pthread_create(&opener, NULL, open_later, gate));
    the.ops->backend.stream_destroy(s);
    pthread_join(opener, NULL);
    for (uint32_t i = 0; i < N; i++) {
        assert_int_equal(i + 1, __atomic_load_n(&words[i], __ATOMIC_ACQUIRE));
    }
    the.ops->backend.stream_destroy(NULL);
}

/* A fetch thread in small: it polls the mails of a step and answers each with a copy, a pointer row
 * and a signal. */
enum { N_MAILS = 200, RING_DEPTH = 8, CELL_WORDS = 1024 };

typedef struct fetcher {
    krn_mail *ring;
    krn_stream *stream;
    uint32_t *cell, *flag;
    uint32_t *source; /* [N_MAILS][CELL_WORDS], mapped */
    _Atomic int failed;
} fetcher;

static void *fetch(void *arg)
{
    fetcher *f = arg;
    for (uint32_t n = 1; n <= N_MAILS; n++) {
        krn_mail *mail = &f->ring[n % RING_DEPTH];
        while (atomic_load_explicit(&mail->seq, memory_order_acquire) != n) {
            moe_sleep_ns(1000);
        }
        if (mail->block != n || mail->kind != KRN_MAIL_REACHED ||
            the.ops->backend.copy_async(f->stream, f->cell,
                                        f->source + (size_t)(n - 1) * CELL_WORDS,
                                        CELL_WORDS * sizeof *f->cell, NULL) != MOE_OK ||
            the.ops->backend.write32_async(f->stream, f->flag, 1, NULL) != MOE_OK) {
            atomic_store(&f->failed, 1);
        }
    }
    return NULL;
}

static void a_step_runs_ahead_while_the_host_answers_its_mails(void **state)
{
    (void)state;
    const krn_backend_fns *fns = &the.ops->backend;
    uint32_t zero = 0;
    fetcher f = {.ring = rig_mapped(&the, RING_DEPTH * sizeof *f.ring),
                 .stream = new_stream("fetch"),
                 .cell = rig_device(&the, CELL_WORDS * sizeof *f.cell),
                 .flag = rig_upload(&the, &zero, sizeof zero),
                 .source = rig_mapped(&the, (size_t)N_MAILS * CELL_WORDS * sizeof *f.source)};
    uint32_t *results = rig_mapped(&the, (size_t)N_MAILS * CELL_WORDS * sizeof *results);
    for (uint32_t i = 0; i < N_MAILS * CELL_WORDS; i++) {
        f.source[i] = i * 2654435761u;
    }
    krn_publish_args mail = {.kind = KRN_MAIL_REACHED,
                             .counter = rig_upload(&the, &zero, sizeof zero),
                             .ring = f.ring,
                             .depth = RING_DEPTH};
    pthread_t thread;
    assert_int_equal(0, pthread_create(&thread, NULL, fetch, &f));
    for (uint32_t n = 1; n <= N_MAILS; n++) {
        mail.block = n;
        rig_ok(&the, the.ops->publish(the.stream, &mail, &the.err));
        rig_ok(&the, fns->wait32_async(the.stream, f.flag, 1, &the.err));
        rig_ok(&the, fns->copy_async(the.stream, results + (size_t)(n - 1) * CELL_WORDS, f.cell,
                                     CELL_WORDS * sizeof *results, &the.err));
    }
    rig_sync(&the);
    pthread_join(thread, NULL);
    fns->stream_destroy(f.stream);
    assert_int_equal(0, atomic_load(&f.failed));
    assert_memory_equal(f.source, results, (size_t)N_MAILS * CELL_WORDS * sizeof *results);
}

/* ---- the imagined link of the cpu backend ---- */

static void a_throttled_copy_is_asynchronous_and_never_too_fast(void **state)
{
    (void)state;
    enum { BYTES = 1 << 20, N = 4 };
    if (strcmp(the.ops->name, "cpu") != 0) {
        return; /* real links have their own speed */
    }
    rig slow;
    const krn_open_cfg cfg = {.n_threads = 1, .link_gbps = 0.2};
    assert_int_equal(0, rig_open(&slow, "cpu", &cfg));
    const krn_backend_fns *fns = &slow.ops->backend;
    static uint8_t from[BYTES];
    memset(from, 0xAB, sizeof from);
    uint8_t *to = rig_poisoned(&slow, BYTES);
    uint32_t *gate = rig_mapped(&slow, sizeof *gate);
    int64_t start = moe_now_ns();
    rig_ok(&slow, fns->wait32_async(slow.stream, gate, 1, &slow.err));
    for (int i = 0; i < N; i++) { /* would hang here if a copy were synchronous */
        rig_ok(&slow, fns->copy_async(slow.stream, to, from, BYTES, &slow.err));
    }
    assert_int_equal(0xFF, to[0]);
    open_gate(gate);
    rig_sync(&slow);
    double at_least_ns = N * (double)BYTES / cfg.link_gbps;
    assert_true((double)(moe_now_ns() - start) >= at_least_ns);
    assert_memory_equal(from, to, BYTES);
    rig_close(&slow);
}

/* ---- graphs ---- */

static void a_recorded_graph_replays_with_its_waits(void **state)
{
    (void)state;
    const krn_backend_fns *fns = &the.ops->backend;
    if (fns->graph_begin == NULL) {
        return; /* cpu: the caller submits each time */
    }
    uint32_t zero = 0, *flag = rig_upload(&the, &zero, sizeof zero);
    uint32_t *in = rig_mapped(&the, 4), *out = rig_mapped(&the, 4);
    uint8_t *cell = rig_device(&the, 4);
    krn_stream *copies = new_stream("copies");
    krn_graph *graph = NULL;
    rig_ok(&the, fns->graph_begin(the.stream, &the.err));
    rig_ok(&the, fns->wait32_async(the.stream, flag, 1, &the.err));
    rig_ok(&the, fns->copy_async(the.stream, out, cell, 4, &the.err));
    rig_ok(&the, fns->graph_end(the.stream, &graph, &the.err));
    for (uint32_t round = 1; round <= 20; round++) {
        rig_ok(&the, fns->graph_launch(graph, the.stream, &the.err));
        *in = round * 1000;
        rig_ok(&the, fns->copy_async(copies, cell, in, 4, &the.err));
        rig_ok(&the, fns->write32_async(copies, flag, 1, &the.err));
        rig_sync(&the);
        assert_int_equal(round * 1000, *out);
    }
    fns->graph_destroy(graph);
    fns->stream_destroy(copies);
}

/* ---- the table ---- */

static void an_unknown_backend_is_refused_by_name(void **state)
{
    (void)state;
    const krn_ops *ops = NULL;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_UNSUPPORTED, krn_ops_find("abacus", &ops, NULL, 0, &err));
    assert_non_null(strstr(err.text, "abacus"));
    assert_null(ops);
}

static void auto_always_finds_one_and_says_why(void **state)
{
    (void)state;
    const krn_ops *ops = NULL, *cuda = NULL;
    char note[200] = "";
    assert_int_equal(MOE_OK, krn_ops_find("auto", &ops, note, sizeof note, NULL));
    bool has_cuda = krn_ops_find("cuda", &cuda, NULL, 0, NULL) == MOE_OK;
    assert_string_equal(has_cuda ? "cuda" : "cpu", ops->name);
    assert_true(strlen(note) > 4);
}

static void a_nonsense_device_is_refused(void **state)
{
    (void)state;
    krn_device *d = NULL;
    const krn_open_cfg cfg = {.device_index = 4000, .n_threads = 100000, .link_gbps = -1};
    assert_int_not_equal(MOE_OK, the.ops->backend.open(&cfg, &d, NULL));
    assert_null(d);
    the.ops->backend.close(NULL);
}

#define BACKEND_TEST(name) cmocka_unit_test_teardown(name, release)

static int run_backend(const char *name)
{
    const krn_ops *ops = NULL;
    moe_err err = {0};
    if (krn_ops_find(name, &ops, NULL, 0, &err) != MOE_OK) {
        printf("%s: not tested: %s\n", name, err.text);
        return 0;
    }
    const krn_open_cfg cfg = {.n_threads = 2};
    const struct CMUnitTest tests[] = {
        BACKEND_TEST(the_device_says_who_it_is),
        BACKEND_TEST(mapped_memory_is_zeroed_and_registering_is_undone),
        BACKEND_TEST(copies_go_in_every_direction),
        BACKEND_TEST(work_on_one_stream_runs_in_order),
        BACKEND_TEST(a_waiting_stream_sees_what_was_copied_before_the_signal),
        BACKEND_TEST(a_wait_ignores_other_values),
        BACKEND_TEST(an_event_passes_when_its_stream_gets_there),
        BACKEND_TEST(a_full_queue_blocks_the_submitter_until_there_is_room),
        BACKEND_TEST(destroying_a_stream_finishes_its_work),
        BACKEND_TEST(a_step_runs_ahead_while_the_host_answers_its_mails),
        BACKEND_TEST(a_throttled_copy_is_asynchronous_and_never_too_fast),
        BACKEND_TEST(a_recorded_graph_replays_with_its_waits),
        BACKEND_TEST(an_unknown_backend_is_refused_by_name),
        BACKEND_TEST(auto_always_finds_one_and_says_why),
        BACKEND_TEST(a_nonsense_device_is_refused),
    };
    if (rig_open(&the, name, &cfg) != 0) {
        return 1;
    }
    int failed = cmocka_run_group_tests_name(name, tests, NULL, NULL);
    rig_close(&the);
    return failed;
}

int main(void)
{
    return (run_backend("cpu") + run_backend("cuda")) != 0;
}
