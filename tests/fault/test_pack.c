/* Packing and verifying when the system says no: no space, failing drives, no memory, a filesystem
 * without O_DIRECT, a user who stops it. Linked with --wrap for the calls below. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/checksum.h"
#include "expert-store/pack/checkpoint.h"
#include "expert-store/pack/pack.h"
#include "expert-store/pack/store_dir.h"
#include "expert-store/pack/synthetic_source.h"
#include "expert-store/pack/verify.h"
#include "tests/support/checkpoint_writer.h"

#define OUT "fault_pack.store"
#define PARTIAL OUT ".partial"
#define CHECKPOINT "fault_pack.checkpoint"

/* ---- the system ---- */

/* -1: never; else so many calls succeed before one fails. Writers are threads. */
static atomic_int pwrites_left = -1, preads_left = -1, fsyncs_left = -1, allocations_left = -1;
static atomic_int pwrite_errno = EIO;
static atomic_bool refuse_direct;
static int fallocate_errno;
static uint64_t free_bytes = UINT64_MAX;

/* True for the call whose turn it is to fail. */
static bool take(atomic_int *left)
{
    int now = atomic_load(left);
    while (now >= 0 && !atomic_compare_exchange_weak(left, &now, now - 1)) {
    }
    return now == 0;
}

static void all_well(void)
{
    pwrites_left = preads_left = fsyncs_left = allocations_left = -1;
    pwrite_errno = EIO;
    refuse_direct = false;
    fallocate_errno = 0;
    free_bytes = UINT64_MAX;
}

ssize_t __real_pwrite(int fd, const void *buf, size_t n, off_t off);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t n, off_t off);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t n, off_t off)
{
    if (refuse_direct && (fcntl(fd, F_GETFL) & O_DIRECT) != 0) {
        errno = EINVAL;
        return -1;
    }
    if (take(&pwrites_left)) {
        errno = pwrite_errno;
        return -1;
    }
    return __real_pwrite(fd, buf, n, off);
}

ssize_t __real_pread(int fd, void *buf, size_t n, off_t off);
ssize_t __wrap_pread(int fd, void *buf, size_t n, off_t off);
ssize_t __wrap_pread(int fd, void *buf, size_t n, off_t off)
{
    if (take(&preads_left)) {
        errno = EIO;
        return -1;
    }
    return __real_pread(fd, buf, n, off);
}

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    if (take(&fsyncs_left)) {
        errno = EIO;
        return -1;
    }
    return __real_fsync(fd);
}

int __real_fallocate(int fd, int mode, off_t off, off_t n);
int __wrap_fallocate(int fd, int mode, off_t off, off_t n);
int __wrap_fallocate(int fd, int mode, off_t off, off_t n)
{
    if (fallocate_errno != 0) {
        errno = fallocate_errno;
        return -1;
    }
    return __real_fallocate(fd, mode, off, n);
}

int __real_statvfs(const char *path, struct statvfs *out);
int __wrap_statvfs(const char *path, struct statvfs *out);
int __wrap_statvfs(const char *path, struct statvfs *out)
{
    int rc = __real_statvfs(path, out);
    if (rc == 0 && free_bytes != UINT64_MAX) {
        out->f_frsize = 1;
        out->f_bavail = free_bytes;
    }
    return rc;
}

void *__real_calloc(size_t n, size_t size);
void *__real_malloc(size_t n);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_malloc(size_t n);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
void *__wrap_calloc(size_t n, size_t size)
{
    return take(&allocations_left) ? NULL : __real_calloc(n, size);
}
void *__wrap_malloc(size_t n)
{
    return take(&allocations_left) ? NULL : __real_malloc(n);
}
void *__wrap_realloc(void *p, size_t n)
{
    return take(&allocations_left) ? NULL : __real_realloc(p, n);
}
void *__wrap_aligned_alloc(size_t align, size_t n)
{
    return take(&allocations_left) ? NULL : __real_aligned_alloc(align, n);
}

