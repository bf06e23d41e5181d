/* worker.h - what every subcommand starts with: backend, engine, tokenizer, trace, from settings.
 * Logs what was really obtained: backend, pinning, cells. Threads: main thread. */
#ifndef GW_WORKER_H
#define GW_WORKER_H

#include "gpu-worker/engine/engine.h"
#include "gpu-worker/engine/tokenizer.h"
#include "gpu-worker/worker_config.h"

typedef struct gw_worker {
    const krn_ops *ops;          /* borrowed, static */
    krn_device *device;          /* owned */
    gw_trace *trace;             /* owned; NULL without --trace */
    gw_routing_log *routing_log; /* owned; NULL without --record-routing */
    gw_engine *engine;           /* owned */
    gw_tokenizer *tokenizer;     /* owned; NULL when the checkpoint has no spiece.model */
} gw_worker;

/* Waits for the store as long as the settings say. On failure *w is zeroed. */
MOE_MUST_CHECK moe_status gw_worker_open(const gw_config *cfg, gw_worker *w, moe_err *err);
/* Writes trace and recording, if they were asked for; failures are logged. Accepts a zeroed struct.
 */
void gw_worker_close(const gw_config *cfg, gw_worker *w);

/* Parts of open, for subcommands without an engine: the device alone (close it with
 * gw_worker_close), and the endpoint of the settings, or the default one. */
MOE_MUST_CHECK moe_status gw_worker_open_device(const gw_config *cfg, gw_worker *w, moe_err *err);
MOE_MUST_CHECK moe_status gw_endpoint_of(const gw_config *cfg, char *out, size_t out_bytes,
                                         moe_err *err);

/* The engine's settings; endpoint is borrowed. */
gw_engine_cfg gw_engine_cfg_of(const gw_config *cfg, const gw_worker *w, const char *endpoint);

/* The subcommands: exit codes. */
int gw_run_main(const gw_config *cfg);
int gw_serve_main(const gw_config *cfg);
int gw_bench_main(const gw_config *cfg);     /* bench.h */
int gw_plan_main(const gw_config *cfg);      /* plan_report.h */
int gw_replay_main(const gw_config *cfg);    /* replay.h */
int gw_eval_main(const gw_config *cfg);      /* eval.h */
int gw_calibrate_main(const gw_config *cfg); /* calibrate.h */

#endif
