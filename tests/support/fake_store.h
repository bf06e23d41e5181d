/* fake_store.h - for tests: a board, lease tables and a residency over plain memory, no process, no
 * sockets, no drive. The test plays the worker through the same inline functions real ones use.
 * Threads: the test's; the tables may be used by worker threads. Asserts with cmocka. */
#ifndef TESTS_FAKE_STORE_H
#define TESTS_FAKE_STORE_H

#include <stdint.h>

#include "expert-store/server/lease_view.h"
#include "expert-store/server/residency.h"
#include "expert-store/store_config.h"

enum { FAKE_BLOCKS = 2, FAKE_MAX_TABLES = 4 };

typedef struct fake_store_cfg {
    uint32_t n_experts, n_slots, n_tables, lease_capacity;
    xs_evict_policy policy;
    uint32_t max_pinned;
} fake_store_cfg;

typedef struct fake_store {
    fake_store_cfg cfg;
    xs_board_geometry geometry;
    void *board;                   /* owned */
    void *tables[FAKE_MAX_TABLES]; /* owned */
    xs_lease_view leases;
    xs_kill_switch kill;
    xs_residency *residency; /* owned */
} fake_store;

void fake_store_init(fake_store *f, const fake_store_cfg *cfg);
void fake_store_fini(fake_store *f);
/* As after a crash: a new residency over the same board and tables, not adopted yet. */
void fake_store_crash(fake_store *f);

/* begin_load and publish; the slot. */
uint32_t fake_store_load(fake_store *f, uint32_t expert, int64_t now_ns);
uint64_t fake_store_word(const fake_store *f, uint32_t expert);
void fake_store_set_word(fake_store *f, uint32_t expert, uint64_t word);
/* Lease word `index` of a table := the expert's board word, checked as a worker does. */
void fake_store_lease(fake_store *f, uint32_t table, uint32_t index, uint32_t expert);
void fake_store_release(fake_store *f, uint32_t table, uint32_t index);
void fake_store_use(fake_store *f, uint32_t table, uint32_t expert, int64_t now_ns);

#endif
