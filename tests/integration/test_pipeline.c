/* Experts travel while blocks compute: the pipeline against the real store, on the cpu backend.
 *
 * A made-up forward pass chooses experts at random, publishes them as forward.c does, runs every
 * wave through the real operations and keeps each block's outputs. They must equal, bit for bit,
 * the same operations over the experts' true bytes: whatever the policy, the number of cells and of
 * slots, and whatever happens to the store; except for rows that are marked as failed.
 * argv: path of expert-store, path of expert-pack. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "expert-store/catalog/synthetic.h"
#include "gpu-worker/fetch/pipeline.h"
#include "gpu-worker/fetch/speculation.h"
#include "tests/support/store_rig.h"

static const char *store_program, *pack_program;

enum { MAX_ROWS = 12, MAX_BLOCKS = 2, N_EXPERTS = 8, SEED = 7, N_FLAT = 4, N_ALL = 32 };
enum { SLOT_BYTES = 8192 };

typedef struct fixture {
    store_rig rig;
    const krn_ops *ops;
    krn_device *device;
    krn_stream *compute, *reference;
    gw_store_client *client;
    gw_pipeline *pipeline;
    moe_model_shape shape;
    gw_policy policy;
    uint64_t random;
    char *expected; /* [N_ALL][SLOT_BYTES] the experts' true bytes, owned */
    moe_err err;
    char failed_text[400];

    /* One step: per block its choice and its outputs. The cpu backend's device memory is ours. */
    uint32_t n_rows;
    moe_stack stack;
    float h[MAX_ROWS * 64];
    int32_t ids[MAX_BLOCKS][MAX_ROWS], order[MAX_BLOCKS][MAX_ROWS];
    int32_t offsets[MAX_BLOCKS][N_EXPERTS + 1];
    float weights[MAX_ROWS];
    int32_t guess_ids[MAX_BLOCKS][MAX_ROWS], guess_order[MAX_BLOCKS][MAX_ROWS];
    int32_t guess_offsets[MAX_BLOCKS][N_EXPERTS + 1];
    float y[MAX_BLOCKS][MAX_ROWS * 64], truth[MAX_ROWS * 64];
    float scratch[MAX_ROWS * 128], truth_scratch[MAX_ROWS * 128];
    int32_t row_failed[MAX_BLOCKS][MAX_ROWS], truth_failed[MAX_ROWS];
    krn_wave truth_wave;
    int64_t pause_ns;               /* between blocks: as if they computed for so long */
    bool good_guesses, bad_guesses; /* neither: at random */
} fixture;

static void ok(fixture *f, moe_status st)
{
    if (st != MOE_OK) {
        fail_msg("%s: %s", moe_status_name(st), f->err.text);
    }
}

static uint32_t below(fixture *f, uint32_t n)
{
    f->random = f->random * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(f->random >> 33) % n;
}

/* ---- fixture --------------------------------------------------------------------------------- */

static int setup(void **state)
{
    static fixture f;
    memset(&f, 0, sizeof f);
    f.random = 99;
    for (int t = 0; t < MAX_ROWS; t++) {
        f.weights[t] = 0.25f + (float)t;
    }
    store_rig_init(&f.rig, store_program);
    const krn_open_cfg cfg = {.n_threads = 1};
    ok(&f, krn_ops_find("cpu", &f.ops, NULL, 0, &f.err));
    ok(&f, f.ops->backend.open(&cfg, &f.device, &f.err));
    ok(&f, f.ops->backend.stream_create(f.device, "compute", &f.compute, &f.err));
    ok(&f, f.ops->backend.stream_create(f.device, "reference", &f.reference, &f.err));
    f.expected = malloc((size_t)N_ALL * SLOT_BYTES);
    assert_non_null(f.expected);
    *state = &f;
    return 0;
}

static void leave(fixture *f)
{
    gw_pipeline_destroy(f->pipeline);
    f->pipeline = NULL;
    gw_store_client_destroy(f->client);
    f->client = NULL;
}

static int teardown(void **state)
{
    fixture *f = *state;
    leave(f);
    f->ops->backend.stream_destroy(f->compute);
    f->ops->backend.stream_destroy(f->reference);
    f->ops->backend.close(f->device);
    store_rig_fini(&f->rig);
    free(f->expected);
    return 0;
}

static void connect_store(fixture *f)
{
    const gw_store_client_cfg cfg = {
        .endpoint = f->rig.endpoint, .name = "test", .connect_timeout_ns = 10 * MOE_NS_PER_S};
    ok(f, gw_store_client_create(&cfg, &f->client, &f->err));
    f->shape = *gw_store_client_shape(f->client);
    assert_int_equal(N_ALL, f->shape.n_experts_total);
    assert_int_equal(SLOT_BYTES, gw_store_client_welcome(f->client)->expert_bytes);
    for (uint32_t x = 0; x < N_ALL; x++) {
        xs_synthetic_expert(&f->shape, MOE_BF16, SEED, x, f->expected + (size_t)x * SLOT_BYTES);
    }
}

static gw_pipeline_cfg config(const fixture *f, gw_policy policy, uint32_t n_cells)
{
    return (gw_pipeline_cfg){.ops = f->ops,
                             .device = f->device,
                             .compute = f->compute,
                             .client = f->client,
                             .policy = policy,
                             .n_cells = n_cells,
                             .max_rows = MAX_ROWS,
                             .expert_deadline_ns = 20 * MOE_NS_PER_S};
}

static void open_pipeline(fixture *f, const gw_pipeline_cfg *cfg)
{
    f->policy = cfg->policy;
    ok(f, gw_pipeline_create(cfg, &f->pipeline, &f->err));
}

static void join(fixture *f, gw_policy policy, uint32_t n_cells)
{
    connect_store(f);
    const gw_pipeline_cfg cfg = config(f, policy, n_cells);
    open_pipeline(f, &cfg);
}

