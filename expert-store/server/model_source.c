/* model_source.c - see model_source.h. */
#include "expert-store/server/model_source.h"

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checksum.h"
#include "expert-store/catalog/synthetic.h"
#include "expert-store/server/dense.h"

enum { CONFIG_JSON_BYTES = 16 << 10 };

static void synthetic_uuid(const xs_config *cfg, uint8_t uuid[16])
{
    char text[MOE_CFG_STR_BYTES + 64];
    int n = snprintf(text, sizeof text, "synthetic %s %s %llu", cfg->synthetic,
                     moe_dtype_name(xs_config_dtype(cfg)), (unsigned long long)cfg->seed);
    moe_store_le64(uuid, moe_xxh3(text, (size_t)n));
    text[0] = 'S';
    moe_store_le64(uuid + 8, moe_xxh3(text, (size_t)n));
}

static moe_status open_synthetic(const xs_config *cfg, xs_model *m, moe_err *err)
{
    m->seed = cfg->seed;
    m->expert_dtype = xs_config_dtype(cfg);
    m->config_json = calloc(1, CONFIG_JSON_BYTES);
    if (m->config_json == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "config.json of %.60s", cfg->synthetic);
    }
    moe_status st = xs_synthetic_config(cfg->synthetic, m->expert_dtype, m->config_json,
                                        CONFIG_JSON_BYTES, err);
    if (st != MOE_OK) {
        return st;
    }
    st = moe_model_shape_parse(m->config_json, strlen(m->config_json), &m->shape, err);
    if (st != MOE_OK) {
        return st;
    }
    snprintf(m->name, sizeof m->name, "%.50s", cfg->synthetic);
    synthetic_uuid(cfg, m->uuid);
    m->expert_bytes = moe_expert_params(&m->shape) * moe_dtype_bytes(m->expert_dtype);
    m->slot_bytes = moe_align_up(m->expert_bytes, XS_EXTENT_ALIGN);
    return MOE_OK;
}

static moe_status open_catalog(const xs_config *cfg, xs_model *m, moe_err *err)
{
    moe_status st = xs_catalog_open(cfg->store, &m->catalog, err);
    if (st != MOE_OK) {
        return st;
    }
    const xs_catalog_info *info = xs_catalog_get_info(m->catalog);
    m->shape = info->shape;
    memcpy(m->uuid, info->uuid, sizeof m->uuid);
    snprintf(m->name, sizeof m->name, "%s", info->model_name);
    m->expert_dtype = (moe_dtype)info->expert_dtype;
    m->expert_bytes = info->expert_bytes;
    m->slot_bytes = info->slot_bytes;
    return MOE_OK;
}

moe_status xs_model_open(const xs_config *cfg, xs_model *out, moe_err *err)
{
    xs_model m = {0};
    moe_status st =
        cfg->synthetic[0] != '\0' ? open_synthetic(cfg, &m, err) : open_catalog(cfg, &m, err);
    if (st == MOE_OK && m.shape.n_experts_total == 0) {
        st = MOE_FAIL(err, MOE_ERR_UNSUPPORTED, "%s has no experts", m.name);
    }
    if (st != MOE_OK) {
        xs_model_close(&m);
        return st;
    }
    *out = m;
    return MOE_OK;
}

void xs_model_close(xs_model *m)
{
    xs_catalog_close(m->catalog);
    free(m->config_json);
    *m = (xs_model){0};
}

bool xs_model_verify_expert(const xs_model *m, uint32_t expert, const void *bytes, void *scratch)
{
    if (m->catalog == NULL) {
        xs_synthetic_expert(&m->shape, m->expert_dtype, m->seed, expert, scratch);
        return memcmp(bytes, scratch, m->expert_bytes) == 0;
    }
    return xs_extent_verify(&xs_catalog_expert(m->catalog, expert)->extent, bytes);
}
