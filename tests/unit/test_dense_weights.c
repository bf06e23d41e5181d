/* Dense weights: every tensor lands where it belongs, in its own type; what is missing or misshapen
 * is named; heads and embeddings; position buckets. The store's region is a table in this file
 * (--wrap=gw_store_client_dense), the device is the cpu backend's. */
#include "tests/support/kernel_rig.h"

#include <stdlib.h>

#include "common/dtype.h"
#include "gpu-worker/engine/dense_weights.h"

enum { D_MODEL = 4, D_FF = 6, N_HEADS = 2, D_HEAD = 3, WIDTH = N_HEADS * D_HEAD, VOCAB = 5 };
enum { N_EXPERTS = 3, N_BUCKETS = 8, MAX_DISTANCE = 20, MAX_TENSORS = 96 };

static rig the;

/* ---- the checkpoint ---- */

static struct tensor {
    moe_dense_entry entry;
    float values[64]; /* as f32 */
    uint8_t stored[256];
} checkpoint[MAX_TENSORS];
static uint32_t n_tensors;

const moe_dense_entry *__wrap_gw_store_client_dense(const gw_store_client *c, const char *name,
                                                    moe_dense_kind kind, const void **out_payload);
const moe_dense_entry *__wrap_gw_store_client_dense(const gw_store_client *c, const char *name,
                                                    moe_dense_kind kind, const void **out_payload)
{
    (void)c;
    for (uint32_t i = 0; i < n_tensors && kind == MOE_DENSE_TENSOR; i++) {
        if (strcmp(checkpoint[i].entry.name, name) == 0) {
            *out_payload = checkpoint[i].stored;
            return &checkpoint[i].entry;
        }
    }
    return NULL;
}

static struct tensor *tensor_of(const char *name)
{
    for (uint32_t i = 0; i < n_tensors; i++) {
        if (strcmp(checkpoint[i].entry.name, name) == 0) {
            return &checkpoint[i];
        }
    }
    fail_msg("no tensor %s in the test's checkpoint", name);
    return NULL;
}

static void store_as(struct tensor *t, uint32_t dtype)
{
    size_t n = (size_t)t->entry.dims[0] * (t->entry.n_dims > 1 ? t->entry.dims[1] : 1);
    t->entry.dtype = dtype;
    t->entry.bytes = n * moe_dtype_bytes((moe_dtype)dtype);
    if (dtype == MOE_F32) {
        memcpy(t->stored, t->values, t->entry.bytes);
    } else {
        moe_dtype_convert(t->stored, (moe_dtype)dtype, t->values, MOE_F32, n);
    }
}

static void add(const char *name, uint32_t n_dims, uint32_t rows, uint32_t cols)
{
    assert_true(n_tensors < MAX_TENSORS);
    struct tensor *t = &checkpoint[n_tensors];
    uint64_t seed = n_tensors++;
    *t = (struct tensor){.entry = {.kind = MOE_DENSE_TENSOR, .n_dims = n_dims}};
    (void)snprintf(t->entry.name, sizeof t->entry.name, "%s", name);
    t->entry.dims[0] = n_dims == 1 ? cols : rows;
    t->entry.dims[1] = n_dims == 1 ? 0 : cols;
    for (size_t i = 0; i < (size_t)rows * cols; i++) {
        t->values[i] = (float)(int)next_in(&seed, 0, 64) / 16.0f - 2.0f; /* exact in every type */
    }
    store_as(t, MOE_F32);
}

static void forget(const char *name)
{
    *tensor_of(name) = checkpoint[--n_tensors];
}

static void add_attention(const char *stack, uint32_t layer, uint32_t part, const char *kind)
{
    static const char *const square[] = {"q", "k", "v"};
    char name[128];
    (void)snprintf(name, sizeof name, "%s.block.%u.layer.%u.layer_norm.weight", stack, layer, part);
    add(name, 1, 1, D_MODEL);
    for (int i = 0; i < 3; i++) {
        (void)snprintf(name, sizeof name, "%s.block.%u.layer.%u.%s.%s.weight", stack, layer, part,
                       kind, square[i]);
        add(name, 2, WIDTH, D_MODEL);
    }
    (void)snprintf(name, sizeof name, "%s.block.%u.layer.%u.%s.o.weight", stack, layer, part, kind);
    add(name, 2, D_MODEL, WIDTH);
}

