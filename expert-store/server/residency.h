/* residency.h - which expert sits in which slot, and who may still be reading it.
 *
 * Writes the board (proto/board.h), alone: loads, publishing, evicting by the four steps of
 * proto/lease_table.h, adopting. Never touches the bytes of a slot.
 *
 *   begin_load --> publish --> (leased and used by workers) --> evicted inside a later begin_load
 *        \-------> fail
 *
 * Generations come from one counter over all slots, kept in every word a load wrote (an ABSENT word
 * keeps its last one): the largest generation on the board is always the last one given, so an
 * adopting store goes on counting and no word repeats.
 * A condemned slot holds no expert, but a lease still names it: after re-hashing found it corrupt,
 * or adopted like that. sweep frees it once the lease is gone.
 * Threads: the store's event loop. Memory: fixed at creation; board and lease view are borrowed.
 * At shutdown nothing happens here: the board is the memory's, not this object's.
 */
#ifndef XS_RESIDENCY_H
#define XS_RESIDENCY_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "expert-store/policy/evict.h"
#include "expert-store/server/lease_view.h"
#include "expert-store/server/slot_pool.h"
#include "expert-store/server/trace_recorder.h"
#include "expert-store/store_config.h"
#include "proto/board.h"

typedef struct xs_board_geometry {
    uint8_t store_uuid[16];
    uint32_t n_experts, n_slots;
    uint64_t slot_bytes;
} xs_board_geometry;

/* Writes header and words into zeroed memory of moe_board_bytes(n_experts); boot 0, no slot made,
 * magic last. */
void xs_board_format(void *board, const xs_board_geometry *g);
/* May a store with this geometry adopt the board? Checks magic, layout, geometry, UUID, states,
 * slots in range, and that no two experts share a slot. MOE_ERR_FORMAT says what is wrong. */
MOE_MUST_CHECK moe_status xs_board_check(const void *board, uint64_t bytes,
                                         const xs_board_geometry *g, moe_err *err);
/* Slots from n on go: their experts are ABSENT, the board says that n are made. Between stores, on
 * a checked board that no living worker has mapped. */
void xs_board_shrink(void *board, uint32_t n);
/* Tells workers that this memory will never be served again. */
void xs_board_supersede(void *board);

typedef struct xs_residency_cfg {
    void *board; /* borrowed; formatted or checked */
    uint32_t n_experts, n_slots;
    uint32_t n_budget; /* slots that there shall be, at most n_slots */
    xs_evict_policy policy;
    int64_t predict_keep_ns;
    uint32_t max_pinned;         /* experts that PIN may keep for ever */
    const xs_lease_view *leases; /* borrowed */
    xs_recorder *recorder;       /* borrowed; NULL: none */
    xs_kill_switch *kill;        /* borrowed; tests only */
} xs_residency_cfg;

typedef struct xs_residency_counters {
    uint64_t evictions;
    uint64_t evict_retries;            /* a lease appeared between steps 1 and 3 */
    uint64_t wasted;                   /* predicted or warm loads, evicted unused */
    uint64_t adopted, adopted_loading; /* slots kept; loads that a dead store had not finished */
    uint64_t condemned;
} xs_residency_counters;

typedef struct xs_residency xs_residency; /* opaque */
MOE_MUST_CHECK moe_status xs_residency_create(const xs_residency_cfg *cfg, xs_residency **out,
                                              moe_err *err);
void xs_residency_destroy(xs_residency *r); /* accepts NULL */

/* The first n_made slots have pages now; says so on the board. Never fewer than the board says,
 * which is what a new object begins with. */
void xs_residency_grow(xs_residency *r, uint32_t n_made);
/* So many slots shall be made; says so on the board. */
void xs_residency_set_budget(xs_residency *r, uint32_t n_budget);
void xs_residency_set_max_pinned(xs_residency *r, uint32_t max_pinned);
/* No slot is free, but one will be made soon that is better than evicting: of the memory that the
 * start was asked for, or where every expert gets its slot in the end. */
bool xs_residency_waits_for_memory(const xs_residency *r);
/* Once, before anything else, on a checked board with all lease tables in the view:
 * EVICTING -> READY, LOADING and FAILED -> ABSENT; free slots that a lease names are condemned. */
void xs_residency_adopt(xs_residency *r, int64_t now_ns);

moe_board_state xs_residency_state(const xs_residency *r, uint32_t expert);
/* Meaningful in LOADING and READY. */
uint32_t xs_residency_slot_of(const xs_residency *r, uint32_t expert);
xs_slot *xs_residency_slot(xs_residency *r, uint32_t slot);
uint32_t xs_residency_count(const xs_residency *r, xs_slot_state state);
uint32_t xs_residency_leased(xs_residency *r); /* slots that a lease names now */
/* [n_slots made], true where a lease names the slot; valid until the next call of anything here. */
const bool *xs_residency_mark_leased(xs_residency *r);
/* Uses by all workers, older ones counting less (popularity.h). */
uint64_t xs_residency_recent_uses(xs_residency *r, uint32_t expert);

/* ABSENT or FAILED -> LOADING, in a free slot or an evicted one. Speculative classes leave
 * predicted experts alone; under PREDICTED a demand does too, while anything else may go.
 * MOE_ERR_NO_SLOT: all in use; come again when something changed. */
MOE_MUST_CHECK moe_status xs_residency_begin_load(xs_residency *r, uint32_t expert,
                                                  xs_fetch_class why, int64_t now_ns,
                                                  uint32_t *out_slot, moe_err *err);
void xs_residency_publish(xs_residency *r, uint32_t slot, int64_t now_ns); /* -> READY */
/* asked: a worker waits for it and is told (-> FAILED); else -> ABSENT. The slot is free. */
void xs_residency_fail(xs_residency *r, uint32_t slot, bool asked);
/* The operator's. MOE_ERR_BUSY (leased, held, pinned or loading), MOE_ERR_NOT_FOUND. */
MOE_MUST_CHECK moe_status xs_residency_evict(xs_residency *r, uint32_t expert, moe_err *err);
/* READY -> ABSENT at once, whoever reads it; the slot is reused only when no lease names it. */
void xs_residency_condemn(xs_residency *r, uint32_t slot);
uint32_t xs_residency_sweep(xs_residency *r); /* condemned slots freed */

void xs_residency_hold(xs_residency *r, uint32_t slot);
void xs_residency_release_hold(xs_residency *r, uint32_t slot);
void xs_residency_predict(xs_residency *r, uint32_t expert, int64_t now_ns);
bool xs_residency_is_predicted(const xs_residency *r, uint32_t expert, int64_t now_ns);
/* MOE_ERR_LIMIT: more would leave too few slots for the workers. */
MOE_MUST_CHECK moe_status xs_residency_pin(xs_residency *r, uint32_t expert, bool pin,
                                           moe_err *err);
/* All of them, or MOE_ERR_LIMIT with the remedy. */
MOE_MUST_CHECK moe_status xs_residency_may_pin(const xs_residency *r, const uint32_t *experts,
                                               uint32_t n, moe_err *err);
uint32_t xs_residency_n_pinned(const xs_residency *r);
const xs_residency_counters *xs_residency_get_counters(const xs_residency *r);

#endif
