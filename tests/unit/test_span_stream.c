/* The read-ahead of checkpoints: any ranges of any files come back as one stream of their bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "expert-store/pack/span_stream.h"

enum { FILE_BYTES = 21 * 1000 * 1000 + 77 }; /* some windows, and an end that is not aligned */
static const char *const paths[2] = {"span_stream_a.tmp", "span_stream_b.tmp"};
static char *contents[2];

static int make_files(void **state)
{
    (void)state;
    uint32_t x = 1;
    for (int i = 0; i < 2; i++) {
        contents[i] = malloc(FILE_BYTES);
        FILE *f = fopen(paths[i], "wb");
        if (contents[i] == NULL || f == NULL) {
            return -1;
        }
        for (size_t k = 0; k < FILE_BYTES; k++) {
            x = x * 1664525u + 1013904223u;
            contents[i][k] = (char)(x >> 24);
        }
        if (fwrite(contents[i], 1, FILE_BYTES, f) != FILE_BYTES || fclose(f) != 0) {
            return -1;
        }
    }
    return 0;
}

static int remove_files(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        unlink(paths[i]);
        free(contents[i]);
    }
    return 0;
}

static const xs_span spans[] = {
    {NULL, 1, 1},
    {NULL, 4095, 2},
    {NULL, 777, 9 * 1000 * 1000}, /* over two windows */
    {NULL, 0, 0},
    {NULL, 4096, 4 << 20}, /* exactly a window */
    {NULL, FILE_BYTES - 5, 5},
    {NULL, FILE_BYTES - (4 << 20) - 5000, (4 << 20) + 5000}, /* up to the end */
    {NULL, 0, FILE_BYTES},
};
enum { N_SPANS = sizeof spans / sizeof spans[0] };

/* Every span of both files in turn, read in pieces of `step` bytes. */
static void check_stream(size_t step, bool direct)
{
    xs_span list[2 * N_SPANS];
    uint64_t total = 0;
    for (int i = 0; i < 2 * N_SPANS; i++) {
        list[i] = spans[i / 2];
        list[i].path = paths[i % 2];
        total += list[i].bytes;
    }
    char *expected = malloc(total), *got = malloc(total);
    uint64_t at = 0;
    for (int i = 0; i < 2 * N_SPANS; i++) {
        memcpy(expected + at, contents[i % 2] + list[i].off, list[i].bytes);
        at += list[i].bytes;
    }
    xs_span_stream *s = NULL;
    assert_int_equal(MOE_OK, xs_span_stream_create(list, 2 * N_SPANS, direct, &s, NULL));
    for (at = 0; at < total; at += step) {
        size_t n = total - at < step ? (size_t)(total - at) : step;
        assert_int_equal(MOE_OK, xs_span_stream_read(s, got + at, n, NULL));
    }
    xs_span_stream_destroy(s);
    assert_true(memcmp(expected, got, total) == 0);
    free(expected);
    free(got);
}

static void spans_come_as_one_stream(void **state)
{
    (void)state;
    check_stream(1 << 20, true);
    check_stream(999983, false);
    check_stream((4 << 20) + 1, true);
}

static void a_stream_may_be_left_at_any_point(void **state)
{
    (void)state;
    const xs_span whole = {paths[0], 3, FILE_BYTES - 3};
    static char buf[5 << 20];
    for (size_t n = 0; n < sizeof buf; n += 1 << 20) {
        xs_span_stream *s = NULL;
        assert_int_equal(MOE_OK, xs_span_stream_create(&whole, 1, true, &s, NULL));
        assert_int_equal(MOE_OK, xs_span_stream_read(s, buf, n, NULL));
        xs_span_stream_destroy(s);
    }
    xs_span_stream_destroy(NULL);
}

/* The bytes before the trouble are still delivered. */
static void trouble_is_reported_where_it_is_reached(void **state)
{
    (void)state;
    const xs_span list[] = {{paths[0], 100, 5000}, {"span_stream_none.tmp", 0, 10}};
    const xs_span past_end[] = {{paths[1], FILE_BYTES - 10, 20}};
    char buf[5000];
    moe_err err = {0};
    xs_span_stream *s = NULL;
    assert_int_equal(MOE_OK, xs_span_stream_create(list, 2, true, &s, NULL));
    assert_int_equal(MOE_OK, xs_span_stream_read(s, buf, 5000, &err));
    assert_memory_equal(contents[0] + 100, buf, 5000);
    assert_int_equal(MOE_ERR_IO, xs_span_stream_read(s, buf, 10, &err));
    assert_non_null(strstr(err.text, "span_stream_none.tmp"));
    xs_span_stream_destroy(s);

    assert_int_equal(MOE_OK, xs_span_stream_create(past_end, 1, true, &s, NULL));
    assert_int_equal(MOE_ERR_IO, xs_span_stream_read(s, buf, 20, &err));
    assert_non_null(strstr(err.text, "unexpected end of file"));
    xs_span_stream_destroy(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spans_come_as_one_stream),
        cmocka_unit_test(a_stream_may_be_left_at_any_point),
        cmocka_unit_test(trouble_is_reported_where_it_is_reached),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files) != 0;
}
