/* http.c - see http.h. Routing, guards and the watcher; what a completion does is exchange.c. */
#include "gpu-worker/serve/http.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>

#include "common/clock.h"
#include "common/metrics.h"
#include "gpu-worker/serve/exchange.h"
#include "gpu-worker/serve/http_internal.h"

enum {
    IDLE_TIMEOUT_S = 60, /* a connection on which nothing moves */
    WATCH_MS = 50,       /* how soon a client that went away is noticed */
    POLL_MS = 10,
    CANCEL_S = 2 /* for cancelled sequences to end and their clients to be told */
};
#define COMPLETIONS "/v1/completions"

/* ---- answers ---- */

void gw_http_count(gw_http *h, unsigned status)
{
    atomic_fetch_add_explicit(&h->answered[status / 100 < 6 ? status / 100 : 5], 1,
                              memory_order_relaxed);
}

/* header, value: one more header, or NULL. */
static enum MHD_Result queue(gw_http *h, struct MHD_Connection *c, unsigned status,
                             const char *content_type, const moe_text *body, const char *header,
                             const char *value)
{
    if (moe_text_finish(body, NULL) != MOE_OK) {
        return MHD_NO;
    }
    struct MHD_Response *r = MHD_create_response_from_buffer(
        body->len, body->data != NULL ? body->data : (void *)"", MHD_RESPMEM_MUST_COPY);
    if (r == NULL) {
        return MHD_NO;
    }
    MHD_add_response_header(r, "Content-Type", content_type);
    if (header != NULL) {
        MHD_add_response_header(r, header, value);
    }
    enum MHD_Result rc = MHD_queue_response(c, status, r);
    MHD_destroy_response(r);
    gw_http_count(h, status);
    return rc;
}

enum MHD_Result gw_http_answer(gw_http *h, struct MHD_Connection *c, unsigned status,
                               const char *content_type, const moe_text *body)
{
    return queue(h, c, status, content_type, body, NULL, NULL);
}

static enum MHD_Result error_with(gw_http *h, struct MHD_Connection *c, unsigned status,
                                  const char *message, const char *type, const char *param,
                                  const char *header, const char *value)
{
    moe_text body;
    moe_text_init(&body);
    gw_error_write(&body, message, type, param, NULL);
    enum MHD_Result rc = queue(h, c, status, "application/json", &body, header, value);
    moe_text_fini(&body);
    return rc;
}

enum MHD_Result gw_http_answer_error(gw_http *h, struct MHD_Connection *c, unsigned status,
                                     const char *message, const char *type, const char *param,
                                     unsigned retry_after_s)
{
    char seconds[16];
    snprintf(seconds, sizeof seconds, "%u", retry_after_s);
    return error_with(h, c, status, message, type, param, retry_after_s > 0 ? "Retry-After" : NULL,
                      seconds);
}

/* ---- guards ---- */

/* Host without its port equals name? */
static bool host_is(const char *host, const char *name)
{
    size_t n = strlen(name);
    return strncasecmp(host, name, n) == 0 && (host[n] == '\0' || host[n] == ':');
}

static bool host_allowed(const gw_http *h, const char *host)
{
    char own[256];
    snprintf(own, sizeof own, "%s", h->cfg.listen);
    char *port = strrchr(own, ':');
    if (port != NULL) {
        *port = '\0';
    }
    return host_is(host, "localhost") || host_is(host, "127.0.0.1") || host_is(host, "[::1]") ||
           host_is(host, own) || (h->cfg.allow_host != NULL && host_is(host, h->cfg.allow_host));
}

/* Takes as long for a wrong first byte as for a wrong last one. */
static bool key_matches(const char *key, const char *given)
{
    size_t n = strlen(key), m = strlen(given);
    unsigned differs = n != m;
    for (size_t i = 0; i < n; i++) {
        differs |= (unsigned char)key[i] ^ (unsigned char)given[i < m ? i : 0];
    }
    return differs == 0;
}

/* 0 if the request may go on, else the status of the error in *out_message. */
static unsigned guard(const gw_http *h, struct MHD_Connection *c, const char *url,
                      const char **out_message)
{
    const char *host = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Host");
    if (host == NULL || !host_allowed(h, host)) {
        *out_message = "the Host header does not name this server; --allow-host admits one more";
        return 403;
    }
    if (h->cfg.api_key != NULL && strncmp(url, "/health", 7) != 0) {
        const char *auth = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Authorization");
        if (auth == NULL || strncasecmp(auth, "Bearer ", 7) != 0 ||
            !key_matches(h->cfg.api_key, auth + 7)) {
            *out_message = "missing or wrong API key: send 'Authorization: Bearer KEY'";
            return 401;
        }
    }
    return 0;
}

