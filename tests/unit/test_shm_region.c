/* Named shared memory and the exact file reads and writes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/file.h"
#include "common/shm_pages.h"
#include "common/shm_region.h"

static char name[MOE_SHM_NAME_BYTES]; /* of this process, so that parallel runs do not meet */

static int remove_leftovers(void **state)
{
    (void)state;
    moe_shm_unlink(name);
    return 0;
}

static void created_memory_is_zero_and_shared(void **state)
{
    (void)state;
    moe_shm_region a = MOE_SHM_REGION_NONE;
    moe_shm_region b = MOE_SHM_REGION_NONE;
    assert_int_equal(MOE_OK, moe_shm_create(name, 10000, 0600, &a, NULL));
    assert_int_equal(10000, a.bytes);
    assert_string_equal(name, a.name);
    for (size_t i = 0; i < a.bytes; i++) {
        assert_int_equal(0, ((char *)a.base)[i]);
    }
    assert_int_equal(MOE_OK, moe_shm_open(name, false, &b, NULL));
    assert_int_equal(10000, b.bytes);
    memcpy((char *)a.base + 5000, "seen", 5);
    assert_string_equal("seen", (char *)b.base + 5000);
    moe_shm_close(&a);
    assert_string_equal("seen", (char *)b.base + 5000);
    moe_shm_close(&b);
    moe_shm_close(&b);
    assert_int_equal(-1, b.fd);
    assert_null(b.base);
}

static void every_page_is_allocated(void **state)
{
    (void)state;
    moe_shm_region a = MOE_SHM_REGION_NONE;
    assert_int_equal(MOE_OK, moe_shm_create(name, 1 << 20, 0600, &a, NULL));
    struct stat info = {0};
    assert_int_equal(0, fstat(a.fd, &info));
    assert_true((uint64_t)info.st_blocks * 512 >= a.bytes);
    moe_shm_close(&a);
}

static void a_large_region_is_whole_zero_and_at_a_huge_page(void **state)
{
    (void)state;
    enum { BYTES = (200 << 20) + 5000 }; /* enough for several threads */
    moe_shm_region a = MOE_SHM_REGION_NONE;
    moe_shm_region b = MOE_SHM_REGION_NONE;
    assert_int_equal(MOE_OK, moe_shm_create(name, BYTES, 0600, &a, NULL));
    struct stat info = {0};
    assert_int_equal(0, fstat(a.fd, &info));
    assert_int_equal(BYTES, info.st_size);
    assert_true((uint64_t)info.st_blocks * 512 >= a.bytes);
    assert_true(a.huge_bytes <= a.bytes); /* none where the kernel has none to give */
    assert_int_equal(0, a.huge_bytes % MOE_HUGE_PAGE_BYTES);
    assert_int_equal(MOE_OK, moe_shm_open(name, false, &b, NULL));
    assert_int_equal(BYTES, b.bytes);
    assert_int_equal(0, (uintptr_t)a.base % MOE_HUGE_PAGE_BYTES);
    assert_int_equal(0, (uintptr_t)b.base % MOE_HUGE_PAGE_BYTES);
    const char *bytes = b.base;
    assert_int_equal(0, bytes[0]);
    assert_int_equal(0, memcmp(bytes, bytes + 1, BYTES - 1)); /* all like the first */
    memcpy((char *)a.base + BYTES - 5, "last", 5);
    assert_string_equal("last", bytes + BYTES - 5);
    moe_shm_close(&a);
    moe_shm_close(&b);
}

static void released_pages_are_free_and_come_back_zero(void **state)
{
    (void)state;
    moe_shm_region r = MOE_SHM_REGION_NONE;
    /* more addresses than any /dev/shm has bytes: only what is soon to come must be free */
    assert_int_equal(MOE_OK, moe_shm_reserve(name, 1ull << 44, 6 * 4096, 0600, &r, NULL));
    assert_int_equal(MOE_OK, moe_shm_populate(&r, 0, 6 * 4096, NULL));
    memset(r.base, 7, 6 * 4096);
    assert_int_equal(MOE_OK, moe_shm_release(&r, 2 * 4096 + 1, r.bytes, NULL));
    assert_int_equal(3 * 4096, moe_shm_allocated(&r));
    assert_int_equal(7, ((const char *)r.base)[3 * 4096 - 1]);
    assert_int_equal(MOE_OK, moe_shm_populate(&r, 3 * 4096, 6 * 4096, NULL));
    assert_int_equal(0, ((const char *)r.base)[3 * 4096]);
    moe_shm_close(&r);
}

