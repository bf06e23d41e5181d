/* fit.h - linear predictors: from an input x[d] to one of n_classes, score = W^T x.
 *
 * Two ways to fit one. Ridge regression on one-hot targets, closed form:
 *   W = (X^T X + lambda * mean(diag X^T X) * I)^-1 X^T Y
 * and multinomial logistic regression: minibatches, Adam, from a given start; the epoch that ranks
 * the validation samples best is kept. No bias: gates have none, and on the demo model it moves no
 * recall by more than 0.001. Everything is double; the order of samples comes from the
 * seed, so equal inputs give equal bits. Pure but for memory; any thread.
 */
#ifndef GW_FIT_H
#define GW_FIT_H

#include <stdint.h>

#include "common/status.h"

enum { GW_MAX_CLASSES = 512 };

typedef struct gw_fit_set {
    uint32_t n, d, n_classes; /* n_classes <= GW_MAX_CLASSES */
    const float *const *x;    /* [n] rows of [d], borrowed */
    const uint16_t *y;        /* [n] below n_classes, borrowed */
} gw_fit_set;

typedef struct gw_linear {
    uint32_t d, n_classes;
    double *w; /* [d][n_classes] owned */
} gw_linear;
MOE_MUST_CHECK moe_status gw_linear_init(uint32_t d, uint32_t n_classes, gw_linear *out,
                                         moe_err *err);    /* all 0 */
void gw_linear_fini(gw_linear *l);                         /* accepts zeroed */
void gw_linear_copy(gw_linear *to, const gw_linear *from); /* equal dims */
/* rows: [n_classes][d], as tensors are stored; and back. */
void gw_linear_from_rows(gw_linear *l, const float *rows);
void gw_linear_to_rows(const gw_linear *l, float *out_rows);
void gw_linear_scores(const gw_linear *l, const float *x, double *out); /* [n_classes] */
/* How many classes come before y: higher scores, or the same and a lower number. */
uint32_t gw_rank_of(const double *scores, uint32_t n_classes, uint32_t y);
/* Share of samples whose class is ranked first. */
double gw_linear_top1(const gw_linear *l, const gw_fit_set *s);

/* X^T X of some samples, made once for all targets that share them. */
typedef struct gw_gram {
    uint32_t d;
    double *xx; /* [d][d] owned, lower triangle */
} gw_gram;
MOE_MUST_CHECK moe_status gw_gram_init(const gw_fit_set *s, gw_gram *out, moe_err *err);
void gw_gram_fini(gw_gram *g); /* accepts zeroed */
/* out: initialised with the dims of s. MOE_ERR_INVALID: the matrix is not positive definite. */
MOE_MUST_CHECK moe_status gw_fit_ridge(const gw_gram *g, const gw_fit_set *s, double lambda,
                                       gw_linear *out, moe_err *err);

typedef struct gw_logistic_cfg {
    uint32_t n_epochs, batch;
    double rate; /* Adam's, falls to 0 over the epochs */
    uint64_t seed;
} gw_logistic_cfg;
/* out: starts with what it holds and ends with the best epoch, the start included. */
MOE_MUST_CHECK moe_status gw_fit_logistic(const gw_fit_set *fit, const gw_fit_set *validation,
                                          const gw_logistic_cfg *cfg, gw_linear *out, moe_err *err);

#endif
