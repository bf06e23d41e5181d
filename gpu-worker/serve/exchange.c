/* exchange.c - see exchange.h. */
#include "gpu-worker/serve/exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"

typedef struct choice {
    gw_exchange *x; /* borrowed: holds a reference while open */
    uint32_t index;
    uint64_t engine_id;
    int32_t *ids;     /* [max_tokens] owned */
    uint32_t n_ids;   /* guarded by mu */
    size_t sent;      /* bytes of text already streamed; HTTP thread */
    bool open;        /* the engine still owes on_done; guarded by mu */
    bool stopped;     /* a stop string ended it; guarded by mu */
    bool closed;      /* its finish_reason was streamed; HTTP thread */
    gw_finish finish; /* valid once !open */
    moe_err error;    /* valid when finish == GW_FINISH_ERROR */
} choice;

struct gw_exchange {
    gw_exchange_link link;             /* first member; guarded by gw_http.mu */
    gw_http *server;                   /* borrowed */
    struct MHD_Connection *connection; /* borrowed from libmicrohttpd until abandoned */
    _Atomic uint32_t refs;
    moe_text body;
    bool body_too_large, started;
    int64_t begin_ns;
    int64_t created_s; /* of the clock on the wall */
    char id[40];
    gw_completion_request request;
    choice *choices; /* [request.n_prompts] owned */
    uint64_t prompt_tokens;

    moe_mutex mu;
    uint32_t n_running;    /* choices with open; guarded by mu */
    bool suspended;        /* guarded by mu */
    bool gone;             /* guarded by mu */
    bool first_token_seen; /* guarded by mu */

    moe_text events; /* streamed bytes not yet taken; HTTP thread */
    size_t events_off;
    bool stream_ended;
};

gw_exchange *gw_exchange_create(gw_http *server, struct MHD_Connection *connection)
{
    gw_exchange *x = calloc(1, sizeof *x);
    if (x == NULL) {
        return NULL;
    }
    x->server = server;
    x->connection = connection;
    x->refs = 1;
    x->begin_ns = moe_now_ns();
    x->created_s = (int64_t)time(NULL);
    moe_mutex_init(&x->mu);
    moe_text_init(&x->body);
    moe_text_init(&x->events);
    snprintf(x->id, sizeof x->id, "cmpl-%llx-%llu", (unsigned long long)server->created_s,
             (unsigned long long)atomic_fetch_add(&server->next_id, 1));
    gw_http_enlist(server, &x->link);
    return x;
}

void gw_exchange_unref(gw_exchange *x)
{
    if (atomic_fetch_sub(&x->refs, 1) != 1) {
        return;
    }
    gw_http_delist(x->server, &x->link);
    for (uint32_t i = 0; x->choices != NULL && i < x->request.n_prompts; i++) {
        free(x->choices[i].ids);
    }
    free(x->choices);
    gw_completion_request_fini(&x->request);
    moe_text_fini(&x->body);
    moe_text_fini(&x->events);
    moe_mutex_fini(&x->mu);
    free(x);
}

void gw_exchange_receive(gw_exchange *x, const char *data, size_t bytes)
{
    if (x->body_too_large || x->body.len + bytes > x->server->cfg.max_body_bytes) {
        x->body_too_large = true;
        return;
    }
    moe_text_append(&x->body, data, bytes);
}

/* ---- engine thread ---- */

static void resume_locked(gw_exchange *x)
{
    if (x->suspended) {
        x->suspended = false;
        MHD_resume_connection(x->connection);
    }
}

/* True when the text so far holds a stop string. */
static bool reached_stop(const gw_exchange *x, const choice *c, uint32_t n_ids)
{
    char *text = NULL;
    if (x->request.n_stops == 0 || x->server->cfg.tokenizer == NULL ||
        gw_tokenizer_decode(x->server->cfg.tokenizer, c->ids, n_ids, &text, NULL) != MOE_OK) {
        return false;
    }
    size_t len = strlen(text);
    bool found = gw_stop_find(&x->request, text, len) < len;
    free(text);
    return found;
}

static void on_token(void *user, int32_t token, uint32_t index)
{
    choice *c = user;
    gw_exchange *x = c->x;
    (void)index;
    moe_mutex_lock(&x->mu);
    if (!c->stopped && c->n_ids < x->request.max_tokens) {
        if (!x->first_token_seen) {
            x->first_token_seen = true;
            moe_histogram_add_ns(&x->server->first_token_latency, moe_now_ns() - x->begin_ns);
        }
        c->ids[c->n_ids++] = token;
        if (reached_stop(x, c, c->n_ids)) {
            c->stopped = true;
            gw_engine_cancel(x->server->cfg.engine, c->engine_id);
        }
        if (x->request.stream) {
            resume_locked(x);
        }
    }
    moe_mutex_unlock(&x->mu);
}

