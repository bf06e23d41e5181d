/* replay.c - see replay.h. */
#include "gpu-worker/bench/replay.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/named_model.h"
#include "common/text.h"
#include "gpu-worker/bench/bench_stats.h"
#include "gpu-worker/bench/routing_choice.h"
#include "gpu-worker/fetch/cell_pool.h"
#include "gpu-worker/fetch/plan.h"
#include "gpu-worker/names.h"
#include "gpu-worker/worker.h"

/* ---- from rows to sets ----------------------------------------------------------------------- */

/* The distinct experts of one block's rows, rising, as flat indices behind what *u holds. */
static void add_set(gw_uses *u, const int32_t *rows, uint32_t n_rows, uint32_t first_expert,
                    uint8_t *seen)
{
    memset(seen, 0, u->n_experts);
    for (uint32_t t = 0; t < n_rows; t++) {
        if (rows[t] >= 0) {
            seen[rows[t]] = 1;
        }
    }
    for (uint32_t e = 0; e < u->n_experts; e++) {
        if (seen[e]) {
            u->expert[u->n_uses++] = first_expert + e;
        }
    }
    u->set_at[++u->n_sets] = u->n_uses;
}

static size_t most_uses(const gw_recording *r, size_t *out_sets)
{
    size_t uses = 0;
    *out_sets = 0;
    for (uint32_t i = 0; i < r->n_steps; i++) {
        const gw_recorded_step *s = &r->steps[i];
        uint32_t active = s->n_rows < r->n_experts ? s->n_rows : r->n_experts;
        uses += (size_t)r->n_blocks[s->stack] * active;
        *out_sets += r->n_blocks[s->stack];
    }
    return uses;
}

moe_status gw_uses_create(const gw_recording *r, uint32_t skip_steps, gw_uses *out, moe_err *err)
{
    size_t n_sets = 0, n_uses = most_uses(r, &n_sets);
    uint32_t n_blocks = r->n_blocks[MOE_ENCODER] + r->n_blocks[MOE_DECODER];
    gw_uses u = {.n_experts = r->n_experts, .n_experts_total = n_blocks * r->n_experts};
    if (n_uses >= UINT32_MAX || n_sets >= UINT32_MAX) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "a recording of %zu uses", n_uses);
    }
    u.set_at = calloc(n_sets + 1, sizeof *u.set_at);
    u.expert = calloc(n_uses + 1, sizeof *u.expert);
    uint8_t *seen = calloc(r->n_experts + 1u, 1);
    if (u.set_at == NULL || u.expert == NULL || seen == NULL) {
        free(seen);
        gw_uses_fini(&u);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%zu uses", n_uses);
    }
    for (uint32_t i = 0; i < r->n_steps; i++) {
        const gw_recorded_step *s = &r->steps[i];
        uint32_t flat = s->stack == MOE_DECODER ? r->n_blocks[MOE_ENCODER] : 0;
        if (i == skip_steps) {
            u.first_counted = u.n_sets;
        }
        for (uint32_t b = 0; b < r->n_blocks[s->stack]; b++) {
            add_set(&u, s->experts + (size_t)b * s->n_rows, s->n_rows, (flat + b) * r->n_experts,
                    seen);
        }
    }
    if (skip_steps >= r->n_steps) {
        u.first_counted = u.n_sets;
    }
    free(seen);
    *out = u;
    return MOE_OK;
}

void gw_uses_fini(gw_uses *u)
{
    free(u->set_at);
    free(u->expert);
    *u = (gw_uses){0};
}

uint64_t gw_uses_counted(const gw_uses *u)
{
    return u->n_sets == 0 ? 0 : u->n_uses - u->set_at[u->first_counted];
}

/* ---- a cell policy --------------------------------------------------------------------------- */

typedef struct player {
    gw_cell_pool *pool;
    uint32_t capacity;                 /* experts of a wave */
    uint16_t set[KRN_MAX_EXPERTS];     /* of the block */
    uint16_t ordered[KRN_MAX_EXPERTS]; /* in waves */
    uint8_t near[KRN_MAX_EXPERTS];
} player;

