/* Statuses, error context, the clock and the log line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/status.h"

static void names_and_texts_follow_the_list(void **state)
{
    (void)state;
    assert_string_equal("MOE_OK", moe_status_name(MOE_OK));
    assert_string_equal("MOE_ERR_NO_SLOT", moe_status_name(MOE_ERR_NO_SLOT));
    assert_string_equal("every pinned slot is in use", moe_status_text(MOE_ERR_NO_SLOT));
    assert_int_equal(19, MOE_ERR_INTERNAL); /* travels on the wire: must not move */
}

static void an_unknown_number_has_a_name_too(void **state)
{
    (void)state;
    assert_string_equal("MOE_ERR_?", moe_status_name((moe_status)4711));
    assert_string_equal("unknown status", moe_status_text((moe_status)-1));
}

static void a_failure_fills_the_error_where_it_happened(void **state)
{
    (void)state;
    moe_err err = {0};
    int line = __LINE__ + 1;
    moe_status st = MOE_FAIL(&err, MOE_ERR_LIMIT, "%d experts", 5);
    assert_int_equal(MOE_ERR_LIMIT, st);
    assert_int_equal(MOE_ERR_LIMIT, err.status);
    assert_int_equal(line, err.line);
    assert_string_equal("5 experts", err.text);
    assert_string_equal("tests/unit/test_status.c", err.file); /* relative to the root */
}

static void a_null_error_is_accepted(void **state)
{
    (void)state;
    assert_int_equal(MOE_ERR_IO, MOE_FAIL(NULL, MOE_ERR_IO, "nobody listens"));
}

