/* speculation.c - see speculation.h. */
#include "gpu-worker/fetch/speculation.h"

static void add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

bool gw_speculation_is_off(const gw_speculation *s)
{
    return atomic_load_explicit(&s->off, memory_order_relaxed);
}

bool gw_speculation_allows(gw_speculation *s)
{
    if (s->n_to_pass == 0) {
        return true;
    }
    s->n_to_pass--;
    add(&s->n_passed_over, 1);
    return false;
}

static void judge(gw_speculation *s)
{
    bool pays = s->balance_ns >= 0;
    if (pays) {
        s->pause = 0;
    } else {
        s->pause = s->pause == 0 ? GW_FIRST_PAUSE : 2 * s->pause;
        s->pause = s->pause < GW_LAST_PAUSE ? s->pause : GW_LAST_PAUSE;
        s->n_to_pass = s->pause;
    }
    atomic_store_explicit(&s->off, !pays, memory_order_relaxed);
    s->n_ended = 0;
    s->balance_ns = 0;
}

static void settle(gw_speculation *s, int64_t gain_ns)
{
    if (s->n_to_pass > 0) {
        return; /* what is left of before the pause says nothing about a probe */
    }
    s->balance_ns += gain_ns;
    s->n_ended++;
    if (s->n_ended >= (gw_speculation_is_off(s) ? GW_PROBE : GW_JUDGE_AFTER)) {
        judge(s);
    }
}

void gw_speculation_used(gw_speculation *s, int64_t hidden_ns)
{
    add(&s->n_used, 1);
    add(&s->hidden_ns, (uint64_t)hidden_ns);
    settle(s, hidden_ns);
}

void gw_speculation_wasted(gw_speculation *s, int64_t link_ns, uint64_t bytes)
{
    add(&s->n_wasted, 1);
    add(&s->wasted_ns, (uint64_t)link_ns);
    add(&s->wasted_bytes, bytes);
    settle(s, -link_ns);
}

double gw_speculation_useful(const gw_speculation *s)
{
    uint64_t used = atomic_load_explicit(&s->n_used, memory_order_relaxed);
    uint64_t ended = used + atomic_load_explicit(&s->n_wasted, memory_order_relaxed);
    return ended > 0 ? (double)used / (double)ended : 1.0;
}
