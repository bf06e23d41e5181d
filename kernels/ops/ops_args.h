/* ops_args.h - one args struct and contract per operation; every backend implements all of them.
 *
 * All pointers are device memory unless said otherwise; last dim contiguous. Weights are w_dtype
 * (MOE_F32 or MOE_BF16), activations f32, sums f32.
 * Determinism: the order of additions of one output element depends only on the op's inner dim,
 * never on n_rows or on who shares the call: ids are equal across batches, waves and policies.
 * Threads and errors: a call enqueues and returns; krn_<op>_check() (ops_check.c) validates dims
 * first in every backend and gives MOE_ERR_INVALID naming the dim. n_rows == 0 does nothing (but
 * dispatch still writes its offsets, all 0).
 */
#ifndef KRN_OPS_ARGS_H
#define KRN_OPS_ARGS_H

#include <stdbool.h>
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
 *   x: [n_rows, d_in] f32; w: [d_out, d_in] w_dtype; y: [n_rows, d_out] f32, row stride y_stride */
typedef struct krn_linear_args {
    uint32_t n_rows, d_in, d_out, w_dtype;
    uint32_t y_stride; /* >= d_out */
    uint32_t act;      /* moe_act */
    float scale;
    bool accumulate; /* residual: y += ... */
    const float *x;
    const void *w;
    float *y;
} krn_linear_args;

/* Copies row t of src to row kv_off[row_seq[t]] + row_pos[t] of dst.
 *   src: [n_rows, width] f32; dst: [*, width] f32; row_seq, row_pos: [n_rows] i32; kv_off: [n_seqs]
 * i64 */
typedef struct krn_kv_store_args {
    uint32_t n_rows, width;
    const float *src;
    float *dst;
    const int32_t *row_seq, *row_pos;
    const int64_t *kv_off;
} krn_kv_store_args;

/* out[t,h,:] = sum_j p_j v[j,h,:], p = softmax_j(q[t,h,:] . k[j,h,:] + bias[h, j - pos]) in f32, no
 * 1/sqrt(d); j over [0, kv_len[s]) of the row's sequence s, only j <= pos when causal.
 *   q, out: [n_rows, n_heads * d_head] f32; k, v: rows of n_heads * d_head f32, row of (s, j) is
 *   kv_off[s] + j; rel_bias: [n_heads, 2 * bias_half + 1] f32, column j - pos + bias_half, clamped
 *   at both ends; NULL: no bias. row_seq, row_pos: [n_rows] i32; kv_off: [n_seqs] i64;
 *   kv_len: [n_seqs] i32 (0: out = 0) */
typedef struct krn_attention_args {
    uint32_t n_rows, n_heads, d_head, bias_half;
    uint32_t max_kv_len; /* host-known bound of kv_len, for scratch */
    bool causal;
    const float *q, *k, *v, *rel_bias;
    float *out;
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

/* One wave of experts. For each entry e and each pair p = (t,k) in order[offsets[e.expert] ..):
 *   y[p,:] = wo_e act(wi_e h[t,:])        (unweighted; combine weighs)
 * A failed entry writes zeros and row_failed[t] = 1.
 *   h: [n_rows, d_model] f32; y: [n_rows * top_k, d_model] f32; wave: mapped, read when the op
 * runs; scratch: [n_rows * top_k, d_ff] f32; row_failed: [n_rows] i32 */
typedef struct krn_expert_ffn_args {
    uint32_t n_rows, top_k, d_model, d_ff, n_experts, w_dtype, act;
    const float *h;
    const krn_wave *wave;
    krn_routing routing;
    float *y, *scratch;
    int32_t *row_failed;
} krn_expert_ffn_args;

/* x[t,:] += sum_k weights[t,k] * y[(t,k),:], k rising; pairs with id -1 add nothing.
 *   x: [n_rows, d_model] f32; y: [n_rows * top_k, d_model] f32 */
typedef struct krn_expert_combine_args {
    uint32_t n_rows, top_k, d_model;
    krn_routing routing;
    const float *y;
    float *x;
} krn_expert_combine_args;

/* out[r] = index of the largest logit of row r; ties: the lowest index; NaN never wins; all NaN: 0
 *   logits: [n_rows, vocab] f32; out: [n_rows] i32 (device or mapped) */
typedef struct krn_argmax_args {
    uint32_t n_rows, vocab;
    const float *logits;
    int32_t *out;
} krn_argmax_args;

#endif
