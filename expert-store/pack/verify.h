/* verify.h - reads a finished store back and compares every chunk with its hash, the padding with
 * zeros. Threads: n_threads, the caller's among them; the watch is called under a lock, from any.
 */
#ifndef XS_VERIFY_H
#define XS_VERIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "expert-store/catalog/catalog.h"
#include "expert-store/pack/pack.h"

typedef struct xs_verify_options {
    uint32_t n_threads;
    bool direct;         /* O_DIRECT where the filesystem has it: past the page cache */
    xs_pack_watch watch; /* note: one line per bad extent */
} xs_verify_options;

typedef struct xs_verify_result {
    uint32_t n_extents, n_bad;
    uint64_t bytes;
    bool direct;
    int64_t ns;
} xs_verify_result;

/* MOE_ERR_CORRUPT or MOE_ERR_IO when an extent is bad: err names the first, *out is filled
 * nevertheless. MOE_ERR_CANCELLED when stopped. */
MOE_MUST_CHECK moe_status xs_verify(const char *store_dir, const xs_catalog *c,
                                    const xs_verify_options *opt, xs_verify_result *out,
                                    moe_err *err);

#endif
