/* recall.h - how good guesses of experts are, over recorded tokens.
 *
 *   recall@k   share of tokens whose expert is among the k best guesses
 *   exact set  share of steps whose set of experts is exactly the set of all rows' best guesses;
 *              a step of the encoder is one prompt, one of the decoder the same position of
 *              GW_SET_ROWS sequences decoded together
 * With one choice per token recall@1 is also top-1 agreement, and the exact-set rate of a batch of
 * one. Pure but for memory; any thread.
 */
#ifndef GW_RECALL_H
#define GW_RECALL_H

#include <stdint.h>

#include "gpu-worker/fetch/prediction.h"
#include "gpu-worker/quality/gate_samples.h"

enum { GW_SET_ROWS = 8 };

typedef struct gw_recall {
    uint64_t n, n_in_1, n_in_2, n_in_4; /* tokens */
    uint64_t n_sets, n_exact;
} gw_recall;

typedef struct gw_guess_place {
    uint32_t first;  /* token of this sequence */
    uint32_t source; /* its gate input may be used: the target itself, or (next_token) before it */
    uint32_t target; /* whose expert is guessed */
} gw_guess_place;
/* Fills scores[n_experts] for the expert of the target block. */
typedef void (*gw_guess_fn)(void *user, const gw_guess_place *at, double *scores);

/* Over sequences [first, end); tokens without a source (next_token: a sequence's first) are left
 * out. *out is overwritten. */
MOE_MUST_CHECK moe_status gw_recall_count(const gw_gate_samples *s, const gw_prediction *p,
                                          uint32_t n_experts, uint32_t first, uint32_t end,
                                          gw_guess_fn guess, void *user, gw_recall *out,
                                          moe_err *err);
double gw_recall_share(uint64_t part, uint64_t whole); /* 0 of 0 is 0 */

#endif
