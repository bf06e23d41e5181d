/* span_stream.h - many byte ranges of files as one stream, read ahead by threads of its own.
 *
 * Ranges begin at any offset; the drive is read in aligned windows past the page cache (buffered
 * where O_DIRECT is refused, which changes nothing but the speed), a few at a time, in order:
 *
 *   a window:  taken by a thread -> read -> consumed by the caller -> its buffer is free again
 *
 * Threads: one caller; ours hold no lock while they read. Errors: the failed window's, when the
 * caller reaches it. Shutdown: destroy lets reads in flight finish and joins the threads.
 */
#ifndef XS_SPAN_STREAM_H
#define XS_SPAN_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

typedef struct xs_span {
    const char *path; /* borrowed; must outlive the stream */
    uint64_t off, bytes;
} xs_span;

typedef struct xs_span_stream xs_span_stream;

/* spans: [n], borrowed. Nothing is opened before it is needed. */
MOE_MUST_CHECK moe_status xs_span_stream_create(const xs_span *spans, uint32_t n, bool direct,
                                                xs_span_stream **out, moe_err *err);
void xs_span_stream_destroy(xs_span_stream *s); /* accepts NULL */
/* The next `bytes` bytes of all spans together; asking past the end is our bug. */
MOE_MUST_CHECK moe_status xs_span_stream_read(xs_span_stream *s, void *dst, size_t bytes,
                                              moe_err *err);

#endif
