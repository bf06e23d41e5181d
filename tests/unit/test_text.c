/* The growing string: appending, formatting, JSON strings. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "common/text.h"

static void an_empty_text_is_complete(void **state)
{
    (void)state;
    moe_text t;
    moe_text_init(&t);
    assert_int_equal(MOE_OK, moe_text_finish(&t, NULL));
    assert_null(t.data);
    moe_text_fini(&t);
    moe_text_fini(&t); /* twice is harmless */
}

static void appending_nothing_still_terminates(void **state)
{
    (void)state;
    moe_text t;
    moe_text_init(&t);
    moe_text_append(&t, NULL, 0);
    assert_string_equal("", t.data);
    moe_text_fini(&t);
}

static void pieces_join_across_growth(void **state)
{
    (void)state;
    moe_text t;
    moe_text_init(&t);
    for (int i = 0; i < 1000; i++) {
        moe_text_printf(&t, "%d,", i);
        moe_text_append(&t, "ab;", 2);
    }
    assert_int_equal(MOE_OK, moe_text_finish(&t, NULL));
    assert_int_equal(strlen(t.data), t.len);
    assert_int_equal(10 * 2 + 90 * 3 + 900 * 4 + 2000, t.len);
    assert_memory_equal("0,ab1,ab2,ab", t.data, 12);
    assert_string_equal("998,ab999,ab", t.data + t.len - 12);
    moe_text_fini(&t);
}

static void expect_json(const char *expected, const char *s, size_t n)
{
    moe_text t;
    moe_text_init(&t);
    moe_text_json_string(&t, s, n);
    assert_int_equal(MOE_OK, moe_text_finish(&t, NULL));
    assert_string_equal(expected, t.data);
    moe_text_fini(&t);
}

static void json_strings_escape_what_json_forbids(void **state)
{
    (void)state;
    expect_json("\"\"", "", 0);
    expect_json("\"a\\\"b\\\\c\\n\\r\\t\"", "a\"b\\c\n\r\t", 8);
    expect_json("\"\\u0000\\u001f\\u007f\"", "\0\x1f\x7f", 3);
}

static void json_strings_keep_good_utf8(void **state)
{
    (void)state;
    const char *text = "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \xed\x9f\xbf \xf4\x8f\xbf\xbf";
    moe_text t;
    moe_text_init(&t);
    moe_text_json_string(&t, text, strlen(text));
    assert_int_equal(strlen(text) + 2, t.len);
    assert_memory_equal(text, t.data + 1, strlen(text));
    moe_text_fini(&t);
}

#define BAD "\xef\xbf\xbd"
static void json_strings_replace_bad_utf8(void **state)
{
    (void)state;
    expect_json("\"" BAD "x\"", "\x80x", 2);               /* stray continuation */
    expect_json("\"" BAD BAD "\"", "\xc0\x80", 2);         /* overlong, two bytes */
    expect_json("\"" BAD BAD BAD "\"", "\xe0\x80\x80", 3); /* overlong, three */
    expect_json("\"" BAD BAD BAD BAD "\"", "\xf0\x80\x80\x80", 4);
    expect_json("\"" BAD BAD BAD "\"", "\xed\xa0\x80", 3);         /* surrogate */
    expect_json("\"" BAD BAD BAD BAD "\"", "\xf4\x90\x80\x80", 4); /* above U+10FFFF */
    expect_json("\"" BAD "\"", "\xff", 1);
    expect_json("\"a" BAD BAD "\"", "a\xe2\x82\xac", 3); /* cut off by the length */
    expect_json("\"" BAD BAD "\\\"\"", "\xe2\x82\"", 3); /* an escape follows */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_text_is_complete),
        cmocka_unit_test(appending_nothing_still_terminates),
        cmocka_unit_test(pieces_join_across_growth),
        cmocka_unit_test(json_strings_escape_what_json_forbids),
        cmocka_unit_test(json_strings_keep_good_utf8),
        cmocka_unit_test(json_strings_replace_bad_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
