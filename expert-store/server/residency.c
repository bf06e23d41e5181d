/* residency.c - see residency.h. */
#include "expert-store/server/residency.h"

#include <stdlib.h>
#include <string.h>

#include "expert-store/policy/popularity.h"

typedef struct expert_notes {
    uint64_t uses_seen; /* of the uses in lease tables, those that popularity knows */
    int64_t predicted_until_ns;
    uint64_t uses_at_prediction;
    bool pinned;
} expert_notes;

struct xs_residency {
    xs_residency_cfg cfg;
    _Atomic uint64_t *words;  /* [n_experts], borrowed: the board's */
    xs_slot_pool *pool;       /* owned */
    expert_notes *notes;      /* [n_experts], owned */
    xs_candidate *candidates; /* [n_slots], owned; scratch of one eviction */
    bool *leased;             /* [n_slots], owned; scratch of one scan */
    xs_popularity popularity;
    uint32_t generation; /* the last one given */
    uint32_t sieve_hand;
    uint32_t n_pinned;
    uint32_t n_awaited; /* slots below it are worth waiting for */
    xs_residency_counters counters;
};

/* ---- the board as a whole ---- */

static uint64_t magic_word(const char *text)
{
    uint64_t word = 0;
    memcpy(&word, text, sizeof word);
    return word;
}

void xs_board_format(void *board, const xs_board_geometry *g)
{
    moe_board_header *h = board;
    memcpy(h->store_uuid, g->store_uuid, sizeof h->store_uuid);
    h->n_experts = g->n_experts;
    h->n_slots = g->n_slots;
    h->layout = MOE_BOARD_LAYOUT;
    h->slot_bytes = g->slot_bytes;
    /* release: whoever sees the magic sees the fields above. */
    atomic_store_explicit(&h->magic, magic_word(MOE_BOARD_MAGIC), memory_order_release);
}

static uint32_t n_made_of(const void *board)
{
    const moe_board_header *h = board;
    return atomic_load_explicit(&h->n_made, memory_order_acquire);
}

static moe_status check_header(const moe_board_header *h, const xs_board_geometry *g, moe_err *err)
{
    uint64_t magic = atomic_load_explicit(&h->magic, memory_order_acquire);
    if (magic != magic_word(MOE_BOARD_MAGIC)) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "no finished board there");
    }
    if (h->layout != MOE_BOARD_LAYOUT) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "board layout %u, not %u", h->layout,
                        (uint32_t)MOE_BOARD_LAYOUT);
    }
    if (memcmp(h->store_uuid, g->store_uuid, sizeof h->store_uuid) != 0) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "experts of another store");
    }
    if (n_made_of(h) > h->n_slots) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "more than its %u slots are made", h->n_slots);
    }
    if (h->n_experts != g->n_experts || h->n_slots != g->n_slots ||
        h->slot_bytes != g->slot_bytes) {
        return MOE_FAIL(err, MOE_ERR_FORMAT,
                        "%u experts in %u slots of %llu bytes there, %u in %u of %llu asked for",
                        h->n_experts, h->n_slots, (unsigned long long)h->slot_bytes, g->n_experts,
                        g->n_slots, (unsigned long long)g->slot_bytes);
    }
    return MOE_OK;
}

static bool holds_slot(moe_board_state state)
{
    return state == MOE_BOARD_LOADING || state == MOE_BOARD_READY || state == MOE_BOARD_EVICTING;
}

static moe_status check_words(const _Atomic uint64_t *words, const xs_board_geometry *g,
                              uint32_t n_made, bool *taken, moe_err *err)
{
    for (uint32_t x = 0; x < g->n_experts; x++) {
        uint64_t w = atomic_load_explicit(&words[x], memory_order_acquire);
        moe_board_state state = moe_board_word_state(w);
        uint32_t slot = moe_board_word_slot(w);
        if (state > MOE_BOARD_FAILED) {
            return MOE_FAIL(err, MOE_ERR_FORMAT, "expert %u: unknown state %u", x, (uint32_t)state);
        }
        if (!holds_slot(state)) {
            continue;
        }
        if (slot >= n_made) {
            return MOE_FAIL(err, MOE_ERR_FORMAT, "expert %u: slot %u of %u", x, slot, n_made);
        }
        if (taken[slot]) {
            return MOE_FAIL(err, MOE_ERR_FORMAT, "expert %u: slot %u is another expert's too", x,
                            slot);
        }
        taken[slot] = true;
    }
    return MOE_OK;
}

