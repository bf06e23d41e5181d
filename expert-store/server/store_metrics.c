/* store_metrics.c - see store_metrics.h. Counters end in _total; seconds and bytes are unscaled. */
#include "expert-store/server/store_metrics.h"

#include <stddef.h>

#include "common/clock.h"
#include "expert-store/server/machine.h"
#include "proto/expert_map.h"

typedef struct list {
    moe_metrics *out; /* borrowed */
    char store[80];   /* `store="name"` or "" */
} list;

static void add(const list *l, moe_metric_kind kind, const char *name, const char *help,
                double value, const char *labels)
{
    const char *comma = l->store[0] != '\0' && labels[0] != '\0' ? "," : "";
    moe_metrics_add(l->out, kind, name, help, value, "%s%s%s", l->store, comma, labels);
}

static void counter(const list *l, const char *name, const char *help, uint64_t value)
{
    add(l, MOE_METRIC_COUNTER, name, help, (double)value, "");
}

static void gauge(const list *l, const char *name, const char *help, double value)
{
    add(l, MOE_METRIC_GAUGE, name, help, value, "");
}

static void labelled(const list *l, moe_metric_kind kind, const char *name, const char *help,
                     double value, const char *label, const char *text)
{
    char labels[96]; /* as moe_metric.labels */
    snprintf(labels, sizeof labels, "%s=\"%s\"", label, text);
    add(l, kind, name, help, value, labels);
}

static uint64_t load(const _Atomic uint64_t *v)
{
    return atomic_load_explicit(v, memory_order_relaxed);
}

/* ---- the process ---- */

static void add_process(const list *l, const xs_store *s, int64_t now_ns)
{
    gauge(l, "pregate_store_uptime_seconds", "Time since this process began to serve",
          (double)(now_ns - s->started_ns) / (double)MOE_NS_PER_S);
    gauge(l, "pregate_store_boot", "How many stores have served this memory, this one included",
          s->boot);
    gauge(l, "pregate_store_stopping", "1 while reads in flight are finished before a stop",
          s->stopping);
    gauge(l, "pregate_store_process_resident_bytes", "Resident set of the process, slots included",
          (double)xs_resident_bytes());
    gauge(l, "pregate_store_trace_recording", "1 while --record-trace is being written",
          xs_recorder_active(s->recorder));
    counter(l, "pregate_store_trace_bytes_total", "Bytes of --record-trace",
            xs_recorder_bytes(s->recorder));
    labelled(l, MOE_METRIC_GAUGE, "pregate_store_info", "Always 1; the model is the label", 1,
             "model", s->model.name);
}

static const char *engine_name(xs_engine engine)
{
    switch (engine) {
    case XS_ENGINE_IO_URING:
        return "io_uring";
    case XS_ENGINE_PREAD:
        return "pread";
    case XS_ENGINE_SYNTHETIC:
        return "synthetic";
    case XS_ENGINE_AUTO:
        break;
    }
    return "auto";
}

static void add_degradations(const list *l, const xs_store *s)
{
    const xs_reader_report *r = xs_reader_get_report(s->reader);
    gauge(l, "pregate_store_pinned", "1: slots are locked in memory; 0: copies from them are slow",
          s->memory.pinned);
    gauge(l, "pregate_store_direct", "1: reads bypass the page cache (O_DIRECT)", r->direct);
    gauge(l, "pregate_store_io_uring", "1: reads go through io_uring; 0: another engine",
          r->engine == XS_ENGINE_IO_URING);
    gauge(l, "pregate_store_registered_buffers", "1: slots are registered with the ring",
          r->registered_buffers);
    labelled(l, MOE_METRIC_GAUGE, "pregate_store_engine",
             "Always 1; the label says how the drive is read", 1, "engine", engine_name(r->engine));
}

/* ---- memory ---- */

