/* evict.c - the eviction policies. Owns nothing; called by residency before a load and by the
 * offline replayer; any thread; nothing to shut down. */
#include "expert-store/policy/evict.h"

#include <stddef.h>

const char *xs_evict_policy_name(xs_evict_policy policy)
{
    static const char *const names[XS_N_EVICT_POLICIES] = {
        [XS_EVICT_LRU] = "lru",
        [XS_EVICT_LFU] = "lfu",
        [XS_EVICT_SIEVE] = "sieve",
        [XS_EVICT_PREDICTED] = "predicted",
    };
    return names[policy];
}

static bool may_go(xs_evict_policy policy, const xs_candidate *c)
{
    return !c->leased && !c->pinned && !(policy == XS_EVICT_PREDICTED && c->predicted);
}

/* Total orders: each ends in the slot number, so that the choice never depends on c's order. */

static bool older_use(const xs_candidate *a, const xs_candidate *b)
{
    if (a->last_use_ns != b->last_use_ns) {
        return a->last_use_ns < b->last_use_ns;
    }
    return a->slot < b->slot;
}

static bool fewer_uses(const xs_candidate *a, const xs_candidate *b)
{
    return a->uses != b->uses ? a->uses < b->uses : older_use(a, b);
}

static bool loaded_before(const xs_candidate *a, const xs_candidate *b)
{
    if (a->loaded_ns != b->loaded_ns) {
        return a->loaded_ns < b->loaded_ns;
    }
    return a->slot < b->slot;
}

static int64_t least(xs_evict_policy policy, const xs_candidate *c, uint32_t n,
                     bool (*before)(const xs_candidate *, const xs_candidate *))
{
    int64_t best = -1;
    for (uint32_t i = 0; i < n; i++) {
        if (may_go(policy, &c[i]) && (best < 0 || before(&c[i], &c[best]))) {
            best = i;
        }
    }
    return best;
}

/* The candidate loaded next after `of`; the oldest one when `of` is the newest or NULL. */
static uint32_t next_loaded(const xs_candidate *c, uint32_t n, const xs_candidate *of)
{
    int64_t oldest = -1;
    int64_t next = -1;
    for (uint32_t i = 0; i < n; i++) {
        if (oldest < 0 || loaded_before(&c[i], &c[oldest])) {
            oldest = i;
        }
        bool after = of != NULL && loaded_before(of, &c[i]);
        if (after && (next < 0 || loaded_before(&c[i], &c[next]))) {
            next = i;
        }
    }
    return (uint32_t)(next >= 0 ? next : oldest);
}

/* The hand walks from the oldest load to the newest and round again. Two laps decide: the first
 * clears at most every visited bit, so whatever may go is unvisited in the second. */
static int64_t sieve(xs_candidate *c, uint32_t n, uint32_t *hand)
{
    uint32_t at = next_loaded(c, n, NULL);
    for (uint32_t i = 0; i < n; i++) {
        if (c[i].slot == *hand) {
            at = i;
        }
    }
    for (uint64_t step = 0; step < 2ull * n; step++) {
        bool candidate = may_go(XS_EVICT_SIEVE, &c[at]);
        uint32_t next = next_loaded(c, n, &c[at]);
        if (candidate && !c[at].visited) {
            *hand = c[next].slot;
            return at;
        }
        if (candidate) {
            c[at].visited = false;
        }
        at = next;
    }
    return -1;
}

int64_t xs_evict_choose(xs_evict_policy policy, xs_candidate *c, uint32_t n, uint32_t *hand)
{
    if (n == 0) {
        return -1;
    }
    switch (policy) {
    case XS_EVICT_LFU:
    case XS_EVICT_PREDICTED:
        return least(policy, c, n, fewer_uses);
    case XS_EVICT_SIEVE:
        return sieve(c, n, hand);
    case XS_EVICT_LRU:
        break;
    }
    return least(policy, c, n, older_use);
}
