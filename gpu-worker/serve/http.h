/* http.h - [libmicrohttpd] the worker's HTTP face: routes, guards, and who may wait for what.
 *
 *   POST /v1/completions   exchange.h
 *   GET  /v1/models        the one model served here
 *   GET  /health           200 when ready, else 503, with the reason; /health/live, /health/ready
 *   GET  /metrics          Prometheus text
 *
 * Guards: Host header (against DNS rebinding), bearer token when a key is set (not for /health),
 * body size, connections. Errors are {"error": {message, type, param, code}}.
 * A client that closes its connection, or only its sending half, gives its answer up.
 * Threads: one thread of libmicrohttpd handles all connections; one watcher thread notices clients
 * that went away while their answer was being computed. Engine callbacks wake connections.
 * Shutdown: gw_http_drain, then gw_http_destroy, then the engine.
 */
#ifndef GW_HTTP_H
#define GW_HTTP_H

#include <stdint.h>

#include "common/status.h"
#include "gpu-worker/engine/engine.h"
#include "gpu-worker/engine/tokenizer.h"

typedef struct gw_http_cfg {
    const char *listen;     /* "127.0.0.1:8080", "[::1]:0"; numeric host; port 0: any */
    const char *api_key;    /* NULL: no key asked */
    const char *allow_host; /* NULL or one more Host to accept */
    uint32_t max_connections;
    uint64_t max_body_bytes;
    uint32_t max_input_tokens, max_output_tokens;
    gw_engine *engine;             /* borrowed */
    const gw_tokenizer *tokenizer; /* borrowed; NULL: prompts as ids only, answers without text */
} gw_http_cfg;

typedef struct gw_http gw_http;
/* MOE_ERR_INVALID (address), MOE_ERR_BUSY (address in use), MOE_ERR_IO. */
MOE_MUST_CHECK moe_status gw_http_create(const gw_http_cfg *cfg, gw_http **out, moe_err *err);
uint16_t gw_http_port(const gw_http *h);
/* New completions and /health get 503 from now on; waits up to drain_ns for the open ones, then
 * cancels them. */
void gw_http_drain(gw_http *h, int64_t drain_ns);
/* Closes what is still open; waits until the engine has let go of it. Accepts NULL. */
void gw_http_destroy(gw_http *h);

#endif