moe_status xs_board_check(const void *board, uint64_t bytes, const xs_board_geometry *g,
                          moe_err *err)
{
    if (bytes < MOE_BOARD_WORDS_OFF || bytes != moe_board_bytes(g->n_experts)) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "board of %llu bytes, %llu expected",
                        (unsigned long long)bytes,
                        (unsigned long long)moe_board_bytes(g->n_experts));
    }
    moe_status st = check_header(board, g, err);
    if (st != MOE_OK) {
        return st;
    }
    bool *taken = calloc(g->n_slots, sizeof *taken);
    if (taken == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "table of %u slots", g->n_slots);
    }
    const char *words = (const char *)board + MOE_BOARD_WORDS_OFF;
    st =
        check_words((const _Atomic uint64_t *)(const void *)words, g, n_made_of(board), taken, err);
    free(taken);
    return st;
}

void xs_board_shrink(void *board, uint32_t n)
{
    moe_board_header *h = board;
    _Atomic uint64_t *words = moe_board_words(board);
    for (uint32_t x = 0; x < h->n_experts; x++) {
        uint64_t w = atomic_load_explicit(&words[x], memory_order_acquire);
        if (holds_slot(moe_board_word_state(w)) && moe_board_word_slot(w) >= n) {
            atomic_store_explicit(&words[x],
                                  moe_board_word(moe_board_word_generation(w), 0, MOE_BOARD_ABSENT),
                                  memory_order_release);
        }
    }
    if (n_made_of(board) > n) {
        atomic_store_explicit(&h->n_made, n, memory_order_release);
    }
}

void xs_board_supersede(void *board)
{
    moe_board_header *h = board;
    atomic_store_explicit(&h->serving, 0, memory_order_release);
    atomic_store_explicit(&h->magic, magic_word(MOE_BOARD_SUPERSEDED), memory_order_release);
}

/* ---- life ---- */

moe_status xs_residency_create(const xs_residency_cfg *cfg, xs_residency **out, moe_err *err)
{
    moe_status st = MOE_OK;
    xs_residency *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "residency of %u experts", cfg->n_experts);
    }
    r->cfg = *cfg;
    r->words = moe_board_words(cfg->board);
    r->notes = calloc(cfg->n_experts, sizeof *r->notes);
    r->candidates = calloc(cfg->n_slots, sizeof *r->candidates);
    r->leased = calloc(cfg->n_slots, sizeof *r->leased);
    if (r->notes == NULL || r->candidates == NULL || r->leased == NULL) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "residency of %u experts", cfg->n_experts);
        goto fail;
    }
    st = xs_slot_pool_create(cfg->n_slots, &r->pool, err);
    if (st != MOE_OK) {
        goto fail;
    }
    xs_slot_pool_grow(r->pool, n_made_of(cfg->board));
    xs_residency_set_budget(r, cfg->n_budget);
    st = xs_popularity_init(&r->popularity, cfg->n_experts, xs_popularity_period(cfg->n_experts),
                            err);
    if (st != MOE_OK) {
        goto fail;
    }
    *out = r;
    return MOE_OK;
fail:
    xs_residency_destroy(r);
    return st;
}

void xs_residency_destroy(xs_residency *r)
{
    if (r == NULL) {
        return;
    }
    xs_slot_pool_destroy(r->pool);
    xs_popularity_fini(&r->popularity);
    free(r->notes);
    free(r->candidates);
    free(r->leased);
    free(r);
}

void xs_residency_grow(xs_residency *r, uint32_t n_made)
{
    moe_board_header *h = r->cfg.board;
    xs_slot_pool_grow(r->pool, n_made);
    /* release: the pages come before the number that allows to touch them. */
    atomic_store_explicit(&h->n_made, n_made, memory_order_release);
}

