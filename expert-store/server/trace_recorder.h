/* trace_recorder.h - writes what a running store sees into a file (access_trace.h).
 *
 * Uses come from the lease tables, where workers count them without a message: tick compares the
 * counts with those of the last look. Everything else is noted when it happens. What is noted waits
 * in a buffer and goes into the file (the page cache, that is) when the buffer is full, once a
 * second, and at the end.
 * Recording never stops the store: when the file cannot be written or has reached its size limit,
 * recording ends, and tick says so once.
 * Threads: the store's event loop.
 */
#ifndef XS_TRACE_RECORDER_H
#define XS_TRACE_RECORDER_H

#include "common/status.h"
#include "expert-store/policy/access_trace.h"
#include "expert-store/server/lease_view.h"

typedef struct xs_recorder_cfg {
    const char *path;
    xs_trace_header header;      /* magic is filled in */
    uint64_t max_bytes;          /* of the file */
    const xs_lease_view *leases; /* borrowed until destroy */
} xs_recorder_cfg;

typedef struct xs_recorder xs_recorder; /* opaque */
/* Begins the file anew. MOE_ERR_INVALID: there is a file at `path` that is no trace. */
MOE_MUST_CHECK moe_status xs_recorder_create(const xs_recorder_cfg *cfg, xs_recorder **out,
                                             moe_err *err);
void xs_recorder_destroy(xs_recorder *r); /* writes what is left; accepts NULL */
/* n: as the record has it. Accepts NULL: nothing is recorded. */
void xs_recorder_note(xs_recorder *r, xs_trace_kind kind, uint32_t expert, uint32_t n);
/* Every header.period_us: looks at the use counts. Fails at most once, with the reason why
 * recording ended. */
MOE_MUST_CHECK moe_status xs_recorder_tick(xs_recorder *r, moe_err *err);
uint64_t xs_recorder_bytes(const xs_recorder *r); /* of the file so far; 0 for NULL */
bool xs_recorder_active(const xs_recorder *r);    /* false for NULL and after it ended */

#endif