/* Three layers: dense, sparse, dense; or with pre-gates all three sparse. */
static void add_feed_forward(const char *stack, uint32_t layer, uint32_t part, bool pregated)
{
    char at[64];
    char name[128];
    (void)snprintf(at, sizeof at, "%s.block.%u.layer.%u", stack, layer, part);
    (void)snprintf(name, sizeof name, "%s.layer_norm.weight", at);
    add(name, 1, 1, D_MODEL);
    if (!pregated && layer != 1) {
        (void)snprintf(name, sizeof name, "%s.mlp.wi.weight", at);
        add(name, 2, D_FF, D_MODEL);
        (void)snprintf(name, sizeof name, "%s.mlp.wo.weight", at);
        add(name, 2, D_MODEL, D_FF);
    }
    if (pregated ? layer == 0 : layer == 1) {
        (void)snprintf(name, sizeof name, "%s.mlp.router.classifier.weight", at);
        add(name, 2, N_EXPERTS, D_MODEL);
    }
    if (pregated && layer < 2) {
        (void)snprintf(name, sizeof name, "%s.mlp.pregate.classifier.weight", at);
        add(name, 2, N_EXPERTS, D_MODEL);
    }
}

static void fill_checkpoint(bool pregated)
{
    n_tensors = 0;
    add("shared.weight", 2, VOCAB, D_MODEL);
    for (int s = 0; s < 2; s++) {
        const char *stack = s == 0 ? "encoder" : "decoder";
        char name[128];
        for (uint32_t layer = 0; layer < 3; layer++) {
            add_attention(stack, layer, 0, "SelfAttention");
            if (s == 1) {
                add_attention(stack, layer, 1, "EncDecAttention");
            }
            add_feed_forward(stack, layer, s == 0 ? 1 : 2, pregated);
        }
        (void)snprintf(name, sizeof name,
                       "%s.block.0.layer.0.SelfAttention.relative_attention_bias.weight", stack);
        add(name, 2, N_BUCKETS, N_HEADS);
        (void)snprintf(name, sizeof name, "%s.final_layer_norm.weight", stack);
        add(name, 1, 1, D_MODEL);
    }
}

static moe_model_shape shape_of(bool pregated)
{
    moe_model_shape s = {.d_model = D_MODEL,
                         .d_ff = D_FF,
                         .d_head = D_HEAD,
                         .n_heads = N_HEADS,
                         .vocab = VOCAB,
                         .n_experts = N_EXPERTS,
                         .top_k = 1,
                         .n_rel_buckets = N_BUCKETS,
                         .rel_max_distance = MAX_DISTANCE,
                         .tied_head = true,
                         .pregate_lookahead = pregated ? 1 : 0};
    for (int i = 0; i < MOE_N_STACKS; i++) {
        moe_stack_shape *stack = &s.stack[i];
        stack->n_layers = 3;
        for (uint32_t layer = 0; layer < 3; layer++) {
            bool sparse = pregated || layer == 1;
            stack->layer_is_moe[layer] = sparse;
            stack->block_of_layer[layer] = sparse ? (int8_t)stack->n_blocks : -1;
            stack->layer_of_block[stack->n_blocks] = (uint8_t)layer;
            stack->n_blocks += sparse;
        }
    }
    return s;
}

static moe_status load(const moe_model_shape *shape, gw_dense_weights *out, moe_err *err)
{
    return gw_dense_weights_load(the.ops, the.device, the.stream, NULL, shape, out, err);
}

static gw_dense_weights *loaded(const moe_model_shape *shape)
{
    gw_dense_weights *w = calloc(1, sizeof *w);
    assert_non_null(w);
    rig_ok(&the, load(shape, w, &the.err));
    return w;
}

static void unload(gw_dense_weights *w)
{
    gw_dense_weights_unload(w);
    assert_null(w->arena);
    gw_dense_weights_unload(w); /* a second time: nothing */
    free(w);
}

static void assert_is(const gw_weight *w, const char *name, uint32_t rows, uint32_t cols)
{
    const struct tensor *t = tensor_of(name);
    uint8_t got[256];
    size_t bytes = (size_t)rows * cols * moe_dtype_bytes((moe_dtype)w->dtype);
    assert_non_null(w->data);
    assert_int_equal(rows, w->rows);
    assert_int_equal(cols, w->cols);
    bool widened = t->entry.dtype != w->dtype;
    assert_true(!widened || w->dtype == MOE_F32);
    rig_copy(&the, got, w->data, bytes);
    assert_memory_equal(widened ? (const void *)t->values : t->stored, got, bytes);
}

/* Keys or values of both. */
static gw_weight half_of(const gw_weight *kv, uint32_t second)
{
    size_t bytes = (size_t)WIDTH * D_MODEL * moe_dtype_bytes((moe_dtype)kv->dtype);
    gw_weight half = *kv;
    half.data = (const char *)kv->data + second * bytes;
    half.rows = kv->rows / 2;
    return half;
}

