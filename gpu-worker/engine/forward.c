/* forward.c - see forward.h. Every helper below enqueues one operation; a pass carries a sticky
 * status, so that the layers read without error paths and the step checks once. */
#include "gpu-worker/engine/forward.h"

#include <stdlib.h>
#include <string.h>

#include "common/dtype.h"
#include "gpu-worker/engine/workspace.h"

/* A decode step as it was submitted once. What differs between steps of one kind lies in memory. */
typedef struct recording {
    uint32_t n_rows;
    bool odd; /* step parity: rows and flags of waves */
    bool want_record, want_logits;
    krn_graph *graph; /* owned; NULL: none */
} recording;
enum { MAX_RECORDINGS = 64 };

struct gw_forward {
    gw_forward_cfg cfg;
    gw_workspace ws;                  /* owned */
    const gw_routing_source *routing; /* borrowed; NULL: gates choose */
    recording recordings[MAX_RECORDINGS];
    uint32_t n_recordings;
};

/* One step being submitted. */
struct pass {
    gw_forward *f;
    const krn_ops *ops;
    krn_stream *stream;
    const moe_model_shape *shape;
    gw_workspace *ws;
    moe_stack stack;
    gw_step step;
    uint32_t n_rows, n_seqs;
    uint32_t max_self_len, max_cross_len;
    bool want_record, want_logits;
    moe_status st;
    moe_err *err;
};

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static bool ok(const struct pass *p)
{
    return p->st == MOE_OK;
}

static void copy(struct pass *p, void *dst, const void *src, size_t bytes)
{
    if (ok(p)) {
        p->st = p->ops->backend.copy_async(p->stream, dst, src, bytes, p->err);
    }
}

static void embed(struct pass *p, const gw_weight *table)
{
    const krn_embed_args a = {.n_rows = p->n_rows,
                              .d_model = table->cols,
                              .vocab = table->rows,
                              .w_dtype = table->dtype,
                              .ids = p->ws->dev.ids,
                              .table = table->data,
                              .x = p->ws->x};
    if (ok(p)) {
        p->st = p->ops->embed(p->stream, &a, p->err);
    }
}

static krn_rms_norm_args norm_args(const struct pass *p, const gw_weight *w)
{
    return (krn_rms_norm_args){.n_rows = p->n_rows,
                               .d_model = w->cols,
                               .w_dtype = w->dtype,
                               .eps = p->shape->norm_eps,
                               .x = p->ws->x,
                               .w = w->data,
                               .y = p->ws->h};
}

/* h = norm(x) */
static void norm(struct pass *p, const gw_weight *w)
{
    const krn_rms_norm_args a = norm_args(p, w);
    if (ok(p)) {
        p->st = p->ops->rms_norm(p->stream, &a, p->err);
    }
}

static krn_linear_args linear_args(const struct pass *p, const float *x, const gw_weight *w,
                                   float *y)
{
    return (krn_linear_args){.n_rows = p->n_rows,
                             .d_in = w->cols,
                             .d_out = w->rows,
                             .w_dtype = w->dtype,
                             .y_stride = w->rows,
                             .act = MOE_ACT_NONE,
                             .scale = 1.0f,
                             .x = x,
                             .w = w->data,
                             .y = y,
                             .scratch = p->stack == MOE_ENCODER ? p->ws->linear_scratch : NULL};
}

/* y = norm(x) w^T; the normed rows are left in ws->h. */
static krn_linear_args normed_linear_args(const struct pass *p, const gw_weight *norm_w,
                                          const gw_weight *w, float *y)
{
    krn_linear_args a = linear_args(p, p->ws->x, w, y);
    a.norm_w = norm_w->data;
    a.norm_dtype = norm_w->dtype;
    a.norm_eps = p->shape->norm_eps;
    a.h = p->ws->h;
    return a;
}

static void linear(struct pass *p, const krn_linear_args *a)
{
    if (ok(p)) {
        p->st = p->ops->linear(p->stream, a, p->err);
    }
}

