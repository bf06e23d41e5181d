/* exchange.h - one HTTP request and its answer, from the first header to the last byte.
 *
 *   RECEIVING --body complete--> RUNNING --all choices done--> ANSWERED
 *                  \--bad request-------------------------------->/
 * While RUNNING and nothing is to be sent, the connection is suspended; engine callbacks resume it.
 * A streamed answer sends what the engine has produced each time it is resumed.
 * Lifetime: counted; libmicrohttpd holds one reference, each open sequence one.
 * Threads: HTTP thread and engine thread, under the exchange's lock.
 */
#ifndef GW_EXCHANGE_H
#define GW_EXCHANGE_H

#include <microhttpd.h>
#include <stdbool.h>
#include <stddef.h>

#include "gpu-worker/serve/completions.h"
#include "gpu-worker/serve/http_internal.h"

gw_exchange *gw_exchange_create(gw_http *server, struct MHD_Connection *connection);
void gw_exchange_unref(gw_exchange *x);
/* Body bytes; those of a body over the limit are read and dropped. */
void gw_exchange_receive(gw_exchange *x, const char *data, size_t bytes);
/* Body complete, and again after each resume: starts the sequences, waits, or answers. */
enum MHD_Result gw_exchange_advance(gw_exchange *x);
/* The server stops: cancels what runs; the client is told so. Any thread. */
void gw_exchange_cancel(gw_exchange *x);
/* The client is gone or has waited long enough: cancels, and lets libmicrohttpd close the
 * connection without a word. Any thread. */
void gw_exchange_abandon(gw_exchange *x);
/* The socket while the connection is suspended, else -1: libmicrohttpd does not watch it then. */
int gw_exchange_suspended_fd(gw_exchange *x);

#endif
