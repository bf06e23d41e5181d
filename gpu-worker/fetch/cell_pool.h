/* cell_pool.h - which expert is in which cell, and who is using it. Never touches a cell's bytes.
 *
 *   FREE --take--> TAKEN --fill--> FILLING --ready--> READY --taken for another expert--> TAKEN
 *     ^--give_back---/               |
 *      \-----------------drop-------/
 *
 * A pin keeps a cell's expert where it is: the waves that use it and guesses that wait for their
 * block hold pins. A cell that is pinned, TAKEN or FILLING is locked; the others can be taken.
 * A reservation promises one of those, but no particular one: whoever waits for bytes holds it, and
 * evicts only once they are there to be copied. There are never more reservations than cells that
 * can be taken.
 * "Needed" is softer: the expert's wave is planned, but its turn for cells has not come; such a
 * cell goes last. Ticks count events of this pool, so that policies need no clock. Threads: the
 * fetch thread; create and destroy from its owner. No allocation after create.
 */
#ifndef GW_CELL_POOL_H
#define GW_CELL_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "gpu-worker/fetch/cell_policy.h"

#define GW_NO_CELL UINT32_MAX
#define GW_NO_EXPERT UINT32_MAX

typedef enum gw_cell_state {
    GW_CELL_FREE = 0,
    GW_CELL_TAKEN,
    GW_CELL_FILLING,
    GW_CELL_READY
} gw_cell_state;

typedef struct gw_cell {
    uint32_t expert; /* flat; GW_NO_EXPERT when FREE */
    uint32_t pins;
    gw_cell_state state;
    bool unused;                        /* since its copy */
    int64_t copy_begin_ns, copy_end_ns; /* READY: when it crossed the link */
} gw_cell;

typedef struct gw_cell_pool_cfg {
    uint32_t n_cells;             /* > 0 */
    uint32_t n_experts_total;     /* flat indices are below this */
    uint32_t n_experts_per_block; /* > 0 */
    gw_cell_policy policy;
} gw_cell_pool_cfg;

typedef struct gw_cell_pool gw_cell_pool;
MOE_MUST_CHECK moe_status gw_cell_pool_create(const gw_cell_pool_cfg *cfg, gw_cell_pool **out,
                                              moe_err *err);
void gw_cell_pool_destroy(gw_cell_pool *p); /* accepts NULL */

const gw_cell *gw_cell_pool_at(const gw_cell_pool *p, uint32_t cell);
uint32_t gw_cell_pool_find(const gw_cell_pool *p, uint32_t expert); /* or GW_NO_CELL */
uint32_t gw_cell_pool_n_used(const gw_cell_pool *p);                /* not FREE */

/* False: every cell is locked or promised. */
MOE_MUST_CHECK bool gw_cell_pool_reserve(gw_cell_pool *p);
void gw_cell_pool_unreserve(gw_cell_pool *p);
/* A cell for an expert that has none: TAKEN with one pin. *out_evicted is what the cell held
 * (expert GW_NO_EXPERT: nothing). reserved: uses up a reservation and always succeeds. Else only a
 * cell that is neither promised nor needed, or GW_NO_CELL. */
uint32_t gw_cell_pool_take(gw_cell_pool *p, uint32_t expert, bool reserved, gw_cell *out_evicted);
/* No copy could begin after all: TAKEN -> FREE; the caller may reserve at once, successfully. */
void gw_cell_pool_give_back(gw_cell_pool *p, uint32_t cell);
void gw_cell_pool_fill(gw_cell_pool *p, uint32_t cell); /* TAKEN -> FILLING */
void gw_cell_pool_ready(gw_cell_pool *p, uint32_t cell, int64_t copy_begin_ns, int64_t copy_end_ns);
/* The copy did not come to its end: FILLING -> FREE. Nobody may pin it. */
void gw_cell_pool_drop(gw_cell_pool *p, uint32_t cell);

/* For a found cell. False: it is one that a reservation counts on. */
MOE_MUST_CHECK bool gw_cell_pool_pin(gw_cell_pool *p, uint32_t cell);
void gw_cell_pool_unpin(gw_cell_pool *p, uint32_t cell);
/* Calls nest: an expert is needed while more need than unneed calls were made. */
void gw_cell_pool_need(gw_cell_pool *p, uint32_t expert);
void gw_cell_pool_unneed(gw_cell_pool *p, uint32_t expert);
bool gw_cell_pool_is_needed(const gw_cell_pool *p, uint32_t expert);
/* A new step reaches this flat block: its experts are inactive until used. */
void gw_cell_pool_begin_block(gw_cell_pool *p, uint32_t flat_block);
void gw_cell_pool_use(gw_cell_pool *p, uint32_t cell);

#endif
