/* dense_weights.c - see dense_weights.h. The checkpoint is walked twice by the same function: first
 * to check every tensor and add up bytes, then, with the device memory there, to copy. */
#include "gpu-worker/engine/dense_weights.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/dtype.h"

enum { DEVICE_ALIGN = 256 };

/* One walk over the checkpoint. The status is sticky: after the first error nothing happens. */
struct loader {
    const krn_ops *ops;
    krn_stream *stream;
    const gw_store_client *client;
    const moe_model_shape *shape;
    char *arena; /* NULL in the first walk: only check and measure */
    uint64_t used;
    bool back_to_back; /* the next tensor begins where the last one ends */
    bool widen;        /* the next tensor becomes f32 */
    moe_status st;
    moe_err *err;
};

static const moe_dense_entry *find_tensor(const struct loader *l, const char *name,
                                          const void **out_payload)
{
    return gw_store_client_dense(l->client, name, MOE_DENSE_TENSOR, out_payload);
}

static bool has_shape(const moe_dense_entry *e, uint32_t rows, uint32_t cols)
{
    if (e->n_dims == 1) {
        return rows == 1 && e->dims[0] == cols;
    }
    return e->n_dims == 2 && e->dims[0] == rows && e->dims[1] == cols;
}

static bool check_tensor(struct loader *l, const char *name, const moe_dense_entry *e,
                         uint32_t rows, uint32_t cols)
{
    if (e == NULL) {
        l->st = MOE_FAIL(l->err, MOE_ERR_NOT_FOUND,
                         "the checkpoint has no tensor %s [%u, %u], which its config.json implies",
                         name, rows, cols);
        return false;
    }
    size_t element_bytes = moe_dtype_bytes((moe_dtype)e->dtype);
    if (!has_shape(e, rows, cols) ||
        (e->dtype != MOE_F32 && e->dtype != MOE_BF16 && e->dtype != MOE_F16)) {
        l->st = MOE_FAIL(l->err, MOE_ERR_FORMAT,
                         "tensor %s: %s with %u dims [%u, %u], expected f32, bf16 or f16 [%u, %u]",
                         name, moe_dtype_name((moe_dtype)e->dtype), e->n_dims, e->dims[0],
                         e->n_dims > 1 ? e->dims[1] : 1, rows, cols);
        return false;
    }
    if (e->bytes != (uint64_t)rows * cols * element_bytes) {
        l->st =
            MOE_FAIL(l->err, MOE_ERR_FORMAT, "tensor %s: %llu bytes for [%u, %u] %s", name,
                     (unsigned long long)e->bytes, rows, cols, moe_dtype_name((moe_dtype)e->dtype));
        return false;
    }
    return true;
}

static void *reserve(struct loader *l, uint64_t bytes)
{
    uint64_t begin = l->back_to_back ? l->used : moe_align_up(l->used, DEVICE_ALIGN);
    l->used = begin + bytes;
    return l->arena == NULL ? NULL : l->arena + begin;
}

static void copy_in(struct loader *l, void *dst, const void *src, uint64_t bytes)
{
    l->st = l->ops->backend.copy_async(l->stream, dst, src, bytes, l->err);
}

/* Like copy_in for a temporary: frees src once the copy has run. */
static void copy_in_and_free(struct loader *l, void *dst, void *src, uint64_t bytes)
{
    copy_in(l, dst, src, bytes);
    if (l->st == MOE_OK) {
        l->st = l->ops->backend.stream_sync(l->stream, l->err);
    }
    free(src);
}

/* n elements of e as f32, owned by the caller (free); NULL and a status on failure. */
static float *widened(struct loader *l, const moe_dense_entry *e, const void *src, uint64_t n)
{
    float *wide = malloc(n * sizeof(float));
    if (wide == NULL) {
        l->st = MOE_FAIL(l->err, MOE_ERR_NO_MEMORY, "%llu values of tensor %s as f32",
                         (unsigned long long)n, e->name);
        return NULL;
    }
    if (e->dtype == MOE_F32) {
        memcpy(wide, src, n * sizeof(float));
    } else {
        moe_dtype_convert(wide, MOE_F32, src, (moe_dtype)e->dtype, n);
    }
    return wide;
}

