/* jobs.h - a group of sequences, all submitted, all waited for: what eval and calibrate run.
 *
 * They share batches as far as the engine's max_batch goes; more than its queue holds is submitted
 * as places come free. Threads: the caller's waits; engine callbacks only collect.
 */
#ifndef GW_JOBS_H
#define GW_JOBS_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu-worker/engine/engine.h"

struct gw_jobs_group;

typedef struct gw_job {
    const int32_t *input; /* borrowed; ends with the end token */
    uint32_t n_input;
    const int32_t *forced; /* borrowed; NULL: greedy */
    uint32_t n_forced;
    uint32_t max_tokens;
    gw_record *record; /* borrowed, may be NULL; filled as the engine says */
    /* results */
    int32_t *ids; /* [n_ids] owned: gw_jobs_fini */
    uint32_t n_ids;
    gw_finish finish;
    struct gw_jobs_group *group; /* while it runs */
} gw_job;

/* Returns when none runs any more. The first failure, after the others have ended. */
MOE_MUST_CHECK moe_status gw_jobs_run(gw_engine *engine, gw_job *jobs, uint32_t n, moe_err *err);
void gw_jobs_fini(gw_job *jobs, uint32_t n); /* frees ids; records are the caller's */

#endif
