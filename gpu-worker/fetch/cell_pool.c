/* cell_pool.c - see cell_pool.h. Owns its tables; used by waves.c on the fetch thread. */
#include "gpu-worker/fetch/cell_pool.h"

#include <stdlib.h>

struct gw_cell_pool {
    gw_cell_pool_cfg cfg;
    gw_cell *cells;                /* [n_cells] owned */
    gw_cell_candidate *candidates; /* [n_cells] owned; `locked` follows state and pins */
    uint32_t *free_stack;          /* [n_cells] owned; the first n_free are free cells */
    uint32_t *cell_of;             /* [n_experts_total] owned; GW_NO_CELL: none */
    uint32_t *needs;               /* [n_experts_total] owned */
    uint64_t *uses;                /* [n_experts_total] owned */
    uint32_t n_free;
    uint32_t n_unlocked; /* READY cells without a pin */
    uint32_t n_reserved; /* <= n_free + n_unlocked */
    uint64_t tick;
};

moe_status gw_cell_pool_create(const gw_cell_pool_cfg *cfg, gw_cell_pool **out, moe_err *err)
{
    gw_cell_pool *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "cell pool");
    }
    p->cfg = *cfg;
    p->cells = calloc(cfg->n_cells, sizeof *p->cells);
    p->candidates = calloc(cfg->n_cells, sizeof *p->candidates);
    p->free_stack = calloc(cfg->n_cells, sizeof *p->free_stack);
    p->cell_of = calloc(cfg->n_experts_total, sizeof *p->cell_of);
    p->needs = calloc(cfg->n_experts_total, sizeof *p->needs);
    p->uses = calloc(cfg->n_experts_total, sizeof *p->uses);
    if (p->cells == NULL || p->candidates == NULL || p->free_stack == NULL || p->cell_of == NULL ||
        p->needs == NULL || p->uses == NULL) {
        gw_cell_pool_destroy(p);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "tables of %u cells for %u experts", cfg->n_cells,
                        cfg->n_experts_total);
    }
    for (uint32_t i = 0; i < cfg->n_cells; i++) {
        p->cells[i].expert = GW_NO_EXPERT;
        p->candidates[i].locked = true;
        p->free_stack[i] = cfg->n_cells - 1 - i; /* cell 0 is taken first */
    }
    p->n_free = cfg->n_cells;
    for (uint32_t i = 0; i < cfg->n_experts_total; i++) {
        p->cell_of[i] = GW_NO_CELL;
    }
    *out = p;
    return MOE_OK;
}

void gw_cell_pool_destroy(gw_cell_pool *p)
{
    if (p == NULL) {
        return;
    }
    free(p->cells);
    free(p->candidates);
    free(p->free_stack);
    free(p->cell_of);
    free(p->needs);
    free(p->uses);
    free(p);
}

const gw_cell *gw_cell_pool_at(const gw_cell_pool *p, uint32_t cell)
{
    return &p->cells[cell];
}

uint32_t gw_cell_pool_find(const gw_cell_pool *p, uint32_t expert)
{
    return p->cell_of[expert];
}

uint32_t gw_cell_pool_n_used(const gw_cell_pool *p)
{
    return p->cfg.n_cells - p->n_free;
}

static void update_lock(gw_cell_pool *p, uint32_t cell)
{
    const gw_cell *c = &p->cells[cell];
    bool locked = c->state != GW_CELL_READY || c->pins > 0;
    p->n_unlocked += p->candidates[cell].locked;
    p->candidates[cell].locked = locked;
    p->n_unlocked -= locked;
}

static bool has_unpromised(const gw_cell_pool *p)
{
    return p->n_free + p->n_unlocked > p->n_reserved;
}

bool gw_cell_pool_reserve(gw_cell_pool *p)
{
    if (!has_unpromised(p)) {
        return false;
    }
    p->n_reserved++;
    return true;
}

void gw_cell_pool_unreserve(gw_cell_pool *p)
{
    MOE_ASSERT(p->n_reserved > 0);
    p->n_reserved--;
}

static uint32_t choose(gw_cell_pool *p, bool may_be_needed)
{
    if (p->n_free > 0) {
        return p->free_stack[--p->n_free];
    }
    int64_t cell = gw_cell_choose(p->cfg.policy, p->candidates, p->cfg.n_cells);
    if (cell < 0 || (p->candidates[cell].needed && !may_be_needed)) {
        return GW_NO_CELL;
    }
    return (uint32_t)cell;
}

