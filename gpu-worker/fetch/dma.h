/* dma.h - slot -> cell copies: lease, queue on the copy stream, notice the end, give the lease
 * back.
 *
 *   start --lease--> copying --its event has passed--> landed (callback), lease released
 *
 * One copy stream, in order: what was started first lands first, and a signal queued behind copies
 * announces them all. Copies are cut into pieces. Certain ones are queued whole and at once, of
 * speculative ones only SPECULATIVE_PIECES pieces at any time, so that a certain copy that comes
 * later waits for at most so much; hurry queues the rest at once.
 * Owns: the copy stream, its events, the leases of copies under way.
 * Threads: the fetch thread; create and destroy from its owner. No allocation after create.
 * At shutdown destroy waits for what is queued, then releases the leases.
 */
#ifndef GW_DMA_H
#define GW_DMA_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu-worker/fetch/slot_pins.h"
#include "gpu-worker/fetch/store_client.h"
#include "gpu-worker/fetch/trace.h"
#include "kernels/ops.h"

enum { GW_DMA_PIECE_BYTES = 16 << 20 }; /* 0.3 ms of a PCIe 5 x16 link */

typedef struct gw_dma_cfg {
    const krn_ops *ops;      /* borrowed */
    krn_device *device;      /* borrowed */
    gw_store_client *client; /* borrowed */
    uint32_t n_cells;
    uint64_t expert_bytes;
    uint64_t piece_bytes; /* e.g. GW_DMA_PIECE_BYTES */
    gw_slot_pins *pins;   /* borrowed; copies from slots it does not cover count as pageable */
    gw_trace *trace;      /* borrowed, may be NULL */
} gw_dma_cfg;

typedef struct gw_landing {
    uint32_t cell;
    bool complete;            /* false: abandoned on the way, the cell holds no expert */
    int64_t begin_ns, end_ns; /* on the link; begin 0: nothing crossed it */
    uint64_t bytes;           /* that crossed it */
} gw_landing;

typedef struct gw_dma gw_dma;
MOE_MUST_CHECK moe_status gw_dma_create(const gw_dma_cfg *cfg, gw_dma **out, moe_err *err);
void gw_dma_destroy(gw_dma *d); /* accepts NULL */

typedef struct gw_dma_copy {
    uint32_t expert, cell; /* one copy per cell at a time */
    void *dst;
    bool speculative;
} gw_dma_copy;
bool gw_dma_has_room(const gw_dma *d, bool speculative); /* else start says MOE_ERR_LIMIT */
/* Statuses of gw_store_client_lease, and MOE_ERR_LIMIT when speculation has to wait its turn;
 * MOE_ERR_DEVICE: the backend refused, nothing more will land. */
MOE_MUST_CHECK moe_status gw_dma_start(gw_dma *d, const gw_dma_copy *copy, moe_err *err);
/* A speculative copy became certain. Not copying: nothing. */
MOE_MUST_CHECK moe_status gw_dma_hurry(gw_dma *d, uint32_t cell, moe_err *err);
/* Nobody wants it any more: queues no further piece. A copy that is queued whole still completes.
 * Takes effect in a later poll; until then keep (or hurry) undoes it. */
void gw_dma_abandon(gw_dma *d, uint32_t cell);
void gw_dma_keep(gw_dma *d, uint32_t cell);
/* Calls landed for every copy whose end was seen. True if there were any. */
MOE_MUST_CHECK moe_status gw_dma_poll(gw_dma *d, void (*landed)(void *user, const gw_landing *l),
                                      void *user, bool *out_any, moe_err *err);
/* flag becomes 1 once everything queued before has landed. */
MOE_MUST_CHECK moe_status gw_dma_signal(gw_dma *d, uint32_t *flag, moe_err *err);
MOE_MUST_CHECK moe_status gw_dma_sync(gw_dma *d, moe_err *err); /* waits for all that is queued */
bool gw_dma_is_idle(const gw_dma *d);

#endif
