/* fit.c - see fit.h. Loops run over classes innermost, so that they vectorise without changing the
 * order of any sum. */
#include "gpu-worker/quality/fit.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { GRAM_ROWS = 8 }; /* samples added to the matrix in one pass over it */

/* ---- a predictor ----------------------------------------------------------------------------- */

static size_t n_params(const gw_linear *l)
{
    return (size_t)l->d * l->n_classes;
}

moe_status gw_linear_init(uint32_t d, uint32_t n_classes, gw_linear *out, moe_err *err)
{
    gw_linear l = {.d = d, .n_classes = n_classes};
    l.w = calloc(n_params(&l), sizeof *l.w);
    if (l.w == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a predictor of %u by %u", d, n_classes);
    }
    *out = l;
    return MOE_OK;
}

void gw_linear_fini(gw_linear *l)
{
    free(l->w);
    *l = (gw_linear){0};
}

void gw_linear_copy(gw_linear *to, const gw_linear *from)
{
    MOE_ASSERT(to->d == from->d && to->n_classes == from->n_classes);
    memcpy(to->w, from->w, n_params(from) * sizeof *to->w);
}

void gw_linear_from_rows(gw_linear *l, const float *rows)
{
    for (uint32_t c = 0; c < l->n_classes; c++) {
        for (uint32_t i = 0; i < l->d; i++) {
            l->w[(size_t)i * l->n_classes + c] = (double)rows[(size_t)c * l->d + i];
        }
    }
}

void gw_linear_to_rows(const gw_linear *l, float *out_rows)
{
    for (uint32_t c = 0; c < l->n_classes; c++) {
        for (uint32_t i = 0; i < l->d; i++) {
            out_rows[(size_t)c * l->d + i] = (float)l->w[(size_t)i * l->n_classes + c];
        }
    }
}

/* to += scale * from */
static void add_scaled(double *to, const double *from, double scale, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        to[i] += scale * from[i];
    }
}

void gw_linear_scores(const gw_linear *l, const float *x, double *out)
{
    uint32_t n = l->n_classes;
    memset(out, 0, n * sizeof *out);
    for (uint32_t i = 0; i < l->d; i++) {
        add_scaled(out, l->w + (size_t)i * n, (double)x[i], n);
    }
}

uint32_t gw_rank_of(const double *scores, uint32_t n_classes, uint32_t y)
{
    uint32_t rank = 0;
    for (uint32_t c = 0; c < n_classes; c++) {
        rank += scores[c] > scores[y] || (scores[c] == scores[y] && c < y);
    }
    return rank;
}

double gw_linear_top1(const gw_linear *l, const gw_fit_set *s)
{
    double scores[GW_MAX_CLASSES];
    MOE_ASSERT(s->n_classes <= GW_MAX_CLASSES);
    uint32_t n_right = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        gw_linear_scores(l, s->x[i], scores);
        n_right += gw_rank_of(scores, s->n_classes, s->y[i]) == 0;
    }
    return s->n > 0 ? (double)n_right / s->n : 0.0;
}

/* ---- ridge regression ------------------------------------------------------------------------ */

/* Adds up to GRAM_ROWS samples: one pass over the matrix instead of as many. */
static void add_outer(double *xx, uint32_t d, const float *const *x, uint32_t n)
{
    for (uint32_t i = 0; i < d; i++) {
        double *row = xx + (size_t)i * d;
        for (uint32_t k = 0; k < n; k++) {
            double xi = (double)x[k][i];
            for (uint32_t j = 0; j <= i; j++) {
                row[j] += xi * (double)x[k][j];
            }
        }
    }
}

moe_status gw_gram_init(const gw_fit_set *s, gw_gram *out, moe_err *err)
{
    double *xx = calloc((size_t)s->d * s->d, sizeof *xx);
    if (xx == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a matrix of %u by %u", s->d, s->d);
    }
    for (uint32_t i = 0; i < s->n; i += GRAM_ROWS) {
        uint32_t left = s->n - i;
        add_outer(xx, s->d, s->x + i, left < GRAM_ROWS ? left : GRAM_ROWS);
    }
    *out = (gw_gram){.d = s->d, .xx = xx};
    return MOE_OK;
}

void gw_gram_fini(gw_gram *g)
{
    free(g->xx);
    *g = (gw_gram){0};
}

