/* lease_view.h - what the store sees of all lease tables at once.
 *
 * A worker may write anything into its table, so sizes and offsets are kept here, as checked when
 * the table was made or adopted; nothing in this file trusts a header twice.
 * Owner: workers.c adds and removes entries. Readers: residency.c (evicting), store_metrics.c.
 * Threads: the store's event loop only; the words behind it are written by workers.
 */
#ifndef XS_LEASE_VIEW_H
#define XS_LEASE_VIEW_H

#include <stdbool.h>
#include <stdint.h>

#include "common/shm_region.h"
#include "common/status.h"
#include "proto/lease_table.h"

typedef struct xs_lease_entry {
    void *table; /* borrowed mapping; NULL: place is empty */
    uint32_t capacity;
} xs_lease_entry;

typedef struct xs_lease_view {
    uint32_t n_experts, n_blocks;
    uint32_t n_places;                        /* the places in use lie below it */
    xs_lease_entry at[MOE_BOARD_MAX_WORKERS]; /* by registry place */
    /* What workers that are gone had counted. */
    uint64_t *gone_uses;             /* [n_experts], owned */
    moe_block_counters *gone_blocks; /* [n_blocks], owned */
    moe_worker_counters gone;        /* gauges in it stay 0 */
} xs_lease_view;

typedef struct xs_lease_geometry {
    uint8_t store_uuid[16];
    uint32_t worker_id, capacity, n_experts, n_blocks;
} xs_lease_geometry;

MOE_MUST_CHECK moe_status xs_lease_view_init(xs_lease_view *v, uint32_t n_experts,
                                             uint32_t n_blocks, moe_err *err);
void xs_lease_view_fini(xs_lease_view *v);

/* Writes the header into zeroed memory of moe_lease_table_bytes(...), magic last. */
void xs_lease_table_format(void *table, const xs_lease_geometry *g);
/* Is a table found in memory what this store, or one before it, gave out? MOE_ERR_FORMAT names what
 * is wrong. */
MOE_MUST_CHECK moe_status xs_lease_table_check(const void *table, uint64_t bytes,
                                               const xs_lease_geometry *g, moe_err *err);

/* Does a worker hold the table's lock, and so live? The store asks in passing: nobody else wants a
 * shared one. */
bool xs_lease_table_is_locked(const moe_shm_region *table);

void xs_lease_view_add(xs_lease_view *v, uint32_t place, void *table, uint32_t capacity);
/* Adds the table's counters to the totals of workers that are gone, and forgets it. */
void xs_lease_view_remove(xs_lease_view *v, uint32_t place);

/* Steps 1 and 3 of an eviction (proto/lease_table.h): does any lease name the slot? seq_cst. */
bool xs_lease_view_names_slot(const xs_lease_view *v, uint32_t slot);
bool xs_lease_entry_names_slot(const xs_lease_entry *e, uint32_t slot);
/* Sets leased[slot] for every slot that a lease names; returns how many leases there are. */
uint32_t xs_lease_view_mark(const xs_lease_view *v, bool *leased, uint32_t n_slots);
uint32_t xs_lease_entry_count(const xs_lease_entry *e);
/* Uses of an expert over all workers, gone ones too; *out_last_ns is raised to the latest. */
uint64_t xs_lease_view_uses(const xs_lease_view *v, uint32_t expert, int64_t *out_last_ns);
uint64_t xs_lease_entry_uses(const xs_lease_entry *e, uint32_t expert);
/* Sum over all workers, gone ones too. */
void xs_lease_view_block(const xs_lease_view *v, uint32_t block, moe_block_counters *out);
void xs_lease_entry_blocks_add(const xs_lease_entry *e, uint32_t n_experts, uint32_t block,
                               moe_block_counters *sum);

#endif
