/* pipeline.h - experts travel while blocks compute: cells, the fetch thread, and their meeting
 * with the compute stream.
 *
 *   engine thread        begin_step ── submits the forward pass ──────────────── end_step
 *   compute stream       gate → ROUTED mail … REACHED mail, wait flag, experts, DONE mail …
 *   fetch thread         polls mails: plans waves, takes leases, issues copies, fills wave rows
 *   copy stream          slot → cell copies …, write flag
 *
 * No host synchronisation per block. A wave (plan.h) is a group of at most wave_capacity experts of
 * one block; each waits only for its own experts; any number of cells >= 2 works. Cells are an
 * expert cache under one byte budget (cell_pool.h).
 *
 * Fetch policies (Pre-gated MoE, Sec. IV and VI; differences in when, never in what is computed):
 *   RESIDENT      all experts are in cells after create; no fetch afterwards, and no waves: of a
 *                 block only its ROUTED mail comes, and each of its experts counts as a cell_hit
 *   ON_DEMAND     experts of block b are fetched after block b's gate position
 *   PREFETCH_ALL  all experts of block b+1 are fetched while block b runs (block 0: at step start)
 *   PREGATED      pre-gated checkpoint: exactly the chosen experts of b+1 while b runs, only a
 *                 stack's first block is exposed, and guessed: by the token before where the store
 *                 has a predictor, all of it where a step's rows will need nearly all; ordinary
 *                 checkpoint: every block is guessed, the router corrects on demand
 * When mails are published is the forward pass's business (forward.h uses `publish_…` below), what
 * to do with them is the fetch thread's.
 *
 * Every wait is always released: a failed or late expert, a lost store and a stop still signal; the
 * row then names the zeroed cell with failed = 1 and only the rows of that expert fail.
 * Mails name flat blocks (common/model_shape.h); rows and flags are asked for by block of the
 * stack.
 *
 * What is counted per flat block (proto/lease_table.h), the one place that says so:
 *   An expert of a wave is `predicted` when its mail ran ahead of the block: ROUTED by a pre-gate,
 *   GUESSED, or all of PREFETCH_ALL (gw_plan_routed_ahead). R is the wave's REACHED time.
 *   cell_hit    used; its bytes were in a cell at R, from an earlier step or predicted in time
 *   cell_late   used; predicted, but its copy had not ended at R
 *   cell_miss   used; neither predicted nor in a cell when its wave was planned
 *   cell_wasted a cell is given to another expert (or its copy abandoned), unused since its copy
 *   slot_hit    a copy found its slot READY: no WANT was needed
 *   slot_late   a copy that needed a WANT although a PREDICT had named the expert
 *   slot_miss   a copy that needed a WANT, unannounced
 *   fetch_predicted, fetch_demand   copies begun, for predicted experts and for others
 *                                   (RESIDENT: its copies at create count as predicted)
 *   An expert whose fetch failed is counted in no cell_* counter. PREFETCH_ALL counts cell_* only
 *   for the experts that the gate then chose; the others end as wasted.
 *   copy_hidden_ns: of each copy's time on the link, the part before R of the wave that used it
 *   first; all of it when nothing used it.
 *
 * Threads: create, begin_step, end_step, destroy from the engine thread.
 */
#ifndef GW_PIPELINE_H
#define GW_PIPELINE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/metrics.h"
#include "common/model_shape.h"
#include "gpu-worker/fetch/cell_policy.h"
#include "gpu-worker/fetch/store_client.h"
#include "gpu-worker/fetch/trace.h"
#include "kernels/ops.h"

typedef enum gw_policy { GW_RESIDENT = 0, GW_ON_DEMAND, GW_PREFETCH_ALL, GW_PREGATED } gw_policy;

