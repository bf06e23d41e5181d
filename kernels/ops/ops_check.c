/* ops_check.c - see ops_check.h. Each op is a short list of rules; the first broken one is named.
 */
#include "kernels/ops/ops_check.h"

#include <stddef.h>

#include "common/dtype.h"

typedef struct rule {
    const char *broken; /* what to say */
    bool holds;
} rule;

static moe_status check(const char *op, const rule *rules, size_t n, moe_err *err)
{
    for (size_t i = 0; i < n; i++) {
        if (!rules[i].holds) {
            return MOE_FAIL(err, MOE_ERR_INVALID, "%s: %s", op, rules[i].broken);
        }
    }
    return MOE_OK;
}

#define N_RULES(rules) (sizeof(rules) / sizeof(rules)[0])

static bool is_weight_dtype(uint32_t dtype)
{
    return dtype == MOE_F32 || dtype == MOE_BF16;
}

static bool is_act(uint32_t act)
{
    return act <= MOE_ACT_GELU_TANH;
}

/* Row and pair numbers are i32 in the routing record. */
static bool pairs_fit(uint32_t n_rows, uint32_t top_k)
{
    return (uint64_t)n_rows * top_k <= INT32_MAX;
}

moe_status krn_embed_check(const krn_embed_args *a, moe_err *err)
{
    const rule rules[] = {
        {"d_model is 0", a->d_model > 0},
        {"vocab is 0 or too large", a->vocab > 0 && a->vocab <= INT32_MAX},
        {"w_dtype is not f32 or bf16", is_weight_dtype(a->w_dtype)},
        {"ids is NULL", a->ids != NULL},
        {"table is NULL", a->table != NULL},
        {"x is NULL", a->x != NULL},
    };
    return check("embed", rules, N_RULES(rules), err);
}

moe_status krn_rms_norm_check(const krn_rms_norm_args *a, moe_err *err)
{
    const rule rules[] = {
        {"d_model is 0", a->d_model > 0},
        {"w_dtype is not f32 or bf16", is_weight_dtype(a->w_dtype)},
        {"eps is negative or NaN", a->eps >= 0.0f},
        {"x is NULL", a->x != NULL},
        {"w is NULL", a->w != NULL},
        {"y is NULL", a->y != NULL},
    };
    return check("rms_norm", rules, N_RULES(rules), err);
}

moe_status krn_linear_check(const krn_linear_args *a, moe_err *err)
{
    const rule rules[] = {
        {"d_in is 0", a->d_in > 0},
        {"d_out is 0", a->d_out > 0},
        {"y_stride is less than d_out", a->y_stride >= a->d_out},
        {"w_dtype is not f32 or bf16", is_weight_dtype(a->w_dtype)},
        {"act is unknown", is_act(a->act)},
        {"norm_dtype is not f32 or bf16", a->norm_w == NULL || is_weight_dtype(a->norm_dtype)},
        {"norm_eps is negative or NaN", a->norm_w == NULL || a->norm_eps >= 0.0f},
        {"h is NULL", a->norm_w == NULL || a->h != NULL},
        {"x is NULL", a->x != NULL},
        {"w is NULL", a->w != NULL},
        {"y is NULL", a->y != NULL},
        {"y must not be x", a->y != a->x},
    };
    return check("linear", rules, N_RULES(rules), err);
}

moe_status krn_kv_store_check(const krn_kv_store_args *a, moe_err *err)
{
    const rule rules[] = {
        {"width is 0", a->width > 0},
        {"src_stride is less than width", a->src_stride >= a->width},
        {"src is NULL", a->src != NULL},
        {"dst is NULL", a->dst != NULL},
        {"row_seq is NULL", a->row_seq != NULL},
        {"row_pos is NULL", a->row_pos != NULL},
        {"kv_off is NULL", a->kv_off != NULL},
    };
    return check("kv_store", rules, N_RULES(rules), err);
}