/* One wave, as waves.c runs it: what is there is pinned first, then the rest takes cells. */
static uint32_t play_wave(player *p, uint32_t first_expert, const uint16_t *experts, uint32_t n)
{
    uint32_t hits = 0, cells[KRN_MAX_WAVE_EXPERTS];
    for (uint32_t i = 0; i < n; i++) {
        cells[i] = gw_cell_pool_find(p->pool, first_expert + experts[i]);
        gw_cell_pool_unneed(p->pool, first_expert + experts[i]);
        if (cells[i] != GW_NO_CELL) {
            bool pinned = gw_cell_pool_pin(p->pool, cells[i]);
            MOE_ASSERT(pinned); /* no cell is promised yet */
            hits++;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        gw_cell evicted;
        if (cells[i] == GW_NO_CELL) {
            bool promised = gw_cell_pool_reserve(p->pool);
            MOE_ASSERT(promised); /* a wave takes at most half of the cells */
            cells[i] = gw_cell_pool_take(p->pool, first_expert + experts[i], true, &evicted);
            gw_cell_pool_fill(p->pool, cells[i]);
            gw_cell_pool_ready(p->pool, cells[i], 0, 0);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        gw_cell_pool_use(p->pool, cells[i]);
        gw_cell_pool_unpin(p->pool, cells[i]);
    }
    return hits;
}

static uint32_t play_set(player *p, const gw_uses *u, uint32_t set)
{
    uint32_t n = u->set_at[set + 1] - u->set_at[set], hits = 0;
    const uint32_t *experts = u->expert + u->set_at[set];
    if (n == 0) {
        return 0;
    }
    uint32_t first = experts[0] / u->n_experts * u->n_experts;
    gw_cell_pool_begin_block(p->pool, experts[0] / u->n_experts);
    for (uint32_t i = 0; i < n; i++) {
        p->set[i] = (uint16_t)(experts[i] - first);
        p->near[i] =
            gw_cell_pool_find(p->pool, experts[i]) != GW_NO_CELL ? GW_NEAR_CELL : GW_NEAR_SLOT;
        gw_cell_pool_need(p->pool, experts[i]);
    }
    gw_plan_waves(p->set, p->near, n, p->capacity, p->ordered);
    for (uint32_t at = 0; at < n; at += p->capacity) {
        uint32_t left = n - at;
        hits += play_wave(p, first, p->ordered + at, left < p->capacity ? left : p->capacity);
    }
    return hits;
}

moe_status gw_replay_policy(const gw_uses *u, gw_cell_policy policy, uint32_t n_cells,
                            uint64_t *out_hits, moe_err *err)
{
    const gw_cell_pool_cfg cfg = {.n_cells = n_cells,
                                  .n_experts_total = u->n_experts_total,
                                  .n_experts_per_block = u->n_experts,
                                  .policy = policy};
    if (n_cells < 2 || u->n_experts > KRN_MAX_EXPERTS) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "%u cells (at least 2), %u experts (at most %d)",
                        n_cells, u->n_experts, KRN_MAX_EXPERTS);
    }
    player *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "replay");
    }
    p->capacity = gw_plan_wave_capacity(n_cells);
    moe_status st = gw_cell_pool_create(&cfg, &p->pool, err);
    uint64_t hits = 0;
    for (uint32_t set = 0; set < u->n_sets && st == MOE_OK; set++) {
        uint32_t here = play_set(p, u, set);
        hits += set >= u->first_counted ? here : 0;
    }
    gw_cell_pool_destroy(p->pool);
    free(p);
    if (st == MOE_OK) {
        *out_hits = hits;
    }
    return st;
}

/* ---- bounds ---------------------------------------------------------------------------------- */

static int compare_falling(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x < y) - (x > y);
}

moe_status gw_replay_best_static(const gw_uses *u, uint32_t n_cells, uint64_t *out_hits,
                                 moe_err *err)
{
    uint32_t *count = calloc(u->n_experts_total + 1u, sizeof *count);
    if (count == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "counts of %u experts", u->n_experts_total);
    }
    for (uint32_t i = u->n_sets == 0 ? 0 : u->set_at[u->first_counted]; i < u->n_uses; i++) {
        count[u->expert[i]]++;
    }
    qsort(count, u->n_experts_total, sizeof *count, compare_falling);
    uint64_t hits = 0;
    for (uint32_t i = 0; i < n_cells && i < u->n_experts_total; i++) {
        hits += count[i];
    }
    free(count);
    *out_hits = hits;
    return MOE_OK;
}

/* Next uses count sets; NEVER comes after all. */
#define NEVER UINT32_MAX

/* next[i]: the set in which use i's expert is used again. */
static void find_next_uses(const gw_uses *u, uint32_t *last, uint32_t *next)
{
    for (uint32_t e = 0; e < u->n_experts_total; e++) {
        last[e] = NEVER;
    }
    for (uint32_t set = u->n_sets; set-- > 0;) {
        for (uint32_t i = u->set_at[set]; i < u->set_at[set + 1]; i++) {
            next[i] = last[u->expert[i]];
            last[u->expert[i]] = set;
        }
    }
}

static uint32_t farthest(const uint32_t *kept, const uint32_t *next_of, uint32_t n)
{
    uint32_t at = 0;
    for (uint32_t i = 1; i < n; i++) {
        at = next_of[kept[i]] > next_of[kept[at]] ? i : at;
    }
    return at;
}

