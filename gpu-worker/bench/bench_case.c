/* bench_case.c - see bench_case.h. */
#include "gpu-worker/bench/bench_case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/clock.h"
#include "gpu-worker/bench/cost_model.h"
#include "gpu-worker/bench/routing_source.h"
#include "gpu-worker/engine/sequence.h"
#include "gpu-worker/engine/session.h"
#include "gpu-worker/engine/workspace.h"

enum { TRACE_EVENTS = 1 << 19, WANT_AT_ONCE = 64 };

/* ---- RAM ------------------------------------------------------------------------------------- */

/* Takes and gives back a lease of every expert: what had to be read is read then. */
static moe_status touch_all(gw_store_client *client, int64_t deadline_ns, moe_err *err)
{
    uint32_t n = gw_store_client_welcome(client)->n_experts, at = 0;
    while (at < n) {
        uint32_t want[WANT_AT_ONCE], n_want = 0;
        moe_status st = gw_store_client_poll(client, moe_now_ns(), err);
        bool moved = false;
        for (uint32_t e = at; e < n && e < at + WANT_AT_ONCE && st == MOE_OK; e++) {
            gw_lease lease;
            moe_status leased = gw_store_client_lease(client, e, &lease, err);
            if (leased == MOE_OK) {
                gw_store_client_release(client, &lease);
                moved = moved || e == at;
                at += e == at;
            } else if (leased == MOE_ERR_AGAIN) {
                want[n_want++] = e;
            } else {
                st = leased;
            }
        }
        if (st == MOE_OK && moe_now_ns() > deadline_ns) {
            st = MOE_FAIL(err, MOE_ERR_TIMEOUT, "%u of %u experts were read into memory in time",
                          at, n);
        }
        if (st != MOE_OK) {
            return st;
        }
        if (n_want > 0) {
            gw_store_client_want(client, 1, want, n_want);
        }
        if (!moved) {
            moe_sleep_ns(100 * MOE_NS_PER_US);
        }
    }
    return MOE_OK;
}

moe_status gw_bench_fill_ram(const char *endpoint, int64_t timeout_ns, bool *out_all, moe_err *err)
{
    const gw_store_client_cfg cfg = {
        .endpoint = endpoint, .name = "bench", .connect_timeout_ns = timeout_ns};
    gw_store_client *client = NULL;
    moe_status st = gw_store_client_create(&cfg, &client, err);
    if (st != MOE_OK) {
        return st;
    }
    const wire_welcome *w = gw_store_client_welcome(client);
    bool all = w->n_slots >= w->n_experts;
    if (all) {
        st = touch_all(client, moe_now_ns() + timeout_ns, err);
    }
    gw_store_client_destroy(client);
    if (st == MOE_OK) {
        *out_all = all;
    }
    return st;
}

/* ---- what counters say ----------------------------------------------------------------------- */

/* Sums over the decoder's blocks, and the totals of the worker; differences of two are used. */
typedef struct tally {
    double used, in_time, fetched, wasted, slot_late_or_miss;
    double copy_bytes, copy_ns, copy_hidden_ns;
} tally;

static double load(const _Atomic uint64_t *counter)
{
    return (double)atomic_load_explicit(counter, memory_order_relaxed);
}

static tally take_tally(const gw_session *s, const moe_model_shape *shape)
{
    const moe_worker_counters *w = gw_store_client_counters(s->client);
    tally t = {.copy_bytes = load(&w->copy_bytes),
               .copy_ns = load(&w->copy_ns),
               .copy_hidden_ns = load(&w->copy_hidden_ns)};
    for (uint32_t b = 0; b < shape->stack[MOE_DECODER].n_blocks; b++) {
        const moe_block_counters *c =
            gw_store_client_block_counters(s->client, moe_flat_block(shape, MOE_DECODER, b));
        t.in_time += load(&c->cell_hit);
        t.used += load(&c->cell_hit) + load(&c->cell_late) + load(&c->cell_miss);
        t.fetched += load(&c->fetch_predicted) + load(&c->fetch_demand);
        t.wasted += load(&c->cell_wasted);
        t.slot_late_or_miss += load(&c->slot_late) + load(&c->slot_miss);
    }
    return t;
}

