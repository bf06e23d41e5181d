/* trace_recorder: uses found in lease tables, events in order, a file that is never somebody
 * else's, and an end that does not stop the store. Runs in a scratch directory, with a fake clock.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/file.h"
#include "expert-store/server/trace_recorder.h"
#include "tests/support/fake_store.h"

enum { MS = 1000000, N_EXPERTS = 12 };
static const char path[] = "record.trace";
static const char reason[] = "reached --record-trace-bytes";

ssize_t __real_pwrite(int fd, const void *buf, size_t n, off_t off);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t n, off_t off);
static bool write_fails;
ssize_t __wrap_pwrite(int fd, const void *buf, size_t n, off_t off)
{
    if (write_fails) {
        errno = ENOSPC;
        return -1;
    }
    return __real_pwrite(fd, buf, n, off);
}

typedef struct fixture {
    fake_store store;
    xs_recorder *recorder;
} fixture;

static xs_recorder_cfg config(fixture *f)
{
    return (xs_recorder_cfg){.path = path,
                             .max_bytes = 1 << 20,
                             .leases = &f->store.leases,
                             .header = {.n_experts = N_EXPERTS,
                                        .per_block = 6,
                                        .enc_blocks = 1,
                                        .n_slots = 3,
                                        .slot_bytes = 4096,
                                        .period_us = 1000,
                                        .model = "toy"}};
}

static int setup(void **state)
{
    static fixture f;
    memset(&f, 0, sizeof f);
    const fake_store_cfg cfg = {
        .n_experts = N_EXPERTS, .n_slots = 3, .n_tables = 2, .lease_capacity = 2};
    fake_store_init(&f.store, &cfg);
    moe_clock_fake(1000 * (int64_t)MS);
    unlink(path);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    xs_recorder_destroy(f->recorder);
    f->recorder = NULL;
    fake_store_fini(&f->store);
    moe_clock_fake(-1);
    unlink(path);
    return 0;
}

static void begin(fixture *f)
{
    const xs_recorder_cfg cfg = config(f);
    assert_int_equal(MOE_OK, xs_recorder_create(&cfg, &f->recorder, NULL));
}

static void end(fixture *f)
{
    xs_recorder_destroy(f->recorder);
    f->recorder = NULL;
}

static void at(int64_t ms)
{
    moe_clock_fake((1000 + ms) * MS);
}

static void tick(fixture *f)
{
    assert_int_equal(MOE_OK, xs_recorder_tick(f->recorder, NULL));
}

static void expect_file(const xs_trace_event *events, size_t n)
{
    char *data = NULL;
    size_t bytes = 0;
    xs_trace_header h;
    xs_trace_reader r;
    bool is_end = false;
    assert_int_equal(MOE_OK, moe_file_read(path, 1 << 20, &data, &bytes, NULL));
    assert_int_equal(MOE_OK, xs_trace_open(data, bytes, &h, &r, NULL));
    assert_string_equal("toy", h.model);
    for (size_t i = 0; i < n; i++) {
        xs_trace_event e = {0};
        assert_int_equal(MOE_OK, xs_trace_next(&r, &e, &is_end, NULL));
        assert_false(is_end);
        assert_int_equal(events[i].kind, e.kind);
        assert_int_equal(events[i].at_us, e.at_us);
        assert_int_equal(events[i].expert, e.expert);
        assert_int_equal(events[i].n, e.n);
    }
    xs_trace_event none;
    assert_int_equal(MOE_OK, xs_trace_next(&r, &none, &is_end, NULL));
    assert_true(is_end);
    free(data);
}
#define EXPECT_FILE(...)                                                                           \
    do {                                                                                           \
        const xs_trace_event events_[] = {__VA_ARGS__};                                            \
        expect_file(events_, sizeof events_ / sizeof events_[0]);                                  \
    } while (0)

static void uses_of_a_period_come_in_the_order_of_their_leases(void **state)
{
    fixture *f = *state;
    begin(f);
    fake_store_use(&f->store, 0, 5, 1003 * (int64_t)MS);
    fake_store_use(&f->store, 1, 2, 1001 * (int64_t)MS);
    fake_store_use(&f->store, 0, 7, 1001 * (int64_t)MS);
    at(4);
    tick(f);
    fake_store_use(&f->store, 0, 2, 1005 * (int64_t)MS); /* by two workers */
    fake_store_use(&f->store, 1, 2, 1006 * (int64_t)MS);
    at(7);
    tick(f);
    tick(f); /* nothing new */
    end(f);
    EXPECT_FILE({XS_TRACE_USE, 1000, 2, 1}, {XS_TRACE_USE, 1000, 7, 1}, {XS_TRACE_USE, 3000, 5, 1},
                {XS_TRACE_USE, 6000, 2, 2});
}