moe_status gw_replay_belady(const gw_uses *u, uint32_t n_cells, uint64_t *out_hits, moe_err *err)
{
    uint32_t n = u->n_experts_total, n_kept = 0;
    uint32_t *next_of = calloc(n + 1u, sizeof *next_of); /* of experts that are kept */
    uint32_t *kept = calloc(n + 1u, sizeof *kept);
    uint8_t *is_kept = calloc(n + 1u, sizeof *is_kept);
    uint32_t *next = calloc((size_t)u->n_uses + 1, sizeof *next);
    moe_status st = MOE_OK;
    uint64_t hits = 0;
    if (next_of == NULL || kept == NULL || is_kept == NULL || next == NULL) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%u uses", u->n_uses);
        goto out;
    }
    find_next_uses(u, next_of, next);
    for (uint32_t set = 0; set < u->n_sets; set++) {
        for (uint32_t i = u->set_at[set]; i < u->set_at[set + 1]; i++) {
            uint32_t e = u->expert[i];
            next_of[e] = next[i];
            if (is_kept[e]) {
                hits += set >= u->first_counted;
            } else {
                is_kept[e] = 1;
                kept[n_kept++] = e;
            }
        }
        while (n_kept > n_cells) {
            uint32_t at = farthest(kept, next_of, n_kept);
            is_kept[kept[at]] = 0;
            kept[at] = kept[--n_kept];
        }
    }
    *out_hits = hits;
out:
    free(next_of);
    free(kept);
    free(is_kept);
    free(next);
    return st;
}

/* ---- the program ----------------------------------------------------------------------------- */

enum { N_POLICIES = 3, ITEM_BYTES = 64, CONFIG_BYTES = 4096 };

typedef struct result {
    uint32_t n_cells;
    double policy[N_POLICIES], best_static, belady; /* hit rates */
} result;

static moe_status replay_cells(const gw_uses *u, uint32_t n_cells, result *out, moe_err *err)
{
    double all = (double)gw_uses_counted(u);
    uint64_t hits = 0;
    moe_status st = MOE_OK;
    *out = (result){.n_cells = n_cells};
    all = all > 0 ? all : 1;
    for (int p = 0; p < N_POLICIES && st == MOE_OK; p++) {
        st = gw_replay_policy(u, (gw_cell_policy)p, n_cells, &hits, err);
        out->policy[p] = (double)hits / all;
    }
    if (st == MOE_OK) {
        st = gw_replay_best_static(u, n_cells, &hits, err);
        out->best_static = (double)hits / all;
    }
    if (st == MOE_OK) {
        st = gw_replay_belady(u, n_cells, &hits, err);
        out->belady = (double)hits / all;
    }
    return st;
}

static double best_policy(const result *r)
{
    double best = 0;
    for (int p = 0; p < N_POLICIES; p++) {
        best = r->policy[p] > best ? r->policy[p] : best;
    }
    return best;
}

static void print_json(const gw_uses *u, const gw_recording *r, const result *x)
{
    printf("{\"model\":\"%s\",\"cells\":%u,\"share\":%.4f,\"uses\":%llu", r->model, x->n_cells,
           (double)x->n_cells / u->n_experts_total, (unsigned long long)gw_uses_counted(u));
    for (int p = 0; p < N_POLICIES; p++) {
        printf(",\"%s\":%.6f", gw_cell_policy_name((gw_cell_policy)p), x->policy[p]);
    }
    printf(",\"best_static\":%.6f,\"belady\":%.6f}\n", x->best_static, x->belady);
}

static void print_text(const gw_uses *u, const result *x)
{
    printf("%7u %6.1f%%", x->n_cells, 100.0 * x->n_cells / u->n_experts_total);
    for (int p = 0; p < N_POLICIES; p++) {
        printf(" %13.4f", x->policy[p]);
    }
    printf(" %13.4f %8.4f %10.3f\n", x->best_static, x->belady,
           x->best_static > 0 ? best_policy(x) / x->best_static : 0);
}

static moe_status replay_all(const gw_config *cfg, const gw_recording *r, const gw_uses *u,
                             moe_err *err)
{
    char item[ITEM_BYTES];
    const char *sweep = cfg->cell_sweep[0] != '\0' ? cfg->cell_sweep : "5%,10%,20%,40%";
    moe_status st = MOE_OK;
    if (!cfg->json) {
        printf("%s: %llu uses in %u sets, after %llu steps; hit rates\n%7s %7s %13s %13s %13s "
               "%13s %8s %10s\n",
               r->model, (unsigned long long)gw_uses_counted(u), u->n_sets - u->first_counted,
               (unsigned long long)cfg->skip_steps, "cells", "share", "lru", "lfu", "lifo-inactive",
               "best static", "belady", "best/stat.");
    }
    for (uint32_t i = 0; st == MOE_OK && gw_list_item(sweep, i, item, sizeof item); i++) {
        uint32_t n_cells = 0;
        result x;
        st = gw_parse_count(item, u->n_experts_total, "--cell-sweep", &n_cells, err);
        n_cells = n_cells < 2 ? 2 : n_cells;
        if (st == MOE_OK) {
            st = replay_cells(u, n_cells, &x, err);
        }
        if (st == MOE_OK && cfg->json) {
            print_json(u, r, &x);
        } else if (st == MOE_OK) {
            print_text(u, &x);
        }
    }
    return st;
}