/* `tight`: five slots; else one for each expert. */
static void serve(fixture *f, const char *model, const char *ram)
{
    const char *const args[] = {
        "--synthetic",       model, "--seed", "7", "--ram-bytes", ram, "--max-workers", "1",
        "--worker-probe-ms", "20",  NULL};
    store_rig_start(&f->rig, args);
}
static const char tight[] = "40960";

static void kill_store(fixture *f)
{
    kill(f->rig.pid, SIGKILL);
    store_rig_wait(&f->rig);
}

/* ---- a step ---------------------------------------------------------------------------------- */

static uint32_t n_blocks(const fixture *f)
{
    return f->shape.stack[f->stack].n_blocks;
}

static uint32_t flat(const fixture *f, uint32_t b)
{
    return moe_flat_block(&f->shape, f->stack, b);
}

static void choose(fixture *f, uint32_t n_rows)
{
    f->stack = below(f, 2) == 0 ? MOE_ENCODER : MOE_DECODER;
    f->n_rows = n_rows;
    assert_true(n_blocks(f) <= MAX_BLOCKS && f->shape.d_model <= 64 && f->shape.d_ff <= 128);
    for (uint32_t i = 0; i < n_rows * f->shape.d_model; i++) {
        f->h[i] = (float)below(f, 2000) / 1000.0f - 1.0f;
    }
    for (uint32_t b = 0; b < n_blocks(f); b++) {
        for (uint32_t t = 0; t < n_rows; t++) {
            f->ids[b][t] = (int32_t)below(f, N_EXPERTS);
            f->guess_ids[b][t] = f->good_guesses  ? f->ids[b][t]
                                 : f->bad_guesses ? (f->ids[b][t] + 1) % N_EXPERTS
                                                  : (int32_t)below(f, N_EXPERTS);
        }
    }
    memset(f->row_failed, 0, sizeof f->row_failed);
}

static krn_routing routing(fixture *f, uint32_t b)
{
    return (krn_routing){
        .ids = f->ids[b], .weights = f->weights, .order = f->order[b], .offsets = f->offsets[b]};
}

static krn_routing guess(fixture *f, uint32_t b)
{
    return (krn_routing){.ids = f->guess_ids[b],
                         .weights = f->weights,
                         .order = f->guess_order[b],
                         .offsets = f->guess_offsets[b]};
}

static void sort_rows(fixture *f, krn_routing r)
{
    const krn_dispatch_args a = {
        .n_rows = f->n_rows, .n_experts = N_EXPERTS, .top_k = 1, .routing = r};
    ok(f, f->ops->dispatch(f->compute, &a, &f->err));
}

static void publish(fixture *f, krn_publish_args a, krn_mail_kind kind, uint32_t b)
{
    gw_pipeline_mailbox(f->pipeline, &a);
    a.kind = kind;
    a.block = flat(f, b);
    a.n_experts = N_EXPERTS;
    ok(f, f->ops->publish(f->compute, &a, &f->err));
}

static void publish_routed(fixture *f, uint32_t b)
{
    sort_rows(f, routing(f, b));
    publish(f, (krn_publish_args){.offsets = f->offsets[b]}, KRN_MAIL_ROUTED, b);
}

/* As forward.c's gate position of block b. */
static void route(fixture *f, const gw_step *s, uint32_t b)
{
    bool pregated = f->shape.pregate_lookahead > 0;
    if (b == 0 || !pregated || s->publish_at_use) {
        publish_routed(f, b);
    }
    if (b + 1 == n_blocks(f)) {
        return;
    }
    if (pregated && !s->publish_at_use) {
        publish_routed(f, b + 1);
    } else if (s->publish_guess) {
        sort_rows(f, guess(f, b + 1));
        publish(f, (krn_publish_args){.offsets = f->guess_offsets[b + 1]}, KRN_MAIL_GUESSED, b + 1);
    }
}

static krn_expert_ffn_args ffn(fixture *f, uint32_t b, const krn_wave *wave)
{
    return (krn_expert_ffn_args){.n_rows = f->n_rows,
                                 .d_model = f->shape.d_model,
                                 .d_ff = f->shape.d_ff,
                                 .n_experts = N_EXPERTS,
                                 .w_dtype = MOE_BF16,
                                 .act = f->shape.act,
                                 .h = f->h,
                                 .wave = wave,
                                 .routing = routing(f, b),
                                 .x = f->y[b],
                                 .scratch = f->scratch,
                                 .row_failed = f->row_failed[b]};
}

static void run_resident(fixture *f, const gw_step *s, uint32_t b)
{
    krn_expert_ffn_args a = ffn(f, b, NULL);
    a.weights_of = s->weights_of(s, b);
    ok(f, f->ops->expert_ffn(f->compute, &a, &f->err));
}

static void run_wave(fixture *f, const gw_step *s, uint32_t b, uint32_t w)
{
    const krn_expert_ffn_args a = ffn(f, b, s->wave_row(s, b, w));
    publish(f, (krn_publish_args){.wave = w}, KRN_MAIL_REACHED, b);
    ok(f, f->ops->backend.wait32_async(f->compute, s->wave_flag(s, b, w), 1, &f->err));
    ok(f, f->ops->expert_ffn(f->compute, &a, &f->err));
    publish(f, (krn_publish_args){.wave = w}, KRN_MAIL_DONE, b);
}