/* a = L L^T in place, lower triangle, n by n. False: not positive definite. */
static bool factor(double *a, uint32_t n)
{
    for (uint32_t j = 0; j < n; j++) {
        double *row_j = a + (size_t)j * n;
        for (uint32_t i = j; i < n; i++) {
            double *row_i = a + (size_t)i * n;
            double sum = row_i[j];
            for (uint32_t k = 0; k < j; k++) {
                sum -= row_i[k] * row_j[k];
            }
            if (i > j) {
                row_i[j] = sum / row_j[j];
            } else if (sum > 0.0 && isfinite(sum)) {
                row_j[j] = sqrt(sum);
            } else {
                return false;
            }
        }
    }
    return true;
}

/* L L^T b = b in place for m right sides: b is [n][m]. */
static void solve(const double *l, uint32_t n, double *b, uint32_t m)
{
    for (uint32_t i = 0; i < n; i++) {
        double *row = b + (size_t)i * m;
        for (uint32_t k = 0; k < i; k++) {
            add_scaled(row, b + (size_t)k * m, -l[(size_t)i * n + k], m);
        }
        for (uint32_t c = 0; c < m; c++) {
            row[c] /= l[(size_t)i * n + i];
        }
    }
    for (uint32_t i = n; i-- > 0;) {
        double *row = b + (size_t)i * m;
        for (uint32_t k = i + 1; k < n; k++) {
            add_scaled(row, b + (size_t)k * m, -l[(size_t)k * n + i], m);
        }
        for (uint32_t c = 0; c < m; c++) {
            row[c] /= l[(size_t)i * n + i];
        }
    }
}

/* X^T Y into out->w. */
static void targets(const gw_fit_set *s, gw_linear *out)
{
    memset(out->w, 0, n_params(out) * sizeof *out->w);
    for (uint32_t i = 0; i < s->n; i++) {
        double *column = out->w + s->y[i];
        for (uint32_t k = 0; k < s->d; k++) {
            column[(size_t)k * s->n_classes] += (double)s->x[i][k];
        }
    }
}

moe_status gw_fit_ridge(const gw_gram *g, const gw_fit_set *s, double lambda, gw_linear *out,
                        moe_err *err)
{
    MOE_ASSERT(g->d == s->d && out->d == s->d && out->n_classes == s->n_classes);
    uint32_t side = s->d;
    double *l = malloc((size_t)side * side * sizeof *l);
    if (l == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a matrix of %u by %u", side, side);
    }
    memcpy(l, g->xx, (size_t)side * side * sizeof *l);
    double trace = 0.0;
    for (uint32_t i = 0; i < side; i++) {
        trace += l[(size_t)i * side + i];
    }
    for (uint32_t i = 0; i < side; i++) {
        l[(size_t)i * side + i] += lambda * trace / side;
    }
    moe_status st = MOE_OK;
    if (factor(l, side)) {
        targets(s, out);
        solve(l, side, out->w, s->n_classes);
    } else {
        st = MOE_FAIL(err, MOE_ERR_INVALID, "%u samples of %u dims with lambda %g: singular", s->n,
                      s->d, lambda);
    }
    free(l);
    return st;
}

/* ---- logistic regression --------------------------------------------------------------------- */

typedef struct trainer {
    const gw_fit_set *fit;
    const gw_logistic_cfg *cfg;
    gw_linear now;                    /* owned, like the rest */
    double *gradient, *mean, *square; /* [n_params] */
    double *p;                        /* [n_classes] */
    uint32_t *order;                  /* [fit->n] */
    uint64_t random;
    uint64_t n_steps;
} trainer;

/* splitmix64 */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static void shuffle(trainer *t)
{
    for (uint32_t i = t->fit->n; i > 1; i--) {
        uint32_t k = (uint32_t)(next_random(&t->random) % i);
        uint32_t other = t->order[k];
        t->order[k] = t->order[i - 1];
        t->order[i - 1] = other;
    }
}

static void softmax(double *p, uint32_t n)
{
    double largest = p[0], sum = 0.0;
    for (uint32_t c = 1; c < n; c++) {
        largest = p[c] > largest ? p[c] : largest;
    }
    for (uint32_t c = 0; c < n; c++) {
        p[c] = exp(p[c] - largest);
        sum += p[c];
    }
    for (uint32_t c = 0; c < n; c++) {
        p[c] /= sum;
    }
}