/* The residual stream: ws->x += y w^T */
static void add_projected(struct pass *p, const float *y, const gw_weight *w)
{
    krn_linear_args a = linear_args(p, y, w, p->ws->x);
    a.accumulate = true;
    linear(p, &a);
}

/* Elements of all heads: of a row of queries, of keys, of values. */
static uint32_t width_of(const struct pass *p)
{
    return p->shape->n_heads * p->shape->d_head;
}

/* Keeps rows of ws->qkv, from src on, as keys or values of their sequences. */
static void keep(struct pass *p, const float *src, float *dst, const int64_t *offsets)
{
    const krn_kv_store_args a = {.n_rows = p->n_rows,
                                 .width = width_of(p),
                                 .src_stride = 3 * width_of(p),
                                 .src = src,
                                 .dst = dst,
                                 .row_seq = p->ws->dev.row_seq,
                                 .row_pos = p->ws->dev.row_pos,
                                 .kv_off = offsets};
    if (ok(p)) {
        p->st = p->ops->kv_store(p->stream, &a, p->err);
    }
}

/* ws->attended = attention of the queries that `project` makes in ws->qkv; the caller sets k, v and
 * where they lie. */
static void attend(struct pass *p, const krn_linear_args *project, krn_attention_args a)
{
    a.project = project;
    a.n_rows = p->n_rows;
    a.n_heads = p->shape->n_heads;
    a.d_head = p->shape->d_head;
    a.q = p->ws->qkv;
    a.q_stride = 3 * width_of(p);
    a.out = p->ws->attended;
    a.row_seq = p->ws->dev.row_seq;
    a.row_pos = p->ws->dev.row_pos;
    if (ok(p)) {
        p->st = p->ops->attention(p->stream, &a, p->err);
    }
}

/* Encode: among the rows themselves. Decode: over the cache, which the rows join. */
static void self_attention(struct pass *p, const gw_attention_weights *w, uint32_t layer)
{
    gw_workspace *ws = p->ws;
    const gw_stack_weights *stack = &p->f->cfg.weights->stack[p->stack];
    const krn_linear_args qkv = normed_linear_args(p, &w->norm, &w->qkv, ws->qkv);
    krn_attention_args a = {.k = ws->qkv + width_of(p),
                            .v = ws->qkv + 2 * (size_t)width_of(p),
                            .kv_stride = 3 * width_of(p),
                            .kv_off = ws->dev.self_off,
                            .kv_len = ws->dev.self_len,
                            .max_kv_len = p->max_self_len,
                            .causal = p->stack == MOE_DECODER,
                            .rows_share_kv = p->stack == MOE_ENCODER,
                            .rel_bias = stack->rel_bias,
                            .bias_half = stack->bias_half};
    if (p->stack == MOE_DECODER) {
        a.new_k = a.k;
        a.new_v = a.v;
        a.k = gw_kv_cache_tensor(p->f->cfg.kv, layer, GW_KV_SELF_K);
        a.v = gw_kv_cache_tensor(p->f->cfg.kv, layer, GW_KV_SELF_V);
        a.kv_stride = width_of(p);
    }
    attend(p, &qkv, a);
    add_projected(p, ws->attended, &w->o);
}

static void cross_attention(struct pass *p, const gw_attention_weights *w, uint32_t layer)
{
    gw_workspace *ws = p->ws;
    krn_linear_args q = normed_linear_args(p, &w->norm, &w->q, ws->qkv);
    q.y_stride = 3 * width_of(p);
    const krn_attention_args a = {.k = gw_kv_cache_tensor(p->f->cfg.kv, layer, GW_KV_CROSS_K),
                                  .v = gw_kv_cache_tensor(p->f->cfg.kv, layer, GW_KV_CROSS_V),
                                  .kv_stride = width_of(p),
                                  .kv_off = ws->dev.cross_off,
                                  .kv_len = ws->dev.cross_len,
                                  .max_kv_len = p->max_cross_len};
    attend(p, &q, a);
    add_projected(p, ws->attended, &w->o);
}

