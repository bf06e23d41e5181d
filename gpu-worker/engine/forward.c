/* forward.c - see forward.h. Every helper below enqueues one operation; a pass carries a sticky
 * status, so that the layers read without error paths and the step checks once. */
#include "gpu-worker/engine/forward.h"

#include <stdlib.h>
#include <string.h>

#include "common/dtype.h"
#include "gpu-worker/engine/workspace.h"

struct gw_forward {
    gw_forward_cfg cfg;
    gw_workspace ws;                  /* owned */
    const gw_routing_source *routing; /* borrowed; NULL: gates choose */
    bool has_next_guess;              /* ws.next_guess is of the latest decode step */
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
    bool continues; /* a sequence was in the decode step before */
    bool want_record, want_logits;
    moe_status st;
    moe_err *err;
};

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

/* h = norm(x) */
static void norm(struct pass *p, const gw_weight *w)
{
    const krn_rms_norm_args a = {.n_rows = p->n_rows,
                                 .d_model = w->cols,
                                 .w_dtype = w->dtype,
                                 .eps = p->shape->norm_eps,
                                 .x = p->ws->x,
                                 .w = w->data,
                                 .y = p->ws->h};
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
                             .y = y};
}

static void linear(struct pass *p, const krn_linear_args *a)
{
    if (ok(p)) {
        p->st = p->ops->linear(p->stream, a, p->err);
    }
}

/* y = x w^T */
static void project(struct pass *p, const float *x, const gw_weight *w, float *y)
{
    const krn_linear_args a = linear_args(p, x, w, y);
    linear(p, &a);
}

/* The residual stream: ws->x += y w^T */
static void add_projected(struct pass *p, const float *y, const gw_weight *w)
{
    krn_linear_args a = linear_args(p, y, w, p->ws->x);
    a.accumulate = true;
    linear(p, &a);
}

/* Keeps the rows of src as keys or values of their sequences. */
static void keep(struct pass *p, const float *src, float *dst, const int64_t *offsets)
{
    const krn_kv_store_args a = {.n_rows = p->n_rows,
                                 .width = p->shape->n_heads * p->shape->d_head,
                                 .src = src,
                                 .dst = dst,
                                 .row_seq = p->ws->dev.row_seq,
                                 .row_pos = p->ws->dev.row_pos,
                                 .kv_off = offsets};
    if (ok(p)) {
        p->st = p->ops->kv_store(p->stream, &a, p->err);
    }
}

/* ws->attended = attention of ws->q over the given keys; the caller sets k, v and where they lie.
 */
static void attend(struct pass *p, krn_attention_args a)
{
    a.n_rows = p->n_rows;
    a.n_heads = p->shape->n_heads;
    a.d_head = p->shape->d_head;
    a.q = p->ws->q;
    a.out = p->ws->attended;
    a.row_seq = p->ws->dev.row_seq;
    a.row_pos = p->ws->dev.row_pos;
    if (ok(p)) {
        p->st = p->ops->attention(p->stream, &a, p->err);
    }
}

static void self_attention(struct pass *p, const gw_attention_weights *w, uint32_t layer)
{
    gw_workspace *ws = p->ws;
    const gw_stack_weights *stack = &p->f->cfg.weights->stack[p->stack];
    const float *keys = ws->k;
    const float *values = ws->v;
    norm(p, &w->norm);
    project(p, ws->h, &w->q, ws->q);
    project(p, ws->h, &w->k, ws->k);
    project(p, ws->h, &w->v, ws->v);
    if (p->stack == MOE_DECODER) {
        float *kept_keys = gw_kv_cache_tensor(p->f->cfg.kv, layer, GW_KV_SELF_K);
        float *kept_values = gw_kv_cache_tensor(p->f->cfg.kv, layer, GW_KV_SELF_V);
        keep(p, ws->k, kept_keys, ws->dev.self_off);
        keep(p, ws->v, kept_values, ws->dev.self_off);
        keys = kept_keys;
        values = kept_values;
    }
    attend(p, (krn_attention_args){.k = keys,
                                   .v = values,
                                   .kv_off = ws->dev.self_off,
                                   .kv_len = ws->dev.self_len,
                                   .max_kv_len = p->max_self_len,
                                   .causal = p->stack == MOE_DECODER,
                                   .rel_bias = stack->rel_bias,
                                   .bias_half = stack->bias_half});
    add_projected(p, ws->attended, &w->o);
}

