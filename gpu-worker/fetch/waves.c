/* waves.c - see waves.h; what is counted, and when: pipeline.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "gpu-worker/fetch/waves_internal.h"

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

static uint32_t first_block(const gw_waves *ws)
{
    return moe_flat_block(ws->shape, ws->stack, 0);
}

static uint32_t n_blocks(const gw_waves *ws)
{
    return ws->shape->stack[ws->stack].n_blocks;
}

static gw_wave *wave_of(gw_waves *ws, uint32_t block, uint32_t index)
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

void gw_waves_note_failure(gw_waves *ws, const char *text)
{
    if (ws->failed_text[0] == '\0') {
        snprintf(ws->failed_text, sizeof ws->failed_text, "%s", text);
    }
}

void gw_waves_note_fatal(gw_waves *ws, const moe_err *err)
{
    if (ws->fatal.status == MOE_OK) {
        ws->fatal = *err;
        gw_waves_note_failure(ws, err->text);
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

/* ---- signalling ------------------------------------------------------------------------------ */

static void write_flag(uint32_t *flag)
{
    /* release: the row is complete before a wait on the flag can pass (backend.h, wait32_async) */
    __atomic_store_n(flag, 1, __ATOMIC_RELEASE);
}

/* Behind the copies if one of the wave's is still flying; else at once, by our own store. */
static void signal_wave(gw_waves *ws, gw_wave *w)
{
    size_t at = row_index(ws, w->block, w->index);
    krn_wave *row = &ws->cfg.rows[at];
    bool flying = false;
    row->n = w->n;
    for (uint32_t i = 0; i < w->n; i++) {
        const gw_entry *e = &w->entries[i];
        bool failed = e->state != GW_ENTRY_QUEUED;
        row->entry[i] =
            (krn_wave_entry){.weights = gw_waves_cell(ws, failed ? ws->cfg.n_cells : e->cell),
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
        gw_waves_note_fatal(ws, &err);
    }
    if (flying) { /* its bytes may never come */
        for (uint32_t i = 0; i < w->n; i++) {
            row->entry[i].weights = gw_waves_cell(ws, ws->cfg.n_cells);
            row->entry[i].failed = 1;
        }
    }
    write_flag(&ws->cfg.flags[at]);
}

static void signal_empty(gw_waves *ws, uint32_t block, uint32_t first)
{
    for (uint32_t i = first; i < ws->n_waves; i++) {
        gw_wave *w = wave_of(ws, block, i);
        *w = (gw_wave){.block = block, .index = i, .signalled = true};
        size_t at = row_index(ws, block, i);
        ws->cfg.rows[at].n = 0;
        write_flag(&ws->cfg.flags[at]);
    }
}

/* ---- planning -------------------------------------------------------------------------------- */

/* Cuts set[0..n) (rising, within the block) into waves behind all planned ones. */
static void plan_block(gw_waves *ws, uint32_t block, const uint16_t *set, uint32_t n, bool ahead,
                       bool active)
{
    uint32_t b = block - first_block(ws), first = block * ws->shape->n_experts;
    gw_entry *entries = &ws->entries[(size_t)b * ws->shape->n_experts];
    for (uint32_t i = 0; i < n; i++) {
        ws->near[i] = (uint8_t)gw_waves_nearness(ws, first + set[i]);
    }
    uint32_t n_used = gw_plan_waves(set, ws->near, n, ws->cfg.capacity, ws->sorted);
    MOE_ASSERT(n_used <= ws->n_waves);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t expert = first + ws->sorted[i];
        const gw_entry *was = gw_guess_find(ws, expert);
        entries[i] = (gw_entry){.expert = expert,
                                .cell = GW_NO_CELL,
                                .predicted = ahead || was != NULL,
                                .announced = was != NULL && was->announced,
                                .active = active};
        gw_cell_pool_need(ws->cfg.pool, expert);
    }
    for (uint32_t i = 0; i < n_used; i++) {
        uint32_t at = i * ws->cfg.capacity, left = n - at;
        gw_wave *w = wave_of(ws, block, i);
        *w = (gw_wave){.block = block,
                       .index = i,
                       .n = left < ws->cfg.capacity ? left : ws->cfg.capacity,
                       .entries = entries + at};
        ws->order[ws->n_order++] = (uint32_t)(w - ws->waves);
    }
    ws->planned[b] = 1;
    signal_empty(ws, block, n_used);
    if (ahead) {
        gw_entries_predict(ws, entries, n);
    }
}

