/* add.h - `expert-pack add STORE FILE.safetensors`: predictors into a finished store.
 *
 * Every tensor of the file must be called predictor.…; those of an earlier add leave the store. The
 * new tensors go into a segment file that no extent of the store lies in, the catalogue is amended
 * in a copy (STORE/add.partial), and one rename exchanges the two: a store is as it was, or has all
 * of the new tensors. The store's UUID changes, so a running expert-store goes on with what it
 * loaded, and one that is started again does not adopt its memory but loads the new tensors.
 * A killed run leaves add.partial and perhaps an unused segment file; the next one takes both over.
 * Threads: the caller's. Nothing to shut down.
 */
#ifndef XS_ADD_H
#define XS_ADD_H

#include <stdint.h>

#include "common/status.h"

#define XS_ADD_PREFIX "predictor."

typedef struct xs_add_result {
    uint32_t n_added, n_dropped;
    uint64_t bytes; /* payloads of the new ones */
} xs_add_result;

/* test_kill_at: "" or before-exchange, after-exchange: die there by SIGKILL. MOE_ERR_BUSY: another
 * add is changing this store. */
MOE_MUST_CHECK moe_status xs_add(const char *store, const char *file, const char *test_kill_at,
                                 xs_add_result *out, moe_err *err);

#endif
