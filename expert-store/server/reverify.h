/* reverify.h - hashes adopted slots again, one at a time, on a thread of low priority.
 *
 * The event loop hands a slot over (and holds it meanwhile, so that it is neither evicted nor
 * overwritten), is woken through the fd, takes the verdict and hands the next one over.
 * Threads: start, fd, take from the event loop; one thread inside. destroy waits for the slot in
 * work, at most some milliseconds.
 */
#ifndef XS_REVERIFY_H
#define XS_REVERIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "expert-store/server/model_source.h"

typedef struct xs_reverify xs_reverify; /* opaque */
/* model and slots are borrowed until destroy. */
MOE_MUST_CHECK moe_status xs_reverify_create(const xs_model *model, const void *slots,
                                             xs_reverify **out, moe_err *err);
void xs_reverify_destroy(xs_reverify *v); /* accepts NULL */
int xs_reverify_fd(const xs_reverify *v);
/* Only when none is in work. */
void xs_reverify_start(xs_reverify *v, uint32_t expert, uint32_t slot);
/* False: nothing finished. */
bool xs_reverify_take(xs_reverify *v, uint32_t *out_expert, uint32_t *out_slot, bool *out_good);

#endif
