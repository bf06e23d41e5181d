/* checkpoint_check.c - see checkpoint_check.h. Called by checkpoint.c at open.
 *
 * Order of the checks: first what is there but should not be, because that names the cause
 * (config.json and the tensors disagree on which layers are sparse), then what is missing or has
 * the wrong form.
 */
#include "expert-store/pack/checkpoint_check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expert-store/catalog/tensor_names.h"

static int by_name(const void *key, const void *item)
{
    return strcmp(key, ((const xs_ck_tensor *)item)->t->name);
}

xs_ck_tensor *xs_ck_find(const xs_ck_list *list, const char *name)
{
    return bsearch(name, list->items, list->n, sizeof *list->items, by_name);
}

static const char *const tied_names[] = {"lm_head.weight", "encoder.embed_tokens.weight",
                                         "decoder.embed_tokens.weight"};
enum { N_TIED = sizeof tied_names / sizeof tied_names[0] };

static bool is_tied_name(const char *name)
{
    for (int i = 0; i < N_TIED; i++) {
        if (strcmp(name, tied_names[i]) == 0) {
            return true;
        }
    }
    return false;
}

xs_ck_tensor *xs_ck_find_dense(const xs_ck_list *list, const moe_model_shape *s, const char *name)
{
    xs_ck_tensor *found = xs_ck_find(list, name);
    bool alias = s->tied_head && strcmp(name, "shared.weight") == 0;
    for (int i = 0; found == NULL && alias && i < N_TIED; i++) {
        found = xs_ck_find(list, tied_names[i]);
    }
    return found;
}

/* ---- what should not be there ---- */

/* "encoder.block.3.layer.1.mlp.wi.weight" taken apart. */
typedef struct mlp_name {
    moe_stack stack;
    uint32_t layer;
    const char *rest; /* "wi.weight", in the name */
} mlp_name;

static bool parse_layer(const char *name, mlp_name *out, const char **out_rest)
{
    char stack[8] = "";
    int at = 0;
    if (sscanf(name, "%7[a-z].block.%u.%n", stack, &out->layer, &at) != 2 || at == 0) {
        return false;
    }
    if (strcmp(stack, "encoder") != 0 && strcmp(stack, "decoder") != 0) {
        return false;
    }
    out->stack = stack[0] == 'e' ? MOE_ENCODER : MOE_DECODER;
    *out_rest = name + at;
    return true;
}

static bool parse_mlp(const char *name, mlp_name *out)
{
    const char *rest = NULL;
    if (!parse_layer(name, out, &rest)) {
        return false;
    }
    const char *mlp = out->stack == MOE_ENCODER ? "layer.1.mlp." : "layer.2.mlp.";
    if (strncmp(rest, mlp, strlen(mlp)) != 0) {
        return false;
    }
    out->rest = rest + strlen(mlp);
    return true;
}

static bool begins(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

static const char *stack_name(moe_stack stack)
{
    return stack == MOE_ENCODER ? "encoder" : "decoder";
}

/* The reference implementation makes layer 1 sparse when it is told that no layer is. */
static moe_status disagree(const char *name, const mlp_name *m, const moe_model_shape *s,
                           moe_err *err)
{
    const char *stack = stack_name(m->stack);
    bool sparse = s->stack[m->stack].layer_is_moe[m->layer] != 0; /* by config.json */
    bool none = s->stack[m->stack].n_blocks == 0;
    return MOE_FAIL(err, MOE_ERR_FORMAT,
                    "tensor '%s': it makes layer %u of the %s %s, but by config.json "
                    "(num_sparse_%s_layers) that layer is %s: correct config.json%s",
                    name, m->layer, stack, sparse ? "dense" : "sparse", stack,
                    sparse ? "sparse" : "dense",
                    none && m->layer == 1 ? " (to 1, if only this layer is sparse)" : "");
}

static moe_status check_gate(const char *name, const mlp_name *m, const moe_model_shape *s,
                             moe_err *err)
{
    bool pregate = begins(m->rest, "pregate.");
    if (strcmp(m->rest, pregate ? "pregate.classifier.weight" : "router.classifier.weight") != 0) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "tensor '%s': only gates without bias are supported", name);
    }
    uint32_t block = 0;
    if (!xs_block_of_layer(s, m->stack, m->layer, &block)) {
        return disagree(name, m, s, err);
    }
    if (pregate && s->pregate_lookahead == 0) {
        return MOE_FAIL(err, MOE_ERR_FORMAT,
                        "tensor '%s': a pre-gate, but config.json describes an ordinary model; a "
                        "pre-gated one has \"pregate\": {\"lookahead\": 1} and the architecture "
                        "PregatedSwitchTransformersForConditionalGeneration",
                        name);
    }
    if (pregate ? !xs_block_has_pregate(s, m->stack, block) : !xs_block_has_router(s, block)) {
        return MOE_FAIL(err, MOE_ERR_FORMAT,
                        "tensor '%s': one gate too many: in a pre-gated model the first MoE block "
                        "of a stack has a router, and every block but the last a pre-gate",
                        name);
    }
    return MOE_OK;
}

