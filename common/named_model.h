/* named_model.h - the config.json of models known by name: Switch Transformers of real shapes.
 *
 * expert-store/catalog/synthetic.h makes weights for them; `gpu-worker plan` asks what they would
 * need. Names: switch-tiny, switch-base-8|16|32|64|128|256, switch-large-128, each also with the
 * suffix -pregated. Threads: no state.
 */
#ifndef MOE_COMMON_NAMED_MODEL_H
#define MOE_COMMON_NAMED_MODEL_H

#include <stddef.h>

#include "common/dtype.h"
#include "common/status.h"

/* The named model's config.json into out; MOE_ERR_INVALID lists the known names, MOE_ERR_LIMIT says
 * how many bytes it takes (about 1.5 KiB). */
MOE_MUST_CHECK moe_status moe_named_config(const char *name, moe_dtype dtype, char *out,
                                           size_t out_bytes, moe_err *err);

#endif
