/* cell_policy.h - which cell to give up: a pure function over what is known of the candidates.
 * No clock, no locks, no memory: tests and the offline replayer call the same code.
 */
#ifndef GW_CELL_POLICY_H
#define GW_CELL_POLICY_H

#include <stdbool.h>
#include <stdint.h>

typedef enum gw_cell_policy { GW_CELL_LRU = 0, GW_CELL_LFU, GW_CELL_LIFO_INACTIVE } gw_cell_policy;

typedef struct gw_cell_candidate { /* one cell with an expert in it */
    uint64_t uses;                 /* of its expert, over all its stays in cells */
    uint64_t last_use;             /* tick; the tick of its loading if unused since */
    uint64_t loaded;               /* tick */
    bool locked;                   /* in use or being filled: never chosen */
    bool needed; /* by a wave that is planned already: only if nothing else is left */
    bool active; /* used in the latest step of its block */
} gw_cell_candidate;

/* Index into c[0..n), or -1 when every cell is locked.
 *   LRU            the longest unused
 *   LFU            the fewest uses; of those the longest unused
 *   LIFO_INACTIVE  experts not active in their block's latest step first; of those the last loaded:
 *                  blocks run their experts in rising order, so it has the longest way to its next
 * use Ties: the lowest index, so that replays are exact. `needed` comes before the policy. */
int64_t gw_cell_choose(gw_cell_policy policy, const gw_cell_candidate *c, uint32_t n);

#endif
