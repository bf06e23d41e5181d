/* simulate.c - see simulate.h. */
#include "expert-store/replay/simulate.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "expert-store/policy/popularity.h"

enum { NOWHERE = -1 };

typedef struct memory {
    xs_memory cfg;
    xs_evict_policy policy;
    xs_candidate *slots; /* [n_slots] owned; the first n_used hold an expert */
    uint32_t n_used;
    int64_t *slot_of;            /* [n_experts] owned; NOWHERE */
    int64_t *predicted_until_us; /* [n_experts] owned */
    xs_popularity popularity;
    uint32_t hand;
} memory;

static void fini(memory *m)
{
    free(m->slots);
    free(m->slot_of);
    free(m->predicted_until_us);
    xs_popularity_fini(&m->popularity);
}

static moe_status init(memory *m, const xs_access_list *l, const xs_memory *cfg,
                       xs_evict_policy policy, moe_err *err)
{
    *m = (memory){.cfg = *cfg, .policy = policy};
    m->slots = calloc(cfg->n_slots, sizeof *m->slots);
    m->slot_of = calloc(l->n_experts, sizeof *m->slot_of);
    m->predicted_until_us = calloc(l->n_experts, sizeof *m->predicted_until_us);
    if (m->slots == NULL || m->slot_of == NULL || m->predicted_until_us == NULL) {
        fini(m);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a memory of %u slots", cfg->n_slots);
    }
    for (uint32_t x = 0; x < l->n_experts; x++) {
        m->slot_of[x] = NOWHERE;
        m->predicted_until_us[x] = INT64_MIN;
    }
    moe_status st =
        xs_popularity_init(&m->popularity, l->n_experts, xs_popularity_period(l->n_experts), err);
    if (st != MOE_OK) {
        fini(m);
    }
    return st;
}

/* As residency.c asks for a demand: a predicted expert goes only when nothing else may. */
static uint32_t give_up_one(memory *m, int64_t now_us)
{
    for (uint32_t i = 0; i < m->n_used; i++) {
        xs_candidate *c = &m->slots[i];
        c->uses = xs_popularity_get(&m->popularity, c->expert);
        c->predicted = m->predicted_until_us[c->expert] > now_us;
    }
    int64_t choice = xs_evict_choose(m->policy, m->slots, m->n_used, &m->hand);
    for (uint32_t i = 0; i < m->n_used && choice < 0; i++) {
        m->slots[i].predicted = false;
    }
    if (choice < 0) {
        choice = xs_evict_choose(m->policy, m->slots, m->n_used, &m->hand);
    }
    m->slot_of[m->slots[choice].expert] = NOWHERE;
    return m->slots[choice].slot;
}

static xs_candidate *load(memory *m, uint32_t expert, int64_t order, int64_t now_us)
{
    uint32_t slot = m->n_used < m->cfg.n_slots ? m->n_used++ : give_up_one(m, now_us);
    m->slots[slot] = (xs_candidate){.slot = slot, .expert = expert, .loaded_ns = order};
    m->slot_of[expert] = slot;
    return &m->slots[slot];
}

/* True: a hit. `order` stands for time in what the policies compare. */
static bool use(memory *m, const xs_access *a, int64_t order)
{
    bool hit = m->slot_of[a->expert] != NOWHERE;
    xs_candidate *c = hit ? &m->slots[m->slot_of[a->expert]] : load(m, a->expert, order, a->at_us);
    xs_popularity_use(&m->popularity, a->expert, a->n);
    m->predicted_until_us[a->expert] = INT64_MIN; /* it was meant for this use */
    c->last_use_ns = order;
    c->visited = c->visited || hit || a->n > 1;
    return hit;
}

moe_status xs_simulate_policy(const xs_access_list *l, const xs_memory *cfg, xs_evict_policy policy,
                              uint64_t *out_hits, moe_err *err)
{
    memory m;
    uint64_t hits = 0;
    moe_status st = init(&m, l, cfg, policy, err);
    if (st != MOE_OK) {
        return st;
    }
    for (uint64_t i = 0; i < l->n; i++) {
        const xs_access *a = &l->items[i];
        if (a->kind == XS_ACCESS_PREDICTION) {
            m.predicted_until_us[a->expert] = a->at_us + cfg->predict_keep_us;
        } else {
            hits += use(&m, a, (int64_t)i) + (a->n - 1u);
        }
    }
    fini(&m);
    *out_hits = hits;
    return MOE_OK;
}

/* ---- bounds ---- */

static int more_first(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Uses of each, not counting repeats, which are hits anyway. */
static uint64_t *count_uses(const xs_access_list *l)
{
    uint64_t *uses = calloc(l->n_experts, sizeof *uses);
    for (uint64_t i = 0; i < l->n && uses != NULL; i++) {
        uses[l->items[i].expert] += l->items[i].kind == XS_ACCESS_USE;
    }
    return uses;
}

/* The n-th largest, n >= 1: what an expert must have to be one of n, but for ties. */
static moe_status nth_count(const uint64_t *uses, uint32_t n_experts, uint32_t n, uint64_t *out,
                            moe_err *err)
{
    uint64_t *sorted = calloc(n_experts, sizeof *sorted);
    if (sorted == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "counts of %u experts", n_experts);
    }
    memcpy(sorted, uses, n_experts * sizeof *sorted);
    qsort(sorted, n_experts, sizeof *sorted, more_first);
    *out = sorted[n - 1];
    free(sorted);
    return MOE_OK;
}