static void load_tensor(struct loader *l, const char *name, uint32_t rows, uint32_t cols,
                        gw_weight *out)
{
    const void *src = NULL;
    const moe_dense_entry *e = find_tensor(l, name, &src);
    if (!check_tensor(l, name, e, rows, cols)) {
        return;
    }
    bool widen = e->dtype == MOE_F16 || (l->widen && e->dtype != MOE_F32);
    uint64_t n = (uint64_t)rows * cols;
    uint64_t bytes = widen ? n * sizeof(float) : e->bytes;
    void *dst = reserve(l, bytes);
    if (dst == NULL) {
        return; /* measuring */
    }
    if (widen) {
        float *wide = widened(l, e, src, n);
        if (wide != NULL) {
            copy_in_and_free(l, dst, wide, bytes);
        }
    } else {
        copy_in(l, dst, src, bytes);
    }
    *out =
        (gw_weight){.data = dst, .dtype = widen ? MOE_F32 : e->dtype, .rows = rows, .cols = cols};
}

static void load(struct loader *l, gw_weight *out, uint32_t rows, uint32_t cols, const char *fmt,
                 ...) MOE_PRINTF(5, 6);
static void load(struct loader *l, gw_weight *out, uint32_t rows, uint32_t cols, const char *fmt,
                 ...)
{
    if (l->st != MOE_OK) {
        return;
    }
    char name[MOE_DENSE_NAME_BYTES];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    load_tensor(l, name, rows, cols, out);
}

static const char *stack_name(moe_stack stack)
{
    return stack == MOE_ENCODER ? "encoder" : "decoder";
}

/* Does the tensor have another element type than `first`? */
static bool differs(const struct loader *l, const char *first, const char *name)
{
    const void *payload = NULL;
    const moe_dense_entry *a = find_tensor(l, first, &payload);
    const moe_dense_entry *b = find_tensor(l, name, &payload);
    return a != NULL && b != NULL && a->dtype != b->dtype;
}

/* Queries, keys and values back to back, so that they are also one matrix; f32 if they differ. */
static void load_qkv(struct loader *l, gw_attention_weights *out, const char *at)
{
    const moe_model_shape *s = l->shape;
    const uint32_t width = s->n_heads * s->d_head;
    char q[MOE_DENSE_NAME_BYTES], k[MOE_DENSE_NAME_BYTES], v[MOE_DENSE_NAME_BYTES];
    gw_weight keys = {.data = NULL}, values = {.data = NULL};
    (void)snprintf(q, sizeof q, "%s.q.weight", at);
    (void)snprintf(k, sizeof k, "%s.k.weight", at);
    (void)snprintf(v, sizeof v, "%s.v.weight", at);
    l->widen = differs(l, q, k) || differs(l, q, v);
    load(l, &out->q, width, s->d_model, "%s", q);
    l->back_to_back = true;
    load(l, &keys, width, s->d_model, "%s", k);
    load(l, &values, width, s->d_model, "%s", v);
    l->back_to_back = l->widen = false;
    out->kv = keys;
    out->kv.rows = 2 * width;
    out->qkv = out->q;
    out->qkv.rows = 3 * width;
}

static void load_attention(struct loader *l, gw_attention_weights *out, moe_stack stack,
                           uint32_t layer, uint32_t part, const char *kind)
{
    const moe_model_shape *s = l->shape;
    char at[64], inner[96];
    (void)snprintf(at, sizeof at, "%s.block.%u.layer.%u", stack_name(stack), layer, part);
    (void)snprintf(inner, sizeof inner, "%s.%s", at, kind);
    load(l, &out->norm, 1, s->d_model, "%s.layer_norm.weight", at);
    load_qkv(l, out, inner);
    load(l, &out->o, s->d_model, s->n_heads * s->d_head, "%s.o.weight", inner);
}

