/* Interrupted, short and failing transfers, and failing allocations, in whole-file reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"

ssize_t __real_pread(int fd, void *buf, size_t bytes, off_t off);
ssize_t __real_pwrite(int fd, const void *buf, size_t bytes, off_t off);
void *__real_malloc(size_t bytes);
ssize_t __wrap_pread(int fd, void *buf, size_t bytes, off_t off);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t bytes, off_t off);
void *__wrap_malloc(size_t bytes);

static int calls;     /* of pread and pwrite since the last reset */
static int fail_call; /* the call that fails with fail_errno; 0: none */
static int fail_errno;
static int always_short; /* every other call is interrupted, the rest move at most 3 bytes */
static int malloc_fails;

static void reset(void)
{
    calls = fail_call = fail_errno = always_short = malloc_fails = 0;
}

/* True when this call is to fail; *bytes may shrink. */
static int disturbed(size_t *bytes)
{
    calls++;
    if (calls == fail_call) {
        errno = fail_errno;
        return 1;
    }
    if (always_short && calls % 2 == 1) {
        errno = EINTR;
        return 1;
    }
    if (always_short && *bytes > 3) {
        *bytes = 3;
    }
    return 0;
}

ssize_t __wrap_pread(int fd, void *buf, size_t bytes, off_t off)
{
    return disturbed(&bytes) ? -1 : __real_pread(fd, buf, bytes, off);
}

ssize_t __wrap_pwrite(int fd, const void *buf, size_t bytes, off_t off)
{
    return disturbed(&bytes) ? -1 : __real_pwrite(fd, buf, bytes, off);
}

void *__wrap_malloc(size_t bytes)
{
    return malloc_fails ? NULL : __real_malloc(bytes);
}

static char path[] = "/tmp/pregate-test-fault-file-XXXXXX";
static int fd = -1;

static int make_file(void **state)
{
    (void)state;
    fd = mkstemp(path);
    return fd >= 0 ? 0 : -1;
}

static int remove_file(void **state)
{
    (void)state;
    close(fd);
    return unlink(path);
}

static void short_and_interrupted_transfers_are_finished(void **state)
{
    (void)state;
    char buf[11] = "";
    reset();
    always_short = 1;
    assert_int_equal(MOE_OK, moe_pwrite_exact(fd, "0123456789", 10, 0, "it", NULL));
    assert_int_equal(8, calls); /* 3 + 3 + 3 + 1 bytes, each after an interruption */
    assert_int_equal(MOE_OK, moe_pread_exact(fd, buf, 10, 0, "it", NULL));
    assert_string_equal("0123456789", buf);
    char *data = NULL;
    size_t bytes = 0;
    assert_int_equal(MOE_OK, moe_file_read(path, 10, &data, &bytes, NULL));
    assert_string_equal("0123456789", data);
    free(data);
    reset();
}

static void a_failed_transfer_says_where_and_why(void **state)
{
    (void)state;
    char buf[10];
    moe_err err = {0};
    reset();
    always_short = 1;
    fail_call = 4;
    fail_errno = EIO;
    assert_int_equal(MOE_ERR_IO, moe_pread_exact(fd, buf, 10, 0, "it", &err));
    assert_int_equal(EIO, err.native);
    assert_string_equal("cannot read it at offset 3", err.text);
    reset();
    fail_call = 1;
    fail_errno = EDQUOT;
    assert_int_equal(MOE_ERR_NO_SPACE, moe_pwrite_exact(fd, "x", 1, 7, "it", &err));
    assert_string_equal("cannot write it at offset 7", err.text);
    reset();
}

static void a_failed_whole_read_leaks_and_changes_nothing(void **state)
{
    (void)state;
    char *data = NULL;
    size_t bytes = 4711;
    int before = dup(fd);
    close(before); /* the lowest free descriptor, to see one leak */
    reset();
    fail_call = 1;
    fail_errno = EIO;
    assert_int_equal(MOE_ERR_IO, moe_file_read(path, 10, &data, &bytes, NULL));
    reset();
    malloc_fails = 1;
    moe_status st = moe_file_read(path, 10, &data, &bytes, NULL);
    reset();
    assert_int_equal(MOE_ERR_NO_MEMORY, st);
    assert_null(data);
    assert_int_equal(4711, bytes);
    int after = dup(fd);
    close(after);
    assert_int_equal(before, after);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_and_interrupted_transfers_are_finished),
        cmocka_unit_test(a_failed_transfer_says_where_and_why),
        cmocka_unit_test(a_failed_whole_read_leaks_and_changes_nothing),
    };
    return cmocka_run_group_tests(tests, make_file, remove_file) != 0;
}