static void dense_feed_forward(struct pass *p, const gw_layer_weights *w)
{
    krn_linear_args up = normed_linear_args(p, &w->ffn_norm, &w->wi, p->ws->ff);
    up.act = p->shape->act;
    linear(p, &up);
    add_projected(p, p->ws->ff, &w->wo);
}

/* The record of block b. Routing that comes from outside has ids and weights elsewhere. */
static krn_routing record_of(const struct pass *p, uint32_t b)
{
    krn_routing record = p->ws->routing[b % 2];
    if (p->f->routing != NULL) {
        gw_routing_source_apply(p->f->routing, b, &record);
    }
    return record;
}

/* ---- mails: pipeline.h says who listens to what ---- */

static krn_publish_args mail_of(const struct pass *p, krn_mail_kind kind, uint32_t block)
{
    krn_publish_args a = {.kind = kind,
                          .block = moe_flat_block(p->shape, p->stack, block),
                          .n_experts = p->shape->n_experts};
    gw_pipeline_mailbox(p->f->cfg.pipeline, &a);
    return a;
}

static krn_publish_args choice_mail(const struct pass *p, krn_mail_kind kind, uint32_t block,
                                    const krn_routing *routing)
{
    krn_publish_args a = mail_of(p, kind, block);
    a.offsets = routing->offsets;
    return a;
}

static void publish(struct pass *p, const krn_publish_args *a)
{
    if (ok(p)) {
        p->st = p->ops->publish(p->stream, a, p->err);
    }
}

static void publish_all_experts(struct pass *p, uint32_t block)
{
    krn_publish_args a = mail_of(p, KRN_MAIL_GUESSED, block);
    a.all_experts = true;
    publish(p, &a);
}

static void publish_wave(struct pass *p, krn_mail_kind kind, uint32_t block, uint32_t wave)
{
    krn_publish_args a = mail_of(p, kind, block);
    a.wave = wave;
    publish(p, &a);
}

/* ---- the gate position ---- */

/* Who computes what: probabilities, choices, and rows sorted by expert, then mails. The gate
 * chooses into `chosen`; `sorted`, the same or another record, is what gets sorted. */
static krn_route_args route_args(const struct pass *p, const gw_weight *w, uint32_t top_k,
                                 const krn_routing *chosen, const krn_routing *sorted)
{
    return (krn_route_args){.gate = {.n_rows = p->n_rows,
                                     .d_model = w->cols,
                                     .n_experts = w->rows,
                                     .top_k = top_k,
                                     .w_dtype = w->dtype,
                                     .h = p->ws->h,
                                     .w = w->data,
                                     .out = *chosen},
                            .dispatch = {.n_rows = p->n_rows,
                                         .n_experts = w->rows,
                                         .top_k = top_k,
                                         .n_seqs = p->n_seqs,
                                         .routing = *sorted,
                                         .row_seq = p->ws->dev.row_seq,
                                         .scratch = p->ws->capacity},
                            .scratch = p->ws->gate_logits};
}

static void add_mail(krn_route_args *a, krn_publish_args mail)
{
    MOE_ASSERT(a->n_mails < KRN_MAX_ROUTE_MAILS);
    a->mail[a->n_mails++] = mail;
}

static void route(struct pass *p, const krn_route_args *a)
{
    if (ok(p)) {
        p->st = p->ops->route(p->stream, a, p->err);
    }
}

/* Measurements: a guess from outside, in place of what a predictor of the same cost would say. */
static bool guess_is_made_up(const struct pass *p, krn_routing *sorted)
{
    return p->f->routing != NULL && p->f->cfg.predict != GW_PREDICT_NONE &&
           gw_routing_source_apply_guess(p->f->routing, sorted);
}

