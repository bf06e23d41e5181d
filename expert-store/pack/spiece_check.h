/* spiece_check.h - is this a sentencepiece model? Pure function. Threads: no state. */
#ifndef XS_SPIECE_CHECK_H
#define XS_SPIECE_CHECK_H

#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

/* Walks the file as what it is, one protocol buffer message (sentencepiece_model.proto, ModelProto)
 * with a field 1 for each piece; what is inside the fields is the worker's business. Gives
 * MOE_ERR_FORMAT with the byte where it stops being one, or when there are no pieces. */
MOE_MUST_CHECK moe_status xs_spiece_check(const void *data, size_t bytes, uint32_t *out_n_pieces,
                                          moe_err *err);

#endif
