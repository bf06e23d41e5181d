/* calibrate_run.c - the subcommand `calibrate` (calibrate.h): text through the engine, fits,
 * report.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/dtype.h"
#include "common/log.h"
#include "common/text.h"
#include "gpu-worker/fetch/store_client.h"
#include "gpu-worker/quality/calibrate.h"
#include "gpu-worker/quality/jobs.h"
#include "gpu-worker/quality/pairs.h"

enum { GROUP_PAIRS = 64, HELD_OUT_PART = 10, VALIDATION_PART = 8 };

typedef struct run {
    gw_config cfg;
    gw_worker w;
    moe_model_shape shape;
    char model[WIRE_NAME_BYTES];
    float **routers; /* [n_blocks_total] owned */
    gw_pairs pairs, held_out;
    gw_gate_samples samples;
    uint32_t n_fit, n_validation; /* gw_calibrate_cfg */
    uint64_t n_skipped;
    gw_calibration result;
    double collect_s, fit_s;
} run;

/* ---- the checkpoint's own gates -------------------------------------------------------------- */

static moe_status read_router(const gw_store_client *c, const moe_model_shape *s, moe_stack stack,
                              uint32_t block, float **out, moe_err *err)
{
    char name[MOE_DENSE_NAME_BYTES];
    const void *data = NULL;
    snprintf(name, sizeof name, "%s.block.%u.layer.%u.mlp.router.classifier.weight",
             stack == MOE_ENCODER ? "encoder" : "decoder", s->stack[stack].layer_of_block[block],
             stack == MOE_ENCODER ? 1u : 2u);
    const moe_dense_entry *e = gw_store_client_dense(c, name, MOE_DENSE_TENSOR, &data);
    size_t n = (size_t)s->n_experts * s->d_model;
    if (e == NULL || e->bytes != n * moe_dtype_bytes((moe_dtype)e->dtype)) {
        return MOE_FAIL(err, MOE_ERR_NOT_FOUND, "the checkpoint has no tensor %s [%u, %u]", name,
                        s->n_experts, s->d_model);
    }
    float *router = malloc(n * sizeof *router);
    if (router == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "tensor %s", name);
    }
    if (e->dtype == MOE_F32) {
        memcpy(router, data, n * sizeof *router);
    } else {
        moe_dtype_convert(router, MOE_F32, data, (moe_dtype)e->dtype, n);
    }
    *out = router;
    return MOE_OK;
}

static moe_status read_routers(run *r, moe_err *err)
{
    char endpoint[MOE_CFG_STR_BYTES];
    gw_store_client *c = NULL;
    moe_status st = gw_endpoint_of(&r->cfg, endpoint, sizeof endpoint, err);
    if (st == MOE_OK) {
        const gw_store_client_cfg client = {.endpoint = endpoint,
                                            .name = "calibrate",
                                            .connect_timeout_ns =
                                                (int64_t)r->cfg.connect_timeout_s * MOE_NS_PER_S};
        st = gw_store_client_create(&client, &c, err);
    }
    if (st == MOE_OK) {
        r->shape = *gw_store_client_shape(c);
        snprintf(r->model, sizeof r->model, "%s", gw_store_client_welcome(c)->model_name);
        r->routers = calloc(r->shape.n_blocks_total + 1u, sizeof *r->routers);
        st = r->routers != NULL ? MOE_OK : MOE_FAIL(err, MOE_ERR_NO_MEMORY, "routers");
    }
    for (uint32_t i = 0; i < r->shape.n_blocks_total && st == MOE_OK; i++) {
        uint32_t n_encoder = r->shape.stack[MOE_ENCODER].n_blocks;
        bool decoder = i >= n_encoder;
        if (r->shape.pregate_lookahead > 0 && i != 0 && i != n_encoder) {
            continue; /* a pre-gate decides it */
        }
        st = read_router(c, &r->shape, decoder ? MOE_DECODER : MOE_ENCODER,
                         decoder ? i - n_encoder : i, &r->routers[i], err);
    }
    gw_store_client_destroy(c);
    return st;
}

/* ---- text through the engine ----------------------------------------------------------------- */

typedef struct group {
    int32_t *ids[2 * GROUP_PAIRS]; /* owned */
    gw_job jobs[GROUP_PAIRS];
    gw_record records[GROUP_PAIRS];
    uint32_t n_ids, n_jobs;
} group;

