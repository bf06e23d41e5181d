/* plan.c - see plan.h. */
#include "gpu-worker/fetch/plan.h"

uint32_t gw_plan_wave_capacity(uint32_t n_cells)
{
    uint32_t half = n_cells / 2;
    if (half > GW_PLAN_WAVE_EXPERTS) {
        return GW_PLAN_WAVE_EXPERTS;
    }
    return half > 0 ? half : 1;
}

uint32_t gw_plan_active_max(gw_policy policy, uint32_t n_experts, uint32_t top_k, uint32_t n_rows)
{
    uint64_t pairs = (uint64_t)n_rows * top_k;
    if (pairs == 0) {
        return 0;
    }
    return policy == GW_PREFETCH_ALL || pairs > n_experts ? n_experts : (uint32_t)pairs;
}

bool gw_plan_needs_all(uint32_t n_experts, uint32_t top_k, uint32_t n_rows)
{
    return (uint64_t)n_rows * top_k >= 4ull * n_experts;
}

uint32_t gw_plan_n_waves(uint32_t n, uint32_t capacity)
{
    return (n + capacity - 1) / capacity;
}

/* Insertion: a wave has at most 64 experts, in at most three rising runs. */
static void sort_rising(uint16_t *a, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        uint16_t x = a[i];
        uint32_t j = i;
        for (; j > 0 && a[j - 1] > x; j--) {
            a[j] = a[j - 1];
        }
        a[j] = x;
    }
}

uint32_t gw_plan_waves(const uint16_t *set, const uint8_t *near, uint32_t n, uint32_t capacity,
                       uint16_t *out)
{
    uint32_t at = 0;
    for (int rank = 0; rank < GW_N_NEAR; rank++) {
        for (uint32_t i = 0; i < n; i++) {
            if (near[i] == rank) {
                out[at++] = set[i];
            }
        }
    }
    MOE_ASSERT(at == n);
    for (uint32_t first = 0; first < n; first += capacity) {
        sort_rising(out + first, n - first < capacity ? n - first : capacity);
    }
    return gw_plan_n_waves(n, capacity);
}

bool gw_plan_routed_ahead(gw_policy policy, uint32_t lookahead, uint32_t block)
{
    return policy == GW_PREGATED && lookahead > 0 && block > 0;
}

static uint32_t wanted_cells(const gw_pipeline_cfg *cfg, const moe_model_shape *shape,
                             uint64_t bytes_per_cell)
{
    if (cfg->n_cells > 0) {
        return cfg->n_cells;
    }
    if (cfg->cell_bytes > 0) {
        uint64_t n = cfg->cell_bytes / bytes_per_cell;
        return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
    }
    if (cfg->policy == GW_RESIDENT) {
        return UINT32_MAX;
    }
    uint32_t active =
        gw_plan_active_max(cfg->policy, shape->n_experts, shape->top_k, cfg->decode_rows);
    return active > 0 ? 2 * active : 2;
}

moe_status gw_plan_n_cells(const gw_pipeline_cfg *cfg, const moe_model_shape *shape,
                           uint64_t bytes_per_cell, uint32_t *out_n, moe_err *err)
{
    uint32_t all = shape->n_experts_total > 2 ? shape->n_experts_total : 2;
    uint32_t need = cfg->policy == GW_RESIDENT ? all : 2;
    uint32_t n = wanted_cells(cfg, shape, bytes_per_cell);
    if (n < need) {
        return MOE_FAIL(err, MOE_ERR_LIMIT,
                        "%u cells of %llu bytes, but %s needs at least %u (%llu bytes): give more "
                        "cell bytes%s",
                        n, (unsigned long long)bytes_per_cell,
                        cfg->policy == GW_RESIDENT ? "the resident policy" : "a worker", need,
                        (unsigned long long)(bytes_per_cell * need),
                        cfg->policy == GW_RESIDENT ? " or choose another fetch policy" : "");
    }
    *out_n = n < all ? n : all;
    return MOE_OK;
}
