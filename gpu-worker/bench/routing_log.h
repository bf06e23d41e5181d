/* routing_log.h - recordings of which expert every row chose, step by step: written while a model
 * runs, read back by `replay` and by `bench --routing trace:FILE`.
 *
 * A recording is text. Line 1 describes the model, every further line is one step:
 *   {"pregate_routing":1,"model":"NAME","n_experts":8,"encoder_blocks":3,"decoder_blocks":4}
 *   ["decoder",[[3,0],[7,7],[1,2],[0,5]]]       per block of the stack: the rows' experts
 * Rows are tokens, encode steps prompt after prompt, decode steps one of every sequence; -1 is a
 * token dropped by expert capacity.
 * Threads: a log from one thread (the one that runs steps); loading anywhere cJSON may run.
 */
#ifndef GW_ROUTING_LOG_H
#define GW_ROUTING_LOG_H

#include <stdint.h>

#include "common/model_shape.h"

typedef struct gw_routing_log gw_routing_log;
MOE_MUST_CHECK moe_status gw_routing_log_create(const char *path, gw_routing_log **out,
                                                moe_err *err);
/* Line 1: before the first step; later calls do nothing. log NULL: nothing. */
void gw_routing_log_describe(gw_routing_log *log, const char *model, const moe_model_shape *shape);
/* experts: [blocks of the stack][stride], row t of block b at [b * stride + t]. A failed write
 * shows in close. log NULL: nothing. */
void gw_routing_log_add(gw_routing_log *log, moe_stack stack, const int32_t *experts,
                        uint32_t stride, uint32_t n_rows);
/* MOE_ERR_IO when anything could not be written. Accepts NULL. */
MOE_MUST_CHECK moe_status gw_routing_log_close(gw_routing_log *log, moe_err *err);

typedef struct gw_recorded_step {
    moe_stack stack;
    uint32_t n_rows;
    int32_t *experts; /* [blocks of the stack][n_rows] owned */
} gw_recorded_step;

typedef struct gw_recording {
    char model[64];
    uint32_t n_experts;
    uint32_t n_blocks[MOE_N_STACKS];
    gw_recorded_step *steps; /* [n_steps] owned */
    uint32_t n_steps;
} gw_recording;
/* MOE_ERR_FORMAT names the line. On failure *out owns nothing. */
MOE_MUST_CHECK moe_status gw_recording_load(const char *path, gw_recording *out, moe_err *err);
void gw_recording_fini(gw_recording *r); /* accepts zeroed */
/* Appends a step; copies experts. */
MOE_MUST_CHECK moe_status gw_recording_add(gw_recording *r, moe_stack stack, const int32_t *experts,
                                           uint32_t stride, uint32_t n_rows, moe_err *err);

#endif