static void on_done(void *user, gw_finish finish, const moe_err *err)
{
    choice *c = user;
    gw_exchange *x = c->x;
    moe_mutex_lock(&x->mu);
    c->open = false;
    c->finish = c->stopped ? GW_FINISH_STOP : finish;
    if (c->finish == GW_FINISH_ERROR && err != NULL) {
        c->error = *err;
    }
    x->n_running--;
    if (x->n_running == 0 || x->request.stream) {
        resume_locked(x);
    }
    moe_mutex_unlock(&x->mu);
    gw_exchange_unref(x);
}

/* ---- any thread ---- */

static void cancel_locked(gw_exchange *x)
{
    for (uint32_t i = 0; x->choices != NULL && i < x->request.n_prompts; i++) {
        if (x->choices[i].open) {
            gw_engine_cancel(x->server->cfg.engine, x->choices[i].engine_id);
        }
    }
}

void gw_exchange_cancel(gw_exchange *x)
{
    moe_mutex_lock(&x->mu);
    cancel_locked(x);
    moe_mutex_unlock(&x->mu);
}

void gw_exchange_abandon(gw_exchange *x)
{
    moe_mutex_lock(&x->mu);
    x->gone = true;
    cancel_locked(x);
    resume_locked(x);
    moe_mutex_unlock(&x->mu);
}

int gw_exchange_suspended_fd(gw_exchange *x)
{
    int fd = -1;
    moe_mutex_lock(&x->mu);
    if (x->suspended && !x->gone) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        fd = info != NULL ? info->connect_fd : -1;
    }
    moe_mutex_unlock(&x->mu);
    return fd;
}

/* ---- HTTP thread ---- */

static bool is_gone(gw_exchange *x)
{
    moe_mutex_lock(&x->mu);
    bool gone = x->gone;
    moe_mutex_unlock(&x->mu);
    return gone;
}

static enum MHD_Result answer_parse_error(gw_exchange *x, const moe_err *err, const char *param)
{
    bool ours = err->status == MOE_ERR_NO_MEMORY;
    unsigned status = ours ? 500 : err->status == MOE_ERR_NOT_FOUND ? 404 : 400;
    return gw_http_answer_error(x->server, x->connection, status, err->text,
                                ours ? "server_error" : "invalid_request_error", param, 0);
}

static enum MHD_Result answer_submit_error(gw_exchange *x, const moe_err *err)
{
    if (err->status == MOE_ERR_INVALID || err->status == MOE_ERR_LIMIT) {
        return answer_parse_error(x, err, "prompt");
    }
    return gw_http_answer_error(x->server, x->connection, 503, err->text, "server_error", NULL, 1);
}

static moe_status submit_choice(gw_exchange *x, uint32_t i, moe_err *err)
{
    choice *c = &x->choices[i];
    *c = (choice){.x = x, .index = i};
    c->ids = malloc(x->request.max_tokens * sizeof *c->ids);
    if (c->ids == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "an answer of %u tokens", x->request.max_tokens);
    }
    gw_request r = {
        .input_ids = x->request.prompt[i].ids,
        .n_input = x->request.prompt[i].n,
        .max_tokens = x->request.max_tokens,
        .temperature = (float)x->request.temperature,
        .top_p = (float)x->request.top_p,
        .seed = x->request.seed + i,
        .on_token = on_token,
        .on_done = on_done,
        .user = c,
    };
    /* The lock keeps callbacks out until engine_id is known. */
    moe_mutex_lock(&x->mu);
    moe_status st = gw_engine_submit(x->server->cfg.engine, &r, &c->engine_id, err);
    if (st == MOE_OK) {
        c->open = true;
        x->n_running++;
        atomic_fetch_add(&x->refs, 1);
    }
    moe_mutex_unlock(&x->mu);
    x->prompt_tokens += r.n_input;
    return st;
}

static const char *finish_reason(const choice *c)
{
    return c->finish == GW_FINISH_LENGTH ? "length" : "stop";
}

