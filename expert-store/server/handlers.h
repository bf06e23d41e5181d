/* handlers.h - what each message does: one function per kind (handlers.c).
 *
 * A bad message - malformed, unknown, out of place, naming what is not there - gets one ERROR and
 * changes nothing. Replies never block; one that cannot be sent is counted and dropped, because
 * the board is the truth and clients ask again.
 * Threads: the store's event loop.
 */
#ifndef XS_HANDLERS_H
#define XS_HANDLERS_H

#include <stddef.h>
#include <stdint.h>

#include "expert-store/server/store_state.h"

typedef enum xs_channel { XS_CHANNEL_WORKERS, XS_CHANNEL_ADMIN } xs_channel;

void xs_handle(xs_store *s, xs_channel channel, const wire_peer *peer, const void *data,
               size_t bytes, int64_t now_ns);

/* To the worker at `place`; nothing when it has not said HELLO since an adoption. */
void xs_reply_ready(xs_store *s, uint32_t place, uint64_t step, const uint32_t *experts,
                    uint32_t n);
/* kind, version and boot of `what` are filled in. */
void xs_reply_failed(xs_store *s, uint32_t place, const wire_failed *what);

/* Holds that were taken up end; what stalled workers asked for is void. */
void xs_settle_workers(xs_store *s, int64_t now_ns);
/* Workers that are gone: what they asked for is void, their leases are free. */
void xs_bury_workers(xs_store *s, int64_t now_ns);

#endif
