/* waves.c - see waves.h; what is counted, and when: pipeline.h. */
#include "gpu-worker/fetch/waves.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "gpu-worker/fetch/plan.h"

enum { FILL_WINDOW = 64 }; /* experts under way while RESIDENT fills its cells */

typedef enum entry_state {
    ENTRY_WAITING = 0, /* no seat yet: the expert is `needed` */
    ENTRY_SEATED,      /* a cell is reserved for it */
    ENTRY_QUEUED,      /* its bytes are in its cell, or will be before the wave's signal */
    ENTRY_FAILED       /* holds nothing; its rows fail */
} entry_state;

typedef struct entry {
    uint32_t expert; /* flat */
    uint32_t cell;
    entry_state state;
    bool predicted;    /* its mail ran ahead of the block */
    bool announced;    /* a PREDICT named it */
    bool fetched;      /* copied for this wave (or fill), not found in a cell */
    bool active;       /* the gate chose it (PREFETCH_ALL plans more) */
    int64_t since_ns;  /* seated, or its wave was reached: the deadline runs */
    int64_t wanted_ns; /* 0: no WANT was needed */
} entry;

typedef struct wave {
    uint32_t block, index; /* flat block; 0: not planned */
    uint32_t n;
    entry *entries; /* [n] borrowed from ws->entries */
    bool signalled, done;
    int64_t reached_ns; /* 0: not yet */
} wave;

typedef struct guess {
    uint32_t n; /* 0: none */
    uint32_t block;
    bool next_step; /* that block is the next step's */
    entry entries[KRN_MAX_WAVE_EXPERTS];
} guess;

struct gw_waves {
    gw_waves_cfg cfg;
    const moe_model_shape *shape; /* borrowed from the client */
    uint32_t max_blocks;          /* of a stack */

    bool open;
    uint64_t step;
    moe_stack stack;
    uint32_t n_waves;
    wave *waves;      /* [max_blocks][max_waves] owned */
    entry *entries;   /* [max_blocks][n_experts] owned */
    uint8_t *planned; /* [max_blocks] owned: the block's waves are cut */
    uint32_t *order;  /* [max_blocks * max_waves] owned: waves in the order of planning */
    uint32_t n_order;
    uint32_t next_seat;  /* waves before it have all their cells */
    uint32_t first_open; /* waves before it are signalled */
    guess guess;
    bool *guessed;        /* [n_cells] owned: a guess began its copy, nothing has used it yet */
    uint64_t guess_bytes; /* of guessed copies begun in this step */
    bool asked;           /* PREDICT or WANT went out since begin */
    bool deadline_missed; /* by an expert, since begin */
    int64_t routed_ns;    /* RESIDENT: of the block before, in this step; 0: none */

    uint32_t fill_next; /* RESIDENT: experts before it are under way or in cells */
    uint32_t fill_n;
    entry fill[FILL_WINDOW];

    bool stopping;
    moe_err fatal; /* status MOE_OK: the device is well */
    char failed_text[GW_FAILED_TEXT_BYTES];
    uint32_t list[KRN_MAX_EXPERTS]; /* scratch: flat experts of one message */
    uint16_t set[KRN_MAX_EXPERTS];  /* scratch of planning */
    uint16_t sorted[KRN_MAX_EXPERTS];
    uint8_t near[KRN_MAX_EXPERTS];
};

moe_status gw_waves_create(const gw_waves_cfg *cfg, gw_waves **out, moe_err *err)
{
    gw_waves *ws = calloc(1, sizeof *ws);
    if (ws == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "waves");
    }
    ws->cfg = *cfg;
    ws->shape = gw_store_client_shape(cfg->client);
    for (int s = 0; s < MOE_N_STACKS; s++) {
        uint32_t n = ws->shape->stack[s].n_blocks;
        ws->max_blocks = n > ws->max_blocks ? n : ws->max_blocks;
    }
    size_t n_waves = (size_t)ws->max_blocks * cfg->max_waves;
    ws->waves = calloc(n_waves + 1, sizeof *ws->waves);
    ws->order = calloc(n_waves + 1, sizeof *ws->order);
    ws->entries = calloc((size_t)ws->max_blocks * ws->shape->n_experts + 1, sizeof *ws->entries);
    ws->planned = calloc(ws->max_blocks + 1u, sizeof *ws->planned);
    ws->guessed = calloc(cfg->n_cells, sizeof *ws->guessed);
    if (ws->guessed == NULL || ws->waves == NULL || ws->order == NULL || ws->entries == NULL ||
        ws->planned == NULL) {
        gw_waves_destroy(ws);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "tables of %zu waves", n_waves);
    }
    *out = ws;
    return MOE_OK;
}

void gw_waves_destroy(gw_waves *ws)
{
    if (ws == NULL) {
        return;
    }
    free(ws->waves);
    free(ws->order);
    free(ws->entries);
    free(ws->planned);
    free(ws->guessed);
    free(ws);
}

/* ---- small things ---------------------------------------------------------------------------- */

static void add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static moe_block_counters *counters_of(const gw_waves *ws, uint32_t expert)
{
    return gw_store_client_block_counters(ws->cfg.client, moe_block_of_expert(ws->shape, expert));
}

