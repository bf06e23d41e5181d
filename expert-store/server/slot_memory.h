/* slot_memory.h - gives slots their pages, and locks them, while the store serves already.
 *
 *   create: the first piece, at once --> a thread: piece after piece --eventfd--> look --> ended
 *                                                    ^--------------------- grow ----------/
 *
 * Why: zeroing and locking 15 GB takes from one to some tens of seconds, and the first expert needs
 * one slot. Of adopted memory only what is missing is made; all of it is locked anew, for locks go
 * with their process.
 * Slots get their pages in order, in pieces that keep huge pages whole. The thread runs at a lower
 * priority than the event loop; threads that zero pages for it inherit that.
 * Threads: everything from the event loop; one thread inside, which alone changes the region.
 * destroy waits for the piece in work, at most some tens of milliseconds.
 */
#ifndef XS_SLOT_MEMORY_H
#define XS_SLOT_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

#include "common/shm_region.h"
#include "common/status.h"

typedef struct xs_slot_memory_cfg {
    moe_shm_region *slots; /* borrowed; nobody else changes it until destroy */
    uint64_t slot_bytes;
    uint32_t n_made;      /* slots that have pages already: adopted */
    uint32_t n_wanted;    /* slots that shall have them, at least n_made */
    bool pin;             /* lock them */
    uint64_t piece_bytes; /* 0: 64 MiB; a multiple of 4096 */
    int64_t pause_ns;     /* tests only: after each piece */
} xs_slot_memory_cfg;

typedef struct xs_slot_memory_report {
    uint32_t n_made;                 /* slots with pages, the first ones */
    bool ended;                      /* nothing here changes until grow */
    bool pinned;                     /* every piece so far is locked */
    uint64_t made_bytes, huge_bytes; /* since create or grow: pages, and huge ones among them */
    int64_t took_ns;                 /* from create or grow until ended */
    moe_err failure;                 /* MOE_OK, or why not all slots are made */
    char not_pinned[300];            /* "", or why */
} xs_slot_memory_report;

typedef struct xs_slot_memory xs_slot_memory; /* opaque */
/* Fails if the first piece cannot be made. */
MOE_MUST_CHECK moe_status xs_slot_memory_create(const xs_slot_memory_cfg *cfg, xs_slot_memory **out,
                                                moe_err *err);
void xs_slot_memory_destroy(xs_slot_memory *m); /* accepts NULL */
/* So many slots shall have pages, at least those that do. After a failure it is tried again. */
void xs_slot_memory_grow(xs_slot_memory *m, uint32_t n_wanted);
int xs_slot_memory_fd(const xs_slot_memory *m); /* readable when look has news */
/* False: nothing new since the last look; *out is as it is now either way. */
bool xs_slot_memory_look(xs_slot_memory *m, xs_slot_memory_report *out);

#endif
