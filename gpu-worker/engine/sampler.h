/* sampler.h - the next token of one sequence from its logits: temperature, nucleus (top_p), seed.
 *
 * A draw is a pure function of (logits, temperature, top_p, seed, position): the random number is
 * hashed from seed and position, so who shares the batch, and in which order, cannot matter.
 * Greedy decoding (temperature 0) does not come here: the argmax operation does it on the device.
 * Threads: no state; scratch belongs to the caller.
 */
#ifndef GW_SAMPLER_H
#define GW_SAMPLER_H

#include <stdint.h>

typedef struct gw_candidate {
    float p;
    int32_t id;
} gw_candidate;

/* logits: [vocab], host; NaN counts as -infinity. scratch: [vocab]. temperature > 0, 0 < top_p
 * <= 1. The nucleus is the smallest set of most probable tokens (ties to the lower id) whose
 * probabilities add up to top_p or more; the draw is from it, renormalised. */
int32_t gw_sample(const float *logits, uint32_t vocab, float temperature, float top_p,
                  uint64_t seed, uint32_t position, gw_candidate *scratch);
/* Uniform in [0, 1), 53 bits. */
double gw_uniform(uint64_t seed, uint32_t position);

#endif
