/* calibrate.h - `gpu-worker calibrate`: predictors for the ordinary checkpoint a store serves.
 *
 *   --pairs FILE       text to fit on (pairs.h); --limit N: only its first pairs
 *   --held-out FILE    text to judge on; without it the last tenth of --pairs
 *   --decoding forced  the decoder is fed the references; greedy: its own answers
 *   --lookahead N      fit guesses 1 to N blocks ahead (prediction.h)
 *   --seed S           order of samples in the gradient fit
 *   --out FILE         the predictors, for `expert-pack add`; without it they are only judged
 *   --json             one JSON object instead of a table
 * The text runs through the engine once, any backend and policy; records (engine.h) bring every
 * gate's input h and every choice. The last eighth of the sequences to fit on validates. For each
 * prediction there are three candidates: the untrained start (the target block's router on this h),
 * ridge regression and logistic regression from that start; the one whose first guess is right most
 * often on the validation part is kept. On the held-out part it stands beside the start, the
 * previous-token guess (the experts this sequence used there, latest first; decoder only) and the
 * frequency guess (the experts used most on the fitting part). Main thread; engine callbacks only
 * collect. Exit code 1 after an error, which is logged.
 */
#ifndef GW_CALIBRATE_H
#define GW_CALIBRATE_H

#include "gpu-worker/quality/gate_samples.h"
#include "gpu-worker/quality/predictor_file.h"
#include "gpu-worker/quality/recall.h"
#include "gpu-worker/worker.h"

typedef enum gw_fit_kind { GW_FIT_START = 0, GW_FIT_RIDGE, GW_FIT_LOGISTIC } gw_fit_kind;

typedef struct gw_calibrated {
    gw_fitted fitted;
    gw_fit_kind kind;                             /* who won */
    gw_recall recall, start, previous, frequency; /* previous: n is 0 in the encoder */
} gw_calibrated;

typedef struct gw_calibration {
    gw_calibrated *items; /* [n] owned */
    uint32_t n;
} gw_calibration;
void gw_calibration_fini(gw_calibration *c); /* accepts zeroed */

/* Sequences [0, n_fit) fit, [n_fit, n_validation) validate, the rest are held out. */
typedef struct gw_calibrate_cfg {
    const gw_gate_samples *samples; /* borrowed */
    const moe_model_shape *shape;   /* borrowed */
    const float *const *routers;    /* [n_blocks_total] of [n_experts][d_model], borrowed */
    uint32_t n_fit, n_validation;
    uint32_t lookahead;
    uint64_t seed;
} gw_calibrate_cfg;
/* Fits and judges every prediction of both stacks, in order of stack, source and lookahead. */
MOE_MUST_CHECK moe_status gw_calibrate(const gw_calibrate_cfg *cfg, gw_calibration *out,
                                       moe_err *err);

#endif
