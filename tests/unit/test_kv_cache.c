/* The kv cache: places, and that no two tensors or places share a row. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu-worker/engine/kv_cache.h"

enum { LAYERS = 3, WIDTH = 4, PLACES = 5, MAX_INPUT = 7, MAX_OUTPUT = 2 };

static size_t asked_bytes; /* of the last allocation */
static size_t limit_bytes; /* more than this cannot be had */

static moe_status fake_alloc(krn_device *d, size_t bytes, void **out, moe_err *err)
{
    (void)d;
    asked_bytes = bytes;
    void *p = bytes <= limit_bytes ? calloc(1, bytes) : NULL;
    if (p == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "no more");
    }
    *out = p;
    return MOE_OK;
}

static void fake_free(krn_device *d, void *p)
{
    (void)d;
    free(p);
}

static const krn_ops fake_ops = {.backend = {.mem_alloc = fake_alloc, .mem_free = fake_free}};

static gw_kv_cache_cfg small_cfg(void)
{
    return (gw_kv_cache_cfg){.ops = &fake_ops,
                             .n_layers = LAYERS,
                             .width = WIDTH,
                             .n_places = PLACES,
                             .max_input = MAX_INPUT,
                             .max_output = MAX_OUTPUT};
}

static gw_kv_cache *small_cache(void)
{
    const gw_kv_cache_cfg cfg = small_cfg();
    gw_kv_cache *c = NULL;
    limit_bytes = 1 << 20;
    assert_int_equal(MOE_OK, gw_kv_cache_create(&cfg, &c, NULL));
    return c;
}

static void rows_tile_the_allocation_without_overlap(void **state)
{
    (void)state;
    gw_kv_cache *c = small_cache();
    const size_t expected_rows = 2 * LAYERS * PLACES * (MAX_INPUT + MAX_OUTPUT);
    assert_int_equal(expected_rows * WIDTH * sizeof(float), gw_kv_cache_bytes(c));
    assert_int_equal(asked_bytes, gw_kv_cache_bytes(c));
    const float *base = gw_kv_cache_tensor(c, 0, GW_KV_SELF_K);
    char *seen = calloc(expected_rows, 1);
    assert_non_null(seen);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (int which = 0; which < GW_KV_TENSORS; which++) {
            const float *tensor = gw_kv_cache_tensor(c, layer, (gw_kv_tensor)which);
            int is_self = which == GW_KV_SELF_K || which == GW_KV_SELF_V;
            for (uint32_t place = 0; place < PLACES; place++) {
                int64_t first =
                    is_self ? gw_kv_cache_self_row(c, place) : gw_kv_cache_cross_row(c, place);
                for (int64_t i = 0; i < (is_self ? MAX_OUTPUT : MAX_INPUT); i++) {
                    ptrdiff_t row = (tensor + (first + i) * WIDTH - base) / WIDTH;
                    assert_in_range(row, 0, expected_rows - 1);
                    assert_int_equal(0, seen[row]);
                    seen[row] = 1;
                }
            }
        }
    }
    free(seen);
    gw_kv_cache_destroy(c);
}

static void places_are_given_out_once_and_again_after_release(void **state)
{
    (void)state;
    gw_kv_cache *c = small_cache();
    uint32_t place = 99;
    for (uint32_t i = 0; i < PLACES; i++) {
        assert_int_equal(PLACES - i, gw_kv_cache_free_places(c));
        assert_int_equal(MOE_OK, gw_kv_cache_take(c, &place, NULL));
        assert_int_equal(i, place);
    }
    moe_err err = {0};
    assert_int_equal(MOE_ERR_NO_SLOT, gw_kv_cache_take(c, &place, &err));
    assert_int_equal(PLACES - 1, place); /* untouched */
    gw_kv_cache_release(c, 2);
    assert_int_equal(1, gw_kv_cache_free_places(c));
    assert_int_equal(MOE_OK, gw_kv_cache_take(c, &place, NULL));
    assert_int_equal(2, place);
    gw_kv_cache_destroy(c);
}

static void too_little_memory_says_how_much_and_what_to_lower(void **state)
{
    (void)state;
    const gw_kv_cache_cfg cfg = small_cfg();
    gw_kv_cache *c = NULL;
    moe_err err = {0};
    limit_bytes = 100;
    assert_int_equal(MOE_ERR_NO_MEMORY, gw_kv_cache_create(&cfg, &c, &err));
    assert_null(c);
    assert_non_null(strstr(err.text, "4320 bytes"));
    assert_non_null(strstr(err.text, "max_batch=5"));
    assert_non_null(strstr(err.text, "max_input_tokens=7"));
    assert_non_null(strstr(err.text, "max_output_tokens=2"));
    assert_non_null(strstr(err.text, "lower"));
}

static void a_size_that_wraps_is_refused(void **state)
{
    (void)state;
    gw_kv_cache_cfg cfg = small_cfg();
    gw_kv_cache *c = NULL;
    limit_bytes = SIZE_MAX;
    cfg.width = UINT32_MAX;
    cfg.n_places = 1 << 20;
    cfg.max_input = UINT32_MAX;
    assert_int_equal(MOE_ERR_NO_MEMORY, gw_kv_cache_create(&cfg, &c, NULL));
    assert_null(c);
}

static void nothing_may_be_zero(void **state)
{
    (void)state;
    gw_kv_cache_cfg cfg = small_cfg();
    gw_kv_cache *c = NULL;
    cfg.max_output = 0;
    assert_int_equal(MOE_ERR_INVALID, gw_kv_cache_create(&cfg, &c, NULL));
    gw_kv_cache_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_tile_the_allocation_without_overlap),
        cmocka_unit_test(places_are_given_out_once_and_again_after_release),
        cmocka_unit_test(too_little_memory_says_how_much_and_what_to_lower),
        cmocka_unit_test(a_size_that_wraps_is_refused),
        cmocka_unit_test(nothing_may_be_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
