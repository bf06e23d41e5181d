/* named_model.c - see named_model.h. */
#include "common/named_model.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct named_model {
    const char *name;
    uint32_t d_model, d_ff, d_head, n_heads, n_layers, n_experts, vocab;
} named_model;

static const named_model models[] = {
    {"switch-tiny", 32, 64, 8, 4, 4, 8, 512},
    {"switch-base-8", 768, 3072, 64, 12, 12, 8, 32128},
    {"switch-base-16", 768, 3072, 64, 12, 12, 16, 32128},
    {"switch-base-32", 768, 3072, 64, 12, 12, 32, 32128},
    {"switch-base-64", 768, 3072, 64, 12, 12, 64, 32128},
    {"switch-base-128", 768, 3072, 64, 12, 12, 128, 32128},
    {"switch-base-256", 768, 3072, 64, 12, 12, 256, 32128},
    {"switch-large-128", 1024, 4096, 64, 16, 24, 128, 32128},
};
enum { N_MODELS = sizeof models / sizeof models[0] };
#define PREGATED_SUFFIX "-pregated"

static const named_model *find_model(const char *name, bool *out_pregated)
{
    for (int i = 0; i < N_MODELS; i++) {
        size_t n = strlen(models[i].name);
        if (strncmp(name, models[i].name, n) != 0) {
            continue;
        }
        if (name[n] == '\0' || strcmp(name + n, PREGATED_SUFFIX) == 0) {
            *out_pregated = name[n] != '\0';
            return &models[i];
        }
    }
    return NULL;
}

static moe_status unknown_model(const char *name, moe_err *err)
{
    char known[256] = "";
    size_t n = 0;
    for (int i = 0; i < N_MODELS && n < sizeof known; i++) {
        n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", i > 0 ? ", " : "",
                              models[i].name);
    }
    return MOE_FAIL(err, MOE_ERR_INVALID,
                    "no synthetic model '%s'; known: %s, each also with " PREGATED_SUFFIX, name,
                    known);
}

moe_status moe_named_config(const char *name, moe_dtype dtype, char *out, size_t out_bytes,
                            moe_err *err)
{
    bool pregated = false;
    const named_model *m = find_model(name, &pregated);
    if (m == NULL) {
        return unknown_model(name, err);
    }
    const char *torch_dtype =
        dtype == MOE_F32 ? "float32" : (dtype == MOE_F16 ? "float16" : "bfloat16");
    int n = snprintf(
        out, out_bytes,
        "{\n"
        "  \"architectures\": [\"%sSwitchTransformersForConditionalGeneration\"],\n"
        "  \"model_type\": \"switch_transformers\",\n"
        "  \"vocab_size\": %u,\n  \"d_model\": %u,\n  \"d_ff\": %u,\n  \"d_kv\": %u,\n"
        "  \"num_heads\": %u,\n  \"num_layers\": %u,\n  \"num_decoder_layers\": %u,\n"
        "  \"num_experts\": %u,\n"
        "  \"num_sparse_encoder_layers\": %u,\n  \"num_sparse_decoder_layers\": %u,\n"
        "  \"encoder_sparse_step\": 2,\n  \"decoder_sparse_step\": 2,\n"
        "  \"expert_capacity\": 64,\n  \"router_bias\": false,\n"
        "  \"router_dtype\": \"float32\",\n  \"router_ignore_padding_tokens\": false,\n"
        "  \"relative_attention_num_buckets\": 32,\n"
        "  \"relative_attention_max_distance\": 128,\n"
        "  \"layer_norm_epsilon\": 1e-06,\n  \"dense_act_fn\": \"relu\",\n"
        "  \"feed_forward_proj\": \"relu\",\n  \"is_gated_act\": false,\n"
        "  \"is_encoder_decoder\": true,\n  \"tie_word_embeddings\": true,\n"
        "  \"pad_token_id\": 0,\n  \"eos_token_id\": 1,\n  \"decoder_start_token_id\": 0,\n"
        "%s"
        "  \"torch_dtype\": \"%s\"\n}\n",
        pregated ? "Pregated" : "", m->vocab, m->d_model, m->d_ff, m->d_head, m->n_heads,
        m->n_layers, m->n_layers, m->n_experts, m->n_layers / 2, m->n_layers / 2,
        pregated ? "  \"pregate\": {\"lookahead\": 1},\n" : "", torch_dtype);
    if (n < 0 || (size_t)n >= out_bytes) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "config.json of '%s' needs %d bytes", name, n + 1);
    }
    return MOE_OK;
}
