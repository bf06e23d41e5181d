/* The table of contents of a safetensors file: what is accepted, and each way to be malformed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "expert-store/pack/safetensors.h"

/* Parses a header of a file with data_bytes of data. */
static moe_status parse(const char *json, uint64_t data_bytes, xs_st_index *out, moe_err *err)
{
    size_t n = strlen(json);
    return xs_st_parse("x.safetensors", json, n, 8 + n + data_bytes, out, err);
}

static void a_good_header_gives_tensors_ordered_by_name(void **state)
{
    (void)state;
    static const char json[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[4,28]},"
        "\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]},"
        "\"none\":{\"dtype\":\"F16\",\"shape\":[0,5],\"data_offsets\":[28,28]},"
        "\"scalar\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[28,36]}}   ";
    xs_st_index index;
    assert_int_equal(MOE_OK, parse(json, 36, &index, NULL));
    assert_int_equal(4, index.n);
    const xs_st_tensor *t = index.tensors;
    assert_string_equal("a", t[0].name);
    assert_int_equal(MOE_BF16, t[0].dtype);
    assert_int_equal(1, t[0].n_dims);
    assert_int_equal(8 + strlen(json), t[0].off);
    assert_string_equal("b", t[1].name);
    assert_int_equal(24, t[1].bytes);
    assert_int_equal(3, t[1].dims[1]);
    assert_int_equal(8 + strlen(json) + 4, t[1].off);
    assert_int_equal(0, t[3].dtype); /* known to the format, not to us */
    assert_string_equal("I64", t[3].dtype_name);
    xs_st_fini(&index);
    xs_st_fini(&index); /* idempotent */
}

static void each_malformed_header_is_refused_with_its_reason(void **state)
{
    (void)state;
    const struct {
        const char *json;
        uint64_t data_bytes;
        moe_status status;
        const char *reason;
    } cases[] = {
        {"[1,2]", 8, MOE_ERR_FORMAT, "not a JSON object"},
        {"{\"a\":", 8, MOE_ERR_FORMAT, "not a JSON object"},
        {"{\"a\":7}", 8, MOE_ERR_FORMAT, "not an object"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 8, MOE_ERR_FORMAT, "no dtype"},
        {"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 8, MOE_ERR_FORMAT,
         "no dtype"},
        {"{\"a\":{\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8, MOE_ERR_UNSUPPORTED,
         "unknown dtype 'F33'"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 8, MOE_ERR_FORMAT, "no shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 8, MOE_ERR_FORMAT,
         "list of sizes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,6]}}", 8, MOE_ERR_FORMAT,
         "list of sizes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296],\"data_offsets\":[0,4]}}", 8,
         MOE_ERR_FORMAT, "list of sizes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967295,4294967295,4294967295],"
         "\"data_offsets\":[0,4]}}",
         8, MOE_ERR_FORMAT, "list of sizes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,4]}}", 8,
         MOE_ERR_LIMIT, "more than 4 dimensions"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 8, MOE_ERR_FORMAT, "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 8, MOE_ERR_FORMAT,
         "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 8, MOE_ERR_FORMAT,
         "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 8, MOE_ERR_FORMAT,
         "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 8, MOE_ERR_FORMAT,
         "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,1e300]}}", 8, MOE_ERR_FORMAT,
         "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 8, MOE_ERR_FORMAT,
         "hold 4 bytes, shape and dtype need 8"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]}}", 8, MOE_ERR_FORMAT,
         "truncated"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, MOE_ERR_FORMAT, "overlap"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, MOE_ERR_FORMAT, "twice"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        xs_st_index index = {0};
        moe_err err = {0};
        moe_status st = parse(cases[i].json, cases[i].data_bytes, &index, &err);
        if (st != cases[i].status || strstr(err.text, cases[i].reason) == NULL ||
            strstr(err.text, "x.safetensors") == NULL) {
            fail_msg("case %zu: %s: %s", i, moe_status_name(st), err.text);
        }
        assert_null(index.tensors);
    }
}