static void submit(fixture *f, gw_step *s)
{
    memset(f->y, 0, sizeof f->y); /* experts add to it */
    ok(f, gw_pipeline_begin_step(f->pipeline, f->stack, f->n_rows, s, &f->err));
    if (s->publish_all) {
        publish(f, (krn_publish_args){.all_experts = true}, KRN_MAIL_GUESSED, 0);
    }
    for (uint32_t b = 0; b < n_blocks(f); b++) {
        if (s->publish_all && b + 1 < n_blocks(f)) {
            publish(f, (krn_publish_args){.all_experts = true}, KRN_MAIL_GUESSED, b + 1);
        }
        route(f, s, b);
        if (s->weights_of(s, b) != NULL) {
            run_resident(f, s, b);
        }
        for (uint32_t w = 0; w < s->n_waves; w++) {
            run_wave(f, s, b, w);
        }
        moe_sleep_ns(f->pause_ns);
    }
}

static moe_status finish(fixture *f, gw_step *s)
{
    ok(f, f->ops->backend.stream_sync(f->compute, &f->err));
    return gw_pipeline_end_step(f->pipeline, s, f->failed_text, sizeof f->failed_text, &f->err);
}

/* The block's outputs over the experts' true bytes. */
static void compute_truth(fixture *f, uint32_t b)
{
    krn_expert_ffn_args a = ffn(f, b, &f->truth_wave);
    f->truth_wave.n = N_EXPERTS;
    for (uint32_t e = 0; e < N_EXPERTS; e++) {
        uint32_t x = flat(f, b) * N_EXPERTS + e;
        f->truth_wave.entry[e] =
            (krn_wave_entry){.weights = f->expected + (size_t)x * SLOT_BYTES, .expert = (int32_t)e};
    }
    memset(f->truth, 0, sizeof f->truth);
    a.x = f->truth;
    a.scratch = f->truth_scratch;
    a.row_failed = f->truth_failed;
    ok(f, f->ops->expert_ffn(f->reference, &a, &f->err));
    ok(f, f->ops->backend.stream_sync(f->reference, &f->err));
}

/* Every row is right or marked as failed; returns how many were marked. */
static uint32_t check_rows(fixture *f)
{
    uint32_t n_failed = 0, d = f->shape.d_model;
    for (uint32_t b = 0; b < n_blocks(f); b++) {
        compute_truth(f, b);
        for (uint32_t t = 0; t < f->n_rows; t++) {
            if (f->row_failed[b][t] != 0) {
                n_failed++;
            } else {
                assert_memory_equal(f->truth + (size_t)t * d, f->y[b] + (size_t)t * d,
                                    d * sizeof(float));
            }
        }
    }
    return n_failed;
}

static void step_of(fixture *f, uint32_t n_rows)
{
    gw_step s;
    choose(f, n_rows);
    submit(f, &s);
    ok(f, finish(f, &s));
    assert_string_equal("", f->failed_text);
    assert_int_equal(0, check_rows(f));
}

static void steps(fixture *f, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        step_of(f, i % 3 == 0 ? MAX_ROWS : 1 + below(f, MAX_ROWS));
    }
}

/* ---- counters -------------------------------------------------------------------------------- */

static moe_block_counters totals(const fixture *f)
{
    moe_block_counters sum = {.cell_hit = 0};
    for (uint32_t b = 0; b < N_FLAT; b++) {
        const moe_block_counters *c = gw_store_client_block_counters(f->client, b);
        sum.cell_hit += c->cell_hit;
        sum.cell_late += c->cell_late;
        sum.cell_miss += c->cell_miss;
        sum.cell_wasted += c->cell_wasted;
        sum.slot_hit += c->slot_hit;
        sum.slot_late += c->slot_late;
        sum.slot_miss += c->slot_miss;
        sum.fetch_predicted += c->fetch_predicted;
        sum.fetch_demand += c->fetch_demand;
    }
    return sum;
}

/* One of the totals, by its offset. */
static uint64_t total(const fixture *f, size_t offset)
{
    const moe_block_counters c = totals(f);
    return atomic_load((const _Atomic uint64_t *)(const void *)((const char *)&c + offset));
}

static uint32_t n_active(const fixture *f, uint32_t b)
{
    uint32_t n = 0;
    for (uint32_t e = 0; e < N_EXPERTS; e++) {
        n += f->offsets[b][e] < f->offsets[b][e + 1];
    }
    return n;
}

/* ---- every policy, every budget -------------------------------------------------------------- */

static const struct {
    gw_policy policy;
    uint32_t n_cells;
} runs[] = {{GW_RESIDENT, N_ALL},  {GW_ON_DEMAND, 2},     {GW_ON_DEMAND, 5},
            {GW_ON_DEMAND, N_ALL}, {GW_PREFETCH_ALL, 2},  {GW_PREFETCH_ALL, 7},
            {GW_PREFETCH_ALL, 16}, {GW_PREFETCH_ALL, 32}, {GW_PREGATED, 2},
            {GW_PREGATED, 3},      {GW_PREGATED, 4},      {GW_PREGATED, 9},
            {GW_PREGATED, 16},     {GW_PREGATED, N_ALL}};

/* A guess that did not come true may still be on the link when its step has ended. */
static void await_no_leases(const fixture *f)
{
    int64_t deadline_ns = moe_now_ns() + 5 * MOE_NS_PER_S;
    while (gw_store_client_counters(f->client)->leases_held != 0) {
        assert_true(moe_now_ns() < deadline_ns);
        moe_sleep_ns(MOE_NS_PER_MS);
    }
}

static void every_policy_computes_with_the_right_bytes(fixture *f, const char *model)
{
    const char *const rams[] = {"16384" /* two slots */, tight, "all"};
    for (int i = 0; i < 3; i++) {
        serve(f, model, rams[i]);
        for (size_t r = 0; r < sizeof runs / sizeof runs[0]; r++) {
            join(f, runs[r].policy, runs[r].n_cells);
            steps(f, 8);
            await_no_leases(f);
            leave(f);
        }
        assert_int_equal(0, store_rig_stop(&f->rig));
    }
}

