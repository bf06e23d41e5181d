/* Any bytes as config.json: refused with a reason, or a shape whose numbers fit together, so that
 * nobody who computes with them needs to check again. Run by tests/fuzz/replay.c or libFuzzer. */
#include <stdint.h>
#include <stdlib.h>

#include "common/model_shape.h"
#include "expert-store/catalog/tensor_names.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void must(int holds)
{
    if (!holds) {
        abort();
    }
}

static void check_stack(const moe_model_shape *s, moe_stack stack)
{
    const moe_stack_shape *k = &s->stack[stack];
    must(k->n_layers >= 1 && k->n_layers <= MOE_MAX_LAYERS && k->n_blocks <= k->n_layers);
    uint32_t n_blocks = 0;
    for (uint32_t layer = 0; layer < k->n_layers; layer++) {
        must(k->layer_is_moe[layer] == (k->block_of_layer[layer] >= 0));
        if (k->layer_is_moe[layer]) {
            must(k->block_of_layer[layer] == (int)n_blocks);
            must(k->layer_of_block[n_blocks++] == layer);
        }
    }
    must(n_blocks == k->n_blocks);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    moe_model_shape s;
    moe_err err = {0};
    if (moe_model_shape_parse((const char *)data, bytes, &s, &err) != MOE_OK) {
        must(err.status != MOE_OK && err.text[0] != '\0');
        return 0;
    }
    check_stack(&s, MOE_ENCODER);
    check_stack(&s, MOE_DECODER);
    must(s.d_model > 0 && s.d_ff > 0 && s.n_heads > 0 && s.d_head > 0 && s.vocab > 0);
    must(s.n_experts_total == s.n_blocks_total * s.n_experts);
    must((uint32_t)s.pad_id < s.vocab && (uint32_t)s.eos_id < s.vocab);
    for (uint32_t i = 0; i < s.n_experts_total; i += s.n_experts) {
        moe_stack stack;
        uint32_t block, expert;
        xs_expert_place(&s, i, &stack, &block, &expert);
        must(moe_expert_index(&s, stack, block, expert) == i);
    }
    xs_dense_tensor t;
    uint32_t n = 0;
    while (n < 100 && xs_dense_tensor_at(&s, n, &t)) { /* every name fits and is not empty */
        must(t.name[0] != '\0' && t.dims[0] > 0);
        n++;
    }
    return 0;
}
