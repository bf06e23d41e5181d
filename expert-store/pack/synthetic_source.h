/* synthetic_source.h - a model made from a seed (expert-store/catalog/synthetic.h) as a source of a
 * store. Threads: one. */
#ifndef XS_SYNTHETIC_SOURCE_H
#define XS_SYNTHETIC_SOURCE_H

#include <stdint.h>

#include "common/dtype.h"
#include "common/status.h"
#include "expert-store/pack/source.h"

typedef struct xs_synthetic_source xs_synthetic_source;

MOE_MUST_CHECK moe_status xs_synthetic_source_open(const char *name, moe_dtype dtype, uint64_t seed,
                                                   xs_synthetic_source **out, moe_err *err);
void xs_synthetic_source_close(xs_synthetic_source *s); /* accepts NULL */
const xs_source *xs_synthetic_source_get(const xs_synthetic_source *s);

#endif
