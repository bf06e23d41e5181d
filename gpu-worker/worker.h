/* worker.h - what every subcommand starts with: backend, engine, tokenizer, trace, from settings.
 * Logs what was really obtained: backend, pinning, cells. Threads: main thread. */
#ifndef GW_WORKER_H
#define GW_WORKER_H

#include "gpu-worker/engine.h"
#include "gpu-worker/tokenizer.h"
#include "gpu-worker/worker_config.h"

typedef struct gw_worker {
    const krn_ops *ops;      /* borrowed, static */
    krn_device *device;      /* owned */
    gw_trace *trace;         /* owned; NULL without --trace */
    gw_engine *engine;       /* owned */
    gw_tokenizer *tokenizer; /* owned; NULL when the checkpoint has no spiece.model */
} gw_worker;

/* Waits for the store as long as the settings say. On failure *w is zeroed. */
MOE_MUST_CHECK moe_status gw_worker_open(const gw_config *cfg, gw_worker *w, moe_err *err);
/* Writes the trace, if one was asked for; its failure is logged. Accepts a zeroed struct. */
void gw_worker_close(const gw_config *cfg, gw_worker *w);

/* The subcommands: exit codes. */
int gw_run_main(const gw_config *cfg);
int gw_serve_main(const gw_config *cfg);

#endif
