/* tensor_names.c - see tensor_names.h. The list is walked from the front each time: a few hundred
 * names, asked for a few hundred times. Threads: no state. */
#include "expert-store/catalog/tensor_names.h"

#include <stdio.h>
#include <string.h>

/* Counts down to the wanted entry. */
typedef struct walk {
    uint32_t left;
    xs_dense_tensor *out; /* filled when left was 0 */
    bool found;
} walk;

static void emit(walk *w, const char *prefix, const char *name, uint32_t rows, uint32_t cols,
                 bool optional)
{
    if (w->found || w->left-- > 0) {
        return;
    }
    w->found = true;
    snprintf(w->out->name, sizeof w->out->name, "%.90s%.60s", prefix, name);
    w->out->n_dims = cols == 0 ? 1 : 2;
    w->out->dims[0] = rows;
    w->out->dims[1] = cols == 0 ? 1 : cols;
    w->out->optional = optional;
}

static void layer_prefix(moe_stack stack, uint32_t layer, const char *rest,
                         char out[XS_TENSOR_NAME_BYTES])
{
    snprintf(out, XS_TENSOR_NAME_BYTES, "%s.block.%u.layer.%s",
             stack == MOE_ENCODER ? "encoder" : "decoder", layer, rest);
}

void xs_mlp_prefix(moe_stack stack, uint32_t layer, char out[XS_TENSOR_NAME_BYTES])
{
    layer_prefix(stack, layer, stack == MOE_ENCODER ? "1.mlp." : "2.mlp.", out);
}

static void walk_attention(walk *w, const moe_model_shape *s, const char *layer, const char *kind)
{
    char prefix[2 * XS_TENSOR_NAME_BYTES];
    uint32_t d_attn = s->n_heads * s->d_head;
    snprintf(prefix, sizeof prefix, "%s%s.", layer, kind);
    emit(w, prefix, "q.weight", d_attn, s->d_model, false);
    emit(w, prefix, "k.weight", d_attn, s->d_model, false);
    emit(w, prefix, "v.weight", d_attn, s->d_model, false);
    emit(w, prefix, "o.weight", s->d_model, d_attn, false);
    emit(w, layer, "layer_norm.weight", s->d_model, 0, false);
}

static void walk_ffn(walk *w, const moe_model_shape *s, moe_stack stack, uint32_t layer)
{
    char prefix[XS_TENSOR_NAME_BYTES];
    layer_prefix(stack, layer, stack == MOE_ENCODER ? "1." : "2.", prefix);
    emit(w, prefix, "layer_norm.weight", s->d_model, 0, false);
    uint32_t block = 0;
    if (!xs_block_of_layer(s, stack, layer, &block)) {
        emit(w, prefix, "mlp.wi.weight", s->d_ff, s->d_model, false);
        emit(w, prefix, "mlp.wo.weight", s->d_model, s->d_ff, false);
        return;
    }
    if (xs_block_has_router(s, block)) {
        emit(w, prefix, "mlp.router.classifier.weight", s->n_experts, s->d_model, false);
    }
    if (xs_block_has_pregate(s, stack, block)) {
        emit(w, prefix, "mlp.pregate.classifier.weight", s->n_experts, s->d_model, false);
    }
}

static void walk_stack(walk *w, const moe_model_shape *s, moe_stack stack)
{
    for (uint32_t layer = 0; layer < s->stack[stack].n_layers; layer++) {
        char prefix[XS_TENSOR_NAME_BYTES];
        layer_prefix(stack, layer, "0.", prefix);
        walk_attention(w, s, prefix, "SelfAttention");
        if (layer == 0) {
            emit(w, prefix, "SelfAttention.relative_attention_bias.weight", s->n_rel_buckets,
                 s->n_heads, false);
        }
        if (stack == MOE_DECODER) {
            layer_prefix(stack, layer, "1.", prefix);
            walk_attention(w, s, prefix, "EncDecAttention");
        }
        walk_ffn(w, s, stack, layer);
    }
    emit(w, stack == MOE_ENCODER ? "encoder." : "decoder.", "final_layer_norm.weight", s->d_model,
         0, false);
}

bool xs_dense_tensor_at(const moe_model_shape *s, uint32_t i, xs_dense_tensor *out)
{
    walk w = {.left = i, .out = out};
    emit(&w, "", "shared.weight", s->vocab, s->d_model, false);
    walk_stack(&w, s, MOE_ENCODER);
    walk_stack(&w, s, MOE_DECODER);
    if (!s->tied_head) {
        emit(&w, "", "lm_head.weight", s->vocab, s->d_model, false);
        emit(&w, "", "encoder.embed_tokens.weight", s->vocab, s->d_model, true);
        emit(&w, "", "decoder.embed_tokens.weight", s->vocab, s->d_model, true);
    }
    return w.found;
}

bool xs_block_has_router(const moe_model_shape *s, uint32_t block)
{
    return s->pregate_lookahead == 0 || block == 0;
}

bool xs_block_has_pregate(const moe_model_shape *s, moe_stack stack, uint32_t block)
{
    return s->pregate_lookahead != 0 && block + 1 < s->stack[stack].n_blocks;
}

void xs_expert_tensor_name(const moe_model_shape *s, moe_stack stack, uint32_t block,
                           uint32_t expert, const char *matrix, char out[XS_TENSOR_NAME_BYTES])
{
    char prefix[XS_TENSOR_NAME_BYTES];
    xs_mlp_prefix(stack, s->stack[stack].layer_of_block[block], prefix);
    snprintf(out, XS_TENSOR_NAME_BYTES, "%.96sexperts.expert_%u.%s.weight", prefix, expert, matrix);
}

void xs_expert_place(const moe_model_shape *s, uint32_t expert_index, moe_stack *out_stack,
                     uint32_t *out_block, uint32_t *out_expert)
{
    moe_stack stack =
        expert_index >= s->stack[MOE_DECODER].first_expert ? MOE_DECODER : MOE_ENCODER;
    uint32_t in_stack = expert_index - s->stack[stack].first_expert;
    *out_stack = stack;
    *out_block = in_stack / s->n_experts;
    *out_expert = in_stack % s->n_experts;
}
