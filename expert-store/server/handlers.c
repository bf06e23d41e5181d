/* handlers.c - see handlers.h. */
#include "expert-store/server/handlers.h"

#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "expert-store/server/memory_budget.h"
#include "expert-store/server/store_metrics.h"

typedef struct origin { /* where a message came from, and so where its answer goes */
    xs_channel channel;
    const wire_peer *peer; /* borrowed */
    int64_t now_ns;
} origin;

/* ---- replies ---- */

static void send_out(xs_store *s, xs_channel channel, const wire_peer *peer)
{
    wire_buffer buffer = {0};
    s->out.h.version = WIRE_VERSION;
    s->out.h.boot = s->boot;
    moe_status st = wire_encode(&s->out, &buffer, NULL);
    if (st == MOE_OK) {
        wire_router *router = channel == XS_CHANNEL_ADMIN ? s->admin : s->router;
        st = wire_router_send(router, peer, buffer.data, buffer.bytes, NULL);
    }
    s->counters.replies_dropped += st != MOE_OK;
    s->last_send_ns = moe_now_ns();
    wire_buffer_fini(&buffer);
}

/* out.h of an answer repeats the step of its question. */
static void begin_reply(xs_store *s, wire_kind kind, uint64_t step)
{
    s->out.h = (wire_header){.kind = (uint32_t)kind, .step = step};
}

static void reply_outcome(xs_store *s, const origin *from, wire_kind kind, moe_status status,
                          const char *text)
{
    begin_reply(s, kind, s->in.h.step);
    s->out.outcome.status = (uint32_t)status;
    snprintf(s->out.outcome.text, sizeof s->out.outcome.text, "%s", text);
    send_out(s, from->channel, from->peer);
}

static void refuse(xs_store *s, const origin *from, const moe_err *err)
{
    uint64_t suppressed = 0;
    if (xs_log_limit_pass(&s->bad_message_log, from->now_ns, &suppressed)) {
        moe_log(MOE_LOG_WARN, "store", "message_refused",
                "kind=%s pid=%u suppressed=%llu text=\"%s\"", wire_kind_name(s->in.h.kind),
                from->peer->pid, (unsigned long long)suppressed, err->text);
    }
    reply_outcome(s, from, WIRE_ERROR, err->status, err->text);
}

static void copy_experts(uint32_t *to, uint32_t *to_n, const uint32_t *experts, uint32_t n)
{
    MOE_ASSERT(n <= WIRE_MAX_EXPERTS);
    memcpy(to, experts, n * sizeof *to);
    *to_n = n;
}

void xs_reply_ready(xs_store *s, uint32_t place, uint64_t step, const uint32_t *experts, uint32_t n)
{
    const xs_worker *w = xs_workers_at(s->workers, place);
    if (n == 0 || w->peer.id_bytes == 0) {
        return;
    }
    begin_reply(s, WIRE_READY, step);
    s->out.experts.distance = 0;
    copy_experts(s->out.experts.experts, &s->out.experts.n, experts, n);
    send_out(s, XS_CHANNEL_WORKERS, &w->peer);
}

void xs_reply_failed(xs_store *s, uint32_t place, const wire_failed *what)
{
    const xs_worker *w = xs_workers_at(s->workers, place);
    if (what->n == 0 || w->peer.id_bytes == 0) {
        return;
    }
    begin_reply(s, WIRE_FAILED, what->h.step);
    s->out.failed.status = what->status;
    memcpy(s->out.failed.text, what->text, sizeof s->out.failed.text);
    copy_experts(s->out.failed.experts, &s->out.failed.n, what->experts, what->n);
    send_out(s, XS_CHANNEL_WORKERS, &w->peer);
}

/* ---- checks that several kinds share ---- */

static moe_status check_experts(const xs_store *s, const wire_experts *m, moe_err *err)
{
    for (uint32_t i = 0; i < m->n; i++) {
        if (m->experts[i] >= s->model.shape.n_experts_total) {
            return MOE_FAIL(err, MOE_ERR_INVALID, "%s names expert %u; %s has %u",
                            wire_kind_name(m->h.kind), m->experts[i], s->model.name,
                            s->model.shape.n_experts_total);
        }
    }
    return MOE_OK;
}

