/* The tokenizer against the ids and texts that the checkpoint's own golden file records.
 * Argument: a model directory with spiece.model and golden.json. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <cJSON.h>

#include "common/file.h"
#include "gpu-worker/engine/tokenizer.h"

static char *model_bytes;
static size_t n_model_bytes;
static cJSON *golden;
static gw_tokenizer *tokenizer;

static char *read_file(const char *dir, const char *name, size_t *out_bytes)
{
    char path[1024];
    char *data = NULL;
    moe_err err = {0};
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    if (moe_file_read(path, 16u << 20, &data, out_bytes, &err) != MOE_OK) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    return data;
}

static const char *text_of(const cJSON *object, const char *key)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(object, key));
    assert_non_null(text);
    return text;
}

static int32_t *ids_of(const cJSON *object, const char *key, uint32_t *out_n)
{
    const cJSON *array = cJSON_GetObjectItem(object, key);
    const cJSON *item = NULL;
    int32_t *ids = calloc((size_t)cJSON_GetArraySize(array) + 1, sizeof *ids);
    uint32_t n = 0;
    assert_non_null(ids);
    cJSON_ArrayForEach(item, array)
    {
        ids[n++] = item->valueint;
    }
    *out_n = n;
    return ids;
}

static void texts_become_the_recorded_ids(void **state)
{
    (void)state;
    const cJSON *c = NULL;
    cJSON_ArrayForEach(c, golden)
    {
        uint32_t n = 0;
        uint32_t n_expected = 0;
        int32_t *ids = NULL;
        int32_t *expected = ids_of(c, "input_ids", &n_expected);
        const char *text = text_of(c, "text");
        assert_int_equal(MOE_OK,
                         gw_tokenizer_encode(tokenizer, text, strlen(text), 512, &ids, &n, NULL));
        assert_int_equal(n_expected, n);
        assert_memory_equal(expected, ids, n * sizeof *ids);
        free(ids);
        free(expected);
    }
}

static void ids_become_the_recorded_texts(void **state)
{
    (void)state;
    const cJSON *c = NULL;
    cJSON_ArrayForEach(c, golden)
    {
        uint32_t n = 0;
        char *text = NULL;
        int32_t *ids = ids_of(c, "output_ids", &n);
        assert_int_equal(MOE_OK, gw_tokenizer_decode(tokenizer, ids, n, &text, NULL));
        assert_string_equal(text_of(c, "output_text"), text);
        free(text);
        free(ids);
    }
}

static void special_and_unknown_ids_have_no_text(void **state)
{
    (void)state;
    const int32_t ids[] = {0, 48, 1, (int32_t)gw_tokenizer_vocab(tokenizer), 1 << 30, -5, 37, 0};
    const int32_t plain[] = {48, 37};
    char *text = NULL;
    char *expected = NULL;
    assert_int_equal(MOE_OK, gw_tokenizer_decode(tokenizer, ids, 8, &text, NULL));
    assert_int_equal(MOE_OK, gw_tokenizer_decode(tokenizer, plain, 2, &expected, NULL));
    assert_string_equal(expected, text);
    assert_true(strlen(text) > 0);
    free(text);
    free(expected);
    assert_int_equal(MOE_OK, gw_tokenizer_decode(tokenizer, NULL, 0, &text, NULL));
    assert_string_equal("", text);
    free(text);
}

static void empty_text_is_the_end_token_alone(void **state)
{
    (void)state;
    int32_t *ids = NULL;
    uint32_t n = 0;
    assert_int_equal(MOE_OK, gw_tokenizer_encode(tokenizer, "", 0, 1, &ids, &n, NULL));
    assert_int_equal(1, n);
    assert_int_equal(1, ids[0]);
    free(ids);
}

static void too_many_ids_name_both_counts(void **state)
{
    (void)state;
    int32_t *ids = NULL;
    uint32_t n = 0;
    moe_err err = {0};
    const char *text = "one two three four";
    assert_int_equal(MOE_OK,
                     gw_tokenizer_encode(tokenizer, text, strlen(text), 99, &ids, &n, NULL));
    free(ids);
    ids = NULL;
    assert_int_equal(MOE_ERR_LIMIT,
                     gw_tokenizer_encode(tokenizer, text, strlen(text), n - 1, &ids, &n, &err));
    assert_null(ids);
    char count[16];
    (void)snprintf(count, sizeof count, "%u", n);
    assert_non_null(strstr(err.text, count));
    (void)snprintf(count, sizeof count, "%u", n - 1);
    assert_non_null(strstr(err.text, count));
}

static void accepts(const char *bytes, size_t n)
{
    int32_t *ids = NULL;
    uint32_t n_ids = 0;
    assert_int_equal(MOE_OK, gw_tokenizer_encode(tokenizer, bytes, n, 99, &ids, &n_ids, NULL));
    free(ids);
}

static void refuses(const char *bytes, size_t n, const char *where)
{
    int32_t *ids = NULL;
    uint32_t n_ids = 0;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_INVALID,
                     gw_tokenizer_encode(tokenizer, bytes, n, 99, &ids, &n_ids, &err));
    assert_null(ids);
    assert_non_null(strstr(err.text, where));
}

static void only_utf8_is_text(void **state)
{
    (void)state;
    accepts("gr\xc3\xbc\xc3\x9f", 6);
    accepts("\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80", 9); /* U+0800, U+D7FF, U+E000 */
    accepts("\xf0\x90\x80\x80\xf4\x8f\xbf\xbf", 8);     /* U+10000, U+10FFFF */
    refuses("ab\xff", 3, "byte 2");
    refuses("\x80", 1, "byte 0");             /* continuation first */
    refuses("\xc0\xaf", 2, "byte 0");         /* overlong */
    refuses("\xe0\x9f\xbf", 3, "byte 0");     /* overlong */
    refuses("\xed\xa0\x80", 3, "byte 0");     /* surrogate */
    refuses("\xf0\x8f\xbf\xbf", 4, "byte 0"); /* overlong */
    refuses("\xf4\x90\x80\x80", 4, "byte 0"); /* past U+10FFFF */
    refuses("x\xe2\x82", 3, "byte 1");        /* cut short */
    refuses("\xe2\x82\x41", 3, "byte 0");
}