static void an_existing_name_is_busy(void **state)
{
    (void)state;
    moe_shm_region a = MOE_SHM_REGION_NONE;
    moe_shm_region b = MOE_SHM_REGION_NONE;
    moe_err err = {0};
    assert_int_equal(MOE_OK, moe_shm_create(name, 4096, 0600, &a, NULL));
    assert_int_equal(MOE_ERR_BUSY, moe_shm_create(name, 4096, 0600, &b, &err));
    assert_non_null(strstr(err.text, name));
    assert_int_equal(-1, b.fd); /* untouched */
    moe_shm_close(&a);
    assert_int_equal(MOE_OK, moe_shm_open(name, true, &a, NULL)); /* and still there */
    moe_shm_close(&a);
}

static void too_large_a_region_says_what_is_free_and_leaves_no_name(void **state)
{
    (void)state;
    moe_shm_region a = MOE_SHM_REGION_NONE;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_NO_SPACE, moe_shm_create(name, 1ull << 50, 0600, &a, &err));
    assert_non_null(strstr(err.text, "/dev/shm"));
    assert_non_null(strstr(err.text, "1073741824 MiB"));
    assert_int_equal(MOE_ERR_NOT_FOUND, moe_shm_open(name, false, &a, NULL));
}

static void an_absent_or_empty_region_is_refused(void **state)
{
    (void)state;
    moe_shm_region a = MOE_SHM_REGION_NONE;
    assert_int_equal(MOE_ERR_NOT_FOUND, moe_shm_open(name, false, &a, NULL));
    int fd = shm_open(name, O_CREAT | O_RDWR, 0600);
    assert_true(fd >= 0);
    assert_int_equal(MOE_ERR_FORMAT, moe_shm_open(name, false, &a, NULL));
    assert_null(a.base);
    close(fd);
}

static void foreign_names_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "/",
        "pregate-x",
        "/other",
        "/pregate-",
        "/pregate-../x",
        "/pregate-a/b",
        "/pregate-567890123456789012345678901234567890123456789012345678901234567890"};
    moe_shm_region a = MOE_SHM_REGION_NONE;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(MOE_ERR_INVALID, moe_shm_create(bad[i], 4096, 0600, &a, NULL));
        assert_int_equal(MOE_ERR_INVALID, moe_shm_open(bad[i], false, &a, NULL));
        moe_shm_unlink(bad[i]);
    }
    assert_int_equal(MOE_ERR_INVALID, moe_shm_create(name, 0, 0600, &a, NULL));
    assert_int_equal(MOE_ERR_INVALID, moe_shm_create(name, 4096, 0666, &a, NULL));
}

static void the_mode_is_as_asked_whatever_the_umask(void **state)
{
    (void)state;
    moe_shm_region a = MOE_SHM_REGION_NONE;
    mode_t before = umask(0077);
    assert_int_equal(MOE_OK, moe_shm_create(name, 4096, 0640, &a, NULL));
    umask(before);
    struct stat info = {0};
    assert_int_equal(0, fstat(a.fd, &info));
    assert_int_equal(0640, info.st_mode & 0777);
    moe_shm_close(&a);
}

static void a_read_only_mapping_cannot_be_written(void **state)
{
    (void)state;
    moe_shm_region a = MOE_SHM_REGION_NONE;
    moe_shm_region b = MOE_SHM_REGION_NONE;
    assert_int_equal(MOE_OK, moe_shm_create(name, 4096, 0600, &a, NULL));
    assert_int_equal(MOE_OK, moe_shm_open(name, false, &b, NULL));
    int zeros = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    assert_true(zeros >= 0);
    assert_int_equal(-1, read(zeros, b.base, 1)); /* the kernel writes, so that nobody faults */
    assert_int_equal(EFAULT, errno);
    assert_int_equal(-1, mprotect(b.base, b.bytes, PROT_READ | PROT_WRITE));
    assert_int_equal(EACCES, errno);
    close(zeros);
    moe_shm_close(&a);
    moe_shm_close(&b);
}

static void unlinking_leaves_mappings_alone(void **state)
{
    (void)state;
    moe_shm_region a = MOE_SHM_REGION_NONE;
    moe_shm_region b = MOE_SHM_REGION_NONE;
    assert_int_equal(MOE_OK, moe_shm_create(name, 4096, 0600, &a, NULL));
    moe_shm_unlink(name);
    moe_shm_unlink(name);
    memcpy(a.base, "x", 2);
    assert_int_equal(MOE_ERR_NOT_FOUND, moe_shm_open(name, false, &b, NULL));
    moe_shm_close(&a);
}

