/* eval.h - `gpu-worker eval`: how good the store's model is on a file of pairs, under any policy.
 *
 *   --pairs FILE   pairs.h; pairs with more tokens than a prompt or an answer may have are skipped
 *   --limit N      only the first N pairs
 *   --json         one JSON object instead of a table
 * Each pair runs twice, batched with all others: once with the reference forced, for the loss (mean
 * -ln p of the reference's tokens, end token included), once greedily, for the rest (score.h). The
 * answer of the greedy run has at most max_output_tokens tokens. The scores of the inputs
 * themselves stand beside: what doing nothing would get.
 * Main thread; engine callbacks only collect. Exit code 1 after an error, which is logged.
 */
#ifndef GW_EVAL_H
#define GW_EVAL_H

#include "gpu-worker/quality/pairs.h"
#include "gpu-worker/quality/score.h"
#include "gpu-worker/worker.h"

/* What became of experts meanwhile: sums over all blocks of what gw_engine_metrics counts. */
typedef struct gw_eval_traffic {
    double cell_hits, cell_late, cell_misses;
    double copy_bytes, copy_seconds, copy_hidden_seconds;
    double guesses_used, guesses_wasted, guessed_bytes_wasted;
} gw_eval_traffic;

typedef struct gw_eval {
    gw_score answers, inputs;
    gw_eval_traffic traffic;
    double sum_logprob; /* of the references' tokens */
    uint64_t n_tokens, n_skipped;
    double seconds;
} gw_eval;

/* Scores every pair. *out is what was added up, also after an error. */
MOE_MUST_CHECK moe_status gw_eval_run(const gw_config *cfg, gw_worker *w, const gw_pairs *pairs,
                                      gw_eval *out, moe_err *err);

#endif