static void add_slots(const list *l, const xs_store *s)
{
    static const char name[] = "pregate_store_slots";
    static const char help[] = "Slots by state";
    static const struct {
        xs_slot_state state;
        const char *text;
    } states[] = {{XS_SLOT_FREE, "free"},
                  {XS_SLOT_LOADING, "loading"},
                  {XS_SLOT_READY, "ready"},
                  {XS_SLOT_CONDEMNED, "condemned"}};
    labelled(l, MOE_METRIC_GAUGE, name, help, s->regions.n_budget - s->memory.n_made, "state",
             "unmade");
    for (size_t i = 0; i < sizeof states / sizeof states[0]; i++) {
        labelled(l, MOE_METRIC_GAUGE, name, help, xs_residency_count(s->residency, states[i].state),
                 "state", states[i].text);
    }
    gauge(l, "pregate_store_slots_max", "Slots there are", s->regions.n_budget);
    gauge(l, "pregate_store_slots_ordered",
          "Slots that the setting or the last order asked for. More than slots_max: memory ended "
          "early; fewer: kept for a worker",
          s->n_ordered);
    gauge(l, "pregate_store_slots_leased", "Slots that a worker is reading",
          xs_residency_leased(s->residency));
    gauge(l, "pregate_store_experts", "Experts of the model", s->model.shape.n_experts_total);
    gauge(l, "pregate_store_experts_per_block", "Experts of one block", s->model.shape.n_experts);
    gauge(l, "pregate_store_encoder_blocks", "MoE blocks of the encoder; flat blocks begin there",
          s->model.shape.stack[MOE_ENCODER].n_blocks);
    gauge(l, "pregate_store_experts_pinned", "Experts that an operator pinned",
          xs_residency_n_pinned(s->residency));
    gauge(l, "pregate_store_ram_bytes", "Bytes of all slots",
          (double)s->regions.n_budget * (double)s->model.slot_bytes);
    gauge(l, "pregate_store_dense_bytes", "Bytes of the dense region",
          (double)s->regions.dense.bytes);
    gauge(l, "pregate_store_slot_bytes", "Bytes of one slot", (double)s->model.slot_bytes);
}

static void add_residency(const list *l, const xs_store *s)
{
    const xs_residency_counters *c = xs_residency_get_counters(s->residency);
    counter(l, "pregate_store_evictions_total", "Experts that left memory", c->evictions);
    counter(l, "pregate_store_evict_retries_total",
            "Evictions undone because a lease appeared meanwhile", c->evict_retries);
    counter(l, "pregate_store_wasted_total",
            "Experts read on a prediction or in advance, evicted unused", c->wasted);
    gauge(l, "pregate_store_adopted_slots", "Slots taken over from a store that died",
          (double)c->adopted);
    gauge(l, "pregate_store_adopted_unfinished", "Reads that a store which died had not finished",
          (double)c->adopted_loading);
    counter(l, "pregate_store_condemned_total", "Slots withdrawn while a lease named them",
            c->condemned);
    counter(l, "pregate_store_reverified_total", "Adopted slots hashed again",
            s->counters.reverified);
    counter(l, "pregate_store_reverify_failures_total", "Adopted slots that did not match",
            s->counters.reverify_failed);
}

/* ---- requests and reads ---- */

static void add_requests(const list *l, const xs_store *s)
{
    const xs_store_counters *c = &s->counters;
    for (uint32_t kind = 1; kind < XS_N_KINDS; kind++) {
        if (c->requests[kind] != 0 || kind == WIRE_WANT || kind == WIRE_PREDICT) {
            labelled(l, MOE_METRIC_COUNTER, "pregate_store_requests_total",
                     "Well-formed messages by kind", (double)c->requests[kind], "kind",
                     wire_kind_name(kind));
        }
    }
    counter(l, "pregate_store_malformed_total", "Messages that could not be decoded", c->malformed);
    counter(l, "pregate_store_refused_total", "Messages answered by ERROR", c->refused);
    counter(l, "pregate_store_replies_dropped_total", "Answers not sent: the peer was slow or away",
            c->replies_dropped);
    counter(l, "pregate_store_want_hit_total", "Wanted experts that were in memory", c->want_hit);
    counter(l, "pregate_store_want_late_total",
            "Wanted experts that were predicted, but not there yet", c->want_late);
    counter(l, "pregate_store_want_miss_total",
            "Wanted experts that were neither predicted nor there", c->want_miss);
    counter(l, "pregate_store_want_repeated_total", "Wanted experts that were asked for before",
            c->want_repeated);
    counter(l, "pregate_store_predicted_total", "Experts named by predictions", c->predicted);
    counter(l, "pregate_store_predictions_stale_total",
            "Predictions dropped: of an older boot or step", c->predictions_stale);
    counter(l, "pregate_store_predictions_expired_total",
            "Predicted experts not read in time, and dropped", c->predictions_expired);
    counter(l, "pregate_store_cancelled_total", "Queued reads that nobody wanted any more",
            c->cancelled);
    moe_metrics_add_histogram(l->out, "pregate_store_want_seconds",
                              "From WANT to READY, for experts that were not there",
                              &c->want_latency, "%s", l->store);
}

