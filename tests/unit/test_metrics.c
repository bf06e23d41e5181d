/* Histograms, and the list of samples as Prometheus text and as JSON. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "common/metrics.h"

static uint64_t in_bucket(const moe_histogram *h, int i)
{
    return atomic_load(&h->bucket[i]);
}

static void a_value_on_a_bound_belongs_to_its_bucket(void **state)
{
    (void)state;
    moe_histogram h = {0};
    moe_histogram_add_ns(&h, -7);
    moe_histogram_add_ns(&h, 0);
    moe_histogram_add_ns(&h, 1000);
    assert_int_equal(3, in_bucket(&h, 0)); /* up to 1 us */
    moe_histogram_add_ns(&h, 1001);
    moe_histogram_add_ns(&h, 2000);
    assert_int_equal(2, in_bucket(&h, 1));
    moe_histogram_add_ns(&h, 2001);
    moe_histogram_add_ns(&h, 4000);
    assert_int_equal(2, in_bucket(&h, 2));
    moe_histogram_add_ns(&h, 1000LL << 30);
    assert_int_equal(1, in_bucket(&h, 30));
    moe_histogram_add_ns(&h, (1000LL << 30) + 1);
    moe_histogram_add_ns(&h, INT64_MAX);
    assert_int_equal(2, in_bucket(&h, 31));
    assert_int_equal(10, atomic_load(&h.count));
}

static void quantiles_name_the_bound_of_their_bucket(void **state)
{
    (void)state;
    moe_histogram h = {0};
    assert_int_equal(0, moe_histogram_quantile_ns(&h, 0.5));
    for (int i = 0; i < 90; i++) {
        moe_histogram_add_ns(&h, 3000);
    }
    for (int i = 0; i < 10; i++) {
        moe_histogram_add_ns(&h, 1000000);
    }
    assert_int_equal(4000, moe_histogram_quantile_ns(&h, 0.0001));
    assert_int_equal(4000, moe_histogram_quantile_ns(&h, 0.9));
    assert_int_equal(1024000, moe_histogram_quantile_ns(&h, 0.91));
    assert_int_equal(1024000, moe_histogram_quantile_ns(&h, 1.0));
    moe_histogram_add_ns(&h, INT64_MAX);
    assert_int_equal(1000LL << 30, moe_histogram_quantile_ns(&h, 1.0)); /* last finite bound */
}

static void *add_many(void *user)
{
    for (int i = 0; i < 10000; i++) {
        moe_histogram_add_ns(user, i);
    }
    return NULL;
}

static void writers_lose_nothing(void **state)
{
    (void)state;
    static moe_histogram h;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        assert_int_equal(0, pthread_create(&threads[i], NULL, add_many, &h));
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(40000, atomic_load(&h.count));
    assert_int_equal(4ull * (9999ull * 10000 / 2), atomic_load(&h.sum_ns));
    assert_int_equal(4 * 1001, in_bucket(&h, 0));
}

static void find_reads_values_back(void **state)
{
    (void)state;
    moe_metrics m;
    moe_histogram h = {0};
    moe_metrics_init(&m);
    moe_metrics_add_histogram(&m, "lat_seconds", "h", &h, "%s", "");
    moe_metrics_add(&m, MOE_METRIC_COUNTER, "hits", "h", 3, "block=\"dec%d\"", 0);
    moe_metrics_add(&m, MOE_METRIC_COUNTER, "hits", "h", 4, "block=\"dec%d\"", 1);
    assert_true(moe_metrics_find(&m, "hits", NULL) == 3);
    assert_true(moe_metrics_find(&m, "hits", "block=\"dec1\"") == 4);
    assert_true(isnan(moe_metrics_find(&m, "hits", "block=\"dec2\"")));
    assert_true(isnan(moe_metrics_find(&m, "lat_seconds", NULL))); /* has suffixes only */
    moe_metrics_fini(&m);
}

static void prometheus_groups_samples_by_name(void **state)
{
    (void)state;
    moe_metrics m;
    moe_text t;
    moe_metrics_init(&m);
    moe_text_init(&t);
    moe_metrics_add(&m, MOE_METRIC_COUNTER, "a_total", "back\\slash\nline", 1, "x=\"1\"");
    moe_metrics_add(&m, MOE_METRIC_GAUGE, "b", "a gauge", 0.1, "%s", "");
    moe_metrics_add(&m, MOE_METRIC_COUNTER, "a_total", "back\\slash\nline", 9007199254740991.0,
                    "x=\"2\"");
    moe_metrics_add(&m, MOE_METRIC_GAUGE, "c", "odd", NAN, "%s", "");
    moe_metrics_add(&m, MOE_METRIC_GAUGE, "c", "odd", -INFINITY, "x=\"1\"");
    assert_int_equal(MOE_OK, moe_metrics_prometheus(&m, &t, NULL));
    assert_string_equal("# HELP a_total back\\\\slash\\nline\n# TYPE a_total counter\n"
                        "a_total{x=\"1\"} 1\na_total{x=\"2\"} 9007199254740991\n"
                        "# HELP b a gauge\n# TYPE b gauge\nb 0.1\n"
                        "# HELP c odd\n# TYPE c gauge\nc NaN\nc{x=\"1\"} -Inf\n",
                        t.data);
    moe_text_fini(&t);
    moe_metrics_fini(&m);
}

