/* calibrate.c - see calibrate.h: the fits. The subcommand around them: calibrate_run.c. */
#include "gpu-worker/quality/calibrate.h"

#include <stdlib.h>
#include <string.h>

#include "gpu-worker/quality/fit.h"

static const double lambdas[] = {1e-5, 1e-4, 1e-3, 1e-2, 1e-1};
/* Found on the demo model; a finer search moves recall by less than its spread over seeds. */
static const gw_logistic_cfg logistic = {.n_epochs = 12, .batch = 64, .rate = 2e-3};

/* What one prediction is fitted to. */
typedef struct fit_data {
    gw_fit_set fit, validation;
    const float **x; /* owned, both parts */
    uint16_t *y;     /* owned */
} fit_data;

static void free_data(fit_data *d)
{
    free(d->x);
    free(d->y);
}

static void add_sequences(const gw_calibrate_cfg *cfg, const gw_prediction *p, uint32_t first,
                          uint32_t end, fit_data *d, uint32_t *n)
{
    const gw_stack_samples *s = &cfg->samples->stack[p->stack];
    for (uint32_t i = first; i < end; i++) {
        for (uint32_t t = s->sequence_starts[i]; t < s->sequence_starts[i + 1]; t++) {
            if (p->next_token && t == s->sequence_starts[i]) {
                continue;
            }
            d->x[*n] = gw_gate_at(cfg->samples, p->stack, p->source, p->next_token ? t - 1 : t);
            d->y[(*n)++] = s->experts[p->target][t];
        }
    }
}

static moe_status gather(const gw_calibrate_cfg *cfg, const gw_prediction *p, fit_data *out,
                         moe_err *err)
{
    fit_data d = {.x = NULL};
    uint32_t n_tokens = cfg->samples->stack[p->stack].n, n_fit = 0, n = 0;
    d.x = calloc((size_t)n_tokens + 1, sizeof *d.x);
    d.y = calloc((size_t)n_tokens + 1, sizeof *d.y);
    if (d.x == NULL || d.y == NULL) {
        free_data(&d);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a list of %u tokens", n_tokens);
    }
    add_sequences(cfg, p, 0, cfg->n_fit, &d, &n_fit);
    n = n_fit;
    add_sequences(cfg, p, cfg->n_fit, cfg->n_validation, &d, &n);
    d.fit = (gw_fit_set){.n = n_fit,
                         .d = cfg->shape->d_model,
                         .n_classes = cfg->shape->n_experts,
                         .x = d.x,
                         .y = d.y};
    d.validation = d.fit;
    d.validation.n = n - n_fit;
    d.validation.x = d.x + n_fit;
    d.validation.y = d.y + n_fit;
    *out = d;
    return MOE_OK;
}

/* ---- fitting --------------------------------------------------------------------------------- */

typedef struct contest {
    gw_linear best; /* owned */
    gw_fit_kind kind;
    double top1; /* on the validation part */
} contest;

static void enter(contest *c, const gw_linear *candidate, gw_fit_kind kind, const gw_fit_set *judge)
{
    double top1 = gw_linear_top1(candidate, judge);
    if (top1 > c->top1) {
        gw_linear_copy(&c->best, candidate);
        c->kind = kind;
        c->top1 = top1;
    }
}

static moe_status try_ridge(const fit_data *d, const gw_gram *gram, gw_linear *scratch, contest *c,
                            moe_err *err)
{
    for (size_t i = 0; i < sizeof lambdas / sizeof lambdas[0]; i++) {
        moe_status st = gw_fit_ridge(gram, &d->fit, lambdas[i], scratch, err);
        if (st == MOE_OK) {
            enter(c, scratch, GW_FIT_RIDGE, &d->validation);
        } else if (st != MOE_ERR_INVALID) { /* singular: a larger lambda will do */
            return st;
        }
    }
    return MOE_OK;
}

static moe_status fit_one(const gw_calibrate_cfg *cfg, const fit_data *d, const gw_gram *gram,
                          const gw_linear *start, contest *c, moe_err *err)
{
    gw_linear scratch = {0};
    moe_status st = gw_linear_init(d->fit.d, d->fit.n_classes, &scratch, err);
    if (st == MOE_OK) {
        st = try_ridge(d, gram, &scratch, c, err);
    }
    if (st == MOE_OK) {
        gw_logistic_cfg how = logistic;
        how.seed = cfg->seed;
        gw_linear_copy(&scratch, start);
        st = gw_fit_logistic(&d->fit, &d->validation, &how, &scratch, err);
    }
    if (st == MOE_OK) {
        enter(c, &scratch, GW_FIT_LOGISTIC, &d->validation);
    }
    gw_linear_fini(&scratch);
    return st;
}

/* ---- judging --------------------------------------------------------------------------------- */

typedef struct judge {
    const gw_calibrate_cfg *cfg;
    const gw_prediction *p;
    const gw_linear *linear; /* of guess_linear */
    double *frequency;       /* [n_experts] owned: share of the fitting part's tokens */
} judge;

static void guess_linear(void *user, const gw_guess_place *at, double *scores)
{
    const judge *j = user;
    const float *h = gw_gate_at(j->cfg->samples, j->p->stack, j->p->source, at->source);
    gw_linear_scores(j->linear, h, scores);
}

static void guess_frequency(void *user, const gw_guess_place *at, double *scores)
{
    const judge *j = user;
    (void)at;
    memcpy(scores, j->frequency, j->cfg->shape->n_experts * sizeof *scores);
}

/* Latest first; those not used yet by frequency, which is below 1. */
static void guess_previous(void *user, const gw_guess_place *at, double *scores)
{
    const judge *j = user;
    const uint16_t *experts = j->cfg->samples->stack[j->p->stack].experts[j->p->target];
    guess_frequency(user, at, scores);
    for (uint32_t t = at->first; t < at->target; t++) {
        scores[experts[t]] = 2.0 + t - at->first;
    }
}

