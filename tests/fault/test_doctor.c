/* The doctor's measuring where things are refused: no io_uring, no registered buffers, no O_DIRECT,
 * failing and short reads, no threads. Always a finding or an error, never a wrong number. */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "expert-store/doctor/dram.h"
#include "expert-store/doctor/drive_report.h"

enum { FILE_BYTES = 8 << 20 };

static int ring_errno, register_errno, pread_errno, direct_errno;
static int threads_left = -1; /* -1: as many as wanted */

int __real_io_uring_queue_init_params(unsigned n, struct io_uring *r, struct io_uring_params *p);
int __wrap_io_uring_queue_init_params(unsigned n, struct io_uring *r, struct io_uring_params *p);
int __wrap_io_uring_queue_init_params(unsigned n, struct io_uring *r, struct io_uring_params *p)
{
    return ring_errno != 0 ? -ring_errno : __real_io_uring_queue_init_params(n, r, p);
}

int __real_io_uring_register_buffers(struct io_uring *r, const struct iovec *v, unsigned n);
int __wrap_io_uring_register_buffers(struct io_uring *r, const struct iovec *v, unsigned n);
int __wrap_io_uring_register_buffers(struct io_uring *r, const struct iovec *v, unsigned n)
{
    return register_errno != 0 ? -register_errno : __real_io_uring_register_buffers(r, v, n);
}

ssize_t __real_pread(int fd, void *buf, size_t n, off_t off);
ssize_t __wrap_pread(int fd, void *buf, size_t n, off_t off);
ssize_t __wrap_pread(int fd, void *buf, size_t n, off_t off)
{
    if (direct_errno != 0 && n == 4096) { /* the probe */
        errno = direct_errno;
        return -1;
    }
    if (pread_errno != 0 && n > 4096) {
        errno = pread_errno;
        return -1;
    }
    return __real_pread(fd, buf, n, off);
}

int __real_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*run)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*run)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*run)(void *), void *arg)
{
    if (threads_left == 0) {
        return EAGAIN;
    }
    threads_left -= threads_left > 0;
    return __real_pthread_create(t, a, run, arg);
}

static int setup(void **state)
{
    static xs_drive_file f;
    ring_errno = register_errno = pread_errno = direct_errno = 0;
    threads_left = -1;
    assert_int_equal(MOE_OK, xs_drive_make(".", FILE_BYTES, &f, NULL));
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    xs_drive_close(*state);
    return 0;
}

static xs_drive_report measure(const xs_drive_file *f)
{
    xs_drive_report r;
    assert_int_equal(MOE_OK, xs_drive_report_measure(f, 0.2, &r, NULL));
    return r;
}

static const xs_finding *find(const xs_findings *f, const char *name)
{
    for (uint32_t i = 0; i < f->n; i++) {
        if (strcmp(f->items[i].name, name) == 0) {
            return &f->items[i];
        }
    }
    return NULL;
}

static xs_findings judge(const xs_drive_file *f, const xs_drive_report *r)
{
    xs_findings findings = {.n = 0};
    xs_drive_report_judge(f, r, "a file", &findings);
    return findings;
}

static bool has_ring(const xs_drive_file *f)
{
    xs_drive_ring *ring = NULL;
    moe_status st = xs_drive_ring_create(f, 4, &ring, NULL);
    xs_drive_ring_destroy(ring);
    return st == MOE_OK;
}

static void everything_that_fits_the_file_is_measured(void **state)
{
    const xs_drive_file *f = *state;
    assert_int_equal(FILE_BYTES, f->bytes);
    assert_true(f->file_system[0] != '\0');
    const xs_drive_report r = measure(f);
    assert_true(r.threads.gb_per_s > 0);
    if (!r.uring) {
        return; /* this machine forbids it: the next test says what is shown */
    }
    for (int i = 0; i < XS_MAX_POINTS; i++) {
        bool too_much = (uint64_t)r.grid[i].read_bytes * r.grid[i].depth > 128 << 20;
        assert_int_equal(too_much, r.grid[i].gb_per_s == 0);
    }
    assert_true(r.best.gb_per_s > 0 && r.best.read_bytes >= 128 << 10);
    assert_true(xs_drive_report_speed(&r) == r.best.gb_per_s);
    const xs_findings findings = judge(f, &r);
    assert_non_null(find(&findings, "drive"));
}

static void without_io_uring_the_threads_count_and_the_reason_is_given(void **state)
{
    const xs_drive_file *f = *state;
    ring_errno = EPERM;
    const xs_drive_report r = measure(f);
    assert_false(r.uring);
    assert_true(xs_drive_report_speed(&r) == r.threads.gb_per_s && r.threads.gb_per_s > 0);
    const xs_findings findings = judge(f, &r);
    const xs_finding *uring = find(&findings, "io_uring");
    assert_int_equal(XS_SLOW, uring->verdict);
    assert_non_null(strstr(uring->found, "errno 1"));
    assert_non_null(strstr(uring->change, "seccomp"));
    assert_null(find(&findings, "drive"));
}

