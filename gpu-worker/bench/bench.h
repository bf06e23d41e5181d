/* bench.h - `gpu-worker bench`: decoding measured over policies, batches, cells, cell policies and
 * routings, one JSON row each, ceilings of the same run beside every figure.
 *
 * The model and the tier are the store's: one store, one call (deploy/gpu_check.sh makes the tour).
 * Every combination of the lists runs in a session of its own; RESIDENT, which has neither a number
 * of cells nor a policy for them, runs once per batch and routing. A case that fails is logged and
 * leaves no row; --trace keeps the timeline of the last one. Exit code: 0, or 1 when any case
 * failed. Main thread.
 */
#ifndef GW_BENCH_H
#define GW_BENCH_H

#include "common/text.h"
#include "gpu-worker/bench/bench_case.h"

/* What a row says besides the result. */
typedef struct gw_bench_labels {
    const char *bench, *machine, *backend, *routing; /* borrowed */
    const char *commit;                              /* build identity */
    const char *date;                                /* "2026-11-25T12:00:00Z" */
} gw_bench_labels;

/* Appends one line of JSON. Times in ms, rates in 1e9 bytes/s. Unknown values are null. */
void gw_bench_row(const gw_bench_case *c, gw_bench_result *r, const gw_bench_labels *labels,
                  moe_text *out);

#endif