static void an_ordinary_model_under_every_policy_and_budget(void **state)
{
    every_policy_computes_with_the_right_bytes(*state, "switch-tiny");
}

static void a_pregated_model_under_every_policy_and_budget(void **state)
{
    every_policy_computes_with_the_right_bytes(*state, "switch-tiny-pregated");
}

static void every_cell_policy_computes_with_the_right_bytes(void **state)
{
    fixture *f = *state;
    serve(f, "switch-tiny-pregated", tight);
    for (int p = GW_CELL_LRU; p <= GW_CELL_LIFO_INACTIVE; p++) {
        connect_store(f);
        gw_pipeline_cfg cfg = config(f, GW_PREGATED, 6);
        cfg.cell_policy = (gw_cell_policy)p;
        open_pipeline(f, &cfg);
        steps(f, 20);
        leave(f);
    }
}

/* ---- what is counted ------------------------------------------------------------------------- */

static void on_demand_counts_misses_and_hits_only(void **state)
{
    fixture *f = *state;
    uint64_t active = 0;
    serve(f, "switch-tiny", "all");
    join(f, GW_ON_DEMAND, 4);
    for (int i = 0; i < 10; i++) {
        step_of(f, 3);
        active += n_active(f, 0) + n_active(f, 1);
    }
    moe_block_counters c = totals(f);
    assert_int_equal(active, c.cell_hit + c.cell_miss);
    assert_true(c.cell_miss > 0);
    assert_int_equal(0, c.cell_late + c.fetch_predicted + c.cell_wasted + c.slot_late);
    assert_int_equal(c.cell_miss, c.fetch_demand);
    assert_int_equal(c.fetch_demand, c.slot_hit + c.slot_miss);
    const moe_worker_counters *w = gw_store_client_counters(f->client);
    assert_int_equal(c.fetch_demand, w->copies);
    assert_int_equal(c.fetch_demand * SLOT_BYTES, w->copy_bytes);
    assert_true(w->copy_hidden_ns <= w->copy_ns);
    assert_int_equal(c.slot_miss, w->wants_sent);
}

static void with_room_for_all_every_expert_travels_once(void **state)
{
    fixture *f = *state;
    serve(f, "switch-tiny", "all");
    join(f, GW_ON_DEMAND, N_ALL);
    steps(f, 60);
    assert_true(total(f, offsetof(moe_block_counters, fetch_demand)) <= N_ALL);
    uint64_t before = total(f, offsetof(moe_block_counters, fetch_demand));
    steps(f, 5);
    assert_int_equal(before, total(f, offsetof(moe_block_counters, fetch_demand)));
}

static void prefetch_all_moves_every_expert_of_every_block(void **state)
{
    fixture *f = *state;
    uint64_t active = 0;
    serve(f, "switch-tiny", "all");
    join(f, GW_PREFETCH_ALL, 2 * N_EXPERTS);
    for (int i = 0; i < 6; i++) {
        gw_step s;
        choose(f, 2);
        f->stack = i % 2 == 0 ? MOE_ENCODER : MOE_DECODER; /* so that no cell is hit twice */
        submit(f, &s);
        ok(f, finish(f, &s));
        assert_int_equal(0, check_rows(f));
        active += n_active(f, 0) + n_active(f, 1);
    }
    moe_block_counters c = totals(f);
    assert_int_equal(6 * 2 * N_EXPERTS, c.fetch_predicted);
    assert_int_equal(0, c.fetch_demand + c.cell_miss);
    assert_int_equal(active, c.cell_hit + c.cell_late);
    /* what was not chosen is wasted, except what still lies in the cells */
    assert_true(c.cell_wasted > 0 && c.cell_wasted <= c.fetch_predicted - active);
}

static void a_pregate_leaves_misses_to_the_first_block(void **state)
{
    fixture *f = *state;
    serve(f, "switch-tiny-pregated", "all");
    join(f, GW_PREGATED, 16);
    steps(f, 20);
    for (uint32_t b = 0; b < N_FLAT; b++) {
        const moe_block_counters *c = gw_store_client_block_counters(f->client, b);
        if (b % 2 == 0) {
            assert_int_equal(0, c->cell_late + c->fetch_predicted);
            assert_true(c->cell_miss > 0);
        } else {
            assert_int_equal(0, c->cell_miss + c->fetch_demand);
            assert_true(c->fetch_predicted > 0);
        }
    }
}

static void good_guesses_turn_misses_into_hits(void **state)
{
    fixture *f = *state;
    serve(f, "switch-tiny", "all");
    join(f, GW_RESIDENT, N_ALL); /* the store now has them all in slots */
    leave(f);
    join(f, GW_PREGATED, 16);
    f->good_guesses = true;
    f->pause_ns = 2 * MOE_NS_PER_MS;
    for (int i = 0; i < 40; i++) {
        step_of(f, 4);
    }
    moe_block_counters c = totals(f);
    assert_true(c.fetch_predicted > 0);
    uint64_t first = gw_store_client_block_counters(f->client, 0)->cell_miss +
                     gw_store_client_block_counters(f->client, 2)->cell_miss;
    assert_true(c.cell_miss - first < first / 2); /* the rest: guesses that had no time at all */
    assert_int_equal(0, c.cell_wasted);
}

/* One row's step whose first block needs `expert`; at its end the next one's is guessed. */
static void step_with_guess(fixture *f, moe_stack stack, int32_t expert, int32_t next)
{
    gw_step s;
    choose(f, 1);
    f->stack = stack;
    f->ids[0][0] = expert;
    f->guess_ids[0][0] = next;
    submit(f, &s);
    if (stack == MOE_DECODER) {
        sort_rows(f, guess(f, 0));
        publish(f, (krn_publish_args){.offsets = f->guess_offsets[0]}, KRN_MAIL_GUESSED, 0);
    }
    ok(f, finish(f, &s));
    assert_int_equal(0, check_rows(f));
}