static void add_difference(tally *sum, const tally *before, const tally *after)
{
    const double *b = (const double *)(const void *)before;
    const double *a = (const double *)(const void *)after;
    double *s = (double *)(void *)sum;
    for (size_t i = 0; i < sizeof *sum / sizeof *s; i++) {
        s[i] += a[i] - b[i];
    }
}
_Static_assert(sizeof(tally) == 8 * sizeof(double), "add_difference walks it");

static double share(double part, double whole)
{
    double x = whole > 0 ? part / whole : 0;
    return x < 0 ? 0 : x > 1 ? 1 : x;
}

static void conclude_tally(const gw_bench_case *c, const tally *t, gw_bench_result *r)
{
    gw_workload work = {.dtype = r->dtype,
                        .batch = c->batch,
                        .prompt_tokens = c->prompt_tokens,
                        .output_tokens = c->output_tokens,
                        .encode_tokens = c->prompt_tokens};
    gw_model_bytes bytes;
    gw_cost_bytes(&r->shape, &work, &bytes);
    double n_steps = (double)c->repeats * c->output_tokens;
    r->active_per_step = t->used / n_steps;
    r->hit_rate = 1 - share(t->fetched - t->wasted, t->used);
    r->in_time_rate = share(t->in_time, t->used);
    r->slot_miss_rate = share(t->slot_late_or_miss, t->fetched);
    r->hidden_rate = share(t->copy_hidden_ns, t->copy_ns);
    r->copied_bytes = t->copy_bytes / n_steps;
    r->link_floor_ms =
        r->ceilings.link_gbps > 0 ? r->copied_bytes / r->ceilings.link_gbps / 1e6 : 0;
    if (r->ceilings.memory_gbps > 0) {
        r->memory_floor_ms =
            gw_cost_step_bytes(&bytes, r->active_per_step) / r->ceilings.memory_gbps / 1e6;
    }
}

/* ---- running --------------------------------------------------------------------------------- */

/* A case under way. */
typedef struct bench {
    const gw_bench_case *c;
    gw_bench_result *r;
    gw_session *session;       /* owned */
    gw_trace *trace;           /* owned */
    gw_chooser *chooser;       /* owned; NULL: the model routes */
    gw_routing_source *source; /* owned; likewise */
    gw_sequence **seqs;        /* [batch] owned */
    gw_span *steps;            /* [repeats * output_tokens] owned: counted decode steps */
    uint32_t n_steps;
    tally decode;
    uint64_t random;
} bench;

static uint32_t next_random(bench *b) /* SplitMix64, the high half */
{
    uint64_t x = b->random += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return (uint32_t)((x ^ (x >> 31)) >> 32);
}

static void release_sequences(bench *b)
{
    for (uint32_t i = 0; i < b->c->batch; i++) {
        if (b->seqs[i] != NULL) {
            gw_kv_cache_release(b->session->kv, b->seqs[i]->place);
            gw_sequence_destroy(b->seqs[i]);
            b->seqs[i] = NULL;
        }
    }
}

/* Random ids, the end token last, as the paper's prompts are. */
static moe_status new_sequence(bench *b, const gw_sequence_limits *limits, int32_t *ids,
                               gw_sequence **out, moe_err *err)
{
    const moe_model_shape *s = &b->r->shape;
    uint32_t n = b->c->prompt_tokens;
    gw_sequence *seq = NULL;
    for (uint32_t i = 0; i + 1 < n; i++) {
        do {
            ids[i] = (int32_t)(next_random(b) % s->vocab);
        } while (ids[i] == s->eos_id);
    }
    ids[n - 1] = s->eos_id;
    const gw_request request = {.input_ids = ids,
                                .n_input = n,
                                .max_tokens = b->c->output_tokens,
                                .top_p = 1.0f,
                                .ignore_eos = true};
    moe_status st = gw_sequence_create(&request, limits, &seq, err);
    if (st == MOE_OK) {
        st = gw_kv_cache_take(b->session->kv, &seq->place, err);
    }
    if (st != MOE_OK) {
        gw_sequence_destroy(seq);
        return st;
    }
    *out = seq;
    return MOE_OK;
}

