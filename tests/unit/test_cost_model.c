/* What a model needs and how fast it can be: arithmetic against hand-made figures. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "common/named_model.h"
#include "expert-store/catalog/synthetic.h"
#include "gpu-worker/bench/bench_stats.h"
#include "gpu-worker/bench/cost_model.h"
#include "gpu-worker/bench/plan_report.h"

static moe_model_shape shape_of(const char *name)
{
    char json[4096];
    moe_model_shape s;
    moe_err err;
    assert_int_equal(MOE_OK, moe_named_config(name, MOE_BF16, json, sizeof json, &err));
    assert_int_equal(MOE_OK, moe_model_shape_parse(json, strlen(json), &s, &err));
    return s;
}

static gw_workload work_of(moe_dtype dtype, uint32_t batch)
{
    return (gw_workload){.dtype = dtype,
                         .batch = batch,
                         .prompt_tokens = 256,
                         .output_tokens = 256,
                         .encode_tokens = 256};
}

static void assert_near(double expected, double got)
{
    if (!(fabs(expected - got) <= 1e-9 * fabs(expected) + 1e-12)) {
        fail_msg("expected %.12g, got %.12g", expected, got);
    }
}

/* The packer's own list of tensors; position biases are kept as a wider f32 table on the device. */
static void dense_weights_are_all_tensors_but_the_experts(void **state)
{
    (void)state;
    static const char *const names[] = {"switch-tiny", "switch-tiny-pregated", "switch-base-64",
                                        "switch-base-128-pregated", "switch-large-128"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        moe_model_shape s = shape_of(names[i]);
        gw_workload w = work_of(MOE_BF16, 1);
        gw_model_bytes b;
        xs_synthetic_tensor t;
        uint64_t expected = 0;
        for (uint32_t k = 0; xs_synthetic_tensor_at(&s, k, &t, NULL) == MOE_OK; k++) {
            uint64_t n = 1;
            for (uint32_t d = 0; d < t.n_dims; d++) {
                n *= t.dims[d];
            }
            bool bias = strstr(t.name, "relative_attention_bias") != NULL;
            expected += bias ? s.n_heads * (2 * 128 + 1) * 4 : n * 2;
        }
        gw_cost_bytes(&s, &w, &b);
        assert_int_equal(expected, b.dense);
    }
}

static void bytes_of_switch_base_128(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-base-128");
    gw_workload w = work_of(MOE_F32, 2);
    gw_model_bytes b;
    gw_cost_bytes(&s, &w, &b);
    assert_int_equal(18874368, b.expert); /* the paper's expert: 2 x 768 x 3072 x 4 */
    assert_int_equal(18874368, b.cell);
    /* 12 layers, keys and values of 256 + 256 positions, 768 wide, f32, two sequences */
    assert_int_equal(12ull * 2 * 512 * 768 * 4 * 2, b.kv);
    assert_int_equal(12ull * 2 * (256 + 128) * 768 * 4 * 2, b.kv_read);
    w.dtype = MOE_BF16;
    gw_cost_bytes(&s, &w, &b);
    assert_int_equal(9437184, b.expert);
    assert_true(b.decode_dense < b.dense);
    assert_near((double)b.decode_dense + (double)b.kv_read + 6 * 9437184.0,
                gw_cost_step_bytes(&b, 6));
}

static void active_experts_of_uniform_routing(void **state)
{
    (void)state;
    assert_near(1, gw_cost_active(128, 1));
    assert_near(8 * (1 - pow(7.0 / 8, 8)), gw_cost_active(8, 8));
    assert_near(1, gw_cost_active(1, 100));
    assert_near(0, gw_cost_active(0, 100));
}

static void equation_1_counts_two_neighbouring_blocks(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-base-8");
    assert_int_equal(2, gw_cost_eq1_cells(&s, 1));
    assert_int_equal(10, gw_cost_eq1_cells(&s, 5));
    assert_int_equal(16, gw_cost_eq1_cells(&s, 64)); /* no more than there are */
    s.stack[MOE_ENCODER].n_blocks = s.stack[MOE_DECODER].n_blocks = 1;
    assert_int_equal(5, gw_cost_eq1_cells(&s, 5)); /* no neighbour */
    assert_int_equal(2, gw_cost_eq1_cells(&s, 1)); /* but a worker needs two */
}

