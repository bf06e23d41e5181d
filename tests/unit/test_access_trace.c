/* access_trace: records there and back, byte by byte; files that end early; files that lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "expert-store/policy/access_trace.h"

static xs_trace_header header(void)
{
    xs_trace_header h = {.n_experts = 300,
                         .per_block = 100,
                         .enc_blocks = 1,
                         .n_slots = 5,
                         .slot_bytes = 4096,
                         .model = "a model"};
    memcpy(h.magic, XS_TRACE_MAGIC, sizeof h.magic);
    return h;
}

typedef struct file {
    uint8_t data[1024];
    size_t bytes;
    int64_t last_us;
} file;

static void begin(file *f)
{
    const xs_trace_header h = header();
    memset(f, 0, sizeof *f);
    memcpy(f->data, &h, sizeof h);
    f->bytes = sizeof h;
}

static void append(file *f, const xs_trace_event *e)
{
    f->bytes += xs_trace_encode(e, &f->last_us, f->data + f->bytes);
}

static xs_trace_reader open_it(const file *f)
{
    xs_trace_header h;
    xs_trace_reader r;
    assert_int_equal(MOE_OK, xs_trace_open(f->data, f->bytes, &h, &r, NULL));
    return r;
}

static void every_record_comes_back_as_it_was_written(void **state)
{
    (void)state;
    const xs_trace_event events[] = {
        {XS_TRACE_USE, 0, 0, 1},
        {XS_TRACE_USE, 70, 299, UINT32_MAX},
        {XS_TRACE_WANT, 69, 128, 1}, /* time goes back */
        {XS_TRACE_PREDICT, 1000000000000, 127, 3},
        {XS_TRACE_LOAD, -5, 1, 0},
        {XS_TRACE_EVICT, -6, 2, 1},
    };
    enum { N = sizeof events / sizeof events[0] };
    file f;
    begin(&f);
    for (int i = 0; i < N; i++) {
        append(&f, &events[i]);
    }
    xs_trace_reader r = open_it(&f);
    for (int i = 0; i < N; i++) {
        xs_trace_event e = {0};
        bool end = true;
        assert_int_equal(MOE_OK, xs_trace_next(&r, &e, &end, NULL));
        assert_false(end);
        assert_int_equal(events[i].kind, e.kind);
        assert_int_equal(events[i].at_us, e.at_us);
        assert_int_equal(events[i].expert, e.expert);
        assert_int_equal(events[i].n, e.n);
    }
    xs_trace_event untouched = {.expert = 77};
    bool end = false;
    assert_int_equal(MOE_OK, xs_trace_next(&r, &untouched, &end, NULL));
    assert_true(end);
    assert_int_equal(77, untouched.expert);
}

/* The table in the header is the format: change neither by accident. */
static void bytes_are_as_the_header_says(void **state)
{
    (void)state;
    const uint8_t expected[] = {
        0xa0, 0x01, 0x07, 0x02, /* 10 us later: zigzag 20 * 8 + USE = 160; expert 7; twice */
        0x09, 0xac, 0x02,       /* 1 us earlier: zigzag 1 * 8 + WANT = 9; expert 300 */
    };
    file f;
    begin(&f);
    append(&f, &(xs_trace_event){XS_TRACE_USE, 10, 7, 2});
    append(&f, &(xs_trace_event){XS_TRACE_WANT, 9, 300, 1});
    assert_int_equal(XS_TRACE_HEADER_BYTES + sizeof expected, f.bytes);
    assert_memory_equal(expected, f.data + XS_TRACE_HEADER_BYTES, sizeof expected);
}

static void a_record_cut_short_is_the_end(void **state)
{
    (void)state;
    file f;
    begin(&f);
    append(&f, &(xs_trace_event){XS_TRACE_WANT, 1, 2, 1});
    size_t whole = f.bytes;
    append(&f, &(xs_trace_event){XS_TRACE_USE, 500000, 299, 400});
    for (size_t bytes = whole; bytes < f.bytes; bytes++) {
        file cut = f;
        cut.bytes = bytes;
        xs_trace_reader r = open_it(&cut);
        xs_trace_event e = {0};
        bool end = true;
        assert_int_equal(MOE_OK, xs_trace_next(&r, &e, &end, NULL));
        assert_false(end);
        assert_int_equal(MOE_OK, xs_trace_next(&r, &e, &end, NULL));
        assert_true(end);
    }
}

static void expect_refused(const uint8_t *bytes, size_t n)
{
    file f;
    begin(&f);
    memcpy(f.data + f.bytes, bytes, n);
    f.bytes += n;
    xs_trace_reader r = open_it(&f);
    xs_trace_event e = {0};
    bool end = false;
    assert_int_equal(MOE_ERR_FORMAT, xs_trace_next(&r, &e, &end, NULL));
}

static void records_that_no_store_writes_are_refused(void **state)
{
    (void)state;
    const uint8_t unknown_kind[] = {0x07, 0x01};
    const uint8_t unknown_expert[] = {0x01, 0xac, 0x02}; /* 300 of 300 */
    const uint8_t used_zero_times[] = {0x00, 0x01, 0x00};
    const uint8_t endless[] = {0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                               0xff, 0xff, 0xff, 0xff, 0xff, 0x01};
    const uint8_t too_often[] = {0x00, 0x01, 0x80, 0x80, 0x80, 0x80, 0x10}; /* 2^32 */
    expect_refused(unknown_kind, sizeof unknown_kind);
    expect_refused(unknown_expert, sizeof unknown_expert);
    expect_refused(used_zero_times, sizeof used_zero_times);
    expect_refused(endless, sizeof endless);
    expect_refused(too_often, sizeof too_often);
}

static void headers_that_cannot_be_are_refused(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        xs_trace_header h = header();
        xs_trace_header out;
        xs_trace_reader r;
        size_t bytes = sizeof h;
        switch (i) {
        case 0:
            h.magic[7] = '2';
            break;
        case 1:
            bytes--;
            break;
        case 2:
            h.n_experts = 0;
            break;
        case 3:
            h.per_block = 0;
            break;
        case 4:
            h.per_block = 7; /* does not divide 300 */
            break;
        case 5:
            h.enc_blocks = 4; /* of 3 */
            break;
        case 6:
            h.n_slots = 0;
            break;
        default:
            h.n_experts = (1u << 24) + 300;
            break;
        }
        assert_int_equal(MOE_ERR_FORMAT, xs_trace_open(&h, bytes, &out, &r, NULL));
    }
}

static void a_model_name_without_end_gets_one(void **state)
{
    (void)state;
    xs_trace_header h = header();
    xs_trace_header out;
    xs_trace_reader r;
    memset(h.model, 'x', sizeof h.model);
    assert_int_equal(MOE_OK, xs_trace_open(&h, sizeof h, &out, &r, NULL));
    assert_int_equal(sizeof h.model - 1, strlen(out.model));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_record_comes_back_as_it_was_written),
        cmocka_unit_test(bytes_are_as_the_header_says),
        cmocka_unit_test(a_record_cut_short_is_the_end),
        cmocka_unit_test(records_that_no_store_writes_are_refused),
        cmocka_unit_test(headers_that_cannot_be_are_refused),
        cmocka_unit_test(a_model_name_without_end_gets_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
