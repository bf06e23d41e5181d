/* slot_pool.h - the slots of pinned memory: which is free, and what is known of the others.
 *
 *   UNMADE --grow--> FREE: its pages have come
 *   FREE --acquire--> LOADING --publish--> READY --release--> FREE
 *    |                    \------release------------------------/
 *    \--adopt--> READY,   FREE or READY --condemn--> CONDEMNED --release--> FREE
 *
 * CONDEMNED: no expert lives there any more, but a lease may still name it.
 * Bookkeeping only: knows neither the memory nor the board (residency.h writes that).
 * Threads: one owner, the store's event loop. Memory: fixed at creation.
 */
#ifndef XS_SLOT_POOL_H
#define XS_SLOT_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "expert-store/reader/fetch_queue.h"

typedef enum xs_slot_state {
    XS_SLOT_UNMADE = 0,
    XS_SLOT_FREE,
    XS_SLOT_LOADING,
    XS_SLOT_READY,
    XS_SLOT_CONDEMNED,
    XS_N_SLOT_STATES
} xs_slot_state;

typedef struct xs_slot {
    xs_slot_state state;
    xs_fetch_class why;     /* of its load */
    bool wanted;            /* a WANT named its expert since the load began */
    bool unverified;        /* adopted; not hashed again yet */
    uint32_t expert;        /* not in FREE and CONDEMNED */
    uint32_t n_holds;       /* reasons not to evict it: WANTs waiting for a lease, re-hashing */
    uint32_t free_at;       /* FREE: place in the free stack */
    uint64_t uses_at_load;  /* of its expert, over all workers */
    uint64_t uses_at_sieve; /* more than these are a visit for SIEVE's hand */
    int64_t loaded_ns;
} xs_slot;

typedef struct xs_slot_pool xs_slot_pool; /* opaque */

/* n_slots > 0; all UNMADE. */
MOE_MUST_CHECK moe_status xs_slot_pool_create(uint32_t n_slots, xs_slot_pool **out, moe_err *err);
void xs_slot_pool_destroy(xs_slot_pool *p); /* accepts NULL */
/* The first n_made slots are UNMADE no longer; never fewer than before. */
void xs_slot_pool_grow(xs_slot_pool *p, uint32_t n_made);
/* FREE -> LOADING. MOE_ERR_NO_SLOT when none is free: the caller evicts and comes again. */
MOE_MUST_CHECK moe_status xs_slot_pool_acquire(xs_slot_pool *p, uint32_t expert, xs_fetch_class why,
                                               uint32_t *out_slot, moe_err *err);
void xs_slot_pool_adopt(xs_slot_pool *p, uint32_t slot, uint32_t expert, int64_t now_ns);
void xs_slot_pool_publish(xs_slot_pool *p, uint32_t slot, int64_t now_ns);
void xs_slot_pool_release(xs_slot_pool *p, uint32_t slot);
void xs_slot_pool_condemn(xs_slot_pool *p, uint32_t slot);
/* Borrowed; state, expert and free_at are the pool's to change. */
xs_slot *xs_slot_pool_at(xs_slot_pool *p, uint32_t slot);
uint32_t xs_slot_pool_size(const xs_slot_pool *p);
uint32_t xs_slot_pool_count(const xs_slot_pool *p, xs_slot_state state);

#endif
