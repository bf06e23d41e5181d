/* expert-stat's pure parts: lists of experts, units for people, the table and its rates. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/metrics.h"
#include "expert-store/stat/expert_list.h"
#include "expert-store/stat/lookup.h"
#include "expert-store/stat/stat_table.h"

/* ---- lists ---- */

static const xs_expert_space space = {.n_experts = 40, .per_block = 8, .enc_blocks = 2};

static void parses_to(const char *text, const uint32_t *expected, uint32_t n)
{
    uint32_t *experts = NULL;
    uint32_t n_experts = 0;
    assert_int_equal(MOE_OK, xs_expert_list_parse(text, &space, &experts, &n_experts, NULL));
    assert_int_equal(n, n_experts);
    assert_memory_equal(expected, experts, n * sizeof *experts);
    free(experts);
}

static void lists_name_numbers_ranges_and_blocks(void **state)
{
    (void)state;
    parses_to("7", (const uint32_t[]){7}, 1);
    parses_to("3-5,0", (const uint32_t[]){0, 3, 4, 5}, 4);
    parses_to("enc1:0", (const uint32_t[]){8}, 1);
    parses_to("dec0:6-7", (const uint32_t[]){22, 23}, 2);
    parses_to("dec2", (const uint32_t[]){32, 33, 34, 35, 36, 37, 38, 39}, 8);
    parses_to("5,5,4-6", (const uint32_t[]){4, 5, 6}, 3); /* once each, in order */
    uint32_t *all = NULL;
    uint32_t n = 0;
    assert_int_equal(MOE_OK, xs_expert_list_parse("all", &space, &all, &n, NULL));
    assert_int_equal(40, n);
    assert_int_equal(39, all[39]);
    free(all);
}

static void bad_lists_are_refused_and_named(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "40",
                                      "5-3",
                                      "-1",
                                      "3-",
                                      "enc2",
                                      "dec3",
                                      "enc0:8",
                                      "enc0:",
                                      "enc:3",
                                      "foo",
                                      "1,,2",
                                      "1,",
                                      "all5",
                                      "1 ",
                                      "0-40",
                                      "99999999999999999999",
                                      "enc99999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        uint32_t *experts = NULL;
        uint32_t n = 77;
        moe_err err = {0};
        if (xs_expert_list_parse(bad[i], &space, &experts, &n, &err) != MOE_ERR_INVALID) {
            fail_msg("accepted: \"%s\"", bad[i]);
        }
        assert_null(experts);
        assert_int_equal(77, n);
        assert_non_null(strstr(err.text, "below 40"));
    }
}

/* ---- units ---- */

static void numbers_have_units_that_people_read(void **state)
{
    (void)state;
    char t[32];
    xs_human_bytes(0, t, sizeof t);
    assert_string_equal("0 B", t);
    xs_human_bytes(1536, t, sizeof t);
    assert_string_equal("1.50 KiB", t);
    xs_human_bytes(16.0 * 1024 * 1024 * 1024, t, sizeof t);
    assert_string_equal("16.0 GiB", t);
    xs_human_bytes(5e17, t, sizeof t);
    assert_string_equal("454747 TiB", t);
    xs_human_count(999, t, sizeof t);
    assert_string_equal("999", t);
    xs_human_count(17234, t, sizeof t);
    assert_string_equal("17.2 k", t);
    xs_human_seconds(42e-6, t, sizeof t);
    assert_string_equal("42 us", t);
    xs_human_seconds(0.0123, t, sizeof t);
    assert_string_equal("12.3 ms", t);
    xs_human_seconds(61, t, sizeof t);
    assert_string_equal("61.0 s", t);
    xs_human_seconds(1800, t, sizeof t);
    assert_string_equal("30 min", t);
    xs_human_seconds(90000, t, sizeof t);
    assert_string_equal("25.0 h", t);
    xs_human_seconds(NAN, t, sizeof t);
    assert_string_equal("-", t);
}

/* ---- tables ---- */