/* PREFETCH_ALL planned all; now the gate has said which are used. */
static void mark_active(gw_waves *ws, const krn_mail *m)
{
    uint32_t b = m->block - first_block(ws), first = m->block * ws->shape->n_experts;
    gw_entry *entries = &ws->entries[(size_t)b * ws->shape->n_experts];
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
    gw_count(&gw_store_client_block_counters(ws->cfg.client, m->block)->cell_hit, m->n);
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
        gw_guess_dissolve(ws); /* its block was never routed */
    }
    plan_block(ws, m->block, m->expert, m->n, ahead, true);
    if (was_guessed) {
        gw_guess_dissolve(ws);
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
            gw_guess_tell_store(ws, m, between + 1);
        }
    } else {
        gw_guess_dissolve(ws);
        if (gw_speculation_allows(account)) {
            gw_guess_begin(ws, m);
            ws->guess.next_step = next_step;
        }
    }
}

/* ---- mails about waves ----------------------------------------------------------------------- */

static void on_reached(gw_waves *ws, const krn_mail *m)
{
    MOE_ASSERT(ws->planned[m->block - first_block(ws)]); /* else it would wait for ever */
    gw_wave *w = wave_of(ws, m->block, m->wave);
    w->reached_ns = m->time_ns;
}

/* End of the wave's last copy, in time to classify each expert: pipeline.h. */
static int64_t count_entry(gw_waves *ws, const gw_wave *w, const gw_entry *e)
{
    const gw_cell *c = gw_cell_pool_at(ws->cfg.pool, e->cell);
    moe_block_counters *n = gw_waves_counters(ws, e->expert);
    bool landed = c->state == GW_CELL_READY; /* else the device failed between */
    bool in_time = landed && c->copy_end_ns <= w->reached_ns;
    bool there = e->fetched ? e->predicted && in_time : in_time;
    gw_count(there ? &n->cell_hit : e->predicted ? &n->cell_late : &n->cell_miss, 1);
    if (c->unused && landed) {
        int64_t until = in_time ? c->copy_end_ns : w->reached_ns;
        int64_t hidden_ns = until > c->copy_begin_ns ? until - c->copy_begin_ns : 0;
        gw_count(&gw_store_client_counters(ws->cfg.client)->copy_hidden_ns, (uint64_t)hidden_ns);
        if (ws->guessed[e->cell]) {
            gw_speculation_used(gw_waves_account(ws, e->expert), hidden_ns);
        }
    }
    ws->guessed[e->cell] = false;
    gw_cell_pool_use(ws->cfg.pool, e->cell);
    return c->copy_end_ns;
}

static void free_wave(gw_waves *ws, gw_wave *w)
{
    for (uint32_t i = 0; i < w->n; i++) {
        gw_entry_release(ws, &w->entries[i]);
    }
    w->done = true;
}