void xs_residency_set_budget(xs_residency *r, uint32_t n_budget)
{
    moe_board_header *h = r->cfg.board;
    MOE_ASSERT(n_budget <= r->cfg.n_slots);
    if (r->n_awaited == 0 || n_budget < r->n_awaited || n_budget >= r->cfg.n_experts) {
        r->n_awaited = n_budget;
    }
    atomic_store_explicit(&h->n_budget, n_budget, memory_order_relaxed); /* read after n_made */
}

void xs_residency_set_max_pinned(xs_residency *r, uint32_t max_pinned)
{
    r->cfg.max_pinned = max_pinned;
}

static uint32_t n_made(const xs_residency *r)
{
    return n_made_of(r->cfg.board);
}

bool xs_residency_waits_for_memory(const xs_residency *r)
{
    return xs_slot_pool_count(r->pool, XS_SLOT_FREE) == 0 && n_made(r) < r->n_awaited;
}

static uint64_t word_of(const xs_residency *r, uint32_t expert)
{
    MOE_ASSERT(expert < r->cfg.n_experts);
    return atomic_load_explicit(&r->words[expert], memory_order_relaxed); /* our own stores */
}

/* release: the bytes of the slot come before READY (pairs with the acquire of moe_lease_take). */
static void set_word(xs_residency *r, uint32_t expert, uint32_t generation, uint32_t slot,
                     moe_board_state state)
{
    atomic_store_explicit(&r->words[expert], moe_board_word(generation, slot, state),
                          memory_order_release);
}

static void set_absent(xs_residency *r, uint32_t expert)
{
    set_word(r, expert, moe_board_word_generation(word_of(r, expert)), 0, MOE_BOARD_ABSENT);
}

static uint64_t uses(const xs_residency *r, uint32_t expert, int64_t *last_ns)
{
    return xs_lease_view_uses(r->cfg.leases, expert, last_ns);
}

static uint64_t uses_only(const xs_residency *r, uint32_t expert)
{
    int64_t last_ns = 0;
    return uses(r, expert, &last_ns);
}

/* ---- adoption ---- */

/* What lease tables say of the time before this store is all there is to know. */
static void seed_popularity(xs_residency *r)
{
    for (uint32_t x = 0; x < r->cfg.n_experts; x++) {
        r->notes[x].uses_seen = uses_only(r, x);
        xs_popularity_seed(&r->popularity, x, r->notes[x].uses_seen);
    }
}

static void adopt_word(xs_residency *r, uint32_t expert, int64_t now_ns)
{
    uint64_t w = atomic_load_explicit(&r->words[expert], memory_order_acquire);
    uint32_t generation = moe_board_word_generation(w);
    uint32_t slot = moe_board_word_slot(w);
    if (generation > r->generation) {
        r->generation = generation;
    }
    switch (moe_board_word_state(w)) {
    case MOE_BOARD_EVICTING:
        set_word(r, expert, generation, slot, MOE_BOARD_READY);
        /* fallthrough */
    case MOE_BOARD_READY:
        xs_slot_pool_adopt(r->pool, slot, expert, now_ns);
        xs_slot_pool_at(r->pool, slot)->uses_at_load = uses_only(r, expert);
        r->counters.adopted++;
        break;
    case MOE_BOARD_LOADING:
        r->counters.adopted_loading++;
        /* fallthrough */
    case MOE_BOARD_FAILED:
        set_absent(r, expert);
        break;
    case MOE_BOARD_ABSENT:
        break;
    }
}

void xs_residency_adopt(xs_residency *r, int64_t now_ns)
{
    for (uint32_t x = 0; x < r->cfg.n_experts; x++) {
        adopt_word(r, x, now_ns);
    }
    seed_popularity(r);
    for (uint32_t s = 0; s < n_made(r); s++) {
        if (xs_slot_pool_at(r->pool, s)->state == XS_SLOT_FREE &&
            xs_lease_view_names_slot(r->cfg.leases, s)) {
            xs_slot_pool_condemn(r->pool, s);
            r->counters.condemned++;
        }
    }
}

/* ---- evicting ---- */

static void note_uses(xs_residency *r, uint32_t expert, uint64_t n)
{
    expert_notes *notes = &r->notes[expert];
    if (n > notes->uses_seen) {
        xs_popularity_use(&r->popularity, expert, n - notes->uses_seen);
        notes->uses_seen = n;
    }
}