/* gradient += d(-ln p[y]) / dw of one sample */
static void add_gradient(trainer *t, uint32_t sample)
{
    const float *x = t->fit->x[sample];
    uint32_t n = t->fit->n_classes, d = t->fit->d;
    gw_linear_scores(&t->now, x, t->p);
    softmax(t->p, n);
    t->p[t->fit->y[sample]] -= 1.0;
    for (uint32_t i = 0; i < d; i++) {
        add_scaled(t->gradient + (size_t)i * n, t->p, (double)x[i], n);
    }
}

/* Adam (Kingma and Ba, 2015) with its usual constants. */
static void step(trainer *t, uint32_t n_samples, double rate)
{
    static const double keep_mean = 0.9, keep_square = 0.999, tiny = 1e-8;
    t->n_steps++;
    double mean_scale = 1.0 / (1.0 - pow(keep_mean, (double)t->n_steps));
    double square_scale = 1.0 / (1.0 - pow(keep_square, (double)t->n_steps));
    size_t n = n_params(&t->now);
    for (size_t i = 0; i < n; i++) {
        double g = t->gradient[i] / n_samples;
        t->mean[i] = keep_mean * t->mean[i] + (1.0 - keep_mean) * g;
        t->square[i] = keep_square * t->square[i] + (1.0 - keep_square) * g * g;
        t->now.w[i] -= rate * t->mean[i] * mean_scale / (sqrt(t->square[i] * square_scale) + tiny);
    }
}

static void run_epoch(trainer *t, uint32_t epoch)
{
    const gw_logistic_cfg *cfg = t->cfg;
    uint32_t n = t->fit->n;
    shuffle(t);
    for (uint32_t at = 0; at < n; at += cfg->batch) {
        uint32_t end = n - at < cfg->batch ? n : at + cfg->batch;
        memset(t->gradient, 0, n_params(&t->now) * sizeof *t->gradient);
        for (uint32_t i = at; i < end; i++) {
            add_gradient(t, t->order[i]);
        }
        double done = (epoch + (double)at / n) / cfg->n_epochs;
        step(t, end - at, cfg->rate * (1.0 - done));
    }
}

static void fini_trainer(trainer *t)
{
    gw_linear_fini(&t->now);
    free(t->gradient);
    free(t->mean);
    free(t->square);
    free(t->p);
    free(t->order);
}

static moe_status init_trainer(trainer *t, const gw_fit_set *fit, const gw_logistic_cfg *cfg,
                               moe_err *err)
{
    *t = (trainer){.fit = fit, .cfg = cfg, .random = cfg->seed};
    moe_status st = gw_linear_init(fit->d, fit->n_classes, &t->now, err);
    if (st != MOE_OK) {
        return st;
    }
    size_t n = n_params(&t->now);
    t->gradient = calloc(n, sizeof *t->gradient);
    t->mean = calloc(n, sizeof *t->mean);
    t->square = calloc(n, sizeof *t->square);
    t->p = calloc(fit->n_classes, sizeof *t->p);
    t->order = calloc((size_t)fit->n + 1, sizeof *t->order);
    if (t->gradient == NULL || t->mean == NULL || t->square == NULL || t->p == NULL ||
        t->order == NULL) {
        fini_trainer(t);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a fit over %u samples", fit->n);
    }
    for (uint32_t i = 0; i < fit->n; i++) {
        t->order[i] = i;
    }
    return MOE_OK;
}

moe_status gw_fit_logistic(const gw_fit_set *fit, const gw_fit_set *validation,
                           const gw_logistic_cfg *cfg, gw_linear *out, moe_err *err)
{
    MOE_ASSERT(out->d == fit->d && out->n_classes == fit->n_classes && cfg->batch > 0);
    trainer t;
    moe_status st = init_trainer(&t, fit, cfg, err);
    if (st != MOE_OK) {
        return st;
    }
    gw_linear_copy(&t.now, out);
    double best = gw_linear_top1(out, validation);
    for (uint32_t epoch = 0; epoch < cfg->n_epochs && fit->n > 0; epoch++) {
        run_epoch(&t, epoch);
        double top1 = gw_linear_top1(&t.now, validation);
        if (top1 > best) {
            best = top1;
            gw_linear_copy(out, &t.now);
        }
    }
    fini_trainer(&t);
    return MOE_OK;
}
