/* pipeline.c - see pipeline.h. Owns cells, rows, flags and the mail ring, and the parts that work
 * with them: cell_pool.c, dma.c and fetch_thread.c (which owns waves.c).
 *
 * At shutdown: the fetch thread releases every wait and ends, the compute stream runs to its end,
 * the copy stream too; only then is any memory freed.
 */
#include "gpu-worker/fetch/pipeline.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/bytes.h"
#include "common/clock.h"
#include "common/dtype.h"
#include "gpu-worker/fetch/fetch_thread.h"
#include "gpu-worker/fetch/plan.h"
#include "gpu-worker/fetch/prediction.h"

enum { CELL_ALIGN = 256, AWAIT_NAP_NS = 20000 };

struct gw_pipeline {
    gw_pipeline_cfg cfg;
    moe_model_shape shape;
    uint32_t n_cells, capacity, max_waves, depth;
    uint64_t cell_bytes;
    gw_slot_pins pins;

    char *cells;             /* device, owned: [n_cells + 1][cell_bytes], the last is zero */
    uint32_t *counter;       /* device, owned */
    const void **weights_of; /* device, owned: [n_experts_total] RESIDENT: each expert's cell */
    krn_wave *rows;          /* mapped, owned: [2][n_blocks_total][max_waves] */
    uint32_t *flags;         /* mapped, owned: likewise */
    krn_mail *ring;          /* mapped, owned: [depth] */
    gw_cell_pool *pool;      /* owned */
    gw_dma *dma;             /* owned */
    gw_fetch *fetch;         /* owned */

    moe_histogram wave_wait, store_wait;
    gw_speculation *speculation; /* [n_blocks_total] owned */
    uint64_t step;               /* the latest */
    bool in_step;
};

static size_t n_rows_of(const gw_pipeline *p)
{
    return 2 * (size_t)p->shape.n_blocks_total * p->max_waves;
}

/* ---- create ---------------------------------------------------------------------------------- */

/* More than the mails of any one step: it is read empty before the next begins. */
static uint32_t ring_depth(const moe_model_shape *s, uint32_t max_waves)
{
    uint32_t blocks = 0, depth = 1;
    for (int i = 0; i < MOE_N_STACKS; i++) {
        blocks = s->stack[i].n_blocks > blocks ? s->stack[i].n_blocks : blocks;
    }
    uint32_t mails = blocks * (1 + GW_MAX_LOOKAHEAD + 2 * max_waves) + 2;
    while (depth < mails) {
        depth *= 2;
    }
    return depth;
}

static moe_status plan_sizes(gw_pipeline *p, moe_err *err)
{
    const wire_welcome *w = gw_store_client_welcome(p->cfg.client);
    p->shape = *gw_store_client_shape(p->cfg.client);
    p->cell_bytes = moe_align_up(w->expert_bytes, CELL_ALIGN);
    if (p->shape.n_experts > KRN_MAX_EXPERTS) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "%u experts in a block, at most %d are supported",
                        p->shape.n_experts, KRN_MAX_EXPERTS);
    }
    moe_status st = gw_plan_n_cells(&p->cfg, &p->shape, p->cell_bytes, &p->n_cells, err);
    if (st != MOE_OK) {
        return st;
    }
    p->capacity = gw_plan_wave_capacity(p->n_cells);
    uint32_t active =
        gw_plan_active_max(p->cfg.policy, p->shape.n_experts, p->shape.top_k, p->cfg.max_rows);
    p->max_waves = p->cfg.policy == GW_RESIDENT ? 0 : gw_plan_n_waves(active, p->capacity);
    p->depth = ring_depth(&p->shape, p->max_waves);
    return MOE_OK;
}