/* Text of a choice, cut at a stop string; owned by the caller; NULL when out of memory. */
static char *choice_text(const gw_exchange *x, const choice *c, uint32_t n_ids)
{
    char *text = NULL;
    if (x->server->cfg.tokenizer == NULL) {
        return calloc(1, 1);
    }
    if (gw_tokenizer_decode(x->server->cfg.tokenizer, c->ids, n_ids, &text, NULL) != MOE_OK) {
        return NULL;
    }
    text[gw_stop_find(&x->request, text, strlen(text))] = '\0';
    return text;
}

static gw_usage usage_of(const gw_exchange *x)
{
    gw_usage u = {.prompt_tokens = x->prompt_tokens};
    for (uint32_t i = 0; i < x->request.n_prompts; i++) {
        u.completion_tokens += x->choices[i].n_ids;
    }
    return u;
}

static enum MHD_Result answer_whole(gw_exchange *x)
{
    for (uint32_t i = 0; i < x->request.n_prompts; i++) {
        if (x->choices[i].finish == GW_FINISH_ERROR) {
            return gw_http_answer_error(x->server, x->connection, 503, x->choices[i].error.text,
                                        "server_error", NULL, 1);
        }
    }
    gw_choice_text texts[GW_MAX_PROMPTS];
    char *owned[GW_MAX_PROMPTS] = {NULL};
    bool complete = true;
    for (uint32_t i = 0; i < x->request.n_prompts; i++) {
        const choice *c = &x->choices[i];
        owned[i] = choice_text(x, c, c->n_ids);
        complete = complete && owned[i] != NULL;
        texts[i] = (gw_choice_text){owned[i], owned[i] != NULL ? strlen(owned[i]) : 0,
                                    finish_reason(c), i};
    }
    moe_text body;
    moe_text_init(&body);
    gw_usage usage = usage_of(x);
    if (complete) {
        gw_completion_write(&body, x->id, x->created_s, x->server->limits.model_name, texts,
                            x->request.n_prompts, &usage);
        moe_text_printf(&body, "\n");
    }
    enum MHD_Result rc =
        complete ? gw_http_answer(x->server, x->connection, 200, "application/json", &body)
                 : gw_http_answer_error(x->server, x->connection, 500, "out of memory",
                                        "server_error", NULL, 0);
    moe_text_fini(&body);
    for (uint32_t i = 0; i < x->request.n_prompts; i++) {
        free(owned[i]);
    }
    return rc;
}

/* ---- streaming ---- */

static void write_event(gw_exchange *x, const gw_choice_text *choices, uint32_t n,
                        const gw_usage *usage)
{
    moe_text_printf(&x->events, "data: ");
    gw_completion_write(&x->events, x->id, x->created_s, x->server->limits.model_name, choices, n,
                        usage);
    moe_text_printf(&x->events, "\n\n");
}

/* What this choice has to say since last time: a piece of text, then its end. */
static void stream_choice(gw_exchange *x, choice *c)
{
    moe_mutex_lock(&x->mu);
    uint32_t n_ids = c->n_ids;
    bool ended = !c->open;
    moe_mutex_unlock(&x->mu);
    if (ended && c->finish == GW_FINISH_ERROR) {
        moe_text_printf(&x->events, "data: ");
        gw_error_write(&x->events, c->error.text, "server_error", NULL, NULL);
        moe_text_printf(&x->events, "\n");
        c->closed = true;
        return;
    }
    char *text = choice_text(x, c, n_ids);
    if (text == NULL) {
        x->events.failed = true;
        return;
    }
    size_t len = strlen(text);
    size_t upto = ended ? len : len - gw_stop_holdback(&x->request, text, len);
    if (upto > c->sent || ended) {
        size_t from = c->sent < upto ? c->sent : upto;
        gw_choice_text piece = {text + from, upto - from, ended ? finish_reason(c) : NULL,
                                c->index};
        write_event(x, &piece, 1, NULL);
        c->sent = upto;
    }
    c->closed = ended;
    free(text);
}

static void produce_events(gw_exchange *x)
{
    bool all_closed = true;
    x->events.len = 0;
    x->events_off = 0;
    for (uint32_t i = 0; i < x->request.n_prompts; i++) {
        if (!x->choices[i].closed) {
            stream_choice(x, &x->choices[i]);
        }
        all_closed = all_closed && x->choices[i].closed;
    }
    if (all_closed) {
        if (x->request.include_usage) {
            gw_usage usage = usage_of(x);
            write_event(x, NULL, 0, &usage);
        }
        moe_text_printf(&x->events, "data: [DONE]\n\n");
        x->stream_ended = true;
    }
}