static void add_queue(const list *l, const xs_store *s)
{
    static const char *const names[XS_N_FETCH_CLASSES] = {"demand", "near", "far", "warm"};
    for (int cls = 0; cls < XS_N_FETCH_CLASSES; cls++) {
        labelled(l, MOE_METRIC_GAUGE, "pregate_store_queue_depth", "Experts waiting to be read",
                 xs_fetch_queue_length(s->queue, (xs_fetch_class)cls), "class", names[cls]);
    }
    for (int cls = 0; cls < XS_N_FETCH_CLASSES; cls++) {
        labelled(l, MOE_METRIC_COUNTER, "pregate_store_loads_total", "Experts whose read began",
                 (double)s->counters.loads[cls], "class", names[cls]);
    }
}

static void add_reads(const list *l, const xs_store *s)
{
    const xs_reader_counters *c = xs_reader_get_counters(s->reader);
    counter(l, "pregate_store_load_failures_total", "Experts that could not be read",
            s->counters.load_failures);
    counter(l, "pregate_store_reads_total", "Reads at the drive", c->reads);
    counter(l, "pregate_store_read_bytes_total", "Bytes read", c->read_bytes);
    counter(l, "pregate_store_direct_bytes_total", "Bytes read past the page cache",
            c->direct_bytes);
    counter(l, "pregate_store_buffered_bytes_total", "Bytes read through the page cache",
            c->buffered_bytes);
    counter(l, "pregate_store_read_failures_total", "Experts with a failed read", c->failed);
    counter(l, "pregate_store_verify_failures_total",
            "Experts whose bytes did not match their hash", c->corrupt);
    gauge(l, "pregate_store_read_bytes_per_second", "Read rate, smoothed over about 2 s",
          s->read_rate);
    gauge(l, "pregate_store_reads_in_flight", "Reads at the drive now", c->reads_in_flight);
    gauge(l, "pregate_store_experts_in_flight", "Experts being read now", s->n_in_flight);
    moe_metrics_add_histogram(l->out, "pregate_store_read_seconds",
                              "From the start of an expert's read to verified", &c->read_latency,
                              "%s", l->store);
}

/* ---- workers ---- */

typedef struct worker_metric {
    const char *name, *help;
    size_t offset; /* into moe_worker_counters */
    moe_metric_kind kind;
    double scale;
} worker_metric;

#define WORKER(kind, name, field, scale, help)                                                     \
    {                                                                                              \
        "pregate_worker_" name, help, offsetof(moe_worker_counters, field), kind, scale            \
    }
#define TOTAL MOE_METRIC_COUNTER
#define NOW MOE_METRIC_GAUGE
static const worker_metric worker_metrics[] = {
    WORKER(TOTAL, "encode_steps_total", encode_steps, 1, "Encoder passes"),
    WORKER(TOTAL, "decode_steps_total", decode_steps, 1, "Decoder steps"),
    WORKER(TOTAL, "prompt_tokens_total", prompt_tokens, 1, "Tokens read"),
    WORKER(TOTAL, "output_tokens_total", output_tokens, 1, "Tokens made"),
    WORKER(TOTAL, "sequences_started_total", sequences_started, 1, "Requests begun"),
    WORKER(TOTAL, "sequences_finished_total", sequences_finished, 1, "Requests finished"),
    WORKER(TOTAL, "sequences_failed_total", sequences_failed, 1, "Requests failed"),
    WORKER(NOW, "batch_max", batch_max, 1, "Largest batch of a decoder step"),
    WORKER(TOTAL, "copies_total", copies, 1, "Experts copied to the device"),
    WORKER(TOTAL, "copy_bytes_total", copy_bytes, 1, "Bytes copied to the device"),
    WORKER(TOTAL, "copies_pageable_total", copies_pageable, 1,
           "Copies from memory that is not pinned"),
    WORKER(TOTAL, "copy_seconds_total", copy_ns, 1e-9, "Time of all copies"),
    WORKER(TOTAL, "copy_hidden_seconds_total", copy_hidden_ns, 1e-9,
           "Copy time during which compute was not waiting"),
    WORKER(TOTAL, "predictions_sent_total", predictions_sent, 1, "Experts named in PREDICT"),
    WORKER(TOTAL, "wants_sent_total", wants_sent, 1, "Experts named in WANT"),
    WORKER(TOTAL, "leases_taken_total", leases_taken, 1, "Leases taken"),
    WORKER(TOTAL, "lease_retries_total", lease_retries, 1,
           "Leases lost to an eviction, and retried"),
    WORKER(NOW, "cells", n_cells, 1, "Device cells for experts"),
    WORKER(NOW, "cells_used", cells_used, 1, "Device cells with an expert"),
    WORKER(NOW, "cell_bytes", cell_bytes, 1, "Bytes of one device cell"),
};
#undef WORKER
#undef TOTAL
#undef NOW

