/* expert_list.h - which experts a person means: "all", "7", "0-15,40", "dec0", "enc1:3-5,enc2:0".
 * Threads: no state. */
#ifndef XS_EXPERT_LIST_H
#define XS_EXPERT_LIST_H

#include <stdint.h>

#include "common/status.h"

typedef struct xs_expert_space {
    uint32_t n_experts;  /* flat, all blocks */
    uint32_t per_block;  /* > 0 */
    uint32_t enc_blocks; /* the decoder's first block is this flat one */
} xs_expert_space;

/* *out_experts is owned by the caller (free), *out_n > 0. MOE_ERR_INVALID names the bad part. */
MOE_MUST_CHECK moe_status xs_expert_list_parse(const char *text, const xs_expert_space *space,
                                               uint32_t **out_experts, uint32_t *out_n,
                                               moe_err *err);

#endif