static char *cell_at(const gw_waves *ws, uint32_t cell)
{
    return ws->cfg.cells + (size_t)cell * (size_t)ws->cfg.cell_bytes;
}

static uint32_t first_block(const gw_waves *ws)
{
    return moe_flat_block(ws->shape, ws->stack, 0);
}

static uint32_t n_blocks(const gw_waves *ws)
{
    return ws->shape->stack[ws->stack].n_blocks;
}

static wave *wave_of(gw_waves *ws, uint32_t block, uint32_t index)
{
    uint32_t b = block - first_block(ws);
    MOE_ASSERT(b < n_blocks(ws) && index < ws->n_waves);
    return &ws->waves[(size_t)b * ws->cfg.max_waves + index];
}

static size_t row_index(const gw_waves *ws, uint32_t block, uint32_t index)
{
    size_t parity = ws->step & 1;
    return (parity * ws->shape->n_blocks_total + block) * ws->cfg.max_waves + index;
}

static void note_failure(gw_waves *ws, const char *text)
{
    if (ws->failed_text[0] == '\0') {
        snprintf(ws->failed_text, sizeof ws->failed_text, "%s", text);
    }
}

/* The first device failure ends all copying; waits are still released. */
static void note_fatal(gw_waves *ws, const moe_err *err)
{
    if (ws->fatal.status == MOE_OK) {
        ws->fatal = *err;
        note_failure(ws, err->text);
    }
}

moe_status gw_waves_health(const gw_waves *ws, moe_err *err)
{
    if (ws->fatal.status != MOE_OK && err != NULL) {
        *err = ws->fatal;
    }
    return ws->fatal.status;
}

const char *gw_waves_failed_text(const gw_waves *ws)
{
    return ws->failed_text;
}

/* ---- cells ----------------------------------------------------------------------------------- */

static gw_speculation *account_of(const gw_waves *ws, uint32_t expert)
{
    return &ws->cfg.speculation[moe_block_of_expert(ws->shape, expert)];
}

static uint64_t expert_bytes(const gw_waves *ws)
{
    return gw_store_client_welcome(ws->cfg.client)->expert_bytes;
}

/* What became of a copy that nothing used: `bytes` of it crossed the link in link_ns. */
static void count_wasted(gw_waves *ws, uint32_t cell, uint32_t expert, int64_t link_ns,
                         uint64_t bytes)
{
    add(&counters_of(ws, expert)->cell_wasted, 1);
    if (ws->guessed[cell]) {
        gw_speculation_wasted(account_of(ws, expert), link_ns, bytes);
        ws->guessed[cell] = false;
    }
}

static void count_evicted(gw_waves *ws, uint32_t cell, const gw_cell *c)
{
    int64_t link_ns = c->copy_end_ns - c->copy_begin_ns;
    count_wasted(ws, cell, c->expert, link_ns, expert_bytes(ws));
    add(&gw_store_client_counters(ws->cfg.client)->copy_hidden_ns, (uint64_t)link_ns);
}

static uint32_t take_cell(gw_waves *ws, uint32_t expert, bool reserved)
{
    gw_cell evicted = {.expert = GW_NO_EXPERT};
    uint32_t cell = gw_cell_pool_take(ws->cfg.pool, expert, reserved, &evicted);
    if (cell != GW_NO_CELL && evicted.expert != GW_NO_EXPERT && evicted.unused) {
        count_evicted(ws, cell, &evicted);
    }
    atomic_store_explicit(&gw_store_client_counters(ws->cfg.client)->cells_used,
                          gw_cell_pool_n_used(ws->cfg.pool), memory_order_relaxed);
    return cell;
}

static void on_landed(void *user, const gw_landing *l)
{
    gw_waves *ws = user;
    const gw_cell *c = gw_cell_pool_at(ws->cfg.pool, l->cell);
    if (l->complete) {
        gw_cell_pool_ready(ws->cfg.pool, l->cell, l->begin_ns, l->end_ns);
        return;
    }
    count_wasted(ws, l->cell, c->expert, l->begin_ns > 0 ? l->end_ns - l->begin_ns : 0, l->bytes);
    gw_cell_pool_drop(ws->cfg.pool, l->cell);
}

bool gw_waves_poll_copies(gw_waves *ws)
{
    bool any = false;
    moe_err err = {.status = MOE_OK};
    if (ws->fatal.status == MOE_OK &&
        gw_dma_poll(ws->cfg.dma, on_landed, ws, &any, &err) != MOE_OK) {
        note_fatal(ws, &err);
        return true;
    }
    return any;
}

/* ---- one expert ------------------------------------------------------------------------------ */

/* Gives up what the entry holds in the pool. */
static void release_entry(gw_waves *ws, const entry *e)
{
    switch (e->state) {
    case ENTRY_WAITING:
        gw_cell_pool_unneed(ws->cfg.pool, e->expert);
        break;
    case ENTRY_SEATED:
        gw_cell_pool_unreserve(ws->cfg.pool);
        break;
    case ENTRY_QUEUED:
        gw_cell_pool_unpin(ws->cfg.pool, e->cell);
        break;
    case ENTRY_FAILED:
        break;
    }
}