uint32_t gw_cell_pool_take(gw_cell_pool *p, uint32_t expert, bool reserved, gw_cell *out_evicted)
{
    MOE_ASSERT(p->cell_of[expert] == GW_NO_CELL);
    if (reserved) {
        gw_cell_pool_unreserve(p);
    } else if (!has_unpromised(p)) {
        return GW_NO_CELL;
    }
    uint32_t cell = choose(p, reserved);
    MOE_ASSERT(cell != GW_NO_CELL || !reserved);
    if (cell == GW_NO_CELL) {
        return GW_NO_CELL;
    }
    *out_evicted = p->cells[cell];
    if (out_evicted->expert != GW_NO_EXPERT) {
        p->cell_of[out_evicted->expert] = GW_NO_CELL;
    }
    p->cells[cell] = (gw_cell){.expert = expert, .pins = 1, .state = GW_CELL_TAKEN, .unused = true};
    update_lock(p, cell);
    p->candidates[cell] = (gw_cell_candidate){
        .uses = p->uses[expert], .locked = true, .needed = p->needs[expert] > 0};
    p->cell_of[expert] = cell;
    return cell;
}

void gw_cell_pool_fill(gw_cell_pool *p, uint32_t cell)
{
    MOE_ASSERT(p->cells[cell].state == GW_CELL_TAKEN);
    p->cells[cell].state = GW_CELL_FILLING;
}

void gw_cell_pool_ready(gw_cell_pool *p, uint32_t cell, int64_t copy_begin_ns, int64_t copy_end_ns)
{
    gw_cell *c = &p->cells[cell];
    MOE_ASSERT(c->state == GW_CELL_FILLING);
    c->state = GW_CELL_READY;
    c->copy_begin_ns = copy_begin_ns;
    c->copy_end_ns = copy_end_ns;
    p->candidates[cell].loaded = ++p->tick;
    p->candidates[cell].last_use = p->tick;
    update_lock(p, cell);
}

static void make_free(gw_cell_pool *p, uint32_t cell)
{
    p->cell_of[p->cells[cell].expert] = GW_NO_CELL;
    p->cells[cell] = (gw_cell){.expert = GW_NO_EXPERT};
    p->free_stack[p->n_free++] = cell;
}

void gw_cell_pool_give_back(gw_cell_pool *p, uint32_t cell)
{
    MOE_ASSERT(p->cells[cell].state == GW_CELL_TAKEN && p->cells[cell].pins == 1);
    make_free(p, cell);
}

void gw_cell_pool_drop(gw_cell_pool *p, uint32_t cell)
{
    MOE_ASSERT(p->cells[cell].state == GW_CELL_FILLING && p->cells[cell].pins == 0);
    make_free(p, cell);
}

bool gw_cell_pool_pin(gw_cell_pool *p, uint32_t cell)
{
    MOE_ASSERT(p->cells[cell].state != GW_CELL_FREE);
    if (!p->candidates[cell].locked && !has_unpromised(p)) {
        return false;
    }
    p->cells[cell].pins++;
    update_lock(p, cell);
    return true;
}

void gw_cell_pool_unpin(gw_cell_pool *p, uint32_t cell)
{
    MOE_ASSERT(p->cells[cell].pins > 0);
    p->cells[cell].pins--;
    update_lock(p, cell);
}

static void update_need(gw_cell_pool *p, uint32_t expert)
{
    if (p->cell_of[expert] != GW_NO_CELL) {
        p->candidates[p->cell_of[expert]].needed = p->needs[expert] > 0;
    }
}

void gw_cell_pool_need(gw_cell_pool *p, uint32_t expert)
{
    p->needs[expert]++;
    update_need(p, expert);
}

void gw_cell_pool_unneed(gw_cell_pool *p, uint32_t expert)
{
    MOE_ASSERT(p->needs[expert] > 0);
    p->needs[expert]--;
    update_need(p, expert);
}

bool gw_cell_pool_is_needed(const gw_cell_pool *p, uint32_t expert)
{
    return p->needs[expert] > 0;
}

void gw_cell_pool_begin_block(gw_cell_pool *p, uint32_t flat_block)
{
    uint32_t first = flat_block * p->cfg.n_experts_per_block;
    for (uint32_t e = first; e < first + p->cfg.n_experts_per_block; e++) {
        if (p->cell_of[e] != GW_NO_CELL) {
            p->candidates[p->cell_of[e]].active = false;
        }
    }
}

void gw_cell_pool_use(gw_cell_pool *p, uint32_t cell)
{
    gw_cell *c = &p->cells[cell];
    MOE_ASSERT(c->expert != GW_NO_EXPERT);
    c->unused = false;
    gw_cell_candidate *k = &p->candidates[cell];
    k->uses = ++p->uses[c->expert];
    k->last_use = ++p->tick;
    k->active = true;
}
