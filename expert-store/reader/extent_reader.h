/* extent_reader.h - brings extents into slots, verified: submit, poll, harvest.
 *
 *   submit --split into reads--> ring --each chunk landed--> verify threads --all well-->
 * completion
 *
 * Engines, chosen at creation and reported (no silent fallback):
 *   IO_URING   [liburing] O_DIRECT reads straight into the slots; slots are registered buffers in
 *              slices of some 64 MiB that no slot straddles, segments are registered files
 *   PREAD      a thread pool; where io_uring is forbidden
 *   SYNTHETIC  computes the expert from a seed instead of reading it (expert-store --synthetic)
 * The instance lock's fd is registered with the ring as a file: the kernel then releases the lock
 * only when the last read of a dying process has landed (design: adoption).
 * Speculative experts give way: a read of theirs starts only when no other expert's waits, and they
 * have at most an eighth of the depth at the drive, where a read cannot be recalled. So what is
 * needed now finds little before it.
 * A slot belongs to the reader from submit to its completion, on failure too: completions come
 * only after every read of the slot has ended.
 * Threads: everything from create to destroy from the store's one event-loop thread (the ring
 * admits a single issuer); its own verify and pread threads block every signal. Memory: all at
 * creation; submit and harvest never allocate. A failed or corrupt expert completes like any other,
 * with a status and a text naming it, its segment and offset; the slot's content is then undefined.
 */
#ifndef XS_EXTENT_READER_H
#define XS_EXTENT_READER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/metrics.h"
#include "common/status.h"
#include "expert-store/catalog/catalog.h"

typedef enum xs_engine {
    XS_ENGINE_AUTO = 0,
    XS_ENGINE_IO_URING,
    XS_ENGINE_PREAD,
    XS_ENGINE_SYNTHETIC
} xs_engine;

typedef struct xs_reader_cfg {
    const xs_catalog *catalog;    /* borrowed; NULL with SYNTHETIC */
    const moe_model_shape *shape; /* borrowed; SYNTHETIC only */
    uint64_t synthetic_seed;
    uint32_t synthetic_dtype;
    void *slots; /* borrowed, outlives the reader; [n_slots][slot_bytes] */
    uint64_t slot_bytes;
    uint32_t n_slots, n_made;  /* only the first n_made have pages yet: xs_reader_add_slots */
    xs_engine engine;          /* AUTO: io_uring, else pread, with the reason in report */
    bool direct;               /* ask for O_DIRECT */
    uint32_t depth;            /* reads in flight at the device, e.g. 64 */
    uint64_t split_bytes;      /* one read, e.g. 256 KiB; multiple of 4096 */
    uint32_t n_verify_threads; /* >= 1 */
    int lock_fd;               /* instance lock to register with the ring; -1 none */
} xs_reader_cfg;

typedef struct xs_reader_report { /* what was really obtained, for the log and the statistics */
    xs_engine engine;
    bool direct, registered_buffers;
    char note[400]; /* "" or why something asked for was not had, with its cost */
} xs_reader_report;

typedef struct xs_completion {
    uint32_t expert, slot;
    uint64_t tag;
    moe_status status;                     /* MOE_OK; MOE_ERR_IO; MOE_ERR_CORRUPT; ... */
    int64_t queued_ns, read_ns, verify_ns; /* submit to first read, reads, hash tail */
    char text[200];
} xs_completion;

typedef struct xs_reader_counters { /* owned by the reader, event-loop thread */
    uint64_t reads, read_bytes, failed, corrupt;
    uint64_t direct_bytes, buffered_bytes;
    uint32_t experts_in_flight, reads_in_flight;
    moe_histogram read_latency; /* per expert, submit to verified */
} xs_reader_counters;

typedef struct xs_reader xs_reader;
MOE_MUST_CHECK moe_status xs_reader_create(const xs_reader_cfg *cfg, xs_reader **out, moe_err *err);
/* Waits for every read in flight; accepts NULL. */
void xs_reader_destroy(xs_reader *r);
const xs_reader_report *xs_reader_get_report(const xs_reader *r);
const xs_reader_counters *xs_reader_get_counters(const xs_reader *r);
/* The first n_made slots have pages now (never fewer than before), and more are about to: registers
 * them with the ring, in slices; the last one, of a few slots, waits while more come.
 * False: they are not registered, and the report's note says why and what it costs. */
bool xs_reader_add_slots(xs_reader *r, uint32_t n_made, bool more_come);
/* Readable when there may be something to harvest. */
int xs_reader_fd(const xs_reader *r);
/* MOE_ERR_AGAIN when too many experts are in flight already (see max_in_flight): not an error. */
MOE_MUST_CHECK moe_status xs_reader_submit(xs_reader *r, uint32_t expert, uint32_t slot,
                                           uint64_t tag, moe_err *err);
/* Like submit, for an expert that only may be needed; xs_reader_hurry when it is. */
MOE_MUST_CHECK moe_status xs_reader_submit_speculative(xs_reader *r, uint32_t expert, uint32_t slot,
                                                       uint64_t tag, moe_err *err);
/* The expert on its way to this slot counts as needed from now on. None, or one that does already:
 * nothing happens. */
void xs_reader_hurry(xs_reader *r, uint32_t slot);
uint32_t xs_reader_max_in_flight(const xs_reader *r); /* experts; for the RAM minimum */
/* Moves finished experts to out[0..max); returns how many. Never blocks. */
uint32_t xs_reader_harvest(xs_reader *r, xs_completion *out, uint32_t max);

#endif