static void what_fits_changes_at_the_byte(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-base-8");
    gw_workload w = work_of(MOE_BF16, 4);
    gw_fit_report f;
    gw_model_bytes b;
    gw_cost_bytes(&s, &w, &b);
    gw_cost_fit(&s, &w, 0, 0, &f);
    /* two cells, and the zeroed one that failed experts are given */
    assert_int_equal(b.dense + b.kv + b.workspace + 3 * b.cell, f.need_waves);
    const uint64_t waves = f.need_waves, pregated = f.need_pregated, resident = f.need_resident;
    assert_int_equal(pregated - waves, 6 * 9437184ull);  /* 8 cells by Eq. 1 instead of 2 */
    assert_int_equal(resident - waves, 94 * 9437184ull); /* 96 experts */
    const struct {
        uint64_t bytes;
        gw_fit fit;
        uint32_t cells;
    } cases[] = {{waves - 1, GW_FIT_NOT, 1},          {waves, GW_FIT_WAVES, 2},
                 {pregated - 1, GW_FIT_WAVES, 7},     {pregated, GW_FIT_PREGATED, 8},
                 {resident - 1, GW_FIT_PREGATED, 95}, {resident, GW_FIT_RESIDENT, 96},
                 {UINT64_MAX, GW_FIT_RESIDENT, 96}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gw_cost_fit(&s, &w, cases[i].bytes, 0, &f);
        assert_int_equal(cases[i].fit, f.device);
        assert_int_equal(cases[i].cells, f.n_cells);
    }
}

static void ram_holds_slots_beside_the_dense_weights(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-base-8");
    gw_workload w = work_of(MOE_BF16, 1);
    gw_fit_report f;
    gw_cost_fit(&s, &w, 0, 0, &f);
    const uint64_t all = f.need_ram_all, least = f.need_ram_least;
    gw_cost_fit(&s, &w, 0, least - 1, &f);
    assert_int_equal(0, f.n_slots);
    gw_cost_fit(&s, &w, 0, least, &f);
    assert_int_equal(2, f.n_slots);
    gw_cost_fit(&s, &w, 0, all, &f);
    assert_int_equal(96, f.n_slots);
}

/* One expert takes 1 ms over the link; six blocks. */
static void each_policy_follows_its_formula(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-base-128-pregated");
    gw_workload w = work_of(MOE_BF16, 1);
    gw_speeds v = {.link_gbps = 9.437184, .memory_gbps = 1000, .resident_ms = 3}; /* c = 0.5 */
    gw_step_cost c;
    gw_cost_step(&s, &w, &v, GW_RESIDENT, s.n_experts_total, s.n_experts_total, &c);
    assert_near(3, c.ms);
    assert_near(0, c.link_floor_ms);
    gw_cost_step(&s, &w, &v, GW_ON_DEMAND, 2, s.n_experts_total, &c);
    assert_near(6 * (0.5 + 1), c.ms);
    assert_near(6, c.link_floor_ms);
    gw_cost_step(&s, &w, &v, GW_PREGATED, 2, s.n_experts_total, &c);
    assert_near(1 + 5 * 1 + 0.5, c.ms);
    gw_cost_step(&s, &w, &v, GW_PREFETCH_ALL, 2, s.n_experts_total, &c);
    assert_near(128 + 5 * 128 + 0.5, c.ms);
    v.resident_ms = 12; /* c = 2: fetches hide but for the first */
    gw_cost_step(&s, &w, &v, GW_PREGATED, 2, s.n_experts_total, &c);
    assert_near(1 + 5 * 2 + 2, c.ms);
}

static void without_a_measured_step_the_memory_floor_is_taken(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-base-8");
    gw_workload w = work_of(MOE_BF16, 1);
    gw_speeds v = {.link_gbps = 50, .memory_gbps = 100};
    gw_model_bytes b;
    gw_step_cost c;
    gw_cost_bytes(&s, &w, &b);
    gw_cost_step(&s, &w, &v, GW_RESIDENT, 96, 96, &c);
    assert_near(gw_cost_step_bytes(&b, 6) / 100e6, c.ms);
    assert_near(c.memory_floor_ms, c.ms);
}

