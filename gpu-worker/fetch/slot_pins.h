/* slot_pins.h - registers the store's slots with the device, as far as the store has made them.
 *
 * A store makes memory while it serves (proto/board.h, n_made). What is there when a worker
 * connects is registered at once, the rest when a copy first needs it: all that is made by then, if
 * that at least doubles what is registered or is all there shall be. So few calls cover any memory,
 * and a copy that comes between is pageable, several times slower, and counted. One call takes
 * about 60 ms per GiB (deploy/bench.md) of the calling thread. Threads: init and fini from the
 * owner, cover from the fetch thread in between; has_failed: any.
 */
#ifndef GW_SLOT_PINS_H
#define GW_SLOT_PINS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "gpu-worker/fetch/store_client.h"
#include "kernels/ops.h"

enum { GW_MAX_PINNED_RANGES = 64 }; /* each doubles what is there, or ends a budget */

typedef struct gw_slot_pins {
    const krn_ops *ops; /* borrowed, like all pointers here */
    krn_device *device;
    gw_store_client *client;
    uint32_t n_pinned; /* slots, the first ones */
    uint32_t n_ranges;
    const char *ranges[GW_MAX_PINNED_RANGES]; /* where each registered range begins */
    _Atomic bool failed;                      /* relaxed: the device refused; no further tries */
} gw_slot_pins;

void gw_slot_pins_init(gw_slot_pins *p, const krn_ops *ops, krn_device *device,
                       gw_store_client *client);
/* No copy is under way any more. */
void gw_slot_pins_fini(gw_slot_pins *p);
/* Whether copies from the slot are direct ones; registers more of them first where that is due. */
bool gw_slot_pins_cover(gw_slot_pins *p, uint32_t slot);
bool gw_slot_pins_has_failed(const gw_slot_pins *p);

#endif
