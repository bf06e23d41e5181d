/* segment_writer.h - writes aligned buffers into segment files on threads of its own, so that the
 * caller can read and hash the next buffer meanwhile.
 *
 *   acquire -> (caller fills) -> submit -> a writer thread -> free again
 *
 * Files are allocated to their final size when first opened: space that is missing is missed early,
 * and direct writes into allocated files do not serialise on the file's length.
 * Threads: one caller; n_threads of ours, which hold no lock while they write.
 * Errors: the first failed write is reported by the next acquire or flush; later writes are
 * dropped. Shutdown: destroy finishes what was submitted, joins the threads and closes the files.
 */
#ifndef XS_SEGMENT_WRITER_H
#define XS_SEGMENT_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

typedef struct xs_segment_writer xs_segment_writer;

typedef struct xs_segment_writer_cfg {
    const char *dir;               /* the store directory, borrowed */
    const uint64_t *segment_bytes; /* [n_segments] final sizes, borrowed */
    uint32_t n_segments;
    uint64_t align; /* of buffers, offsets and lengths: power of two */
    uint64_t buffer_bytes;
    uint32_t n_buffers, n_threads; /* each > 0 */
    bool direct;                   /* try O_DIRECT */
} xs_segment_writer_cfg;

MOE_MUST_CHECK moe_status xs_segment_writer_create(const xs_segment_writer_cfg *cfg,
                                                   xs_segment_writer **out, moe_err *err);
void xs_segment_writer_destroy(xs_segment_writer *w); /* accepts NULL */

/* A free buffer of buffer_bytes: waits for one. The caller owns it until submit. */
MOE_MUST_CHECK moe_status xs_segment_writer_acquire(xs_segment_writer *w, void **out_buf,
                                                    moe_err *err);
/* Takes the buffer back. bytes and off are multiples of align. */
MOE_MUST_CHECK moe_status xs_segment_writer_submit(xs_segment_writer *w, void *buf, size_t bytes,
                                                   uint32_t segment, uint64_t off, moe_err *err);
/* Everything submitted is on the medium when this returns. */
MOE_MUST_CHECK moe_status xs_segment_writer_flush(xs_segment_writer *w, moe_err *err);
/* False once the filesystem refused O_DIRECT (or it was not asked for). */
bool xs_segment_writer_is_direct(xs_segment_writer *w);

#endif