static void a_long_text_is_cut(void **state)
{
    (void)state;
    char longer[1000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    moe_err err = {0};
    moe_status st = MOE_FAIL(&err, MOE_ERR_IO, "%s", longer);
    assert_int_equal(MOE_ERR_IO, st);
    assert_int_equal(sizeof err.text - 1, strlen(err.text));
}

static void an_error_can_wrap_its_own_text(void **state)
{
    (void)state;
    moe_err err = {0};
    moe_status st = MOE_FAIL(&err, MOE_ERR_IO, "short read");
    st = MOE_FAIL(&err, st, "loading store: %s", err.text);
    assert_int_equal(MOE_ERR_IO, st);
    assert_string_equal("loading store: short read", err.text);
}

static void the_formatted_line_names_everything(void **state)
{
    (void)state;
    moe_err err = {.status = MOE_ERR_IO,
                   .layer = MOE_LAYER_ERRNO,
                   .native = ENOENT,
                   .line = 12,
                   .file = "f.c",
                   .text = "cannot open X"};
    char line[200];
    moe_err_format(&err, line, sizeof line);
    assert_string_equal("cannot open X: No such file or directory (MOE_ERR_IO errno 2, f.c:12)",
                        line);
    err = (moe_err){.status = MOE_ERR_CORRUPT, .layer = MOE_LAYER_LMDB, .native = -30796};
    moe_err_format(&err, line, sizeof line);
    assert_string_equal("data does not match its checksum (MOE_ERR_CORRUPT lmdb -30796, ?:0)",
                        line);
    moe_err_format(&err, line, 10);
    assert_string_equal("data does", line);
}

static void native_text_knows_errno_only(void **state)
{
    (void)state;
    assert_string_equal("Permission denied", moe_native_text(MOE_LAYER_ERRNO, EACCES));
    assert_string_equal("", moe_native_text(MOE_LAYER_ERRNO, 999999));
    assert_string_equal("", moe_native_text(MOE_LAYER_CUDA, 2));
}

static void the_real_clock_does_not_go_back(void **state)
{
    (void)state;
    int64_t before = moe_now_ns();
    moe_sleep_ns(2 * MOE_NS_PER_MS);
    assert_true(moe_now_ns() - before >= 2 * MOE_NS_PER_MS);
    moe_sleep_ns(-5); /* no time at all */
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
}

static void signals_do_not_shorten_a_sleep(void **state)
{
    (void)state;
    struct sigaction action = {.sa_handler = on_alarm};
    struct itimerval every_ms = {{0, 1000}, {0, 1000}};
    struct itimerval off = {{0, 0}, {0, 0}};
    sigaction(SIGALRM, &action, NULL);
    int64_t before = moe_now_ns();
    setitimer(ITIMER_REAL, &every_ms, NULL);
    moe_sleep_ns(10 * MOE_NS_PER_MS);
    setitimer(ITIMER_REAL, &off, NULL);
    assert_true(moe_now_ns() - before >= 10 * MOE_NS_PER_MS);
}

static void the_fake_clock_moves_only_by_sleeping(void **state)
{
    (void)state;
    moe_clock_fake(1000);
    assert_int_equal(1000, moe_now_ns());
    moe_sleep_ns(3600 * MOE_NS_PER_S);
    assert_int_equal(1000 + 3600 * MOE_NS_PER_S, moe_now_ns());
    moe_clock_fake(-1);
    assert_true(moe_now_ns() != 1000 + 3600 * MOE_NS_PER_S);
}

/* Runs one log call with stderr going to a pipe; out is what arrived. */
static void capture(void (*call)(void), char *out, size_t out_bytes)
{
    int ends[2];
    assert_int_equal(0, pipe2(ends, O_NONBLOCK | O_CLOEXEC));
    int saved = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    call();
    dup2(saved, STDERR_FILENO);
    close(saved);
    ssize_t n = read(ends[0], out, out_bytes - 1);
    out[n > 0 ? n : 0] = '\0';
    close(ends[0]);
    close(ends[1]);
}

static void log_with_a_newline(void)
{
    moe_log(MOE_LOG_WARN, "store", "read_failed", "expert=%d path=%s", 17, "a\nb");
}

static void log_something_minor(void)
{
    moe_log(MOE_LOG_DEBUG, "store", "detail", "x=1");
}

static void log_nothing_but_the_event(void)
{
    moe_log(MOE_LOG_INFO, "worker", "ready", "%s", "");
}

static void log_an_error(void)
{
    moe_err err = {0};
    moe_status st = MOE_FAIL(&err, MOE_ERR_INVALID, "a \"quoted\" name");
    assert_int_equal(MOE_ERR_INVALID, st);
    moe_log_err("store", "start_failed", &err);
}

static void log_something_long(void)
{
    char longer[5000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    moe_log(MOE_LOG_INFO, "store", "long", "%s", longer);
}

static void a_log_line_is_one_line(void **state)
{
    (void)state;
    char line[4096];
    capture(log_with_a_newline, line, sizeof line);
    assert_int_equal('Z', line[23]); /* 2026-11-25T10:00:00.123Z */
    assert_string_equal(" WARN store read_failed expert=17 path=a b\n", line + 24);
    capture(log_nothing_but_the_event, line, sizeof line);
    assert_string_equal(" INFO worker ready \n", line + 24);
    capture(log_something_long, line, sizeof line);
    assert_int_equal(2048, strlen(line));
    assert_int_equal('\n', line[2047]);
}

static void the_level_silences_what_is_below(void **state)
{
    (void)state;
    char line[4096];
    capture(log_something_minor, line, sizeof line);
    assert_string_equal("", line);
    moe_log_set_level(MOE_LOG_DEBUG);
    capture(log_something_minor, line, sizeof line);
    assert_string_equal(" DEBUG store detail x=1\n", line + 24);
    moe_log_set_level(MOE_LOG_INFO);
}

static void an_error_is_logged_as_one_quoted_value(void **state)
{
    (void)state;
    char line[4096];
    capture(log_an_error, line, sizeof line);
    assert_non_null(strstr(line, " ERROR store start_failed error=\"a 'quoted' name (MOE_ERR_"));
    assert_ptr_equal(line + strlen(line) - 2, strrchr(line, '"'));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_texts_follow_the_list),
        cmocka_unit_test(an_unknown_number_has_a_name_too),
        cmocka_unit_test(a_failure_fills_the_error_where_it_happened),
        cmocka_unit_test(a_null_error_is_accepted),
        cmocka_unit_test(a_long_text_is_cut),
        cmocka_unit_test(an_error_can_wrap_its_own_text),
        cmocka_unit_test(the_formatted_line_names_everything),
        cmocka_unit_test(native_text_knows_errno_only),
        cmocka_unit_test(the_real_clock_does_not_go_back),
        cmocka_unit_test(signals_do_not_shorten_a_sleep),
        cmocka_unit_test(the_fake_clock_moves_only_by_sleeping),
        cmocka_unit_test(a_log_line_is_one_line),
        cmocka_unit_test(the_level_silences_what_is_below),
        cmocka_unit_test(an_error_is_logged_as_one_quoted_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
