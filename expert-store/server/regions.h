/* regions.h - the store's shared memory: how much, under which names, new or adopted.
 *
 * Names: /pregate-<16 hex digits>-{slots,dense,board,lease-ID}, the digits being the XXH3-64 of the
 * endpoint's path. Whoever holds that endpoint's instance lock owns all of them.
 *
 * At start:  lock --> names there? --check--> adopt
 *                        |              \--refused--> supersede, unlink --\
 *                        \--no--------------------------------------------> create
 * At a stop: remove (default) or leave behind for the next start (--keep-memory, or a crash).
 *
 * The slots region has addresses for every expert, and pages for as many as the RAM budget buys: a
 * larger budget only adds pages, while the store serves (memory_budget.h) or at its next start. A
 * smaller one gives pages back at the next start, unless a worker is there that may have registered
 * them with its device: then all of them are kept.
 *
 * Threads: the main thread at start and stop.
 */
#ifndef XS_REGIONS_H
#define XS_REGIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/shm_region.h"
#include "common/status.h"
#include "expert-store/server/model_source.h"

enum { XS_REGION_PREFIX_BYTES = 32 };

/* "/pregate-0123456789abcdef" */
void xs_region_prefix(const char *endpoint_path, char out[XS_REGION_PREFIX_BYTES]);
void xs_lease_region_name(const char *prefix, uint32_t worker_id, char out[MOE_SHM_NAME_BYTES]);

/* Takes the instance lock `<endpoint_path>.lock`, making its directory (0700) if it is missing.
 * MOE_ERR_BUSY names the process that has it. A process that died may still have reads in flight,
 * and the kernel keeps its lock until they have landed: that is waited for. *out_fd is the
 * caller's to close; closing gives the lock back. */
MOE_MUST_CHECK moe_status xs_instance_lock(const char *endpoint, const char *endpoint_path,
                                           int *out_fd, moe_err *err);

typedef struct xs_sizing {
    const char *ram_bytes; /* the setting's text */
    uint64_t slot_bytes;
    uint32_t n_experts, max_workers;
    uint64_t leases_per_worker; /* 0: at least 1 */
    uint64_t total_ram;         /* of this machine */
    uint64_t available_ram;     /* the lesser of free memory and free /dev/shm, and what is had */
    uint64_t present_bytes;     /* of slots that there are already; 0 at a start */
} xs_sizing;

/* Slots a setting buys, never more than there are experts. MOE_ERR_LIMIT names the minimum in
 * bytes: the leases of every worker and one read, or all experts if that is less.
 * MOE_ERR_NO_SPACE: more than this machine has to give. */
MOE_MUST_CHECK moe_status xs_size_slots(const xs_sizing *s, uint32_t *out_n_slots, moe_err *err);

typedef struct xs_limits_cfg {
    uint32_t n_slots, n_experts, max_workers;
    uint64_t slot_bytes;
    uint64_t leases_per_worker; /* 0: as many as fit, at most 256 */
    uint64_t speculative_bytes; /* 0: one expert, at least 8 MiB */
    uint32_t reader_in_flight;  /* experts the reader can have in flight */
} xs_limits_cfg;

typedef struct xs_limits {
    uint32_t in_flight;             /* experts being read */
    uint32_t speculative_in_flight; /* of these, for predictions and warm-up */
    uint32_t lease_capacity;
} xs_limits;

/* n_slots >= workers * lease capacity + reads in flight, except where every expert has a slot of
 * its own; n_slots comes from xs_size_slots. */
xs_limits xs_size_limits(const xs_limits_cfg *c);

typedef struct xs_regions_cfg {
    const char *endpoint_path; /* borrowed */
    const char *ram_bytes;     /* borrowed */
    uint32_t max_workers;
    uint64_t leases_per_worker;
    uint64_t present_bytes; /* of slots that serve already; 0 at a start */
    uint32_t mode;          /* 0600, or 0640 for a second user */
} xs_regions_cfg;

typedef struct xs_regions {
    char prefix[XS_REGION_PREFIX_BYTES];
    moe_shm_region slots, dense, board;
    uint32_t n_slots;       /* of the slots region: one per expert */
    uint32_t n_budget;      /* that shall have pages: what ram_bytes buys, and n_over_budget */
    uint32_t n_over_budget; /* adopted beyond it, for a worker may have registered them */
    uint32_t mode;
    bool adopted;
    char refused[400]; /* why memory that was there was not adopted; "" */
} xs_regions;

#define XS_REGIONS_NONE                                                                            \
    ((xs_regions){                                                                                 \
        .slots = MOE_SHM_REGION_NONE, .dense = MOE_SHM_REGION_NONE, .board = MOE_SHM_REGION_NONE})

/* Slots that a setting buys on this machine, beside what reusable bytes are taken already; errors
 * as xs_size_slots. */
MOE_MUST_CHECK moe_status xs_regions_size(const xs_regions_cfg *cfg, const xs_model *m,
                                          uint64_t reusable, uint32_t *out_n_budget, moe_err *err);
/* Adopts or creates all three; a stale dense region is rebuilt. The instance lock is held. New
 * slots have no pages yet, adopted ones perhaps not all: the board says how many do. */
MOE_MUST_CHECK moe_status xs_regions_open(const xs_regions_cfg *cfg, const xs_model *m,
                                          xs_regions *out, moe_err *err);
/* Tells workers to let go, then removes every name, lease tables too. */
void xs_regions_remove(xs_regions *r);
void xs_regions_close(xs_regions *r); /* unmaps; names stay. Accepts XS_REGIONS_NONE; idempotent */

#endif