/* ---- helpers ---- */

static volatile sig_atomic_t stop;
static uint64_t stop_at = UINT64_MAX; /* bytes */
static int n_notes;
static char last_note[512];

static void on_progress(void *user, uint64_t done, uint64_t total)
{
    (void)user;
    assert_true(done <= total);
    if (done >= stop_at) {
        stop = 1;
    }
}

static void on_note(void *user, const char *text)
{
    (void)user;
    n_notes++;
    snprintf(last_note, sizeof last_note, "%s", text);
}

static xs_pack_watch watch(void)
{
    return (xs_pack_watch){.progress = on_progress, .note = on_note, .stop = &stop};
}

static xs_pack_options options(void)
{
    return (xs_pack_options){.out = OUT,
                             .direct = true,
                             .segment_bytes = 128 << 10,
                             .buffer_bytes = MOE_CHUNK_BYTES,
                             .n_buffers = 3,
                             .n_writers = 2,
                             .commit_every = 8,
                             .test_kill_at = "",
                             .watch = watch()};
}

static moe_status pack_once(xs_pack_result *out, moe_err *err)
{
    xs_synthetic_source *s = NULL;
    xs_pack_options opt = options();
    moe_status st = xs_synthetic_source_open("switch-tiny", MOE_BF16, 1, &s, err);
    st = st != MOE_OK ? st : xs_pack(xs_synthetic_source_get(s), &opt, out, err);
    xs_synthetic_source_close(s);
    return st;
}

static moe_status verify_once(xs_verify_result *out, moe_err *err)
{
    xs_catalog *c = NULL;
    xs_verify_options opt = {.n_threads = 3, .direct = true, .watch = watch()};
    moe_status st = xs_catalog_open(OUT, &c, err);
    st = st != MOE_OK ? st : xs_verify(OUT, c, &opt, out, err);
    xs_catalog_close(c);
    return st;
}

static void expect(moe_status expected, moe_status st, const moe_err *err, const char *text)
{
    if (st != expected || strstr(err->text, text) == NULL) {
        fail_msg("expected %s and '%s', got %s: %s", moe_status_name(expected), text,
                 moe_status_name(st), err->text);
    }
}

/* After trouble: the next run finishes the store, and it is whole. */
static uint32_t finish_and_verify(void)
{
    xs_pack_result packed;
    xs_verify_result verified;
    moe_err err = {0};
    all_well();
    stop = 0;
    stop_at = UINT64_MAX;
    expect(MOE_OK, pack_once(&packed, &err), &err, "");
    expect(MOE_OK, verify_once(&verified, &err), &err, "");
    assert_int_equal(117, verified.n_extents);
    assert_int_equal(MOE_OK, xs_store_dir_remove(OUT, NULL));
    return packed.n_resumed;
}

static int clean(void **state)
{
    (void)state;
    all_well();
    stop = 0;
    stop_at = UINT64_MAX;
    n_notes = 0;
    return xs_store_dir_remove(OUT, NULL) == MOE_OK && xs_store_dir_remove(PARTIAL, NULL) == MOE_OK
               ? 0
               : -1;
}

/* ---- tests ---- */

/* 117 extents, then the file with the index's checksum. */
static void a_full_disk_keeps_what_is_done_and_says_how_to_go_on(void **state)
{
    (void)state;
    const int fails_at[] = {0, 7, 8, 9, 50, 116, 117};
    for (size_t i = 0; i < sizeof fails_at / sizeof fails_at[0]; i++) {
        xs_pack_result r;
        moe_err err = {0};
        pwrites_left = fails_at[i];
        pwrite_errno = ENOSPC;
        expect(MOE_ERR_NO_SPACE, pack_once(&r, &err), &err,
               PARTIAL " is kept: run the same command again");
        assert_true(access(OUT, F_OK) != 0);
        uint32_t resumed = finish_and_verify();
        assert_true(resumed % 8 == 0 || resumed == 117);
        assert_true((int)resumed <= fails_at[i] && (int)resumed >= fails_at[i] - 8 - 3);
    }
}