static moe_status new_sequences(bench *b, moe_err *err)
{
    const moe_model_shape *s = &b->r->shape;
    const gw_sequence_limits limits = {
        .max_input_tokens = b->c->prompt_tokens,
        .max_output_tokens = b->c->output_tokens,
        .vocab = s->vocab,
        .eos_id = s->eos_id,
        .start_id = s->decoder_start_id,
        .d_model = s->d_model,
        .n_blocks = {s->stack[MOE_ENCODER].n_blocks, s->stack[MOE_DECODER].n_blocks}};
    int32_t *ids = malloc(b->c->prompt_tokens * sizeof *ids);
    moe_status st = ids == NULL ? MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a prompt") : MOE_OK;
    for (uint32_t i = 0; i < b->c->batch && st == MOE_OK; i++) {
        st = new_sequence(b, &limits, ids, &b->seqs[i], err);
    }
    free(ids);
    return st;
}

static moe_status check_rows(const gw_step_result *step, uint32_t n_rows, moe_err *err)
{
    for (uint32_t t = 0; t < n_rows; t++) {
        if (step->row_failed[t] != 0) {
            return MOE_FAIL(err, MOE_ERR_IO, "row %u of a step failed: %s", t, step->failed_text);
        }
    }
    return MOE_OK;
}

static void prepare_routing(bench *b, moe_stack stack, uint32_t n_rows)
{
    if (b->source != NULL) {
        gw_routing_source_prepare(b->source, stack, n_rows);
    }
}

static moe_status encode(bench *b, double *out_ms, moe_err *err)
{
    uint32_t n_rows = b->c->batch * b->c->prompt_tokens;
    bool record = b->c->engine.routing_log != NULL;
    gw_step_result step;
    prepare_routing(b, MOE_ENCODER, n_rows);
    int64_t begin_ns = moe_now_ns();
    moe_status st =
        gw_forward_encode(b->session->forward, b->seqs, b->c->batch, record, &step, err);
    if (st != MOE_OK) {
        return st;
    }
    int64_t end_ns = moe_now_ns();
    *out_ms = (double)(end_ns - begin_ns) / 1e6;
    gw_trace_add(b->trace, GW_LANE_STEP, "encode", begin_ns, end_ns, -1, -1, 0);
    gw_routing_log_add(b->c->engine.routing_log, MOE_ENCODER, step.view.experts, step.view.stride,
                       n_rows);
    return check_rows(&step, n_rows, err);
}

static moe_status decode(bench *b, gw_span *out_span, moe_err *err)
{
    uint32_t n = b->c->batch;
    bool record = b->c->engine.routing_log != NULL;
    gw_step_result step;
    prepare_routing(b, MOE_DECODER, n);
    out_span->begin_ns = moe_now_ns();
    moe_status st = gw_forward_decode(b->session->forward, b->seqs, n, record, false, &step, err);
    if (st != MOE_OK) {
        return st;
    }
    for (uint32_t i = 0; i < n; i++) {
        int32_t token = 0;
        gw_finish finish;
        (void)gw_sequence_advance(b->seqs[i], step.next[i], b->r->shape.eos_id, &token, &finish);
    }
    out_span->end_ns = moe_now_ns();
    gw_trace_add(b->trace, GW_LANE_STEP, "decode", out_span->begin_ns, out_span->end_ns, -1, -1, 0);
    gw_routing_log_add(b->c->engine.routing_log, MOE_DECODER, step.view.experts, step.view.stride,
                       n);
    return check_rows(&step, n, err);
}

/* One answer of every sequence. */
static moe_status answer(bench *b, bool counts, moe_err *err)
{
    double prompt_ms = 0;
    gw_span span = {0};
    moe_status st = new_sequences(b, err);
    if (st == MOE_OK) {
        st = encode(b, &prompt_ms, err);
    }
    tally before = take_tally(b->session, &b->r->shape);
    for (uint32_t i = 0; i < b->c->output_tokens && st == MOE_OK; i++) {
        st = decode(b, &span, err);
        if (st != MOE_OK || !counts) {
            continue;
        }
        double ms = (double)(span.end_ns - span.begin_ns) / 1e6;
        b->steps[b->n_steps++] = span;
        if (i == 0) {
            gw_samples_add(&b->r->first_token_ms, prompt_ms + ms);
        } else {
            gw_samples_add(&b->r->step_ms, ms);
        }
    }
    tally after = take_tally(b->session, &b->r->shape);
    if (counts) {
        add_difference(&b->decode, &before, &after);
    }
    release_sequences(b);
    return st;
}

