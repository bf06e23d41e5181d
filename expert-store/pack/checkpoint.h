/* checkpoint.h - a Hugging Face directory as a source of a store: found, checked whole, then read.
 *
 * Accepted: config.json, and model.safetensors or model.safetensors.index.json with its shards.
 * Everything that can be wrong is found at open, before a byte is written: see checkpoint_check.c.
 * Memory: the table of contents (a few hundred bytes a tensor), a conversion buffer of 1 MiB and
 * the read-ahead of span_stream.h. Threads: one caller; the read-ahead has its own.
 */
#ifndef XS_CHECKPOINT_H
#define XS_CHECKPOINT_H

#include <stdbool.h>

#include "common/dtype.h"
#include "common/status.h"
#include "expert-store/pack/source.h"

typedef struct xs_checkpoint xs_checkpoint;

/* dtype 0 keeps what is stored; otherwise all weights are converted, rounding to nearest even.
 * direct: read past the page cache where the filesystem can.
 * Errors name the file or tensor, the reason and the remedy. */
MOE_MUST_CHECK moe_status xs_checkpoint_open(const char *dir, moe_dtype dtype, bool direct,
                                             xs_checkpoint **out, moe_err *err);
void xs_checkpoint_close(xs_checkpoint *c); /* accepts NULL */
const xs_source *xs_checkpoint_source(const xs_checkpoint *c);

#endif
