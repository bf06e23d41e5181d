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
int __real_madvise(void *at, size_t bytes, int advice);
int __wrap_madvise(void *at, size_t bytes, int advice);
int __wrap_fchmod(int fd, mode_t mode);
int __wrap_fstatvfs(int fd, struct statvfs *out);

enum { LARGE_BYTES = 64 << 20 }; /* gets huge pages where there are any */

enum call {
    NOTHING,
    FALLOCATE,
    FALLOCATE_INTERRUPTED,
    MMAP,
    MMAP_OF_OBJECT, /* after its addresses were reserved */
    MADVISE,
    FCHMOD,
    FSTATVFS
};
static enum call failing;
static int fail_errno;
static off_t size_before_last_page; /* of a large region */

int __wrap_posix_fallocate(int fd, off_t off, off_t bytes)
{
    if (bytes == LARGE_BYTES) {
        struct stat info = {0};
        fstat(fd, &info);
        size_before_last_page = info.st_size;
    }
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
    if (failing == MMAP || (failing == MMAP_OF_OBJECT && fd >= 0)) {
        errno = fail_errno;
        return MAP_FAILED;
    }
    return __real_mmap(at, bytes, prot, flags, fd, off);
}

int __wrap_madvise(void *at, size_t bytes, int advice)
{
    if (failing == MADVISE) { /* from several threads, which only read */
        errno = fail_errno;
        return -1;
    }
    return __real_madvise(at, bytes, advice);
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

static int count_mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    assert_non_null(maps);
    int n = 0;
    for (int c = fgetc(maps); c != EOF; c = fgetc(maps)) {
        n += c == '\n';
    }
    fclose(maps);
    return n;
}

static void expect_clean_failure(enum call what, uint64_t bytes, int code, moe_status expected)
{
    moe_shm_region r = MOE_SHM_REGION_NONE;
    moe_err err = {0};
    int before = next_fd();
    failing = what;
    fail_errno = code;
    moe_status st = moe_shm_create(name, bytes, 0600, &r, &err);
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
    expect_clean_failure(FALLOCATE, 4096, ENOSPC, MOE_ERR_NO_SPACE);
    expect_clean_failure(FALLOCATE, 4096, EIO, MOE_ERR_IO);
    expect_clean_failure(MMAP, 4096, ENOMEM, MOE_ERR_NO_MEMORY);
    expect_clean_failure(FCHMOD, 4096, EPERM, MOE_ERR_IO);
    expect_clean_failure(FSTATVFS, 4096, EIO, MOE_ERR_IO);
}

static void a_failed_creation_of_a_large_region_leaves_nothing(void **state)
{
    (void)state;
    expect_clean_failure(FALLOCATE, LARGE_BYTES, ENOSPC, MOE_ERR_NO_SPACE); /* warms up */
    int before = count_mappings();
    expect_clean_failure(FALLOCATE, LARGE_BYTES, ENOSPC, MOE_ERR_NO_SPACE);
    expect_clean_failure(MMAP, LARGE_BYTES, ENOMEM, MOE_ERR_NO_MEMORY);
    expect_clean_failure(MMAP_OF_OBJECT, LARGE_BYTES, ENOMEM, MOE_ERR_NO_MEMORY);
    expect_clean_failure(FCHMOD, LARGE_BYTES, EPERM, MOE_ERR_IO);
    assert_int_equal(before, count_mappings());
}

static void without_huge_pages_a_region_has_every_page(void **state)
{
    (void)state;
    static const int codes[] = {EINVAL, ENOMEM}; /* an older kernel; fragmented memory */
    for (int i = 0; i < 2; i++) {
        moe_shm_region r = MOE_SHM_REGION_NONE;
        failing = MADVISE;
        fail_errno = codes[i];
        moe_status st = moe_shm_create(name, LARGE_BYTES, 0600, &r, NULL);
        failing = NOTHING;
        assert_int_equal(MOE_OK, st);
        assert_int_equal(0, r.huge_bytes);
        struct stat info = {0};
        assert_int_equal(0, fstat(r.fd, &info));
        assert_true((uint64_t)info.st_blocks * 512 >= LARGE_BYTES);
        moe_shm_close(&r);
        moe_shm_unlink(name);
    }
}

static void the_full_size_comes_last(void **state)
{
    (void)state;
    moe_shm_region r = MOE_SHM_REGION_NONE;
    assert_int_equal(MOE_OK, moe_shm_create(name, LARGE_BYTES, 0600, &r, NULL));
    assert_true(size_before_last_page < LARGE_BYTES);
    moe_shm_close(&r);
    moe_shm_unlink(name);
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
        cmocka_unit_test(a_failed_creation_of_a_large_region_leaves_nothing),
        cmocka_unit_test(without_huge_pages_a_region_has_every_page),
        cmocka_unit_test(the_full_size_comes_last),
        cmocka_unit_test(an_interrupted_allocation_goes_on),
        cmocka_unit_test(a_failed_opening_keeps_the_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