static void quantiles_come_from_buckets(void **state)
{
    (void)state;
    moe_metrics m;
    moe_histogram h = {0};
    moe_metrics_init(&m);
    moe_metrics_add_histogram(&m, "empty", "", &h, "%s", "");
    for (int i = 0; i < 90; i++) {
        moe_histogram_add_ns(&h, 1000 * 1000); /* 1 ms: the bucket up to 1.024 ms */
    }
    for (int i = 0; i < 10; i++) {
        moe_histogram_add_ns(&h, 100 * 1000 * 1000);
    }
    moe_metrics_add_histogram(&m, "full", "", &h, "%s", "");
    assert_true(isnan(xs_stat_quantile(&m, NULL, "empty", 0.5)));
    assert_true(isnan(xs_stat_quantile(&m, NULL, "absent", 0.5)));
    assert_true(fabs(xs_stat_quantile(&m, NULL, "full", 0.5) - 0.001024) < 1e-9);
    assert_true(fabs(xs_stat_quantile(&m, NULL, "full", 0.9) - 0.001024) < 1e-9);
    assert_true(fabs(xs_stat_quantile(&m, NULL, "full", 0.99) - 0.131072) < 1e-9);
    moe_metrics_fini(&m);
}

static void add(moe_metrics *m, const char *name, double value, const char *labels)
{
    moe_metrics_add(m, MOE_METRIC_COUNTER, name, "help", value, "%s", labels);
}

static void shows(const moe_text *t, const char *words)
{
    if (strstr(t->data, words) == NULL) {
        fail_msg("\"%s\" is not in: %s", words, t->data);
    }
}

static void the_table_sums_over_workers_and_shows_shares(void **state)
{
    (void)state;
    moe_metrics m;
    moe_text t;
    moe_metrics_init(&m);
    moe_text_init(&t);
    add(&m, "pregate_store_info", 1, "model=\"toy\"");
    add(&m, "pregate_slot_hit_total", 75, "");
    add(&m, "pregate_slot_late_total", 20, "");
    add(&m, "pregate_slot_miss_total", 5, "");
    add(&m, "pregate_worker_output_tokens_total", 1000, "worker=\"gone\"");
    add(&m, "pregate_worker_output_tokens_total", 234, "worker=\"3\"");
    add(&m, "pregate_worker_copy_seconds_total", 4, "worker=\"3\"");
    add(&m, "pregate_worker_copy_hidden_seconds_total", 3, "worker=\"3\"");
    xs_stat_table(&m, NULL, 0, &t);
    shows(&t, "toy");
    shows(&t, "NOT PINNED");
    shows(&t, "75              75.0 %");
    shows(&t, "20              20.0 %");
    shows(&t, "1.23 k");
    shows(&t, "75.0 % of copy time");
    assert_null(strstr(t.data, "nan"));
    moe_text_fini(&t);
    moe_metrics_fini(&m);
}

static void a_second_look_shows_rates(void **state)
{
    (void)state;
    moe_metrics before;
    moe_metrics now;
    moe_text t;
    moe_metrics_init(&before);
    moe_metrics_init(&now);
    moe_text_init(&t);
    add(&before, "pregate_store_evictions_total", 100, "");
    add(&before, "pregate_store_read_bytes_total", 0, "");
    add(&now, "pregate_store_evictions_total", 140, "");
    add(&now, "pregate_store_read_bytes_total", 4.0 * 1024 * 1024 * 1024, "");
    xs_stat_table(&now, &before, 2, &t);
    shows(&t, "140            20/s");
    shows(&t, "4.00 GiB       2.00 GiB/s");
    moe_text_fini(&t);
    moe_metrics_fini(&before);
    moe_metrics_fini(&now);
}

static void blocks_have_a_line_each(void **state)
{
    (void)state;
    moe_metrics m;
    moe_text t;
    moe_metrics_init(&m);
    moe_text_init(&t);
    add(&m, "pregate_slot_hit_total", 11, "block=\"enc0\"");
    add(&m, "pregate_slot_hit_total", 22, "block=\"dec0\"");
    add(&m, "pregate_store_block_ready", 8, "block=\"enc0\"");
    add(&m, "pregate_store_block_ready", 7, "block=\"dec0\"");
    xs_stat_table_blocks(&m, &t);
    shows(&t, "enc0             11          0          0          0          0          0          "
              "0          8\n");
    shows(&t, "dec0             22 ");
    moe_text_fini(&t);
    moe_metrics_fini(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_name_numbers_ranges_and_blocks),
        cmocka_unit_test(bad_lists_are_refused_and_named),
        cmocka_unit_test(numbers_have_units_that_people_read),
        cmocka_unit_test(quantiles_come_from_buckets),
        cmocka_unit_test(the_table_sums_over_workers_and_shows_shares),
        cmocka_unit_test(a_second_look_shows_rates),
        cmocka_unit_test(blocks_have_a_line_each),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
