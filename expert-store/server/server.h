/* server.h - one running store: makes everything, loops, takes it down.
 *
 * Start, in this order, so that nothing is served before it is true and nothing is stolen:
 *   lock -> regions (adopted or created) -> dense weights -> lease tables -> first slots -> reader
 *   -> sockets
 * The other slots get their pages while the store serves (slot_memory.h); if that fails, the store
 * stops like after a signal, and run returns why.
 *
 * Stop (SIGTERM, SIGINT, SIGHUP, DRAIN): what was wanted is still served, sockets go, memory goes
 * unless keep_memory. A second signal stops waiting.
 *
 * Threads: create, run and destroy on the main thread; create blocks those signals, so it comes
 * before any other thread of the process.
 */
#ifndef XS_SERVER_H
#define XS_SERVER_H

#include "common/status.h"
#include "expert-store/store_config.h"

typedef struct xs_server xs_server; /* opaque */
/* cfg is borrowed until destroy. */
MOE_MUST_CHECK moe_status xs_server_create(const xs_config *cfg, xs_server **out, moe_err *err);
/* MOE_OK after a stop that was asked for. */
MOE_MUST_CHECK moe_status xs_server_run(xs_server *server, moe_err *err);
void xs_server_destroy(xs_server *server); /* accepts NULL */

#endif
