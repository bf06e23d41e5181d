/* model_shape.c - reads a checkpoint's config.json.
 * Called at start by the packer, the store and the worker, on the main thread (cJSON keeps its last
 * error position in a static variable, so two threads must not parse at once); no state of ours.
 *
 * What a key means
 *   required   architectures, model_type, d_model, d_ff, d_kv, num_heads, vocab_size, num_layers,
 *              num_experts, num_sparse_encoder_layers, num_sparse_decoder_layers
 *   defaulted  num_decoder_layers (num_layers), relative_attention_num_buckets (32),
 *              relative_attention_max_distance (128), layer_norm_epsilon (1e-6), dense_act_fn
 *              (relu), tie_word_embeddings (true), expert_capacity (64), pad_token_id (0),
 *              eos_token_id (1), decoder_start_token_id (pad_token_id); null counts as absent
 *   refused    is_gated_act true, router_bias true, router_dtype other than float32: they would
 *              change the computation
 *   pregate    {"lookahead": 1}, exactly when the architecture is the pre-gated one
 * Everything else is ignored: feed_forward_proj (dense_act_fn decides), *_sparse_step (computed
 * from the layer counts, as the reference implementation does), dropout and other training keys.
 */
#include "common/model_shape.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_JSON_BYTES = 1 << 20,
    MAX_WIDTH = 1 << 16,   /* d_model, d_ff: an expert stays below 2^33 parameters */
    MAX_HEAD = 1 << 12,    /* d_head and n_heads */
    MAX_VOCAB = 1 << 22,   /* largest known vocabularies are about 2^18 */
    MAX_EXPERTS = 1 << 12, /* per block; times 128 blocks stays well below 2^32 */
    MAX_BUCKETS = 1 << 12,
    MAX_DISTANCE = 1 << 20,
    MAX_CAPACITY = 1 << 24
};

/* Present and not null. */
static const cJSON *find(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return item != NULL && !cJSON_IsNull(item) ? item : NULL;
}

static moe_status missing(const char *key, moe_err *err)
{
    return MOE_FAIL(err, MOE_ERR_FORMAT, "config.json: \"%s\" is missing", key);
}

typedef struct int_key {
    const char *key;
    int64_t min, max; /* inclusive */
    int64_t fallback; /* -1: required */
} int_key;

static moe_status get_int(const cJSON *root, const int_key *k, int64_t *out, moe_err *err)
{
    const cJSON *item = find(root, k->key);
    if (item == NULL && k->fallback >= 0) {
        *out = k->fallback;
        return MOE_OK;
    }
    if (item == NULL) {
        return missing(k->key, err);
    }
    if (!cJSON_IsNumber(item) || floor(item->valuedouble) != item->valuedouble) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "config.json: \"%s\" is not a whole number", k->key);
    }
    if (item->valuedouble < (double)k->min || item->valuedouble > (double)k->max) {
        return MOE_FAIL(err, MOE_ERR_LIMIT,
                        "config.json: \"%s\" is %.17g, supported are %lld to %lld", k->key,
                        item->valuedouble, (long long)k->min, (long long)k->max);
    }
    *out = (int64_t)item->valuedouble;
    return MOE_OK;
}

static moe_status get_bool(const cJSON *root, const char *key, bool fallback, bool *out,
                           moe_err *err)
{
    const cJSON *item = find(root, key);
    if (item != NULL && !cJSON_IsBool(item)) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "config.json: \"%s\" is not true or false", key);
    }
    *out = item != NULL ? cJSON_IsTrue(item) : fallback;
    return MOE_OK;
}

/* Borrowed from root. fallback NULL: required. */
static moe_status get_string(const cJSON *root, const char *key, const char *fallback,
                             const char **out, moe_err *err)
{
    const cJSON *item = find(root, key);
    if (item == NULL && fallback == NULL) {
        return missing(key, err);
    }
    const char *text = item != NULL ? cJSON_GetStringValue(item) : fallback;
    if (text == NULL) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "config.json: \"%s\" is not a string", key);
    }
    *out = text;
    return MOE_OK;
}

