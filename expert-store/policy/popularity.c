/* popularity.c - see popularity.h. Halving is lazy: each count remembers how often it was halved.
 */
#include "expert-store/policy/popularity.h"

#include <stdlib.h>

enum {
    /* Long enough to tell neighbours apart, short enough to follow a new topic: 4 to 8 lose little
     * on either in memories of 10 to 50 % (tests/bench/eviction.sh). */
    USES_PER_EXPERT = 6,
    MAX_USES_AT_ONCE = 1 << 24 /* what a broken worker may claim without overflowing a count */
};

uint64_t xs_popularity_period(uint32_t n_experts)
{
    return (uint64_t)USES_PER_EXPERT * n_experts;
}

moe_status xs_popularity_init(xs_popularity *p, uint32_t n_experts, uint64_t period, moe_err *err)
{
    MOE_ASSERT(period > 0);
    *p = (xs_popularity){.n = n_experts, .period = period};
    p->counts = calloc(n_experts, sizeof *p->counts);
    p->halvings = calloc(n_experts, sizeof *p->halvings);
    if (p->counts == NULL || p->halvings == NULL) {
        xs_popularity_fini(p);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "popularity of %u experts", n_experts);
    }
    return MOE_OK;
}

void xs_popularity_fini(xs_popularity *p)
{
    free(p->counts);
    free(p->halvings);
    p->counts = NULL;
    p->halvings = NULL;
}

uint64_t xs_popularity_get(const xs_popularity *p, uint32_t expert)
{
    uint64_t due = p->uses / p->period - p->halvings[expert];
    return due < 64 ? p->counts[expert] >> due : 0;
}

static void add(xs_popularity *p, uint32_t expert, uint64_t n_uses)
{
    MOE_ASSERT(expert < p->n);
    uint64_t n = n_uses < MAX_USES_AT_ONCE ? n_uses : MAX_USES_AT_ONCE;
    p->counts[expert] = xs_popularity_get(p, expert) + n * XS_ONE_USE;
    p->halvings[expert] = (uint32_t)(p->uses / p->period);
}

void xs_popularity_use(xs_popularity *p, uint32_t expert, uint64_t n_uses)
{
    p->uses += n_uses < MAX_USES_AT_ONCE ? n_uses : MAX_USES_AT_ONCE;
    add(p, expert, n_uses);
}

void xs_popularity_seed(xs_popularity *p, uint32_t expert, uint64_t n_uses)
{
    add(p, expert, n_uses);
}