static void a_guess_of_the_next_first_block_waits_for_its_step(void **state)
{
    fixture *f = *state;
    serve(f, "switch-tiny-pregated", "all");
    join(f, GW_RESIDENT, N_ALL);
    leave(f);
    join(f, GW_PREGATED, 4);
    const moe_block_counters *first =
        gw_store_client_block_counters(f->client, moe_flat_block(&f->shape, MOE_DECODER, 0));
    for (int32_t i = 0; i < 12; i++) {
        step_with_guess(f, MOE_DECODER, i % N_EXPERTS, (i + 1) % N_EXPERTS);
    }
    assert_int_equal(1, first->cell_miss); /* nobody guessed the first */
    assert_int_equal(12, first->cell_miss + first->cell_hit + first->cell_late);
    step_with_guess(f, MOE_ENCODER, 0, 0); /* a prompt between: the guess is given up */
    step_with_guess(f, MOE_DECODER, 12 % N_EXPERTS, 0);
    uint64_t misses = first->cell_miss;
    step_with_guess(f, MOE_DECODER, 2, 0); /* not what was guessed, and long gone */
    assert_int_equal(misses + 1, first->cell_miss);
}

static double metric(const fixture *f, const char *name, const char *labels)
{
    moe_metrics m;
    moe_metrics_init(&m);
    gw_pipeline_metrics(f->pipeline, &m);
    double value = moe_metrics_find(&m, name, labels);
    moe_metrics_fini(&m);
    return value;
}

static void guesses_that_never_come_true_are_turned_off(void **state)
{
    fixture *f = *state;
    serve(f, "switch-tiny", "all");
    join(f, GW_RESIDENT, N_ALL);
    leave(f);
    join(f, GW_PREGATED, 4);
    f->bad_guesses = true;
    f->pause_ns = 500 * MOE_NS_PER_US;
    int64_t deadline_ns = moe_now_ns() + 20 * MOE_NS_PER_S;
    while (metric(f, "pregate_worker_guess_off", "block=\"enc1\"") == 0 ||
           metric(f, "pregate_worker_guess_off", "block=\"dec1\"") == 0) {
        step_of(f, 1);
        assert_true(moe_now_ns() < deadline_ns);
    }
    uint64_t before = total(f, offsetof(moe_block_counters, fetch_predicted));
    assert_true(before >= 2 * GW_JUDGE_AFTER);
    for (int i = 0; i < 20; i++) {
        step_of(f, 1);
    }
    assert_int_equal(before, total(f, offsetof(moe_block_counters, fetch_predicted)));
    assert_true(metric(f, "pregate_worker_guesses_passed_over_total", NULL) >= 20);
    assert_true(metric(f, "pregate_worker_guess_wasted_bytes_total", "block=\"dec1\"") > 0);
}

/* Wrong guesses over a slow link, in small pieces: given up on the way, and hurried when true. */
static void guesses_in_pieces_never_cost_a_right_byte(void **state)
{
    fixture *f = *state;
    const krn_open_cfg slow = {.n_threads = 1, .link_gbps = 0.002}; /* 4 ms an expert */
    serve(f, "switch-tiny", "all");
    join(f, GW_RESIDENT, N_ALL);
    leave(f);
    f->ops->backend.stream_destroy(f->compute);
    f->ops->backend.stream_destroy(f->reference);
    f->ops->backend.close(f->device);
    ok(f, f->ops->backend.open(&slow, &f->device, &f->err));
    ok(f, f->ops->backend.stream_create(f->device, "compute", &f->compute, &f->err));
    ok(f, f->ops->backend.stream_create(f->device, "reference", &f->reference, &f->err));
    for (uint32_t n_cells = 2; n_cells <= 16; n_cells *= 2) {
        connect_store(f);
        gw_pipeline_cfg cfg = config(f, GW_PREGATED, n_cells);
        cfg.piece_bytes = SLOT_BYTES / 8;
        open_pipeline(f, &cfg);
        const moe_worker_counters *w = gw_store_client_counters(f->client);
        for (int i = 0; i < 12; i++) {
            f->good_guesses = i % 3 == 0;
            step_of(f, 3);
        }
        assert_true(w->copy_bytes > w->copies * SLOT_BYTES); /* some were given up on the way */
        assert_true(total(f, offsetof(moe_block_counters, cell_wasted)) > 0);
        leave(f);
    }
}

static void resident_fetches_nothing_after_create(void **state)
{
    fixture *f = *state;
    uint64_t active = 0;
    serve(f, "switch-tiny", tight);
    join(f, GW_RESIDENT, 0);
    assert_int_equal(N_ALL, gw_pipeline_n_cells(f->pipeline));
    const moe_worker_counters *w = gw_store_client_counters(f->client);
    uint64_t copies = w->copies, wants = w->wants_sent;
    assert_int_equal(N_ALL, copies);
    kill_store(f); /* needed no more */
    for (int i = 0; i < 10; i++) {
        step_of(f, MAX_ROWS);
        active += n_active(f, 0) + n_active(f, 1);
    }
    assert_int_equal(copies, w->copies);
    assert_int_equal(wants, w->wants_sent);
    moe_block_counters c = totals(f);
    assert_int_equal(active, c.cell_hit);
    assert_int_equal(0, c.cell_late + c.cell_miss + c.cell_wasted);
}

static void resident_without_room_is_refused(void **state)
{
    fixture *f = *state;
    serve(f, "switch-tiny", "all");
    connect_store(f);
    const gw_pipeline_cfg cfg = config(f, GW_RESIDENT, N_ALL - 1);
    assert_int_equal(MOE_ERR_LIMIT, gw_pipeline_create(&cfg, &f->pipeline, &f->err));
    assert_null(f->pipeline);
    assert_non_null(strstr(f->err.text, "resident"));
}