static void on_done(gw_waves *ws, const krn_mail *m)
{
    gw_wave *w = wave_of(ws, m->block, m->wave);
    if (w->done || w->n == 0) {
        return;
    }
    gw_waves_poll_copies(ws); /* its copies have landed: see their ends before classifying */
    int64_t last_ns = 0;
    for (uint32_t i = 0; i < w->n; i++) {
        const gw_entry *e = &w->entries[i];
        if (e->state == GW_ENTRY_QUEUED && e->active) {
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
static bool seat_found(gw_waves *ws, gw_entry *e)
{
    moe_err err = {.status = MOE_OK};
    uint32_t cell = gw_cell_pool_find(ws->cfg.pool, e->expert);
    if (cell == GW_NO_CELL || !gw_cell_pool_pin(ws->cfg.pool, cell)) {
        return false;
    }
    e->cell = cell;
    if (gw_dma_hurry(ws->cfg.dma, cell, &err) != MOE_OK) { /* a guess that came true */
        gw_waves_note_fatal(ws, &err);
    }
    return true;
}

static void seat_entry(gw_waves *ws, gw_entry *e, gw_entry_state seat, int64_t now_ns)
{
    gw_cell_pool_unneed(ws->cfg.pool, e->expert);
    e->state = seat;
    e->since_ns = now_ns;
}

/* Pins what is in cells first, then reserves cells for the rest. False: out of cells for now. */
static bool seat_wave(gw_waves *ws, gw_wave *w, int64_t now_ns)
{
    bool all = true;
    for (uint32_t i = 0; i < w->n; i++) {
        gw_entry *e = &w->entries[i];
        if (e->state == GW_ENTRY_WAITING && seat_found(ws, e)) {
            seat_entry(ws, e, GW_ENTRY_QUEUED, now_ns);
        }
    }
    for (uint32_t i = 0; i < w->n; i++) {
        gw_entry *e = &w->entries[i];
        if (e->state != GW_ENTRY_WAITING) {
            continue;
        }
        bool found = gw_cell_pool_find(ws->cfg.pool, e->expert) != GW_NO_CELL;
        if (!found && gw_cell_pool_reserve(ws->cfg.pool)) {
            seat_entry(ws, e, GW_ENTRY_SEATED, now_ns);
        } else {
            e->since_ns = e->since_ns == 0 && w->reached_ns != 0 ? now_ns : e->since_ns;
            all = false;
        }
    }
    return all;
}

static bool is_settled(const gw_wave *w)
{
    for (uint32_t i = 0; i < w->n; i++) {
        if (w->entries[i].state <= GW_ENTRY_SEATED) {
            return false;
        }
    }
    return true;
}

static bool advance_wave(gw_waves *ws, gw_wave *w, bool is_head, int64_t now_ns)
{
    bool ahead = gw_plan_routed_ahead(ws->cfg.policy, ws->shape->pregate_lookahead,
                                      w->block - first_block(ws)) ||
                 ws->cfg.policy == GW_PREFETCH_ALL;
    bool may_want = is_head || !ahead || w->reached_ns != 0;
    bool moved = gw_entries_queue(ws, w->entries, w->n, may_want, now_ns);
    if (is_settled(w)) {
        signal_wave(ws, w);
        moved = true;
    }
    return moved;
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
        gw_wave *w = &ws->waves[ws->order[i]];
        if (!w->signalled) {
            moved = advance_wave(ws, w, head, now_ns) || moved;
            head = false;
        }
    }
    while (ws->first_open < ws->n_order && ws->waves[ws->order[ws->first_open]].signalled) {
        ws->first_open++;
    }
    if (ws->first_open == ws->n_order && ws->guess.n > 0 && ws->fatal.status == MOE_OK) {
        moved = gw_guess_advance(ws, now_ns) || moved;
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
        gw_guess_dissolve(ws); /* it was of a decode step, and a prompt came between */
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
        gw_wave *w = &ws->waves[ws->order[i]];
        if (!w->signalled) {
            gw_entries_queue(ws, w->entries, w->n, false, 0);
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
        gw_waves_note_fatal(ws, &err);
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
        gw_wave *w = &ws->waves[ws->order[i]];
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
        gw_guess_dissolve(ws);
    }
    if (ws->asked && leftover) {
        gw_store_client_cancel(ws->cfg.client, ws->step);
    }
    ws->open = false;
}