/* A projection makes the queries, alone or with the rows' keys and values beside them. */
static bool projection_fits(const krn_attention_args *a)
{
    const krn_linear_args *l = a->project;
    const uint32_t width = a->n_heads * a->d_head;
    const bool is_of_all = l->d_out == 3 * width;
    if (a->new_k != NULL && (a->new_k != a->q + width || a->new_v != a->q + 2 * (size_t)width)) {
        return false;
    }
    return l->n_rows == a->n_rows && l->y == a->q && l->y_stride == a->q_stride &&
           (is_of_all || (l->d_out == width && a->new_k == NULL)) && !l->accumulate;
}

moe_status krn_attention_check(const krn_attention_args *a, moe_err *err)
{
    const rule rules[] = {
        {"n_heads is 0", a->n_heads > 0},
        {"d_head is 0 or over KRN_MAX_D_HEAD", a->d_head > 0 && a->d_head <= KRN_MAX_D_HEAD},
        {"bias_half is too large", a->bias_half <= INT32_MAX / 2},
        {"max_kv_len is too large", a->max_kv_len <= INT32_MAX},
        {"q_stride is less than a row", a->q_stride >= a->n_heads * a->d_head},
        {"kv_stride is less than a row", a->kv_stride >= a->n_heads * a->d_head},
        {"new_k without new_v", (a->new_k == NULL) == (a->new_v == NULL)},
        {"q is NULL", a->q != NULL},
        {"k is NULL", a->k != NULL},
        {"v is NULL", a->v != NULL},
        {"out is NULL", a->out != NULL},
        {"row_seq is NULL", a->row_seq != NULL},
        {"row_pos is NULL", a->row_pos != NULL},
        {"kv_off is NULL", a->kv_off != NULL},
        {"kv_len is NULL", a->kv_len != NULL},
        {"the projection makes other rows than q", a->project == NULL || projection_fits(a)},
    };
    moe_status st = check("attention", rules, N_RULES(rules), err);
    return st == MOE_OK && a->project != NULL ? krn_linear_check(a->project, err) : st;
}

moe_status krn_gate_topk_check(const krn_gate_topk_args *a, moe_err *err)
{
    const rule rules[] = {
        {"d_model is 0", a->d_model > 0},
        {"n_experts is 0 or over KRN_MAX_EXPERTS",
         a->n_experts > 0 && a->n_experts <= KRN_MAX_EXPERTS},
        {"top_k is 0 or over n_experts", a->top_k > 0 && a->top_k <= a->n_experts},
        {"n_rows * top_k is too large", pairs_fit(a->n_rows, a->top_k)},
        {"w_dtype is not f32 or bf16", is_weight_dtype(a->w_dtype)},
        {"h is NULL", a->h != NULL},
        {"w is NULL", a->w != NULL},
        {"out.ids is NULL", a->out.ids != NULL},
        {"out.weights is NULL", a->out.weights != NULL},
    };
    return check("gate_topk", rules, N_RULES(rules), err);
}

moe_status krn_dispatch_check(const krn_dispatch_args *a, moe_err *err)
{
    const rule rules[] = {
        {"n_experts is 0 or over KRN_MAX_EXPERTS",
         a->n_experts > 0 && a->n_experts <= KRN_MAX_EXPERTS},
        {"top_k is 0 or over n_experts", a->top_k > 0 && a->top_k <= a->n_experts},
        {"n_rows * top_k is too large", pairs_fit(a->n_rows, a->top_k)},
        {"routing.ids is NULL", a->routing.ids != NULL},
        {"routing.order is NULL", a->routing.order != NULL},
        {"routing.offsets is NULL", a->routing.offsets != NULL},
        {"capacity needs n_seqs, row_seq and scratch",
         a->capacity == 0 || (a->n_seqs > 0 && a->row_seq != NULL && a->scratch != NULL)},
    };
    return check("dispatch", rules, N_RULES(rules), err);
}