static void space_is_missed_before_anything_is_written(void **state)
{
    (void)state;
    xs_pack_result r;
    moe_err err = {0};
    free_bytes = 1000000;
    expect(MOE_ERR_NO_SPACE, pack_once(&r, &err), &err, "GB more, its filesystem has 0.00 GB free");
    assert_true(access(PARTIAL, F_OK) != 0 && strstr(err.text, "kept") == NULL);
    all_well();
    fallocate_errno = ENOSPC;
    expect(MOE_ERR_NO_SPACE, pack_once(&r, &err), &err, "cannot allocate " PARTIAL);
    fallocate_errno = EOPNOTSUPP; /* some filesystems only grow files by writing */
    expect(MOE_OK, pack_once(&r, &err), &err, "");
}

static void a_failing_drive_is_reported_and_a_rerun_goes_on(void **state)
{
    (void)state;
    xs_pack_result r;
    moe_err err = {0};
    pwrites_left = 20;
    expect(MOE_ERR_IO, pack_once(&r, &err), &err, "cannot write segments/");
    assert_int_equal(EIO, err.native);
    finish_and_verify();
    for (int n = 0; n < 6; n++) { /* of segments, then of directories */
        fsyncs_left = n * 3;
        expect(MOE_ERR_IO, pack_once(&r, &err), &err, "sync");
        finish_and_verify();
    }
}

static void without_direct_writes_it_goes_on_buffered_and_says_so_once(void **state)
{
    (void)state;
    xs_pack_result r;
    moe_err err = {0};
    refuse_direct = true;
    expect(MOE_OK, pack_once(&r, &err), &err, "");
    assert_false(r.direct);
    assert_int_equal(1, n_notes);
    assert_non_null(strstr(last_note, "page cache"));
    xs_verify_result v;
    expect(MOE_OK, verify_once(&v, &err), &err, "");
}

static void stopped_it_commits_and_goes_on_later(void **state)
{
    (void)state;
    xs_pack_result r;
    moe_err err = {0};
    stop_at = 11 * 8192; /* experts of 8 KiB: after the eleventh, between two commits */
    expect(MOE_ERR_CANCELLED, pack_once(&r, &err), &err, "stopped with 11 of 117");
    assert_non_null(strstr(err.text, PARTIAL " is kept: run the same command again"));
    assert_int_equal(11, finish_and_verify());
}

static void verifying_can_be_stopped_too(void **state)
{
    (void)state;
    xs_pack_result r;
    xs_verify_result v;
    moe_err err = {0};
    expect(MOE_OK, pack_once(&r, &err), &err, "");
    stop_at = 50000;
    expect(MOE_ERR_CANCELLED, verify_once(&v, &err), &err, "stopped");
}

static void an_extent_that_cannot_be_read_is_named(void **state)
{
    (void)state;
    xs_pack_result r;
    xs_verify_result v = {0};
    moe_err err = {0};
    expect(MOE_OK, pack_once(&r, &err), &err, "");
    preads_left = 12;
    expect(MOE_ERR_IO, verify_once(&v, &err), &err, "1 of 117 extents are bad");
    assert_non_null(strstr(err.text, "expert "));
    assert_int_equal(1, v.n_bad);
    assert_int_equal(1, n_notes);
}