static void fail_entry(gw_waves *ws, entry *e, const char *why)
{
    char text[GW_FAILED_TEXT_BYTES], block[16];
    moe_block_name(ws->shape, moe_block_of_expert(ws->shape, e->expert), block, sizeof block);
    snprintf(text, sizeof text, "expert %u of block %s: %.300s", e->expert % ws->shape->n_experts,
             block, why);
    note_failure(ws, text);
    release_entry(ws, e);
    e->state = ENTRY_FAILED;
}

static void count_fetch(gw_waves *ws, const entry *e, int64_t now_ns)
{
    moe_block_counters *n = counters_of(ws, e->expert);
    add(e->predicted ? &n->fetch_predicted : &n->fetch_demand, 1);
    if (e->wanted_ns == 0) {
        add(&n->slot_hit, 1);
        return;
    }
    add(e->announced ? &n->slot_late : &n->slot_miss, 1);
    moe_histogram_add_ns(ws->cfg.store_wait, now_ns - e->wanted_ns);
    gw_trace_add(ws->cfg.trace, GW_LANE_STORE, "wait for the store", e->wanted_ns, now_ns,
                 (int32_t)moe_block_of_expert(ws->shape, e->expert), (int32_t)e->expert, 0);
}

/* Leases and queues the copy into a cell taken for it. On failure the cell is given back, unless
 * the device failed: then some bytes may still come. */
static moe_status begin_copy(gw_waves *ws, entry *e, uint32_t cell, bool speculative,
                             int64_t now_ns, moe_err *err)
{
    const gw_dma_copy copy = {
        .expert = e->expert, .cell = cell, .dst = cell_at(ws, cell), .speculative = speculative};
    moe_status st = gw_dma_start(ws->cfg.dma, &copy, err);
    if (st == MOE_OK) {
        gw_cell_pool_fill(ws->cfg.pool, cell);
        e->cell = cell;
        e->state = ENTRY_QUEUED;
        e->fetched = true;
        ws->guessed[cell] = speculative;
        ws->guess_bytes += speculative ? expert_bytes(ws) : 0;
        count_fetch(ws, e, now_ns);
    } else if (st == MOE_ERR_DEVICE) {
        note_fatal(ws, err);
        e->state = ENTRY_FAILED;
    } else {
        gw_cell_pool_give_back(ws->cfg.pool, cell);
    }
    return st;
}

/* Why does the client refuse it? MOE_ERR_AGAIN when the expert has become resident just now, or
 * failed in an earlier step: wanting it again tries again. */
static moe_status read_refusal(gw_waves *ws, const entry *e, moe_err *err)
{
    gw_lease lease;
    moe_status st = gw_store_client_lease(ws->cfg.client, e->expert, &lease, err);
    if (st == MOE_OK) {
        gw_store_client_release(ws->cfg.client, &lease);
    }
    return st == MOE_OK || (st == MOE_ERR_IO && e->wanted_ns == 0) ? MOE_ERR_AGAIN : st;
}

/* SEATED -> QUEUED if it is resident: only now something is evicted for it. -> FAILED if it will
 * not be. MOE_ERR_AGAIN: not resident yet. MOE_ERR_LIMIT: try again when something has landed. */
static moe_status queue_entry(gw_waves *ws, entry *e, int64_t now_ns)
{
    moe_err err = {.status = MOE_OK};
    moe_status st = MOE_ERR_AGAIN;
    if (gw_store_client_is_resident(ws->cfg.client, e->expert)) {
        if (!gw_dma_has_room(ws->cfg.dma, false)) {
            return MOE_ERR_LIMIT;
        }
        uint32_t cell = take_cell(ws, e->expert, true);
        st = begin_copy(ws, e, cell, false, now_ns, &err);
        bool keeps_seat =
            st == MOE_OK || st == MOE_ERR_DEVICE || gw_cell_pool_reserve(ws->cfg.pool);
        MOE_ASSERT(keeps_seat);
    } else if (gw_store_client_refuses(ws->cfg.client, e->expert)) {
        st = read_refusal(ws, e, &err);
    }
    if (st == MOE_OK || st == MOE_ERR_AGAIN || st == MOE_ERR_LIMIT) {
        return st;
    }
    fail_entry(ws, e, err.text);
    return MOE_OK;
}

/* Why it need not be waited for any longer, or NULL. A store that is away and has made one expert
 * miss its deadline is not waited for by the next ones of the step, each for as long again. */
static const char *hopeless(gw_waves *ws, const entry *e, int64_t now_ns)
{
    if (ws->stopping) {
        return "the worker is stopping";
    }
    if (ws->fatal.status != MOE_OK) {
        return ws->fatal.text;
    }
    if (e->since_ns != 0 && now_ns - e->since_ns > ws->cfg.expert_deadline_ns) {
        ws->deadline_missed = true;
        return "the store did not deliver it within the deadline";
    }
    bool away = ws->deadline_missed && !gw_store_client_store_alive(ws->cfg.client);
    return away && e->wanted_ns != 0 ? "the store is away" : NULL;
}

/* Queues what can be queued of entries that have cells, fails what is hopeless and wants the rest.
 * True if any entry moved. */
