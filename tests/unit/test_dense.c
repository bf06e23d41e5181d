/* dense: the region of weights and files, and what is taken over of one found in memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "common/checksum.h"
#include "expert-store/server/dense.h"
#include "expert-store/server/model_source.h"
#include "proto/dense_table.h"

static xs_model open_model(uint64_t seed)
{
    const xs_config cfg = {.synthetic = "switch-tiny", .seed = seed};
    xs_model m = {0};
    assert_int_equal(MOE_OK, xs_model_open(&cfg, &m, NULL));
    return m;
}

static void a_region_is_taken_over_only_when_it_is_whole_and_ours(void **state)
{
    (void)state;
    xs_model mine = open_model(1);
    xs_model other = open_model(2);
    uint64_t bytes = 0;
    assert_int_equal(MOE_OK, xs_dense_bytes(&mine, &bytes, NULL));
    assert_int_equal(0, bytes % 4096);
    void *region = calloc(1, bytes);
    assert_false(xs_dense_matches(&mine, region, bytes, bytes)); /* its maker died early */
    assert_int_equal(MOE_OK, xs_dense_load(&mine, region, bytes, NULL));
    assert_true(xs_dense_matches(&mine, region, bytes, bytes));
    assert_false(xs_dense_matches(&other, region, bytes, bytes));
    assert_false(xs_dense_matches(&mine, region, bytes, bytes + 4096));
    free(region);
    xs_model_close(&mine);
    xs_model_close(&other);
}

static void a_model_has_one_identity_per_name_seed_and_type(void **state)
{
    (void)state;
    xs_model a = open_model(1);
    xs_model b = open_model(1);
    xs_model c = open_model(2);
    const xs_config f32 = {.synthetic = "switch-tiny", .seed = 1, .dtype = 2};
    xs_model d = {0};
    assert_int_equal(MOE_OK, xs_model_open(&f32, &d, NULL));
    assert_memory_equal(a.uuid, b.uuid, sizeof a.uuid);
    assert_memory_not_equal(a.uuid, c.uuid, sizeof a.uuid);
    assert_memory_not_equal(a.uuid, d.uuid, sizeof a.uuid);
    assert_int_equal(2 * a.expert_bytes, d.expert_bytes);
    assert_int_equal(MOE_F32, d.expert_dtype);
    xs_model_close(&a);
    xs_model_close(&b);
    xs_model_close(&c);
    xs_model_close(&d);
}

static void every_chunk_of_an_extent_is_checked(void **state)
{
    (void)state;
    enum { BYTES = 2 * MOE_CHUNK_BYTES + 100 };
    char *bytes = calloc(1, BYTES);
    uint64_t hashes[3];
    for (uint32_t i = 0; i < BYTES; i++) {
        bytes[i] = (char)(i * 7);
    }
    hashes[0] = moe_xxh3(bytes, MOE_CHUNK_BYTES);
    hashes[1] = moe_xxh3(bytes + MOE_CHUNK_BYTES, MOE_CHUNK_BYTES);
    hashes[2] = moe_xxh3(bytes + 2 * MOE_CHUNK_BYTES, 100);
    const xs_extent e = {.n_chunks = 3, .payload_bytes = BYTES, .hashes = hashes};
    assert_true(xs_extent_verify(&e, bytes));
    static const uint32_t places[] = {0, MOE_CHUNK_BYTES - 1, MOE_CHUNK_BYTES, BYTES - 1};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        bytes[places[i]] ^= 1;
        assert_false(xs_extent_verify(&e, bytes));
        bytes[places[i]] ^= 1;
    }
    const xs_extent short_list = {.n_chunks = 2, .payload_bytes = BYTES, .hashes = hashes};
    assert_false(xs_extent_verify(&short_list, bytes));
    free(bytes);
}

static void a_made_up_expert_is_known_again(void **state)
{
    (void)state;
    xs_model m = open_model(5);
    char *good = malloc(m.slot_bytes);
    char *scratch = malloc(m.slot_bytes);
    assert_false(xs_model_verify_expert(&m, 3, memset(good, 0, m.slot_bytes), scratch));
    assert_false(xs_model_verify_expert(&m, 3, good, scratch));
    memcpy(good, scratch, m.slot_bytes); /* what it should have been */
    assert_true(xs_model_verify_expert(&m, 3, good, scratch));
    assert_false(xs_model_verify_expert(&m, 4, good, scratch));
    good[m.expert_bytes - 1] ^= 1;
    assert_false(xs_model_verify_expert(&m, 3, good, scratch));
    free(good);
    free(scratch);
    xs_model_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_region_is_taken_over_only_when_it_is_whole_and_ours),
        cmocka_unit_test(a_model_has_one_identity_per_name_seed_and_type),
        cmocka_unit_test(every_chunk_of_an_extent_is_checked),
        cmocka_unit_test(a_made_up_expert_is_known_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
