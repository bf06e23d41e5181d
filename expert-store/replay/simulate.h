/* simulate.h - a memory of some slots under one policy, over a trace; and what bounds it.
 *
 * The policies are those of a running store: the same functions (expert-store/policy/evict.h) over
 * the same counts (expert-store/policy/popularity.h). What is simpler here: a load takes no time,
 * nothing is leased beyond its own use, and predictions load nothing ahead: they only protect. A
 * load that a prediction causes reads the drive as one on demand does, so the hits here are reads
 * saved; predictions that were wrong are not charged. Uses in a row (access_list.h): after the
 * first one all are hits, in everything below. Threads: any; no state, no clock, no files.
 */
#ifndef XS_SIMULATE_H
#define XS_SIMULATE_H

#include <stdint.h>

#include "common/status.h"
#include "expert-store/policy/evict.h"
#include "expert-store/replay/access_list.h"

typedef struct xs_memory {
    uint32_t n_slots;        /* > 0 */
    int64_t predict_keep_us; /* how long a prediction counts if no use ends it */
} xs_memory;

/* Begins empty. *out_hits: uses that found their expert in a slot. */
MOE_MUST_CHECK moe_status xs_simulate_policy(const xs_access_list *l, const xs_memory *m,
                                             xs_evict_policy policy, uint64_t *out_hits,
                                             moe_err *err);
/* The experts used most, chosen with hindsight, in all slots but one from the start; the others
 * pass through that last one, as they must in a store. */
MOE_MUST_CHECK moe_status xs_simulate_static(const xs_access_list *l, const xs_memory *m,
                                             uint64_t *out_hits, moe_err *err);
/* Belady's bound: begins empty, keeps what is used again soonest, and may let an expert pass by
 * without keeping it. No policy gets more. (The static set can, by its full start.) */
MOE_MUST_CHECK moe_status xs_simulate_belady(const xs_access_list *l, const xs_memory *m,
                                             uint64_t *out_hits, moe_err *err);

#endif
