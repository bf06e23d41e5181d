/* model_shape.h - the dims vocabulary of a model, read from its config.json; and how its experts
 * are numbered.
 *
 * One truth: both processes and the packer parse the checkpoint's own config.json with this file;
 * nothing else describes a model. Computation: see gpu-worker/engine/forward.h.
 * Threads: a shape is plain data, const once parsed.
 */
#ifndef MOE_COMMON_MODEL_SHAPE_H
#define MOE_COMMON_MODEL_SHAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

enum { MOE_N_STACKS = 2, MOE_MAX_LAYERS = 64 };
typedef enum moe_stack { MOE_ENCODER = 0, MOE_DECODER = 1 } moe_stack;
typedef enum moe_act {
    MOE_ACT_NONE = 0,
    MOE_ACT_RELU,
    MOE_ACT_GELU_ERF,
    MOE_ACT_GELU_TANH
} moe_act;

typedef struct moe_stack_shape {
    uint32_t n_layers;
    uint32_t n_blocks;                      /* MoE blocks: sparse layers, in order */
    uint32_t first_expert;                  /* flat index of (block 0, expert 0) */
    uint8_t layer_is_moe[MOE_MAX_LAYERS];   /* [n_layers] 0 or 1 */
    int8_t block_of_layer[MOE_MAX_LAYERS];  /* [n_layers] block, -1 for a dense layer */
    uint8_t layer_of_block[MOE_MAX_LAYERS]; /* [n_blocks] layer */
} moe_stack_shape;

typedef struct moe_model_shape {
    char model_type[40]; /* "switch_transformers" */
    uint32_t d_model, d_ff, d_head, n_heads, vocab;
    uint32_t n_experts; /* per block, the same in every block */
    uint32_t top_k;     /* 1 for Switch */
    uint32_t n_rel_buckets, rel_max_distance;
    float norm_eps;
    moe_act act;                /* dense_act_fn */
    bool tied_head;             /* logits = (h * d_model^-0.5) . shared^T; else lm_head, unscaled */
    uint32_t pregate_lookahead; /* 0: ordinary; 1: block b's pre-gate decides block b+1 */
    uint32_t expert_capacity;   /* the checkpoint's rule; applied only when asked for */
    int32_t pad_id, eos_id, decoder_start_id;
    moe_stack_shape stack[MOE_N_STACKS];
    uint32_t n_blocks_total;  /* over both stacks; flat block = encoder's first, then decoder's */
    uint32_t n_experts_total; /* n_blocks_total * n_experts */
} moe_model_shape;

/* Parses config.json text (not NUL-terminated, `bytes` long; at most 1 MiB). Errors name the key:
 * MOE_ERR_FORMAT (not JSON, wrong type), MOE_ERR_UNSUPPORTED (architecture, gated activation),
 * MOE_ERR_LIMIT (a dim out of bounds). Layer i of a stack is sparse iff step == 1 or i % step == 1
 * with step = n_layers / num_sparse_layers (0 sparse layers: none). */
MOE_MUST_CHECK moe_status moe_model_shape_parse(const char *json, size_t bytes,
                                                moe_model_shape *out_shape, moe_err *err);

/* Flat expert index: the number the wire, the board and the lease tables use. */
static inline uint32_t moe_expert_index(const moe_model_shape *s, moe_stack stack, uint32_t block,
                                        uint32_t expert)
{
    return s->stack[stack].first_expert + block * s->n_experts + expert;
}
/* Flat block of a flat expert (encoder blocks first); and back to names for people. */
static inline uint32_t moe_block_of_expert(const moe_model_shape *s, uint32_t expert_index)
{
    return expert_index / s->n_experts;
}
static inline uint32_t moe_flat_block(const moe_model_shape *s, moe_stack stack, uint32_t block)
{
    return block + (stack == MOE_DECODER ? s->stack[MOE_ENCODER].n_blocks : 0);
}
/* "enc2" or "dec0" into out (at least 8 bytes). */
void moe_block_name(const moe_model_shape *s, uint32_t flat_block, char *out, size_t out_bytes);

/* One expert = its matrices back to back, each row-major [out, in]:
 * wi [d_ff, d_model], then wo [d_model, d_ff]. */
static inline uint64_t moe_expert_params(const moe_model_shape *s)
{
    return 2ull * s->d_ff * s->d_model;
}

#endif