/* Place = slot, so that SIEVE's hand keeps its meaning; what is no candidate counts as leased. */
static void describe_slots(xs_residency *r, bool spare_predicted, int64_t now_ns)
{
    memset(r->leased, 0, n_made(r) * sizeof *r->leased);
    (void)xs_lease_view_mark(r->cfg.leases, r->leased, n_made(r)); /* step 1 */
    for (uint32_t i = 0; i < n_made(r); i++) {
        const xs_slot *s = xs_slot_pool_at(r->pool, i);
        xs_candidate *c = &r->candidates[i];
        *c = (xs_candidate){.slot = i, .leased = true};
        if (s->state != XS_SLOT_READY) {
            continue;
        }
        int64_t last_ns = s->loaded_ns;
        uint64_t n = uses(r, s->expert, &last_ns);
        c->expert = s->expert;
        c->last_use_ns = last_ns;
        c->loaded_ns = s->loaded_ns;
        c->leased = r->leased[i];
        c->pinned = s->n_holds > 0 || r->notes[s->expert].pinned;
        c->predicted = spare_predicted && xs_residency_is_predicted(r, s->expert, now_ns);
        c->pinned = c->pinned || c->predicted;
        c->visited = n > s->uses_at_sieve;
        note_uses(r, s->expert, n);
    }
    for (uint32_t i = 0; i < n_made(r); i++) { /* all at one moment: noting moves the clock */
        r->candidates[i].uses = xs_popularity_get(&r->popularity, r->candidates[i].expert);
    }
}

/* SIEVE cleared the bits its hand passed: remember up to where uses are old news. */
static void note_sieve(xs_residency *r)
{
    for (uint32_t i = 0; i < n_made(r); i++) {
        xs_slot *s = xs_slot_pool_at(r->pool, i);
        if (s->state == XS_SLOT_READY && !r->candidates[i].visited) {
            uint64_t n = uses_only(r, s->expert);
            s->uses_at_sieve = n > s->uses_at_sieve ? n : s->uses_at_sieve;
        }
    }
}

static void count_eviction(xs_residency *r, const xs_slot *s)
{
    r->counters.evictions++;
    xs_recorder_note(r->cfg.recorder, XS_TRACE_EVICT, s->expert, 1);
    if (s->why != XS_FETCH_DEMAND && !s->wanted && uses_only(r, s->expert) == s->uses_at_load) {
        r->counters.wasted++;
    }
}

/* Steps 2 to 4 of proto/lease_table.h. False: a lease appeared, the expert stays. */
static bool try_evict(xs_residency *r, uint32_t slot)
{
    const xs_slot *s = xs_slot_pool_at(r->pool, slot);
    uint64_t ready = word_of(r, s->expert);
    uint32_t generation = moe_board_word_generation(ready);
    uint64_t expected = ready;
    bool swapped = atomic_compare_exchange_strong_explicit(
        &r->words[s->expert], &expected, moe_board_word(generation, slot, MOE_BOARD_EVICTING),
        memory_order_seq_cst, memory_order_seq_cst);
    MOE_ASSERT(swapped); /* nobody else writes the board */
    xs_kill_point(r->cfg.kill, XS_KILL_EVICTING);
    if (xs_lease_view_names_slot(r->cfg.leases, slot)) {
        atomic_store_explicit(&r->words[s->expert], ready, memory_order_seq_cst);
        r->counters.evict_retries++;
        return false;
    }
    count_eviction(r, s);
    set_word(r, s->expert, generation, 0, MOE_BOARD_ABSENT);
    xs_slot_pool_release(r->pool, slot);
    return true;
}

static bool evict_one_of(xs_residency *r, bool spare_predicted, int64_t now_ns)
{
    describe_slots(r, spare_predicted, now_ns);
    for (uint32_t tries = 0; tries < n_made(r); tries++) {
        int64_t choice = xs_evict_choose(r->cfg.policy, r->candidates, n_made(r), &r->sieve_hand);
        if (choice < 0) {
            return false;
        }
        if (try_evict(r, r->candidates[choice].slot)) {
            if (r->cfg.policy == XS_EVICT_SIEVE) {
                note_sieve(r);
            }
            return true;
        }
        r->candidates[choice].leased = true;
    }
    return false;
}

