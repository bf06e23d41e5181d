/* kv_cache.h - keys and values of the running sequences: layout, places, bounds.
 *
 * Every running sequence owns one place. Per decoder layer there are four tensors:
 *   self k, v  : [n_places * max_output, width] f32   row of (place, position)
 *   cross k, v : [n_places * max_input, width]  f32   row of (place, input position)
 * width = n_heads * d_head. One device allocation, made at create; a step never allocates. A
 * place's rows are written before they are read, so a reused place needs no clearing. Memory: 2 *
 * n_layers * n_places * (max_input + max_output) * width * 4 bytes. Threads: the engine thread.
 * Shutdown: destroy, after the compute stream was synchronised.
 */
#ifndef GW_KV_CACHE_H
#define GW_KV_CACHE_H

#include <stdint.h>

#include "kernels/ops.h"

typedef struct gw_kv_cache_cfg {
    const krn_ops *ops;  /* borrowed */
    krn_device *device;  /* borrowed */
    uint32_t n_layers;   /* of the decoder */
    uint32_t width;      /* n_heads * d_head */
    uint32_t n_places;   /* sequences that run together (max_batch) */
    uint32_t max_input;  /* tokens of a prompt */
    uint32_t max_output; /* decoder positions of a sequence */
} gw_kv_cache_cfg;

typedef struct gw_kv_cache gw_kv_cache;
/* MOE_ERR_NO_MEMORY says how many bytes and which settings to lower. */
MOE_MUST_CHECK moe_status gw_kv_cache_create(const gw_kv_cache_cfg *cfg, gw_kv_cache **out,
                                             moe_err *err);
void gw_kv_cache_destroy(gw_kv_cache *c); /* accepts NULL */
uint64_t gw_kv_cache_bytes(const gw_kv_cache *c);

/* A free place, the lowest one; MOE_ERR_NO_SLOT when every place is taken: not fatal. */
MOE_MUST_CHECK moe_status gw_kv_cache_take(gw_kv_cache *c, uint32_t *out_place, moe_err *err);
void gw_kv_cache_release(gw_kv_cache *c, uint32_t place);
uint32_t gw_kv_cache_free_places(const gw_kv_cache *c);

typedef enum gw_kv_tensor {
    GW_KV_SELF_K = 0,
    GW_KV_SELF_V,
    GW_KV_CROSS_K,
    GW_KV_CROSS_V,
    GW_KV_TENSORS
} gw_kv_tensor;
/* Device memory, borrowed until destroy. */
float *gw_kv_cache_tensor(const gw_kv_cache *c, uint32_t layer, gw_kv_tensor which);
/* First row of a place; kv_off of the attention operations. */
int64_t gw_kv_cache_self_row(const gw_kv_cache *c, uint32_t place);
int64_t gw_kv_cache_cross_row(const gw_kv_cache *c, uint32_t place);

#endif