/* True when there is nothing to say yet: every choice still runs and shows no new id. */
static bool nothing_new_locked(const gw_exchange *x, const uint32_t *seen_ids)
{
    for (uint32_t i = 0; i < x->request.n_prompts; i++) {
        const choice *c = &x->choices[i];
        if (!c->closed && (!c->open || c->n_ids != seen_ids[i])) {
            return false;
        }
    }
    return true;
}

static ssize_t read_stream(void *user, uint64_t pos, char *buf, size_t max)
{
    gw_exchange *x = user;
    (void)pos;
    if (x->events_off == x->events.len) {
        if (is_gone(x)) {
            return MHD_CONTENT_READER_END_WITH_ERROR;
        }
        if (x->stream_ended) {
            return MHD_CONTENT_READER_END_OF_STREAM;
        }
        uint32_t seen_ids[GW_MAX_PROMPTS];
        moe_mutex_lock(&x->mu);
        for (uint32_t i = 0; i < x->request.n_prompts; i++) {
            seen_ids[i] = x->choices[i].n_ids;
        }
        moe_mutex_unlock(&x->mu);
        produce_events(x);
        if (x->events.failed) {
            return MHD_CONTENT_READER_END_WITH_ERROR;
        }
        if (x->events.len == 0) {
            moe_mutex_lock(&x->mu);
            if (!x->gone && nothing_new_locked(x, seen_ids)) {
                x->suspended = true;
                MHD_suspend_connection(x->connection);
            }
            moe_mutex_unlock(&x->mu);
            return 0;
        }
    }
    size_t n = x->events.len - x->events_off;
    n = n < max ? n : max;
    memcpy(buf, x->events.data + x->events_off, n);
    x->events_off += n;
    return (ssize_t)n;
}

static enum MHD_Result answer_stream(gw_exchange *x)
{
    struct MHD_Response *response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, read_stream, x, NULL);
    if (response == NULL) {
        return MHD_NO;
    }
    MHD_add_response_header(response, "Content-Type", "text/event-stream; charset=utf-8");
    MHD_add_response_header(response, "Cache-Control", "no-store");
    enum MHD_Result rc = MHD_queue_response(x->connection, 200, response);
    MHD_destroy_response(response);
    gw_http_count(x->server, 200);
    return rc;
}

/* Parses the body and submits one sequence per prompt. *out_answered: an error was queued. */
static enum MHD_Result start(gw_exchange *x, bool *out_answered)
{
    moe_err err;
    const char *param = NULL;
    *out_answered = true;
    if (x->body_too_large) {
        char text[96];
        snprintf(text, sizeof text, "the body is larger than %llu bytes",
                 (unsigned long long)x->server->cfg.max_body_bytes);
        return gw_http_answer_error(x->server, x->connection, 413, text, "invalid_request_error",
                                    NULL, 0);
    }
    moe_status st = moe_text_finish(&x->body, &err);
    if (st == MOE_OK) {
        st = gw_completion_parse(x->body.data != NULL ? x->body.data : "", x->body.len,
                                 &x->server->limits, &x->request, &param, &err);
    }
    moe_text_fini(&x->body);
    if (st != MOE_OK) {
        return answer_parse_error(x, &err, param);
    }
    x->choices = calloc(x->request.n_prompts, sizeof *x->choices);
    if (x->choices == NULL) {
        return MHD_NO;
    }
    for (uint32_t i = 0; i < x->request.n_prompts; i++) {
        st = submit_choice(x, i, &err);
        if (st != MOE_OK) {
            gw_exchange_cancel(x);
            return answer_submit_error(x, &err);
        }
    }
    *out_answered = false;
    return MHD_YES;
}

enum MHD_Result gw_exchange_advance(gw_exchange *x)
{
    if (is_gone(x)) {
        return MHD_NO;
    }
    if (!x->started) {
        bool answered = false;
        x->started = true;
        enum MHD_Result rc = start(x, &answered);
        if (answered || rc == MHD_NO) {
            return rc;
        }
        if (x->request.stream) {
            return answer_stream(x);
        }
    }
    moe_mutex_lock(&x->mu);
    bool gone = x->gone;
    bool wait = x->n_running > 0 && !gone;
    if (wait) {
        x->suspended = true;
        MHD_suspend_connection(x->connection);
    }
    moe_mutex_unlock(&x->mu);
    if (wait || gone) {
        return wait ? MHD_YES : MHD_NO;
    }
    moe_histogram_add_ns(&x->server->request_latency, moe_now_ns() - x->begin_ns);
    return answer_whole(x);
}