/* ---- what the trace says --------------------------------------------------------------------- */

static bool is_named(const gw_trace_event *e, gw_lane lane, const char *name)
{
    return e->lane == lane && strcmp(e->name, name) == 0;
}

/* The counted step that an instant falls into, or -1. Steps rise. */
static int64_t step_at(const bench *b, int64_t ns)
{
    uint32_t low = 0, high = b->n_steps;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (b->steps[mid].begin_ns <= ns) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low > 0 && ns <= b->steps[low - 1].end_ns ? (int64_t)low - 1 : -1;
}

/* ends: [n_steps][n_blocks], when the block's last wave had run; 0: no event. */
static void collect_block_times(bench *b, const int64_t *ends, uint32_t n_blocks)
{
    for (uint32_t s = 0; s < b->n_steps; s++) {
        int64_t before_ns = b->steps[s].begin_ns;
        for (uint32_t k = 0; k < n_blocks; k++) {
            int64_t end_ns = ends[(size_t)s * n_blocks + k];
            if (end_ns == 0) {
                break;
            }
            gw_samples_add(k == 0 ? &b->r->first_block_ms : &b->r->block_ms,
                           (double)(end_ns - before_ns) / 1e6);
            before_ns = end_ns;
        }
    }
}

/* The time that counted steps took, and how much of it the link was busy. copies: sorted here. */
static void collect_link(bench *b, gw_span *copies, uint32_t n_copies)
{
    double busy = 0, all = 0;
    uint32_t per_answer = b->c->output_tokens;
    for (uint32_t s = 0; s < b->n_steps; s += per_answer) {
        uint32_t last = s + per_answer - 1 < b->n_steps ? s + per_answer - 1 : b->n_steps - 1;
        gw_span window = {b->steps[s].begin_ns, b->steps[last].end_ns};
        busy += (double)gw_spans_busy_ns(copies, n_copies, window);
        all += (double)(window.end_ns - window.begin_ns);
    }
    b->r->link_busy = share(busy, all);
}

static moe_status read_trace(bench *b, moe_err *err)
{
    const moe_model_shape *s = &b->r->shape;
    uint32_t n_blocks = s->stack[MOE_DECODER].n_blocks, n_copies = 0;
    int32_t first = (int32_t)moe_flat_block(s, MOE_DECODER, 0);
    uint32_t n = gw_trace_n_events(b->trace);
    int64_t *ends = calloc((size_t)b->n_steps * n_blocks + 1, sizeof *ends);
    gw_span *copies = calloc(n + 1u, sizeof *copies);
    double waited = 0, copied = 0; /* blocks 2..L of counted steps */
    if (ends == NULL || copies == NULL) {
        free(ends);
        free(copies);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "block times of %u steps", b->n_steps);
    }
    for (uint32_t i = 0; i < n; i++) {
        const gw_trace_event *e = gw_trace_at(b->trace, i);
        int64_t step = step_at(b, e->end_ns);
        bool is_copy = e->lane == GW_LANE_COPY;
        double ns = (double)(e->end_ns - e->begin_ns);
        if (is_copy) {
            copies[n_copies++] = (gw_span){e->begin_ns, e->end_ns};
        }
        int32_t block =
            e->expert >= 0 ? (int32_t)moe_block_of_expert(s, (uint32_t)e->expert) : e->block;
        if (step < 0 || block < first || block >= first + (int32_t)n_blocks) {
            continue;
        }
        int64_t *end = &ends[(size_t)step * n_blocks + (size_t)(block - first)];
        if (is_named(e, GW_LANE_COMPUTE, "experts") && e->end_ns > *end) {
            *end = e->end_ns;
        }
        if (block > first) {
            copied += is_copy ? ns : 0;
            waited += is_named(e, GW_LANE_COMPUTE, "wait for experts") ? ns : 0;
        }
    }
    b->r->trace_dropped = gw_trace_n_dropped(b->trace);
    if (b->r->trace_dropped == 0) {
        collect_block_times(b, ends, n_blocks);
        collect_link(b, copies, n_copies);
        b->r->hidden_after_first_rate = copied > 0 ? 1 - share(waited, copied) : 0;
    }
    free(ends);
    free(copies);
    return MOE_OK;
}

