/* stat_client.h - one question to a store and its answer, with a time limit; for expert-stat.
 * Threads: one. */
#ifndef XS_STAT_CLIENT_H
#define XS_STAT_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/metrics.h"
#include "common/status.h"
#include "proto/messages.h"
#include "proto/socket.h"

typedef struct xs_stat_client {
    char endpoint[600];
    wire_dealer *dealer;   /* owned */
    wire_message question; /* scratch; large */
    wire_message answer;   /* scratch; large */
} xs_stat_client;

/* admin: the operators' socket of the store at `endpoint`. */
MOE_MUST_CHECK moe_status xs_stat_open(xs_stat_client *c, const char *endpoint, bool admin,
                                       moe_err *err);
void xs_stat_close(xs_stat_client *c); /* accepts a zeroed one */
/* flags: WIRE_STATS_*. *out_metrics is the caller's: moe_metrics_fini. MOE_ERR_DISCONNECTED: no
 * store answers. */
MOE_MUST_CHECK moe_status xs_stat_fetch(xs_stat_client *c, uint32_t flags, moe_metrics *out_metrics,
                                        moe_err *err);
/* More memory for the store: ram_bytes as its setting; out_text as below. */
MOE_MUST_CHECK moe_status xs_stat_resize(xs_stat_client *c, const char *ram_bytes, char *out_text,
                                         moe_err *err);
/* PREFETCH, PIN (pin = 1 or 0) or EVICT with n <= WIRE_MAX_EXPERTS, or DRAIN with n = 0. The
 * store's own words in out_text (WIRE_MAX_TEXT); its refusal is the returned status. */
MOE_MUST_CHECK moe_status xs_stat_order(xs_stat_client *c, wire_kind kind, uint32_t pin,
                                        const uint32_t *experts, uint32_t n, char *out_text,
                                        moe_err *err);

#endif