/* Adds the pair's job; a pair that is too long is counted and left out. */
static moe_status add_job(run *r, const gw_pair *pair, group *g, moe_err *err)
{
    bool forced = r->cfg.decoding == 0;
    gw_job *j = &g->jobs[g->n_jobs];
    int32_t *input = NULL, *reference = NULL;
    uint32_t n_reference = 0;
    *j = (gw_job){.max_tokens = (uint32_t)r->cfg.max_output_tokens};
    moe_status st =
        gw_tokenizer_encode(r->w.tokenizer, pair->input, strlen(pair->input),
                            (uint32_t)r->cfg.max_input_tokens, &input, &j->n_input, err);
    if (st == MOE_OK && forced) {
        st = gw_tokenizer_encode(r->w.tokenizer, pair->reference, strlen(pair->reference),
                                 (uint32_t)r->cfg.max_output_tokens - 1, &reference, &n_reference,
                                 err);
    }
    if (st != MOE_OK) {
        free(input);
        r->n_skipped += st == MOE_ERR_LIMIT;
        return st == MOE_ERR_LIMIT ? MOE_OK : st;
    }
    j->input = g->ids[g->n_ids++] = input;
    if (forced) {
        j->forced = g->ids[g->n_ids++] = reference;
        j->n_forced = n_reference;
        j->max_tokens = n_reference + 1;
    }
    g->records[g->n_jobs] = (gw_record){.want_gates = true};
    j->record = &g->records[g->n_jobs++];
    return MOE_OK;
}

static void empty(group *g)
{
    gw_jobs_fini(g->jobs, g->n_jobs);
    for (uint32_t i = 0; i < g->n_jobs; i++) {
        gw_record_fini(&g->records[i]);
    }
    for (uint32_t i = 0; i < g->n_ids; i++) {
        free(g->ids[i]);
    }
    *g = (group){.n_ids = 0};
}

static moe_status collect(run *r, const gw_pairs *pairs, moe_err *err)
{
    group *g = calloc(1, sizeof *g);
    moe_status st =
        g != NULL ? MOE_OK : MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a group of %d pairs", GROUP_PAIRS);
    for (uint32_t i = 0; i < pairs->n && st == MOE_OK; i++) {
        st = add_job(r, &pairs->items[i], g, err);
        if (st != MOE_OK || (g->n_jobs < GROUP_PAIRS && i + 1 < pairs->n)) {
            continue;
        }
        st = gw_jobs_run(r->w.engine, g->jobs, g->n_jobs, err);
        for (uint32_t k = 0; k < g->n_jobs && st == MOE_OK; k++) {
            st = gw_gate_samples_add(&r->samples, &g->records[k], err);
        }
        empty(g);
    }
    if (g != NULL) {
        empty(g);
    }
    free(g);
    return st;
}

static moe_status load_text(run *r, moe_err *err)
{
    if (r->cfg.pairs[0] == '\0') {
        return MOE_FAIL(err, MOE_ERR_INVALID, "calibrate needs --pairs FILE");
    }
    moe_status st = gw_pairs_load(r->cfg.pairs, r->cfg.limit, &r->pairs, err);
    if (st == MOE_OK && r->cfg.held_out[0] != '\0') {
        st = gw_pairs_load(r->cfg.held_out, 0, &r->held_out, err);
    }
    return st;
}

static moe_status divide(run *r, uint32_t n_first, moe_err *err)
{
    bool own = r->held_out.n > 0;
    uint32_t n = own ? n_first : n_first - n_first / HELD_OUT_PART;
    r->n_validation = n;
    r->n_fit = n - n / VALIDATION_PART;
    if (r->n_fit == 0 || r->n_fit == n || n == r->samples.n_sequences) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "%u sequences are too few to fit, validate and judge: give more text",
                        r->samples.n_sequences);
    }
    return MOE_OK;
}

static moe_status collect_all(run *r, moe_err *err)
{
    int64_t begin_ns = moe_now_ns();
    moe_status st = gw_worker_open(&r->cfg, &r->w, err);
    if (st == MOE_OK && r->w.tokenizer == NULL) {
        st = MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                      "the packed checkpoint has no spiece.model, so text cannot be read");
    }
    if (st == MOE_OK) {
        st = gw_gate_samples_init(&r->shape, &r->samples, err);
    }
    if (st == MOE_OK) {
        st = collect(r, &r->pairs, err);
    }
    uint32_t n_first = r->samples.n_sequences;
    if (st == MOE_OK && r->held_out.n > 0) {
        st = collect(r, &r->held_out, err);
    }
    if (st == MOE_OK) {
        st = divide(r, n_first, err);
    }
    gw_worker_close(&r->cfg, &r->w);
    r->collect_s = (double)(moe_now_ns() - begin_ns) / 1e9;
    return st;
}

static moe_status fit(run *r, moe_err *err)
{
    const gw_calibrate_cfg cfg = {.samples = &r->samples,
                                  .shape = &r->shape,
                                  .routers = (const float *const *)r->routers,
                                  .n_fit = r->n_fit,
                                  .n_validation = r->n_validation,
                                  .lookahead = (uint32_t)r->cfg.lookahead,
                                  .seed = r->cfg.seed};
    int64_t begin_ns = moe_now_ns();
    moe_status st = gw_calibrate(&cfg, &r->result, err);
    r->fit_s = (double)(moe_now_ns() - begin_ns) / 1e9;
    return st;
}