static void metrics_name_every_block(void **state)
{
    fixture *f = *state;
    moe_metrics m;
    serve(f, "switch-tiny", "all");
    join(f, GW_ON_DEMAND, 8);
    steps(f, 6);
    moe_metrics_init(&m);
    gw_pipeline_metrics(f->pipeline, &m);
    moe_block_counters c = totals(f);
    double misses = 0;
    const char *const labels[] = {"block=\"enc0\"", "block=\"enc1\"", "block=\"dec0\"",
                                  "block=\"dec1\""};
    for (int i = 0; i < N_FLAT; i++) {
        misses += moe_metrics_find(&m, "pregate_worker_cell_miss_total", labels[i]);
    }
    assert_true(misses == (double)c.cell_miss && misses > 0);
    assert_true(moe_metrics_find(&m, "pregate_worker_cells", NULL) == 8);
    assert_true(moe_metrics_find(&m, "pregate_worker_store_alive", NULL) == 1);
    moe_metrics_fini(&m);
}

/* ---- when things go wrong -------------------------------------------------------------------- */

static void a_store_killed_in_the_middle_costs_time_only(void **state)
{
    fixture *f = *state;
    const char *const args[] = {"--synthetic", "switch-tiny-pregated", "--seed", "7", "--ram-bytes",
                                tight,         "--max-workers",        "1",      NULL};
    serve(f, "switch-tiny-pregated", tight);
    join(f, GW_PREGATED, 4);
    for (int i = 0; i < 4; i++) {
        gw_step s;
        steps(f, 2);
        choose(f, MAX_ROWS);
        submit(f, &s);
        kill_store(f);
        moe_sleep_ns((int64_t)below(f, 20) * MOE_NS_PER_MS);
        store_rig_spawn(&f->rig, args);
        ok(f, finish(f, &s));
        assert_string_equal("", f->failed_text);
        assert_int_equal(0, check_rows(f));
    }
}

/* Submits a step of which rows may fail; returns how many did. */
static uint32_t doubtful_step(fixture *f)
{
    gw_step s;
    choose(f, MAX_ROWS);
    submit(f, &s);
    ok(f, finish(f, &s));
    uint32_t n_failed = check_rows(f);
    assert_true((n_failed > 0) == (f->failed_text[0] != '\0'));
    return n_failed;
}

static void a_store_that_stays_away_fails_only_the_rows_that_need_it(void **state)
{
    fixture *f = *state;
    uint32_t n_failed = 0;
    serve(f, "switch-tiny-pregated", tight);
    connect_store(f);
    gw_pipeline_cfg cfg = config(f, GW_PREGATED, 16);
    cfg.expert_deadline_ns = 300 * MOE_NS_PER_MS;
    open_pipeline(f, &cfg);
    for (int i = 0; i < 10; i++) {
        (void)doubtful_step(f); /* fills the cells; a busy machine may miss the deadline */
    }
    kill_store(f);
    for (int i = 0; i < 20 && n_failed == 0; i++) { /* the same stack again may be all in cells */
        n_failed = doubtful_step(f);
    }
    assert_true(n_failed > 0);
    store_rig_spawn(&f->rig,
                    (const char *const[]){"--synthetic", "switch-tiny-pregated", "--seed", "7",
                                          "--ram-bytes", tight, "--max-workers", "1", NULL});
    int64_t deadline_ns = moe_now_ns() + 20 * MOE_NS_PER_S;
    for (uint32_t n_good = 0; n_good < 5;) { /* and then all is well again */
        n_good = doubtful_step(f) == 0 ? n_good + 1 : 0;
        assert_true(moe_now_ns() < deadline_ns);
    }
}

/* Four experts of each block of the stack: eight cells hold them all. Returns how many rows failed.
 */
static uint32_t step_of_few_experts(fixture *f, moe_stack stack)
{
    gw_step s;
    choose(f, MAX_ROWS);
    f->stack = stack;
    for (uint32_t b = 0; b < MAX_BLOCKS; b++) {
        for (uint32_t t = 0; t < MAX_ROWS; t++) {
            f->ids[b][t] = (int32_t)(t % 4);
        }
    }
    submit(f, &s);
    ok(f, finish(f, &s));
    return check_rows(f);
}

static void an_outage_leaves_the_cells_as_they_were(void **state)
{
    fixture *f = *state;
    serve(f, "switch-tiny", "16384" /* two slots: what is in no cell is hardly anywhere */);
    connect_store(f);
    gw_pipeline_cfg cfg = config(f, GW_ON_DEMAND, 8);
    cfg.expert_deadline_ns = 300 * MOE_NS_PER_MS;
    open_pipeline(f, &cfg);
    while (step_of_few_experts(f, MOE_ENCODER) > 0) {
    }
    kill_store(f);
    for (int i = 0; i < 3; i++) { /* what cannot be fetched evicts nothing */
        assert_true(step_of_few_experts(f, MOE_DECODER) > 0);
    }
    assert_int_equal(0, step_of_few_experts(f, MOE_ENCODER));
}

