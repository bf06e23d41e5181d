/* waves_guess.c - see waves_internal.h: experts of one block before its gate has chosen them. */
#include "gpu-worker/fetch/waves_internal.h"

void gw_guess_dissolve(gw_waves *ws)
{
    gw_guess *g = &ws->guess;
    for (uint32_t i = 0; i < g->n; i++) {
        gw_entry *e = &g->entries[i];
        if (e->state == GW_ENTRY_QUEUED) {
            gw_cell_pool_unpin(ws->cfg.pool, e->cell);
        }
        if (e->state == GW_ENTRY_QUEUED && !gw_cell_pool_is_needed(ws->cfg.pool, e->expert)) {
            gw_dma_abandon(ws->cfg.dma, e->cell);
        }
    }
    g->n = 0;
}

const gw_entry *gw_guess_find(const gw_waves *ws, uint32_t expert)
{
    for (uint32_t i = 0; i < ws->guess.n; i++) {
        if (ws->guess.entries[i].expert == expert) {
            return &ws->guess.entries[i];
        }
    }
    return NULL;
}

void gw_guess_tell_store(gw_waves *ws, const krn_mail *m, uint32_t distance)
{
    uint32_t n_absent = 0;
    for (uint32_t i = 0; i < m->n; i++) {
        uint32_t expert = m->block * ws->shape->n_experts + m->expert[i];
        if (gw_waves_nearness(ws, expert) == GW_NEAR_DISK) {
            ws->list[n_absent++] = expert;
        }
    }
    gw_waves_predict_list(ws, distance, n_absent);
}

void gw_guess_begin(gw_waves *ws, const krn_mail *m)
{
    gw_guess *g = &ws->guess;
    g->block = m->block;
    g->n = m->n < ws->cfg.capacity ? m->n : ws->cfg.capacity;
    for (uint32_t i = 0; i < g->n; i++) {
        g->entries[i] = (gw_entry){.expert = m->block * ws->shape->n_experts + m->expert[i],
                                   .cell = GW_NO_CELL,
                                   .predicted = true};
    }
    gw_entries_predict(ws, g->entries, g->n);
}

/* MOE_OK: it has its cell. MOE_ERR_AGAIN: it cannot now, others may. MOE_ERR_LIMIT: nor can they.
 */
static moe_status advance_guess_entry(gw_waves *ws, gw_entry *e, int64_t now_ns)
{
    uint32_t cell = gw_cell_pool_find(ws->cfg.pool, e->expert);
    if (cell != GW_NO_CELL) {
        if (!gw_cell_pool_pin(ws->cfg.pool, cell)) {
            return MOE_ERR_AGAIN;
        }
        gw_dma_keep(ws->cfg.dma, cell);
        e->cell = cell;
        e->state = GW_ENTRY_QUEUED;
        return MOE_OK;
    }
    if (!gw_store_client_is_resident(ws->cfg.client, e->expert)) {
        return MOE_ERR_AGAIN; /* the store was told */
    }
    uint64_t budget = ws->cfg.predict_bytes;
    if (!gw_dma_has_room(ws->cfg.dma, true) ||
        (budget > 0 && ws->guess_bytes + gw_waves_expert_bytes(ws) > budget)) {
        return MOE_ERR_LIMIT;
    }
    moe_err err = {.status = MOE_OK};
    cell = gw_waves_take_cell(ws, e->expert, false);
    return cell == GW_NO_CELL ? MOE_ERR_LIMIT
                              : gw_entry_begin_copy(ws, e, cell, true, now_ns, &err);
}

bool gw_guess_advance(gw_waves *ws, int64_t now_ns)
{
    gw_guess *g = &ws->guess;
    moe_status st = MOE_ERR_AGAIN;
    for (uint32_t i = 0; i < g->n && st == MOE_ERR_AGAIN; i++) {
        if (g->entries[i].state == GW_ENTRY_WAITING) {
            st = advance_guess_entry(ws, &g->entries[i], now_ns);
        }
    }
    return st == MOE_OK;
}
