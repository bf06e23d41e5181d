/* loading.h - from the fetch queue to the board: which read starts now, and what its end means.
 *
 *   queue --start (slot, LOADING)--> reader --harvest--> READY, holds, READY messages
 *                                                \-----> FAILED, FAILED messages
 *
 * Speculative reads are bounded (limits.speculative_in_flight), because a read at the drive cannot
 * be recalled when a WANT comes.
 * Threads: the store's event loop. At a stop server.c sets `stopping`: only what WANTs asked for is
 * still read; server.c waits until all is idle or its patience ends, then tells the rest.
 */
#ifndef XS_LOADING_H
#define XS_LOADING_H

#include <stdbool.h>

#include "expert-store/server/store_state.h"

/* Starts what may start; how many. Sets s->starved when something waits for a slot. */
uint32_t xs_loading_start(xs_store *s, int64_t now_ns);
/* Takes finished reads; false when there were none. */
bool xs_loading_harvest(xs_store *s, int64_t now_ns);
/* Hands the next adopted slot to the re-hashing thread, or takes its verdict. */
void xs_loading_reverify(xs_store *s, int64_t now_ns);
/* Nothing is in flight, and nothing that a WANT asked for is queued. */
bool xs_loading_is_idle(const xs_store *s);
/* Tells those who still wait that this store stops. */
void xs_loading_abandon(xs_store *s);

#endif
