/* store_client.h - the worker's end of the store: connection, mappings, leases, wants.
 *
 *   connect: HELLO -> WELCOME -> map regions -> flock the lease table -> ready
 *   resident expert: board word, lease word, slot pointer: no message (proto/lease_table.h)
 *   absent expert:   WANT, then the board becomes READY (or FAILED comes back)
 * While the store is away, resident experts keep working; the client reconnects by itself and says
 * HELLO with its old worker id. If the store comes back with other memory (superseded board, other
 * UUID or geometry), the client is `lost`: MOE_ERR_DISCONNECTED from then on, and the owner makes
 * a new client and drops its cells.
 *
 * Threads: create, destroy and the const getters from the owner; everything else from ONE thread
 * (the fetch thread). Nothing here blocks except create (bounded by connect_timeout_ns).
 */
#ifndef GW_STORE_CLIENT_H
#define GW_STORE_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model_shape.h"
#include "common/status.h"
#include "proto/dense_table.h"
#include "proto/lease_table.h"
#include "proto/messages.h"

typedef struct gw_store_client_cfg {
    const char *endpoint;
    const char *name;           /* for people */
    int64_t connect_timeout_ns; /* create waits so long for the store; on_waiting is called once */
    void (*on_waiting)(void *user, const char *endpoint); /* may be NULL: "waiting for the store" */
    void *user;
} gw_store_client_cfg;

typedef struct gw_store_client gw_store_client;
MOE_MUST_CHECK moe_status gw_store_client_create(const gw_store_client_cfg *cfg,
                                                 gw_store_client **out, moe_err *err);
void gw_store_client_destroy(gw_store_client *c); /* accepts NULL; releases leases and the lock */

const wire_welcome *gw_store_client_welcome(const gw_store_client *c);
const moe_model_shape *gw_store_client_shape(const gw_store_client *c);
/* Dense region: NULL if absent. Payload of e is at base + e->off; borrowed until destroy. */
const moe_dense_entry *gw_store_client_dense(const gw_store_client *c, const char *name,
                                             moe_dense_kind kind, const void **out_payload);
const void *gw_store_client_slots(const gw_store_client *c); /* n_made of them may be touched */
/* Slots that have pages by now, the first ones: no other may be touched. Any thread. */
uint32_t gw_store_client_n_made(const gw_store_client *c);
/* All that the store means to make, so far, has pages. */
bool gw_store_client_is_made(const gw_store_client *c);
moe_worker_counters *gw_store_client_counters(const gw_store_client *c);
moe_block_counters *gw_store_client_block_counters(const gw_store_client *c, uint32_t flat_block);

typedef struct gw_lease {
    uint32_t index; /* lease word */
    uint32_t slot;
    const void *data; /* the expert's bytes; valid until release */
} gw_lease;
/* MOE_OK: leased. MOE_ERR_AGAIN: not resident (want it). MOE_ERR_LIMIT: no free lease word: release
 * one first. MOE_ERR_IO: a WANT of ours was answered by FAILED (its text), until it is wanted
 * again; a board that says FAILED from before is only MOE_ERR_AGAIN. MOE_ERR_DISCONNECTED: lost.
 * Updates the use record. Never blocks, sends nothing. */
MOE_MUST_CHECK moe_status gw_store_client_lease(gw_store_client *c, uint32_t expert, gw_lease *out,
                                                moe_err *err);
void gw_store_client_release(gw_store_client *c, const gw_lease *lease);
bool gw_store_client_is_resident(const gw_store_client *c, uint32_t expert); /* board READY now */
/* FAILED came since it was wanted, or all is lost: unless resident, a lease now says why. */
bool gw_store_client_refuses(const gw_store_client *c, uint32_t expert);

/* Send, never block; a full socket is not an error (wants are repeated by poll, predictions drop).
 * Wanting an expert that is wanted already sends nothing. The counters count experts, not messages.
 * cancel also forgets every want. */
void gw_store_client_predict(gw_store_client *c, uint64_t step, uint32_t distance,
                             const uint32_t *experts, uint32_t n);
void gw_store_client_want(gw_store_client *c, uint64_t step, const uint32_t *experts, uint32_t n);
void gw_store_client_cancel(gw_store_client *c, uint64_t step);
/* Handles incoming messages, repeats unanswered wants, reconnects. Cheap when idle (rate-limit the
 * socket look to every few tens of us). MOE_ERR_DISCONNECTED once `lost`. */
MOE_MUST_CHECK moe_status gw_store_client_poll(gw_store_client *c, int64_t now_ns, moe_err *err);
bool gw_store_client_store_alive(const gw_store_client *c); /* heard from it lately */

#endif