static bool queue_entries(gw_waves *ws, entry *entries, uint32_t n, bool may_want, int64_t now_ns)
{
    bool moved = false, full = false;
    uint32_t n_absent = 0;
    for (uint32_t i = 0; i < n; i++) {
        entry *e = &entries[i];
        if (e->state > ENTRY_SEATED) {
            continue;
        }
        const char *why = hopeless(ws, e, now_ns);
        if (why != NULL) {
            fail_entry(ws, e, why);
            moved = true;
        } else if (e->state == ENTRY_SEATED && !full) {
            moe_status st = queue_entry(ws, e, now_ns);
            full = st == MOE_ERR_LIMIT;
            moved = moved || st == MOE_OK;
            if (st == MOE_ERR_AGAIN && may_want) {
                e->wanted_ns = e->wanted_ns == 0 ? now_ns : e->wanted_ns;
                ws->list[n_absent++] = e->expert;
            }
        }
    }
    if (n_absent > 0) {
        ws->asked = true;
        gw_store_client_want(ws->cfg.client, ws->step, ws->list, n_absent);
    }
    return moved;
}

/* Tells the store what will be needed soon: those of the list that it does not have ready. */
static void predict(gw_waves *ws, entry *entries, uint32_t n)
{
    uint32_t n_absent = 0;
    for (uint32_t i = 0; i < n; i++) {
        entry *e = &entries[i];
        if (gw_cell_pool_find(ws->cfg.pool, e->expert) == GW_NO_CELL &&
            !gw_store_client_is_resident(ws->cfg.client, e->expert)) {
            e->announced = true;
            ws->list[n_absent++] = e->expert;
        }
    }
    if (n_absent > 0) {
        ws->asked = true;
        gw_store_client_predict(ws->cfg.client, ws->step, 1, ws->list, n_absent);
    }
}

/* ---- signalling ------------------------------------------------------------------------------ */

static void write_flag(uint32_t *flag)
{
    /* release: the row is complete before a wait on the flag can pass (backend.h, wait32_async) */
    __atomic_store_n(flag, 1, __ATOMIC_RELEASE);
}

/* Behind the copies if one of the wave's is still flying; else at once, by our own store. */
static void signal_wave(gw_waves *ws, wave *w)
{
    size_t at = row_index(ws, w->block, w->index);
    krn_wave *row = &ws->cfg.rows[at];
    bool flying = false;
    row->n = w->n;
    for (uint32_t i = 0; i < w->n; i++) {
        const entry *e = &w->entries[i];
        bool failed = e->state != ENTRY_QUEUED;
        row->entry[i] = (krn_wave_entry){.weights = cell_at(ws, failed ? ws->cfg.n_cells : e->cell),
                                         .expert = (int32_t)(e->expert % ws->shape->n_experts),
                                         .failed = failed};
        flying =
            flying || (!failed && gw_cell_pool_at(ws->cfg.pool, e->cell)->state != GW_CELL_READY);
    }
    w->signalled = true;
    moe_err err = {.status = MOE_OK};
    if (flying && ws->fatal.status == MOE_OK) {
        if (gw_dma_signal(ws->cfg.dma, &ws->cfg.flags[at], &err) == MOE_OK) {
            return;
        }
        note_fatal(ws, &err);
    }
    if (flying) { /* its bytes may never come */
        for (uint32_t i = 0; i < w->n; i++) {
            row->entry[i].weights = cell_at(ws, ws->cfg.n_cells);
            row->entry[i].failed = 1;
        }
    }
    write_flag(&ws->cfg.flags[at]);
}

static void signal_empty(gw_waves *ws, uint32_t block, uint32_t first)
{
    for (uint32_t i = first; i < ws->n_waves; i++) {
        wave *w = wave_of(ws, block, i);
        *w = (wave){.block = block, .index = i, .signalled = true};
        size_t at = row_index(ws, block, i);
        ws->cfg.rows[at].n = 0;
        write_flag(&ws->cfg.flags[at]);
    }
}

/* ---- planning -------------------------------------------------------------------------------- */

/* What the plan needs of it is protected by then, the rest is not. */
static void dissolve_guess(gw_waves *ws)
{
    guess *g = &ws->guess;
    for (uint32_t i = 0; i < g->n; i++) {
        entry *e = &g->entries[i];
        if (e->state == ENTRY_QUEUED) {
            gw_cell_pool_unpin(ws->cfg.pool, e->cell);
        }
        if (e->state == ENTRY_QUEUED && !gw_cell_pool_is_needed(ws->cfg.pool, e->expert)) {
            gw_dma_abandon(ws->cfg.dma, e->cell);
        }
    }
    g->n = 0;
}

static const entry *guessed(const gw_waves *ws, uint32_t expert)
{
    for (uint32_t i = 0; i < ws->guess.n; i++) {
        if (ws->guess.entries[i].expert == expert) {
            return &ws->guess.entries[i];
        }
    }
    return NULL;
}

static gw_near nearness(const gw_waves *ws, uint32_t expert)
{
    if (gw_cell_pool_find(ws->cfg.pool, expert) != GW_NO_CELL) {
        return GW_NEAR_CELL;
    }
    return gw_store_client_is_resident(ws->cfg.client, expert) ? GW_NEAR_SLOT : GW_NEAR_DISK;
}

