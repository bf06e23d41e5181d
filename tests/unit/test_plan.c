/* How a block's experts become waves, and how many cells a budget gives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu-worker/fetch/plan.h"

static void a_wave_is_half_of_the_cells(void **state)
{
    (void)state;
    assert_int_equal(1, gw_plan_wave_capacity(2));
    assert_int_equal(1, gw_plan_wave_capacity(3));
    assert_int_equal(8, gw_plan_wave_capacity(16));
    assert_int_equal(GW_PLAN_WAVE_EXPERTS, gw_plan_wave_capacity(1000));
}

static void active_experts_are_bounded_by_rows_and_experts(void **state)
{
    (void)state;
    assert_false(gw_plan_needs_all(64, 1, 255));
    assert_true(gw_plan_needs_all(64, 1, 256));
    assert_true(gw_plan_needs_all(64, 2, 128));
    assert_int_equal(0, gw_plan_active_max(GW_PREGATED, 128, 1, 0));
    assert_int_equal(3, gw_plan_active_max(GW_PREGATED, 128, 1, 3));
    assert_int_equal(6, gw_plan_active_max(GW_ON_DEMAND, 128, 2, 3));
    assert_int_equal(128, gw_plan_active_max(GW_PREGATED, 128, 2, 4000000000u));
    assert_int_equal(128, gw_plan_active_max(GW_PREFETCH_ALL, 128, 1, 1));
}

static void waves_put_near_experts_first_and_rise_inside(void **state)
{
    (void)state;
    const uint16_t set[] = {1, 3, 4, 6, 7, 9, 20};
    const uint8_t near[] = {GW_NEAR_DISK, GW_NEAR_CELL, GW_NEAR_SLOT, GW_NEAR_CELL,
                            GW_NEAR_DISK, GW_NEAR_SLOT, GW_NEAR_CELL};
    const uint16_t expected[] = {3, 6, 20, 1, 4, 9, 7};
    uint16_t out[7];
    assert_int_equal(3, gw_plan_waves(set, near, 7, 3, out));
    assert_memory_equal(expected, out, sizeof out);
}

static void an_empty_set_has_no_waves(void **state)
{
    (void)state;
    assert_int_equal(0, gw_plan_waves(NULL, NULL, 0, 4, NULL));
}

/* For many sets: each expert once, no wave over capacity, as many waves as the host expects. */
static void every_expert_is_in_exactly_one_wave(void **state)
{
    (void)state;
    uint64_t seed = 7;
    for (uint32_t round = 0; round < 300; round++) {
        uint16_t set[KRN_MAX_EXPERTS], out[KRN_MAX_EXPERTS];
        uint8_t near[KRN_MAX_EXPERTS], seen[KRN_MAX_EXPERTS] = {0};
        uint32_t n = 0, capacity = 1 + round % 9;
        for (uint16_t e = 0; e < 128; e++) {
            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            if ((seed >> 33) % 3 == 0) {
                near[n] = (uint8_t)((seed >> 40) % GW_N_NEAR);
                set[n++] = e;
            }
        }
        uint32_t n_waves = gw_plan_waves(set, near, n, capacity, out);
        assert_int_equal(gw_plan_n_waves(n, capacity), n_waves);
        for (uint32_t i = 0; i < n; i++) {
            assert_true(i % capacity == 0 || out[i - 1] < out[i]);
            seen[out[i]]++;
        }
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(1, seen[set[i]]);
        }
    }
}

static void only_a_pregate_routes_ahead_and_never_the_first_block(void **state)
{
    (void)state;
    assert_true(gw_plan_routed_ahead(GW_PREGATED, 1, 1));
    assert_false(gw_plan_routed_ahead(GW_PREGATED, 1, 0));
    assert_false(gw_plan_routed_ahead(GW_PREGATED, 0, 1));
    assert_false(gw_plan_routed_ahead(GW_ON_DEMAND, 1, 1));
    assert_false(gw_plan_routed_ahead(GW_RESIDENT, 1, 1));
}

static const moe_model_shape shape = {
    .n_experts = 8, .top_k = 1, .n_blocks_total = 4, .n_experts_total = 32};

static uint32_t cells_of(gw_pipeline_cfg cfg)
{
    uint32_t n = 0;
    assert_int_equal(MOE_OK, gw_plan_n_cells(&cfg, &shape, 1000, &n, NULL));
    return n;
}

static void cells_follow_from_count_bytes_or_the_active_set(void **state)
{
    (void)state;
    assert_int_equal(5, cells_of((gw_pipeline_cfg){.policy = GW_PREGATED, .n_cells = 5}));
    assert_int_equal(3, cells_of((gw_pipeline_cfg){.policy = GW_PREGATED, .cell_bytes = 3999}));
    assert_int_equal(
        6, cells_of((gw_pipeline_cfg){.policy = GW_PREGATED, .decode_rows = 3, .max_rows = 99}));
    assert_int_equal(16, cells_of((gw_pipeline_cfg){.policy = GW_PREGATED, .decode_rows = 99}));
    assert_int_equal(16, cells_of((gw_pipeline_cfg){.policy = GW_PREFETCH_ALL, .decode_rows = 1}));
    assert_int_equal(32, cells_of((gw_pipeline_cfg){.policy = GW_PREGATED, .n_cells = 99}));
    assert_int_equal(32, cells_of((gw_pipeline_cfg){.policy = GW_RESIDENT}));
}

static void too_few_cells_are_refused_with_the_bytes_needed(void **state)
{
    (void)state;
    const gw_pipeline_cfg one = {.policy = GW_PREGATED, .cell_bytes = 1999};
    const gw_pipeline_cfg some = {.policy = GW_RESIDENT, .n_cells = 31};
    uint32_t n = 77;
    moe_err err;
    assert_int_equal(MOE_ERR_LIMIT, gw_plan_n_cells(&one, &shape, 1000, &n, &err));
    assert_non_null(strstr(err.text, "2000 bytes"));
    assert_int_equal(MOE_ERR_LIMIT, gw_plan_n_cells(&some, &shape, 1000, &n, &err));
    assert_non_null(strstr(err.text, "32000 bytes"));
    assert_int_equal(77, n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wave_is_half_of_the_cells),
        cmocka_unit_test(active_experts_are_bounded_by_rows_and_experts),
        cmocka_unit_test(waves_put_near_experts_first_and_rise_inside),
        cmocka_unit_test(an_empty_set_has_no_waves),
        cmocka_unit_test(every_expert_is_in_exactly_one_wave),
        cmocka_unit_test(only_a_pregate_routes_ahead_and_never_the_first_block),
        cmocka_unit_test(cells_follow_from_count_bytes_or_the_active_set),
        cmocka_unit_test(too_few_cells_are_refused_with_the_bytes_needed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
