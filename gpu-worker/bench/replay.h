/* replay.h - what a cache of N cells would have hit on recorded routing: every cell policy, the
 * best static set, and Belady's bound. Offline; `gpu-worker replay FILE`, or `replay --routing
 * zipf:S
 * --synthetic NAME` for made-up routing.
 *
 *   policy       the worker's own cell pool and waves (cell_pool.h, plan.h), without a device
 *   best static  the N experts used most, there from the start and for good
 *   Belady       keeps what is used again soonest and may let an expert pass without keeping it:
 *                no policy can hit more, in whatever order waves run
 * A use is one expert of one block in one step, however many rows chose it; a hit needs no copy.
 * Steps before `skip` fill cells but do not count; a static set is chosen by the uses that count.
 * Pure but for gw_replay_main; any thread.
 */
#ifndef GW_REPLAY_H
#define GW_REPLAY_H

#include "gpu-worker/bench/routing_log.h"
#include "gpu-worker/fetch/cell_policy.h"

/* The recording as the cells see it: per step and block the set of experts, in order of time. */
typedef struct gw_uses {
    uint32_t n_experts, n_experts_total; /* per block; flat indices are below this */
    uint32_t n_sets, n_uses;
    uint32_t first_counted; /* set */
    uint32_t *set_at;       /* [n_sets + 1] owned: into expert */
    uint32_t *expert;       /* [n_uses] owned: flat, rising within a set */
} gw_uses;
MOE_MUST_CHECK moe_status gw_uses_create(const gw_recording *r, uint32_t skip_steps, gw_uses *out,
                                         moe_err *err);
void gw_uses_fini(gw_uses *u); /* accepts zeroed */
uint64_t gw_uses_counted(const gw_uses *u);

/* Hits among the counted uses. n_cells >= 2. */
MOE_MUST_CHECK moe_status gw_replay_policy(const gw_uses *u, gw_cell_policy policy,
                                           uint32_t n_cells, uint64_t *out_hits, moe_err *err);
MOE_MUST_CHECK moe_status gw_replay_best_static(const gw_uses *u, uint32_t n_cells,
                                                uint64_t *out_hits, moe_err *err);
MOE_MUST_CHECK moe_status gw_replay_belady(const gw_uses *u, uint32_t n_cells, uint64_t *out_hits,
                                           moe_err *err);

#endif