static void a_model_that_is_none_is_refused(void **state)
{
    (void)state;
    gw_tokenizer *t = NULL;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_FORMAT, gw_tokenizer_create("not a model", 11, &t, &err));
    assert_int_equal(MOE_ERR_FORMAT, gw_tokenizer_create("", 0, &t, &err));
    assert_int_equal(MOE_ERR_FORMAT, gw_tokenizer_create(model_bytes, n_model_bytes / 2, &t, &err));
    assert_null(t);
    gw_tokenizer_destroy(NULL);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL_DIR\n", argv[0]);
        return 1;
    }
    size_t n = 0;
    char *json = read_file(argv[1], "golden.json", &n);
    golden = cJSON_ParseWithLength(json, n);
    free(json);
    model_bytes = read_file(argv[1], "spiece.model", &n_model_bytes);
    moe_err err = {0};
    if (golden == NULL ||
        gw_tokenizer_create(model_bytes, n_model_bytes, &tokenizer, &err) != MOE_OK) {
        fprintf(stderr, "%s: no golden.json or model: %s\n", argv[1], err.text);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_become_the_recorded_ids),
        cmocka_unit_test(ids_become_the_recorded_texts),
        cmocka_unit_test(special_and_unknown_ids_have_no_text),
        cmocka_unit_test(empty_text_is_the_end_token_alone),
        cmocka_unit_test(too_many_ids_name_both_counts),
        cmocka_unit_test(only_utf8_is_text),
        cmocka_unit_test(a_model_that_is_none_is_refused),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    gw_tokenizer_destroy(tokenizer);
    cJSON_Delete(golden);
    free(model_bytes);
    return failed != 0;
}