/* What this block's h says about blocks ahead, the next token's first block among them. */
static void guess_ahead(struct pass *p, uint32_t b)
{
    const gw_forward_cfg *cfg = &p->f->cfg;
    uint32_t top = cfg->predict_top < p->shape->n_experts ? cfg->predict_top : p->shape->n_experts;
    gw_prediction what;
    for (uint32_t n = 1; n <= cfg->lookahead; n++) {
        if (!gw_prediction_of(p->shape, p->stack, b, n, &what) || (what.next_token && n > 1)) {
            return;
        }
        const gw_weight *w =
            gw_predictor_for(cfg->predictors, cfg->weights, p->shape, cfg->predict, &what);
        const krn_routing *guess = &p->ws->guess;
        krn_routing sorted = *guess;
        if (what.next_token && guess_is_made_up(p, &sorted)) {
            top = 1;
            uint32_t layer = p->shape->stack[p->stack].layer_of_block[what.target];
            w = &cfg->weights->stack[p->stack].layer[layer].router;
        }
        if (w == NULL) {
            continue;
        }
        krn_route_args a = route_args(p, w, top, guess, &sorted);
        add_mail(&a, choice_mail(p, KRN_MAIL_GUESSED, what.target, guess));
        route(p, &a);
    }
}

/* h = norm(x), and the gates of block b: its own record is complete afterwards, and on a pre-gated
 * checkpoint the next block's too. Mails go with the gates' kernels, but on demand, where the copy
 * waits for it, a choice made earlier is published first. */
static void gate_position(struct pass *p, const gw_layer_weights *w, uint32_t b,
                          const krn_routing *mine)
{
    const moe_stack_shape *stack = &p->shape->stack[p->stack];
    const bool pregated = p->shape->pregate_lookahead > 0, chosen_before = pregated && b > 0;
    const bool chooses_next = pregated && b + 1 < stack->n_blocks;
    const uint32_t capacity = p->stack == MOE_ENCODER ? p->f->cfg.expert_capacity : 0;
    const krn_publish_args mail = choice_mail(p, KRN_MAIL_ROUTED, b, mine);
    const bool copy_waits = p->step.publish_at_use && p->step.n_waves > 0;
    if (chosen_before && p->step.publish_at_use && (copy_waits || !chooses_next)) {
        publish(p, &mail);
    }
    if (chosen_before && !chooses_next) {
        norm(p, &w->ffn_norm);
    }
    if (!chosen_before) {
        krn_route_args a = route_args(p, &w->router, p->shape->top_k, &p->ws->routing[b % 2], mine);
        a.norm = norm_args(p, &w->ffn_norm);
        a.dispatch.capacity = capacity;
        add_mail(&a, mail);
        route(p, &a);
    }
    if (chooses_next) {
        const krn_routing next = record_of(p, b + 1);
        krn_route_args a =
            route_args(p, &w->pregate, p->shape->top_k, &p->ws->routing[(b + 1) % 2], &next);
        if (chosen_before) {
            a.norm = norm_args(p, &w->ffn_norm);
        }
        a.dispatch.capacity = capacity;
        if (!p->step.publish_at_use) {
            add_mail(&a, choice_mail(p, KRN_MAIL_ROUTED, b + 1, &next));
        } else if (chosen_before && !copy_waits) {
            add_mail(&a, mail);
        }
        route(p, &a);
    } else if (p->step.publish_guess) {
        guess_ahead(p, b);
    }
}

/* ---- the experts ---- */

static void await_wave(struct pass *p, uint32_t b, uint32_t wave)
{
    uint32_t *flag = p->step.wave_flag(&p->step, b, wave);
    if (ok(p) && p->f->cfg.sync_host) {
        p->st = p->ops->backend.stream_sync(p->stream, p->err); /* its mails are out */
        gw_pipeline_await(&p->step, b, wave);
    } else if (ok(p)) {
        p->st = p->ops->backend.wait32_async(p->stream, flag, 1, p->err);
    }
}

