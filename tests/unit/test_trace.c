/* The timeline: JSON that loads, a bound that holds, and nothing at all without a trace. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cJSON.h>
#include <cmocka.h>

#include "common/file.h"
#include "gpu-worker/fetch/trace.h"

static cJSON *write_and_parse(const gw_trace *t)
{
    char path[] = "/tmp/pregate-trace-XXXXXX";
    char *text = NULL;
    size_t bytes = 0;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(MOE_OK, gw_trace_write(t, path, NULL));
    assert_int_equal(MOE_OK, moe_file_read(path, 1 << 20, &text, &bytes, NULL));
    unlink(path);
    cJSON *json = cJSON_ParseWithLength(text, bytes);
    free(text);
    assert_non_null(json);
    return json;
}

static uint32_t count_spans(const cJSON *json)
{
    uint32_t n = 0;
    const cJSON *e = NULL;
    cJSON_ArrayForEach(e, cJSON_GetObjectItem(json, "traceEvents"))
    {
        n += strcmp(cJSON_GetObjectItem(e, "ph")->valuestring, "X") == 0;
    }
    return n;
}

static double number(const cJSON *object, const char *key)
{
    const cJSON *n = cJSON_GetObjectItem(object, key);
    assert_true(cJSON_IsNumber(n));
    return n->valuedouble;
}

static void an_event_keeps_its_times_and_arguments(void **state)
{
    gw_trace *t = NULL;
    (void)state;
    assert_int_equal(MOE_OK, gw_trace_create(4, &t, NULL));
    gw_trace_add(t, GW_LANE_COPY, "copy", 1500, 4000, 3, 17, 99);
    cJSON *json = write_and_parse(t);
    const cJSON *e = NULL, *found = NULL;
    cJSON_ArrayForEach(e, cJSON_GetObjectItem(json, "traceEvents"))
    {
        if (strcmp(cJSON_GetObjectItem(e, "ph")->valuestring, "X") == 0) {
            found = e;
        }
    }
    assert_non_null(found);
    assert_string_equal("copy", cJSON_GetObjectItem(found, "name")->valuestring);
    assert_true(number(found, "ts") == 1.5 && number(found, "dur") == 2.5);
    assert_true(number(found, "tid") == GW_LANE_COPY);
    const cJSON *args = cJSON_GetObjectItem(found, "args");
    assert_true(number(args, "block") == 3 && number(args, "expert") == 17 &&
                number(args, "bytes") == 99);
    cJSON_Delete(json);
    gw_trace_destroy(t);
}

static void what_means_nothing_is_left_out(void **state)
{
    gw_trace *t = NULL;
    (void)state;
    assert_int_equal(MOE_OK, gw_trace_create(1, &t, NULL));
    gw_trace_add(t, GW_LANE_STEP, "decode", 0, 1, -1, -1, 0);
    cJSON *json = write_and_parse(t);
    const cJSON *e = NULL;
    cJSON_ArrayForEach(e, cJSON_GetObjectItem(json, "traceEvents"))
    {
        const cJSON *args = cJSON_GetObjectItem(e, "args");
        assert_null(cJSON_GetObjectItem(args, "block"));
        assert_null(cJSON_GetObjectItem(args, "expert"));
        assert_null(cJSON_GetObjectItem(args, "bytes"));
    }
    cJSON_Delete(json);
    gw_trace_destroy(t);
}

static void an_empty_trace_is_valid_json(void **state)
{
    gw_trace *t = NULL;
    (void)state;
    assert_int_equal(MOE_OK, gw_trace_create(1, &t, NULL));
    cJSON *json = write_and_parse(t);
    assert_int_equal(0, count_spans(json));
    cJSON_Delete(json);
    gw_trace_destroy(t);
}

static void *add_many(void *t)
{
    for (int i = 0; i < 500; i++) {
        gw_trace_add(t, GW_LANE_COMPUTE, "experts", i, i + 1, 0, -1, 0);
    }
    return NULL;
}

static void what_does_not_fit_is_counted_whoever_adds_it(void **state)
{
    gw_trace *t = NULL;
    pthread_t threads[3];
    (void)state;
    assert_int_equal(MOE_OK, gw_trace_create(800, &t, NULL));
    for (int i = 0; i < 3; i++) {
        assert_int_equal(0, pthread_create(&threads[i], NULL, add_many, t));
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    cJSON *json = write_and_parse(t);
    assert_int_equal(800, count_spans(json));
    const cJSON *other = cJSON_GetObjectItem(json, "otherData");
    assert_string_equal("700", cJSON_GetObjectItem(other, "dropped_events")->valuestring);
    cJSON_Delete(json);
    gw_trace_destroy(t);
}

static void no_trace_is_no_work(void **state)
{
    (void)state;
    gw_trace_add(NULL, GW_LANE_STEP, "x", 0, 1, -1, -1, 0);
    gw_trace_destroy(NULL);
}

static void a_path_that_cannot_be_written_is_named(void **state)
{
    gw_trace *t = NULL;
    moe_err err;
    (void)state;
    assert_int_equal(MOE_OK, gw_trace_create(1, &t, NULL));
    assert_int_equal(MOE_ERR_IO, gw_trace_write(t, "/nonexistent/trace.json", &err));
    assert_non_null(strstr(err.text, "/nonexistent/trace.json"));
    assert_int_equal(MOE_ERR_IO, gw_trace_write(t, "/dev/full", &err));
    gw_trace_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_event_keeps_its_times_and_arguments),
        cmocka_unit_test(what_means_nothing_is_left_out),
        cmocka_unit_test(an_empty_trace_is_valid_json),
        cmocka_unit_test(what_does_not_fit_is_counted_whoever_adds_it),
        cmocka_unit_test(no_trace_is_no_work),
        cmocka_unit_test(a_path_that_cannot_be_written_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
