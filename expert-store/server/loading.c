/* loading.c - see loading.h. */
#include "expert-store/server/loading.h"

#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "expert-store/server/handlers.h"

enum { HARVEST = 32 };

/* What a read is for travels as the reader's tag. */
static bool is_speculative(xs_fetch_class cls)
{
    return cls != XS_FETCH_DEMAND;
}

/* ---- starting ---- */

/* While memory is being made, what finds no free slot waits for one, a few ms, rather than evict:
 * where every expert has its slot in the end, none ever leaves. */
static bool may_start(const xs_store *s, xs_fetch_class cls)
{
    return s->n_in_flight < s->limits.in_flight &&
           (!is_speculative(cls) || s->n_speculative < s->limits.speculative_in_flight) &&
           !xs_residency_waits_for_memory(s->residency);
}

/* Old predictions and experts that came in by another way leave the queue unread. */
static bool is_void(xs_store *s, uint32_t expert, xs_fetch_class cls, int64_t now_ns)
{
    moe_board_state state = xs_residency_state(s->residency, expert);
    if (state == MOE_BOARD_READY || state == MOE_BOARD_LOADING) {
        return true;
    }
    if (s->stopping && is_speculative(cls)) {
        return true;
    }
    bool predicted = cls == XS_FETCH_NEAR || cls == XS_FETCH_FAR;
    if (predicted && !xs_residency_is_predicted(s->residency, expert, now_ns)) {
        s->counters.predictions_expired++;
        return true;
    }
    return false;
}

/* MOE_ERR_NO_SLOT and MOE_ERR_AGAIN leave everything as it was. */
static moe_status start_one(xs_store *s, uint32_t expert, xs_fetch_class cls, int64_t now_ns)
{
    uint32_t slot = 0;
    moe_status st = xs_residency_begin_load(s->residency, expert, cls, now_ns, &slot, NULL);
    if (st != MOE_OK) {
        return st;
    }
    st = is_speculative(cls)
             ? xs_reader_submit_speculative(s->reader, expert, slot, (uint64_t)cls, NULL)
             : xs_reader_submit(s->reader, expert, slot, (uint64_t)cls, NULL);
    if (st != MOE_OK) {
        xs_residency_fail(s->residency, slot, false);
        return st;
    }
    xs_kill_point(&s->kill, XS_KILL_MID_READ);
    s->n_in_flight++;
    s->n_speculative += is_speculative(cls);
    s->counters.loads[cls]++;
    xs_recorder_note(s->recorder, XS_TRACE_LOAD, expert, cls);
    return MOE_OK;
}

uint32_t xs_loading_start(xs_store *s, int64_t now_ns)
{
    uint32_t expert = 0;
    xs_fetch_class cls = XS_FETCH_WARM;
    int64_t asked_ns = 0;
    uint32_t n_started = 0;
    s->starved = false;
    while (xs_fetch_queue_peek(s->queue, &expert, &cls, &asked_ns)) {
        if (!is_void(s, expert, cls, now_ns)) {
            if (!may_start(s, cls)) {
                return n_started; /* a completion brings us back, or a slot that was made */
            }
            moe_status st = start_one(s, expert, cls, now_ns);
            if (st != MOE_OK) {
                s->starved = true; /* leases end without a message: look again soon */
                return n_started;
            }
            n_started++;
        }
        (void)xs_fetch_queue_remove(s->queue, expert);
    }
    return n_started;
}

/* ---- finishing ---- */

static void publish(xs_store *s, const xs_completion *c, int64_t now_ns)
{
    xs_residency_publish(s->residency, c->slot, now_ns);
    for (uint32_t p = 0; p < XS_OPERATOR_PLACE; p++) {
        xs_ask *ask = xs_workers_at(s->workers, p) != NULL
                          ? xs_workers_find_ask(s->workers, p, c->expert)
                          : NULL;
        if (ask != NULL) {
            uint64_t step = ask->step;
            moe_histogram_add_ns(&s->counters.want_latency, now_ns - ask->asked_ns);
            xs_workers_hold(s->workers, p, ask, c->slot, now_ns);
            xs_reply_ready(s, p, step, &c->expert, 1);
        }
    }
}