/* ---- set up and down ------------------------------------------------------------------------- */

static uint32_t default_cells(const gw_bench_case *c, const moe_model_shape *s)
{
    if (c->n_cells > 0 || c->engine.policy == GW_RESIDENT) {
        return c->engine.policy == GW_RESIDENT ? 0 : c->n_cells;
    }
    uint32_t cells =
        c->engine.policy == GW_PREFETCH_ALL ? 2 * s->n_experts : gw_cost_eq1_cells(s, c->batch);
    return cells < s->n_experts_total ? cells : s->n_experts_total;
}

/* The store is asked before the session, because the number of cells follows from the model. */
static moe_status describe_model(bench *b, moe_err *err)
{
    const gw_store_client_cfg cfg = {.endpoint = b->c->engine.endpoint,
                                     .name = "bench",
                                     .connect_timeout_ns = b->c->engine.connect_timeout_ns};
    gw_store_client *client = NULL;
    moe_status st = gw_store_client_create(&cfg, &client, err);
    if (st != MOE_OK) {
        return st;
    }
    const wire_welcome *w = gw_store_client_welcome(client);
    b->r->shape = *gw_store_client_shape(client);
    b->r->dtype = (moe_dtype)w->expert_dtype;
    b->r->all_in_ram = w->n_slots >= w->n_experts;
    snprintf(b->r->model, sizeof b->r->model, "%.63s", w->model_name);
    gw_store_client_destroy(client);
    return MOE_OK;
}

static uint32_t max_rows(const gw_bench_case *c)
{
    return c->batch * c->prompt_tokens;
}

static moe_status open_session(bench *b, moe_err *err)
{
    const gw_bench_case *c = b->c;
    gw_engine_cfg cfg = c->engine;
    cfg.n_cells = default_cells(c, &b->r->shape);
    cfg.max_batch = c->batch;
    cfg.max_input_tokens = c->prompt_tokens;
    cfg.max_output_tokens = c->output_tokens;
    cfg.max_encode_tokens = max_rows(c);
    cfg.trace = b->trace;
    moe_status st = gw_session_create(&cfg, cfg.connect_timeout_ns, NULL, &b->session, err);
    if (st != MOE_OK) {
        return st;
    }
    b->r->n_cells = gw_pipeline_n_cells(b->session->pipeline);
    b->r->pinned = gw_pipeline_copies_pinned(b->session->pipeline);
    return MOE_OK;
}

static moe_status open_routing(bench *b, moe_err *err)
{
    const gw_bench_case *c = b->c;
    if (c->routing.kind == GW_ROUTING_MODEL) {
        return MOE_OK;
    }
    if (c->routing.kind == GW_ROUTING_FORCED &&
        c->routing.forced_k > c->batch * b->r->shape.top_k) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "--routing forced:%u needs a batch of at least %u",
                        c->routing.forced_k,
                        (c->routing.forced_k + b->r->shape.top_k - 1) / b->r->shape.top_k);
    }
    if (c->guess_recall > 0 && c->routing.kind == GW_ROUTING_TRACE) {
        return MOE_FAIL(
            err, MOE_ERR_INVALID,
            "--guess-recall goes with routing that is drawn: uniform, zipf:S, forced:K");
    }
    moe_status st = gw_chooser_create(&c->routing, &b->r->shape, c->seed, &b->chooser, err);
    if (st == MOE_OK) {
        st = gw_routing_source_create(c->engine.ops, c->engine.device, b->session->compute,
                                      &b->r->shape, max_rows(c), b->chooser, c->guess_recall,
                                      &b->source, err);
    }
    if (st == MOE_OK) {
        gw_forward_set_routing(b->session->forward, b->source);
    }
    return st;
}

/* The link as experts use it: from the store's slots. */
static moe_status measure_ceilings(bench *b, moe_err *err)
{
    const wire_welcome *w = gw_store_client_welcome(b->session->client);
    const gw_link_source link = {.src = gw_store_client_slots(b->session->client),
                                 .stride_bytes = w->slot_bytes,
                                 .block_bytes = w->expert_bytes,
                                 .n_blocks = gw_store_client_n_made(b->session->client)};
    return gw_ceilings_measure(b->c->engine.ops, b->c->engine.device, &link, &b->r->ceilings, err);
}

