/* team.h - helper threads that share one loop of a `cpu` operation.
 *
 * A device owns one team; whichever stream runs an operation borrows it for one loop at a time. A
 * stream that finds the team taken runs its loop alone, so nothing ever waits for the team.
 * Determinism: a loop body computes each item whole, so results do not depend on who ran it.
 * Threads: team_for from any stream's thread; create and destroy from the device's owner.
 * Shutdown: destroy may only be called when no loop runs; it joins the helpers.
 */
#ifndef KRN_TEAM_H
#define KRN_TEAM_H

#include <stdint.h>

#include "common/status.h"

typedef struct krn_team krn_team;
typedef void (*krn_team_fn)(void *ctx, uint32_t begin, uint32_t end);

/* n_threads >= 1 counts the calling stream's own thread: 1 makes no helpers. */
MOE_MUST_CHECK moe_status krn_team_create(uint32_t n_threads, krn_team **out, moe_err *err);
void krn_team_destroy(krn_team *t); /* accepts NULL */
/* Calls fn for pieces of [0, n) of `grain` items (the last may be shorter); returns when all ran.
 */
void krn_team_for(krn_team *t, uint32_t n, uint32_t grain, krn_team_fn fn, void *ctx);

#endif
