/* kv_cache.c - see kv_cache.h. */
#include "gpu-worker/engine/kv_cache.h"

#include <stdbool.h>
#include <stdlib.h>

#include "common/bytes.h"

struct gw_kv_cache {
    gw_kv_cache_cfg cfg;
    float *arena; /* owned, device */
    uint64_t bytes;
    uint64_t tensor_at[GW_KV_TENSORS]; /* rows from the layer's start */
    uint64_t layer_rows;
    bool *taken; /* [n_places], owned */
    uint32_t n_free;
};

static uint64_t rows_of(const gw_kv_cache_cfg *cfg, uint32_t which)
{
    bool self = which == GW_KV_SELF_K || which == GW_KV_SELF_V;
    return (uint64_t)cfg->n_places * (self ? cfg->max_output : cfg->max_input);
}

static void lay_out(gw_kv_cache *c)
{
    for (uint32_t which = 0; which < GW_KV_TENSORS; which++) {
        c->tensor_at[which] = c->layer_rows;
        c->layer_rows += rows_of(&c->cfg, which);
    }
}

static moe_status allocate(gw_kv_cache *c, moe_err *err)
{
    const gw_kv_cache_cfg *cfg = &c->cfg;
    uint64_t rows = 0;
    uint64_t row_bytes = (uint64_t)cfg->width * sizeof(float);
    void *arena = NULL;
    moe_status st = MOE_ERR_LIMIT;
    if (moe_mul_u64(c->layer_rows, cfg->n_layers, &rows) &&
        moe_mul_u64(rows, row_bytes, &c->bytes) && c->bytes <= SIZE_MAX) {
        st = cfg->ops->backend.mem_alloc(cfg->device, (size_t)c->bytes, &arena, err);
    }
    if (st != MOE_OK) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY,
                        "cannot allocate %llu bytes of device memory for keys and values of "
                        "max_batch=%u sequences of max_input_tokens=%u and max_output_tokens=%u: "
                        "lower one of these settings",
                        (unsigned long long)c->bytes, cfg->n_places, cfg->max_input,
                        cfg->max_output);
    }
    c->arena = arena;
    return MOE_OK;
}

moe_status gw_kv_cache_create(const gw_kv_cache_cfg *cfg, gw_kv_cache **out, moe_err *err)
{
    if (cfg->n_layers == 0 || cfg->width == 0 || cfg->n_places == 0 || cfg->max_input == 0 ||
        cfg->max_output == 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "kv cache: layers %u, width %u, max_batch %u, max_input_tokens %u, "
                        "max_output_tokens %u: none may be 0",
                        cfg->n_layers, cfg->width, cfg->n_places, cfg->max_input, cfg->max_output);
    }
    gw_kv_cache *c = calloc(1, sizeof *c);
    bool *taken = calloc(cfg->n_places, sizeof *taken);
    moe_status st = MOE_OK;
    if (c == NULL || taken == NULL) {
        free(taken);
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "kv cache of %u places", cfg->n_places);
        goto fail;
    }
    c->cfg = *cfg;
    c->taken = taken;
    c->n_free = cfg->n_places;
    lay_out(c);
    st = allocate(c, err);
    if (st != MOE_OK) {
        goto fail;
    }
    *out = c;
    return MOE_OK;
fail:
    gw_kv_cache_destroy(c);
    return st;
}

void gw_kv_cache_destroy(gw_kv_cache *c)
{
    if (c == NULL) {
        return;
    }
    if (c->arena != NULL) {
        c->cfg.ops->backend.mem_free(c->cfg.device, c->arena);
    }
    free(c->taken);
    free(c);
}

uint64_t gw_kv_cache_bytes(const gw_kv_cache *c)
{
    return c->bytes;
}

moe_status gw_kv_cache_take(gw_kv_cache *c, uint32_t *out_place, moe_err *err)
{
    for (uint32_t place = 0; place < c->cfg.n_places; place++) {
        if (!c->taken[place]) {
            c->taken[place] = true;
            c->n_free--;
            *out_place = place;
            return MOE_OK;
        }
    }
    return MOE_FAIL(err, MOE_ERR_NO_SLOT, "all %u places of the kv cache are taken",
                    c->cfg.n_places);
}

void gw_kv_cache_release(gw_kv_cache *c, uint32_t place)
{
    MOE_ASSERT(place < c->cfg.n_places && c->taken[place]);
    c->taken[place] = false;
    c->n_free++;
}

uint32_t gw_kv_cache_free_places(const gw_kv_cache *c)
{
    return c->n_free;
}

float *gw_kv_cache_tensor(const gw_kv_cache *c, uint32_t layer, gw_kv_tensor which)
{
    MOE_ASSERT(layer < c->cfg.n_layers && which < GW_KV_TENSORS);
    uint64_t row = layer * c->layer_rows + c->tensor_at[which];
    return c->arena + row * c->cfg.width;
}

int64_t gw_kv_cache_self_row(const gw_kv_cache *c, uint32_t place)
{
    MOE_ASSERT(place < c->cfg.n_places);
    return (int64_t)place * c->cfg.max_output;
}

int64_t gw_kv_cache_cross_row(const gw_kv_cache *c, uint32_t place)
{
    MOE_ASSERT(place < c->cfg.n_places);
    return (int64_t)place * c->cfg.max_input;
}