static moe_status count_frequency(const gw_calibrate_cfg *cfg, const fit_data *d, judge *j,
                                  moe_err *err)
{
    j->frequency = calloc(cfg->shape->n_experts, sizeof *j->frequency);
    if (j->frequency == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "frequencies of %u experts", cfg->shape->n_experts);
    }
    for (uint32_t i = 0; i < d->fit.n; i++) {
        j->frequency[d->fit.y[i]] += 1.0 / d->fit.n;
    }
    return MOE_OK;
}

static moe_status count(const judge *j, gw_guess_fn guess, gw_recall *out, moe_err *err)
{
    const gw_calibrate_cfg *cfg = j->cfg;
    return gw_recall_count(cfg->samples, j->p, cfg->shape->n_experts, cfg->n_validation,
                           cfg->samples->n_sequences, guess, (void *)(uintptr_t)j, out, err);
}

static moe_status judge_all(judge *j, const gw_linear *start, const gw_linear *best,
                            gw_calibrated *out, moe_err *err)
{
    j->linear = start;
    moe_status st = count(j, guess_linear, &out->start, err);
    if (st == MOE_OK) {
        j->linear = best;
        st = count(j, guess_linear, &out->recall, err);
    }
    if (st == MOE_OK && j->p->stack == MOE_DECODER) { /* the encoder takes all tokens at once */
        st = count(j, guess_previous, &out->previous, err);
    }
    return st == MOE_OK ? count(j, guess_frequency, &out->frequency, err) : st;
}

/* ---- all of them ----------------------------------------------------------------------------- */

static moe_status keep_rows(const gw_linear *l, gw_fitted *out, moe_err *err)
{
    out->weight = malloc((size_t)l->n_classes * l->d * sizeof *out->weight);
    if (out->weight == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a predictor of %u by %u", l->d, l->n_classes);
    }
    gw_linear_to_rows(l, out->weight);
    return MOE_OK;
}

static moe_status calibrate_one(const gw_calibrate_cfg *cfg, const fit_data *d, const gw_gram *gram,
                                gw_calibrated *out, moe_err *err)
{
    const gw_prediction *p = &out->fitted.what;
    contest c = {.kind = GW_FIT_START};
    gw_linear start = {0};
    judge j = {.cfg = cfg, .p = p};
    moe_status st = gw_linear_init(d->fit.d, d->fit.n_classes, &start, err);
    if (st == MOE_OK) {
        st = gw_linear_init(d->fit.d, d->fit.n_classes, &c.best, err);
    }
    if (st == MOE_OK) {
        gw_linear_from_rows(&start, cfg->routers[moe_flat_block(cfg->shape, p->stack, p->target)]);
        gw_linear_copy(&c.best, &start);
        c.top1 = gw_linear_top1(&start, &d->validation);
        st = fit_one(cfg, d, gram, &start, &c, err);
    }
    if (st == MOE_OK) {
        st = count_frequency(cfg, d, &j, err);
    }
    if (st == MOE_OK) {
        st = judge_all(&j, &start, &c.best, out, err);
    }
    if (st == MOE_OK) {
        out->kind = c.kind;
        st = keep_rows(&c.best, &out->fitted, err);
    }
    free(j.frequency);
    gw_linear_fini(&start);
    gw_linear_fini(&c.best);
    return st;
}

/* Two of a block's targets share their inputs when both or neither lie in the next token. */
static moe_status calibrate_block(const gw_calibrate_cfg *cfg, moe_stack stack, uint32_t source,
                                  gw_calibration *out, moe_err *err)
{
    gw_gram grams[2] = {{0}, {0}};
    moe_status st = MOE_OK;
    for (uint32_t n = 1; n <= cfg->lookahead && st == MOE_OK; n++) {
        gw_calibrated *item = &out->items[out->n];
        fit_data d = {.x = NULL};
        if (!gw_prediction_of(cfg->shape, stack, source, n, &item->fitted.what)) {
            continue;
        }
        out->n++;
        gw_gram *gram = &grams[item->fitted.what.next_token];
        st = gather(cfg, &item->fitted.what, &d, err);
        if (st == MOE_OK && gram->xx == NULL) {
            st = gw_gram_init(&d.fit, gram, err);
        }
        if (st == MOE_OK) {
            st = calibrate_one(cfg, &d, gram, item, err);
        }
        free_data(&d);
    }
    gw_gram_fini(&grams[0]);
    gw_gram_fini(&grams[1]);
    return st;
}

moe_status gw_calibrate(const gw_calibrate_cfg *cfg, gw_calibration *out, moe_err *err)
{
    gw_calibration c = {.n = 0};
    c.items = calloc((size_t)cfg->shape->n_blocks_total * cfg->lookahead + 1, sizeof *c.items);
    if (c.items == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a list of predictors");
    }
    moe_status st = MOE_OK;
    for (int stack = 0; stack < MOE_N_STACKS; stack++) {
        for (uint32_t b = 0; b < cfg->shape->stack[stack].n_blocks && st == MOE_OK; b++) {
            st = calibrate_block(cfg, (moe_stack)stack, b, &c, err);
        }
    }
    if (st != MOE_OK) {
        gw_calibration_fini(&c);
        return st;
    }
    *out = c;
    return MOE_OK;
}

void gw_calibration_fini(gw_calibration *c)
{
    for (uint32_t i = 0; i < c->n; i++) {
        free(c->items[i].fitted.weight);
    }
    free(c->items);
    *c = (gw_calibration){0};
}