static moe_status check_expert_name(const char *name, const mlp_name *m, const moe_model_shape *s,
                                    moe_err *err)
{
    uint32_t expert = 0;
    int at = 0;
    if (s->stack[m->stack].layer_is_moe[m->layer] == 0) {
        return disagree(name, m, s, err);
    }
    if (sscanf(m->rest, "experts.expert_%u.%n", &expert, &at) != 1 || at == 0 ||
        (strcmp(m->rest + at, "wi.weight") != 0 && strcmp(m->rest + at, "wo.weight") != 0)) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "tensor '%s': an expert has wi.weight and wo.weight only", name);
    }
    if (expert >= s->n_experts) {
        return MOE_FAIL(err, MOE_ERR_FORMAT,
                        "tensor '%s': config.json says num_experts is %u: correct config.json",
                        name, s->n_experts);
    }
    return MOE_OK;
}

static moe_status check_mlp_name(const char *name, const mlp_name *m, const moe_model_shape *s,
                                 moe_err *err)
{
    if (begins(m->rest, "experts.")) {
        return check_expert_name(name, m, s, err);
    }
    if (begins(m->rest, "router.") || begins(m->rest, "pregate.")) {
        return check_gate(name, m, s, err);
    }
    bool known = strcmp(m->rest, "wi.weight") == 0 || strcmp(m->rest, "wo.weight") == 0;
    if (known && s->stack[m->stack].layer_is_moe[m->layer] != 0) {
        return disagree(name, m, s, err);
    }
    return MOE_OK; /* what is not known is reported as unexpected */
}

/* Names that say how config.json and the checkpoint disagree. */
static moe_status check_name(const char *name, const moe_model_shape *s, moe_err *err)
{
    mlp_name m = {0};
    const char *rest = NULL;
    if (!parse_layer(name, &m, &rest)) {
        return MOE_OK;
    }
    if (m.layer >= s->stack[m.stack].n_layers) {
        return MOE_FAIL(err, MOE_ERR_FORMAT,
                        "tensor '%s': by config.json the %s has %u layers: correct config.json",
                        name, stack_name(m.stack), s->stack[m.stack].n_layers);
    }
    return parse_mlp(name, &m) ? check_mlp_name(name, &m, s, err) : MOE_OK;
}

/* Copies of shared.weight in a tied model, and a bias older T5 code stored and nobody reads. */
static bool is_ignorable(const char *name, const moe_model_shape *s)
{
    return (s->tied_head && is_tied_name(name)) ||
           strcmp(name, "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight") ==
               0;
}

static moe_status check_leftovers(const xs_ck_list *list, const moe_model_shape *s,
                                  uint32_t *out_n_ignored, moe_err *err)
{
    uint32_t n_ignored = 0;
    for (uint32_t i = 0; i < list->n; i++) {
        const char *name = list->items[i].t->name;
        if (list->items[i].used) {
            continue;
        }
        if (!is_ignorable(name, s)) {
            return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                            "tensor '%s' is no part of a Switch Transformer as config.json "
                            "describes it: leaving it out could change what the model computes",
                            name);
        }
        n_ignored++;
    }
    *out_n_ignored = n_ignored;
    return MOE_OK;
}

