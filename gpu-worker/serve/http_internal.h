/* http_internal.h - what http.c and exchange.c share; nobody else includes it. */
#ifndef GW_HTTP_INTERNAL_H
#define GW_HTTP_INTERNAL_H

#include <microhttpd.h>
#include <stdatomic.h>

#include "common/lock.h"
#include "common/text.h"
#include "gpu-worker/serve/completions.h"
#include "gpu-worker/serve/http.h"

typedef struct gw_exchange gw_exchange;

/* Membership of gw_http.open: the first member of every exchange; guarded by gw_http.mu. */
typedef struct gw_exchange_link {
    struct gw_exchange_link *next, *prev;
} gw_exchange_link;

struct gw_http {
    gw_http_cfg cfg;
    char *listen, *api_key, *allow_host; /* owned copies behind cfg */
    struct MHD_Daemon *daemon;           /* owned */
    uint16_t port;
    pthread_t watcher;
    bool watcher_started;
    gw_completion_limits limits;
    int64_t created_s; /* of this server, on the wall clock */
    _Atomic uint64_t next_id;
    _Atomic bool stopping;

    moe_mutex mu;
    gw_exchange_link *open; /* list of all exchanges; guarded by mu */
    uint32_t n_open;        /* guarded by mu */

    _Atomic uint64_t answered[6]; /* by status class: [2] 2xx, [4] 4xx, [5] 5xx */
    _Atomic uint64_t abandoned;   /* clients that went away */
    moe_histogram request_latency, first_token_latency;
};

/* Queues a complete response (Content-Type given) and counts it. */
enum MHD_Result gw_http_answer(gw_http *h, struct MHD_Connection *c, unsigned status,
                               const char *content_type, const moe_text *body);
/* The same for {"error": ...}; retry_after_s 0: no such header. */
enum MHD_Result gw_http_answer_error(gw_http *h, struct MHD_Connection *c, unsigned status,
                                     const char *message, const char *type, const char *param,
                                     unsigned retry_after_s);
void gw_http_count(gw_http *h, unsigned status);
void gw_http_enlist(gw_http *h, gw_exchange_link *x);
void gw_http_delist(gw_http *h, gw_exchange_link *x);

#endif
