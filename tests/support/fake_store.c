/* fake_store.c - see fake_store.h. */
#include "tests/support/fake_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void *zeroed(uint64_t bytes)
{
    void *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    assert_non_null(p);
    memset(p, 0, bytes);
    return p;
}

static void add_table(fake_store *f, uint32_t i)
{
    xs_lease_geometry g = {.worker_id = i + 1,
                           .capacity = f->cfg.lease_capacity,
                           .n_experts = f->cfg.n_experts,
                           .n_blocks = FAKE_BLOCKS};
    memcpy(g.store_uuid, f->geometry.store_uuid, sizeof g.store_uuid);
    f->tables[i] = zeroed(moe_lease_table_bytes(g.capacity, g.n_experts, g.n_blocks));
    xs_lease_table_format(f->tables[i], &g);
}

static void open_view(fake_store *f)
{
    assert_int_equal(MOE_OK, xs_lease_view_init(&f->leases, f->cfg.n_experts, FAKE_BLOCKS, NULL));
    for (uint32_t i = 0; i < f->cfg.n_tables; i++) {
        xs_lease_view_add(&f->leases, i, f->tables[i], f->cfg.lease_capacity);
    }
}

static void open_residency(fake_store *f)
{
    const xs_residency_cfg cfg = {.board = f->board,
                                  .n_experts = f->cfg.n_experts,
                                  .n_slots = f->cfg.n_slots,
                                  .n_budget = f->cfg.n_slots,
                                  .policy = f->cfg.policy,
                                  .predict_keep_ns = 1000,
                                  .max_pinned = f->cfg.max_pinned,
                                  .leases = &f->leases,
                                  .kill = &f->kill};
    assert_int_equal(MOE_OK, xs_residency_create(&cfg, &f->residency, NULL));
    xs_residency_grow(f->residency, f->cfg.n_slots);
}

void fake_store_init(fake_store *f, const fake_store_cfg *cfg)
{
    *f = (fake_store){.cfg = *cfg};
    f->geometry = (xs_board_geometry){.store_uuid = "0123456789abcde",
                                      .n_experts = cfg->n_experts,
                                      .n_slots = cfg->n_slots,
                                      .slot_bytes = 4096};
    f->board = zeroed(moe_board_bytes(cfg->n_experts));
    xs_board_format(f->board, &f->geometry);
    for (uint32_t i = 0; i < cfg->n_tables; i++) {
        add_table(f, i);
    }
    open_view(f);
    open_residency(f);
}

void fake_store_fini(fake_store *f)
{
    xs_residency_destroy(f->residency);
    xs_lease_view_fini(&f->leases);
    for (uint32_t i = 0; i < f->cfg.n_tables; i++) {
        free(f->tables[i]);
    }
    free(f->board);
}

void fake_store_crash(fake_store *f)
{
    xs_residency_destroy(f->residency);
    xs_lease_view_fini(&f->leases);
    open_view(f);
    open_residency(f);
}

uint32_t fake_store_load(fake_store *f, uint32_t expert, int64_t now_ns)
{
    uint32_t slot = UINT32_MAX;
    assert_int_equal(MOE_OK, xs_residency_begin_load(f->residency, expert, XS_FETCH_DEMAND, now_ns,
                                                     &slot, NULL));
    xs_residency_publish(f->residency, slot, now_ns);
    return slot;
}

uint64_t fake_store_word(const fake_store *f, uint32_t expert)
{
    return atomic_load_explicit(&moe_board_words(f->board)[expert], memory_order_acquire);
}

void fake_store_set_word(fake_store *f, uint32_t expert, uint64_t word)
{
    atomic_store_explicit(&moe_board_words(f->board)[expert], word, memory_order_release);
}

void fake_store_lease(fake_store *f, uint32_t table, uint32_t index, uint32_t expert)
{
    uint64_t word = 0;
    uint64_t retries = 0;
    assert_int_equal(MOE_LEASE_TAKEN,
                     moe_lease_take(&moe_lease_words(f->tables[table])[index],
                                    &moe_board_words(f->board)[expert], &word, &retries));
}

void fake_store_release(fake_store *f, uint32_t table, uint32_t index)
{
    moe_lease_release(&moe_lease_words(f->tables[table])[index]);
}

void fake_store_use(fake_store *f, uint32_t table, uint32_t expert, int64_t now_ns)
{
    moe_use_record *u = &moe_lease_uses(f->tables[table])[expert];
    atomic_fetch_add_explicit(&u->count, 1, memory_order_relaxed);
    atomic_store_explicit(&u->last_use_ns, (uint64_t)now_ns, memory_order_relaxed);
}