/* ---- report ---------------------------------------------------------------------------------- */

static const char *const kind_names[] = {"start", "ridge", "logistic"};
static const char *const decoding_names[] = {"forced", "greedy"};

static uint32_t n_tokens(const run *r, moe_stack stack, uint32_t first, uint32_t end)
{
    const uint32_t *starts = r->samples.stack[stack].sequence_starts;
    return starts[end] - starts[first];
}

static void json_recall(moe_text *t, const char *name, const gw_recall *r)
{
    if (r->n == 0) {
        moe_text_printf(t, "\"%s\":null", name);
        return;
    }
    moe_text_printf(t,
                    "\"%s\":{\"recall_at_1\":%.6f,\"recall_at_2\":%.6f,\"recall_at_4\":%.6f,"
                    "\"exact_set\":%.6f}",
                    name, gw_recall_share(r->n_in_1, r->n), gw_recall_share(r->n_in_2, r->n),
                    gw_recall_share(r->n_in_4, r->n), gw_recall_share(r->n_exact, r->n_sets));
}

static void json_part(moe_text *t, const run *r, const char *name, uint32_t first, uint32_t end)
{
    moe_text_printf(t, "\"%s\":{\"sequences\":%u,\"encoder_tokens\":%u,\"decoder_tokens\":%u}",
                    name, end - first, n_tokens(r, MOE_ENCODER, first, end),
                    n_tokens(r, MOE_DECODER, first, end));
}

static void json_item(moe_text *t, const run *r, const gw_calibrated *c)
{
    const gw_prediction *p = &c->fitted.what;
    char source[16], target[16];
    moe_block_name(&r->shape, moe_flat_block(&r->shape, p->stack, p->source), source,
                   sizeof source);
    moe_block_name(&r->shape, moe_flat_block(&r->shape, p->stack, p->target), target,
                   sizeof target);
    moe_text_printf(t,
                    "{\"source\":\"%s\",\"target\":\"%s\",\"lookahead\":%u,\"next_token\":%s,"
                    "\"fit\":\"%s\",\"tokens\":%llu,\"sets\":%llu,",
                    source, target, p->lookahead, p->next_token ? "true" : "false",
                    kind_names[c->kind], (unsigned long long)c->recall.n,
                    (unsigned long long)c->recall.n_sets);
    json_recall(t, "calibrated", &c->recall);
    moe_text_printf(t, ",");
    json_recall(t, "start", &c->start);
    moe_text_printf(t, ",");
    json_recall(t, "previous_token", &c->previous);
    moe_text_printf(t, ",");
    json_recall(t, "frequency", &c->frequency);
    moe_text_printf(t, "}");
}

static void json_string(moe_text *t, const char *key, const char *value)
{
    moe_text_printf(t, "\"%s\":", key);
    moe_text_json_string(t, value, strlen(value));
    moe_text_printf(t, ",");
}

static void write_json(const run *r, moe_text *t)
{
    moe_text_printf(t, "{");
    json_string(t, "model", r->model);
    json_string(t, "pairs_file", r->cfg.pairs);
    json_string(t, "held_out_file", r->cfg.held_out);
    json_string(t, "decoding", decoding_names[r->cfg.decoding]);
    moe_text_printf(t, "\"lookahead\":%llu,\"seed\":%llu,\"n_skipped\":%llu,",
                    (unsigned long long)r->cfg.lookahead, (unsigned long long)r->cfg.seed,
                    (unsigned long long)r->n_skipped);
    json_part(t, r, "fit", 0, r->n_fit);
    moe_text_printf(t, ",");
    json_part(t, r, "validation", r->n_fit, r->n_validation);
    moe_text_printf(t, ",");
    json_part(t, r, "held_out", r->n_validation, r->samples.n_sequences);
    moe_text_printf(t,
                    ",\"set_rows\":%d,\"collect_seconds\":%.1f,\"fit_seconds\":%.1f,"
                    "\"predictors\":[",
                    GW_SET_ROWS, r->collect_s, r->fit_s);
    for (uint32_t i = 0; i < r->result.n; i++) {
        moe_text_printf(t, i > 0 ? ",\n" : "\n");
        json_item(t, r, &r->result.items[i]);
    }
    moe_text_printf(t, "]}\n");
}