static moe_status alloc_cells(gw_pipeline *p, moe_err *err)
{
    const krn_backend_fns *b = &p->cfg.ops->backend;
    uint64_t bytes = (p->n_cells + 1ull) * p->cell_bytes;
    krn_device_info info = {.name = ""};
    b->info(p->cfg.device, &info);
    if (bytes > info.memory_free_bytes) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY,
                        "%u cells need %llu MiB of device memory, %llu MiB are free: give fewer "
                        "cell bytes%s",
                        p->n_cells, (unsigned long long)(bytes >> 20),
                        (unsigned long long)(info.memory_free_bytes >> 20),
                        p->cfg.policy == GW_RESIDENT ? " and another fetch policy" : "");
    }
    void *cells = NULL;
    moe_status st = b->mem_alloc(p->cfg.device, bytes, &cells, err);
    p->cells = cells;
    return st;
}

static moe_status alloc_mapped(gw_pipeline *p, size_t bytes, void **out, moe_err *err)
{
    return p->cfg.ops->backend.host_alloc(p->cfg.device, bytes, out, err);
}

static moe_status alloc_memory(gw_pipeline *p, moe_err *err)
{
    void *counter = NULL, *rows = NULL, *flags = NULL, *ring = NULL;
    moe_status st = alloc_cells(p, err);
    if (st == MOE_OK) {
        st = p->cfg.ops->backend.mem_alloc(p->cfg.device, sizeof *p->counter, &counter, err);
        p->counter = counter;
    }
    if (st == MOE_OK) {
        st = alloc_mapped(p, (n_rows_of(p) + 1) * sizeof *p->rows, &rows, err);
        p->rows = rows;
    }
    if (st == MOE_OK) {
        st = alloc_mapped(p, (n_rows_of(p) + 1) * sizeof *p->flags, &flags, err);
        p->flags = flags;
    }
    if (st == MOE_OK) {
        st = alloc_mapped(p, p->depth * sizeof *p->ring, &ring, err);
        p->ring = ring;
    }
    return st;
}

static moe_status zero_memory(gw_pipeline *p, moe_err *err)
{
    const krn_backend_fns *b = &p->cfg.ops->backend;
    char *zero_cell = p->cells + (size_t)p->n_cells * (size_t)p->cell_bytes;
    const struct {
        void *at;
        size_t bytes;
    } parts[] = {{zero_cell, p->cell_bytes},
                 {p->counter, sizeof *p->counter},
                 {p->rows, n_rows_of(p) * sizeof *p->rows},
                 {p->flags, n_rows_of(p) * sizeof *p->flags},
                 {p->ring, p->depth * sizeof *p->ring}};
    moe_status st = MOE_OK;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0] && st == MOE_OK; i++) {
        st = b->fill_async(p->cfg.compute, parts[i].at, 0, parts[i].bytes, err);
    }
    return st == MOE_OK ? b->stream_sync(p->cfg.compute, err) : st;
}