static void a_checkpoint_that_cannot_be_read_is_named(void **state)
{
    (void)state;
    ck c;
    ck_init(&c, "switch-tiny", MOE_F32, 1);
    ck_write(&c, CHECKPOINT);
    ck_fini(&c);
    for (int n = 0; n < 60; n += 13) { /* at open, then while packing */
        xs_checkpoint *in = NULL;
        xs_pack_result r;
        moe_err err = {0};
        xs_pack_options opt = options();
        preads_left = n;
        moe_status st = xs_checkpoint_open(CHECKPOINT, MOE_BF16, true, &in, &err);
        st = st != MOE_OK ? st : xs_pack(xs_checkpoint_source(in), &opt, &r, &err);
        expect(MOE_ERR_IO, st, &err, CHECKPOINT);
        all_well();
        if (in != NULL) {
            st = xs_pack(xs_checkpoint_source(in), &opt, &r, &err);
            expect(MOE_OK, st, &err, "");
            assert_int_equal(MOE_OK, xs_store_dir_remove(OUT, NULL));
        }
        xs_checkpoint_close(in);
    }
}

/* Runs f with the n-th allocation failing, for every n, until none fails. */
static void for_every_allocation(moe_status (*f)(moe_err *err))
{
    for (int n = 0;; n++) {
        moe_err err = {0};
        allocations_left = n;
        moe_status st = f(&err);
        bool injected = allocations_left < 0;
        all_well();
        if (!injected) {
            expect(MOE_OK, st, &err, "");
            return;
        }
        expect(MOE_ERR_NO_MEMORY, st, &err, "");
        assert_true(n < 5000);
    }
}

static moe_status pack_fresh(moe_err *err)
{
    xs_pack_result r;
    moe_status st = pack_once(&r, err);
    int left = allocations_left;
    allocations_left = -1;
    assert_int_equal(MOE_OK, xs_store_dir_remove(OUT, NULL));
    assert_int_equal(MOE_OK, xs_store_dir_remove(PARTIAL, NULL));
    allocations_left = left;
    return st;
}

static moe_status verify_any(moe_err *err)
{
    xs_verify_result v;
    return verify_once(&v, err);
}

static moe_status open_checkpoint(moe_err *err)
{
    xs_checkpoint *c = NULL;
    moe_status st = xs_checkpoint_open(CHECKPOINT, MOE_BF16, true, &c, err);
    xs_checkpoint_close(c);
    return st;
}

static void every_failed_allocation_is_survived(void **state)
{
    (void)state;
    xs_pack_result r;
    moe_err err = {0};
    ck c;
    ck_init(&c, "switch-tiny", MOE_F32, 1);
    ck_split(&c, 3);
    mkdir(CHECKPOINT, 0777);
    unlink(CHECKPOINT "/model.safetensors");
    ck_write(&c, CHECKPOINT);
    ck_fini(&c);
    for_every_allocation(open_checkpoint);
    for_every_allocation(pack_fresh);
    expect(MOE_OK, pack_once(&r, &err), &err, "");
    for_every_allocation(verify_any);
}

static int remove_checkpoint(void **state)
{
    static const char *const files[] = {"config.json",
                                        "model.safetensors",
                                        "model.safetensors.index.json",
                                        "model-00001-of-00003.safetensors",
                                        "model-00002-of-00003.safetensors",
                                        "model-00003-of-00003.safetensors",
                                        ""};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char path[128];
        snprintf(path, sizeof path, CHECKPOINT "/%s", files[i]);
        remove(path);
    }
    return clean(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(f) cmocka_unit_test_setup(f, clean)
        TEST(a_full_disk_keeps_what_is_done_and_says_how_to_go_on),
        TEST(space_is_missed_before_anything_is_written),
        TEST(a_failing_drive_is_reported_and_a_rerun_goes_on),
        TEST(without_direct_writes_it_goes_on_buffered_and_says_so_once),
        TEST(stopped_it_commits_and_goes_on_later),
        TEST(verifying_can_be_stopped_too),
        TEST(an_extent_that_cannot_be_read_is_named),
        TEST(a_checkpoint_that_cannot_be_read_is_named),
        TEST(every_failed_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, clean, remove_checkpoint) != 0;
}
