/* dense.h - fills the dense region (proto/dense_table.h): the checkpoint's files and the weights
 * that every worker keeps, read and verified before the first WELCOME.
 * Called once at start, on the main thread; nothing to shut down.
 */
#ifndef XS_DENSE_H
#define XS_DENSE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "expert-store/server/model_source.h"

/* Bytes of the region, a multiple of 4096. */
MOE_MUST_CHECK moe_status xs_dense_bytes(const xs_model *m, uint64_t *out_bytes, moe_err *err);
/* Fills zeroed memory of that size, magic last. MOE_ERR_CORRUPT names the tensor. */
MOE_MUST_CHECK moe_status xs_dense_load(const xs_model *m, void *region, uint64_t bytes,
                                        moe_err *err);
/* Is a region found in memory complete and of this model? */
bool xs_dense_matches(const xs_model *m, const void *region, uint64_t bytes,
                      uint64_t expected_bytes);
/* Does `bytes` hash to what the catalogue says, chunk by chunk? */
bool xs_extent_verify(const xs_extent *extent, const void *bytes);

#endif
