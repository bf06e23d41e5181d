/* waves_entries.c - see waves_internal.h: one expert on its way from the store into a cell. */
#include <stdio.h>

#include "gpu-worker/fetch/waves_internal.h"

moe_block_counters *gw_waves_counters(const gw_waves *ws, uint32_t expert)
{
    return gw_store_client_block_counters(ws->cfg.client, moe_block_of_expert(ws->shape, expert));
}

gw_speculation *gw_waves_account(const gw_waves *ws, uint32_t expert)
{
    return &ws->cfg.speculation[moe_block_of_expert(ws->shape, expert)];
}

uint64_t gw_waves_expert_bytes(const gw_waves *ws)
{
    return gw_store_client_welcome(ws->cfg.client)->expert_bytes;
}

/* What became of a copy that nothing used: `bytes` of it crossed the link in link_ns. */
static void count_wasted(gw_waves *ws, uint32_t cell, uint32_t expert, int64_t link_ns,
                         uint64_t bytes)
{
    gw_count(&gw_waves_counters(ws, expert)->cell_wasted, 1);
    if (ws->guessed[cell]) {
        gw_speculation_wasted(gw_waves_account(ws, expert), link_ns, bytes);
        ws->guessed[cell] = false;
    }
}

static void count_evicted(gw_waves *ws, uint32_t cell, const gw_cell *c)
{
    int64_t link_ns = c->copy_end_ns - c->copy_begin_ns;
    count_wasted(ws, cell, c->expert, link_ns, gw_waves_expert_bytes(ws));
    gw_count(&gw_store_client_counters(ws->cfg.client)->copy_hidden_ns, (uint64_t)link_ns);
}

uint32_t gw_waves_take_cell(gw_waves *ws, uint32_t expert, bool reserved)
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
        gw_waves_note_fatal(ws, &err);
        return true;
    }
    return any;
}

void gw_entry_release(gw_waves *ws, const gw_entry *e)
{
    switch (e->state) {
    case GW_ENTRY_WAITING:
        gw_cell_pool_unneed(ws->cfg.pool, e->expert);
        break;
    case GW_ENTRY_SEATED:
        gw_cell_pool_unreserve(ws->cfg.pool);
        break;
    case GW_ENTRY_QUEUED:
        gw_cell_pool_unpin(ws->cfg.pool, e->cell);
        break;
    case GW_ENTRY_FAILED:
        break;
    }
}

static void fail_entry(gw_waves *ws, gw_entry *e, const char *why)
{
    char text[GW_FAILED_TEXT_BYTES], block[16];
    moe_block_name(ws->shape, moe_block_of_expert(ws->shape, e->expert), block, sizeof block);
    snprintf(text, sizeof text, "expert %u of block %s: %.300s", e->expert % ws->shape->n_experts,
             block, why);
    gw_waves_note_failure(ws, text);
    gw_entry_release(ws, e);
    e->state = GW_ENTRY_FAILED;
}

static void count_fetch(gw_waves *ws, const gw_entry *e, int64_t now_ns)
{
    moe_block_counters *n = gw_waves_counters(ws, e->expert);
    gw_count(e->predicted ? &n->fetch_predicted : &n->fetch_demand, 1);
    if (e->wanted_ns == 0) {
        gw_count(&n->slot_hit, 1);
        return;
    }
    gw_count(e->announced ? &n->slot_late : &n->slot_miss, 1);
    moe_histogram_add_ns(ws->cfg.store_wait, now_ns - e->wanted_ns);
    gw_trace_add(ws->cfg.trace, GW_LANE_STORE, "wait for the store", e->wanted_ns, now_ns,
                 (int32_t)moe_block_of_expert(ws->shape, e->expert), (int32_t)e->expert, 0);
}

moe_status gw_entry_begin_copy(gw_waves *ws, gw_entry *e, uint32_t cell, bool speculative,
                               int64_t now_ns, moe_err *err)
{
    const gw_dma_copy copy = {.expert = e->expert,
                              .cell = cell,
                              .dst = gw_waves_cell(ws, cell),
                              .speculative = speculative};
    moe_status st = gw_dma_start(ws->cfg.dma, &copy, err);
    if (st == MOE_OK) {
        gw_cell_pool_fill(ws->cfg.pool, cell);
        e->cell = cell;
        e->state = GW_ENTRY_QUEUED;
        e->fetched = true;
        ws->guessed[cell] = speculative;
        ws->guess_bytes += speculative ? gw_waves_expert_bytes(ws) : 0;
        count_fetch(ws, e, now_ns);
    } else if (st == MOE_ERR_DEVICE) {
        gw_waves_note_fatal(ws, err);
        e->state = GW_ENTRY_FAILED;
    } else {
        gw_cell_pool_give_back(ws->cfg.pool, cell);
    }
    return st;
}

/* Why does the client refuse it? MOE_ERR_AGAIN when the expert has become resident just now, or
 * failed in an earlier step: wanting it again tries again. */
static moe_status read_refusal(gw_waves *ws, const gw_entry *e, moe_err *err)
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
static moe_status queue_entry(gw_waves *ws, gw_entry *e, int64_t now_ns)
{
    moe_err err = {.status = MOE_OK};
    moe_status st = MOE_ERR_AGAIN;
    if (gw_store_client_is_resident(ws->cfg.client, e->expert)) {
        if (!gw_dma_has_room(ws->cfg.dma, false)) {
            return MOE_ERR_LIMIT;
        }
        uint32_t cell = gw_waves_take_cell(ws, e->expert, true);
        st = gw_entry_begin_copy(ws, e, cell, false, now_ns, &err);
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
static const char *hopeless(gw_waves *ws, const gw_entry *e, int64_t now_ns)
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

bool gw_entries_queue(gw_waves *ws, gw_entry *entries, uint32_t n, bool may_want, int64_t now_ns)
{
    bool moved = false, full = false;
    uint32_t n_absent = 0;
    for (uint32_t i = 0; i < n; i++) {
        gw_entry *e = &entries[i];
        if (e->state > GW_ENTRY_SEATED) {
            continue;
        }
        const char *why = hopeless(ws, e, now_ns);
        if (why != NULL) {
            fail_entry(ws, e, why);
            moved = true;
        } else if (e->state == GW_ENTRY_SEATED && !full) {
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

gw_near gw_waves_nearness(const gw_waves *ws, uint32_t expert)
{
    if (gw_cell_pool_find(ws->cfg.pool, expert) != GW_NO_CELL) {
        return GW_NEAR_CELL;
    }
    return gw_store_client_is_resident(ws->cfg.client, expert) ? GW_NEAR_SLOT : GW_NEAR_DISK;
}

void gw_waves_predict_list(gw_waves *ws, uint32_t distance, uint32_t n)
{
    if (n > 0) {
        ws->asked = true;
        gw_store_client_predict(ws->cfg.client, ws->step, distance, ws->list, n);
    }
}

void gw_entries_predict(gw_waves *ws, gw_entry *entries, uint32_t n)
{
    uint32_t n_absent = 0;
    for (uint32_t i = 0; i < n; i++) {
        gw_entry *e = &entries[i];
        if (gw_waves_nearness(ws, e->expert) == GW_NEAR_DISK) {
            e->announced = true;
            ws->list[n_absent++] = e->expert;
        }
    }
    gw_waves_predict_list(ws, 1, n_absent);
}
