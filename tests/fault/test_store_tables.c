/* The store's tables when memory runs out: every allocation is made to fail in turn; nothing leaks
 * (under asan), nothing is half made. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "expert-store/server/dense.h"
#include "expert-store/server/model_source.h"
#include "expert-store/server/regions.h"
#include "expert-store/server/residency.h"
#include "expert-store/server/reverify.h"
#include "expert-store/server/slot_pool.h"
#include "expert-store/server/workers.h"

static volatile int calls_until_failure = -1; /* -1: never; 0: a failure was injected */

static bool fails_now(void)
{
    if (calls_until_failure > 0) {
        calls_until_failure--;
        return calls_until_failure == 0;
    }
    return false;
}

void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__real_realloc(void *p, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);

void *__wrap_calloc(size_t n, size_t bytes)
{
    return fails_now() ? NULL : __real_calloc(n, bytes);
}

void *__wrap_malloc(size_t bytes)
{
    return fails_now() ? NULL : __real_malloc(bytes);
}

void *__wrap_realloc(void *p, size_t bytes)
{
    return fails_now() ? NULL : __real_realloc(p, bytes);
}

/* Calls `make` with the first, second, ... allocation failing, until it succeeds without. `make`
 * undoes what it made. */
static void fail_every_allocation(moe_status (*make)(void *context), void *context, int at_least)
{
    for (int n = 1;; n++) {
        calls_until_failure = n;
        moe_status st = make(context);
        bool injected = calls_until_failure == 0;
        calls_until_failure = -1;
        if (!injected) {
            assert_int_equal(MOE_OK, st);
            assert_true(n > at_least);
            return;
        }
        assert_int_equal(MOE_ERR_NO_MEMORY, st);
    }
}

static moe_status make_pool(void *context)
{
    (void)context;
    xs_slot_pool *p = NULL;
    moe_status st = xs_slot_pool_create(100, &p, NULL);
    assert_true((st == MOE_OK) == (p != NULL));
    xs_slot_pool_destroy(p);
    return st;
}

static moe_status make_view(void *context)
{
    (void)context;
    xs_lease_view v;
    moe_status st = xs_lease_view_init(&v, 100, 4, NULL);
    if (st == MOE_OK) {
        xs_lease_view_fini(&v);
    }
    return st;
}

static _Alignas(8) char board[2 * 4096];

static moe_status make_residency(void *context)
{
    static xs_lease_view no_leases;
    static xs_kill_switch never;
    xs_residency *r = NULL;
    (void)context;
    const xs_residency_cfg cfg = {
        .board = board, .n_experts = 100, .n_slots = 9, .leases = &no_leases, .kill = &never};
    moe_status st = xs_residency_create(&cfg, &r, NULL);
    assert_true((st == MOE_OK) == (r != NULL));
    xs_residency_destroy(r);
    return st;
}

static moe_status check_board(void *context)
{
    const xs_board_geometry g = {.n_experts = 100, .n_slots = 9, .slot_bytes = 4096};
    (void)context;
    return xs_board_check(board, sizeof board, &g, NULL);
}

static moe_status join_worker(void *context)
{
    xs_workers_cfg *cfg = context;
    xs_workers *ws = NULL;
    moe_status st = xs_workers_create(cfg, &ws, NULL);
    if (st != MOE_OK) {
        assert_null(ws);
        return st;
    }
    const wire_hello hello = {.name = "test"};
    const wire_peer peer = {.id = {1}, .id_bytes = 1};
    uint32_t place = 99;
    xs_workers_attach(ws, NULL, 2);
    st = xs_workers_join(ws, &hello, &peer, 0, &place, NULL);
    assert_int_equal(st == MOE_OK, xs_workers_count(ws) == 1);
    moe_board_header *h = cfg->board;
    assert_int_equal(st == MOE_OK ? 1 : 0, h->registry[0].worker_id);
    if (st == MOE_OK) {
        xs_workers_remove(ws, place);
    }
    xs_workers_destroy(ws);
    return st;
}

static void tables_are_made_whole_or_not_at_all(void **state)
{
    const xs_board_geometry g = {.n_experts = 100, .n_slots = 9, .slot_bytes = 4096};
    (void)state;
    xs_board_format(board, &g);
    fail_every_allocation(make_pool, NULL, 3);
    fail_every_allocation(make_view, NULL, 2);
    fail_every_allocation(make_residency, NULL, 6);
    fail_every_allocation(check_board, NULL, 1);
}

static void a_worker_joins_wholly_or_not_at_all(void **state)
{
    char prefix[XS_REGION_PREFIX_BYTES];
    char name[MOE_SHM_NAME_BYTES];
    xs_lease_view leases;
    moe_shm_region none = MOE_SHM_REGION_NONE;
    (void)state;
    snprintf(prefix, sizeof prefix, "/pregate-test-fault-%d", (int)getpid());
    assert_int_equal(MOE_OK, xs_lease_view_init(&leases, 100, 4, NULL));
    xs_workers_cfg cfg = {.board = board,
                          .prefix = prefix,
                          .n_experts = 100,
                          .n_blocks = 4,
                          .max_workers = 2,
                          .mode = 0600,
                          .leases = &leases};
    fail_every_allocation(join_worker, &cfg, 3);
    xs_lease_region_name(prefix, 1, name);
    assert_int_equal(MOE_ERR_NOT_FOUND, moe_shm_open(name, false, &none, NULL));
    xs_lease_view_fini(&leases);
}

static moe_status open_model(void *context)
{
    xs_model m = {0};
    moe_status st = xs_model_open(context, &m, NULL);
    xs_model_close(&m);
    return st;
}

static moe_status load_dense(void *context)
{
    uint64_t bytes = 0;
    moe_status st = xs_dense_bytes(context, &bytes, NULL);
    if (st != MOE_OK) {
        return st;
    }
    int armed = calls_until_failure; /* the region itself is not what is tested */
    calls_until_failure = -1;
    void *region = calloc(1, bytes);
    calls_until_failure = armed;
    st = xs_dense_load(context, region, bytes, NULL);
    assert_int_equal(st == MOE_OK, xs_dense_matches(context, region, bytes, bytes));
    free(region);
    return st;
}

static moe_status make_reverify(void *context)
{
    static char slots[16384];
    xs_reverify *v = NULL;
    moe_status st = xs_reverify_create(context, slots, &v, NULL);
    assert_true((st == MOE_OK) == (v != NULL));
    xs_reverify_destroy(v);
    return st;
}

static void a_model_is_opened_and_its_dense_weights_loaded_or_not(void **state)
{
    static xs_config cfg = {.synthetic = "switch-tiny", .seed = 3};
    xs_model m = {0};
    (void)state;
    fail_every_allocation(open_model, &cfg, 1);
    assert_int_equal(MOE_OK, xs_model_open(&cfg, &m, NULL));
    fail_every_allocation(load_dense, &m, 2);
    fail_every_allocation(make_reverify, &m, 2);
    xs_model_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_are_made_whole_or_not_at_all),
        cmocka_unit_test(a_worker_joins_wholly_or_not_at_all),
        cmocka_unit_test(a_model_is_opened_and_its_dense_weights_loaded_or_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