/* ws->x += what the experts at hand make of ws->h. */
static void run_experts(struct pass *p, const krn_wave *wave, const void *const *weights_of,
                        const krn_routing *mine)
{
    const moe_model_shape *s = p->shape;
    const krn_expert_ffn_args a = {.n_rows = p->n_rows,
                                   .d_model = s->d_model,
                                   .d_ff = s->d_ff,
                                   .n_experts = s->n_experts,
                                   .w_dtype = p->f->cfg.expert_dtype,
                                   .act = s->act,
                                   .max_experts = p->step.wave_capacity,
                                   .h = p->ws->h,
                                   .wave = wave,
                                   .weights_of = weights_of,
                                   .routing = *mine,
                                   .x = p->ws->x,
                                   .scratch = p->ws->ff,
                                   .row_failed = p->ws->row_failed};
    if (ok(p)) {
        p->st = p->ops->expert_ffn(p->stream, &a, p->err);
    }
}

static void record_block(struct pass *p, uint32_t b, const krn_routing *mine)
{
    const gw_workspace *ws = p->ws;
    copy(p, ws->out_experts + (size_t)b * ws->max_rows, mine->ids, p->n_rows * sizeof(int32_t));
    if (p->f->cfg.record_gates) {
        copy(p, ws->out_gates + (size_t)b * ws->max_rows * p->shape->d_model, ws->h,
             (size_t)p->n_rows * p->shape->d_model * sizeof(float));
    }
}

static void moe_block(struct pass *p, const gw_layer_weights *w, uint32_t b)
{
    const krn_routing mine = record_of(p, b);
    const void *const *weights_of = p->step.weights_of(&p->step, b);
    if (p->step.publish_all && b + 1 < p->shape->stack[p->stack].n_blocks) {
        publish_all_experts(p, b + 1);
    }
    gate_position(p, w, b, &mine);
    if (weights_of != NULL) {
        run_experts(p, NULL, weights_of, &mine);
    }
    for (uint32_t wave = 0; wave < p->step.n_waves; wave++) {
        publish_wave(p, KRN_MAIL_REACHED, b, wave);
        await_wave(p, b, wave);
        run_experts(p, p->step.wave_row(&p->step, b, wave), NULL, &mine);
        publish_wave(p, KRN_MAIL_DONE, b, wave);
    }
    if (p->want_record) {
        record_block(p, b, &mine);
    }
}

static void layers(struct pass *p)
{
    const moe_stack_shape *shape = &p->shape->stack[p->stack];
    for (uint32_t i = 0; i < shape->n_layers; i++) {
        const gw_layer_weights *w = &p->f->cfg.weights->stack[p->stack].layer[i];
        self_attention(p, &w->self, i);
        if (p->stack == MOE_DECODER) {
            cross_attention(p, &w->cross, i);
        }
        if (shape->layer_is_moe[i]) {
            moe_block(p, w, (uint32_t)shape->block_of_layer[i]);
        } else {
            dense_feed_forward(p, w);
        }
    }
}

/* So many rows that the first block will need nearly every expert: no gate has to say so. */
static bool guesses_all_of_first(const struct pass *p)
{
    return p->step.publish_first && p->f->cfg.predict != GW_PREDICT_NONE;
}

static void begin(struct pass *p)
{
    gw_workspace *ws = p->ws;
    copy(p, ws->dev.ids, ws->host.ids, ws->input_bytes);
    if (ok(p) && p->f->routing != NULL) {
        p->st = gw_routing_source_submit(p->f->routing, p->stream, p->stack, p->err);
    }
    const bool has_blocks = p->shape->stack[p->stack].n_blocks > 0;
    if (has_blocks && (p->step.publish_all || guesses_all_of_first(p))) {
        publish_all_experts(p, 0);
    }
    embed(p, &p->f->cfg.weights->stack[p->stack].embed);
}

/* ws->qkv = the keys and values of a decoder layer's cross attention, from ws->h. */
static void cross_product(struct pass *p, const gw_attention_weights *w)
{
    krn_linear_args kv = linear_args(p, p->ws->h, &w->kv, p->ws->qkv);
    kv.y_stride = 3 * width_of(p);
    linear(p, &kv);
}

