/* workers.h - who is served: places in the registry, lease tables, liveness, outstanding asks.
 *
 *   HELLO --join--> joined --its flock seen--> locked --flock gone--> removed
 *                      \--------no flock within the grace time------/
 *
 * A worker lives as long as it holds a flock on its lease table. Its pid is for people, except that
 * a pid in the table says that the flock was there once.
 * An *ask* is one expert that a WANT named and that this worker has not been seen to lease yet:
 * first waiting for the load, then holding the slot (residency.h) until a lease or a use by this
 * worker is seen, CANCEL, or death. A worker that lets a held slot wait past the deadline is
 * stalled: all its asks end (it will want again). Where slots are so few that a read waits for one,
 * the oldest hold is broken much earlier: an expert too early for one worker must not keep out
 * the one that it or another needs first.
 * Threads: the store's event loop. Lease tables outlive the store on purpose (adoption).
 */
#ifndef XS_WORKERS_H
#define XS_WORKERS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/shm_region.h"
#include "common/status.h"
#include "expert-store/server/lease_view.h"
#include "expert-store/server/residency.h"
#include "proto/messages.h"
#include "proto/socket.h"

enum { XS_OPERATOR_PLACE = 63 };

typedef struct xs_ask {
    uint32_t expert;
    uint32_t slot;        /* meaningful while held */
    bool held;            /* loaded; waiting for the lease */
    uint64_t step;        /* latest WANT */
    int64_t asked_ns;     /* first WANT */
    int64_t held_ns;      /* since when */
    uint64_t uses_before; /* by this worker, at the first WANT: READY may be used at once */
} xs_ask;

typedef struct xs_worker {
    uint32_t id; /* 0: place is free */
    uint32_t pid;
    char name[WIRE_NAME_BYTES];
    moe_shm_region table; /* owned */
    uint32_t capacity;
    wire_peer peer; /* id_bytes 0: has not said HELLO to this store yet */
    bool locked;    /* its flock was seen, or what it writes once it has it: its pid */
    int64_t joined_ns;
    uint64_t last_step; /* that it asked or cancelled at */
    int64_t leased_ns;  /* a held slot was seen leased: it is not stalled */
    uint32_t n_asks, n_held;
    xs_ask *asks;     /* [n_experts], the first n_asks; owned */
    uint32_t *ask_of; /* [n_experts], index into asks, plus 1; 0: none; owned */
} xs_worker;

typedef struct xs_workers_cfg {
    void *board;        /* borrowed: its registry is written here */
    const char *prefix; /* borrowed: names of lease tables */
    uint8_t store_uuid[16];
    uint32_t n_experts, n_blocks;
    uint32_t max_workers;
    uint32_t lease_capacity; /* of new tables; may come later, with attach */
    uint32_t mode;           /* of lease tables */
    int64_t grace_ns, hold_ns;
    xs_lease_view *leases; /* borrowed; entries are added and removed here */
} xs_workers_cfg;

typedef struct xs_workers_counters {
    uint64_t joined, rejoined, adopted, gone;
    uint64_t holds_broken;
    uint64_t stalled; /* a slot was loaded for a worker that did not lease it in time */
} xs_workers_counters;

typedef struct xs_workers xs_workers; /* opaque */
MOE_MUST_CHECK moe_status xs_workers_create(const xs_workers_cfg *cfg, xs_workers **out,
                                            moe_err *err);
/* Lease tables and their registry entries stay. Accepts NULL. */
void xs_workers_destroy(xs_workers *ws);

/* After a crash: maps every table in the registry. A table that is unusable and unlocked is
 * removed; unusable and locked fails the adoption (MOE_ERR_FORMAT), since its leases cannot be
 * seen. */
MOE_MUST_CHECK moe_status xs_workers_adopt(xs_workers *ws, int64_t now_ns, moe_err *err);
/* With adoption done and residency made (borrowed until destroy): from now on workers may join. */
void xs_workers_attach(xs_workers *ws, xs_residency *residency, uint32_t lease_capacity);
/* Of tables that are made from now on. */
void xs_workers_set_capacity(xs_workers *ws, uint32_t lease_capacity);

/* HELLO. A peer that joined already, or names a table that is free or its own, gets its old place.
 * MOE_ERR_LIMIT: no place is left; MOE_ERR_BUSY: the id is another process's. *out_place is <
 * XS_OPERATOR_PLACE. */
MOE_MUST_CHECK moe_status xs_workers_join(xs_workers *ws, const wire_hello *hello,
                                          const wire_peer *peer, int64_t now_ns,
                                          uint32_t *out_place, moe_err *err);
/* The place of a peer; -1 when it has not said HELLO. */
int xs_workers_find(const xs_workers *ws, const wire_peer *peer);
/* NULL when the place is free. */
xs_worker *xs_workers_at(xs_workers *ws, uint32_t place);
uint32_t xs_workers_count(const xs_workers *ws);
/* Looks at every worker's flock; returns the bits of the places whose worker is gone. */
uint64_t xs_workers_probe(xs_workers *ws, int64_t now_ns);
/* Its asks and holds end, its counters join the totals, its table is removed. */
void xs_workers_remove(xs_workers *ws, uint32_t place);

/* ---- asks ---- */
/* *out_new, if it was not outstanding already. Valid until the next change of this worker's asks.
 */
xs_ask *xs_workers_ask(xs_workers *ws, uint32_t place, uint32_t expert, uint64_t step,
                       int64_t now_ns, bool *out_new);
xs_ask *xs_workers_find_ask(xs_workers *ws, uint32_t place, uint32_t expert); /* or NULL */
/* The expert is READY in `slot`: keep it there for its asker. */
void xs_workers_hold(xs_workers *ws, uint32_t place, xs_ask *ask, uint32_t slot, int64_t now_ns);
void xs_workers_end_ask(xs_workers *ws, uint32_t place, xs_ask *ask);
void xs_workers_cancel(xs_workers *ws, uint32_t place, uint64_t step); /* asks up to `step` */
/* Ends the holds whose lease or use was seen, and all asks of workers that are stalled; returns the
 * bits of their places: what they have in the fetch queue is void, too. */
uint64_t xs_workers_settle(xs_workers *ws, int64_t now_ns);
/* Ends the oldest hold that is at least `age_ns` old; false when there is none. */
bool xs_workers_break_hold(xs_workers *ws, int64_t now_ns, int64_t age_ns);
const xs_workers_counters *xs_workers_get_counters(const xs_workers *ws);

#endif