/* ---- routes ---- */

static enum MHD_Result answer_models(gw_http *h, struct MHD_Connection *c)
{
    moe_text body;
    moe_text_init(&body);
    moe_text_printf(&body, "{\"object\":\"list\",\"data\":[{\"id\":");
    moe_text_json_string(&body, h->limits.model_name, strlen(h->limits.model_name));
    moe_text_printf(&body, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"pregate\"}]}\n",
                    (long long)h->created_s);
    enum MHD_Result rc = gw_http_answer(h, c, 200, "application/json", &body);
    moe_text_fini(&body);
    return rc;
}

static enum MHD_Result answer_health(gw_http *h, struct MHD_Connection *c, bool live_only)
{
    gw_engine_state state;
    gw_engine_get_state(h->cfg.engine, &state);
    bool stopping = atomic_load(&h->stopping);
    bool ready = state.ready && !stopping;
    const char *note = stopping ? "stopping" : state.note;
    moe_text body;
    moe_text_init(&body);
    moe_text_printf(&body, "{\"live\":true,\"ready\":%s,\"running\":%u,\"waiting\":%u,\"note\":",
                    ready ? "true" : "false", state.running, state.waiting);
    moe_text_json_string(&body, note, strlen(note));
    moe_text_printf(&body, "}\n");
    enum MHD_Result rc =
        gw_http_answer(h, c, ready || live_only ? 200 : 503, "application/json", &body);
    moe_text_fini(&body);
    return rc;
}

static void own_metrics(gw_http *h, moe_metrics *m)
{
    static const char *const classes[6] = {NULL, NULL, "2xx", NULL, "4xx", "5xx"};
    for (int i = 2; i < 6; i++) {
        if (classes[i] != NULL) {
            moe_metrics_add(m, MOE_METRIC_COUNTER, "pregate_http_responses_total",
                            "answers by status class", (double)atomic_load(&h->answered[i]),
                            "code=\"%s\"", classes[i]);
        }
    }
    moe_mutex_lock(&h->mu);
    uint32_t n_open = h->n_open;
    moe_mutex_unlock(&h->mu);
    moe_metrics_add(m, MOE_METRIC_GAUGE, "pregate_http_open_requests",
                    "completions being received or answered", n_open, "%s", "");
    moe_metrics_add(m, MOE_METRIC_COUNTER, "pregate_http_abandoned_total",
                    "clients that went away before their answer",
                    (double)atomic_load(&h->abandoned), "%s", "");
    moe_metrics_add_histogram(m, "pregate_http_request_seconds",
                              "first header to whole answer, not streamed", &h->request_latency,
                              "%s", "");
    moe_metrics_add_histogram(m, "pregate_http_first_token_seconds", "first header to first token",
                              &h->first_token_latency, "%s", "");
}