static void table_item(moe_text *t, const run *r, const gw_calibrated *c)
{
    const gw_prediction *p = &c->fitted.what;
    char source[16], target[16];
    moe_block_name(&r->shape, moe_flat_block(&r->shape, p->stack, p->source), source,
                   sizeof source);
    moe_block_name(&r->shape, moe_flat_block(&r->shape, p->stack, p->target), target,
                   sizeof target);
    moe_text_printf(t, "%-5s -> %-5s %1u%s  %-8s", source, target, p->lookahead,
                    p->next_token ? "+" : " ", kind_names[c->kind]);
    const gw_recall *const columns[] = {&c->recall, &c->start, &c->previous, &c->frequency};
    for (size_t i = 0; i < sizeof columns / sizeof columns[0]; i++) {
        const gw_recall *k = columns[i];
        if (k->n == 0) {
            moe_text_printf(t, "  %-23s", "-");
            continue;
        }
        moe_text_printf(t, "  %.3f %.3f %.3f %.3f", gw_recall_share(k->n_in_1, k->n),
                        gw_recall_share(k->n_in_2, k->n), gw_recall_share(k->n_in_4, k->n),
                        gw_recall_share(k->n_exact, k->n_sets));
    }
    moe_text_printf(t, "\n");
}

static void write_table(const run *r, moe_text *t)
{
    moe_text_printf(t,
                    "%s, %s: fitted on %u + %u decoder tokens, judged on %u of %s; %.1f s to "
                    "collect, %.1f s to fit\n",
                    r->model, decoding_names[r->cfg.decoding],
                    n_tokens(r, MOE_DECODER, 0, r->n_fit),
                    n_tokens(r, MOE_DECODER, r->n_fit, r->n_validation),
                    n_tokens(r, MOE_DECODER, r->n_validation, r->samples.n_sequences),
                    r->held_out.n > 0 ? r->cfg.held_out : "the rest", r->collect_s, r->fit_s);
    moe_text_printf(t,
                    "recall@1, @2, @4 and exact sets (a prompt; %d sequences decoded together); "
                    "n+: of the next token\n",
                    GW_SET_ROWS);
    moe_text_printf(t, "%-14s %-2s  %-8s  %-23s  %-23s  %-23s  %-23s\n", "", "n", "kept",
                    "calibrated", "untrained start", "previous token", "frequency");
    for (uint32_t i = 0; i < r->result.n; i++) {
        table_item(t, r, &r->result.items[i]);
    }
}

static moe_status print(const run *r, moe_err *err)
{
    moe_text t;
    moe_text_init(&t);
    (r->cfg.json ? write_json : write_table)(r, &t);
    moe_status st = moe_text_finish(&t, err);
    if (st == MOE_OK) {
        fputs(t.data, stdout);
    }
    moe_text_fini(&t);
    return st;
}

static moe_status write_predictors(const run *r, moe_err *err)
{
    char note[2 * MOE_CFG_STR_BYTES];
    gw_fitted *fitted = calloc(r->result.n + 1u, sizeof *fitted);
    if (fitted == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a list of predictors");
    }
    for (uint32_t i = 0; i < r->result.n; i++) {
        fitted[i] = r->result.items[i].fitted;
    }
    snprintf(note, sizeof note, "calibrated for %s on %s, seed %llu", r->model, r->cfg.pairs,
             (unsigned long long)r->cfg.seed);
    moe_status st = gw_predictor_file_write(r->cfg.out, fitted, r->result.n, r->shape.n_experts,
                                            r->shape.d_model, note, err);
    free(fitted);
    return st;
}

static void fini(run *r)
{
    gw_calibration_fini(&r->result);
    gw_gate_samples_fini(&r->samples);
    gw_pairs_fini(&r->pairs);
    gw_pairs_fini(&r->held_out);
    for (uint32_t i = 0; r->routers != NULL && i < r->shape.n_blocks_total; i++) {
        free(r->routers[i]);
    }
    free(r->routers);
    free(r);
}

int gw_calibrate_main(const gw_config *cfg)
{
    moe_err err;
    run *r = calloc(1, sizeof *r);
    moe_status st = r != NULL ? MOE_OK : MOE_FAIL(&err, MOE_ERR_NO_MEMORY, "calibrate");
    if (st == MOE_OK) {
        r->cfg = *cfg;
        r->cfg.record_gates = true;
        st = load_text(r, &err);
    }
    if (st == MOE_OK) {
        st = read_routers(r, &err);
    }
    if (st == MOE_OK) {
        st = collect_all(r, &err);
    }
    if (st == MOE_OK) {
        st = fit(r, &err);
    }
    if (st == MOE_OK) {
        st = print(r, &err);
    }
    if (st == MOE_OK && cfg->out[0] != '\0') {
        st = write_predictors(r, &err);
    }
    if (st != MOE_OK) {
        moe_log_err("worker", "failed", &err);
    }
    if (r != NULL) {
        fini(r);
    }
    return st == MOE_OK ? 0 : 1;
}
