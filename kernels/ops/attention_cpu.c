/* attention_cpu.c - softmax attention of each row over its own sequence's cache.

 * The softmax runs over the cache in chunks of CHUNK positions from 0, carrying the largest score,
 * the sum and the weighted values so far (rescaled when the largest grows): no scratch, and an
 order
 * that depends only on the number of positions. */
#include "kernels/backend/backend_cpu.h"
#include "kernels/ops/matmul.h"
#include "kernels/ops/ops_check.h"
#include "kernels/ops/ops_cpu.h"

#include <math.h>
#include <string.h>

#include "common/dtype.h"

enum { CHUNK = 64 };

static uint32_t visible_positions(const krn_attention_args *a, uint32_t t)
{
    int32_t len = a->kv_len[a->row_seq[t]];
    if (a->causal && a->row_pos[t] + 1 < len) {
        len = a->row_pos[t] + 1;
    }
    return len > 0 ? (uint32_t)len : 0;
}

static float bias_of(const krn_attention_args *a, uint32_t head, int32_t distance)
{
    int32_t half = (int32_t)a->bias_half;
    int32_t clamped = distance < -half ? -half : (distance > half ? half : distance);
    return a->rel_bias[(size_t)head * (2 * a->bias_half + 1) + (size_t)(clamped + half)];
}

/* score[i] of positions j0 + i, i < n; returns the largest. */
static float score_chunk(const krn_attention_args *a, uint32_t t, uint32_t head, uint32_t j0,
                         uint32_t n, float *score)
{
    const size_t at_head = (size_t)head * a->d_head;
    const size_t row0 = (size_t)a->kv_off[a->row_seq[t]] + j0;
    krn_matmul_args m = {.n_rows = 1,
                         .d_in = a->d_head,
                         .w_dtype = MOE_F32,
                         .act = MOE_ACT_NONE,
                         .scale = 1.0f,
                         .x = a->q + (size_t)t * a->q_stride + at_head,
                         .w = a->k + row0 * a->kv_stride + at_head,
                         .w_stride = a->kv_stride,
                         .y = score};
    krn_matmul(&m, 0, n);
    float largest = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        if (a->rel_bias != NULL) {
            score[i] += bias_of(a, head, (int32_t)(j0 + i) - a->row_pos[t]);
        }
        largest = score[i] > largest ? score[i] : largest;
    }
    return largest;
}

static void attend(const krn_attention_args *a, uint32_t t, uint32_t head)
{
    const size_t width = (size_t)a->n_heads * a->d_head, at_head = (size_t)head * a->d_head;
    const uint32_t n_visible = visible_positions(a, t), d_head = a->d_head;
    const float *v = a->v + at_head;
    float out[KRN_MAX_D_HEAD] = {0};
    float largest = -INFINITY, sum = 0.0f;
    for (uint32_t j0 = 0; j0 < n_visible; j0 += CHUNK) {
        float score[CHUNK];
        uint32_t n = n_visible - j0 < CHUNK ? n_visible - j0 : CHUNK;
        float chunk_largest = score_chunk(a, t, head, j0, n, score);
        if (chunk_largest > largest) {
            float shrink = expf(largest - chunk_largest);
            sum *= shrink;
            for (uint32_t d = 0; d < d_head; d++) {
                out[d] *= shrink;
            }
            largest = chunk_largest;
        }
        const size_t row0 = (size_t)a->kv_off[a->row_seq[t]] + j0;
        for (uint32_t i = 0; i < n; i++) {
            float p = expf(score[i] - largest);
            const float *v_row = v + (row0 + i) * a->kv_stride;
            sum += p;
            for (uint32_t d = 0; d < d_head; d++) {
                out[d] += p * v_row[d];
            }
        }
    }
    float *dst = a->out + (size_t)t * width + at_head;
    for (uint32_t d = 0; d < d_head; d++) {
        dst[d] = n_visible > 0 ? out[d] / sum : 0.0f;
    }
}

static void run_piece(void *ctx, uint32_t begin, uint32_t end)
{
    const krn_attention_args *a = ctx;
    for (uint32_t i = begin; i < end; i++) {
        attend(a, i / a->n_heads, i % a->n_heads);
    }
}

static void run(const void *args, krn_team *team)
{
    krn_attention_args a = *(const krn_attention_args *)args;
    uint32_t work = a.max_kv_len * a.d_head; /* of one row and head, at most */
    uint32_t grain = krn_matmul_grain(1, work);
    krn_team_for(team, a.n_rows * a.n_heads, grain, run_piece, &a);
}

static moe_status keep(krn_stream *s, const krn_attention_args *a, const float *src, float *dst,
                       moe_err *err)
{
    const krn_kv_store_args store = {.n_rows = a->n_rows,
                                     .width = a->n_heads * a->d_head,
                                     .src_stride = a->q_stride,
                                     .src = src,
                                     .dst = dst,
                                     .row_seq = a->row_seq,
                                     .row_pos = a->row_pos,
                                     .kv_off = a->kv_off};
    return krn_cpu_kv_store(s, &store, err);
}

moe_status krn_cpu_attention(krn_stream *s, const krn_attention_args *a, moe_err *err)
{
    moe_status st = krn_attention_check(a, err);
    if (st != MOE_OK || a->n_rows == 0) {
        return st;
    }
    if (a->project != NULL) {
        st = krn_cpu_linear(s, a->project, err);
        if (st != MOE_OK) {
            return st;
        }
    }
    if (a->new_k != NULL) {
        MOE_ASSERT(a->kv_stride == a->n_heads * a->d_head); /* a cache's rows are dense */
        st = keep(s, a, a->new_k, a->k, err);
        if (st == MOE_OK) {
            st = keep(s, a, a->new_v, a->v, err);
        }
        if (st != MOE_OK) {
            return st;
        }
    }
    return krn_cpu_submit(s, run, a, sizeof *a, err);
}