static void cross_attention(struct pass *p, const gw_attention_weights *w, uint32_t layer)
{
    gw_workspace *ws = p->ws;
    norm(p, &w->norm);
    project(p, ws->h, &w->q, ws->q);
    attend(p, (krn_attention_args){.k = gw_kv_cache_tensor(p->f->cfg.kv, layer, GW_KV_CROSS_K),
                                   .v = gw_kv_cache_tensor(p->f->cfg.kv, layer, GW_KV_CROSS_V),
                                   .kv_off = ws->dev.cross_off,
                                   .kv_len = ws->dev.cross_len,
                                   .max_kv_len = p->max_cross_len});
    add_projected(p, ws->attended, &w->o);
}

static void dense_feed_forward(struct pass *p, const gw_layer_weights *w)
{
    krn_linear_args up = linear_args(p, p->ws->h, &w->wi, p->ws->ff);
    norm(p, &w->ffn_norm);
    up.act = p->shape->act;
    linear(p, &up);
    add_projected(p, p->ws->ff, &w->wo);
}

/* The record of block b. Routing that comes from outside has ids and weights elsewhere. */
static krn_routing record_of(const struct pass *p, uint32_t b)
{
    krn_routing record = p->ws->routing[b % 2];
    if (p->f->routing != NULL) {
        gw_routing_source_apply(p->f->routing, p->stack, b, &record);
    }
    return record;
}

/* Who computes what: probabilities, choices, and rows sorted by expert. The gate chooses into
 * `chosen`; `out`, the same or another record, is what gets sorted. */
static void gate(struct pass *p, const gw_weight *w, uint32_t top_k, uint32_t capacity,
                 const krn_routing *chosen, const krn_routing *out)
{
    const krn_gate_topk_args choose = {.n_rows = p->n_rows,
                                       .d_model = w->cols,
                                       .n_experts = w->rows,
                                       .top_k = top_k,
                                       .w_dtype = w->dtype,
                                       .h = p->ws->h,
                                       .w = w->data,
                                       .out = *chosen};
    const krn_dispatch_args sort = {.n_rows = p->n_rows,
                                    .n_experts = w->rows,
                                    .top_k = top_k,
                                    .capacity = capacity,
                                    .n_seqs = p->n_seqs,
                                    .routing = *out,
                                    .row_seq = p->ws->dev.row_seq,
                                    .scratch = p->ws->capacity};
    if (ok(p)) {
        p->st = p->ops->gate_topk(p->stream, &choose, p->err);
    }
    if (ok(p)) {
        p->st = p->ops->dispatch(p->stream, &sort, p->err);
    }
}

/* Tells the fetch thread; see pipeline.h for who listens to what. */
static void publish(struct pass *p, krn_publish_args a, krn_mail_kind kind, uint32_t block)
{
    gw_pipeline_mailbox(p->f->cfg.pipeline, &a);
    a.kind = kind;
    a.block = moe_flat_block(p->shape, p->stack, block);
    a.n_experts = p->shape->n_experts;
    if (ok(p)) {
        p->st = p->ops->publish(p->stream, &a, p->err);
    }
}

static void publish_choice(struct pass *p, krn_mail_kind kind, uint32_t block,
                           const krn_routing *routing)
{
    publish(p, (krn_publish_args){.offsets = routing->offsets}, kind, block);
}

static void publish_all_experts(struct pass *p, uint32_t block)
{
    publish(p, (krn_publish_args){.all_experts = true}, KRN_MAIL_GUESSED, block);
}