static const _Atomic uint64_t *worker_field(const moe_worker_counters *c, size_t offset)
{
    return (const _Atomic uint64_t *)(const void *)((const char *)c + offset);
}

/* who: a worker's id, or "gone" for all that left. */
static void add_worker(const list *l, const moe_worker_counters *c, const char *who)
{
    for (size_t i = 0; i < sizeof worker_metrics / sizeof worker_metrics[0]; i++) {
        const worker_metric *m = &worker_metrics[i];
        labelled(l, m->kind, m->name, m->help, (double)load(worker_field(c, m->offset)) * m->scale,
                 "worker", who);
    }
    for (int i = 0; i < MOE_BATCH_BUCKETS; i++) {
        char labels[96]; /* as moe_metric.labels */
        snprintf(labels, sizeof labels, "worker=\"%s\",batch=\"%u\"", who, 1u << i);
        add(l, MOE_METRIC_COUNTER, "pregate_worker_batch_steps_total",
            "Decoder steps by batch size, rounded up to a power of two",
            (double)load(&c->batch_bucket[i]), labels);
    }
}

static void add_workers(const list *l, const xs_store *s)
{
    const xs_workers_counters *c = xs_workers_get_counters(s->workers);
    gauge(l, "pregate_store_workers", "Workers served now", xs_workers_count(s->workers));
    gauge(l, "pregate_store_workers_max", "Workers that may be served",
          (double)s->cfg->max_workers);
    gauge(l, "pregate_store_lease_capacity", "Slots that the next worker may hold",
          s->limits.lease_capacity);
    counter(l, "pregate_store_workers_joined_total", "Workers that came", c->joined);
    counter(l, "pregate_store_workers_rejoined_total", "Workers that came back to their leases",
            c->rejoined);
    counter(l, "pregate_store_workers_adopted_total", "Workers taken over from a store that died",
            c->adopted);
    counter(l, "pregate_store_workers_gone_total", "Workers whose lock was released", c->gone);
    counter(l, "pregate_store_holds_broken_total",
            "Slots kept for a worker, given up early because a read needed one", c->holds_broken);
    counter(l, "pregate_store_workers_stalled_total",
            "Workers that did not lease what was loaded for them in time", c->stalled);
    add_worker(l, &s->leases.gone, "gone");
    for (uint32_t p = 0; p < MOE_BOARD_MAX_WORKERS; p++) {
        const xs_worker *w = xs_workers_at(s->workers, p);
        if (w == NULL) {
            continue;
        }
        char who[16];
        snprintf(who, sizeof who, "%u", w->id);
        labelled(l, MOE_METRIC_GAUGE, "pregate_store_leases", "Slots this worker holds",
                 xs_lease_entry_count(&s->leases.at[p]), "worker", who);
        labelled(l, MOE_METRIC_GAUGE, "pregate_store_leases_max",
                 "Slots this worker may hold, until it starts again", w->capacity, "worker", who);
        labelled(l, MOE_METRIC_GAUGE, "pregate_store_wants_outstanding",
                 "Experts this worker waits for or has not leased yet", w->n_asks, "worker", who);
        const moe_lease_header *h = w->table.base;
        add_worker(l, &h->counters, who);
    }
}

/* ---- blocks ---- */

typedef struct block_metric {
    const char *name, *help;
    size_t offset; /* into moe_block_counters */
} block_metric;

#define BLOCK(field, name, help)                                                                   \
    {                                                                                              \
        name, help, offsetof(moe_block_counters, field)                                            \
    }
static const block_metric block_metrics[] = {
    BLOCK(slot_hit, "pregate_slot_hit_total", "Experts found in memory at the first try"),
    BLOCK(slot_late, "pregate_slot_late_total", "Predicted, but not in memory when needed"),
    BLOCK(slot_miss, "pregate_slot_miss_total", "Neither predicted nor in memory"),
    BLOCK(cell_hit, "pregate_cell_hit_total", "Experts found on the device at the first try"),
    BLOCK(cell_late, "pregate_cell_late_total", "Predicted, but not on the device when needed"),
    BLOCK(cell_miss, "pregate_cell_miss_total", "Neither predicted nor on the device"),
    BLOCK(cell_wasted, "pregate_cell_wasted_total", "Copied to the device, dropped unused"),
    BLOCK(fetch_predicted, "pregate_fetch_predicted_total", "Copies begun on a prediction"),
    BLOCK(fetch_demand, "pregate_fetch_demand_total", "Copies begun on demand"),
};
#undef BLOCK