/* repeats answers of output_tokens decode steps each, as `bench` would run them. */
static moe_status make_up_steps(const gw_config *cfg, gw_chooser *c, gw_recording *out,
                                moe_err *err)
{
    uint32_t prompt = (uint32_t)cfg->prompt_tokens, batch = 1;
    char item[ITEM_BYTES];
    moe_status st = MOE_OK;
    if (gw_list_item(cfg->batches, 0, item, sizeof item)) {
        st = gw_parse_count(item, 0, "--batches", &batch, err);
    }
    uint32_t most = batch * prompt > batch ? batch * prompt : batch;
    uint32_t blocks = out->n_blocks[0] > out->n_blocks[1] ? out->n_blocks[0] : out->n_blocks[1];
    int32_t *ids = calloc((size_t)most * blocks + 1, sizeof *ids);
    if (ids == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "steps of %u rows", most);
    }
    for (uint64_t answer = 0; answer < cfg->repeats; answer++) {
        for (uint64_t step = 0; step <= cfg->output_tokens && st == MOE_OK; step++) {
            moe_stack stack = step == 0 ? MOE_ENCODER : MOE_DECODER;
            uint32_t n_rows = step == 0 ? batch * prompt : batch;
            gw_chooser_begin_step(c, stack);
            for (uint32_t b = 0; b < out->n_blocks[stack]; b++) {
                gw_chooser_choose(c, b, n_rows, ids + (size_t)b * n_rows);
            }
            st = gw_recording_add(out, stack, ids, n_rows, n_rows, err);
        }
    }
    free(ids);
    return st;
}

static moe_status make_up_recording(const gw_config *cfg, gw_recording *out, moe_err *err)
{
    char json[CONFIG_BYTES];
    moe_model_shape shape;
    gw_routing_spec spec;
    gw_chooser *c = NULL;
    moe_status st = gw_routing_spec_parse(cfg->routing, &spec, err);
    if (st == MOE_OK && (spec.kind == GW_ROUTING_MODEL || cfg->synthetic[0] == '\0')) {
        st = MOE_FAIL(err, MOE_ERR_INVALID,
                      "nothing to replay: give a recording (replay FILE), or --routing zipf:S and "
                      "--synthetic NAME");
    }
    if (st == MOE_OK) {
        st = moe_named_config(cfg->synthetic, MOE_BF16, json, sizeof json, err);
    }
    if (st == MOE_OK) {
        st = moe_model_shape_parse(json, strlen(json), &shape, err);
    }
    if (st == MOE_OK) {
        st = gw_chooser_create(&spec, &shape, cfg->seed, &c, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    gw_recording r = {.n_experts = shape.n_experts};
    snprintf(r.model, sizeof r.model, "%.63s", cfg->synthetic);
    r.n_blocks[MOE_ENCODER] = shape.stack[MOE_ENCODER].n_blocks;
    r.n_blocks[MOE_DECODER] = shape.stack[MOE_DECODER].n_blocks;
    st = make_up_steps(cfg, c, &r, err);
    gw_chooser_destroy(c);
    if (st != MOE_OK) {
        gw_recording_fini(&r);
        return st;
    }
    *out = r;
    return MOE_OK;
}

static moe_status replay(const gw_config *cfg, moe_err *err)
{
    gw_recording r = {0};
    gw_uses u = {0};
    moe_status st = cfg->file[0] != '\0' ? gw_recording_load(cfg->file, &r, err)
                                         : make_up_recording(cfg, &r, err);
    if (st != MOE_OK) {
        return st;
    }
    uint64_t skip = cfg->skip_steps < UINT32_MAX ? cfg->skip_steps : UINT32_MAX;
    st = gw_uses_create(&r, (uint32_t)skip, &u, err);
    if (st == MOE_OK) {
        st = replay_all(cfg, &r, &u, err);
    }
    gw_uses_fini(&u);
    gw_recording_fini(&r);
    return st;
}

int gw_replay_main(const gw_config *cfg)
{
    moe_err err;
    if (replay(cfg, &err) != MOE_OK) {
        moe_log_err("replay", "failed", &err);
        return 1;
    }
    return 0;
}