static enum MHD_Result answer_metrics(gw_http *h, struct MHD_Connection *c)
{
    moe_metrics m;
    moe_text body;
    moe_metrics_init(&m);
    moe_text_init(&body);
    gw_engine_metrics(h->cfg.engine, &m);
    own_metrics(h, &m);
    moe_err err;
    enum MHD_Result rc = MHD_NO;
    if (moe_metrics_prometheus(&m, &body, &err) == MOE_OK) {
        rc = gw_http_answer(h, c, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
    }
    moe_text_fini(&body);
    moe_metrics_fini(&m);
    return rc;
}

static enum MHD_Result answer_get(gw_http *h, struct MHD_Connection *c, const char *url)
{
    if (strcmp(url, "/v1/models") == 0) {
        return answer_models(h, c);
    }
    if (strcmp(url, "/health") == 0 || strcmp(url, "/health/ready") == 0) {
        return answer_health(h, c, false);
    }
    if (strcmp(url, "/health/live") == 0) {
        return answer_health(h, c, true);
    }
    if (strcmp(url, "/metrics") == 0) {
        return answer_metrics(h, c);
    }
    return gw_http_answer_error(
        h, c, 404, "no such path; there are " COMPLETIONS ", /v1/models, /health, /metrics",
        "invalid_request_error", NULL, 0);
}

static bool is_get(const char *method)
{
    return strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
}

/* First call of a request: everything that can be said without the body. */
static enum MHD_Result begin(gw_http *h, struct MHD_Connection *c, const char *url,
                             const char *method, void **state)
{
    const char *message = NULL;
    unsigned refused = guard(h, c, url, &message);
    if (refused != 0) {
        return error_with(h, c, refused, message, "invalid_request_error", NULL,
                          refused == 401 ? "WWW-Authenticate" : NULL, "Bearer");
    }
    bool completions = strcmp(url, COMPLETIONS) == 0;
    if (completions ? strcmp(method, "POST") != 0 : !is_get(method)) {
        return error_with(h, c, 405, "method not allowed here", "invalid_request_error", NULL,
                          "Allow", completions ? "POST" : "GET, HEAD");
    }
    if (!completions) {
        return answer_get(h, c, url);
    }
    if (atomic_load(&h->stopping)) {
        return gw_http_answer_error(h, c, 503, "the server is stopping", "server_error", NULL, 1);
    }
    *state = gw_exchange_create(h, c);
    return *state != NULL ? MHD_YES : MHD_NO;
}

static enum MHD_Result handle(void *user, struct MHD_Connection *c, const char *url,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_bytes, void **state)
{
    gw_http *h = user;
    (void)version;
    gw_exchange *x = *state;
    if (x == NULL) {
        return begin(h, c, url, method, state);
    }
    if (*upload_bytes > 0) {
        gw_exchange_receive(x, upload, *upload_bytes);
        *upload_bytes = 0;
        return MHD_YES;
    }
    return gw_exchange_advance(x);
}

static void completed(void *user, struct MHD_Connection *c, void **state,
                      enum MHD_RequestTerminationCode why)
{
    gw_http *h = user;
    (void)c;
    gw_exchange *x = *state;
    if (x == NULL) {
        return;
    }
    *state = NULL;
    if (why != MHD_REQUEST_TERMINATED_COMPLETED_OK) {
        atomic_fetch_add_explicit(&h->abandoned, 1, memory_order_relaxed);
    }
    gw_exchange_abandon(x);
    gw_exchange_unref(x);
}

/* ---- open exchanges and the watcher ---- */

void gw_http_enlist(gw_http *h, gw_exchange_link *x)
{
    moe_mutex_lock(&h->mu);
    x->prev = NULL;
    x->next = h->open;
    if (h->open != NULL) {
        h->open->prev = x;
    }
    h->open = x;
    h->n_open++;
    moe_mutex_unlock(&h->mu);
}

void gw_http_delist(gw_http *h, gw_exchange_link *x)
{
    moe_mutex_lock(&h->mu);
    if (x->prev != NULL) {
        x->prev->next = x->next;
    } else {
        h->open = x->next;
    }
    if (x->next != NULL) {
        x->next->prev = x->prev;
    }
    h->n_open--;
    moe_mutex_unlock(&h->mu);
}

/* The list lock keeps exchanges alive meanwhile: they leave the list before they are freed. */
static void for_each_open(gw_http *h, void (*visit)(gw_exchange *x))
{
    moe_mutex_lock(&h->mu);
    for (gw_exchange_link *link = h->open; link != NULL; link = link->next) {
        visit((gw_exchange *)(void *)link);
    }
    moe_mutex_unlock(&h->mu);
}

/* libmicrohttpd does not look at suspended connections: we do. */
static void abandon_if_closed(gw_exchange *x)
{
    struct pollfd p = {.fd = gw_exchange_suspended_fd(x), .events = POLLRDHUP};
    if (p.fd >= 0 && poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0) {
        gw_exchange_abandon(x);
    }
}

static void *watch(void *user)
{
    gw_http *h = user;
    while (!atomic_load(&h->stopping)) {
        moe_sleep_ns(WATCH_MS * MOE_NS_PER_MS);
        for_each_open(h, abandon_if_closed);
    }
    return NULL;
}

/* ---- life ---- */

static moe_status resolve(const char *listen, struct sockaddr_storage *out, moe_err *err)
{
    char host[256];
    snprintf(host, sizeof host, "%s", listen);
    char *colon = strrchr(host, ':');
    if (colon == NULL || strlen(listen) >= sizeof host) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "--http %.100s is not HOST:PORT", listen);
    }
    *colon = '\0';
    char *name = host;
    size_t len = strlen(name);
    if (len >= 2 && name[0] == '[' && name[len - 1] == ']') {
        name[len - 1] = '\0';
        name++;
    }
    /* getaddrinfo takes 70000 for 4464. */
    size_t digits = strspn(colon + 1, "0123456789");
    if (colon[1] == '\0' || digits > 5 || strtoul(colon + 1, NULL, 10) > UINT16_MAX) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "--http %.100s: a port is a number up to %u", listen,
                        (unsigned)UINT16_MAX);
    }
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
                             .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    int rc =
        getaddrinfo(strcmp(name, "localhost") == 0 ? "127.0.0.1" : name, colon + 1, &hints, &found);
    if (rc != 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "--http %.100s: %s; give a numeric HOST:PORT", listen,
                        gai_strerror(rc));
    }
    memset(out, 0, sizeof *out);
    memcpy(out, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return MOE_OK;
}