/* Guesses leave predicted experts alone, whatever the policy. Under PREDICTED a demand takes their
 * slots only when nothing else may go. */
static bool evict_for(xs_residency *r, xs_fetch_class why, int64_t now_ns)
{
    bool demand = why == XS_FETCH_DEMAND;
    bool spare = !demand || r->cfg.policy == XS_EVICT_PREDICTED;
    return evict_one_of(r, spare, now_ns) || (demand && spare && evict_one_of(r, false, now_ns));
}

moe_status xs_residency_evict(xs_residency *r, uint32_t expert, moe_err *err)
{
    if (xs_residency_state(r, expert) != MOE_BOARD_READY) {
        return MOE_FAIL(err, MOE_ERR_NOT_FOUND, "expert %u is not in memory", expert);
    }
    uint32_t slot = xs_residency_slot_of(r, expert);
    if (xs_slot_pool_at(r->pool, slot)->n_holds > 0 || r->notes[expert].pinned ||
        xs_lease_view_names_slot(r->cfg.leases, slot) || !try_evict(r, slot)) {
        return MOE_FAIL(err, MOE_ERR_BUSY, "expert %u is in use or pinned", expert);
    }
    return MOE_OK;
}

/* ---- loading ---- */

moe_status xs_residency_begin_load(xs_residency *r, uint32_t expert, xs_fetch_class why,
                                   int64_t now_ns, uint32_t *out_slot, moe_err *err)
{
    moe_board_state state = xs_residency_state(r, expert);
    MOE_ASSERT(state == MOE_BOARD_ABSENT || state == MOE_BOARD_FAILED);
    if (xs_slot_pool_count(r->pool, XS_SLOT_FREE) == 0 && !evict_for(r, why, now_ns)) {
        return MOE_FAIL(err, MOE_ERR_NO_SLOT, "every slot is leased, held, pinned or loading");
    }
    uint32_t slot = 0;
    moe_status st = xs_slot_pool_acquire(r->pool, expert, why, &slot, err);
    if (st != MOE_OK) {
        return st;
    }
    xs_slot *s = xs_slot_pool_at(r->pool, slot);
    s->wanted = why == XS_FETCH_DEMAND;
    s->uses_at_load = uses_only(r, expert);
    s->uses_at_sieve = s->uses_at_load + 1; /* the use it is loaded for is no visit */
    r->generation++;
    set_word(r, expert, r->generation, slot, MOE_BOARD_LOADING);
    *out_slot = slot;
    return MOE_OK;
}

void xs_residency_publish(xs_residency *r, uint32_t slot, int64_t now_ns)
{
    uint32_t expert = xs_slot_pool_at(r->pool, slot)->expert;
    xs_slot_pool_publish(r->pool, slot, now_ns);
    set_word(r, expert, moe_board_word_generation(word_of(r, expert)), slot, MOE_BOARD_READY);
}

void xs_residency_fail(xs_residency *r, uint32_t slot, bool asked)
{
    uint32_t expert = xs_slot_pool_at(r->pool, slot)->expert;
    xs_slot_pool_release(r->pool, slot);
    set_word(r, expert, moe_board_word_generation(word_of(r, expert)), 0,
             asked ? MOE_BOARD_FAILED : MOE_BOARD_ABSENT);
}

void xs_residency_condemn(xs_residency *r, uint32_t slot)
{
    const xs_slot *s = xs_slot_pool_at(r->pool, slot);
    MOE_ASSERT(s->state == XS_SLOT_READY);
    /* A lease taken from now on fails its own check (step 3 of the worker). seq_cst: as in
     * try_evict, against the scan in sweep. */
    uint64_t absent =
        moe_board_word(moe_board_word_generation(word_of(r, s->expert)), 0, MOE_BOARD_ABSENT);
    atomic_store_explicit(&r->words[s->expert], absent, memory_order_seq_cst);
    xs_slot_pool_condemn(r->pool, slot);
    r->counters.condemned++;
}