static void prometheus_histograms_are_cumulative_and_end_at_inf(void **state)
{
    (void)state;
    moe_metrics m;
    moe_text t;
    moe_histogram h = {0};
    moe_metrics_init(&m);
    moe_text_init(&t);
    moe_histogram_add_ns(&h, 1500);
    moe_histogram_add_ns(&h, 500);
    moe_histogram_add_ns(&h, INT64_MAX / 4);
    moe_metrics_add_histogram(&m, "r_seconds", "reads", &h, "disk=\"%d\"", 0);
    assert_int_equal(MOE_OK, moe_metrics_prometheus(&m, &t, NULL));
    assert_int_equal(MOE_HIST_BUCKETS + 2, m.n);
    assert_non_null(strstr(t.data, "# TYPE r_seconds histogram\n"));
    assert_non_null(strstr(t.data, "r_seconds_bucket{disk=\"0\",le=\"1e-06\"} 1\n"));
    assert_non_null(strstr(t.data, "r_seconds_bucket{disk=\"0\",le=\"2e-06\"} 2\n"));
    assert_non_null(strstr(t.data, "r_seconds_bucket{disk=\"0\",le=\"1073.741824\"} 2\n"));
    assert_non_null(strstr(t.data, "r_seconds_bucket{disk=\"0\",le=\"+Inf\"} 3\n"));
    assert_non_null(strstr(t.data, "r_seconds_count{disk=\"0\"} 3\n"));
    assert_null(strstr(strstr(t.data, "# HELP") + 1, "# HELP")); /* once per name */
    moe_text_fini(&t);
    moe_metrics_fini(&m);
}

static void json_gives_numbers_and_quantiles(void **state)
{
    (void)state;
    moe_metrics m;
    moe_text t;
    moe_histogram h = {0};
    moe_metrics_init(&m);
    moe_text_init(&t);
    for (int i = 0; i < 100; i++) {
        moe_histogram_add_ns(&h, i < 90 ? 3000 : 5000);
    }
    moe_metrics_add(&m, MOE_METRIC_COUNTER, "hits", "h", 3, "block=\"dec0\"");
    moe_metrics_add_histogram(&m, "lat", "h", &h, "%s", "");
    moe_metrics_add_histogram(&m, "lat", "h", &h, "w=\"1\"");
    moe_metrics_add(&m, MOE_METRIC_GAUGE, "g", "h", NAN, "%s", "");
    assert_int_equal(MOE_OK, moe_metrics_json(&m, &t, NULL));
    assert_string_equal(
        "{\n  \"hits{block=\\\"dec0\\\"}\": 3,\n"
        "  \"lat\": {\"count\": 100, \"sum\": 0.00032, \"p50\": 4e-06, \"p90\": 4e-06, "
        "\"p99\": 8e-06},\n"
        "  \"lat{w=\\\"1\\\"}\": {\"count\": 100, \"sum\": 0.00032, \"p50\": 4e-06, \"p90\": "
        "4e-06, \"p99\": 8e-06},\n"
        "  \"g\": null\n}\n",
        t.data);
    moe_text_fini(&t);
    moe_metrics_fini(&m);
}

static void json_prints_pieces_of_a_histogram_one_by_one(void **state)
{
    (void)state;
    moe_metrics m;
    moe_text t;
    moe_histogram h = {0};
    moe_metrics_init(&m);
    moe_text_init(&t);
    moe_metrics_add_histogram(&m, "lat", "h", &h, "%s", "");
    m.n = 2; /* a list that was cut on its way */
    assert_int_equal(MOE_OK, moe_metrics_json(&m, &t, NULL));
    assert_string_equal("{\n  \"lat_bucket{le=\\\"1e-06\\\"}\": 0,\n"
                        "  \"lat_bucket{le=\\\"2e-06\\\"}\": 0\n}\n",
                        t.data);
    moe_text_fini(&t);
    moe_metrics_fini(&m);
}

static void an_empty_list_has_empty_outputs(void **state)
{
    (void)state;
    moe_metrics m;
    moe_text t;
    moe_metrics_init(&m);
    moe_text_init(&t);
    assert_int_equal(MOE_OK, moe_metrics_prometheus(&m, &t, NULL));
    assert_int_equal(0, t.len);
    assert_int_equal(MOE_OK, moe_metrics_json(&m, &t, NULL));
    assert_string_equal("{\n}\n", t.data);
    moe_text_fini(&t);
    moe_metrics_fini(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_value_on_a_bound_belongs_to_its_bucket),
        cmocka_unit_test(quantiles_name_the_bound_of_their_bucket),
        cmocka_unit_test(writers_lose_nothing),
        cmocka_unit_test(find_reads_values_back),
        cmocka_unit_test(prometheus_groups_samples_by_name),
        cmocka_unit_test(prometheus_histograms_are_cumulative_and_end_at_inf),
        cmocka_unit_test(json_gives_numbers_and_quantiles),
        cmocka_unit_test(json_prints_pieces_of_a_histogram_one_by_one),
        cmocka_unit_test(an_empty_list_has_empty_outputs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