/* What every decoder layer will attend to, from the encoder's output. */
static void cross_keys(struct pass *p)
{
    gw_workspace *ws = p->ws;
    const gw_forward_cfg *cfg = &p->f->cfg;
    float *k = ws->qkv, *v = ws->qkv + width_of(p);
    for (uint32_t i = 0; i < p->shape->stack[MOE_DECODER].n_layers; i++) {
        const gw_attention_weights *w = &cfg->weights->stack[MOE_DECODER].layer[i].cross;
        cross_product(p, w);
        keep(p, k, gw_kv_cache_tensor(cfg->kv, i, GW_KV_CROSS_K), ws->dev.cross_off);
        keep(p, v, gw_kv_cache_tensor(cfg->kv, i, GW_KV_CROSS_V), ws->dev.cross_off);
    }
}

/* Every product of an encode step, of one row that nobody reads: what a backend prepares at the
 * first (ops_args.h) must not come while a step waits for the host. Of every layer: dtypes may
 * differ between layers, and with them who multiplies. */
static void prepare_products(struct pass *p)
{
    gw_workspace *ws = p->ws;
    const gw_stack_weights *stack = &p->f->cfg.weights->stack[MOE_ENCODER];
    for (uint32_t i = 0; i < p->shape->stack[MOE_ENCODER].n_layers; i++) {
        const gw_layer_weights *w = &stack->layer[i];
        const krn_linear_args qkv = normed_linear_args(p, &w->self.norm, &w->self.qkv, ws->qkv);
        linear(p, &qkv);
        add_projected(p, ws->attended, &w->self.o);
        if (!p->shape->stack[MOE_ENCODER].layer_is_moe[i]) {
            dense_feed_forward(p, w);
        }
    }
    for (uint32_t i = 0; i < p->shape->stack[MOE_DECODER].n_layers; i++) {
        cross_product(p, &p->f->cfg.weights->stack[MOE_DECODER].layer[i].cross);
    }
}

static void submit_encode(struct pass *p)
{
    begin(p);
    layers(p);
    norm(p, &p->f->cfg.weights->stack[MOE_ENCODER].final_norm);
    cross_keys(p);
    if (p->want_record) {
        copy(p, p->ws->out_hidden, p->ws->h, (size_t)p->n_rows * p->shape->d_model * sizeof(float));
    }
}

/* Everything a decode step enqueues: what a recording would hold. */
static void submit_decode(struct pass *p)
{
    gw_workspace *ws = p->ws;
    const gw_dense_weights *weights = p->f->cfg.weights;
    krn_linear_args head =
        normed_linear_args(p, &weights->stack[MOE_DECODER].final_norm, &weights->head, ws->logits);
    const krn_argmax_args most_probable = {
        .n_rows = p->n_rows, .vocab = p->shape->vocab, .logits = ws->logits, .out = ws->out_next};
    begin(p);
    layers(p);
    head.scale = weights->head_scale;
    linear(p, &head);
    if (ok(p)) {
        p->st = p->ops->argmax(p->stream, &most_probable, p->err);
    }
    if (p->want_logits) {
        copy(p, ws->out_logits, ws->logits, (size_t)p->n_rows * p->shape->vocab * sizeof(float));
    }
}

/* ---- recordings ---- */

static void forget_recordings(gw_forward *f)
{
    for (uint32_t i = 0; i < f->n_recordings; i++) {
        f->cfg.ops->backend.graph_destroy(f->recordings[i].graph);
    }
    f->n_recordings = 0;
}

static bool is_of(const struct pass *p, const recording *r)
{
    return r->n_rows == p->n_rows && r->odd == (p->step.step % 2 == 1) &&
           r->want_record == p->want_record && r->want_logits == p->want_logits;
}

