/* ops_args.h - one args struct and contract per operation; every backend implements all of them.
 *
 * All pointers are device memory unless said otherwise; last dim contiguous. row_seq, row_pos,
 * kv_off and kv_len are step inputs: no operation writes them, and kernels may read them, and
 * weights, before the operation submitted before has ended. Weights are w_dtype (MOE_F32 or
 * MOE_BF16), activations f32, sums f32. Determinism: the order of additions of one output element
 * depends only on the op's inner dim, never on n_rows or on who shares the call: ids are equal
 * across batches, waves and policies. Threads and errors: a call enqueues and returns;
 * krn_<op>_check() (ops_check.c) validates dims first in every backend and gives MOE_ERR_INVALID
 * naming the dim. n_rows == 0 does nothing (but dispatch still writes its offsets, all 0).
 */
#ifndef KRN_OPS_ARGS_H
#define KRN_OPS_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/model_shape.h"
#include "kernels/ops/routing.h"

enum { KRN_MAX_D_HEAD = 256 }; /* one thread block of the cuda attention kernel */

/* x[t,:] = table[ids[t],:]
 *   ids: [n_rows] i32 in [0, vocab); table: [vocab, d_model] w_dtype; x: [n_rows, d_model] f32 */
typedef struct krn_embed_args {
    uint32_t n_rows, d_model, vocab, w_dtype;
    const int32_t *ids;
    const void *table;
    float *x;
} krn_embed_args;

/* y[t,:] = x[t,:] / sqrt(mean(x[t,:]^2) + eps) * w    (mean over d_model, f32)
 *   x, y: [n_rows, d_model] f32, may be the same; w: [d_model] w_dtype */
typedef struct krn_rms_norm_args {
    uint32_t n_rows, d_model, w_dtype;
    float eps;
    const float *x;
    const void *w;
    float *y;
} krn_rms_norm_args;

/* y[t,o] = act(scale * sum_i x[t,i] * w[o,i]) (+ y[t,o] if accumulate)
 *   x: [n_rows, d_in] f32; w: [d_out, d_in] w_dtype; y: [n_rows, d_out] f32, row stride y_stride
 * With a norm in front, bit for bit as if rms_norm had run first: x is replaced by
 *   h[t,:] = x[t,:] / sqrt(mean(x[t,:]^2) + norm_eps) * norm_w
 *   norm_w: [d_in] norm_dtype, NULL: no norm; h: [n_rows, d_in] f32, written too
 * With scratch a backend may multiply many rows faster, in another order of additions than without:
 * again the same for every n_rows, so give it always or never for rows of one kind (here: prompts).
 * The first such call of a (d_in, d_out) prepares and may synchronise: make it before anything
 * waits for the host. Rows with numbers that are not finite may then give NaN where infinity was
 * due. scratch: device, krn_linear_scratch_bytes(d_in, d_out) bytes, 256-byte aligned; NULL: none
 */
typedef struct krn_linear_args {
    uint32_t n_rows, d_in, d_out, w_dtype;
    uint32_t y_stride; /* >= d_out */
    uint32_t act;      /* moe_act */
    float scale;
    bool accumulate; /* residual: y += ... */
    uint32_t norm_dtype;
    float norm_eps;
    const float *x;
    const void *w, *norm_w;
    float *h, *y;
    void *scratch;
} krn_linear_args;

enum { KRN_LINEAR_CHUNK = 512 }; /* rows at a time with scratch */
/* Of a chunk: three bf16 parts of x, and the product of each in f32. */
static inline size_t krn_linear_scratch_bytes(uint32_t d_in, uint32_t d_out)
{
    return KRN_LINEAR_CHUNK * (3 * sizeof(uint16_t) * (size_t)d_in + 3 * sizeof(float) * d_out);
}

/* Copies row t of src to row kv_off[row_seq[t]] + row_pos[t] of dst.
 *   src: [n_rows, width] f32, row stride src_stride; dst: [*, width] f32; row_seq, row_pos:
 * [n_rows] i32; kv_off: [n_seqs] i64 */
typedef struct krn_kv_store_args {
    uint32_t n_rows, width;
    uint32_t src_stride; /* >= width */
    const float *src;
    float *dst;
    const int32_t *row_seq, *row_pos;
    const int64_t *kv_off;
} krn_kv_store_args;

/* out[t,h,:] = sum_j p_j v[j,h,:], p = softmax_j(q[t,h,:] . k[j,h,:] + bias[h, j - pos]) in f32, no
 * 1/sqrt(d); j over [0, kv_len[s]) of the row's sequence s, only j <= pos when causal.
 *   q: [n_rows, n_heads * d_head] f32, row stride q_stride; out: the same, dense; k, v: rows of
 *   n_heads * d_head f32, row stride kv_stride, row of (s, j) is kv_off[s] + j; rel_bias: [n_heads,
 *   2 * bias_half + 1] f32, column j - pos + bias_half, clamped at both ends; NULL: no bias.
 *   row_seq, row_pos: [n_rows] i32; kv_off: [n_seqs] i64; kv_len: [n_seqs] i32 (0: out = 0)
 * With a projection in front, bit for bit as if linear had run *project first: its y is q, alone or
 *   with the rows' keys and values beside it. q and project's h hold nothing of use afterwards.
 * With new_k and new_v (rows like q's, not NULL), row t's own key and value are first kept at row
 * kv_off[s] + row_pos[t] of k and v, as kv_store would. A sequence has one row in such a call. */
