/* waves.h - the fetch thread's book of one step: sets become waves, waves get cells, cells get
 * bytes, and every wave is signalled.
 *
 *   PLANNED --cells for all its experts--> SEATED --every copy queued, or failed--> SIGNALLED
 *           (in order, one wave at a time)                              --DONE mail--> DONE
 *
 * A seat is a pin on the cell that holds the expert, or a reservation (cell_pool.h) that is used
 * up, and something evicted, only when the expert is resident: waiting for the store empties no
 * cell. Why this never locks up: only the first wave that lacks seats may take any; all before it
 * have theirs, will be signalled within the experts' deadlines, run, and give their pins back by
 * DONE. A wave takes at most half of the cells and a guess at most half, so what is left is enough.
 * Copies of all seated waves are queued as their experts become resident. A WANT is sent only for
 * an expert that has a seat, so a slot that the store holds for us is leased at the next look. A
 * guess (experts of one block, before its ROUTED) uses what is left when every planned wave is
 * signalled; it holds pins until ROUTED of its block. A guess of a first block that has been routed
 * is of the next step's, and is kept until that begins. Where guesses do not pay they are passed
 * over for a while (speculation.h). A guess of a block behind the next one only tells the store.
 * Threads: the fetch thread; create and destroy from its owner. No allocation after create.
 */
#ifndef GW_WAVES_H
#define GW_WAVES_H

#include "gpu-worker/fetch/cell_pool.h"
#include "gpu-worker/fetch/dma.h"
#include "gpu-worker/fetch/pipeline.h"
#include "gpu-worker/fetch/speculation.h"

enum { GW_FAILED_TEXT_BYTES = 400 };

typedef struct gw_waves_cfg {
    gw_store_client *client; /* borrowed */
    gw_cell_pool *pool;      /* borrowed */
    gw_dma *dma;             /* borrowed */
    gw_policy policy;
    uint32_t capacity;  /* experts of a wave */
    uint32_t max_waves; /* of a block; stride of rows and flags */
    krn_wave *rows;     /* [2][n_blocks_total][max_waves] mapped, borrowed */
    uint32_t *flags;    /* likewise */
    char *cells;        /* [n_cells + 1] of cell_bytes, device, borrowed; the last is zero */
    uint64_t cell_bytes;
    uint32_t n_cells;
    int64_t expert_deadline_ns;
    gw_speculation *speculation; /* [n_blocks_total] borrowed: the account of each flat block */
    uint64_t predict_bytes;      /* of guessed copies begun in one step; 0: no such limit */
    moe_histogram *wave_wait;    /* borrowed: REACHED until the last byte arrived, 0 if before */
    moe_histogram *store_wait;   /* borrowed: WANT until leased */
    gw_trace *trace;             /* borrowed, may be NULL */
} gw_waves_cfg;

typedef struct gw_waves gw_waves;
MOE_MUST_CHECK moe_status gw_waves_create(const gw_waves_cfg *cfg, gw_waves **out, moe_err *err);
void gw_waves_destroy(gw_waves *ws); /* accepts NULL */

/* n_waves <= max_waves: how many the compute stream waits for in each block. */
void gw_waves_begin(gw_waves *ws, uint64_t step, moe_stack stack, uint32_t n_waves);
void gw_waves_mail(gw_waves *ws, const krn_mail *m);
/* Does what can be done now; true if anything moved. */
bool gw_waves_advance(gw_waves *ws, int64_t now_ns);
/* Signals every wave of the open step, also of blocks not routed yet; nothing more is fetched. */
void gw_waves_release_all(gw_waves *ws);
/* The compute stream has come to the step's end (or was given up): frees what is still held. */
void gw_waves_end(gw_waves *ws);
/* "" or what went wrong first since begin. */
const char *gw_waves_failed_text(const gw_waves *ws);

/* RESIDENT: brings all experts into cells. True when finished; *out_st then says how. */
bool gw_waves_fill(gw_waves *ws, int64_t now_ns, moe_status *out_st, moe_err *err);

/* Call often: copies that have landed. True if there were any. */
bool gw_waves_poll_copies(gw_waves *ws);
/* MOE_ERR_DEVICE and its text once the device failed: nothing will be copied any more. */
MOE_MUST_CHECK moe_status gw_waves_health(const gw_waves *ws, moe_err *err);

#endif