/* What this block's h says about blocks ahead: of this step at once, of the next token's first
 * block when the next step begins. */
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
        if (w == NULL) {
            continue;
        }
        const krn_routing *guess = what.next_token ? &p->ws->next_guess : &p->ws->guess;
        gate(p, w, top, 0, guess, guess);
        if (what.next_token) {
            p->f->has_next_guess = ok(p);
        } else {
            publish_choice(p, KRN_MAIL_GUESSED, what.target, guess);
        }
    }
}

/* The gate position of block b: this block's record is complete afterwards, and on a pre-gated
 * checkpoint the next block's too. */
static void route(struct pass *p, const gw_layer_weights *w, uint32_t b, const krn_routing *mine)
{
    const moe_stack_shape *stack = &p->shape->stack[p->stack];
    uint32_t capacity = p->stack == MOE_ENCODER ? p->f->cfg.expert_capacity : 0;
    bool pregated = p->shape->pregate_lookahead > 0;
    if (b == 0 || !pregated) {
        gate(p, &w->router, p->shape->top_k, capacity, &p->ws->routing[b % 2], mine);
        publish_choice(p, KRN_MAIL_ROUTED, b, mine);
    } else if (p->step.publish_at_use) {
        publish_choice(p, KRN_MAIL_ROUTED, b, mine);
    }
    if (pregated && b + 1 < stack->n_blocks) {
        const krn_routing theirs = record_of(p, b + 1);
        gate(p, &w->pregate, p->shape->top_k, capacity, &p->ws->routing[(b + 1) % 2], &theirs);
        if (!p->step.publish_at_use) {
            publish_choice(p, KRN_MAIL_ROUTED, b + 1, &theirs);
        }
    } else if (p->step.publish_guess) {
        guess_ahead(p, b);
    }
}

/* One wave: wait on the device for its experts, then run them. */
static void run_wave(struct pass *p, uint32_t b, uint32_t wave, const krn_routing *mine)
{
    const moe_model_shape *s = p->shape;
    gw_step *step = &p->step;
    const krn_expert_ffn_args ffn = {.n_rows = p->n_rows,
                                     .top_k = s->top_k,
                                     .d_model = s->d_model,
                                     .d_ff = s->d_ff,
                                     .n_experts = s->n_experts,
                                     .w_dtype = p->f->cfg.expert_dtype,
                                     .act = s->act,
                                     .h = p->ws->h,
                                     .wave = step->wave_row(step, b, wave),
                                     .routing = *mine,
                                     .y = p->ws->y,
                                     .scratch = p->ws->ff,
                                     .row_failed = p->ws->row_failed};
    publish(p, (krn_publish_args){.wave = wave}, KRN_MAIL_REACHED, b);
    if (ok(p)) {
        p->st = p->ops->backend.wait32_async(p->stream, step->wave_flag(step, b, wave), 1, p->err);
    }
    if (ok(p)) {
        p->st = p->ops->expert_ffn(p->stream, &ffn, p->err);
    }
    publish(p, (krn_publish_args){.wave = wave}, KRN_MAIL_DONE, b);
}

static void combine(struct pass *p, const krn_routing *mine)
{
    const krn_expert_combine_args a = {.n_rows = p->n_rows,
                                       .top_k = p->shape->top_k,
                                       .d_model = p->shape->d_model,
                                       .routing = *mine,
                                       .y = p->ws->y,
                                       .x = p->ws->x};
    if (ok(p)) {
        p->st = p->ops->expert_combine(p->stream, &a, p->err);
    }
}

