/* socket.h - [ZeroMQ] the two ends: ROUTER (store) and DEALER (clients) over ipc://.
 *
 * Bytes in and out, and an fd to poll. Sends never block: MOE_ERR_AGAIN when the peer is slow or
 * away (a dealer's first sends too, until its connection stands). The ROUTER's socket file is 0700
 * in a 0700 directory; peers of another uid are refused while connecting unless allowed. Linger is
 * 0, high-water marks are small, ZMQ_IMMEDIATE is set. A message over the receiver's limit costs
 * its sender the connection, which ZeroMQ then makes anew.
 * The fd is edge-triggered, and a send may consume the edge: when it is readable, and after every
 * send, call recv until MOE_ERR_AGAIN before polling again.
 * Threads: a socket belongs to one thread, and after fork() to the parent.
 */
#ifndef WIRE_PROTO_SOCKET_H
#define WIRE_PROTO_SOCKET_H

#include <stdint.h>

#include "common/status.h"

enum { WIRE_PEER_BYTES = 32 };
typedef struct wire_peer {
    uint8_t id[WIRE_PEER_BYTES]; /* routing id */
    uint32_t id_bytes;
    uint32_t pid, uid; /* of the peer process, as the kernel said when it connected; pid 0: both
                          unknown */
} wire_peer;

typedef struct wire_router wire_router; /* opaque */
typedef struct wire_dealer wire_dealer; /* opaque */

typedef struct wire_router_cfg {
    const char *endpoint; /* ipc:///path; path at most 107 bytes: else MOE_ERR_LIMIT names it */
    int64_t allow_uid;    /* a second uid to admit besides our own; -1 none. Then the file is 0770
                             and a new directory 0750: the two users share our primary group */
    uint32_t max_message_bytes; /* WIRE_MAX_REQUEST_BYTES */
} wire_router_cfg;

/* Creates the directory (0700, not its parents) if it is missing; MOE_ERR_PERMISSION if others may
 * change it. Sets the process's umask for a moment: call before threads create files. The caller
 * holds the instance lock: a bind on a live ipc path succeeds and steals it. */
MOE_MUST_CHECK moe_status wire_router_create(const wire_router_cfg *cfg, wire_router **out,
                                             moe_err *err);
void wire_router_destroy(wire_router *r); /* removes the socket file; accepts NULL */
int wire_router_fd(
    const wire_router *r); /* edge-triggered as ZMQ_FD: drain with recv until AGAIN */
/* *out_data borrowed until the next recv. MOE_ERR_AGAIN: nothing there. */
MOE_MUST_CHECK moe_status wire_router_recv(wire_router *r, wire_peer *out_peer,
                                           const void **out_data, size_t *out_bytes, moe_err *err);
MOE_MUST_CHECK moe_status wire_router_send(wire_router *r, const wire_peer *peer, const void *data,
                                           size_t bytes, moe_err *err);

MOE_MUST_CHECK moe_status wire_dealer_create(const char *endpoint, wire_dealer **out, moe_err *err);
void wire_dealer_destroy(wire_dealer *d); /* accepts NULL */
int wire_dealer_fd(const wire_dealer *d);
MOE_MUST_CHECK moe_status wire_dealer_send(wire_dealer *d, const void *data, size_t bytes,
                                           moe_err *err);
/* *out_data borrowed until the next recv. timeout_ns 0: only what is there. MOE_ERR_AGAIN (0) or
 * MOE_ERR_TIMEOUT. */
MOE_MUST_CHECK moe_status wire_dealer_recv(wire_dealer *d, int64_t timeout_ns,
                                           const void **out_data, size_t *out_bytes, moe_err *err);

/* Path of an ipc:// endpoint; MOE_ERR_INVALID (not ipc, or relative) and MOE_ERR_LIMIT. */
MOE_MUST_CHECK moe_status wire_endpoint_path(const char *endpoint, char *out, size_t out_bytes,
                                             moe_err *err);
/* The operator's endpoint beside a store's: ".admin" appended. Errors as above. */
MOE_MUST_CHECK moe_status wire_admin_endpoint(const char *endpoint, char *out, size_t out_bytes,
                                              moe_err *err);

#endif
