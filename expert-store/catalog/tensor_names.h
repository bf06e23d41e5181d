/* tensor_names.h - the dense tensors a model of a given shape consists of: names and dims.
 *
 * One list for both makers of a store: checkpoint.c asks what a checkpoint must contain,
 * synthetic.c what it has to invent. Experts are not in it (xs_expert_tensor_name names their
 * matrices). Threads: no state.
 */
#ifndef XS_TENSOR_NAMES_H
#define XS_TENSOR_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/model_shape.h"

enum { XS_TENSOR_NAME_BYTES = 160 };

typedef struct xs_dense_tensor {
    char name[XS_TENSOR_NAME_BYTES];
    uint32_t n_dims, dims[2];
    bool optional; /* a checkpoint may leave it out: embeddings of an untied model */
} xs_dense_tensor;

/* The i-th, i from 0; false (and *out untouched) past the last. */
bool xs_dense_tensor_at(const moe_model_shape *s, uint32_t i, xs_dense_tensor *out);

/* The MoE block in that layer; false for a dense layer. */
static inline bool xs_block_of_layer(const moe_model_shape *s, moe_stack stack, uint32_t layer,
                                     uint32_t *out_block)
{
    *out_block = (uint8_t)s->stack[stack].block_of_layer[layer];
    return s->stack[stack].layer_is_moe[layer] != 0;
}

/* Which gates a MoE block has. Ordinary: a router. Pre-gated: the first block of a stack a router,
 * every block but the last of a stack a pre-gate for the next. */
bool xs_block_has_router(const moe_model_shape *s, uint32_t block);
bool xs_block_has_pregate(const moe_model_shape *s, moe_stack stack, uint32_t block);

/* matrix is "wi" or "wo". */
void xs_expert_tensor_name(const moe_model_shape *s, moe_stack stack, uint32_t block,
                           uint32_t expert, const char *matrix, char out[XS_TENSOR_NAME_BYTES]);
/* "encoder.block.3.layer.1.mlp." */
void xs_mlp_prefix(moe_stack stack, uint32_t layer, char out[XS_TENSOR_NAME_BYTES]);

/* Flat expert index -> stack, block, expert in the block. */
void xs_expert_place(const moe_model_shape *s, uint32_t expert_index, moe_stack *out_stack,
                     uint32_t *out_block, uint32_t *out_expert);

#endif