/* Submits this step into a new recording. Nothing runs yet. */
static recording *record(struct pass *p)
{
    gw_forward *f = p->f;
    const krn_backend_fns *b = &p->ops->backend;
    if (f->n_recordings == MAX_RECORDINGS) {
        forget_recordings(f);
    }
    recording *r = &f->recordings[f->n_recordings];
    *r = (recording){.n_rows = p->n_rows,
                     .odd = p->step.step % 2 == 1,
                     .want_record = p->want_record,
                     .want_logits = p->want_logits};
    p->st = b->graph_begin(p->stream, p->err);
    if (!ok(p)) {
        return NULL;
    }
    submit_decode(p);
    moe_status st = b->graph_end(p->stream, &r->graph, ok(p) ? p->err : NULL);
    p->st = ok(p) ? st : p->st;
    if (r->graph != NULL) {
        f->n_recordings++;
    }
    return ok(p) ? r : NULL;
}

static void replay_decode(struct pass *p)
{
    gw_forward *f = p->f;
    recording *r = NULL;
    for (uint32_t i = 0; i < f->n_recordings && r == NULL; i++) {
        r = is_of(p, &f->recordings[i]) ? &f->recordings[i] : NULL;
    }
    r = r != NULL ? r : record(p);
    if (r != NULL) {
        p->st = p->ops->backend.graph_launch(r->graph, p->stream, p->err);
    }
}

static struct pass new_pass(gw_forward *f, moe_stack stack, uint32_t n_seqs, moe_err *err)
{
    return (struct pass){.f = f,
                         .ops = f->cfg.ops,
                         .stream = f->cfg.compute,
                         .shape = f->cfg.shape,
                         .ws = &f->ws,
                         .stack = stack,
                         .n_seqs = n_seqs,
                         .err = err};
}

static void describe_prompts(struct pass *p, gw_sequence *const *seqs)
{
    gw_step_inputs *in = &p->ws->host;
    memset(p->ws->row_failed, 0, p->ws->max_rows * sizeof *p->ws->row_failed);
    for (uint32_t s = 0; s < p->n_seqs; s++) {
        const gw_request *r = &seqs[s]->request;
        MOE_ASSERT(p->n_rows + r->n_input <= p->ws->max_rows);
        in->self_off[s] = p->n_rows;
        in->self_len[s] = (int32_t)r->n_input;
        in->cross_off[s] = gw_kv_cache_cross_row(p->f->cfg.kv, seqs[s]->place);
        in->cross_len[s] = (int32_t)r->n_input;
        for (uint32_t i = 0; i < r->n_input; i++) {
            in->ids[p->n_rows] = r->input_ids[i];
            in->row_seq[p->n_rows] = (int32_t)s;
            in->row_pos[p->n_rows] = (int32_t)i;
            p->n_rows++;
        }
        p->max_self_len = larger(p->max_self_len, r->n_input);
    }
}

static void describe_tokens(struct pass *p, gw_sequence *const *seqs)
{
    gw_step_inputs *in = &p->ws->host;
    const gw_kv_cache *kv = p->f->cfg.kv;
    p->n_rows = p->n_seqs;
    memset(p->ws->row_failed, 0, p->n_rows * sizeof *p->ws->row_failed);
    for (uint32_t s = 0; s < p->n_seqs; s++) {
        const gw_sequence *seq = seqs[s];
        in->ids[s] = seq->feed;
        in->row_seq[s] = (int32_t)s;
        in->row_pos[s] = (int32_t)seq->position;
        in->self_off[s] = gw_kv_cache_self_row(kv, seq->place);
        in->self_len[s] = (int32_t)seq->position + 1;
        in->cross_off[s] = gw_kv_cache_cross_row(kv, seq->place);
        in->cross_len[s] = (int32_t)seq->request.n_input;
        p->max_self_len = larger(p->max_self_len, seq->position + 1);
        p->max_cross_len = larger(p->max_cross_len, seq->request.n_input);
    }
}