/* ---- tests ---- */

static void every_tensor_lands_in_its_place(void **state)
{
    (void)state;
    const moe_model_shape shape = shape_of(false);
    fill_checkpoint(false);
    gw_dense_weights *w = loaded(&shape);
    const gw_stack_weights *e = &w->stack[MOE_ENCODER];
    const gw_stack_weights *d = &w->stack[MOE_DECODER];
    assert_is(&e->layer[2].self.q, "encoder.block.2.layer.0.SelfAttention.q.weight", WIDTH,
              D_MODEL);
    assert_is(&e->layer[0].self.norm, "encoder.block.0.layer.0.layer_norm.weight", 1, D_MODEL);
    assert_is(&e->layer[0].self.o, "encoder.block.0.layer.0.SelfAttention.o.weight", D_MODEL,
              WIDTH);
    assert_is(&e->layer[2].wi, "encoder.block.2.layer.1.mlp.wi.weight", D_FF, D_MODEL);
    assert_is(&e->layer[1].router, "encoder.block.1.layer.1.mlp.router.classifier.weight",
              N_EXPERTS, D_MODEL);
    assert_null(e->layer[1].wi.data);
    assert_null(e->layer[0].router.data);
    assert_null(e->layer[0].cross.q.data);
    assert_is(&d->layer[1].cross.norm, "decoder.block.1.layer.1.layer_norm.weight", 1, D_MODEL);
    const gw_attention_weights *cross = &d->layer[1].cross;
    const gw_weight v = half_of(&cross->kv, 1);
    assert_is(&v, "decoder.block.1.layer.1.EncDecAttention.v.weight", WIDTH, D_MODEL);
    assert_int_equal(3 * WIDTH, cross->qkv.rows);
    assert_ptr_equal(cross->q.data, cross->qkv.data);
    assert_ptr_equal((const char *)cross->q.data + WIDTH * D_MODEL * sizeof(float), cross->kv.data);
    assert_is(&d->layer[1].ffn_norm, "decoder.block.1.layer.2.layer_norm.weight", 1, D_MODEL);
    assert_is(&d->layer[0].wo, "decoder.block.0.layer.2.mlp.wo.weight", D_MODEL, D_FF);
    assert_is(&d->final_norm, "decoder.final_layer_norm.weight", 1, D_MODEL);
    unload(w);
}

static void a_pregated_stack_routes_once_and_pregates_all_but_the_last(void **state)
{
    (void)state;
    const moe_model_shape shape = shape_of(true);
    fill_checkpoint(true);
    gw_dense_weights *w = loaded(&shape);
    const gw_layer_weights *layer = w->stack[MOE_DECODER].layer;
    assert_is(&layer[0].router, "decoder.block.0.layer.2.mlp.router.classifier.weight", N_EXPERTS,
              D_MODEL);
    assert_is(&layer[0].pregate, "decoder.block.0.layer.2.mlp.pregate.classifier.weight", N_EXPERTS,
              D_MODEL);
    assert_is(&layer[1].pregate, "decoder.block.1.layer.2.mlp.pregate.classifier.weight", N_EXPERTS,
              D_MODEL);
    assert_null(layer[1].router.data);
    assert_null(layer[2].router.data);
    assert_null(layer[2].pregate.data);
    unload(w);
}

static void each_tensor_keeps_its_type_and_f16_is_widened(void **state)
{
    (void)state;
    const moe_model_shape shape = shape_of(false);
    const char *o = "decoder.block.0.layer.0.SelfAttention.o.weight";
    const char *wi = "decoder.block.0.layer.2.mlp.wi.weight";
    fill_checkpoint(false);
    store_as(tensor_of(o), MOE_BF16);
    store_as(tensor_of(wi), MOE_F16);
    gw_dense_weights *w = loaded(&shape);
    assert_is(&w->stack[MOE_DECODER].layer[0].self.o, o, D_MODEL, WIDTH);
    assert_is(&w->stack[MOE_DECODER].layer[0].wi, wi, D_FF, D_MODEL);
    assert_int_equal(MOE_BF16, w->stack[MOE_DECODER].layer[0].self.o.dtype);
    assert_int_equal(MOE_F32, w->stack[MOE_DECODER].layer[0].wi.dtype);
    unload(w);
}