static void measure_memory(bench *b)
{
    const gw_bench_case *c = b->c;
    krn_device_info info;
    const gw_session *s = b->session;
    uint64_t cell = moe_align_up(gw_store_client_welcome(s->client)->expert_bytes, 256);
    b->r->device_bytes_own = s->weights.arena_bytes + gw_kv_cache_bytes(s->kv) +
                             (b->r->n_cells + 1ull) * cell +
                             gw_workspace_device_bytes(&b->r->shape, max_rows(c), c->batch);
    c->engine.ops->backend.info(c->engine.device, &info);
    if (strcmp(c->engine.ops->name, "cpu") != 0 && info.memory_free_bytes < c->context_free_bytes) {
        uint64_t used = c->context_free_bytes - info.memory_free_bytes;
        b->r->device_bytes_peak = used > b->r->device_bytes_peak ? used : b->r->device_bytes_peak;
    }
}

static moe_status run_answers(bench *b, moe_err *err)
{
    moe_status st = MOE_OK;
    for (uint32_t i = 0; i < b->c->warmups + b->c->repeats && st == MOE_OK; i++) {
        st = answer(b, i >= b->c->warmups, err);
        measure_memory(b); /* nothing is given back before the session ends */
    }
    return st;
}

/* Everything that needs the session; then it is closed, so that the trace is complete. */
static moe_status run_session(bench *b, moe_err *err)
{
    moe_status st = open_session(b, err);
    if (st == MOE_OK) {
        st = open_routing(b, err);
    }
    if (st == MOE_OK) {
        gw_routing_log_describe(b->c->engine.routing_log, b->r->model, &b->r->shape);
        st = run_answers(b, err);
    }
    if (st == MOE_OK) { /* after the answers: its memory is not theirs */
        st = measure_ceilings(b, err);
    }
    gw_session_destroy(b->session);
    b->session = NULL;
    return st;
}

static moe_status allocate(bench *b, moe_err *err)
{
    const gw_bench_case *c = b->c;
    b->seqs = calloc(c->batch, sizeof(gw_sequence *));
    b->steps = calloc((size_t)c->repeats * c->output_tokens, sizeof *b->steps);
    if (b->seqs == NULL || b->steps == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%u sequences of %u steps", c->batch,
                        c->output_tokens);
    }
    return gw_trace_create(TRACE_EVENTS, &b->trace, err);
}

static moe_status conclude(bench *b, moe_err *err)
{
    const gw_bench_result *r = b->r;
    conclude_tally(b->c, &b->decode, b->r);
    moe_status st = read_trace(b, err);
    if (st == MOE_OK && b->c->trace_path[0] != '\0') {
        st = gw_trace_write(b->trace, b->c->trace_path, err);
    }
    if (st == MOE_OK && (r->step_ms.failed || r->first_token_ms.failed || r->block_ms.failed ||
                         r->first_block_ms.failed)) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "samples");
    }
    return st;
}

moe_status gw_bench_case_run(const gw_bench_case *c, gw_bench_result *out, moe_err *err)
{
    gw_bench_result r = {.model = ""};
    bench b = {.c = c, .r = &r, .random = c->seed};
    moe_status st = allocate(&b, err);
    if (st == MOE_OK) {
        st = describe_model(&b, err);
    }
    if (st == MOE_OK) {
        st = run_session(&b, err);
    }
    if (st == MOE_OK) {
        st = conclude(&b, err);
    }
    gw_routing_source_destroy(b.source);
    gw_chooser_destroy(b.chooser);
    gw_trace_destroy(b.trace);
    free(b.seqs);
    free(b.steps);
    if (st != MOE_OK) {
        gw_bench_result_fini(&r);
        return st;
    }
    *out = r;
    return MOE_OK;
}

void gw_bench_result_fini(gw_bench_result *r)
{
    gw_samples_fini(&r->step_ms);
    gw_samples_fini(&r->first_token_ms);
    gw_samples_fini(&r->block_ms);
    gw_samples_fini(&r->first_block_ms);
}