uint32_t xs_residency_sweep(xs_residency *r)
{
    uint32_t n_freed = 0;
    if (xs_slot_pool_count(r->pool, XS_SLOT_CONDEMNED) == 0) {
        return 0;
    }
    for (uint32_t i = 0; i < n_made(r); i++) {
        const xs_slot *s = xs_slot_pool_at(r->pool, i);
        if (s->state == XS_SLOT_CONDEMNED && s->n_holds == 0 &&
            !xs_lease_view_names_slot(r->cfg.leases, i)) {
            xs_slot_pool_release(r->pool, i);
            n_freed++;
        }
    }
    return n_freed;
}

/* ---- looking and marking ---- */

moe_board_state xs_residency_state(const xs_residency *r, uint32_t expert)
{
    return moe_board_word_state(word_of(r, expert));
}

uint32_t xs_residency_slot_of(const xs_residency *r, uint32_t expert)
{
    return moe_board_word_slot(word_of(r, expert));
}

xs_slot *xs_residency_slot(xs_residency *r, uint32_t slot)
{
    return xs_slot_pool_at(r->pool, slot);
}

uint32_t xs_residency_count(const xs_residency *r, xs_slot_state state)
{
    return xs_slot_pool_count(r->pool, state);
}

const bool *xs_residency_mark_leased(xs_residency *r)
{
    memset(r->leased, 0, n_made(r) * sizeof *r->leased);
    (void)xs_lease_view_mark(r->cfg.leases, r->leased, n_made(r));
    return r->leased;
}

uint32_t xs_residency_leased(xs_residency *r)
{
    const bool *leased = xs_residency_mark_leased(r);
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_made(r); i++) {
        n += leased[i];
    }
    return n;
}

uint64_t xs_residency_recent_uses(xs_residency *r, uint32_t expert)
{
    note_uses(r, expert, uses_only(r, expert));
    return xs_popularity_get(&r->popularity, expert) / XS_ONE_USE;
}

void xs_residency_hold(xs_residency *r, uint32_t slot)
{
    MOE_ASSERT(xs_slot_pool_at(r->pool, slot)->state == XS_SLOT_READY);
    xs_slot_pool_at(r->pool, slot)->n_holds++;
}

void xs_residency_release_hold(xs_residency *r, uint32_t slot)
{
    MOE_ASSERT(xs_slot_pool_at(r->pool, slot)->n_holds > 0);
    xs_slot_pool_at(r->pool, slot)->n_holds--;
}

void xs_residency_predict(xs_residency *r, uint32_t expert, int64_t now_ns)
{
    r->notes[expert].predicted_until_ns = now_ns + r->cfg.predict_keep_ns;
    r->notes[expert].uses_at_prediction = uses_only(r, expert);
}

bool xs_residency_is_predicted(const xs_residency *r, uint32_t expert, int64_t now_ns)
{
    const expert_notes *n = &r->notes[expert];
    return n->predicted_until_ns > now_ns && uses_only(r, expert) == n->uses_at_prediction;
}

moe_status xs_residency_may_pin(const xs_residency *r, const uint32_t *experts, uint32_t n,
                                moe_err *err)
{
    uint32_t n_new = 0;
    for (uint32_t i = 0; i < n; i++) {
        n_new += !r->notes[experts[i]].pinned; /* named twice: counted twice */
    }
    if (r->n_pinned + n_new > r->cfg.max_pinned) {
        return MOE_FAIL(err, MOE_ERR_LIMIT,
                        "%u experts are pinned, %u more would leave workers too few slots: at most "
                        "%u; raise --ram-bytes, or name fewer",
                        r->n_pinned, n_new, r->cfg.max_pinned);
    }
    return MOE_OK;
}

moe_status xs_residency_pin(xs_residency *r, uint32_t expert, bool pin, moe_err *err)
{
    MOE_ASSERT(expert < r->cfg.n_experts);
    if (r->notes[expert].pinned == pin) {
        return MOE_OK;
    }
    moe_status st = pin ? xs_residency_may_pin(r, &expert, 1, err) : MOE_OK;
    if (st != MOE_OK) {
        return st;
    }
    r->notes[expert].pinned = pin;
    r->n_pinned = pin ? r->n_pinned + 1 : r->n_pinned - 1;
    return MOE_OK;
}

uint32_t xs_residency_n_pinned(const xs_residency *r)
{
    return r->n_pinned;
}

const xs_residency_counters *xs_residency_get_counters(const xs_residency *r)
{
    return &r->counters;
}