static void cells_beyond_equation_1_save_fetches(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-base-8");
    gw_workload w = work_of(MOE_BF16, 1);
    gw_speeds v = {.link_gbps = 9.437184, .memory_gbps = 1000, .resident_ms = 6};
    gw_step_cost c;
    gw_cost_step(&s, &w, &v, GW_PREGATED, 2 + 24, 96, &c); /* half of the decoder's 48 */
    assert_near(0.5, c.fetch_ms);
    gw_cost_step(&s, &w, &v, GW_PREGATED, 2 + 48, 96, &c);
    assert_near(0, c.fetch_ms);
    assert_near(6, c.ms);
}

static void experts_that_are_not_in_ram_cost_a_read(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-base-8");
    gw_workload w = work_of(MOE_BF16, 1);
    gw_speeds v = {
        .link_gbps = 9.437184, .memory_gbps = 1000, .drive_gbps = 0.9437184, .resident_ms = 6};
    gw_step_cost c;
    gw_cost_step(&s, &w, &v, GW_ON_DEMAND, 2, 48, &c); /* half; a read takes 10 ms */
    assert_near(1 + 0.5 * 10, c.fetch_ms);
    assert_near(6, c.link_floor_ms); /* of the link alone */
}

static void the_first_token_moves_the_prompts_experts_once(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-base-8");
    gw_workload w = work_of(MOE_BF16, 1);
    double prompt = gw_cost_active(8, 256); /* all but a hair */
    assert_near(6 * prompt + 6, gw_cost_first_token_link_ms(&s, &w, 9.437184));
}

/* ---- the report ---- */

static bool report(const gw_plan_input *in, bool json, moe_text *out)
{
    bool fits = false;
    moe_err err;
    moe_text_init(out);
    if (gw_plan_report(in, json, out, &fits, &err) != MOE_OK) {
        fail_msg("%s", err.text);
    }
    return fits;
}

static void assert_says(const moe_text *t, const char *what)
{
    if (strstr(t->data, what) == NULL) {
        fail_msg("no '%s' in:\n%s", what, t->data);
    }
}

static void the_report_says_what_is_missing(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-base-8-pregated");
    gw_plan_input in = {.model_name = "a model",
                        .shape = &s,
                        .dtype = MOE_BF16,
                        .device_bytes = 300ull << 20,
                        .ram_bytes = 64ull << 30,
                        .policies = "resident,pregated",
                        .batches = "1",
                        .prompt_tokens = 256,
                        .output_tokens = 256};
    moe_text t;
    assert_false(report(&in, false, &t));
    assert_says(&t, "does not fit the device: needs 4");
    assert_says(&t, "has 300.00 MiB: lower the batch");
    moe_text_fini(&t);
    in.device_bytes = 1ull << 30;
    assert_true(report(&in, false, &t));
    assert_says(&t, "no times: give --link-gbps and --memory-gbps, or --measure");
    moe_text_fini(&t);
    in.speeds = (gw_speeds){.link_gbps = 9.437184, .memory_gbps = 1000, .resident_ms = 3};
    in.cells = 2;
    assert_true(report(&in, false, &t));
    assert_says(&t, "pregated           6.500        1.000        6.000   f + (L-1) max(c, f) + c");
    assert_says(&t, "resident      does not fit: needs");
    moe_text_fini(&t);
    assert_true(report(&in, true, &t));
    assert_says(&t, "\"policy\":\"pregated\",\"fits\":true,\"ms_per_token\":6.5,");
    assert_says(&t, "\"policy\":\"resident\",\"fits\":false}");
    moe_text_fini(&t);
    in.ram_bytes = 1ull << 20;
    assert_false(report(&in, false, &t));
    assert_says(&t, "does not fit RAM: needs at least");
    moe_text_fini(&t);
}

static void the_report_refuses_what_it_does_not_know(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-tiny");
    gw_plan_input in = {.model_name = "a model",
                        .shape = &s,
                        .dtype = MOE_BF16,
                        .policies = "resident,sometimes",
                        .batches = "1",
                        .prompt_tokens = 1,
                        .output_tokens = 1};
    bool fits = false;
    moe_err err;
    moe_text t;
    moe_text_init(&t);
    assert_int_equal(MOE_ERR_INVALID, gw_plan_report(&in, false, &t, &fits, &err));
    assert_non_null(strstr(err.text, "'sometimes'"));
    in.policies = "resident";
    in.batches = "1,0";
    assert_int_equal(MOE_ERR_INVALID, gw_plan_report(&in, false, &t, &fits, &err));
    in.batches = "many";
    assert_int_equal(MOE_ERR_INVALID, gw_plan_report(&in, false, &t, &fits, &err));
    assert_non_null(strstr(err.text, "--batches"));
    moe_text_fini(&t);
}