static moe_status parse_architecture(const cJSON *root, moe_model_shape *s, moe_err *err)
{
    const char *type = "";
    moe_status st = get_string(root, "model_type", NULL, &type, err);
    if (st != MOE_OK) {
        return st;
    }
    if (strcmp(type, "switch_transformers") != 0) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "config.json: model_type \"%.60s\": only switch_transformers is supported",
                        type);
    }
    snprintf(s->model_type, sizeof s->model_type, "%s", type);
    const cJSON *list = find(root, "architectures");
    const char *name =
        cJSON_IsArray(list) ? cJSON_GetStringValue(cJSON_GetArrayItem(list, 0)) : NULL;
    if (name == NULL) {
        return MOE_FAIL(err, MOE_ERR_FORMAT,
                        "config.json: \"architectures\" names no architecture");
    }
    if (strcmp(name, "SwitchTransformersForConditionalGeneration") == 0) {
        s->pregate_lookahead = 0;
    } else if (strcmp(name, "PregatedSwitchTransformersForConditionalGeneration") == 0) {
        s->pregate_lookahead = 1;
    } else {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "config.json: architecture \"%.80s\": supported are [Pregated]"
                        "SwitchTransformersForConditionalGeneration",
                        name);
    }
    return MOE_OK;
}

/* The architecture and the "pregate" object must tell the same story. */
static moe_status check_pregate(const cJSON *root, const moe_model_shape *s, moe_err *err)
{
    const cJSON *pregate = find(root, "pregate");
    if ((pregate != NULL) != (s->pregate_lookahead != 0)) {
        return MOE_FAIL(err, MOE_ERR_FORMAT,
                        "config.json: \"pregate\" is %s, but the architecture "
                        "is %s",
                        pregate != NULL ? "there" : "missing",
                        s->pregate_lookahead != 0 ? "the pre-gated one" : "an ordinary one");
    }
    if (pregate == NULL) {
        return MOE_OK;
    }
    const cJSON *lookahead = find(pregate, "lookahead");
    if (!cJSON_IsNumber(lookahead)) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "config.json: \"pregate.lookahead\" is not a number");
    }
    if (lookahead->valuedouble != 1.0) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "config.json: \"pregate.lookahead\" is %.17g, only 1 is supported",
                        lookahead->valuedouble);
    }
    return MOE_OK;
}

static moe_status parse_dims(const cJSON *root, moe_model_shape *s, moe_err *err)
{
    const struct {
        int_key k;
        uint32_t *out;
    } dims[] = {
        {{"d_model", 1, MAX_WIDTH, -1}, &s->d_model},
        {{"d_ff", 1, MAX_WIDTH, -1}, &s->d_ff},
        {{"d_kv", 1, MAX_HEAD, -1}, &s->d_head},
        {{"num_heads", 1, MAX_HEAD, -1}, &s->n_heads},
        {{"vocab_size", 2, MAX_VOCAB, -1}, &s->vocab},
        {{"num_experts", 1, MAX_EXPERTS, -1}, &s->n_experts},
        {{"expert_capacity", 1, MAX_CAPACITY, 64}, &s->expert_capacity},
        {{"relative_attention_num_buckets", 4, MAX_BUCKETS, 32}, &s->n_rel_buckets},
        {{"relative_attention_max_distance", 2, MAX_DISTANCE, 128}, &s->rel_max_distance},
    };
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        int64_t v = 0;
        moe_status st = get_int(root, &dims[i].k, &v, err);
        if (st != MOE_OK) {
            return st;
        }
        *dims[i].out = (uint32_t)v;
    }
    /* The logarithmic buckets run from n/2 to max_distance, so that range must not be empty. */
    if (s->n_rel_buckets % 2 != 0 || s->rel_max_distance <= s->n_rel_buckets / 2) {
        return MOE_FAIL(err, MOE_ERR_LIMIT,
                        "config.json: \"relative_attention_num_buckets\" is %u and "
                        "\"relative_attention_max_distance\" is %u: the first must be even, the "
                        "second more than half of it",
                        s->n_rel_buckets, s->rel_max_distance);
    }
    return MOE_OK;
}