static void load_feed_forward(struct loader *l, gw_layer_weights *out, moe_stack stack,
                              uint32_t layer)
{
    const moe_model_shape *s = l->shape;
    const moe_stack_shape *ss = &s->stack[stack];
    char at[64];
    (void)snprintf(at, sizeof at, "%s.block.%u.layer.%u", stack_name(stack), layer,
                   stack == MOE_ENCODER ? 1u : 2u);
    load(l, &out->ffn_norm, 1, s->d_model, "%s.layer_norm.weight", at);
    if (!ss->layer_is_moe[layer]) {
        load(l, &out->wi, s->d_ff, s->d_model, "%s.mlp.wi.weight", at);
        load(l, &out->wo, s->d_model, s->d_ff, "%s.mlp.wo.weight", at);
        return;
    }
    uint32_t block = (uint32_t)ss->block_of_layer[layer];
    bool pregated = s->pregate_lookahead > 0;
    if (block == 0 || !pregated) {
        load(l, &out->router, s->n_experts, s->d_model, "%s.mlp.router.classifier.weight", at);
    }
    if (pregated && block + 1 < ss->n_blocks) {
        load(l, &out->pregate, s->n_experts, s->d_model, "%s.mlp.pregate.classifier.weight", at);
    }
}

uint32_t gw_relative_bucket(int32_t rel, bool both_directions, uint32_t n_buckets,
                            uint32_t max_distance)
{
    uint32_t n = n_buckets;
    uint32_t start = 0;
    uint32_t r = rel < 0 ? 0u - (uint32_t)rel : 0u;
    if (both_directions) {
        n /= 2;
        if (rel > 0) {
            start = n;
            r = (uint32_t)rel;
        }
    }
    uint32_t exact = n / 2;
    if (r < exact) {
        return start + r;
    }
    /* f32, as the models were trained: another rounding could move a distance by one bucket. */
    float far = logf((float)r / (float)exact) / (float)log((double)max_distance / (double)exact) *
                (float)(n - exact);
    uint32_t bucket = exact + (uint32_t)far;
    return start + (bucket < n ? bucket : n - 1);
}