/* One product makes all three, so they are made alike. */
static void queries_keys_and_values_that_differ_are_widened(void **state)
{
    (void)state;
    const moe_model_shape shape = shape_of(false);
    const char *q = "decoder.block.0.layer.0.SelfAttention.q.weight";
    const char *k = "decoder.block.0.layer.0.SelfAttention.k.weight";
    const char *v = "decoder.block.0.layer.0.SelfAttention.v.weight";
    fill_checkpoint(false);
    store_as(tensor_of(q), MOE_BF16);
    store_as(tensor_of(k), MOE_F16);
    gw_dense_weights *w = loaded(&shape);
    const gw_attention_weights *self = &w->stack[MOE_DECODER].layer[0].self;
    const gw_weight keys = half_of(&self->kv, 0), values = half_of(&self->kv, 1);
    assert_int_equal(MOE_F32, self->qkv.dtype);
    assert_is(&self->q, q, WIDTH, D_MODEL);
    assert_is(&keys, k, WIDTH, D_MODEL);
    assert_is(&values, v, WIDTH, D_MODEL);
    unload(w);
}

static void refuses(const moe_model_shape *shape, moe_status status, const char *text)
{
    gw_dense_weights *w = calloc(1, sizeof *w);
    moe_err err = {0};
    assert_non_null(w);
    assert_int_equal(status, load(shape, w, &err));
    assert_non_null(strstr(err.text, text));
    assert_null(w->arena);
    free(w);
}

static void a_missing_tensor_is_named(void **state)
{
    (void)state;
    const moe_model_shape shape = shape_of(false);
    static const char *const names[] = {
        "encoder.block.2.layer.1.mlp.wi.weight",
        "decoder.block.1.layer.2.mlp.router.classifier.weight",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.final_layer_norm.weight",
        "shared.weight",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        fill_checkpoint(false);
        forget(names[i]);
        refuses(&shape, MOE_ERR_NOT_FOUND, names[i]);
    }
}

static void a_wrong_shape_or_type_is_named(void **state)
{
    (void)state;
    const moe_model_shape shape = shape_of(false);
    const char *name = "decoder.block.1.layer.1.EncDecAttention.o.weight"; /* [4, 6] */
    fill_checkpoint(false);
    struct tensor *t = tensor_of(name);
    t->entry.dims[0] = WIDTH;
    t->entry.dims[1] = D_MODEL;
    refuses(&shape, MOE_ERR_FORMAT, name);
    fill_checkpoint(false);
    tensor_of(name)->entry.n_dims = 3;
    refuses(&shape, MOE_ERR_FORMAT, name);
    fill_checkpoint(false);
    tensor_of(name)->entry.dtype = MOE_I32;
    refuses(&shape, MOE_ERR_FORMAT, name);
    fill_checkpoint(false);
    tensor_of(name)->entry.bytes -= 4;
    refuses(&shape, MOE_ERR_FORMAT, name);
}

static void a_tied_matrix_serves_three_times_under_any_name(void **state)
{
    (void)state;
    const moe_model_shape shape = shape_of(false);
    static const char *const names[] = {"shared.weight", "encoder.embed_tokens.weight",
                                        "decoder.embed_tokens.weight", "lm_head.weight"};
    for (size_t i = 0; i < 4; i++) {
        fill_checkpoint(false);
        (void)snprintf(tensor_of("shared.weight")->entry.name, MOE_DENSE_NAME_BYTES, "%s",
                       names[i]);
        gw_dense_weights *w = loaded(&shape);
        assert_is(&w->head, names[i], VOCAB, D_MODEL);
        assert_ptr_equal(w->head.data, w->stack[MOE_ENCODER].embed.data);
        assert_ptr_equal(w->head.data, w->stack[MOE_DECODER].embed.data);
        assert_true(w->head_scale == 0.5f); /* 4^-0.5 */
        unload(w);
    }
}

static void an_untied_head_is_its_own_and_embeddings_fall_back_to_shared(void **state)
{
    (void)state;
    moe_model_shape shape = shape_of(false);
    shape.tied_head = false;
    fill_checkpoint(false);
    refuses(&shape, MOE_ERR_NOT_FOUND, "lm_head.weight");
    add("lm_head.weight", 2, VOCAB, D_MODEL);
    gw_dense_weights *w = loaded(&shape);
    assert_is(&w->head, "lm_head.weight", VOCAB, D_MODEL);
    assert_true(w->head_scale == 1.0f);
    assert_is(&w->stack[MOE_ENCODER].embed, "shared.weight", VOCAB, D_MODEL);
    assert_ptr_equal(w->stack[MOE_ENCODER].embed.data, w->stack[MOE_DECODER].embed.data);
    unload(w);
    add("decoder.embed_tokens.weight", 2, VOCAB, D_MODEL);
    w = loaded(&shape);
    assert_is(&w->stack[MOE_ENCODER].embed, "shared.weight", VOCAB, D_MODEL);
    assert_is(&w->stack[MOE_DECODER].embed, "decoder.embed_tokens.weight", VOCAB, D_MODEL);
    unload(w);
}