static moe_status find_worker(const xs_store *s, const origin *from, uint32_t *out_place,
                              moe_err *err)
{
    int place = xs_workers_find(s->workers, from->peer);
    if (place < 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "%s from a peer that has not said HELLO",
                        wire_kind_name(s->in.h.kind));
    }
    *out_place = (uint32_t)place;
    return MOE_OK;
}

/* Later predictions of an earlier step are stale. */
static void note_step(xs_store *s, uint32_t place)
{
    xs_worker *w = xs_workers_at(s->workers, place);
    if (s->in.h.step > w->last_step) {
        w->last_step = s->in.h.step;
    }
}

static moe_status check_running(const xs_store *s, moe_err *err)
{
    return s->stopping ? MOE_FAIL(err, MOE_ERR_CANCELLED, "this store is stopping") : MOE_OK;
}

/* ---- workers ---- */

static void add_region(wire_welcome *w, wire_region_purpose purpose, const moe_shm_region *region)
{
    MOE_ASSERT(w->n_regions < WIRE_MAX_REGIONS);
    wire_region *to = &w->regions[w->n_regions++];
    *to = (wire_region){.purpose = purpose, .bytes = region->bytes, .page_bytes = 4096};
    memcpy(to->name, region->name, sizeof to->name);
}

static void fill_welcome(xs_store *s, const xs_worker *worker)
{
    wire_welcome *w = &s->out.welcome;
    memset(w, 0, sizeof *w);
    begin_reply(s, WIRE_WELCOME, s->in.h.step);
    memcpy(w->store_uuid, s->model.uuid, sizeof w->store_uuid);
    memcpy(w->model_name, s->model.name, sizeof w->model_name);
    w->worker_id = worker->id;
    w->lease_capacity = worker->capacity;
    w->slot_bytes = s->model.slot_bytes;
    w->expert_bytes = s->model.expert_bytes;
    w->expert_dtype = s->model.expert_dtype;
    w->n_slots = s->regions.n_budget;
    w->n_experts = s->model.shape.n_experts_total;
    w->pinned = s->memory.pinned;
    add_region(w, WIRE_REGION_SLOTS, &s->regions.slots);
    add_region(w, WIRE_REGION_DENSE, &s->regions.dense);
    add_region(w, WIRE_REGION_BOARD, &s->regions.board);
    add_region(w, WIRE_REGION_LEASES, &worker->table);
}