static void moe_block(struct pass *p, const gw_layer_weights *w, uint32_t b)
{
    const krn_routing mine = record_of(p, b);
    if (p->step.publish_all && b + 1 < p->shape->stack[p->stack].n_blocks) {
        publish_all_experts(p, b + 1);
    }
    norm(p, &w->ffn_norm);
    route(p, w, b, &mine);
    for (uint32_t wave = 0; wave < p->step.n_waves; wave++) {
        run_wave(p, b, wave, &mine);
    }
    combine(p, &mine);
    if (p->want_record) {
        copy(p, p->ws->out_experts + (size_t)b * p->ws->max_rows, mine.ids,
             p->n_rows * sizeof(int32_t));
    }
    if (p->want_record && p->f->cfg.record_gates) {
        copy(p, p->ws->out_gates + (size_t)b * p->ws->max_rows * p->shape->d_model, p->ws->h,
             (size_t)p->n_rows * p->shape->d_model * sizeof(float));
    }
}

static void layers(struct pass *p)
{
    const moe_stack_shape *shape = &p->shape->stack[p->stack];
    const gw_stack_weights *stack = &p->f->cfg.weights->stack[p->stack];
    for (uint32_t i = 0; i < shape->n_layers; i++) {
        const gw_layer_weights *w = &stack->layer[i];
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
    norm(p, &stack->final_norm);
}

static void begin(struct pass *p)
{
    gw_workspace *ws = p->ws;
    copy(p, ws->dev.ids, ws->host.ids, ws->input_bytes);
    if (ok(p)) {
        p->st = p->ops->backend.fill_async(p->stream, ws->row_failed, 0,
                                           p->n_rows * sizeof(int32_t), p->err);
    }
    if (p->step.publish_all && p->shape->stack[p->stack].n_blocks > 0) {
        publish_all_experts(p, 0);
    }
    if (p->stack == MOE_DECODER) {
        if (p->f->has_next_guess && p->continues && p->step.publish_guess) {
            publish_choice(p, KRN_MAIL_GUESSED, 0, &ws->next_guess);
        }
        p->f->has_next_guess = false;
    }
    embed(p, &p->f->cfg.weights->stack[p->stack].embed);
}

/* What every decoder layer will attend to, from the encoder's output. */
static void cross_keys(struct pass *p)
{
    gw_workspace *ws = p->ws;
    const gw_forward_cfg *cfg = &p->f->cfg;
    for (uint32_t i = 0; i < p->shape->stack[MOE_DECODER].n_layers; i++) {
        const gw_attention_weights *w = &cfg->weights->stack[MOE_DECODER].layer[i].cross;
        project(p, ws->h, &w->k, ws->k);
        project(p, ws->h, &w->v, ws->v);
        keep(p, ws->k, gw_kv_cache_tensor(cfg->kv, i, GW_KV_CROSS_K), ws->dev.cross_off);
        keep(p, ws->v, gw_kv_cache_tensor(cfg->kv, i, GW_KV_CROSS_V), ws->dev.cross_off);
    }
}

static void submit_encode(struct pass *p)
{
    begin(p);
    layers(p);
    cross_keys(p);
    if (p->want_record) {
        copy(p, p->ws->out_hidden, p->ws->h, (size_t)p->n_rows * p->shape->d_model * sizeof(float));
    }
    copy(p, p->ws->out_failed, p->ws->row_failed, p->n_rows * sizeof(int32_t));
}

/* Everything a decode step enqueues: what a recording would hold. */
static void submit_decode(struct pass *p)
{
    gw_workspace *ws = p->ws;
    const gw_dense_weights *weights = p->f->cfg.weights;
    krn_linear_args head = linear_args(p, ws->h, &weights->head, ws->logits);
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
    copy(p, ws->out_failed, ws->row_failed, p->n_rows * sizeof(int32_t));
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

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static void describe_prompts(struct pass *p, gw_sequence *const *seqs)
{
    gw_step_inputs *in = &p->ws->host;
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
        p->continues = p->continues || seq->position > 0;
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
    out->row_failed = ws->out_failed;
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
        submit_decode(&p);
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
    *out = f;
    return MOE_OK;
}

void gw_forward_set_routing(gw_forward *f, const gw_routing_source *source)
{
    f->routing = source;
}

void gw_forward_destroy(gw_forward *f)
{
    if (f == NULL) {
        return;
    }
    gw_workspace_fini(&f->ws);
    free(f);
}