/* ---- what must be there ---- */

static moe_status check_form(const xs_ck_tensor *c, const char *name, uint32_t n_dims,
                             const uint32_t *dims, moe_err *err)
{
    const xs_st_tensor *t = c->t;
    if (t->dtype == 0) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "tensor '%s' has dtype %s: supported are F32, BF16 and F16", name,
                        t->dtype_name);
    }
    if (t->n_dims == n_dims && memcmp(t->dims, dims, n_dims * sizeof *dims) == 0) {
        return MOE_OK;
    }
    char want[32], have[64] = "";
    size_t at = 0;
    snprintf(want, sizeof want, n_dims == 2 ? "%u, %u" : "%u", dims[0], dims[1]);
    for (uint32_t d = 0; d < t->n_dims && at < sizeof have; d++) {
        at += (size_t)snprintf(have + at, sizeof have - at, "%s%u", d > 0 ? ", " : "", t->dims[d]);
    }
    return MOE_FAIL(err, MOE_ERR_FORMAT,
                    "tensor '%s' has shape [%s], config.json asks for [%s]: one of the two is of "
                    "another model",
                    name, have, want);
}

static moe_status require(xs_ck_tensor *c, const char *name, uint32_t n_dims, const uint32_t *dims,
                          moe_err *err)
{
    if (c == NULL) {
        return MOE_FAIL(err, MOE_ERR_NOT_FOUND,
                        "tensor '%s' is missing from the checkpoint: a shard was left out, or "
                        "config.json is of another model",
                        name);
    }
    moe_status st = check_form(c, c->t->name, n_dims, dims, err);
    if (st == MOE_OK) {
        c->used = true;
    }
    return st;
}

static moe_status check_dense(const xs_ck_list *list, const moe_model_shape *s, moe_err *err)
{
    xs_dense_tensor d;
    for (uint32_t i = 0; xs_dense_tensor_at(s, i, &d); i++) {
        xs_ck_tensor *c = xs_ck_find_dense(list, s, d.name);
        if (c == NULL && d.optional) {
            continue;
        }
        moe_status st = require(c, d.name, d.n_dims, d.dims, err);
        if (st != MOE_OK) {
            return st;
        }
    }
    return MOE_OK;
}

static moe_status check_experts(const xs_ck_list *list, const moe_model_shape *s, moe_err *err)
{
    const uint32_t wi[] = {s->d_ff, s->d_model}, wo[] = {s->d_model, s->d_ff};
    for (uint32_t i = 0; i < s->n_experts_total; i++) {
        moe_stack stack;
        uint32_t block, expert;
        char name[XS_TENSOR_NAME_BYTES];
        xs_expert_place(s, i, &stack, &block, &expert);
        xs_expert_tensor_name(s, stack, block, expert, "wi", name);
        moe_status st = require(xs_ck_find(list, name), name, 2, wi, err);
        if (st == MOE_OK) {
            xs_expert_tensor_name(s, stack, block, expert, "wo", name);
            st = require(xs_ck_find(list, name), name, 2, wo, err);
        }
        if (st != MOE_OK) {
            return st;
        }
    }
    return MOE_OK;
}

moe_status xs_ck_check(const xs_ck_list *list, const moe_model_shape *s, uint32_t *out_n_ignored,
                       moe_err *err)
{
    if (s->n_experts_total == 0) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "by config.json the model has no sparse layer, so there are no experts to "
                        "store");
    }
    moe_status st = MOE_OK;
    for (uint32_t i = 0; st == MOE_OK && i < list->n; i++) {
        st = check_name(list->items[i].t->name, s, err);
    }
    st = st != MOE_OK ? st : check_dense(list, s, err);
    st = st != MOE_OK ? st : check_experts(list, s, err);
    return st != MOE_OK ? st : check_leftovers(list, s, out_n_ignored, err);
}