static void fail_ask(xs_store *s, uint32_t place, xs_ask *ask, moe_status status, const char *text)
{
    wire_failed failed = {.h.step = ask->step, .status = (uint32_t)status, .n = 1};
    failed.experts[0] = ask->expert;
    snprintf(failed.text, sizeof failed.text, "%s", text);
    xs_workers_end_ask(s->workers, place, ask);
    xs_reply_failed(s, place, &failed);
}

static void fail(xs_store *s, const xs_completion *c, int64_t now_ns)
{
    bool asked = false;
    uint64_t suppressed = 0;
    s->counters.load_failures++;
    for (uint32_t p = 0; p < XS_OPERATOR_PLACE; p++) {
        xs_ask *ask = xs_workers_at(s->workers, p) != NULL
                          ? xs_workers_find_ask(s->workers, p, c->expert)
                          : NULL;
        if (ask != NULL) {
            asked = true;
            fail_ask(s, p, ask, c->status, c->text);
        }
    }
    xs_residency_fail(s->residency, c->slot, asked);
    if (xs_log_limit_pass(&s->read_failure_log, now_ns, &suppressed)) {
        moe_log(MOE_LOG_ERROR, "store", "read_failed",
                "expert=%u status=%s suppressed=%llu text=\"%s\"", c->expert,
                moe_status_name(c->status), (unsigned long long)suppressed, c->text);
    }
}

bool xs_loading_harvest(xs_store *s, int64_t now_ns)
{
    xs_completion done[HARVEST];
    uint32_t n = xs_reader_harvest(s->reader, done, HARVEST);
    for (uint32_t i = 0; i < n; i++) {
        s->n_in_flight--;
        s->n_speculative -= is_speculative((xs_fetch_class)done[i].tag);
        if (done[i].status == MOE_OK) {
            publish(s, &done[i], now_ns);
        } else {
            fail(s, &done[i], now_ns);
        }
    }
    return n > 0;
}

/* ---- re-hashing ---- */

static void judge(xs_store *s, uint32_t expert, uint32_t slot, bool good, int64_t now_ns)
{
    uint64_t suppressed = 0;
    xs_residency_release_hold(s->residency, slot);
    xs_residency_slot(s->residency, slot)->unverified = false;
    s->counters.reverified++;
    if (good) {
        return;
    }
    s->counters.reverify_failed++;
    xs_residency_condemn(s->residency, slot);
    if (xs_log_limit_pass(&s->adopted_bad_log, now_ns, &suppressed)) {
        moe_log(MOE_LOG_ERROR, "store", "adopted_slot_corrupt", "expert=%u slot=%u suppressed=%llu",
                expert, slot, (unsigned long long)suppressed);
    }
}

void xs_loading_reverify(xs_store *s, int64_t now_ns)
{
    uint32_t expert = 0;
    uint32_t slot = 0;
    bool good = false;
    if (s->reverify == NULL) {
        return;
    }
    if (s->reverify_busy && xs_reverify_take(s->reverify, &expert, &slot, &good)) {
        s->reverify_busy = false;
        judge(s, expert, slot, good, now_ns);
    }
    while (!s->reverify_busy && s->reverify_next < s->regions.n_slots) {
        const xs_slot *next = xs_residency_slot(s->residency, s->reverify_next);
        if (next->state == XS_SLOT_READY && next->unverified) {
            xs_residency_hold(s->residency, s->reverify_next);
            xs_reverify_start(s->reverify, next->expert, s->reverify_next);
            s->reverify_busy = true;
        }
        s->reverify_next++;
    }
}

/* ---- stopping ---- */

bool xs_loading_is_idle(const xs_store *s)
{
    return s->n_in_flight == 0 && xs_fetch_queue_length(s->queue, XS_FETCH_DEMAND) == 0;
}

static void refuse_waiting(xs_store *s, uint32_t place)
{
    xs_worker *w = xs_workers_at(s->workers, place);
    for (uint32_t i = w->n_asks; i > 0; i--) {
        if (!w->asks[i - 1].held) {
            fail_ask(s, place, &w->asks[i - 1], MOE_ERR_CANCELLED, "this store is stopping");
        }
    }
}

void xs_loading_abandon(xs_store *s)
{
    for (uint32_t p = 0; p < XS_OPERATOR_PLACE; p++) {
        if (xs_workers_at(s->workers, p) != NULL) {
            refuse_waiting(s, p);
        }
    }
}
