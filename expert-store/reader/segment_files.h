/* segment_files.h - the open segments of a store: O_DIRECT where the file system allows it.
 * Owned by the extent reader. Threads: opened and closed by one; any may read the fds. */
#ifndef XS_SEGMENT_FILES_H
#define XS_SEGMENT_FILES_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "expert-store/catalog/catalog.h"

typedef struct xs_segment_files {
    int *fds; /* [n] owned; -1 where closed */
    uint32_t n;
    bool direct; /* every segment takes O_DIRECT reads */
} xs_segment_files;

/* Opens every segment. One that refuses direct reads makes all of them buffered; out_why then names
 * it and the cost (else out_why stays as it is). */
MOE_MUST_CHECK moe_status xs_segment_files_open(const xs_catalog *catalog, bool want_direct,
                                                xs_segment_files *out, char *out_why,
                                                uint32_t why_bytes, moe_err *err);
void xs_segment_files_close(xs_segment_files *f); /* idempotent; accepts {0} */

#endif