static void what_happens_is_noted_when_it_happens(void **state)
{
    fixture *f = *state;
    begin(f);
    at(1);
    xs_recorder_note(f->recorder, XS_TRACE_PREDICT, 4, 2);
    xs_recorder_note(f->recorder, XS_TRACE_WANT, 4, 1);
    at(2);
    xs_recorder_note(f->recorder, XS_TRACE_EVICT, 9, 1);
    xs_recorder_note(f->recorder, XS_TRACE_LOAD, 4, XS_FETCH_DEMAND);
    fake_store_use(&f->store, 0, 4, 1003 * (int64_t)MS);
    at(3);
    end(f); /* looks a last time */
    EXPECT_FILE({XS_TRACE_PREDICT, 1000, 4, 2}, {XS_TRACE_WANT, 1000, 4, 1},
                {XS_TRACE_EVICT, 2000, 9, 1}, {XS_TRACE_LOAD, 2000, 4, XS_FETCH_DEMAND},
                {XS_TRACE_USE, 3000, 4, 1});
}

static void nothing_is_noted_without_a_recorder(void **state)
{
    (void)state;
    xs_recorder_note(NULL, XS_TRACE_WANT, 1, 1);
    assert_false(xs_recorder_active(NULL));
    assert_int_equal(0, xs_recorder_bytes(NULL));
    xs_recorder_destroy(NULL);
}

static void uses_from_before_the_start_are_not_uses(void **state)
{
    fixture *f = *state;
    fake_store_use(&f->store, 0, 3, 5);
    begin(f);
    at(1);
    tick(f);
    fake_store_use(&f->store, 0, 3, 1002 * (int64_t)MS);
    at(2);
    tick(f);
    end(f);
    EXPECT_FILE({XS_TRACE_USE, 2000, 3, 1});
}

/* Workers write their tables as they like. */
static void times_outside_the_period_are_moved_into_it_and_falling_counts_are_no_uses(void **state)
{
    fixture *f = *state;
    begin(f);
    at(5);
    tick(f);
    fake_store_use(&f->store, 0, 1, 9999 * (int64_t)MS);
    fake_store_use(&f->store, 0, 2, 3);
    at(6);
    tick(f);
    moe_use_record *use = &moe_lease_uses(f->store.tables[0])[1];
    atomic_store(&use->count, 0);
    at(7);
    tick(f);
    end(f);
    EXPECT_FILE({XS_TRACE_USE, 5000, 2, 1}, {XS_TRACE_USE, 6000, 1, 1});
}

static off_t file_size(void)
{
    struct stat st;
    return stat(path, &st) == 0 ? st.st_size : -1;
}

static void the_file_follows_once_a_second(void **state)
{
    fixture *f = *state;
    begin(f);
    assert_int_equal(XS_TRACE_HEADER_BYTES, file_size());
    xs_recorder_note(f->recorder, XS_TRACE_WANT, 4, 1);
    at(999);
    tick(f);
    assert_int_equal(XS_TRACE_HEADER_BYTES, file_size());
    at(1000);
    tick(f);
    assert_int_equal(XS_TRACE_HEADER_BYTES + 2, file_size());
    assert_int_equal(XS_TRACE_HEADER_BYTES + 2, xs_recorder_bytes(f->recorder));
}