/* Cuts set[0..n) (rising, within the block) into waves behind all planned ones. */
static void plan_block(gw_waves *ws, uint32_t block, const uint16_t *set, uint32_t n, bool ahead,
                       bool active)
{
    uint32_t b = block - first_block(ws), first = block * ws->shape->n_experts;
    entry *entries = &ws->entries[(size_t)b * ws->shape->n_experts];
    for (uint32_t i = 0; i < n; i++) {
        ws->near[i] = (uint8_t)nearness(ws, first + set[i]);
    }
    uint32_t n_used = gw_plan_waves(set, ws->near, n, ws->cfg.capacity, ws->sorted);
    MOE_ASSERT(n_used <= ws->n_waves);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t expert = first + ws->sorted[i];
        const entry *was = guessed(ws, expert);
        entries[i] = (entry){.expert = expert,
                             .cell = GW_NO_CELL,
                             .predicted = ahead || was != NULL,
                             .announced = was != NULL && was->announced,
                             .active = active};
        gw_cell_pool_need(ws->cfg.pool, expert);
    }
    for (uint32_t i = 0; i < n_used; i++) {
        uint32_t at = i * ws->cfg.capacity, left = n - at;
        wave *w = wave_of(ws, block, i);
        *w = (wave){.block = block,
                    .index = i,
                    .n = left < ws->cfg.capacity ? left : ws->cfg.capacity,
                    .entries = entries + at};
        ws->order[ws->n_order++] = (uint32_t)(w - ws->waves);
    }
    ws->planned[b] = 1;
    signal_empty(ws, block, n_used);
    if (ahead) {
        predict(ws, entries, n);
    }
}

/* PREFETCH_ALL planned all; now the gate has said which are used. */
static void mark_active(gw_waves *ws, const krn_mail *m)
{
    uint32_t b = m->block - first_block(ws), first = m->block * ws->shape->n_experts;
    entry *entries = &ws->entries[(size_t)b * ws->shape->n_experts];
    for (uint32_t i = 0; i < ws->shape->n_experts; i++) {
        for (uint32_t k = 0; k < m->n && !entries[i].active; k++) {
            entries[i].active = entries[i].expert == first + m->expert[k];
        }
    }
}

static void plan_all(gw_waves *ws, uint32_t block)
{
    for (uint32_t i = 0; i < ws->shape->n_experts; i++) {
        ws->set[i] = (uint16_t)i;
    }
    plan_block(ws, block, ws->set, ws->shape->n_experts, true, false);
}

/* RESIDENT's timeline has what its mails tell: a block lasts from its gate position to the next,
 * the last one to the end of the step. */
static void trace_resident(gw_waves *ws, uint32_t next_block, int64_t now_ns)
{
    if (ws->routed_ns > 0) {
        gw_trace_add(ws->cfg.trace, GW_LANE_COMPUTE, "experts", ws->routed_ns, now_ns,
                     (int32_t)next_block - 1, -1, 0);
    }
    ws->routed_ns = now_ns;
}

/* RESIDENT: everything is there. */
static void use_resident(gw_waves *ws, const krn_mail *m)
{
    add(&gw_store_client_block_counters(ws->cfg.client, m->block)->cell_hit, m->n);
    trace_resident(ws, m->block, m->time_ns);
    ws->planned[m->block - first_block(ws)] = 1;
}

static void on_routed(gw_waves *ws, const krn_mail *m)
{
    uint32_t b = m->block - first_block(ws);
    if (ws->cfg.policy == GW_RESIDENT) {
        use_resident(ws, m);
        return;
    }
    gw_cell_pool_begin_block(ws->cfg.pool, m->block);
    if (ws->cfg.policy == GW_PREFETCH_ALL) {
        if (!ws->planned[b]) {
            plan_all(ws, m->block);
        }
        mark_active(ws, m);
        return;
    }
    MOE_ASSERT(!ws->planned[b]);
    bool ahead = gw_plan_routed_ahead(ws->cfg.policy, ws->shape->pregate_lookahead, b);
    bool was_guessed = ws->guess.n > 0 && ws->guess.block == m->block;
    if (ws->guess.n > 0 && !was_guessed) {
        dissolve_guess(ws); /* its block was never routed */
    }
    plan_block(ws, m->block, m->expert, m->n, ahead, true);
    if (was_guessed) {
        dissolve_guess(ws);
    }
}

/* Blocks between the last planned one and block b of the stack; 0: b is the next. */
static uint32_t blocks_between(const gw_waves *ws, uint32_t b)
{
    uint32_t n = 0;
    while (n < b && !ws->planned[b - 1 - n]) {
        n++;
    }
    return n;
}

/* A guess of a block further ahead: the store may bring it from the drive, no cell is taken. */
static void tell_store(gw_waves *ws, const krn_mail *m, uint32_t distance)
{
    uint32_t n_absent = 0;
    for (uint32_t i = 0; i < m->n; i++) {
        uint32_t expert = m->block * ws->shape->n_experts + m->expert[i];
        if (gw_cell_pool_find(ws->cfg.pool, expert) == GW_NO_CELL &&
            !gw_store_client_is_resident(ws->cfg.client, expert)) {
            ws->list[n_absent++] = expert;
        }
    }
    if (n_absent > 0) {
        ws->asked = true;
        gw_store_client_predict(ws->cfg.client, ws->step, distance, ws->list, n_absent);
    }
}

