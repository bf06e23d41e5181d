/* bench_case.h - one configuration measured: a session of its own, random prompts, greedy answers
 * of fixed length, and what the counters and the trace say about them.
 *
 *   session -> ceilings -> warm-up answers -> counted answers: encode, N decode steps -> trace
 * Clock: host time around gw_forward_encode and _decode, which return when the step is complete.
 * Block times are the device's own (mails, trace.h). Made-up routing is chosen outside the clock.
 * Main thread; the session's fetch thread is its only other one.
 */
#ifndef GW_BENCH_CASE_H
#define GW_BENCH_CASE_H

#include "common/dtype.h"
#include "gpu-worker/bench/bench_stats.h"
#include "gpu-worker/bench/ceilings.h"
#include "gpu-worker/bench/routing_choice.h"
#include "gpu-worker/engine/engine.h"

typedef struct gw_bench_case {
    /* Policies are the case's; sizes follow from it. A routing_log may be NULL: recording costs
     * time. */
    gw_engine_cfg engine;
    uint32_t batch;
    uint32_t n_cells; /* 0: those of Eq. 1 for this batch; RESIDENT: all */
    gw_routing_spec routing;
    double guess_recall; /* of a token's first block, made up; 0: no guesses */
    uint32_t prompt_tokens, output_tokens, warmups, repeats;
    uint64_t seed;
    uint64_t context_free_bytes; /* device memory that was free before any session */
    const char *trace_path;      /* "" or where to write the trace */
} gw_bench_case;

typedef struct gw_bench_result {
    /* the model, as the store serves it */
    char model[64];
    moe_model_shape shape;
    moe_dtype dtype;
    bool all_in_ram; /* a slot for every expert, all filled before the first answer */
    bool pinned;
    uint32_t n_cells;
    gw_ceilings ceilings;
    /* samples */
    gw_samples step_ms;        /* decode steps but the first of each answer: a token of everyone */
    gw_samples first_token_ms; /* prompt and first decode step */
    gw_samples block_ms;       /* end of a block to the end of the next, blocks 2..L; RESIDENT: gate
                                  to gate */
    gw_samples first_block_ms; /* begin of a step to the end of its first block */
    /* decode steps only */
    double link_floor_ms, memory_floor_ms; /* per step */
    double active_per_step;                /* experts used */
    double hit_rate;                       /* of those: needed no copy */
    double in_time_rate;                   /* of those: in a cell when reached */
    double slot_miss_rate;                 /* of copies: the store had to read */
    double hidden_rate;                    /* of copy time: nobody waited */
    double hidden_after_first_rate;        /* the same, blocks 2..L */
    double link_busy;                      /* share of the time with a copy under way */
    double copied_bytes;                   /* per step */
    uint64_t device_bytes_own;             /* sum of what was allocated */
    uint64_t device_bytes_peak;            /* fall of free memory; 0: not known (cpu) */
    uint64_t trace_dropped;                /* > 0: block times are incomplete and left out */
} gw_bench_result;

/* On failure *out owns nothing. */
MOE_MUST_CHECK moe_status gw_bench_case_run(const gw_bench_case *c, gw_bench_result *out,
                                            moe_err *err);
void gw_bench_result_fini(gw_bench_result *r); /* accepts zeroed */

/* Waits until every expert lies in a slot, if there are as many slots: drive tiers stay as they
 * are. *out_all says which it was. */
MOE_MUST_CHECK moe_status gw_bench_fill_ram(const char *endpoint, int64_t timeout_ns, bool *out_all,
                                            moe_err *err);

#endif
