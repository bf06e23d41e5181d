/* dense_weights.h - the weights that always stay on the device: everything but the experts.
 *
 * Copied once from the store's dense region, by name, into one device allocation; each tensor keeps
 * its stored dtype (F32 or BF16; F16 is widened to F32), and queries, keys and values of an
 * attention lie back to back, so that one product makes them all (as F32 where their dtypes
 * differ). A tensor that is absent or has another shape is an error that names it, so a checkpoint
 * whose sparse layers disagree with its config.json is refused here. Heads and embeddings: a tied
 * checkpoint has one matrix for all three, under any of its names; an untied one embeds with
 * `encoder.` / `decoder.embed_tokens` when present, else with `shared`, and has `lm_head`. Called
 * by the engine thread. Nothing here is written after load. Shutdown: unload frees.
 */
#ifndef GW_DENSE_WEIGHTS_H
#define GW_DENSE_WEIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model_shape.h"
#include "gpu-worker/fetch/store_client.h"
#include "kernels/ops.h"

typedef struct gw_weight {
    const void *data; /* device, inside the one allocation; NULL: this layer has no such weight */
    uint32_t dtype;   /* MOE_F32 or MOE_BF16 */
    uint32_t rows;    /* [rows, cols], row-major; a norm has one row */
    uint32_t cols;
} gw_weight;

typedef struct gw_attention_weights {
    gw_weight norm; /* [d_model] */
    gw_weight q;    /* [n_heads * d_head, d_model] */
    gw_weight kv;   /* keys then values: [2 * n_heads * d_head, d_model] */
    gw_weight qkv;  /* q and kv, which lie back to back: [3 * n_heads * d_head, d_model] */
    gw_weight o;    /* [d_model, n_heads * d_head] */
} gw_attention_weights;

typedef struct gw_layer_weights {
    gw_attention_weights self;
    gw_attention_weights cross; /* decoder only */
    gw_weight ffn_norm;         /* [d_model] */
    gw_weight wi, wo;           /* dense layers: [d_ff, d_model], [d_model, d_ff] */
    gw_weight router;  /* MoE layers; pre-gated: a stack's first one only. [n_experts, d_model] */
    gw_weight pregate; /* pre-gated MoE layers but a stack's last. [n_experts, d_model] */
} gw_layer_weights;

typedef struct gw_stack_weights {
    gw_weight embed;      /* [vocab, d_model] */
    gw_weight final_norm; /* [d_model] */
    /* [n_heads, 2 * bias_half + 1] f32, device: the bias of key - query = column - bias_half; all
     * distances past bias_half share a bucket. */
    const float *rel_bias;
    uint32_t bias_half;
    gw_layer_weights layer[MOE_MAX_LAYERS];
} gw_stack_weights;

typedef struct gw_dense_weights {
    const krn_ops *ops; /* borrowed */
    krn_device *device; /* borrowed */
    void *arena;        /* owned, device */
    uint64_t arena_bytes;
    gw_weight head;   /* [vocab, d_model] */
    float head_scale; /* d_model^-0.5 when tied, else 1 */
    gw_stack_weights stack[MOE_N_STACKS];
} gw_dense_weights;

/* Synchronises `stream`. *out is about 100 KiB: the caller keeps it on the heap. On failure *out
 * owns nothing. */
MOE_MUST_CHECK moe_status gw_dense_weights_load(const krn_ops *ops, krn_device *device,
                                                krn_stream *stream, const gw_store_client *client,
                                                const moe_model_shape *shape, gw_dense_weights *out,
                                                moe_err *err);
void gw_dense_weights_unload(gw_dense_weights *w); /* accepts zeroed */

/* The bucket of a key at distance rel (key position - query position): the first half are exact
 * distances, the rest grow logarithmically up to max_distance. Both directions: half of the buckets
 * for each sign. Causal: keys after the query share bucket 0. */
uint32_t gw_relative_bucket(int32_t rel, bool both_directions, uint32_t n_buckets,
                            uint32_t max_distance);

#endif