/* Waits also for a submission that broke off: what was enqueued still writes and reads here. */
static void finish(struct pass *p, gw_step_result *out)
{
    const gw_workspace *ws = p->ws;
    moe_status st = p->ops->backend.stream_sync(p->stream, ok(p) ? p->err : NULL);
    if (!ok(p)) {
        return;
    }
    p->st = st;
    out->failed_text[0] = '\0';
    if (ok(p)) {
        p->st = gw_pipeline_end_step(p->f->cfg.pipeline, &p->step, out->failed_text,
                                     sizeof out->failed_text, p->err);
    }
    out->view = (gw_step_view){.experts = ws->out_experts,
                               .stride = ws->max_rows,
                               .hidden = ws->out_hidden,
                               .logits = ws->out_logits,
                               .gates = p->f->cfg.record_gates ? ws->out_gates : NULL};
    out->next = ws->out_next;
    out->row_failed = ws->row_failed;
}

moe_status gw_forward_encode(gw_forward *f, gw_sequence *const *seqs, uint32_t n, bool want_record,
                             gw_step_result *out, moe_err *err)
{
    MOE_ASSERT(n > 0 && n <= f->cfg.max_batch);
    struct pass p = new_pass(f, MOE_ENCODER, n, err);
    p.want_record = want_record;
    describe_prompts(&p, seqs);
    p.st = gw_pipeline_begin_step(f->cfg.pipeline, MOE_ENCODER, p.n_rows, &p.step, err);
    if (ok(&p)) {
        submit_encode(&p);
        finish(&p, out);
    }
    return p.st;
}

moe_status gw_forward_decode(gw_forward *f, gw_sequence *const *seqs, uint32_t n, bool want_record,
                             bool want_logits, gw_step_result *out, moe_err *err)
{
    MOE_ASSERT(n > 0 && n <= f->cfg.max_batch);
    struct pass p = new_pass(f, MOE_DECODER, n, err);
    p.want_record = want_record;
    p.want_logits = want_logits;
    describe_tokens(&p, seqs);
    p.st = gw_pipeline_begin_step(f->cfg.pipeline, MOE_DECODER, p.n_rows, &p.step, err);
    if (ok(&p)) {
        bool records = p.ops->backend.graph_begin != NULL && !f->cfg.sync_host;
        records ? replay_decode(&p) : submit_decode(&p);
        finish(&p, out);
    }
    return p.st;
}

moe_status gw_forward_create(const gw_forward_cfg *cfg, gw_forward **out, moe_err *err)
{
    if (cfg->expert_dtype != MOE_F32 && cfg->expert_dtype != MOE_BF16) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "the store's experts have element type %u: pack the checkpoint with "
                        "--dtype bf16 or f32",
                        cfg->expert_dtype);
    }
    if (cfg->shape->top_k != 1) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED, "top_k=%u: only 1 is supported",
                        cfg->shape->top_k);
    }
    gw_forward *f = calloc(1, sizeof *f);
    if (f == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "forward pass");
    }
    f->cfg = *cfg;
    f->cfg.predict_top = larger(cfg->predict_top, 1);
    f->cfg.lookahead = larger(cfg->lookahead, 1);
    const gw_workspace_cfg ws = {.ops = cfg->ops,
                                 .device = cfg->device,
                                 .shape = cfg->shape,
                                 .max_rows = larger(cfg->max_rows, cfg->max_batch),
                                 .max_batch = cfg->max_batch,
                                 .record_gates = cfg->record_gates,
                                 .guess_top = f->cfg.predict_top};
    moe_status st = gw_workspace_init(&ws, &f->ws, err);
    if (st != MOE_OK) {
        free(f);
        return st;
    }
    struct pass p = new_pass(f, MOE_ENCODER, 1, err);
    p.n_rows = 1;
    prepare_products(&p);
    if (ok(&p)) {
        p.st = cfg->ops->backend.stream_sync(cfg->compute, err);
    }
    if (!ok(&p)) {
        gw_forward_destroy(f);
        return p.st;
    }
    *out = f;
    return MOE_OK;
}

void gw_forward_set_routing(gw_forward *f, const gw_routing_source *source)
{
    f->routing = source;
    forget_recordings(f);
}

void gw_forward_destroy(gw_forward *f)
{
    if (f == NULL) {
        return;
    }
    forget_recordings(f);
    gw_workspace_fini(&f->ws);
    free(f);
}
