/* The n-th allocation fails, for every n, in the growing string and in the metrics list. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/metrics.h"
#include "common/text.h"

void *__real_realloc(void *p, size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);

static int calls_until_failure = -1; /* -1: never; 0: the failure has happened */

static int fails_now(void)
{
    return calls_until_failure > 0 && --calls_until_failure == 0;
}

void *__wrap_realloc(void *p, size_t bytes)
{
    return fails_now() ? NULL : __real_realloc(p, bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    return fails_now() ? NULL : __real_calloc(n, bytes);
}

/* Runs `job` with its n-th allocation failing until it needs fewer than n; asan sees any leak. */
static void fail_every_allocation(moe_status (*job)(moe_err *err), int at_least)
{
    for (int n = 1;; n++) {
        moe_err err = {0};
        calls_until_failure = n;
        moe_status st = job(&err);
        int failure_was_injected = calls_until_failure == 0;
        calls_until_failure = -1;
        if (!failure_was_injected) {
            assert_int_equal(MOE_OK, st);
            assert_true(n > at_least); /* the job did allocate */
            return;
        }
        assert_int_equal(MOE_ERR_NO_MEMORY, st);
        assert_int_equal(MOE_ERR_NO_MEMORY, err.status);
    }
}

static moe_status build_text(moe_err *err)
{
    moe_text t;
    moe_text_init(&t);
    for (int i = 0; i < 500; i++) {
        moe_text_printf(&t, "%d", i);
        moe_text_json_string(&t, "a\n\xff", 3);
        moe_text_append(&t, "xyz", 3);
    }
    moe_status st = moe_text_finish(&t, err);
    moe_text_fini(&t);
    return st;
}

static void fill(moe_metrics *m)
{
    static moe_histogram h;
    moe_metrics_init(m);
    for (int i = 0; i < 100; i++) {
        moe_metrics_add(m, MOE_METRIC_COUNTER, "hits", "hits", i, "block=\"%d\"", i);
    }
    moe_metrics_add_histogram(m, "lat_seconds", "latency", &h, "%s", "");
}

static moe_status print_prometheus(moe_err *err)
{
    moe_metrics m;
    moe_text t;
    fill(&m);
    moe_text_init(&t);
    moe_status st = moe_metrics_prometheus(&m, &t, err);
    moe_text_fini(&t);
    moe_metrics_fini(&m);
    return st;
}

static moe_status print_json(moe_err *err)
{
    moe_metrics m;
    moe_text t;
    fill(&m);
    moe_text_init(&t);
    moe_status st = moe_metrics_json(&m, &t, err);
    moe_text_fini(&t);
    moe_metrics_fini(&m);
    return st;
}

static void a_text_reports_any_failed_allocation(void **state)
{
    (void)state;
    fail_every_allocation(build_text, 4);
}

static void prometheus_reports_any_failed_allocation(void **state)
{
    (void)state;
    fail_every_allocation(print_prometheus, 5);
}

static void json_reports_any_failed_allocation(void **state)
{
    (void)state;
    fail_every_allocation(print_json, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_text_reports_any_failed_allocation),
        cmocka_unit_test(prometheus_reports_any_failed_allocation),
        cmocka_unit_test(json_reports_any_failed_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
