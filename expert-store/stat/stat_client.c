/* stat_client.c - see stat_client.h. */
#include "expert-store/stat/stat_client.h"

#include <string.h>

#include "common/clock.h"

enum { ANSWER_WITHIN_S = 2 };

moe_status xs_stat_open(xs_stat_client *c, const char *endpoint, bool admin, moe_err *err)
{
    if (admin) {
        moe_status st = wire_admin_endpoint(endpoint, c->endpoint, sizeof c->endpoint, err);
        if (st != MOE_OK) {
            return st;
        }
    } else {
        snprintf(c->endpoint, sizeof c->endpoint, "%s", endpoint);
    }
    return wire_dealer_create(c->endpoint, &c->dealer, err);
}

void xs_stat_close(xs_stat_client *c)
{
    wire_dealer_destroy(c->dealer);
    c->dealer = NULL;
}

static moe_status no_store(const xs_stat_client *c, moe_err *err)
{
    return MOE_FAIL(err, MOE_ERR_DISCONNECTED,
                    "no expert-store answers on %s within %d s: start one, or give its --endpoint",
                    c->endpoint, (int)ANSWER_WITHIN_S);
}

/* A connection is made in the background, so the first sends may be refused. */
static moe_status send_until(xs_stat_client *c, const wire_buffer *b, int64_t deadline_ns,
                             moe_err *err)
{
    moe_status st = wire_dealer_send(c->dealer, b->data, b->bytes, err);
    while (st == MOE_ERR_AGAIN && moe_now_ns() < deadline_ns) {
        moe_sleep_ns(2 * MOE_NS_PER_MS);
        st = wire_dealer_send(c->dealer, b->data, b->bytes, err);
    }
    return st == MOE_ERR_AGAIN ? no_store(c, err) : st;
}

static moe_status receive(xs_stat_client *c, int64_t deadline_ns, moe_err *err)
{
    const void *data = NULL;
    size_t bytes = 0;
    int64_t left_ns = deadline_ns - moe_now_ns();
    moe_status st = wire_dealer_recv(c->dealer, left_ns > 0 ? left_ns : 1, &data, &bytes, err);
    if (st == MOE_ERR_TIMEOUT || st == MOE_ERR_AGAIN) {
        return no_store(c, err);
    }
    return st == MOE_OK ? wire_decode(data, bytes, &c->answer, err) : st;
}

static moe_status ask(xs_stat_client *c, wire_kind expected, moe_err *err)
{
    wire_buffer b = {0};
    int64_t deadline_ns = moe_now_ns() + ANSWER_WITHIN_S * MOE_NS_PER_S;
    moe_status st = wire_encode(&c->question, &b, err);
    if (st == MOE_OK) {
        st = send_until(c, &b, deadline_ns, err);
    }
    wire_buffer_fini(&b);
    if (st == MOE_OK) {
        st = receive(c, deadline_ns, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    if (c->answer.h.kind == WIRE_ERROR) {
        return MOE_FAIL(err, (moe_status)c->answer.outcome.status, "the store refuses: %s",
                        c->answer.outcome.text);
    }
    if (c->answer.h.kind != (uint32_t)expected) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "the store answers with %s",
                        wire_kind_name(c->answer.h.kind));
    }
    return MOE_OK;
}

moe_status xs_stat_fetch(xs_stat_client *c, uint32_t flags, moe_metrics *out_metrics, moe_err *err)
{
    c->question.plain = (wire_plain){.h.kind = WIRE_STATS, .flags = flags};
    moe_status st = ask(c, WIRE_STATS_REPLY, err);
    if (st == MOE_OK) {
        *out_metrics = c->answer.stats_reply.metrics;
    }
    return st;
}

/* What DONE says, as text or as an error. */
static moe_status order(xs_stat_client *c, char *out_text, moe_err *err)
{
    moe_status st = ask(c, WIRE_DONE, err);
    if (st != MOE_OK) {
        return st;
    }
    snprintf(out_text, WIRE_MAX_TEXT, "%s", c->answer.outcome.text);
    st = (moe_status)c->answer.outcome.status;
    return st == MOE_OK ? st : MOE_FAIL(err, st, "%s", out_text);
}

moe_status xs_stat_resize(xs_stat_client *c, const char *ram_bytes, char *out_text, moe_err *err)
{
    c->question.resize.h = (wire_header){.kind = WIRE_RESIZE};
    snprintf(c->question.resize.text, sizeof c->question.resize.text, "%s", ram_bytes);
    return order(c, out_text, err);
}

moe_status xs_stat_order(xs_stat_client *c, wire_kind kind, uint32_t pin, const uint32_t *experts,
                         uint32_t n, char *out_text, moe_err *err)
{
    MOE_ASSERT(n <= WIRE_MAX_EXPERTS);
    if (kind == WIRE_DRAIN) {
        c->question.plain = (wire_plain){.h.kind = WIRE_DRAIN};
    } else {
        c->question.experts.h = (wire_header){.kind = (uint32_t)kind};
        c->question.experts.distance = pin;
        c->question.experts.n = n;
        memcpy(c->question.experts.experts, experts, n * sizeof *experts);
    }
    return order(c, out_text, err);
}