static void a_name_that_is_too_long_is_refused(void **state)
{
    (void)state;
    char json[512], name[200];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    snprintf(json, sizeof json, "{\"%s\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
             name);
    xs_st_index index;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_FORMAT, parse(json, 4, &index, &err));
    assert_non_null(strstr(err.text, "name too long"));
}

static void lengths_that_cannot_be_are_refused(void **state)
{
    (void)state;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_FORMAT, xs_st_check_length("x", 2, 7, &err));
    assert_int_equal(MOE_ERR_FORMAT, xs_st_check_length("x", 3, 10, &err));
    assert_int_equal(MOE_ERR_FORMAT, xs_st_check_length("x", UINT64_MAX, 10, &err));
    assert_int_equal(MOE_ERR_FORMAT, xs_st_check_length("x", 0, 10, &err));
    assert_int_equal(MOE_ERR_LIMIT,
                     xs_st_check_length("x", XS_ST_MAX_HEADER + 1ull, UINT64_MAX, &err));
    assert_int_equal(MOE_OK, xs_st_check_length("x", 2, 10, NULL));
}

static void write_file(const char *path, const void *data, size_t bytes)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(bytes, fwrite(data, 1, bytes, f));
    assert_int_equal(0, fclose(f));
}

static void files_on_disk_are_read_and_short_ones_refused(void **state)
{
    (void)state;
    static const char path[] = "test_safetensors.tmp";
    static const char json[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    char file[128] = {0};
    uint64_t n = sizeof json - 1;
    memcpy(file, &n, sizeof n);
    memcpy(file + 8, json, n);
    xs_st_index index;
    moe_err err = {0};
    write_file(path, file, 8 + n + 4);
    assert_int_equal(MOE_OK, xs_st_read(path, &index, NULL));
    assert_int_equal(1, index.n);
    xs_st_fini(&index);
    for (size_t cut = 0; cut < 8 + n + 4; cut++) {
        write_file(path, file, cut);
        assert_int_equal(MOE_ERR_FORMAT, xs_st_read(path, &index, &err));
        assert_non_null(strstr(err.text, "truncated"));
    }
    unlink(path);
    assert_int_equal(MOE_ERR_NOT_FOUND, xs_st_read(path, &index, &err));
    assert_int_equal(MOE_ERR_IO, xs_st_read(".", &index, &err));
}

static void the_shard_map_is_read_and_checked(void **state)
{
    (void)state;
    static const char good[] = "{\"metadata\":{\"total_size\":4},\"weight_map\":{"
                               "\"a\":\"model-1.safetensors\",\"b\":\"model-2.safetensors\"}}";
    xs_st_map map;
    assert_int_equal(MOE_OK, xs_st_parse_map("i.json", good, strlen(good), &map, NULL));
    assert_int_equal(2, map.n);
    assert_string_equal("b", map.entries[1].name);
    assert_string_equal("model-2.safetensors", map.entries[1].file);
    xs_st_map_fini(&map);
    const char *const wrong[] = {
        "",
        "{}",
        "{\"weight_map\":[]}",
        "{\"weight_map\":{}}",
        "{\"weight_map\":{\"a\":7}}",
        "{\"weight_map\":{\"a\":\"\"}}",
        "{\"weight_map\":{\"a\":\"../../etc/passwd\"}}",
        "{\"weight_map\":{\"a\":\"..\"}}",
        "{\"weight_map\":{\"a\":\"/abs\"}}",
        "{\"weight_map\":{\"a\":\"m\"",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        moe_err err = {0};
        assert_int_equal(MOE_ERR_FORMAT,
                         xs_st_parse_map("i.json", wrong[i], strlen(wrong[i]), &map, &err));
        assert_non_null(strstr(err.text, "i.json"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_header_gives_tensors_ordered_by_name),
        cmocka_unit_test(each_malformed_header_is_refused_with_its_reason),
        cmocka_unit_test(a_name_that_is_too_long_is_refused),
        cmocka_unit_test(lengths_that_cannot_be_are_refused),
        cmocka_unit_test(files_on_disk_are_read_and_short_ones_refused),
        cmocka_unit_test(the_shard_map_is_read_and_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