static void begin_guess(gw_waves *ws, const krn_mail *m)
{
    guess *g = &ws->guess;
    g->block = m->block;
    g->n = m->n < ws->cfg.capacity ? m->n : ws->cfg.capacity;
    for (uint32_t i = 0; i < g->n; i++) {
        g->entries[i] = (entry){.expert = m->block * ws->shape->n_experts + m->expert[i],
                                .cell = GW_NO_CELL,
                                .predicted = true};
    }
    predict(ws, g->entries, g->n);
}

static void on_guessed(gw_waves *ws, const krn_mail *m)
{
    uint32_t b = m->block - first_block(ws), between = blocks_between(ws, b);
    gw_speculation *account = &ws->cfg.speculation[m->block];
    bool next_step = ws->planned[b]; /* its own ROUTED came long ago */
    if (next_step && (b > 0 || ws->cfg.policy == GW_PREFETCH_ALL)) {
        return;
    }
    if (ws->cfg.policy == GW_PREFETCH_ALL) {
        plan_all(ws, m->block);
    } else if (between > 0 && !next_step) {
        if (!gw_speculation_is_off(account)) {
            tell_store(ws, m, between + 1);
        }
    } else {
        dissolve_guess(ws);
        if (gw_speculation_allows(account)) {
            begin_guess(ws, m);
            ws->guess.next_step = next_step;
        }
    }
}

/* ---- mails about waves ----------------------------------------------------------------------- */

static void on_reached(gw_waves *ws, const krn_mail *m)
{
    MOE_ASSERT(ws->planned[m->block - first_block(ws)]); /* else it would wait for ever */
    wave *w = wave_of(ws, m->block, m->wave);
    w->reached_ns = m->time_ns;
}

/* End of the wave's last copy, in time to classify each expert: pipeline.h. */
static int64_t count_entry(gw_waves *ws, const wave *w, const entry *e)
{
    const gw_cell *c = gw_cell_pool_at(ws->cfg.pool, e->cell);
    moe_block_counters *n = counters_of(ws, e->expert);
    bool landed = c->state == GW_CELL_READY; /* else the device failed between */
    bool in_time = landed && c->copy_end_ns <= w->reached_ns;
    bool there = e->fetched ? e->predicted && in_time : in_time;
    add(there ? &n->cell_hit : e->predicted ? &n->cell_late : &n->cell_miss, 1);
    if (c->unused && landed) {
        int64_t until = in_time ? c->copy_end_ns : w->reached_ns;
        int64_t hidden_ns = until > c->copy_begin_ns ? until - c->copy_begin_ns : 0;
        add(&gw_store_client_counters(ws->cfg.client)->copy_hidden_ns, (uint64_t)hidden_ns);
        if (ws->guessed[e->cell]) {
            gw_speculation_used(account_of(ws, e->expert), hidden_ns);
        }
    }
    ws->guessed[e->cell] = false;
    gw_cell_pool_use(ws->cfg.pool, e->cell);
    return c->copy_end_ns;
}

static void free_wave(gw_waves *ws, wave *w)
{
    for (uint32_t i = 0; i < w->n; i++) {
        release_entry(ws, &w->entries[i]);
    }
    w->done = true;
}

static void on_done(gw_waves *ws, const krn_mail *m)
{
    wave *w = wave_of(ws, m->block, m->wave);
    if (w->done || w->n == 0) {
        return;
    }
    gw_waves_poll_copies(ws); /* its copies have landed: see their ends before classifying */
    int64_t last_ns = 0;
    for (uint32_t i = 0; i < w->n; i++) {
        const entry *e = &w->entries[i];
        if (e->state == ENTRY_QUEUED && e->active) {
            int64_t end_ns = count_entry(ws, w, e);
            last_ns = end_ns > last_ns ? end_ns : last_ns;
        }
    }
    moe_histogram_add_ns(ws->cfg.wave_wait, last_ns - w->reached_ns);
    int64_t begin_ns = last_ns > w->reached_ns ? last_ns : w->reached_ns;
    if (begin_ns > w->reached_ns) {
        gw_trace_add(ws->cfg.trace, GW_LANE_COMPUTE, "wait for experts", w->reached_ns, begin_ns,
                     (int32_t)w->block, -1, 0);
    }
    gw_trace_add(ws->cfg.trace, GW_LANE_COMPUTE, "experts", begin_ns, m->time_ns, (int32_t)w->block,
                 -1, 0);
    free_wave(ws, w);
}

void gw_waves_mail(gw_waves *ws, const krn_mail *m)
{
    MOE_ASSERT(ws->open && m->block - first_block(ws) < n_blocks(ws));
    switch ((krn_mail_kind)m->kind) {
    case KRN_MAIL_ROUTED:
        on_routed(ws, m);
        break;
    case KRN_MAIL_GUESSED:
        on_guessed(ws, m);
        break;
    case KRN_MAIL_REACHED:
        on_reached(ws, m);
        break;
    case KRN_MAIL_DONE:
        on_done(ws, m);
        break;
    }
}