static moe_status create_parts(gw_pipeline *p, moe_err *err)
{
    const gw_cell_pool_cfg pool = {.n_cells = p->n_cells,
                                   .n_experts_total = p->shape.n_experts_total,
                                   .n_experts_per_block = p->shape.n_experts,
                                   .policy = p->cfg.cell_policy};
    const gw_dma_cfg dma = {.ops = p->cfg.ops,
                            .device = p->cfg.device,
                            .client = p->cfg.client,
                            .n_cells = p->n_cells,
                            .expert_bytes = gw_store_client_welcome(p->cfg.client)->expert_bytes,
                            .piece_bytes =
                                p->cfg.piece_bytes > 0 ? p->cfg.piece_bytes : GW_DMA_PIECE_BYTES,
                            .pins = &p->pins,
                            .trace = p->cfg.trace};
    p->speculation = calloc(p->shape.n_blocks_total + 1u, sizeof *p->speculation);
    if (p->speculation == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "accounts of %u blocks", p->shape.n_blocks_total);
    }
    moe_status st = gw_cell_pool_create(&pool, &p->pool, err);
    if (st == MOE_OK) {
        st = gw_dma_create(&dma, &p->dma, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    const gw_fetch_cfg fetch = {.waves = {.client = p->cfg.client,
                                          .pool = p->pool,
                                          .dma = p->dma,
                                          .policy = p->cfg.policy,
                                          .capacity = p->capacity,
                                          .max_waves = p->max_waves,
                                          .rows = p->rows,
                                          .flags = p->flags,
                                          .cells = p->cells,
                                          .cell_bytes = p->cell_bytes,
                                          .n_cells = p->n_cells,
                                          .expert_deadline_ns = p->cfg.expert_deadline_ns,
                                          .speculation = p->speculation,
                                          .predict_bytes = p->cfg.predict_bytes,
                                          .wave_wait = &p->wave_wait,
                                          .store_wait = &p->store_wait,
                                          .trace = p->cfg.trace},
                                .ring = p->ring,
                                .depth = p->depth};
    return gw_fetch_create(&fetch, &p->fetch, err);
}

/* RESIDENT: where the fetch thread has put every expert. */
static moe_status upload_weights_of(gw_pipeline *p, moe_err *err)
{
    const krn_backend_fns *b = &p->cfg.ops->backend;
    size_t n = p->shape.n_experts_total, bytes = n * sizeof(void *);
    void *weights_of = NULL;
    const void **host = malloc(bytes + 1);
    if (host == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "addresses of %zu experts", n);
    }
    for (uint32_t e = 0; e < n; e++) {
        host[e] = p->cells + (size_t)gw_cell_pool_find(p->pool, e) * (size_t)p->cell_bytes;
    }
    moe_status st = b->mem_alloc(p->cfg.device, bytes, &weights_of, err);
    p->weights_of = weights_of;
    if (st == MOE_OK) {
        st = b->copy_async(p->cfg.compute, weights_of, host, bytes, err);
    }
    if (st == MOE_OK) {
        st = b->stream_sync(p->cfg.compute, err);
    }
    free(host);
    return st;
}

static void set_gauges(gw_pipeline *p)
{
    moe_worker_counters *n = gw_store_client_counters(p->cfg.client);
    atomic_store_explicit(&n->n_cells, p->n_cells, memory_order_relaxed);
    atomic_store_explicit(&n->cell_bytes, p->cell_bytes, memory_order_relaxed);
    atomic_store_explicit(&n->cells_used, 0, memory_order_relaxed);
}

moe_status gw_pipeline_create(const gw_pipeline_cfg *cfg, gw_pipeline **out, moe_err *err)
{
    gw_pipeline *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "pipeline");
    }
    p->cfg = *cfg;
    moe_status st = plan_sizes(p, err);
    if (st == MOE_OK) {
        st = alloc_memory(p, err);
    }
    if (st == MOE_OK) {
        st = zero_memory(p, err);
    }
    if (st == MOE_OK) {
        set_gauges(p);
        gw_slot_pins_init(&p->pins, cfg->ops, cfg->device, cfg->client);
        st = create_parts(p, err);
    }
    if (st == MOE_OK && cfg->policy == GW_RESIDENT) {
        st = upload_weights_of(p, err);
    }
    if (st != MOE_OK) {
        gw_pipeline_destroy(p);
        return st;
    }
    *out = p;
    return MOE_OK;
}

void gw_pipeline_destroy(gw_pipeline *p)
{
    if (p == NULL) {
        return;
    }
    const krn_backend_fns *b = &p->cfg.ops->backend;
    gw_fetch_destroy(p->fetch);
    moe_status st = b->stream_sync(p->cfg.compute, NULL); /* it may still read rows and cells */
    (void)st;                                             /* a failed device reads nothing */
    gw_dma_destroy(p->dma);
    gw_cell_pool_destroy(p->pool);
    gw_slot_pins_fini(&p->pins);
    free(p->speculation);
    b->host_free(p->cfg.device, p->ring);
    b->host_free(p->cfg.device, p->flags);
    b->host_free(p->cfg.device, p->rows);
    b->mem_free(p->cfg.device, p->weights_of);
    b->mem_free(p->cfg.device, p->counter);
    b->mem_free(p->cfg.device, p->cells);
    free(p);
}

