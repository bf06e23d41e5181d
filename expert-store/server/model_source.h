/* model_source.h - where experts and dense weights come from: a store directory or a made-up model.
 *
 * Opened once at start, const from then on, closed last. The rest of the store asks here instead of
 * asking twice "catalogue or synthetic?".
 * Threads: verify_expert and the accessors may be called from any thread between open and close.
 */
#ifndef XS_MODEL_SOURCE_H
#define XS_MODEL_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model_shape.h"
#include "common/status.h"
#include "expert-store/catalog/catalog.h"
#include "expert-store/store_config.h"

typedef struct xs_model {
    xs_catalog *catalog; /* owned; NULL: synthetic */
    moe_model_shape shape;
    uint8_t uuid[16]; /* synthetic: a hash of name, seed and dtype */
    char name[64];
    moe_dtype expert_dtype;
    uint64_t expert_bytes, slot_bytes;
    uint64_t seed;     /* synthetic only */
    char *config_json; /* synthetic only, owned */
} xs_model;

MOE_MUST_CHECK moe_status xs_model_open(const xs_config *cfg, xs_model *out, moe_err *err);
void xs_model_close(xs_model *m); /* accepts a zeroed one */
/* Are these slot bytes the expert? scratch: [slot_bytes], used by synthetic models only. */
bool xs_model_verify_expert(const xs_model *m, uint32_t expert, const void *bytes, void *scratch);

#endif