static moe_status parse_token_ids(const cJSON *root, moe_model_shape *s, moe_err *err)
{
    int64_t last = (int64_t)s->vocab - 1;
    int64_t pad = 0;
    int64_t eos = 0;
    int64_t start = 0;
    moe_status st = get_int(root, &(int_key){"pad_token_id", 0, last, 0}, &pad, err);
    if (st == MOE_OK) {
        st = get_int(root, &(int_key){"eos_token_id", 0, last, 1}, &eos, err);
    }
    if (st == MOE_OK) {
        st = get_int(root, &(int_key){"decoder_start_token_id", 0, last, pad}, &start, err);
    }
    s->pad_id = (int32_t)pad;
    s->eos_id = (int32_t)eos;
    s->decoder_start_id = (int32_t)start;
    return st;
}

static moe_status parse_activation(const cJSON *root, moe_model_shape *s, moe_err *err)
{
    const char *name = "";
    bool gated = false;
    moe_status st = get_string(root, "dense_act_fn", "relu", &name, err);
    if (st == MOE_OK) {
        st = get_bool(root, "is_gated_act", false, &gated, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    if (gated) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "config.json: \"is_gated_act\": Switch has no gated feed-forward");
    }
    if (strcmp(name, "relu") == 0) {
        s->act = MOE_ACT_RELU;
    } else if (strcmp(name, "gelu") == 0) {
        s->act = MOE_ACT_GELU_ERF;
    } else if (strcmp(name, "gelu_new") == 0) {
        s->act = MOE_ACT_GELU_TANH;
    } else {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "config.json: \"dense_act_fn\" is \"%.40s\", supported are relu, gelu and "
                        "gelu_new",
                        name);
    }
    return MOE_OK;
}

static moe_status check_router(const cJSON *root, moe_err *err)
{
    const char *dtype = "";
    bool bias = false;
    moe_status st = get_string(root, "router_dtype", "float32", &dtype, err);
    if (st == MOE_OK) {
        st = get_bool(root, "router_bias", false, &bias, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    if (bias || strcmp(dtype, "float32") != 0) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "config.json: \"router_bias\" %s, \"router_dtype\" \"%.20s\": only an f32 "
                        "router without bias is supported",
                        bias ? "true" : "false", dtype);
    }
    return MOE_OK;
}

static moe_status parse_norm(const cJSON *root, moe_model_shape *s, moe_err *err)
{
    const cJSON *eps = find(root, "layer_norm_epsilon");
    if (eps == NULL) {
        s->norm_eps = 1e-6f;
        return MOE_OK;
    }
    if (!cJSON_IsNumber(eps)) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "config.json: \"layer_norm_epsilon\" is not a number");
    }
    if (!(eps->valuedouble > 0 && eps->valuedouble <= 1)) {
        return MOE_FAIL(err, MOE_ERR_LIMIT,
                        "config.json: \"layer_norm_epsilon\" is %.17g, supported is 0 to 1",
                        eps->valuedouble);
    }
    s->norm_eps = (float)eps->valuedouble;
    return MOE_OK;
}

/* Layer i is sparse iff step == 1 or i % step == 1, where step = n_layers / n_sparse. */
static void place_blocks(moe_stack_shape *stack, uint32_t n_layers, uint32_t n_sparse)
{
    uint32_t step = n_sparse > 0 ? n_layers / n_sparse : 0;
    stack->n_layers = n_layers;
    stack->n_blocks = 0;
    for (uint32_t i = 0; i < n_layers; i++) {
        bool sparse = step == 1 || (step > 1 && i % step == 1);
        stack->layer_is_moe[i] = sparse;
        stack->block_of_layer[i] = -1;
        if (sparse) {
            stack->block_of_layer[i] = (int8_t)stack->n_blocks;
            stack->layer_of_block[stack->n_blocks] = (uint8_t)i;
            stack->n_blocks++;
        }
    }
}