static void the_position_bias_is_the_bucket_of_each_distance(void **state)
{
    (void)state;
    const moe_model_shape shape = shape_of(false);
    fill_checkpoint(false);
    store_as(tensor_of("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
             MOE_BF16);
    gw_dense_weights *w = loaded(&shape);
    for (int s = 0; s < MOE_N_STACKS; s++) {
        char name[128];
        (void)snprintf(name, sizeof name,
                       "%s.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                       s == MOE_ENCODER ? "encoder" : "decoder");
        const float *table = tensor_of(name)->values;
        float bias[N_HEADS][2 * MAX_DISTANCE + 1];
        assert_int_equal(MAX_DISTANCE, w->stack[s].bias_half);
        rig_copy(&the, bias, w->stack[s].rel_bias, sizeof bias);
        for (int head = 0; head < N_HEADS; head++) {
            for (int rel = -MAX_DISTANCE; rel <= MAX_DISTANCE; rel++) {
                uint32_t bucket =
                    gw_relative_bucket(rel, s == MOE_ENCODER, N_BUCKETS, MAX_DISTANCE);
                assert_true(bucket < N_BUCKETS);
                assert_true(table[bucket * N_HEADS + (uint32_t)head] ==
                            bias[head][rel + MAX_DISTANCE]);
            }
        }
    }
    unload(w);
}

/* Bucket by bucket, the first distance of each; 32 buckets up to 128: T5's. Worked out by hand from
 * exact powers: 8 * 2^(k/2) for both directions, 16 * 8^(k/16) for causal. */
static void buckets_are_exact_near_and_logarithmic_far(void **state)
{
    (void)state;
    static const int first_both[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91};
    static const int first_causal[] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                       11, 12, 13, 14, 15, 16, 19, 21, 24, 27, 31,
                                       35, 40, 46, 52, 59, 67, 77, 87, 99, 113};
    for (uint32_t b = 0; b < 16; b++) {
        int first = first_both[b];
        int last = b == 15 ? 500 : first_both[b + 1] - 1;
        assert_int_equal(b, gw_relative_bucket(-first, true, 32, 128));
        assert_int_equal(b, gw_relative_bucket(-last, true, 32, 128));
        if (first > 0) {
            assert_int_equal(16 + b, gw_relative_bucket(first, true, 32, 128));
            assert_int_equal(16 + b, gw_relative_bucket(last, true, 32, 128));
        }
    }
    for (uint32_t b = 0; b < 32; b++) {
        int last = b == 31 ? 500 : first_causal[b + 1] - 1;
        assert_int_equal(b, gw_relative_bucket(-first_causal[b], false, 32, 128));
        assert_int_equal(b, gw_relative_bucket(-last, false, 32, 128));
    }
    assert_int_equal(0, gw_relative_bucket(7, false, 32, 128)); /* the future */
}

static void buckets_that_have_no_logarithm_are_refused(void **state)
{
    (void)state;
    moe_model_shape shape = shape_of(false);
    fill_checkpoint(false);
    shape.n_rel_buckets = 2;
    refuses(&shape, MOE_ERR_UNSUPPORTED, "relative_attention_num_buckets=2");
    shape.n_rel_buckets = N_BUCKETS;
    shape.rel_max_distance = 4;
    refuses(&shape, MOE_ERR_UNSUPPORTED, "relative_attention_max_distance=4");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_tensor_lands_in_its_place),
        cmocka_unit_test(a_pregated_stack_routes_once_and_pregates_all_but_the_last),
        cmocka_unit_test(each_tensor_keeps_its_type_and_f16_is_widened),
        cmocka_unit_test(queries_keys_and_values_that_differ_are_widened),
        cmocka_unit_test(a_missing_tensor_is_named),
        cmocka_unit_test(a_wrong_shape_or_type_is_named),
        cmocka_unit_test(a_tied_matrix_serves_three_times_under_any_name),
        cmocka_unit_test(an_untied_head_is_its_own_and_embeddings_fall_back_to_shared),
        cmocka_unit_test(the_position_bias_is_the_bucket_of_each_distance),
        cmocka_unit_test(buckets_are_exact_near_and_logarithmic_far),
        cmocka_unit_test(buckets_that_have_no_logarithm_are_refused),
    };
    const krn_open_cfg open = {.n_threads = 1};
    if (rig_open(&the, "cpu", &open) != 0) {
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rig_close(&the);
    return failed != 0;
}