/* ---- percentiles, lists, spans ---- */

static void percentiles_are_nearest_ranks(void **state)
{
    (void)state;
    double v[] = {5, 1, 4, 2, 3};
    assert_near(3, gw_percentile(v, 5, 0.5));
    assert_near(5, gw_percentile(v, 5, 0.9));
    assert_near(1, gw_percentile(v, 5, 0.2));
    assert_near(2, gw_percentile(v, 5, 0.21));
    assert_near(1, gw_percentile(v, 1, 0.99));
    assert_near(0, gw_percentile(NULL, 0, 0.5));
    gw_samples s = {0};
    for (int i = 1000; i >= 1; i--) {
        gw_samples_add(&s, i);
    }
    assert_near(990, gw_samples_percentile(&s, 0.99));
    assert_near(500.5, gw_samples_mean(&s));
    assert_int_equal(0, s.failed);
    gw_samples_fini(&s);
    assert_near(0, gw_samples_mean(&s));
}

static void lists_give_their_items_without_blanks(void **state)
{
    (void)state;
    char item[8];
    assert_true(gw_list_item("a, bc ,d", 1, item, sizeof item));
    assert_string_equal("bc", item);
    assert_true(gw_list_item("a, bc ,d", 2, item, sizeof item));
    assert_string_equal("d", item);
    assert_false(gw_list_item("a, bc ,d", 3, item, sizeof item));
    assert_false(gw_list_item("", 0, item, sizeof item));
    assert_true(gw_list_item("longer than it fits", 0, item, sizeof item));
    assert_string_equal("longer ", item);
}

static void counts_may_be_shares(void **state)
{
    (void)state;
    uint32_t n = 0;
    assert_int_equal(MOE_OK, gw_parse_count("12", 100, "--x", &n, NULL));
    assert_int_equal(12, n);
    assert_int_equal(MOE_OK, gw_parse_count("20%", 1536, "--x", &n, NULL));
    assert_int_equal(307, n);
    assert_int_equal(MOE_OK, gw_parse_count("0.01%", 100, "--x", &n, NULL));
    assert_int_equal(1, n); /* at least one */
    static const char *const bad[] = {"", "x", "12x", "-1", "1.5", "101%", "nan", "1e99"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        moe_err err;
        assert_int_equal(MOE_ERR_INVALID, gw_parse_count(bad[i], 100, "--x", &n, &err));
        assert_int_equal(1, n); /* untouched */
        assert_non_null(strstr(err.text, "--x"));
    }
}

static void busy_time_is_the_union_inside_the_window(void **state)
{
    (void)state;
    gw_span s[] = {{50, 60}, {0, 15}, {10, 30}, {12, 14}, {28, 32}, {90, 200}};
    const gw_span window = {5, 100};
    /* 5..32, 50..60, 90..100 */
    assert_int_equal(27 + 10 + 10, gw_spans_busy_ns(s, 6, window));
    assert_int_equal(0, gw_spans_busy_ns(s, 0, window));
    const gw_span outside = {300, 400};
    assert_int_equal(0, gw_spans_busy_ns(s, 6, outside));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_weights_are_all_tensors_but_the_experts),
        cmocka_unit_test(bytes_of_switch_base_128),
        cmocka_unit_test(active_experts_of_uniform_routing),
        cmocka_unit_test(equation_1_counts_two_neighbouring_blocks),
        cmocka_unit_test(what_fits_changes_at_the_byte),
        cmocka_unit_test(ram_holds_slots_beside_the_dense_weights),
        cmocka_unit_test(each_policy_follows_its_formula),
        cmocka_unit_test(without_a_measured_step_the_memory_floor_is_taken),
        cmocka_unit_test(cells_beyond_equation_1_save_fetches),
        cmocka_unit_test(experts_that_are_not_in_ram_cost_a_read),
        cmocka_unit_test(the_first_token_moves_the_prompts_experts_once),
        cmocka_unit_test(the_report_says_what_is_missing),
        cmocka_unit_test(the_report_refuses_what_it_does_not_know),
        cmocka_unit_test(percentiles_are_nearest_ranks),
        cmocka_unit_test(lists_give_their_items_without_blanks),
        cmocka_unit_test(counts_may_be_shares),
        cmocka_unit_test(busy_time_is_the_union_inside_the_window),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