static void a_full_buffer_goes_into_the_file(void **state)
{
    fixture *f = *state;
    begin(f);
    for (int i = 0; i < 40000; i++) {
        xs_recorder_note(f->recorder, XS_TRACE_WANT, 4, 1);
    }
    assert_in_range(file_size(), 64000, 66000);
    end(f);
    assert_int_equal(XS_TRACE_HEADER_BYTES + 80000, file_size());
}

static void at_its_limit_recording_ends_and_says_so_once(void **state)
{
    fixture *f = *state;
    moe_err err = {0};
    xs_recorder_cfg cfg = config(f);
    cfg.max_bytes = 4096;
    assert_int_equal(MOE_OK, xs_recorder_create(&cfg, &f->recorder, NULL));
    for (int i = 0; i < 5000; i++) {
        xs_recorder_note(f->recorder, XS_TRACE_WANT, 4, 1);
    }
    assert_false(xs_recorder_active(f->recorder));
    assert_int_equal(MOE_ERR_LIMIT, xs_recorder_tick(f->recorder, &err));
    assert_non_null(strstr(err.text, reason));
    tick(f);
    assert_in_range(file_size(), 4096 - XS_TRACE_MAX_RECORD_BYTES - 2, 4096);
    off_t before = file_size();
    end(f);
    assert_int_equal(before, file_size());
}

static void a_file_that_cannot_be_written_ends_it_too(void **state)
{
    fixture *f = *state;
    moe_err err = {0};
    begin(f);
    xs_recorder_note(f->recorder, XS_TRACE_WANT, 4, 1);
    write_fails = true;
    at(2000);
    assert_int_equal(MOE_ERR_NO_SPACE, xs_recorder_tick(f->recorder, &err));
    write_fails = false;
    assert_false(xs_recorder_active(f->recorder));
    tick(f);
    end(f);
    assert_int_equal(XS_TRACE_HEADER_BYTES, file_size());
}

static void put_file(const char *text)
{
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    assert_true(fputs(text, out) >= 0);
    assert_int_equal(0, fclose(out));
}

static void a_file_that_is_no_trace_is_left_alone(void **state)
{
    fixture *f = *state;
    const xs_recorder_cfg cfg = config(f);
    const char *const others[] = {"precious weights", "short"};
    for (int i = 0; i < 2; i++) {
        put_file(others[i]);
        assert_int_equal(MOE_ERR_INVALID, xs_recorder_create(&cfg, &f->recorder, NULL));
        assert_int_equal(strlen(others[i]), file_size());
    }
    unlink(path);
    assert_int_equal(0, mkdir(path, 0700));
    assert_int_equal(MOE_ERR_IO, xs_recorder_create(&cfg, &f->recorder, NULL));
    assert_int_equal(0, rmdir(path));
}

static void an_older_trace_and_an_empty_file_are_begun_anew(void **state)
{
    fixture *f = *state;
    put_file(XS_TRACE_MAGIC " and a lot of old records .....................................");
    begin(f);
    end(f);
    assert_int_equal(XS_TRACE_HEADER_BYTES, file_size());
    put_file("");
    begin(f);
    end(f);
    assert_int_equal(XS_TRACE_HEADER_BYTES, file_size());
}

int main(void)
{
    char dir[] = "/tmp/pregate-test-XXXXXX";
    if (mkdtemp(dir) == NULL || chdir(dir) != 0) {
        return 1;
    }
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(uses_of_a_period_come_in_the_order_of_their_leases),
        TEST(what_happens_is_noted_when_it_happens),
        TEST(nothing_is_noted_without_a_recorder),
        TEST(uses_from_before_the_start_are_not_uses),
        TEST(times_outside_the_period_are_moved_into_it_and_falling_counts_are_no_uses),
        TEST(the_file_follows_once_a_second),
        TEST(a_full_buffer_goes_into_the_file),
        TEST(at_its_limit_recording_ends_and_says_so_once),
        TEST(a_file_that_cannot_be_written_ends_it_too),
        TEST(a_file_that_is_no_trace_is_left_alone),
        TEST(an_older_trace_and_an_empty_file_are_begun_anew),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return rmdir(dir) != 0 || failed != 0;
}