moe_status krn_publish_check(const krn_publish_args *a, moe_err *err)
{
    bool names_experts = a->kind == KRN_MAIL_ROUTED || a->kind == KRN_MAIL_GUESSED;
    const rule rules[] = {
        {"kind is unknown", a->kind >= KRN_MAIL_ROUTED && a->kind <= KRN_MAIL_DONE},
        {"n_experts is 0 or over KRN_MAX_EXPERTS",
         !names_experts || (a->n_experts > 0 && a->n_experts <= KRN_MAX_EXPERTS)},
        {"offsets is NULL", !names_experts || a->all_experts || a->offsets != NULL},
        {"counter is NULL", a->counter != NULL},
        {"ring is NULL", a->ring != NULL},
        {"depth is not a power of two", a->depth > 0 && (a->depth & (a->depth - 1)) == 0},
    };
    return check("publish", rules, N_RULES(rules), err);
}

moe_status krn_route_check(const krn_route_args *a, moe_err *err)
{
    const krn_gate_topk_args *g = &a->gate;
    const krn_dispatch_args *d = &a->dispatch;
    const rule rules[] = {
        {"n_rows differ", g->n_rows == d->n_rows},
        {"n_experts differ", g->n_experts == d->n_experts},
        {"top_k differ", g->top_k == d->top_k},
        {"the norm is of other rows than the gate",
         a->norm.x == NULL ||
             (a->norm.y == g->h && a->norm.n_rows == g->n_rows && a->norm.d_model == g->d_model)},
        {"n_mails is over KRN_MAX_ROUTE_MAILS", a->n_mails <= KRN_MAX_ROUTE_MAILS},
        {"scratch is NULL", a->scratch != NULL},
    };
    moe_status st = check("route", rules, N_RULES(rules), err);
    if (st == MOE_OK && a->norm.x != NULL) {
        st = krn_rms_norm_check(&a->norm, err);
    }
    if (st == MOE_OK) {
        st = krn_gate_topk_check(g, err);
    }
    if (st == MOE_OK) {
        st = krn_dispatch_check(d, err);
    }
    for (uint32_t i = 0; i < a->n_mails && st == MOE_OK; i++) {
        st = krn_publish_check(&a->mail[i], err);
    }
    return st;
}

moe_status krn_expert_ffn_check(const krn_expert_ffn_args *a, moe_err *err)
{
    const rule rules[] = {
        {"d_model is 0", a->d_model > 0},
        {"d_ff is 0", a->d_ff > 0},
        {"n_experts is 0 or over KRN_MAX_EXPERTS",
         a->n_experts > 0 && a->n_experts <= KRN_MAX_EXPERTS},
        {"n_rows is too large", pairs_fit(a->n_rows, 1)},
        {"w_dtype is not f32 or bf16", is_weight_dtype(a->w_dtype)},
        {"act is unknown", is_act(a->act)},
        {"h is NULL", a->h != NULL},
        {"neither wave nor weights_of, or both", (a->wave == NULL) != (a->weights_of == NULL)},
        {"routing.ids is NULL", a->routing.ids != NULL},
        {"routing.weights is NULL", a->routing.weights != NULL},
        {"routing.order is NULL", a->routing.order != NULL},
        {"routing.offsets is NULL", a->routing.offsets != NULL},
        {"x is NULL", a->x != NULL},
        {"scratch is NULL", a->scratch != NULL},
        {"row_failed is NULL", a->row_failed != NULL},
    };
    return check("expert_ffn", rules, N_RULES(rules), err);
}

moe_status krn_argmax_check(const krn_argmax_args *a, moe_err *err)
{
    const rule rules[] = {
        {"vocab is 0 or too large", a->vocab > 0 && a->vocab <= INT32_MAX},
        {"logits is NULL", a->logits != NULL},
        {"out is NULL", a->out != NULL},
    };
    return check("argmax", rules, N_RULES(rules), err);
}