/* Run in a child without the privilege to lock, where there is one to drop. */
static int lock_without_privilege(const moe_shm_region *r)
{
    struct rlimit none = {0, 0};
    moe_err err = {0};
    if (setrlimit(RLIMIT_MEMLOCK, &none) != 0 || (getuid() == 0 && setuid(65534) != 0)) {
        return 2;
    }
    if (mlock(r->base, r->bytes) == 0) {
        return 0; /* sanitizers replace mlock by nothing at all */
    }
    moe_status st = moe_shm_lock_pages(r, 0, r->bytes, &err);
    return st == MOE_ERR_PERMISSION && strstr(err.text, "RLIMIT_MEMLOCK is 0 KiB") != NULL ? 0 : 1;
}

static void locking_over_the_limit_names_the_limit(void **state)
{
    (void)state;
    moe_shm_region a = MOE_SHM_REGION_NONE;
    assert_int_equal(MOE_OK, moe_shm_create(name, 1 << 20, 0600, &a, NULL));
    pid_t child = fork();
    if (child == 0) {
        _exit(lock_without_privilege(&a));
    }
    int how = 0;
    assert_int_equal(child, waitpid(child, &how, 0));
    assert_true(WIFEXITED(how));
    assert_int_equal(0, WEXITSTATUS(how));
    moe_shm_close(&a);
}

/* ---- file.h ---- */

static char path[] = "/tmp/pregate-test-file-XXXXXX";

static void written_bytes_read_back(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    char buf[8] = "";
    assert_int_equal(MOE_OK, moe_pwrite_exact(fd, "0123456789", 10, 0, "it", NULL));
    assert_int_equal(MOE_OK, moe_pread_exact(fd, buf, 4, 3, "it", NULL));
    assert_string_equal("3456", buf);
    moe_err err = {0};
    assert_int_equal(MOE_ERR_IO, moe_pread_exact(fd, buf, 4, 8, "it", &err));
    assert_non_null(strstr(err.text, "it: unexpected end of file at 10, 2 more"));
    assert_int_equal(MOE_ERR_INVALID, moe_pread_exact(fd, buf, 4, UINT64_MAX - 1, "it", NULL));
    assert_int_equal(MOE_ERR_INVALID, moe_pwrite_exact(fd, buf, 4, INT64_MAX, "it", NULL));
    close(fd);
}

static void a_whole_file_is_read_and_terminated(void **state)
{
    (void)state;
    char *data = NULL;
    size_t bytes = 0;
    assert_int_equal(MOE_OK, moe_file_read(path, 10, &data, &bytes, NULL));
    assert_int_equal(10, bytes);
    assert_string_equal("0123456789", data);
    free(data);
    data = NULL;
    assert_int_equal(MOE_ERR_LIMIT, moe_file_read(path, 9, &data, &bytes, NULL));
    assert_null(data);
    assert_int_equal(MOE_ERR_INVALID, moe_file_read("/tmp", 9, &data, &bytes, NULL));
    unlink(path);
    assert_int_equal(MOE_ERR_NOT_FOUND, moe_file_read(path, 10, &data, &bytes, NULL));
}

static void a_full_disk_has_its_own_status(void **state)
{
    (void)state;
    int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    if (fd < 0) {
        return; /* no such device here */
    }
    assert_int_equal(MOE_ERR_NO_SPACE, moe_pwrite_exact(fd, "x", 1, 0, "it", NULL));
    close(fd);
}

int main(void)
{
    snprintf(name, sizeof name, "/pregate-test-%ld", (long)getpid());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(created_memory_is_zero_and_shared, remove_leftovers),
        cmocka_unit_test_teardown(every_page_is_allocated, remove_leftovers),
        cmocka_unit_test_teardown(a_large_region_is_whole_zero_and_at_a_huge_page,
                                  remove_leftovers),
        cmocka_unit_test_teardown(released_pages_are_free_and_come_back_zero, remove_leftovers),
        cmocka_unit_test_teardown(an_existing_name_is_busy, remove_leftovers),
        cmocka_unit_test_teardown(too_large_a_region_says_what_is_free_and_leaves_no_name,
                                  remove_leftovers),
        cmocka_unit_test_teardown(an_absent_or_empty_region_is_refused, remove_leftovers),
        cmocka_unit_test_teardown(foreign_names_are_refused, remove_leftovers),
        cmocka_unit_test_teardown(the_mode_is_as_asked_whatever_the_umask, remove_leftovers),
        cmocka_unit_test_teardown(a_read_only_mapping_cannot_be_written, remove_leftovers),
        cmocka_unit_test_teardown(unlinking_leaves_mappings_alone, remove_leftovers),
        cmocka_unit_test_teardown(locking_over_the_limit_names_the_limit, remove_leftovers),
        cmocka_unit_test(written_bytes_read_back),
        cmocka_unit_test(a_whole_file_is_read_and_terminated),
        cmocka_unit_test(a_full_disk_has_its_own_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
