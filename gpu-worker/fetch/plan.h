/* plan.h - how a block's experts become waves: pure arithmetic, no state.
 *
 * A wave is a group of at most `capacity` experts of one block, at most half of the cells, so that
 * the next one (of this block or of the next) can travel while it runs.
 * Users: pipeline.c (sizes), waves.c (cuts), tests and `plan` (what a budget gives). Any thread.
 */
#ifndef GW_PLAN_H
#define GW_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model_shape.h"
#include "common/status.h"
#include "gpu-worker/fetch/pipeline.h"

/* Small waves begin to compute earlier, and a prompt that streams through the cells pushes fewer
 * popular experts out (deploy/bench.md, "Cells as a cache"). */
enum { GW_PLAN_WAVE_EXPERTS = 8 };
/* clamp(n_cells / 2, 1, GW_PLAN_WAVE_EXPERTS) */
uint32_t gw_plan_wave_capacity(uint32_t n_cells);
/* Largest set of experts a block of a step with n_rows can need: min(n_rows * top_k, n_experts);
 * PREFETCH_ALL: n_experts. 0 for 0 rows. */
uint32_t gw_plan_active_max(gw_policy policy, uint32_t n_experts, uint32_t top_k, uint32_t n_rows);
/* Will a block of a step with n_rows need nearly all of its experts? Evenly routed, four choices
 * per expert reach 98 % of them. */
bool gw_plan_needs_all(uint32_t n_experts, uint32_t top_k, uint32_t n_rows);
/* Waves of a set of n experts. */
uint32_t gw_plan_n_waves(uint32_t n, uint32_t capacity);

/* How near an expert is when its wave is cut. */
typedef enum gw_near { GW_NEAR_CELL = 0, GW_NEAR_SLOT, GW_NEAR_DISK, GW_N_NEAR } gw_near;
/* Orders set[0..n) (rising) into out[0..n): wave w is out[w * capacity ..], at most capacity long.
 * Near experts come first: they run while the others travel, and no earlier wave can evict them.
 * Within a wave experts rise. near[i] is of set[i]. Returns the number of waves. */
uint32_t gw_plan_waves(const uint16_t *set, const uint8_t *near, uint32_t n, uint32_t capacity,
                       uint16_t *out);

/* Does this block's ROUTED mail come while the block before it runs? block counts in its stack. */
bool gw_plan_routed_ahead(gw_policy policy, uint32_t lookahead, uint32_t block);

/* Number of cells for cfg's n_cells or cell_bytes (pipeline.h), at most one per expert, at least 2.
 * MOE_ERR_LIMIT: fewer than 2, or RESIDENT and fewer than all: names the bytes needed. */
MOE_MUST_CHECK moe_status gw_plan_n_cells(const gw_pipeline_cfg *cfg, const moe_model_shape *shape,
                                          uint64_t bytes_per_cell, uint32_t *out_n, moe_err *err);

#endif
