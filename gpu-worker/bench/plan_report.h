/* plan_report.h - `gpu-worker plan`: will this model fit this machine, and how fast can it be,
 * before anything is packed.
 *
 * The model comes from --synthetic NAME, from --model DIR (its config.json), or from the store at
 * the endpoint. Budgets and speeds come from settings, or from this machine (--measure). What is
 * not known is said to be so; nothing is guessed. Arithmetic: cost_model.h.
 * Exit code: 0 it fits, 3 it does not, 1 an error. Main thread.
 */
#ifndef GW_PLAN_REPORT_H
#define GW_PLAN_REPORT_H

#include "common/text.h"
#include "gpu-worker/bench/cost_model.h"

typedef struct gw_plan_input {
    const char *model_name; /* borrowed */
    const moe_model_shape *shape;
    moe_dtype dtype;
    uint64_t device_bytes, ram_bytes;
    gw_speeds speeds;     /* 0: unknown */
    const char *policies; /* "a,b" */
    const char *batches;  /* "1,8" */
    uint32_t prompt_tokens, output_tokens;
    uint32_t cells; /* 0: as many as the budget holds */
} gw_plan_input;

/* Appends the report, as text or as one JSON object. *out_fits: for every batch, device and RAM. */
MOE_MUST_CHECK moe_status gw_plan_report(const gw_plan_input *in, bool json, moe_text *out,
                                         bool *out_fits, moe_err *err);

#endif
