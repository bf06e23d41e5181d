/* Slots get their pages piece by piece; what cannot be had is said once and nothing hangs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/clock.h"
#include "expert-store/server/slot_memory.h"

enum { SLOT = 8192, N_SLOTS = 10, PIECE = 3 * 4096 };

static _Atomic int fallocates_until_full, locks_until_limit; /* negative: never */
static _Atomic int n_locked_pages;

int __real_posix_fallocate(int fd, off_t off, off_t bytes);
int __wrap_posix_fallocate(int fd, off_t off, off_t bytes);
int __wrap_posix_fallocate(int fd, off_t off, off_t bytes)
{
    return fallocates_until_full-- == 0 ? ENOSPC : __real_posix_fallocate(fd, off, bytes);
}

int __wrap_mlock(const void *at, size_t bytes);
int __wrap_mlock(const void *at, size_t bytes)
{
    (void)at;
    if (locks_until_limit-- == 0) {
        errno = ENOMEM;
        return -1;
    }
    n_locked_pages += (int)(bytes / 4096);
    return 0;
}

static moe_shm_region slots;

static int setup(void **state)
{
    (void)state;
    char name[MOE_SHM_NAME_BYTES];
    snprintf(name, sizeof name, "/pregate-test-memory-%ld", (long)getpid());
    fallocates_until_full = locks_until_limit = -1;
    n_locked_pages = 0;
    assert_int_equal(MOE_OK, moe_shm_reserve(name, N_SLOTS * SLOT, 0, 0600, &slots, NULL));
    moe_shm_unlink(name);
    assert_int_equal(0, moe_shm_allocated(&slots));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    moe_shm_close(&slots);
    return 0;
}

static xs_slot_memory_cfg config(uint32_t n_made)
{
    return (xs_slot_memory_cfg){.slots = &slots,
                                .slot_bytes = SLOT,
                                .n_made = n_made,
                                .n_wanted = N_SLOTS,
                                .pin = true,
                                .piece_bytes = PIECE};
}

static xs_slot_memory *make(const xs_slot_memory_cfg *cfg)
{
    xs_slot_memory *m = NULL;
    assert_int_equal(MOE_OK, xs_slot_memory_create(cfg, &m, NULL));
    return m;
}

static xs_slot_memory_report wait_for_end(xs_slot_memory *m)
{
    xs_slot_memory_report r = {0};
    for (uint32_t before = 0; !r.ended; before = r.n_made) {
        (void)xs_slot_memory_look(m, &r);
        assert_true(r.n_made >= before);
        moe_sleep_ns(MOE_NS_PER_MS / 10);
    }
    return r;
}

static void all_slots_are_made_and_locked(void **state)
{
    (void)state;
    const xs_slot_memory_cfg cfg = config(0);
    xs_slot_memory *m = make(&cfg);
    xs_slot_memory_report r = wait_for_end(m);
    assert_int_equal(N_SLOTS, r.n_made);
    assert_int_equal(MOE_OK, r.failure.status);
    assert_true(r.pinned);
    assert_string_equal("", r.not_pinned);
    assert_int_equal(N_SLOTS * SLOT, moe_shm_allocated(&slots));
    assert_int_equal(N_SLOTS * SLOT / 4096, n_locked_pages);
    assert_false(xs_slot_memory_look(m, &r));
    assert_int_equal(N_SLOTS, r.n_made);
    xs_slot_memory_destroy(m);
}

static void the_first_piece_is_there_at_once_and_the_rest_may_stay_away(void **state)
{
    (void)state;
    xs_slot_memory_cfg cfg = config(0);
    cfg.pause_ns = 60 * MOE_NS_PER_S;
    xs_slot_memory *m = make(&cfg);
    xs_slot_memory_report r = {0};
    assert_true(xs_slot_memory_look(m, &r));
    assert_int_equal(PIECE / SLOT, r.n_made); /* whole ones */
    assert_false(r.ended);
    assert_false(xs_slot_memory_look(m, &r));
    xs_slot_memory_destroy(m); /* does not wait for the pause */
    assert_int_equal(PIECE, moe_shm_allocated(&slots));
}