static moe_status on_hello(xs_store *s, const origin *from, moe_err *err)
{
    uint32_t place = 0;
    moe_status st = check_running(s, err);
    xs_bury_workers(s, from->now_ns); /* this may be the successor of one of them */
    if (st == MOE_OK) {
        st = xs_workers_join(s->workers, &s->in.hello, from->peer, from->now_ns, &place, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    xs_kill_point(&s->kill, XS_KILL_WELCOME);
    const xs_worker *w = xs_workers_at(s->workers, place);
    moe_log(MOE_LOG_INFO, "store", "worker_joined", "worker=%u name=%s pid=%u", w->id, w->name,
            w->pid);
    fill_welcome(s, w);
    send_out(s, from->channel, from->peer);
    return MOE_OK;
}

/* Was this absent expert predicted, or is it being read for another reason than a WANT? */
static bool is_late(const xs_store *s, uint32_t expert, int64_t now_ns)
{
    if (xs_residency_is_predicted(s->residency, expert, now_ns)) {
        return true;
    }
    uint32_t slot = xs_residency_slot_of(s->residency, expert);
    return xs_residency_state(s->residency, expert) == MOE_BOARD_LOADING &&
           xs_residency_slot(s->residency, slot)->why != XS_FETCH_DEMAND;
}

static void count_want(xs_store *s, uint32_t expert, bool is_new, int64_t now_ns)
{
    if (!is_new) {
        s->counters.want_repeated++;
    } else if (xs_residency_state(s->residency, expert) == MOE_BOARD_READY) {
        s->counters.want_hit++;
    } else if (is_late(s, expert, now_ns)) {
        s->counters.want_late++;
    } else {
        s->counters.want_miss++;
    }
}

/* True: it is in memory. */
static bool want_one(xs_store *s, uint32_t place, uint32_t expert, int64_t now_ns)
{
    bool is_new = false;
    xs_ask *ask = xs_workers_ask(s->workers, place, expert, s->in.h.step, now_ns, &is_new);
    count_want(s, expert, is_new, now_ns);
    if (is_new) {
        xs_recorder_note(s->recorder, XS_TRACE_WANT, expert, 1);
    }
    moe_board_state state = xs_residency_state(s->residency, expert);
    if (state != MOE_BOARD_READY && state != MOE_BOARD_LOADING) {
        (void)xs_fetch_queue_push(s->queue, expert, XS_FETCH_DEMAND, place, s->in.h.step, now_ns);
        return false;
    }
    uint32_t slot = xs_residency_slot_of(s->residency, expert);
    xs_residency_slot(s->residency, slot)->wanted = true;
    if (state == MOE_BOARD_READY) {
        xs_workers_hold(s->workers, place, ask, slot, now_ns);
    } else {
        xs_reader_hurry(s->reader, slot);
    }
    return state == MOE_BOARD_READY;
}

static void refuse_wants(xs_store *s, uint32_t place, const wire_experts *m)
{
    wire_failed failed = {.h.step = m->h.step, .status = MOE_ERR_CANCELLED};
    snprintf(failed.text, sizeof failed.text, "this store is stopping");
    copy_experts(failed.experts, &failed.n, m->experts, m->n);
    xs_reply_failed(s, place, &failed);
}

static moe_status on_want(xs_store *s, const origin *from, moe_err *err)
{
    uint32_t place = 0;
    uint32_t ready[WIRE_MAX_EXPERTS];
    uint32_t n_ready = 0;
    const wire_experts *m = &s->in.experts;
    moe_status st = find_worker(s, from, &place, err);
    if (st == MOE_OK) {
        st = check_experts(s, m, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    if (s->stopping) {
        refuse_wants(s, place, m);
        return MOE_OK;
    }
    note_step(s, place);
    for (uint32_t i = 0; i < m->n; i++) {
        if (want_one(s, place, m->experts[i], from->now_ns)) {
            ready[n_ready++] = m->experts[i];
        }
    }
    xs_reply_ready(s, place, m->h.step, ready, n_ready);
    return MOE_OK;
}

static moe_status on_predict(xs_store *s, const origin *from, moe_err *err)
{
    uint32_t place = 0;
    const wire_experts *m = &s->in.experts;
    moe_status st = find_worker(s, from, &place, err);
    if (st == MOE_OK) {
        st = check_experts(s, m, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    xs_worker *w = xs_workers_at(s->workers, place);
    if (m->h.boot != s->boot || m->h.step < w->last_step || s->stopping) {
        s->counters.predictions_stale++;
        return MOE_OK;
    }
    note_step(s, place);
    xs_fetch_class cls = m->distance <= 1 ? XS_FETCH_NEAR : XS_FETCH_FAR;
    for (uint32_t i = 0; i < m->n; i++) {
        moe_board_state state = xs_residency_state(s->residency, m->experts[i]);
        xs_residency_predict(s->residency, m->experts[i], from->now_ns);
        s->counters.predicted++;
        xs_recorder_note(s->recorder, XS_TRACE_PREDICT, m->experts[i], m->distance);
        if (state == MOE_BOARD_ABSENT || state == MOE_BOARD_FAILED) {
            (void)xs_fetch_queue_push(s->queue, m->experts[i], cls, place, m->h.step, from->now_ns);
        }
    }
    return MOE_OK;
}

static moe_status on_cancel(xs_store *s, const origin *from, moe_err *err)
{
    uint32_t place = 0;
    moe_status st = find_worker(s, from, &place, err);
    if (st != MOE_OK) {
        return st;
    }
    if (s->in.h.step != UINT64_MAX) { /* that is "everything so far", not a step */
        note_step(s, place);
    }
    xs_workers_cancel(s->workers, place, s->in.h.step);
    s->counters.cancelled += xs_fetch_queue_cancel(s->queue, place, s->in.h.step);
    return MOE_OK;
}

void xs_settle_workers(xs_store *s, int64_t now_ns)
{
    uint64_t stalled = xs_workers_settle(s->workers, now_ns);
    for (uint32_t p = 0; stalled >> p != 0; p++) {
        if ((stalled >> p & 1) != 0) {
            s->counters.cancelled += xs_fetch_queue_cancel(s->queue, p, UINT64_MAX);
        }
    }
}

void xs_bury_workers(xs_store *s, int64_t now_ns)
{
    uint64_t gone = xs_workers_probe(s->workers, now_ns);
    for (uint32_t p = 0; gone >> p != 0; p++) {
        if ((gone >> p & 1) == 0) {
            continue;
        }
        const xs_worker *w = xs_workers_at(s->workers, p);
        moe_log(MOE_LOG_INFO, "store", "worker_gone", "worker=%u name=%s pid=%u", w->id, w->name,
                w->pid);
        s->counters.cancelled += xs_fetch_queue_cancel(s->queue, p, UINT64_MAX);
        xs_workers_remove(s->workers, p);
    }
}

/* ---- anyone ---- */

static moe_status on_stats(xs_store *s, const origin *from, moe_err *err)
{
    moe_metrics metrics;
    moe_metrics_init(&metrics);
    xs_store_metrics(s, s->in.plain.flags, from->now_ns, &metrics);
    if (metrics.failed) {
        moe_metrics_fini(&metrics);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "list of statistics");
    }
    begin_reply(s, WIRE_STATS_REPLY, s->in.h.step);
    s->out.stats_reply.metrics = metrics;
    send_out(s, from->channel, from->peer);
    moe_metrics_fini(&metrics);
    memset(&s->out.stats_reply.metrics, 0, sizeof s->out.stats_reply.metrics);
    return MOE_OK;
}

static moe_status on_ping(xs_store *s, const origin *from, moe_err *err)
{
    (void)err;
    begin_reply(s, WIRE_PONG, s->in.h.step);
    s->out.plain.flags = s->in.plain.flags;
    send_out(s, from->channel, from->peer);
    return MOE_OK;
}

/* ---- operators ---- */

static moe_status on_prefetch(xs_store *s, const origin *from, moe_err *err)
{
    const wire_experts *m = &s->in.experts;
    char text[WIRE_MAX_TEXT];
    uint32_t n_queued = 0;
    moe_status st = check_experts(s, m, err);
    if (st == MOE_OK) {
        st = check_running(s, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    for (uint32_t i = 0; i < m->n; i++) {
        moe_board_state state = xs_residency_state(s->residency, m->experts[i]);
        if (state == MOE_BOARD_ABSENT || state == MOE_BOARD_FAILED) {
            (void)xs_fetch_queue_push(s->queue, m->experts[i], XS_FETCH_WARM, XS_OPERATOR_PLACE, 0,
                                      from->now_ns);
            n_queued++;
        }
    }
    snprintf(text, sizeof text, "%u of %u experts will be read, the others are there", n_queued,
             m->n);
    reply_outcome(s, from, WIRE_DONE, MOE_OK, text);
    return MOE_OK;
}

static moe_status on_pin(xs_store *s, const origin *from, moe_err *err)
{
    const wire_experts *m = &s->in.experts;
    bool pin = m->distance != 0;
    char text[WIRE_MAX_TEXT];
    uint32_t before = xs_residency_n_pinned(s->residency);
    moe_status st = check_experts(s, m, err);
    if (st == MOE_OK && pin) {
        st = xs_residency_may_pin(s->residency, m->experts, m->n, err);
    }
    for (uint32_t i = 0; i < m->n && st == MOE_OK; i++) {
        st = xs_residency_pin(s->residency, m->experts[i], pin, err);
        if (st == MOE_OK && pin &&
            xs_residency_state(s->residency, m->experts[i]) == MOE_BOARD_ABSENT) {
            (void)xs_fetch_queue_push(s->queue, m->experts[i], XS_FETCH_WARM, XS_OPERATOR_PLACE, 0,
                                      from->now_ns);
        }
    }
    if (st != MOE_OK) {
        return st;
    }
    uint32_t now = xs_residency_n_pinned(s->residency);
    snprintf(text, sizeof text, "%u more pinned, %u less; in all: %u",
             now > before ? now - before : 0, before > now ? before - now : 0, now);
    reply_outcome(s, from, WIRE_DONE, MOE_OK, text);
    return MOE_OK;
}

static moe_status on_evict(xs_store *s, const origin *from, moe_err *err)
{
    const wire_experts *m = &s->in.experts;
    char text[WIRE_MAX_TEXT];
    uint32_t n_evicted = 0;
    uint32_t n_busy = 0;
    moe_status st = check_experts(s, m, err);
    if (st != MOE_OK) {
        return st;
    }
    for (uint32_t i = 0; i < m->n; i++) {
        st = xs_residency_evict(s->residency, m->experts[i], NULL);
        n_evicted += st == MOE_OK;
        n_busy += st == MOE_ERR_BUSY;
    }
    snprintf(text, sizeof text, "%u evicted, %u in use or pinned, %u were not in memory", n_evicted,
             n_busy, m->n - n_evicted - n_busy);
    reply_outcome(s, from, WIRE_DONE, n_busy == 0 ? MOE_OK : MOE_ERR_BUSY, text);
    return MOE_OK;
}

static moe_status on_resize(xs_store *s, const origin *from, moe_err *err)
{
    char text[WIRE_MAX_TEXT];
    moe_status st = check_running(s, err);
    if (st == MOE_OK) {
        st = xs_budget_raise(s, s->in.resize.text, text, err);
    }
    if (st == MOE_OK) {
        reply_outcome(s, from, WIRE_DONE, MOE_OK, text);
    }
    return st;
}

static moe_status on_drain(xs_store *s, const origin *from, moe_err *err)
{
    (void)err;
    s->stopping = true;
    reply_outcome(s, from, WIRE_DONE, MOE_OK, "finishing reads in flight, then stopping");
    return MOE_OK;
}

/* ---- dispatch ---- */

typedef moe_status (*handler)(xs_store *s, const origin *from, moe_err *err);
typedef struct route {
    handler workers, admin; /* NULL: not on that socket */
} route;

static const route routes[XS_N_KINDS] = {
    [WIRE_HELLO] = {.workers = on_hello},
    [WIRE_PREDICT] = {.workers = on_predict},
    [WIRE_WANT] = {.workers = on_want},
    [WIRE_CANCEL] = {.workers = on_cancel},
    [WIRE_STATS] = {.workers = on_stats, .admin = on_stats},
    [WIRE_PING] = {.workers = on_ping, .admin = on_ping},
    [WIRE_PREFETCH] = {.admin = on_prefetch},
    [WIRE_PIN] = {.admin = on_pin},
    [WIRE_EVICT] = {.admin = on_evict},
    [WIRE_DRAIN] = {.admin = on_drain},
    [WIRE_RESIZE] = {.admin = on_resize},
};

static moe_status find_handler(const xs_store *s, xs_channel channel, handler *out, moe_err *err)
{
    uint32_t kind = s->in.h.kind;
    const route *r = kind < XS_N_KINDS ? &routes[kind] : &routes[0];
    handler h = channel == XS_CHANNEL_ADMIN ? r->admin : r->workers;
    if (h != NULL) {
        *out = h;
        return MOE_OK;
    }
    if (r->admin != NULL) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED, "%s is for operators: send it to %s.admin",
                        wire_kind_name(kind), s->cfg->endpoint);
    }
    return MOE_FAIL(err, MOE_ERR_UNSUPPORTED, "%s is nothing to send to %s", wire_kind_name(kind),
                    channel == XS_CHANNEL_ADMIN ? "a store's admin socket" : "a store");
}

void xs_handle(xs_store *s, xs_channel channel, const wire_peer *peer, const void *data,
               size_t bytes, int64_t now_ns)
{
    const origin from = {.channel = channel, .peer = peer, .now_ns = now_ns};
    moe_err err = {0};
    handler handle = NULL;
    s->in.h = (wire_header){0};
    moe_status st = wire_decode(data, bytes, &s->in, &err);
    if (st != MOE_OK) {
        s->counters.malformed++;
        refuse(s, &from, &err);
        return;
    }
    s->counters.requests[s->in.h.kind < XS_N_KINDS ? s->in.h.kind : 0]++;
    st = find_handler(s, channel, &handle, &err);
    if (st == MOE_OK) {
        st = handle(s, &from, &err);
    }
    if (st != MOE_OK) {
        s->counters.refused++;
        refuse(s, &from, &err);
    }
    if (s->in.h.kind == WIRE_STATS_REPLY) {
        moe_metrics_fini(&s->in.stats_reply.metrics); /* decoding allocated it */
    }
}
