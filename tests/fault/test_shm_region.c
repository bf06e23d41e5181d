/* Every system call of creating and opening a region fails once: no name, no mapping, no fd stays.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/shm_region.h"

int __real_posix_fallocate(int fd, off_t off, off_t bytes);
void *__real_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t off);
int __real_fchmod(int fd, mode_t mode);
int __real_fstatvfs(int fd, struct statvfs *out);
int __wrap_posix_fallocate(int fd, off_t off, off_t bytes);
void *__wrap_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t off);
int __wrap_fchmod(int fd, mode_t mode);
int __wrap_fstatvfs(int fd, struct statvfs *out);

enum call { NOTHING, FALLOCATE, FALLOCATE_INTERRUPTED, MMAP, FCHMOD, FSTATVFS };
static enum call failing;
static int fail_errno;

int __wrap_posix_fallocate(int fd, off_t off, off_t bytes)
{
    if (failing == FALLOCATE) {
        return fail_errno; /* the code itself, not errno */
    }
    if (failing == FALLOCATE_INTERRUPTED) {
        failing = NOTHING;
        return EINTR;
    }
    return __real_posix_fallocate(fd, off, bytes);
}

void *__wrap_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t off)
{
    if (failing == MMAP) {
        errno = fail_errno;
        return MAP_FAILED;
    }
    return __real_mmap(at, bytes, prot, flags, fd, off);
}

int __wrap_fchmod(int fd, mode_t mode)
{
    if (failing == FCHMOD) {
        errno = fail_errno;
        return -1;
    }
    return __real_fchmod(fd, mode);
}

int __wrap_fstatvfs(int fd, struct statvfs *out)
{
    if (failing == FSTATVFS) {
        errno = fail_errno;
        return -1;
    }
    return __real_fstatvfs(fd, out);
}

static char name[MOE_SHM_NAME_BYTES];

/* The lowest free descriptor: the same before and after means that none leaked. */
static int next_fd(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    close(fd);
    return fd;
}

static void expect_clean_failure(enum call what, int code, moe_status expected)
{
    moe_shm_region r = MOE_SHM_REGION_NONE;
    moe_err err = {0};
    int before = next_fd();
    failing = what;
    fail_errno = code;
    moe_status st = moe_shm_create(name, 4096, 0600, &r, &err);
    failing = NOTHING;
    assert_int_equal(expected, st);
    assert_int_equal(code, err.native);
    assert_int_equal(-1, r.fd);
    assert_null(r.base);
    assert_int_equal(before, next_fd());
    assert_int_equal(MOE_ERR_NOT_FOUND, moe_shm_open(name, false, &r, NULL));
}

static void a_failed_creation_leaves_nothing(void **state)
{
    (void)state;
    expect_clean_failure(FALLOCATE, ENOSPC, MOE_ERR_NO_SPACE);
    expect_clean_failure(FALLOCATE, EIO, MOE_ERR_IO);
    expect_clean_failure(MMAP, ENOMEM, MOE_ERR_NO_MEMORY);
    expect_clean_failure(FCHMOD, EPERM, MOE_ERR_IO);
    expect_clean_failure(FSTATVFS, EIO, MOE_ERR_IO);
}

static void an_interrupted_allocation_goes_on(void **state)
{
    (void)state;
    moe_shm_region r = MOE_SHM_REGION_NONE;
    failing = FALLOCATE_INTERRUPTED;
    assert_int_equal(MOE_OK, moe_shm_create(name, 4096, 0600, &r, NULL));
    moe_shm_close(&r);
    moe_shm_unlink(name);
}

static void a_failed_opening_keeps_the_name(void **state)
{
    (void)state;
    moe_shm_region a = MOE_SHM_REGION_NONE;
    moe_shm_region b = MOE_SHM_REGION_NONE;
    assert_int_equal(MOE_OK, moe_shm_create(name, 4096, 0600, &a, NULL));
    int before = next_fd();
    failing = MMAP;
    fail_errno = ENOMEM;
    moe_status st = moe_shm_open(name, true, &b, NULL);
    failing = NOTHING;
    assert_int_equal(MOE_ERR_NO_MEMORY, st);
    assert_int_equal(-1, b.fd);
    assert_int_equal(before, next_fd());
    assert_int_equal(MOE_OK, moe_shm_open(name, true, &b, NULL));
    moe_shm_close(&a);
    moe_shm_close(&b);
    moe_shm_unlink(name);
}

int main(void)
{
    snprintf(name, sizeof name, "/pregate-test-fault-%ld", (long)getpid());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failed_creation_leaves_nothing),
        cmocka_unit_test(an_interrupted_allocation_goes_on),
        cmocka_unit_test(a_failed_opening_keeps_the_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
