/* forward.h - one step of a Switch Transformer, in the order of the paper, enqueued on one stream.
 *
 *   encode: prompts of new sequences, rows one after another (no padding)
 *     x = embed(ids);  per layer: x += self_attention(norm(x)); x += feed_forward(norm(x))
 *     encoder output = norm(x);  per decoder layer: its cross keys and values, into the kv cache
 *   decode: one token of every running sequence
 *     x = embed(ids);  per layer: x += self_attention; x += cross_attention; x += feed_forward
 *     logits = head_scale * norm(x) . head^T;  next = argmax(logits)
 * Attention has no 1/sqrt(d) and adds the stack's relative position bias in every self attention.
 * A feed-forward layer is dense, wo act(wi h), or a MoE block:
 *     x += weight * wo_e act(wi_e h)      e, weight: the routing record of this block
 * Who makes the record (a record per block parity is carried through the dense layers between):
 *     ordinary checkpoint   block b's router, from block b's own h
 *     pre-gated checkpoint  block 0's router for itself; block b's pre-gate, from block b's own h,
 *                           decides block b + 1 of the same stack
 * The pregated policy guesses what no pre-gate decides (prediction.h): on an ordinary checkpoint
 * block b's h says by a predictor, or untrained by the next router, which experts the blocks ahead
 * may need; on both kinds the last decoder block's says it for the first block of the next step,
 * and a long prompt needs all of its first block. Nothing is computed from a guess. Nothing goes
 * from one token, or from the encoder, to the next. The host does not synchronise inside a step:
 * experts arrive through the pipeline's waves (pipeline.h). On a backend with graphs a decode step
 * is submitted once for each number of rows and step parity, and replayed. sync_host: for tools
 * that run kernels one at a time (compute-sanitizer, CUDA_LAUNCH_BLOCKING), where a device that
 * waits for the host would wait for ever; every wave then costs a synchronisation, and nothing is
 * recorded. Called by the engine thread. Shutdown: destroy, once nothing is enqueued any more.
 */
#ifndef GW_FORWARD_H
#define GW_FORWARD_H

#include <stdint.h>

#include "gpu-worker/bench/routing_source.h"
#include "gpu-worker/engine/dense_weights.h"
#include "gpu-worker/engine/kv_cache.h"
#include "gpu-worker/engine/predictor.h"
#include "gpu-worker/engine/sequence.h"
#include "gpu-worker/fetch/pipeline.h"

typedef struct gw_forward_cfg {
    const krn_ops *ops;              /* borrowed */
    krn_device *device;              /* borrowed */
    krn_stream *compute;             /* borrowed */
    const moe_model_shape *shape;    /* borrowed */
    const gw_dense_weights *weights; /* borrowed */
    gw_kv_cache *kv;                 /* borrowed */
    gw_pipeline *pipeline;           /* borrowed */
    uint32_t expert_dtype;           /* moe_dtype of the experts' matrices */
    uint32_t expert_capacity;        /* tokens per sequence and expert in an encode step; 0: all */
    uint32_t max_rows, max_batch;
    bool record_gates; /* a recorded step brings what gates saw to the host */
    bool sync_host;    /* the host waits for experts, the device never does: for sanitizers */
    /* PREGATED */
    const gw_predictors *predictors; /* borrowed */
    gw_predict predict;
    uint32_t predict_top; /* guesses per row; 0: one */
    uint32_t lookahead;   /* blocks ahead that are guessed; 0: one */
} gw_forward_cfg;

typedef struct gw_forward gw_forward;
MOE_MUST_CHECK moe_status gw_forward_create(const gw_forward_cfg *cfg, gw_forward **out,
                                            moe_err *err);
void gw_forward_destroy(gw_forward *f); /* accepts NULL */
/* Measurements only: records come from this source (borrowed; it must outlive the forward pass)
 * instead of the gates, from the next step on. */
void gw_forward_set_routing(gw_forward *f, const gw_routing_source *source);

/* Lent until the next step. */
typedef struct gw_step_result {
    gw_step_view view;         /* what records need; logits when asked for */
    const int32_t *next;       /* decode: [n] the most probable token of each sequence */
    const int32_t *row_failed; /* [n_rows] 1: an expert of this row could not be had */
    char failed_text[200];     /* why, "" when no row failed */
} gw_step_result;

/* Submit one step of n sequences, wait for it and for its mails. Sequences have a place; encode
 * needs the sum of their n_input <= max_rows, decode n <= max_batch. MOE_OK also when rows failed.
 * want_record: bring experts and encoder output to the host; want_logits: logits too.
 * MOE_ERR_DISCONNECTED: the store's memory is gone. After any error the pipeline must be remade. */
MOE_MUST_CHECK moe_status gw_forward_encode(gw_forward *f, gw_sequence *const *seqs, uint32_t n,
                                            bool want_record, gw_step_result *out, moe_err *err);
MOE_MUST_CHECK moe_status gw_forward_decode(gw_forward *f, gw_sequence *const *seqs, uint32_t n,
                                            bool want_record, bool want_logits, gw_step_result *out,
                                            moe_err *err);

#endif