typedef struct krn_attention_args {
    uint32_t n_rows, n_heads, d_head, bias_half;
    uint32_t max_kv_len;          /* host-known bound of kv_len: how much work there is */
    uint32_t q_stride, kv_stride; /* >= n_heads * d_head */
    bool causal;
    bool rows_share_kv; /* rows of one sequence lie side by side (a prompt): a hint, no bit changes
                         */
    const float *q, *new_k, *new_v, *rel_bias;
    float *k, *v; /* written only where new_k and new_v go */
    float *out;
    const krn_linear_args *project; /* host, read during the call; NULL: none */
    const int32_t *row_seq, *row_pos;
    const int64_t *kv_off;
    const int32_t *kv_len;
} krn_attention_args;

/* Gate: probabilities p = softmax(h w^T) over experts in f32 (weights of the gate always f32 or
 * widened to it); ids = the top_k largest, descending, ties to the lower expert; weights = p[ids].
 * A row whose softmax is not a number (NaN or +inf logits) chooses experts 0..top_k-1, weight NaN.
 *   h: [n_rows, d_model] f32; w: [n_experts, d_model] w_dtype; out: ids and weights of routing */
typedef struct krn_gate_topk_args {
    uint32_t n_rows, d_model, n_experts, top_k, w_dtype;
    const float *h;
    const void *w;
    krn_routing out;
} krn_gate_topk_args;

/* Dispatch: counts, offsets, stable sort of pairs by expert. With capacity > 0, per sequence and
 * expert only the first `capacity` rows (row order) stay; later pairs get id -1 and no place in
 * order (transformers 4.x rule: per sequence and forward call, in token order).
 *   routing: ids read (and -1 written), order and offsets written; row_seq: [n_rows] i32 */
typedef struct krn_dispatch_args {
    uint32_t n_rows, n_experts, top_k, capacity, n_seqs;
    krn_routing routing;
    const int32_t *row_seq; /* may be NULL when capacity == 0 */
    int32_t *scratch;       /* capacity > 0: [n_seqs * n_experts] */
} krn_dispatch_args;

/* Publish: writes one mail (mapped memory) and advances the ring. For ROUTED and GUESSED the
 * active experts are those with offsets[e] < offsets[e+1], rising; all_experts instead names all.
 *   counter: device u32, the last seq used; ring: mapped, [depth] */
typedef struct krn_publish_args {
    uint32_t kind, block, wave, n_experts;
    bool all_experts;
    const int32_t *offsets; /* NULL for REACHED and DONE */
    uint32_t *counter;
    krn_mail *ring;
    uint32_t depth; /* power of two */
} krn_publish_args;

/* Route: everything at a block's gate position in one call, with the results of
 *   rms_norm (norm.x NULL: none), gate_topk, dispatch, publish (each of n_mails)
 * called in this order. The parts must agree: norm.y is gate.h; n_rows, n_experts and top_k of gate
 * and dispatch are equal. dispatch.routing may have its ids elsewhere than gate.out (measurements).
 *   scratch: [n_rows, n_experts] f32 */
enum { KRN_MAX_ROUTE_MAILS = 2 };
typedef struct krn_route_args {
    krn_rms_norm_args norm;
    krn_gate_topk_args gate;
    krn_dispatch_args dispatch;
    uint32_t n_mails;
    krn_publish_args mail[KRN_MAX_ROUTE_MAILS];
    float *scratch;
} krn_route_args;

/* Experts, added to the residual stream. For each expert e at hand and each row t in
 * order[offsets[e] .. offsets[e+1]):
 *   x[t,:] += weights[t] * wo_e act(wi_e h[t,:])        (the product is rounded before it is added)
 * At hand: one wave's (a failed entry leaves x alone and sets row_failed[t] = 1), or with
 * weights_of all experts, each at its device address (laid out like a cell).
 *   h, x: [n_rows, d_model] f32; wave: mapped, read when the op runs; weights_of: [n_experts],
 *   device; exactly one of them is given. scratch: [n_rows, d_ff] f32; row_failed: [n_rows] i32,
 *   device or mapped. One expert a row: top-k above 1 needs sums whose order no wave decides. */
typedef struct krn_expert_ffn_args {
    uint32_t n_rows, d_model, d_ff, n_experts, w_dtype, act;
    uint32_t max_experts; /* a wave's entries at most, as far as the host knows; 0: no bound */
    const float *h;
    const krn_wave *wave;
    const void *const *weights_of;
    krn_routing routing; /* top_k 1 */
    float *x, *scratch;
    int32_t *row_failed;
} krn_expert_ffn_args;

/* out[r] = index of the largest logit of row r; ties: the lowest index; NaN never wins; all NaN: 0
 *   logits: [n_rows, vocab] f32; out: [n_rows] i32 (device or mapped) */
typedef struct krn_argmax_args {
    uint32_t n_rows, vocab;
    const float *logits;
    int32_t *out;
} krn_argmax_args;

#endif