static void a_kernel_without_io_uring_is_told_apart(void **state)
{
    ring_errno = ENOSYS;
    assert_non_null(strstr(measure(*state).why_not, "built without it"));
}

static void buffers_that_cannot_be_registered_are_said(void **state)
{
    const xs_drive_file *f = *state;
    if (!has_ring(f)) {
        return;
    }
    register_errno = ENOMEM;
    const xs_drive_report r = measure(f);
    assert_true(r.uring && !r.registered && r.best.gb_per_s > 0);
    const xs_findings findings = judge(f, &r);
    assert_int_equal(XS_SLOW, find(&findings, "io_uring")->verdict);
}

static void a_file_system_without_direct_reads_is_said(void **state)
{
    (void)state;
    xs_drive_file f;
    direct_errno = EINVAL;
    assert_int_equal(MOE_OK, xs_drive_make(".", FILE_BYTES, &f, NULL));
    assert_false(f.direct);
    direct_errno = 0;
    const xs_drive_report r = measure(&f); /* through the page cache */
    const xs_findings findings = judge(&f, &r);
    assert_int_equal(XS_SLOW, find(&findings, "O_DIRECT")->verdict);
    xs_drive_close(&f);
}

static void an_alignment_above_ours_is_bad(void **state)
{
    xs_drive_file f = *(xs_drive_file *)*state;
    xs_drive_report r = {.uring = false};
    f.direct = true;
    f.offset_align = 65536;
    const xs_findings findings = judge(&f, &r);
    assert_int_equal(XS_BAD, find(&findings, "O_DIRECT")->verdict);
}

static void reads_that_fail_are_an_error(void **state)
{
    const xs_drive_file *f = *state;
    moe_err err = {0};
    xs_drive_report r;
    pread_errno = EIO;
    assert_int_equal(MOE_ERR_IO, xs_drive_report_measure(f, 0.1, &r, &err));
    assert_int_equal(EIO, err.native);
}

/* Shorter than it was when it was opened: reads behind its end are short. */
static void a_file_that_shrank_is_an_error(void **state)
{
    const xs_drive_file *f = *state;
    xs_drive_ring *ring = NULL;
    xs_drive_point p = {.read_bytes = 1 << 20, .depth = 4};
    assert_int_equal(0, ftruncate(f->fd, 1 << 19));
    assert_int_equal(MOE_ERR_IO, xs_drive_measure_threads(f, 0.05, &p, NULL));
    if (has_ring(f)) {
        assert_int_equal(MOE_OK, xs_drive_ring_create(f, 4, &ring, NULL));
        assert_int_equal(MOE_ERR_IO, xs_drive_measure(ring, 0.05, &p, NULL));
        xs_drive_ring_destroy(ring);
    }
    assert_true(p.gb_per_s == 0);
}

static void reads_larger_than_the_file_are_refused(void **state)
{
    const xs_drive_file *f = *state;
    xs_drive_point p = {.read_bytes = 2 * FILE_BYTES, .depth = 1};
    assert_int_equal(MOE_ERR_INVALID, xs_drive_measure_threads(f, 0.05, &p, NULL));
}

static void threads_that_cannot_start_are_an_error(void **state)
{
    const xs_drive_file *f = *state;
    double gb_per_s = 0;
    xs_drive_point p = {.read_bytes = 1 << 20, .depth = 4};
    threads_left = 2;
    assert_int_equal(MOE_ERR_NO_MEMORY, xs_drive_measure_threads(f, 0.05, &p, NULL));
    threads_left = 1;
    assert_int_equal(MOE_ERR_NO_MEMORY, xs_dram_measure(2, 0.01, &gb_per_s, NULL));
    threads_left = -1;
    assert_int_equal(MOE_OK, xs_dram_measure(2, 0.01, &gb_per_s, NULL));
    assert_true(gb_per_s > 0);
}

static void a_directory_that_is_not_there_is_an_error(void **state)
{
    (void)state;
    xs_drive_file f;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_IO, xs_drive_make("/nowhere/at/all", FILE_BYTES, &f, &err));
    assert_non_null(strstr(err.text, "/nowhere/at/all"));
    assert_int_equal(MOE_ERR_NOT_FOUND, xs_drive_open("/nowhere/at/all", &f, NULL));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(everything_that_fits_the_file_is_measured),
        TEST(without_io_uring_the_threads_count_and_the_reason_is_given),
        TEST(a_kernel_without_io_uring_is_told_apart),
        TEST(buffers_that_cannot_be_registered_are_said),
        TEST(a_file_system_without_direct_reads_is_said),
        TEST(an_alignment_above_ours_is_bad),
        TEST(reads_that_fail_are_an_error),
        TEST(a_file_that_shrank_is_an_error),
        TEST(reads_larger_than_the_file_are_refused),
        TEST(threads_that_cannot_start_are_an_error),
        TEST(a_directory_that_is_not_there_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