/* ---- steps ----------------------------------------------------------------------------------- */

static size_t row_index(const gw_step *s, uint32_t block, uint32_t index)
{
    const gw_pipeline *p = s->owner;
    MOE_ASSERT(block < p->shape.stack[s->stack].n_blocks && index < s->n_waves);
    size_t parity = s->step & 1;
    size_t flat = moe_flat_block(&p->shape, s->stack, block);
    return (parity * p->shape.n_blocks_total + flat) * p->max_waves + index;
}

static krn_wave *wave_row(const gw_step *s, uint32_t block, uint32_t index)
{
    return &s->owner->rows[row_index(s, block, index)];
}

static uint32_t *wave_flag(const gw_step *s, uint32_t block, uint32_t index)
{
    return &s->owner->flags[row_index(s, block, index)];
}

static const void *const *weights_of(const gw_step *s, uint32_t block)
{
    const gw_pipeline *p = s->owner;
    size_t first = (size_t)moe_flat_block(&p->shape, s->stack, block) * p->shape.n_experts;
    return p->weights_of != NULL ? p->weights_of + first : NULL;
}

void gw_pipeline_await(const gw_step *s, uint32_t block, uint32_t wave)
{
    uint32_t *flag = wave_flag(s, block, wave);
    while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) != 1) { /* always released: pipeline.h */
        moe_sleep_ns(AWAIT_NAP_NS);
    }
    __atomic_store_n(flag, 0, __ATOMIC_RELAXED);
}

moe_status gw_pipeline_begin_step(gw_pipeline *p, moe_stack stack, uint32_t n_rows, gw_step *out,
                                  moe_err *err)
{
    if (n_rows == 0 || n_rows > p->cfg.max_rows) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "a step of %u rows, 1 to %u are planned for", n_rows,
                        p->cfg.max_rows);
    }
    MOE_ASSERT(!p->in_step);
    uint32_t active = gw_plan_active_max(p->cfg.policy, p->shape.n_experts, p->shape.top_k, n_rows);
    p->in_step = true;
    p->step++;
    *out =
        (gw_step){.step = p->step,
                  .stack = stack,
                  .n_waves = p->max_waves > 0 ? gw_plan_n_waves(active, p->capacity) : 0,
                  .wave_capacity = p->capacity,
                  .publish_at_use = p->cfg.policy == GW_ON_DEMAND || p->cfg.policy == GW_RESIDENT,
                  .publish_guess = p->cfg.policy == GW_PREGATED,
                  .publish_first = p->cfg.policy == GW_PREGATED &&
                                   gw_plan_needs_all(p->shape.n_experts, p->shape.top_k, n_rows),
                  .publish_all = p->cfg.policy == GW_PREFETCH_ALL,
                  .wave_row = wave_row,
                  .wave_flag = wave_flag,
                  .weights_of = weights_of,
                  .owner = p};
    gw_fetch_begin_step(p->fetch, out->step, stack, out->n_waves);
    return MOE_OK;
}

void gw_pipeline_mailbox(gw_pipeline *p, krn_publish_args *args)
{
    args->ring = p->ring;
    args->counter = p->counter;
    args->depth = p->depth;
}

moe_status gw_pipeline_end_step(gw_pipeline *p, gw_step *s, char *out_failed_text,
                                uint32_t out_failed_text_bytes, moe_err *err)
{
    MOE_ASSERT(p->in_step && s->step == p->step);
    const char *text = "";
    moe_status st = gw_fetch_end_step(p->fetch, &text, err);
    p->in_step = false;
    snprintf(out_failed_text, out_failed_text_bytes, "%s", text);
    return st;
}

uint32_t gw_pipeline_n_cells(const gw_pipeline *p)
{
    return p->n_cells;
}

bool gw_pipeline_copies_pinned(const gw_pipeline *p)
{
    return !gw_slot_pins_has_failed(&p->pins);
}

bool gw_pipeline_store_lost(const gw_pipeline *p)
{
    return gw_fetch_store_lost(p->fetch);
}

