/* reader_internal.h - between the extent reader and its three engines.
 *
 * The reader splits experts into reads and owns every policy: what is read next, short reads,
 * retries, verification. An engine only moves bytes: it takes a read, and gives it back with a
 * result. All calls come from the event-loop thread.
 */
#ifndef XS_READER_INTERNAL_H
#define XS_READER_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "expert-store/reader/extent_reader.h"
#include "expert-store/reader/segment_files.h"
#include "expert-store/reader/work_pool.h"

typedef struct xs_job xs_job; /* one expert on its way, extent_reader.c */

typedef struct xs_read {
    xs_work work;     /* first member; its next also links lists of ended reads */
    uint32_t expert;  /* synthetic: what to compute */
    uint32_t slot;    /* where dst lies */
    uint32_t segment; /* index into xs_engine_cfg.files.fds */
    uint64_t file_off;
    char *dst;
    uint64_t bytes; /* wanted, > 0 */
    int64_t result; /* set by the engine: bytes moved, 0 at the end of the file, or -errno */
    /* the reader's own */
    xs_job *job;
    uint64_t extent_off, extent_bytes; /* the whole range this read is for */
    uint32_t n_retries;
    bool speculative;               /* counted as such when it was started */
    struct xs_engine_state *engine; /* set by pool engines for run() */
} xs_read;

typedef struct xs_engine_cfg {
    const xs_reader_cfg *reader;   /* borrowed during open only */
    const xs_segment_files *files; /* borrowed until close; no files with SYNTHETIC */
    int wake_fd;                   /* borrowed until close: written when a read may have ended */
    uint32_t max_reads;            /* never more in the engine at a time */
} xs_engine_cfg;

typedef struct xs_engine_state xs_engine_state; /* each engine's own */

typedef struct xs_engine_ops {
    xs_engine engine;
    /* May set report->registered_buffers and append to its note (xs_reader_note). */
    MOE_MUST_CHECK moe_status (*open)(const xs_engine_cfg *cfg, xs_reader_report *report,
                                      xs_engine_state **out, moe_err *err);
    /* The first n_made slots have pages now. May append to the report; NULL: nothing to do. */
    void (*add_slots)(xs_engine_state *e, uint32_t n_made, bool more_come,
                      xs_reader_report *report);
    /* No read is in the engine any more. */
    void (*close)(xs_engine_state *e);
    /* Cannot fail: a failure comes back as the read's result. */
    void (*start)(xs_engine_state *e, xs_read *read);
    /* Makes what was started go on its way; called after a batch of starts and at every harvest. */
    void (*flush)(xs_engine_state *e);
    /* Ended reads, linked by work.next; NULL when there are none. */
    xs_read *(*reap)(xs_engine_state *e);
    /* Blocks until reap may return something; at least one read is in the engine. Shutdown only. */
    void (*wait)(xs_engine_state *e);
} xs_engine_ops;

extern const xs_engine_ops xs_engine_uring;
extern const xs_engine_ops xs_engine_pread;
extern const xs_engine_ops xs_engine_synthetic;

/* Appends one remark to report->note, separated by "; ", cut where it is full. */
void xs_reader_note(xs_reader_report *report, const char *fmt, ...) MOE_PRINTF(2, 3);

#endif