static moe_status start_daemon(gw_http *h, moe_err *err)
{
    struct sockaddr_storage address;
    moe_status st = resolve(h->cfg.listen, &address, err);
    if (st != MOE_OK) {
        return st;
    }
    /* Not epoll: there an end of file that arrives with data goes unseen until the idle timeout. */
    unsigned flags = MHD_USE_POLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC;
    if (address.ss_family == AF_INET6) {
        flags |= MHD_USE_IPv6;
    }
    errno = 0;
    h->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, handle, h, MHD_OPTION_SOCK_ADDR, (struct sockaddr *)&address,
        MHD_OPTION_CONNECTION_LIMIT, h->cfg.max_connections, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)IDLE_TIMEOUT_S, MHD_OPTION_NOTIFY_COMPLETED, completed, h, MHD_OPTION_END);
    if (h->daemon == NULL) {
        int code = errno;
        return MOE_FAIL_NATIVE(err, code == EADDRINUSE ? MOE_ERR_BUSY : MOE_ERR_IO, MOE_LAYER_ERRNO,
                               code, "cannot listen on %.100s; --http names another address",
                               h->cfg.listen);
    }
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_BIND_PORT);
    h->port = info != NULL ? info->port : 0;
    return MOE_OK;
}

moe_status gw_http_create(const gw_http_cfg *cfg, gw_http **out, moe_err *err)
{
    gw_http *h = calloc(1, sizeof *h);
    if (h == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "the HTTP server");
    }
    moe_mutex_init(&h->mu);
    h->cfg = *cfg;
    h->cfg.listen = h->listen = strdup(cfg->listen);
    h->cfg.api_key = h->api_key = cfg->api_key != NULL ? strdup(cfg->api_key) : NULL;
    h->cfg.allow_host = h->allow_host = cfg->allow_host != NULL ? strdup(cfg->allow_host) : NULL;
    h->created_s = (int64_t)time(NULL);
    h->limits = (gw_completion_limits){
        .tokenizer = cfg->tokenizer,
        .model_name = gw_engine_model_name(cfg->engine),
        .vocab = gw_engine_shape(cfg->engine)->vocab,
        .max_input_tokens = cfg->max_input_tokens,
        .max_output_tokens = cfg->max_output_tokens,
    };
    moe_status st = MOE_OK;
    if (h->listen == NULL || (cfg->api_key != NULL && h->api_key == NULL) ||
        (cfg->allow_host != NULL && h->allow_host == NULL)) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "the HTTP server");
    }
    if (st == MOE_OK) {
        st = start_daemon(h, err);
    }
    if (st == MOE_OK && pthread_create(&h->watcher, NULL, watch, h) != 0) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a thread of the HTTP server");
    }
    if (st != MOE_OK) {
        gw_http_destroy(h);
        return st;
    }
    h->watcher_started = true;
    *out = h;
    return MOE_OK;
}

uint16_t gw_http_port(const gw_http *h)
{
    return h->port;
}

static void wait_until_idle(gw_http *h, int64_t at_most_ns)
{
    int64_t deadline_ns = moe_now_ns() + at_most_ns;
    bool idle = false;
    while (!idle && moe_now_ns() < deadline_ns) {
        moe_mutex_lock(&h->mu);
        idle = h->n_open == 0;
        moe_mutex_unlock(&h->mu);
        if (!idle) {
            moe_sleep_ns(POLL_MS * MOE_NS_PER_MS);
        }
    }
}

void gw_http_drain(gw_http *h, int64_t drain_ns)
{
    atomic_store(&h->stopping, true);
    wait_until_idle(h, drain_ns);
    for_each_open(h, gw_exchange_cancel);
    wait_until_idle(h, CANCEL_S * MOE_NS_PER_S);
}

void gw_http_destroy(gw_http *h)
{
    if (h == NULL) {
        return;
    }
    atomic_store(&h->stopping, true);
    if (h->watcher_started) {
        pthread_join(h->watcher, NULL);
    }
    if (h->daemon != NULL) {
        for_each_open(h, gw_exchange_abandon); /* it may not be stopped with suspended ones */
        MHD_stop_daemon(h->daemon);
        wait_until_idle(h, INT64_MAX / 2); /* for the engine's references */
    }
    free(h->listen);
    free(h->api_key);
    free(h->allow_host);
    moe_mutex_fini(&h->mu);
    free(h);
}