/* ---- metrics --------------------------------------------------------------------------------- */

typedef struct counter_row {
    size_t off; /* in the counters struct */
    const char *name, *help;
    moe_metric_kind kind;
} counter_row;

#define WORKER(field, kind, name, help)                                                            \
    {                                                                                              \
        offsetof(moe_worker_counters, field), "pregate_worker_" name, help, MOE_METRIC_##kind      \
    }
static const counter_row worker_rows[] = {
    WORKER(copy_bytes, COUNTER, "copy_bytes_total", "Bytes copied from slots to cells."),
    WORKER(copies, COUNTER, "copies_total", "Experts copied from slots to cells."),
    WORKER(copies_pageable, COUNTER, "copies_pageable_total",
           "Copies from memory the device could not pin: several times slower."),
    WORKER(predictions_sent, COUNTER, "predictions_sent_total", "Experts named in PREDICT."),
    WORKER(wants_sent, COUNTER, "wants_sent_total", "Experts named in WANT."),
    WORKER(leases_taken, COUNTER, "leases_taken_total", "Leases taken on slots."),
    WORKER(lease_retries, COUNTER, "lease_retries_total", "Leases lost to an eviction."),
    WORKER(leases_held, GAUGE, "leases_held", "Leases held now."),
    WORKER(n_cells, GAUGE, "cells", "Cells for experts in device memory."),
    WORKER(cells_used, GAUGE, "cells_used", "Cells that hold an expert."),
    WORKER(cell_bytes, GAUGE, "cell_bytes", "Bytes of one cell."),
};

#define BLOCK(field, name, help)                                                                   \
    {                                                                                              \
        offsetof(moe_block_counters, field), "pregate_worker_" name "_total", help,                \
            MOE_METRIC_COUNTER                                                                     \
    }
static const counter_row block_rows[] = {
    BLOCK(cell_hit, "cell_hit", "Experts that were in a cell when reached."),
    BLOCK(cell_late, "cell_late", "Experts predicted whose copy came late."),
    BLOCK(cell_miss, "cell_miss", "Experts neither predicted nor in a cell."),
    BLOCK(cell_wasted, "cell_wasted", "Experts copied, then dropped unused."),
    BLOCK(slot_hit, "slot_hit", "Copies whose expert was in host memory."),
    BLOCK(slot_late, "slot_late", "Copies that waited for a predicted expert."),
    BLOCK(slot_miss, "slot_miss", "Copies that waited for an unpredicted expert."),
    BLOCK(fetch_predicted, "fetch_predicted", "Copies begun ahead of need."),
    BLOCK(fetch_demand, "fetch_demand", "Copies begun when needed."),
};

static double read_counter(const void *counters, size_t off)
{
    const _Atomic uint64_t *c = (const void *)((const char *)counters + off);
    return (double)atomic_load_explicit(c, memory_order_relaxed);
}

static void block_metrics(const gw_pipeline *p, uint32_t block, moe_metrics *m)
{
    char name[16];
    const moe_block_counters *c = gw_store_client_block_counters(p->cfg.client, block);
    moe_block_name(&p->shape, block, name, sizeof name);
    for (size_t i = 0; i < sizeof block_rows / sizeof block_rows[0]; i++) {
        const counter_row *r = &block_rows[i];
        moe_metrics_add(m, r->kind, r->name, r->help, read_counter(c, r->off), "block=\"%s\"",
                        name);
    }
}