static moe_status parse_stacks(const cJSON *root, moe_model_shape *s, moe_err *err)
{
    static const char *const sparse_keys[MOE_N_STACKS] = {"num_sparse_encoder_layers",
                                                          "num_sparse_decoder_layers"};
    int64_t n_layers[MOE_N_STACKS] = {0};
    moe_status st =
        get_int(root, &(int_key){"num_layers", 1, MOE_MAX_LAYERS, -1}, &n_layers[MOE_ENCODER], err);
    if (st == MOE_OK) {
        st = get_int(root,
                     &(int_key){"num_decoder_layers", 1, MOE_MAX_LAYERS, n_layers[MOE_ENCODER]},
                     &n_layers[MOE_DECODER], err);
    }
    for (int i = 0; st == MOE_OK && i < MOE_N_STACKS; i++) {
        int64_t n_sparse = 0;
        st = get_int(root, &(int_key){sparse_keys[i], 0, n_layers[i], -1}, &n_sparse, err);
        if (st == MOE_OK) {
            place_blocks(&s->stack[i], (uint32_t)n_layers[i], (uint32_t)n_sparse);
        }
    }
    s->stack[MOE_ENCODER].first_expert = 0;
    s->stack[MOE_DECODER].first_expert = s->stack[MOE_ENCODER].n_blocks * s->n_experts;
    s->n_blocks_total = s->stack[MOE_ENCODER].n_blocks + s->stack[MOE_DECODER].n_blocks;
    s->n_experts_total = s->n_blocks_total * s->n_experts;
    return st;
}

static moe_status parse_root(const cJSON *root, moe_model_shape *s, moe_err *err)
{
    moe_status (*const parts[])(const cJSON *, moe_model_shape *, moe_err *) = {
        parse_architecture, parse_dims, parse_token_ids, parse_activation, parse_norm, parse_stacks,
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        moe_status st = parts[i](root, s, err);
        if (st != MOE_OK) {
            return st;
        }
    }
    s->top_k = 1;
    moe_status st = check_pregate(root, s, err);
    if (st == MOE_OK) {
        st = check_router(root, err);
    }
    if (st == MOE_OK) {
        st = get_bool(root, "tie_word_embeddings", true, &s->tied_head, err);
    }
    return st;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

moe_status moe_model_shape_parse(const char *json, size_t bytes, moe_model_shape *out_shape,
                                 moe_err *err)
{
    if (bytes > MAX_JSON_BYTES) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "config.json has %zu bytes, at most %d are read", bytes,
                        MAX_JSON_BYTES);
    }
    const char *end = NULL;
    cJSON *root = cJSON_ParseWithLengthOpts(json, bytes, &end, 0);
    if (root == NULL) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "config.json is not JSON: error near byte %zu",
                        end != NULL ? (size_t)(end - json) : 0);
    }
    moe_model_shape shape = {0};
    moe_status st = MOE_OK;
    size_t rest = (size_t)(end - json);
    while (rest < bytes && is_blank(json[rest])) {
        rest++;
    }
    if (!cJSON_IsObject(root) || rest != bytes) {
        st = MOE_FAIL(err, MOE_ERR_FORMAT, "config.json is not one JSON object");
    } else {
        st = parse_root(root, &shape, err);
    }
    cJSON_Delete(root);
    if (st == MOE_OK) {
        *out_shape = shape;
    }
    return st;
}

void moe_block_name(const moe_model_shape *s, uint32_t flat_block, char *out, size_t out_bytes)
{
    uint32_t n_encoder = s->stack[MOE_ENCODER].n_blocks;
    bool decoder = flat_block >= n_encoder;
    snprintf(out, out_bytes, "%s%u", decoder ? "dec" : "enc",
             decoder ? flat_block - n_encoder : flat_block);
}
