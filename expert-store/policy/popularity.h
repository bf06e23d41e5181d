/* popularity.h - how much each expert was used lately: counts that are halved as uses go by.
 *
 * A count survives eviction, so that an expert that comes back is known by its past. After every
 * `period` uses of any expert all counts are halved: what was popular long ago fades, and their
 * order does not change meanwhile. Counted in uses, not in time, so that replays are exact and an
 * idle store forgets nothing. Integers only.
 * Users: residency.c (uses seen in lease tables) and the replayer, for the `uses` of evict.h.
 * Threads: one owner. Memory: fixed at init.
 */
#ifndef XS_POPULARITY_H
#define XS_POPULARITY_H

#include <stdint.h>

#include "common/status.h"

enum { XS_ONE_USE = 1 << 16 }; /* a use that was just seen, in the unit of counts */

typedef struct xs_popularity {
    uint64_t *counts;   /* [n] owned; in 1/XS_ONE_USE, halved `halvings[x]` times */
    uint32_t *halvings; /* [n] owned */
    uint32_t n;
    uint64_t period;
    uint64_t uses; /* of all experts, seen so far */
} xs_popularity;

/* The period for a model. */
uint64_t xs_popularity_period(uint32_t n_experts);
/* period > 0. */
MOE_MUST_CHECK moe_status xs_popularity_init(xs_popularity *p, uint32_t n_experts, uint64_t period,
                                             moe_err *err);
void xs_popularity_fini(xs_popularity *p); /* accepts {0} */
void xs_popularity_use(xs_popularity *p, uint32_t expert, uint64_t n_uses);
/* What is known from before, all at once: adds to the count, but lets no time pass. */
void xs_popularity_seed(xs_popularity *p, uint32_t expert, uint64_t n_uses);
/* Comparable between experts as long as no use comes between. */
uint64_t xs_popularity_get(const xs_popularity *p, uint32_t expert);

#endif