static void block_guess_metrics(const gw_pipeline *p, uint32_t block, moe_metrics *m)
{
    const gw_speculation *s = &p->speculation[block];
    const struct {
        const char *name, *help;
        double value;
    } counters[] = {
        {"pregate_worker_guess_used_total", "Guessed copies that a block used.",
         read_counter(&s->n_used, 0)},
        {"pregate_worker_guess_wasted_total", "Guessed copies that nothing used.",
         read_counter(&s->n_wasted, 0)},
        {"pregate_worker_guess_wasted_bytes_total", "Their bytes.",
         read_counter(&s->wasted_bytes, 0)},
        {"pregate_worker_guess_wasted_seconds_total", "Their time on the link.",
         read_counter(&s->wasted_ns, 0) / 1e9},
        {"pregate_worker_guess_hidden_seconds_total",
         "Time on the link of used guesses before their block was reached.",
         read_counter(&s->hidden_ns, 0) / 1e9},
    };
    char name[16];
    moe_block_name(&p->shape, block, name, sizeof name);
    for (size_t i = 0; i < sizeof counters / sizeof counters[0]; i++) {
        moe_metrics_add(m, MOE_METRIC_COUNTER, counters[i].name, counters[i].help,
                        counters[i].value, "block=\"%s\"", name);
    }
    moe_metrics_add(m, MOE_METRIC_GAUGE, "pregate_worker_guess_off",
                    "1: guesses for this block are paused.", gw_speculation_is_off(s) ? 1 : 0,
                    "block=\"%s\"", name);
    moe_metrics_add(m, MOE_METRIC_GAUGE, "pregate_worker_guess_useful_ratio",
                    "Share of guessed copies that were used; 1 before any.",
                    gw_speculation_useful(s), "block=\"%s\"", name);
}

static void guess_metrics(const gw_pipeline *p, moe_metrics *m)
{
    double n_passed_over = 0;
    for (uint32_t b = 0; b < p->shape.n_blocks_total; b++) {
        n_passed_over += read_counter(&p->speculation[b].n_passed_over, 0);
    }
    moe_metrics_add(m, MOE_METRIC_COUNTER, "pregate_worker_guesses_passed_over_total",
                    "Guesses not fetched because lately they wasted more than they hid.",
                    n_passed_over, "%s", "");
    for (uint32_t b = 0; b < p->shape.n_blocks_total; b++) {
        block_guess_metrics(p, b, m);
    }
}

void gw_pipeline_metrics(const gw_pipeline *p, moe_metrics *m)
{
    const moe_worker_counters *c = gw_store_client_counters(p->cfg.client);
    for (size_t i = 0; i < sizeof worker_rows / sizeof worker_rows[0]; i++) {
        const counter_row *r = &worker_rows[i];
        moe_metrics_add(m, r->kind, r->name, r->help, read_counter(c, r->off), "%s", "");
    }
    moe_metrics_add(m, MOE_METRIC_COUNTER, "pregate_worker_copy_seconds_total",
                    "Time that copies spent on the link.",
                    read_counter(c, offsetof(moe_worker_counters, copy_ns)) / 1e9, "%s", "");
    moe_metrics_add(m, MOE_METRIC_COUNTER, "pregate_worker_copy_hidden_seconds_total",
                    "Part of it during which no block waited for that copy.",
                    read_counter(c, offsetof(moe_worker_counters, copy_hidden_ns)) / 1e9, "%s", "");
    moe_metrics_add(m, MOE_METRIC_GAUGE, "pregate_worker_copies_pinned",
                    "1: slots are registered with the device.",
                    gw_pipeline_copies_pinned(p) ? 1 : 0, "%s", "");
    moe_metrics_add(m, MOE_METRIC_GAUGE, "pregate_worker_store_alive",
                    "1: the store has answered lately.", gw_fetch_store_alive(p->fetch) ? 1 : 0,
                    "%s", "");
    moe_metrics_add_histogram(m, "pregate_worker_wave_wait_seconds",
                              "Time a group of experts waited for its last byte.", &p->wave_wait,
                              "%s", "");
    moe_metrics_add_histogram(m, "pregate_worker_store_wait_seconds",
                              "Time from WANT until the expert was leased.", &p->store_wait, "%s",
                              "");
    for (uint32_t b = 0; b < p->shape.n_blocks_total; b++) {
        block_metrics(p, b, m);
    }
    if (p->cfg.policy == GW_PREGATED) {
        guess_metrics(p, m);
    }
}
