/* fetch_thread.h - the thread that reads the device's mails and keeps copies and signals going.
 *
 *   PARKED --begin--> STEP --end asked and every mail read--> IDLE --nothing flies--> PARKED
 *
 * In a step it spins over mails, copies and the store's answers; after a while without progress it
 * sleeps some 20 us between looks, so that a machine with few cores keeps its compute threads.
 * Parked, it wakes a few times a second to keep in touch with the store.
 * Owns: waves.c's book, which nobody else touches. The client and the copies are its own between
 * create and destroy. Never allocates, registers or waits for the device while a step is open.
 * Threads: all functions from the engine thread.
 */
#ifndef GW_FETCH_THREAD_H
#define GW_FETCH_THREAD_H

#include "gpu-worker/fetch/waves.h"

typedef struct gw_fetch_cfg {
    gw_waves_cfg waves;
    const krn_mail *ring; /* [depth] mapped, borrowed */
    uint32_t depth;       /* power of two, more than the mails of a step */
} gw_fetch_cfg;

typedef struct gw_fetch gw_fetch;
/* Starts the thread; RESIDENT: returns once all experts are in cells, or with why they are not. */
MOE_MUST_CHECK moe_status gw_fetch_create(const gw_fetch_cfg *cfg, gw_fetch **out, moe_err *err);
/* Releases every wait of an open step and joins. Accepts NULL. */
void gw_fetch_destroy(gw_fetch *f);

void gw_fetch_begin_step(gw_fetch *f, uint64_t step, moe_stack stack, uint32_t n_waves);
/* After the device has written its last mail of the step. *out_failed_text is valid until the next
 * begin. MOE_ERR_DISCONNECTED: the store's memory is gone; MOE_ERR_DEVICE: copies failed. */
MOE_MUST_CHECK moe_status gw_fetch_end_step(gw_fetch *f, const char **out_failed_text,
                                            moe_err *err);
bool gw_fetch_store_alive(const gw_fetch *f); /* any thread */
bool gw_fetch_store_lost(const gw_fetch *f);  /* any thread; once true, for good */

#endif
