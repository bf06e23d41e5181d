/* prediction.h - which block may guess for which, and what such a predictor is called in a store.
 *
 * On an ordinary checkpoint block b's gate input h guesses the experts of block b + n of the same
 * stack, n = 1..GW_MAX_LOOKAHEAD. In the decoder the blocks go on into the next token: from block b
 * of L, b + n - L of the next one. So the first block's guess comes from the last block of the
 * token before (n = 1). On a pre-gated checkpoint that one is all: pre-gates decide every other
 * block in time, but nothing in the paper says a token's first.
 * A predictor is a matrix [n_experts, d_model], scores = W h, a dense tensor of the store beside
 * the checkpoint's own: predictor.decoder.block.2.lookahead.1.weight (block: of the stack's MoE
 * blocks). Written by calibrate, put into a store by `expert-pack add`, read by predictor.c. Pure.
 */
#ifndef GW_PREDICTION_H
#define GW_PREDICTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/model_shape.h"

enum { GW_MAX_LOOKAHEAD = 4, GW_PREDICTOR_NAME_BYTES = 96 };

/* Who guesses: the store's predictors, and the next router where there is none; routers only;
 * nobody. */
typedef enum gw_predict { GW_PREDICT_STORE = 0, GW_PREDICT_ROUTER, GW_PREDICT_NONE } gw_predict;

typedef struct gw_prediction {
    moe_stack stack;
    uint32_t source, lookahead;
    uint32_t target;
    bool next_token; /* the target is the next token's */
} gw_prediction;

/* False: that block has nothing so far ahead. lookahead >= 1. */
static inline bool gw_prediction_of(const moe_model_shape *s, moe_stack stack, uint32_t source,
                                    uint32_t lookahead, gw_prediction *out)
{
    uint32_t n_blocks = s->stack[stack].n_blocks, at = source + lookahead;
    bool wraps = at >= n_blocks;
    if (source >= n_blocks || lookahead > GW_MAX_LOOKAHEAD ||
        (wraps && (stack == MOE_ENCODER || at >= 2 * n_blocks))) {
        return false;
    }
    if (s->pregate_lookahead > 0 && (!wraps || lookahead > 1)) {
        return false;
    }
    *out = (gw_prediction){.stack = stack,
                           .source = source,
                           .lookahead = lookahead,
                           .target = wraps ? at - n_blocks : at,
                           .next_token = wraps};
    return true;
}

static inline void gw_predictor_name(const gw_prediction *p, char out[GW_PREDICTOR_NAME_BYTES])
{
    snprintf(out, GW_PREDICTOR_NAME_BYTES, "predictor.%s.block.%u.lookahead.%u.weight",
             p->stack == MOE_ENCODER ? "encoder" : "decoder", p->source, p->lookahead);
}

#endif