/* ---- moving on ------------------------------------------------------------------------------- */

/* Pins the cell that the expert is in, if it is in any and may be pinned. */
static bool seat_found(gw_waves *ws, entry *e)
{
    moe_err err = {.status = MOE_OK};
    uint32_t cell = gw_cell_pool_find(ws->cfg.pool, e->expert);
    if (cell == GW_NO_CELL || !gw_cell_pool_pin(ws->cfg.pool, cell)) {
        return false;
    }
    e->cell = cell;
    if (gw_dma_hurry(ws->cfg.dma, cell, &err) != MOE_OK) { /* a guess that came true */
        note_fatal(ws, &err);
    }
    return true;
}

static void seat_entry(gw_waves *ws, entry *e, entry_state seat, int64_t now_ns)
{
    gw_cell_pool_unneed(ws->cfg.pool, e->expert);
    e->state = seat;
    e->since_ns = now_ns;
}

/* Pins what is in cells first, then reserves cells for the rest. False: out of cells for now. */
static bool seat_wave(gw_waves *ws, wave *w, int64_t now_ns)
{
    bool all = true;
    for (uint32_t i = 0; i < w->n; i++) {
        entry *e = &w->entries[i];
        if (e->state == ENTRY_WAITING && seat_found(ws, e)) {
            seat_entry(ws, e, ENTRY_QUEUED, now_ns);
        }
    }
    for (uint32_t i = 0; i < w->n; i++) {
        entry *e = &w->entries[i];
        if (e->state != ENTRY_WAITING) {
            continue;
        }
        bool found = gw_cell_pool_find(ws->cfg.pool, e->expert) != GW_NO_CELL;
        if (!found && gw_cell_pool_reserve(ws->cfg.pool)) {
            seat_entry(ws, e, ENTRY_SEATED, now_ns);
        } else {
            e->since_ns = e->since_ns == 0 && w->reached_ns != 0 ? now_ns : e->since_ns;
            all = false;
        }
    }
    return all;
}

static bool is_settled(const wave *w)
{
    for (uint32_t i = 0; i < w->n; i++) {
        if (w->entries[i].state <= ENTRY_SEATED) {
            return false;
        }
    }
    return true;
}

static bool advance_wave(gw_waves *ws, wave *w, bool is_head, int64_t now_ns)
{
    bool ahead = gw_plan_routed_ahead(ws->cfg.policy, ws->shape->pregate_lookahead,
                                      w->block - first_block(ws)) ||
                 ws->cfg.policy == GW_PREFETCH_ALL;
    bool may_want = is_head || !ahead || w->reached_ns != 0;
    bool moved = queue_entries(ws, w->entries, w->n, may_want, now_ns);
    if (is_settled(w)) {
        signal_wave(ws, w);
        moved = true;
    }
    return moved;
}

/* MOE_OK: it has its cell. MOE_ERR_AGAIN: it cannot now, others may. MOE_ERR_LIMIT: nor can they.
 */
static moe_status advance_guess_entry(gw_waves *ws, entry *e, int64_t now_ns)
{
    uint32_t cell = gw_cell_pool_find(ws->cfg.pool, e->expert);
    if (cell != GW_NO_CELL) {
        if (!gw_cell_pool_pin(ws->cfg.pool, cell)) {
            return MOE_ERR_AGAIN;
        }
        gw_dma_keep(ws->cfg.dma, cell);
        e->cell = cell;
        e->state = ENTRY_QUEUED;
        return MOE_OK;
    }
    if (!gw_store_client_is_resident(ws->cfg.client, e->expert)) {
        return MOE_ERR_AGAIN; /* the store was told */
    }
    uint64_t budget = ws->cfg.predict_bytes;
    if (!gw_dma_has_room(ws->cfg.dma, true) ||
        (budget > 0 && ws->guess_bytes + expert_bytes(ws) > budget)) {
        return MOE_ERR_LIMIT;
    }
    moe_err err = {.status = MOE_OK};
    cell = take_cell(ws, e->expert, false);
    return cell == GW_NO_CELL ? MOE_ERR_LIMIT : begin_copy(ws, e, cell, true, now_ns, &err);
}

/* One more guess gets its copy, if it can. */
static bool advance_guess(gw_waves *ws, int64_t now_ns)
{
    guess *g = &ws->guess;
    moe_status st = MOE_ERR_AGAIN;
    for (uint32_t i = 0; i < g->n && st == MOE_ERR_AGAIN; i++) {
        if (g->entries[i].state == ENTRY_WAITING) {
            st = advance_guess_entry(ws, &g->entries[i], now_ns);
        }
    }
    return st == MOE_OK;
}

bool gw_waves_advance(gw_waves *ws, int64_t now_ns)
{
    bool moved = false;
    while (ws->next_seat < ws->n_order &&
           seat_wave(ws, &ws->waves[ws->order[ws->next_seat]], now_ns)) {
        ws->next_seat++;
        moved = true;
    }
    bool head = true;
    for (uint32_t i = ws->first_open; i < ws->n_order && i <= ws->next_seat; i++) {
        wave *w = &ws->waves[ws->order[i]];
        if (!w->signalled) {
            moved = advance_wave(ws, w, head, now_ns) || moved;
            head = false;
        }
    }
    while (ws->first_open < ws->n_order && ws->waves[ws->order[ws->first_open]].signalled) {
        ws->first_open++;
    }
    if (ws->first_open == ws->n_order && ws->guess.n > 0 && ws->fatal.status == MOE_OK) {
        moved = advance_guess(ws, now_ns) || moved;
    }
    return moved;
}