/* bias[head][rel + half] = table[bucket(rel)][head], from the checkpoint's [n_buckets, n_heads]. */
static void load_rel_bias(struct loader *l, gw_stack_weights *out, moe_stack stack)
{
    const moe_model_shape *s = l->shape;
    char name[MOE_DENSE_NAME_BYTES];
    (void)snprintf(name, sizeof name,
                   "%s.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                   stack_name(stack));
    const void *src = NULL;
    const moe_dense_entry *e = l->st == MOE_OK ? find_tensor(l, name, &src) : NULL;
    if (l->st != MOE_OK || !check_tensor(l, name, e, s->n_rel_buckets, s->n_heads)) {
        return;
    }
    uint32_t half = s->rel_max_distance;
    size_t columns = 2 * (size_t)half + 1;
    uint64_t bytes = s->n_heads * columns * sizeof(float);
    float *dst = reserve(l, bytes);
    if (dst == NULL) {
        return; /* measuring */
    }
    float *table = widened(l, e, src, (uint64_t)s->n_rel_buckets * s->n_heads);
    float *bias = malloc(bytes);
    if (table == NULL || bias == NULL) {
        if (l->st == MOE_OK) {
            l->st =
                MOE_FAIL(l->err, MOE_ERR_NO_MEMORY, "position bias of the %s", stack_name(stack));
        }
        free(table);
        free(bias);
        return;
    }
    for (size_t c = 0; c < columns; c++) {
        uint32_t bucket = gw_relative_bucket((int32_t)c - (int32_t)half, stack == MOE_ENCODER,
                                             s->n_rel_buckets, s->rel_max_distance);
        for (size_t head = 0; head < s->n_heads; head++) {
            bias[head * columns + c] = table[bucket * s->n_heads + head];
        }
    }
    free(table);
    copy_in_and_free(l, dst, bias, bytes);
    out->rel_bias = dst;
    out->bias_half = half;
}

static void load_stack(struct loader *l, gw_stack_weights *out, moe_stack stack)
{
    for (uint32_t i = 0; i < l->shape->stack[stack].n_layers; i++) {
        gw_layer_weights *layer = &out->layer[i];
        load_attention(l, &layer->self, stack, i, 0, "SelfAttention");
        if (stack == MOE_DECODER) {
            load_attention(l, &layer->cross, stack, i, 1, "EncDecAttention");
        }
        load_feed_forward(l, layer, stack, i);
    }
    load_rel_bias(l, out, stack);
    load(l, &out->final_norm, 1, l->shape->d_model, "%s.final_layer_norm.weight",
         stack_name(stack));
}

/* The first of the names that the checkpoint has; names[0], to be missed by name, if it has none.
 */
static const char *first_present(const struct loader *l, const char *const *names, size_t n)
{
    const void *payload = NULL;
    for (size_t i = 0; i < n; i++) {
        if (find_tensor(l, names[i], &payload) != NULL) {
            return names[i];
        }
    }
    return names[0];
}

static const char shared[] = "shared.weight";
static const char lm_head[] = "lm_head.weight";
static const char encoder_embed[] = "encoder.embed_tokens.weight";
static const char decoder_embed[] = "decoder.embed_tokens.weight";

static void load_tied(struct loader *l, gw_dense_weights *out)
{
    const char *const names[] = {shared, encoder_embed, decoder_embed, lm_head};
    load(l, &out->head, l->shape->vocab, l->shape->d_model, "%s", first_present(l, names, 4));
    out->head_scale = 1.0f / sqrtf((float)l->shape->d_model);
    out->stack[MOE_ENCODER].embed = out->head;
    out->stack[MOE_DECODER].embed = out->head;
}

static void load_untied(struct loader *l, gw_dense_weights *out)
{
    const moe_model_shape *s = l->shape;
    const char *const encoder_names[] = {encoder_embed, shared};
    const char *const decoder_names[] = {decoder_embed, shared};
    gw_weight *encoder = &out->stack[MOE_ENCODER].embed;
    gw_weight *decoder = &out->stack[MOE_DECODER].embed;
    const char *encoder_name = first_present(l, encoder_names, 2);
    const char *decoder_name = first_present(l, decoder_names, 2);
    load(l, encoder, s->vocab, s->d_model, "%s", encoder_name);
    if (decoder_name == encoder_name) {
        *decoder = *encoder;
    } else {
        load(l, decoder, s->vocab, s->d_model, "%s", decoder_name);
    }
    load(l, &out->head, s->vocab, s->d_model, "%s", lm_head);
    out->head_scale = 1.0f;
}

static void walk(struct loader *l, gw_dense_weights *out)
{
    if (l->shape->tied_head) {
        load_tied(l, out);
    } else {
        load_untied(l, out);
    }
    load_stack(l, &out->stack[MOE_ENCODER], MOE_ENCODER);
    load_stack(l, &out->stack[MOE_DECODER], MOE_DECODER);
}

/* What the logarithm in gw_relative_bucket needs. */
static moe_status check_buckets(const moe_model_shape *s, moe_err *err)
{
    if (s->n_rel_buckets < 4 || s->rel_max_distance <= s->n_rel_buckets / 2 ||
        s->rel_max_distance > 1u << 20) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "relative_attention_num_buckets=%u with relative_attention_max_distance=%u:"
                        " at least 4 buckets, a distance over half of them and at most 2^20",
                        s->n_rel_buckets, s->rel_max_distance);
    }
    return MOE_OK;
}

moe_status gw_dense_weights_load(const krn_ops *ops, krn_device *device, krn_stream *stream,
                                 const gw_store_client *client, const moe_model_shape *shape,
                                 gw_dense_weights *out, moe_err *err)
{
    moe_status st = check_buckets(shape, err);
    if (st != MOE_OK) {
        return st;
    }
    memset(out, 0, sizeof *out);
    struct loader l = {.ops = ops, .stream = stream, .client = client, .shape = shape, .err = err};
    walk(&l, out);
    if (l.st != MOE_OK) {
        return l.st;
    }
    void *arena = NULL;
    st = ops->backend.mem_alloc(device, l.used, &arena, err);
    if (st != MOE_OK) {
        return st;
    }
    out->ops = ops;
    out->device = device;
    out->arena = arena;
    out->arena_bytes = l.used;
    l.arena = arena;
    l.used = 0;
    walk(&l, out);
    /* Also after a failure: copies that were enqueued still write into the arena. */
    st = ops->backend.stream_sync(stream, l.st == MOE_OK ? err : NULL);
    if (l.st != MOE_OK || st != MOE_OK) {
        gw_dense_weights_unload(out);
        return l.st != MOE_OK ? l.st : st;
    }
    return MOE_OK;
}

void gw_dense_weights_unload(gw_dense_weights *w)
{
    if (w->arena != NULL) {
        w->ops->backend.mem_free(w->device, w->arena);
    }
    memset(w, 0, sizeof *w);
}