static void lost_memory_is_reported_while_cells_still_serve(void **state)
{
    fixture *f = *state;
    gw_step s;
    serve(f, "switch-tiny", "all");
    join(f, GW_ON_DEMAND, N_ALL);
    step_of(f, 4);
    assert_int_equal(0, store_rig_stop(&f->rig)); /* takes its memory with it */
    moe_status st = MOE_OK;
    int64_t deadline_ns = moe_now_ns() + 10 * MOE_NS_PER_S;
    while (st == MOE_OK) { /* the same choice again and again: all in cells */
        memset(f->row_failed, 0, sizeof f->row_failed);
        submit(f, &s);
        st = finish(f, &s);
        assert_int_equal(0, check_rows(f));
        assert_true(moe_now_ns() < deadline_ns);
    }
    assert_int_equal(MOE_ERR_DISCONNECTED, st);
    choose(f, MAX_ROWS); /* others fail at once, not after the deadline */
    int64_t begin_ns = moe_now_ns();
    submit(f, &s);
    assert_int_equal(MOE_ERR_DISCONNECTED, finish(f, &s));
    assert_true(check_rows(f) > 0);
    assert_true(f->failed_text[0] != '\0');
    assert_true(moe_now_ns() - begin_ns < 5 * MOE_NS_PER_S);
}

static void flip_segment_byte(const char *store, off_t off)
{
    char path[160], byte = 0;
    snprintf(path, sizeof path, "%s/segments/000000.seg", store);
    int fd = open(path, O_RDWR);
    assert_int_equal(1, pread(fd, &byte, 1, off));
    byte = (char)(byte ^ 1);
    assert_int_equal(1, pwrite(fd, &byte, 1, off));
    assert_int_equal(0, fsync(fd));
    close(fd);
}

/* Which experts failed rows belong to; the same in every step: the one whose bytes are bad. */
static void note_failed_experts(const fixture *f, uint32_t *bad)
{
    for (uint32_t b = 0; b < n_blocks(f); b++) {
        for (uint32_t t = 0; t < f->n_rows; t++) {
            uint32_t x = flat(f, b) * N_EXPERTS + (uint32_t)f->ids[b][t];
            if (f->row_failed[b][t] != 0) {
                assert_true(*bad == UINT32_MAX || *bad == x);
                *bad = x;
            }
        }
    }
}

static void a_corrupt_expert_fails_its_rows_and_no_others(void **state)
{
    fixture *f = *state;
    char store[128], command[512];
    uint32_t bad = UINT32_MAX;
    snprintf(store, sizeof store, "%s/tiny.store", f->rig.dir);
    snprintf(command, sizeof command, "%s --synthetic switch-tiny --seed 7 --out %s >>%s 2>&1",
             pack_program, store, f->rig.log);
    assert_int_equal(0, system(command));
    flip_segment_byte(store, 100);
    const char *const args[] = {"--store", store, "--ram-bytes", tight, "--max-workers", "1", NULL};
    store_rig_start(&f->rig, args);
    join(f, GW_PREGATED, 6);
    for (int i = 0; i < 30; i++) {
        (void)doubtful_step(f);
        note_failed_experts(f, &bad);
    }
    assert_int_not_equal(UINT32_MAX, bad);
    flip_segment_byte(store, 100); /* repaired: the next want succeeds */
    steps(f, 30);
    leave(f);
    flip_segment_byte(store, 100);
    store_rig_stop(&f->rig);
    store_rig_start(&f->rig, args);
    connect_store(f);
    const gw_pipeline_cfg cfg = config(f, GW_RESIDENT, 0);
    assert_int_not_equal(MOE_OK, gw_pipeline_create(&cfg, &f->pipeline, &f->err));
    assert_non_null(strstr(f->err.text, "expert"));
}

/* ---- a device that fails --------------------------------------------------------------------- */

enum { NEVER = 1 << 30 };
static int calls_until_failure = NEVER; /* of the wrapped functions below; then for good */
static const krn_backend_fns *real;

static bool fails_now(void)
{
    return __atomic_sub_fetch(&calls_until_failure, 1, __ATOMIC_RELAXED) < 0;
}

static moe_status failing_copy(krn_stream *s, void *dst, const void *src, size_t n, moe_err *err)
{
    return fails_now() ? MOE_FAIL(err, MOE_ERR_DEVICE, "no more copies")
                       : real->copy_async(s, dst, src, n, err);
}

static moe_status failing_write(krn_stream *s, uint32_t *flag, uint32_t value, moe_err *err)
{
    return fails_now() ? MOE_FAIL(err, MOE_ERR_DEVICE, "no more signals")
                       : real->write32_async(s, flag, value, err);
}

static moe_status failing_query(krn_event *e, moe_err *err)
{
    return fails_now() ? MOE_FAIL(err, MOE_ERR_DEVICE, "no more events")
                       : real->event_query(e, err);
}

static void break_copies(krn_backend_fns *b)
{
    b->copy_async = failing_copy;
}
static void break_signals(krn_backend_fns *b)
{
    b->write32_async = failing_write;
}
static void break_events(krn_backend_fns *b)
{
    b->event_query = failing_query;
}

/* Some steps are right; one meets the failure, says so and has every wait released. */
static void a_failing_device_ends_the_step_with_its_text(void **state)
{
    fixture *f = *state;
    void (*const breaks[])(krn_backend_fns * b) = {break_copies, break_signals, break_events};
    const krn_ops *cpu = f->ops;
    static krn_ops broken; /* outlives a failed assertion */
    broken = *cpu;
    real = &cpu->backend;
    serve(f, "switch-tiny-pregated", "all");
    for (int i = 0; i < 9; i++) {
        connect_store(f);
        broken.backend = cpu->backend;
        breaks[i % 3](&broken.backend);
        gw_pipeline_cfg cfg = config(f, GW_PREGATED, 4);
        cfg.ops = &broken;
        open_pipeline(f, &cfg);
        moe_status st = MOE_OK;
        int64_t deadline_ns = moe_now_ns() + 20 * MOE_NS_PER_S;
        __atomic_store_n(&calls_until_failure, 20 + i, __ATOMIC_RELAXED);
        while (st == MOE_OK) {
            gw_step s;
            choose(f, MAX_ROWS);
            submit(f, &s);
            st = finish(f, &s);
            assert_true(st == MOE_OK ? check_rows(f) == 0 : check_rows(f) <= 2 * MAX_ROWS);
            assert_true(moe_now_ns() < deadline_ns);
        }
        assert_int_equal(MOE_ERR_DEVICE, st);
        assert_non_null(strstr(f->err.text, "no more"));
        leave(f);
        __atomic_store_n(&calls_until_failure, NEVER, __ATOMIC_RELAXED);
    }
}