typedef struct gw_pipeline_cfg {
    const krn_ops *ops;      /* borrowed */
    krn_device *device;      /* borrowed */
    krn_stream *compute;     /* borrowed; waves wait and run on it */
    gw_store_client *client; /* borrowed; used by the fetch thread from create to destroy */
    gw_policy policy;
    uint32_t n_cells;    /* >= 2; 0: from cell_bytes; RESIDENT: all experts, else an error */
    uint64_t cell_bytes; /* budget when n_cells is 0; 0: 2 * the largest active set of a decode step
                            (Eq. 1); prompts stream through them in waves */
    gw_cell_policy cell_policy; /* who leaves a full set of cells; 0: LRU */
    uint32_t decode_rows;       /* largest n_rows of a decode step; sizes the cells by default */
    uint32_t max_rows;          /* largest n_rows of a step */
    uint64_t piece_bytes; /* largest speculative copy that others wait for; 0: GW_DMA_PIECE_BYTES */
    uint64_t predict_bytes;     /* of guessed copies begun in one step; 0: no such limit */
    int64_t expert_deadline_ns; /* an expert that takes longer fails its rows (e.g. 20 s) */
    gw_trace *trace;            /* borrowed, may be NULL */
} gw_pipeline_cfg;

typedef struct gw_pipeline gw_pipeline;
MOE_MUST_CHECK moe_status gw_pipeline_create(const gw_pipeline_cfg *cfg, gw_pipeline **out,
                                             moe_err *err);
void gw_pipeline_destroy(gw_pipeline *p); /* releases every wait, joins the fetch thread; NULL ok */

/* What the forward pass needs to submit one step of one stack. Pointers are valid until end_step.
 */
typedef struct gw_step {
    uint64_t step;
    moe_stack stack;
    uint32_t n_waves;       /* per block, an upper bound known to the host; empty waves are cheap.
                               RESIDENT: 0, nothing is waited for */
    uint32_t wave_capacity; /* experts of a wave at most */
    bool publish_at_use;    /* ON_DEMAND, RESIDENT: publish ROUTED at the block's own gate position,
                               also when a pre-gate decided earlier */
    bool publish_guess; /* PREGATED: publish GUESSED of what no pre-gate decides (prediction.h) */
    bool publish_first; /* PREGATED, rows that will need nearly every expert of block 0: GUESSED
                           with all_experts for it at step start */
    bool publish_all;   /* PREFETCH_ALL: GUESSED with all_experts for b+1 when block b begins,
                           and for block 0 at step start */
    /* block: in the step's stack; wave < n_waves. Mapped memory, the same for all steps of one
     * parity. */
    krn_wave *(*wave_row)(const struct gw_step *s, uint32_t block, uint32_t wave);
    uint32_t *(*wave_flag)(const struct gw_step *s, uint32_t block, uint32_t wave);
    /* RESIDENT: [n_experts] device, where each expert of the block lies; else NULL. */
    const void *const *(*weights_of)(const struct gw_step *s, uint32_t block);
    gw_pipeline *owner;
} gw_step;

/* n_rows <= max_rows. The previous step must have ended. */
MOE_MUST_CHECK moe_status gw_pipeline_begin_step(gw_pipeline *p, moe_stack stack, uint32_t n_rows,
                                                 gw_step *out, moe_err *err);
/* Fills ring, counter and depth of a publish; the caller sets kind, block, wave, offsets. */
void gw_pipeline_mailbox(gw_pipeline *p, krn_publish_args *args);
/* Instead of wait32_async on the wave's flag, once the compute stream has come there: the calling
 * thread waits for the wave's experts. */
void gw_pipeline_await(const gw_step *s, uint32_t block, uint32_t wave);
/* After the compute stream was synchronised: waits until the fetch thread has seen every mail of
 * the step. MOE_OK also when experts failed (rows say which); *out_failed_text gets the first
 * failure's text, "" if none. MOE_ERR_DISCONNECTED: the store's memory is gone for good. */
MOE_MUST_CHECK moe_status gw_pipeline_end_step(gw_pipeline *p, gw_step *s, char *out_failed_text,
                                               uint32_t out_failed_text_bytes, moe_err *err);

uint32_t gw_pipeline_n_cells(const gw_pipeline *p);
/* False: the device cannot register slots, copies are pageable: said and counted. Any thread. */
bool gw_pipeline_copies_pinned(const gw_pipeline *p);
/* The store's memory is gone for good: the next end_step says so, too. Any thread. */
bool gw_pipeline_store_lost(const gw_pipeline *p);
void gw_pipeline_metrics(const gw_pipeline *p, moe_metrics *m); /* any thread */

#endif