static void adopted_slots_are_locked_and_only_missing_ones_made(void **state)
{
    (void)state;
    const xs_slot_memory_cfg cfg = config(9);
    fallocates_until_full = 1; /* one piece reaches beyond the ninth slot */
    xs_slot_memory *m = make(&cfg);
    xs_slot_memory_report r = {0};
    (void)xs_slot_memory_look(m, &r);
    assert_true(r.n_made >= 9);
    r = wait_for_end(m);
    assert_int_equal(N_SLOTS, r.n_made);
    assert_int_equal(MOE_OK, r.failure.status);
    assert_int_equal(SLOT, moe_shm_allocated(&slots));
    assert_int_equal(N_SLOTS * SLOT / 4096, n_locked_pages);
    xs_slot_memory_destroy(m);
}

static void memory_that_ends_early_is_said_with_what_is_there(void **state)
{
    (void)state;
    const xs_slot_memory_cfg cfg = config(0);
    fallocates_until_full = 3;
    xs_slot_memory *m = make(&cfg);
    xs_slot_memory_report r = wait_for_end(m);
    assert_int_equal(3 * PIECE / SLOT, r.n_made);
    assert_int_equal(MOE_ERR_NO_SPACE, r.failure.status);
    assert_non_null(strstr(r.failure.text, "/dev/shm"));
    xs_slot_memory_destroy(m);
}

static void more_slots_are_made_when_more_are_wanted(void **state)
{
    (void)state;
    xs_slot_memory_cfg cfg = config(0);
    cfg.n_wanted = 4;
    xs_slot_memory *m = make(&cfg);
    xs_slot_memory_report r = wait_for_end(m);
    assert_int_equal(4, r.n_made);
    assert_int_equal(4 * SLOT, moe_shm_allocated(&slots));
    xs_slot_memory_grow(m, 7);
    r = wait_for_end(m);
    assert_int_equal(7, r.n_made);
    assert_int_equal(7 * SLOT, moe_shm_allocated(&slots));
    assert_int_equal(7 * SLOT / 4096, n_locked_pages);
    fallocates_until_full = 1;
    xs_slot_memory_grow(m, N_SLOTS);
    r = wait_for_end(m);
    assert_int_equal(MOE_ERR_NO_SPACE, r.failure.status);
    assert_true(r.n_made >= 7 && r.n_made < N_SLOTS);
    fallocates_until_full = -1;
    xs_slot_memory_grow(m, N_SLOTS); /* now there is room */
    r = wait_for_end(m);
    assert_int_equal(MOE_OK, r.failure.status);
    assert_int_equal(N_SLOTS, r.n_made);
    assert_int_equal(N_SLOTS * SLOT / 4096, n_locked_pages);
    xs_slot_memory_destroy(m);
}

static void without_a_first_piece_there_is_nothing(void **state)
{
    (void)state;
    const xs_slot_memory_cfg cfg = config(0);
    xs_slot_memory *m = NULL;
    moe_err err = {0};
    fallocates_until_full = 0;
    assert_int_equal(MOE_ERR_NO_SPACE, xs_slot_memory_create(&cfg, &m, &err));
    assert_null(m);
    assert_int_equal(MOE_ERR_NO_SPACE, err.status);
}

static void a_lock_limit_is_said_once_and_slots_come_all_the_same(void **state)
{
    (void)state;
    const xs_slot_memory_cfg cfg = config(0);
    locks_until_limit = 2;
    xs_slot_memory *m = make(&cfg);
    xs_slot_memory_report r = wait_for_end(m);
    assert_int_equal(N_SLOTS, r.n_made);
    assert_false(r.pinned);
    assert_non_null(strstr(r.not_pinned, "RLIMIT_MEMLOCK"));
    assert_int_equal(2 * PIECE / 4096, n_locked_pages); /* no further tries */
    assert_int_equal(-1, locks_until_limit);
    xs_slot_memory_destroy(m);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(all_slots_are_made_and_locked),
        TEST(the_first_piece_is_there_at_once_and_the_rest_may_stay_away),
        TEST(adopted_slots_are_locked_and_only_missing_ones_made),
        TEST(memory_that_ends_early_is_said_with_what_is_there),
        TEST(more_slots_are_made_when_more_are_wanted),
        TEST(without_a_first_piece_there_is_nothing),
        TEST(a_lock_limit_is_said_once_and_slots_come_all_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