static moe_status choose_static(const uint64_t *uses, uint32_t n_experts, uint32_t n, bool *chosen,
                                moe_err *err)
{
    uint64_t least = 0;
    if (n == 0) {
        return MOE_OK;
    }
    moe_status st = nth_count(uses, n_experts, n, &least, err);
    for (uint32_t pass = 0; pass < 2 && st == MOE_OK; pass++) { /* those above, then ties */
        for (uint32_t x = 0; x < n_experts && n > 0; x++) {
            if (!chosen[x] && (pass == 0 ? uses[x] > least : uses[x] == least)) {
                chosen[x] = true;
                n--;
            }
        }
    }
    return st;
}

static uint64_t run_static(const xs_access_list *l, const bool *chosen)
{
    uint64_t hits = 0;
    uint32_t passing = UINT32_MAX; /* in the last slot */
    for (uint64_t i = 0; i < l->n; i++) {
        const xs_access *a = &l->items[i];
        if (a->kind != XS_ACCESS_USE) {
            continue;
        }
        hits += a->n - 1u;
        if (chosen[a->expert] || a->expert == passing) {
            hits++;
        } else {
            passing = a->expert;
        }
    }
    return hits;
}

moe_status xs_simulate_static(const xs_access_list *l, const xs_memory *m, uint64_t *out_hits,
                              moe_err *err)
{
    uint32_t n_kept = m->n_slots - 1 < l->n_experts ? m->n_slots - 1 : l->n_experts;
    uint64_t *uses = count_uses(l);
    bool *chosen = calloc(l->n_experts, sizeof *chosen);
    moe_status st = uses != NULL && chosen != NULL
                        ? choose_static(uses, l->n_experts, n_kept, chosen, err)
                        : MOE_FAIL(err, MOE_ERR_NO_MEMORY, "counts of %u experts", l->n_experts);
    if (st == MOE_OK) {
        *out_hits = run_static(l, chosen);
    }
    free(uses);
    free(chosen);
    return st;
}

/* next[i]: index of the next use of the expert used at i, or n when there is none. */
static moe_status find_next_uses(const xs_access_list *l, uint64_t **out_next, moe_err *err)
{
    uint64_t *next = calloc(l->n + 1, sizeof *next);
    uint64_t *seen_at = calloc(l->n_experts, sizeof *seen_at);
    if (next == NULL || seen_at == NULL) {
        free(next);
        free(seen_at);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "next uses of %llu accesses",
                        (unsigned long long)l->n);
    }
    for (uint32_t x = 0; x < l->n_experts; x++) {
        seen_at[x] = l->n;
    }
    for (uint64_t i = l->n; i > 0; i--) {
        if (l->items[i - 1].kind == XS_ACCESS_USE) {
            next[i - 1] = seen_at[l->items[i - 1].expert];
            seen_at[l->items[i - 1].expert] = i - 1;
        }
    }
    free(seen_at);
    *out_next = next;
    return MOE_OK;
}

typedef struct kept {
    uint32_t expert;
    uint64_t next_use;
} kept;

/* Its place, or n_used. */
static uint32_t find_kept(const kept *slots, uint32_t n_used, uint32_t expert)
{
    uint32_t at = 0;
    while (at < n_used && slots[at].expert != expert) {
        at++;
    }
    return at;
}

static uint32_t farthest(const kept *slots, uint32_t n)
{
    uint32_t at = 0;
    for (uint32_t i = 1; i < n; i++) {
        if (slots[i].next_use > slots[at].next_use) {
            at = i;
        }
    }
    return at;
}

static uint64_t run_belady(const xs_access_list *l, const uint64_t *next, kept *slots,
                           uint32_t n_slots)
{
    uint64_t hits = 0;
    uint32_t n_used = 0;
    for (uint64_t i = 0; i < l->n; i++) {
        const xs_access *a = &l->items[i];
        if (a->kind != XS_ACCESS_USE) {
            continue;
        }
        hits += a->n - 1u;
        uint32_t at = find_kept(slots, n_used, a->expert);
        if (at < n_used) {
            hits++;
        } else if (n_used < n_slots) {
            n_used++;
        } else {
            at = farthest(slots, n_used);
            if (slots[at].next_use <= next[i]) {
                continue; /* all others are needed sooner: let it pass by */
            }
        }
        slots[at] = (kept){.expert = a->expert, .next_use = next[i]};
    }
    return hits;
}

moe_status xs_simulate_belady(const xs_access_list *l, const xs_memory *m, uint64_t *out_hits,
                              moe_err *err)
{
    uint64_t *next = NULL;
    kept *slots = calloc(m->n_slots, sizeof *slots);
    if (slots == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%u slots", m->n_slots);
    }
    moe_status st = find_next_uses(l, &next, err);
    if (st == MOE_OK) {
        *out_hits = run_belady(l, next, slots, m->n_slots);
    }
    free(next);
    free(slots);
    return st;
}
