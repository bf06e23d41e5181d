/* pack_config.h - the settings of expert-pack. Threads: const once loaded. */
#ifndef XS_PACK_CONFIG_H
#define XS_PACK_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "common/config.h"

enum { XS_PACK_DTYPE_KEEP = 0, XS_PACK_DTYPE_BF16, XS_PACK_DTYPE_F32 };

typedef struct xs_pack_config {
    char out[MOE_CFG_STR_BYTES];
    char synthetic[MOE_CFG_STR_BYTES];
    uint64_t seed;
    int dtype; /* XS_PACK_DTYPE_* */
    bool force, json, direct;
    uint64_t segment_bytes, buffer_bytes;
    uint64_t buffers, writers, commit_every, verify_threads;
    char test_kill_at[MOE_CFG_STR_BYTES];
} xs_pack_config;

extern const moe_config_spec xs_pack_config_spec;

#endif