/* ---- steps ----------------------------------------------------------------------------------- */

void gw_waves_begin(gw_waves *ws, uint64_t step, moe_stack stack, uint32_t n_waves)
{
    MOE_ASSERT(!ws->open && n_waves <= ws->cfg.max_waves);
    ws->open = true;
    ws->step = step;
    ws->stack = stack;
    ws->n_waves = n_waves;
    ws->n_order = 0;
    ws->next_seat = 0;
    ws->first_open = 0;
    ws->asked = false;
    ws->failed_text[0] = '\0';
    ws->deadline_missed = false;
    ws->routed_ns = 0;
    ws->guess_bytes = 0;
    memset(ws->planned, 0, ws->max_blocks);
    if (ws->guess.block != first_block(ws)) {
        dissolve_guess(ws); /* it was of a decode step, and a prompt came between */
    }
    ws->guess.next_step = false;
}

void gw_waves_release_all(gw_waves *ws)
{
    ws->stopping = true;
    if (!ws->open) {
        return;
    }
    for (uint32_t i = ws->first_open; i < ws->n_order; i++) {
        wave *w = &ws->waves[ws->order[i]];
        if (!w->signalled) {
            queue_entries(ws, w->entries, w->n, false, 0);
            signal_wave(ws, w);
        }
    }
    for (uint32_t b = 0; b < n_blocks(ws); b++) {
        if (!ws->planned[b]) {
            signal_empty(ws, first_block(ws) + b, 0);
        }
    }
}

/* Waves that never reported DONE: their flags may be set, or be set by copies yet to land. */
static void reset_flags(gw_waves *ws)
{
    moe_err err = {.status = MOE_OK};
    if (ws->fatal.status == MOE_OK && gw_dma_sync(ws->cfg.dma, &err) != MOE_OK) {
        note_fatal(ws, &err);
    }
    for (uint32_t b = 0; b < n_blocks(ws); b++) {
        for (uint32_t i = 0; i < ws->n_waves; i++) {
            __atomic_store_n(&ws->cfg.flags[row_index(ws, first_block(ws) + b, i)], 0,
                             __ATOMIC_RELAXED);
        }
    }
}

void gw_waves_end(gw_waves *ws)
{
    bool all_done = true;
    if (ws->cfg.policy == GW_RESIDENT) {
        trace_resident(ws, first_block(ws) + n_blocks(ws), moe_now_ns());
    }
    for (uint32_t i = 0; i < ws->n_order; i++) {
        wave *w = &ws->waves[ws->order[i]];
        if (w->done) {
            continue;
        }
        all_done = false;
        free_wave(ws, w);
    }
    for (uint32_t b = 0; b < n_blocks(ws); b++) {
        all_done = all_done && ws->planned[b];
    }
    if (!all_done) {
        reset_flags(ws);
    }
    bool keeps_guess = ws->guess.n > 0 && ws->guess.next_step && all_done;
    bool leftover = (ws->guess.n > 0 && !keeps_guess) || ws->failed_text[0] != '\0' || !all_done;
    if (!keeps_guess) {
        dissolve_guess(ws);
    }
    if (ws->asked && leftover) {
        gw_store_client_cancel(ws->cfg.client, ws->step);
    }
    ws->open = false;
}

/* ---- RESIDENT -------------------------------------------------------------------------------- */

static void fill_window(gw_waves *ws, int64_t now_ns)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < ws->fill_n; i++) {
        if (ws->fill[i].state == ENTRY_SEATED) {
            ws->fill[kept++] = ws->fill[i];
        } else {
            release_entry(ws, &ws->fill[i]);
        }
    }
    ws->fill_n = kept;
    while (ws->fill_n < FILL_WINDOW && ws->fill_next < ws->shape->n_experts_total &&
           gw_cell_pool_reserve(ws->cfg.pool)) {
        ws->fill[ws->fill_n++] = (entry){.expert = ws->fill_next++,
                                         .state = ENTRY_SEATED,
                                         .predicted = true,
                                         .since_ns = now_ns};
    }
}

bool gw_waves_fill(gw_waves *ws, int64_t now_ns, moe_status *out_st, moe_err *err)
{
    fill_window(ws, now_ns);
    queue_entries(ws, ws->fill, ws->fill_n, true, now_ns);
    if (ws->fatal.status != MOE_OK) {
        *out_st = gw_waves_health(ws, err);
        return true;
    }
    if (ws->failed_text[0] != '\0') {
        *out_st = MOE_FAIL(err, MOE_ERR_IO, "cannot fill the cells: %.300s", ws->failed_text);
        return true;
    }
    *out_st = MOE_OK;
    return ws->fill_next == ws->shape->n_experts_total && ws->fill_n == 0 &&
           gw_dma_is_idle(ws->cfg.dma);
}