static uint64_t block_field(const moe_block_counters *c, const block_metric *m)
{
    return load((const _Atomic uint64_t *)(const void *)((const char *)c + m->offset));
}

static uint32_t block_ready(const xs_store *s, uint32_t block)
{
    uint32_t n = 0;
    uint32_t first = block * s->model.shape.n_experts;
    for (uint32_t i = 0; i < s->model.shape.n_experts; i++) {
        n += xs_residency_state(s->residency, first + i) == MOE_BOARD_READY;
    }
    return n;
}

static void add_blocks(const list *l, const xs_store *s, bool per_block)
{
    enum { N = sizeof block_metrics / sizeof block_metrics[0] };
    uint64_t sum[N] = {0};
    for (uint32_t b = 0; b < s->model.shape.n_blocks_total; b++) {
        moe_block_counters c;
        char name[16];
        xs_lease_view_block(&s->leases, b, &c);
        moe_block_name(&s->model.shape, b, name, sizeof name);
        for (size_t i = 0; i < N; i++) {
            uint64_t v = block_field(&c, &block_metrics[i]);
            sum[i] += v;
            if (per_block) {
                labelled(l, MOE_METRIC_COUNTER, block_metrics[i].name, block_metrics[i].help,
                         (double)v, "block", name);
            }
        }
        if (per_block) {
            labelled(l, MOE_METRIC_GAUGE, "pregate_store_block_ready", "Experts in memory",
                     block_ready(s, b), "block", name);
        }
    }
    for (size_t i = 0; i < N && !per_block; i++) {
        counter(l, block_metrics[i].name, block_metrics[i].help, sum[i]);
    }
}

/* ---- maps ---- */

static wire_map_place place_of(xs_store *s, uint32_t expert, const bool *leased)
{
    moe_board_state state = xs_residency_state(s->residency, expert);
    if (state == MOE_BOARD_READY) {
        return leased[xs_residency_slot_of(s->residency, expert)] ? WIRE_MAP_LEASED : WIRE_MAP_SLOT;
    }
    return state == MOE_BOARD_LOADING ? WIRE_MAP_LOADING : WIRE_MAP_DRIVE;
}

/* Without the label of the store: these are for pictures, and labels are short. */
static void add_map(const list *l, xs_store *s, uint32_t block, uint32_t from, const bool *leased)
{
    char name[16];
    char map[WIRE_MAP_EXPERTS + 1] = "";
    uint32_t left = s->model.shape.n_experts - from;
    uint32_t n = left < WIRE_MAP_EXPERTS ? left : WIRE_MAP_EXPERTS;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t expert = block * s->model.shape.n_experts + from + i;
        map[i] = wire_map_char(place_of(s, expert, leased),
                               wire_map_heat(xs_residency_recent_uses(s->residency, expert)));
    }
    moe_block_name(&s->model.shape, block, name, sizeof name);
    moe_metrics_add(l->out, MOE_METRIC_GAUGE, WIRE_MAP_METRIC,
                    "Always 1; where experts are and how much they are used", 1,
                    "block=\"%s\",from=\"%u\",map=\"%s\"", name, from, map);
}

static void add_maps(const list *l, xs_store *s)
{
    const bool *leased = xs_residency_mark_leased(s->residency);
    for (uint32_t b = 0; b < s->model.shape.n_blocks_total; b++) {
        for (uint32_t from = 0; from < s->model.shape.n_experts; from += WIRE_MAP_EXPERTS) {
            add_map(l, s, b, from, leased);
        }
    }
}

void xs_store_metrics(xs_store *s, uint32_t flags, int64_t now_ns, moe_metrics *out)
{
    list l = {.out = out};
    if (s->cfg->metrics_name[0] != '\0') {
        snprintf(l.store, sizeof l.store, "store=\"%.60s\"", s->cfg->metrics_name);
    }
    add_process(&l, s, now_ns);
    add_degradations(&l, s);
    add_slots(&l, s);
    add_residency(&l, s);
    add_requests(&l, s);
    add_queue(&l, s);
    add_reads(&l, s);
    add_workers(&l, s);
    add_blocks(&l, s, (flags & WIRE_STATS_BLOCKS) != 0);
    if ((flags & WIRE_STATS_MAPS) != 0) {
        add_maps(&l, s);
    }
}
