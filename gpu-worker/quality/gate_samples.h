/* gate_samples.h - what gates saw and what they chose while text ran through the engine.
 *
 * Tokens of one sequence lie one after another, sequences in the order they were added. Filled by
 * calibrate from the engine's records (engine.h), read by its fits. Main thread.
 */
#ifndef GW_GATE_SAMPLES_H
#define GW_GATE_SAMPLES_H

#include <stdint.h>

#include "gpu-worker/engine/engine.h"

typedef struct gw_stack_samples {
    uint32_t n_blocks;
    uint32_t n, capacity;      /* tokens */
    float **gates;             /* [n_blocks] owned, each [n][d_model] */
    uint16_t **experts;        /* [n_blocks] owned, each [n] */
    uint32_t *sequence_starts; /* [n_sequences + 1] owned; the last is n */
} gw_stack_samples;

typedef struct gw_gate_samples {
    uint32_t d_model;
    uint32_t n_sequences, sequence_capacity;
    gw_stack_samples stack[MOE_N_STACKS];
} gw_gate_samples;

MOE_MUST_CHECK moe_status gw_gate_samples_init(const moe_model_shape *shape, gw_gate_samples *out,
                                               moe_err *err);
void gw_gate_samples_fini(gw_gate_samples *s); /* accepts zeroed */
/* The record of a sequence that has ended, with gates. Tokens that expert capacity dropped are kept
 * with expert 0: calibrate runs without capacity. */
MOE_MUST_CHECK moe_status gw_gate_samples_add(gw_gate_samples *s, const gw_record *r, moe_err *err);

static inline const float *gw_gate_at(const gw_gate_samples *s, moe_stack stack, uint32_t block,
                                      uint32_t token)
{
    return s->stack[stack].gates[block] + (size_t)token * s->d_model;
}

#endif
