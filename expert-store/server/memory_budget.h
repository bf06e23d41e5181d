/* memory_budget.h - how many slots there shall be, the limits that follow from it, and giving more
 * while the store serves.
 *
 *   RESIZE --> budget --> slot_memory makes pages --> take: pool, board, ring --> workers use them
 *
 * Only upwards: a worker may have registered any slot with its device, and would have to say that
 * it let go before a page could leave. A smaller budget comes with the next start (regions.h).
 * Threads: the store's event loop.
 */
#ifndef XS_MEMORY_BUDGET_H
#define XS_MEMORY_BUDGET_H

#include "common/status.h"
#include "expert-store/server/regions.h"
#include "expert-store/server/store_state.h"

/* What xs_regions_open and later sizing are given; borrows from s. */
xs_regions_cfg xs_budget_regions_cfg(const xs_store *s);
/* Starts to make the slots of regions that are open. Fails if the first piece cannot be made. */
MOE_MUST_CHECK moe_status xs_budget_open(xs_store *s, moe_err *err);
/* s->limits, from the budget; the reader is open. */
void xs_budget_set_limits(xs_store *s);
uint32_t xs_budget_max_pinned(const xs_store *s);
/* What has been made since the last call is there to be used. */
void xs_budget_take(xs_store *s);
/* ram_bytes as the setting of that name; out_text (WIRE_MAX_TEXT) for the operator. MOE_ERR_LIMIT:
 * less than now. MOE_ERR_BUSY: a trace for this size is being recorded. Else as xs_size_slots. */
MOE_MUST_CHECK moe_status xs_budget_raise(xs_store *s, const char *ram_bytes, char *out_text,
                                          moe_err *err);

#endif