static moe_status refuse_register(krn_device *d, const void *p, size_t bytes, moe_err *err)
{
    (void)d;
    (void)p;
    (void)bytes;
    return MOE_FAIL(err, MOE_ERR_PERMISSION, "memlock");
}

static void slots_that_cannot_be_registered_are_copied_and_counted(void **state)
{
    fixture *f = *state;
    static krn_ops pageable;
    pageable = *f->ops;
    pageable.backend.host_register = refuse_register;
    serve(f, "switch-tiny", "all");
    connect_store(f);
    gw_pipeline_cfg cfg = config(f, GW_ON_DEMAND, 4);
    cfg.ops = &pageable;
    open_pipeline(f, &cfg);
    assert_false(gw_pipeline_copies_pinned(f->pipeline));
    steps(f, 4);
    const moe_worker_counters *w = gw_store_client_counters(f->client);
    assert_true(w->copies > 0);
    assert_int_equal(w->copies, w->copies_pageable);
}

static void destroying_releases_every_wait(void **state)
{
    fixture *f = *state;
    gw_step s;
    serve(f, "switch-tiny-pregated", tight);
    for (int i = 0; i < 6; i++) {
        join(f, i % 2 == 0 ? GW_PREGATED : GW_PREFETCH_ALL, 4);
        steps(f, 2);
        kill_store(f);
        choose(f, MAX_ROWS);
        submit(f, &s); /* most of its experts will not come */
        moe_sleep_ns((int64_t)below(f, 3) * 10 * MOE_NS_PER_MS);
        int64_t begin_ns = moe_now_ns();
        leave(f);
        assert_true(moe_now_ns() - begin_ns < 5 * MOE_NS_PER_S);
        serve(f, "switch-tiny-pregated", tight);
    }
}

static void a_step_that_submits_nothing_leaves_no_trace(void **state)
{
    fixture *f = *state;
    gw_step s;
    serve(f, "switch-tiny-pregated", "all");
    join(f, GW_PREGATED, 4);
    for (int i = 0; i < 5; i++) {
        choose(f, 2);
        ok(f, gw_pipeline_begin_step(f->pipeline, f->stack, 2, &s, &f->err));
        ok(f, finish(f, &s));
        steps(f, 2);
    }
}

/* Routed ahead of its block, then nothing: its cells and flags are free for the next step. */
static void a_step_that_breaks_off_leaves_no_trace(void **state)
{
    fixture *f = *state;
    gw_step s;
    serve(f, "switch-tiny-pregated", tight);
    join(f, GW_PREGATED, 5);
    for (int i = 0; i < 10; i++) {
        choose(f, MAX_ROWS);
        ok(f, gw_pipeline_begin_step(f->pipeline, f->stack, f->n_rows, &s, &f->err));
        publish_routed(f, 0);
        publish_routed(f, 1);
        if (i % 2 == 0) {
            run_wave(f, &s, 0, 0);
        }
        ok(f, finish(f, &s));
        steps(f, 2);
    }
}

static void too_many_rows_are_refused(void **state)
{
    fixture *f = *state;
    gw_step s;
    serve(f, "switch-tiny", "all");
    join(f, GW_PREGATED, 4);
    assert_int_equal(MOE_ERR_LIMIT,
                     gw_pipeline_begin_step(f->pipeline, MOE_ENCODER, MAX_ROWS + 1, &s, &f->err));
    assert_int_equal(MOE_ERR_LIMIT,
                     gw_pipeline_begin_step(f->pipeline, MOE_ENCODER, 0, &s, &f->err));
    steps(f, 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: %s EXPERT-STORE EXPERT-PACK\n", argv[0]);
        return 2;
    }
    store_program = argv[1];
    pack_program = argv[2];
    const struct CMUnitTest tests[] = {
        TEST(an_ordinary_model_under_every_policy_and_budget),
        TEST(a_pregated_model_under_every_policy_and_budget),
        TEST(every_cell_policy_computes_with_the_right_bytes),
        TEST(on_demand_counts_misses_and_hits_only),
        TEST(with_room_for_all_every_expert_travels_once),
        TEST(prefetch_all_moves_every_expert_of_every_block),
        TEST(a_pregate_leaves_misses_to_the_first_block),
        TEST(good_guesses_turn_misses_into_hits),
        TEST(a_guess_of_the_next_first_block_waits_for_its_step),
        TEST(guesses_that_never_come_true_are_turned_off),
        TEST(guesses_in_pieces_never_cost_a_right_byte),
        TEST(resident_fetches_nothing_after_create),
        TEST(resident_without_room_is_refused),
        TEST(metrics_name_every_block),
        TEST(a_store_killed_in_the_middle_costs_time_only),
        TEST(a_store_that_stays_away_fails_only_the_rows_that_need_it),
        TEST(an_outage_leaves_the_cells_as_they_were),
        TEST(lost_memory_is_reported_while_cells_still_serve),
        TEST(a_corrupt_expert_fails_its_rows_and_no_others),
        TEST(a_failing_device_ends_the_step_with_its_text),
        TEST(slots_that_cannot_be_registered_are_copied_and_counted),
        TEST(destroying_releases_every_wait),
        TEST(a_step_that_submits_nothing_leaves_no_trace),
        TEST(a_step_that_breaks_off_leaves_no_trace),
        TEST(too_many_rows_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
