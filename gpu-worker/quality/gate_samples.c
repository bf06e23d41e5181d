/* gate_samples.c - see gate_samples.h. */
#include "gpu-worker/quality/gate_samples.h"

#include <stdlib.h>
#include <string.h>

static moe_status no_memory(moe_err *err)
{
    return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "samples of gates: give calibrate less text (--limit)");
}

moe_status gw_gate_samples_init(const moe_model_shape *shape, gw_gate_samples *out, moe_err *err)
{
    gw_gate_samples s = {.d_model = shape->d_model};
    bool complete = true;
    for (int i = 0; i < MOE_N_STACKS; i++) {
        gw_stack_samples *stack = &s.stack[i];
        stack->n_blocks = shape->stack[i].n_blocks;
        stack->gates = calloc(stack->n_blocks + 1u, sizeof *stack->gates);
        stack->experts = calloc(stack->n_blocks + 1u, sizeof *stack->experts);
        stack->sequence_starts = calloc(1, sizeof *stack->sequence_starts);
        complete = complete && stack->gates != NULL && stack->experts != NULL &&
                   stack->sequence_starts != NULL;
    }
    if (!complete) {
        gw_gate_samples_fini(&s);
        return no_memory(err);
    }
    *out = s;
    return MOE_OK;
}

void gw_gate_samples_fini(gw_gate_samples *s)
{
    for (int i = 0; i < MOE_N_STACKS; i++) {
        gw_stack_samples *stack = &s->stack[i];
        for (uint32_t b = 0; b < stack->n_blocks; b++) {
            if (stack->gates != NULL) {
                free(stack->gates[b]);
            }
            if (stack->experts != NULL) {
                free(stack->experts[b]);
            }
        }
        free(stack->gates);
        free(stack->experts);
        free(stack->sequence_starts);
    }
    *s = (gw_gate_samples){0};
}

static moe_status reserve_tokens(gw_stack_samples *s, uint32_t d_model, uint32_t n, moe_err *err)
{
    if (s->n + n <= s->capacity) {
        return MOE_OK;
    }
    uint32_t capacity = s->capacity == 0 ? 4096 : 2 * s->capacity;
    capacity = capacity < s->n + n ? s->n + n : capacity;
    for (uint32_t b = 0; b < s->n_blocks; b++) {
        float *gates = realloc(s->gates[b], (size_t)capacity * d_model * sizeof *gates);
        if (gates == NULL) {
            return no_memory(err);
        }
        s->gates[b] = gates;
        uint16_t *experts = realloc(s->experts[b], (size_t)capacity * sizeof *experts);
        if (experts == NULL) {
            return no_memory(err);
        }
        s->experts[b] = experts;
    }
    s->capacity = capacity;
    return MOE_OK;
}

static moe_status reserve_sequence(gw_gate_samples *s, moe_err *err)
{
    if (s->n_sequences < s->sequence_capacity) {
        return MOE_OK;
    }
    uint32_t capacity = s->sequence_capacity == 0 ? 256 : 2 * s->sequence_capacity;
    for (int i = 0; i < MOE_N_STACKS; i++) {
        uint32_t *starts = realloc(s->stack[i].sequence_starts, (capacity + 1u) * sizeof *starts);
        if (starts == NULL) {
            return no_memory(err);
        }
        s->stack[i].sequence_starts = starts;
    }
    s->sequence_capacity = capacity;
    return MOE_OK;
}

/* n tokens; block b's lie at b * stride. */
static void append(gw_stack_samples *s, uint32_t d_model, const float *gates,
                   const int32_t *experts, uint32_t n, uint32_t stride)
{
    for (uint32_t b = 0; b < s->n_blocks; b++) {
        memcpy(s->gates[b] + (size_t)s->n * d_model, gates + (size_t)b * stride * d_model,
               (size_t)n * d_model * sizeof *gates);
        for (uint32_t t = 0; t < n; t++) {
            int32_t e = experts[(size_t)b * stride + t];
            s->experts[b][s->n + t] = (uint16_t)(e < 0 ? 0 : e);
        }
    }
    s->n += n;
}

moe_status gw_gate_samples_add(gw_gate_samples *s, const gw_record *r, moe_err *err)
{
    gw_stack_samples *encoder = &s->stack[MOE_ENCODER], *decoder = &s->stack[MOE_DECODER];
    moe_status st = reserve_sequence(s, err);
    if (st == MOE_OK) {
        st = reserve_tokens(encoder, s->d_model, r->n_input, err);
    }
    if (st == MOE_OK) {
        st = reserve_tokens(decoder, s->d_model, r->n_steps, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    append(encoder, s->d_model, r->encoder_gates, r->encoder_experts, r->n_input, r->n_input);
    append(decoder, s->d_model, r->decoder_gates, r->decoder_experts, r->n_steps, r->max_steps);
    s->n_sequences++;
    encoder->sequence_starts[s->n_sequences] = encoder->n;
    decoder->sequence_starts[s->n_sequences] = decoder->n;
    return MOE_OK;
}
