/* The synthetic generator: distinct, reproducible, computable in parts, sane in scale. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/checksum.h"
#include "expert-store/catalog/synthetic.h"
#include "expert-store/catalog/tensor_names.h"

static moe_model_shape shape_of(const char *name)
{
    char config[4096];
    moe_model_shape s;
    assert_int_equal(MOE_OK, xs_synthetic_config(name, MOE_BF16, config, sizeof config, NULL));
    assert_int_equal(MOE_OK, moe_model_shape_parse(config, strlen(config), &s, NULL));
    return s;
}

static size_t expert_bytes(const moe_model_shape *s, moe_dtype dtype)
{
    return (size_t)moe_expert_params(s) * moe_dtype_bytes(dtype);
}

static void every_named_model_has_a_config_that_parses(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-base-128");
    assert_int_equal(768, s.d_model);
    assert_int_equal(3072, s.d_ff);
    assert_int_equal(1536, s.n_experts_total);
    assert_int_equal(0, s.pregate_lookahead);
    s = shape_of("switch-large-128");
    assert_int_equal(1024, s.d_model);
    assert_int_equal(24, s.stack[MOE_DECODER].n_layers);
    assert_int_equal(3072, s.n_experts_total);
    s = shape_of("switch-base-256-pregated");
    assert_int_equal(256, s.n_experts);
    assert_int_equal(1, s.pregate_lookahead);
    assert_int_equal(32, shape_of("switch-tiny").n_experts_total);
}

static void an_unknown_model_is_refused_with_the_list_of_known_ones(void **state)
{
    (void)state;
    char config[4096];
    moe_err err = {0};
    const char *const wrong[] = {"switch-base-9", "switch-base-128-pregate", "switch", ""};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(MOE_ERR_INVALID,
                         xs_synthetic_config(wrong[i], MOE_BF16, config, sizeof config, &err));
        assert_non_null(strstr(err.text, "switch-large-128"));
    }
    assert_int_equal(MOE_ERR_LIMIT,
                     xs_synthetic_config("switch-tiny", MOE_BF16, config, 100, &err));
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Also across seeds, and the two matrices of one expert differ. */
static void all_experts_differ(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-tiny");
    size_t bytes = expert_bytes(&s, MOE_BF16);
    char *expert = malloc(bytes);
    uint64_t hashes[3 * 2 * 32];
    uint32_t n = 0;
    for (uint64_t seed = 0; seed < 3; seed++) {
        for (uint32_t i = 0; i < s.n_experts_total; i++) {
            xs_synthetic_expert(&s, MOE_BF16, seed, i, expert);
            hashes[n++] = moe_xxh3(expert, bytes / 2);
            hashes[n++] = moe_xxh3(expert + bytes / 2, bytes / 2);
        }
    }
    qsort(hashes, n, sizeof hashes[0], by_value);
    for (uint32_t i = 1; i < n; i++) {
        assert_true(hashes[i - 1] != hashes[i]);
    }
    free(expert);
}

/* The bits are a format: stores and benchmarks of different machines must agree on them. */
static void the_bits_of_a_seed_never_change(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-tiny");
    char expert[2 * 32 * 64 * sizeof(float)];
    const struct {
        moe_dtype dtype;
        uint64_t hash;
    } golden[] = {{MOE_BF16, 0x6d958feb190d43d9ull},
                  {MOE_F32, 0x622874b940d25c34ull},
                  {MOE_F16, 0xd7575742b8088c7eull}};
    for (size_t i = 0; i < sizeof golden / sizeof golden[0]; i++) {
        xs_synthetic_expert(&s, golden[i].dtype, 7, 13, expert);
        assert_int_equal(golden[i].hash, moe_xxh3(expert, expert_bytes(&s, golden[i].dtype)));
    }
}

static void narrow_dtypes_are_the_rounded_f32(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-tiny");
    enum { N = 2 * 32 * 64 };
    static float f32[N];
    static uint16_t narrow[N], expected[N];
    xs_synthetic_expert(&s, MOE_F32, 5, 9, f32);
    const moe_dtype dtypes[] = {MOE_BF16, MOE_F16};
    for (int i = 0; i < 2; i++) {
        xs_synthetic_expert(&s, dtypes[i], 5, 9, narrow);
        moe_dtype_convert(expected, dtypes[i], f32, MOE_F32, N);
        assert_memory_equal(expected, narrow, sizeof narrow);
    }
}

/* Any cut, also across the border of the two matrices and inside a generator block. */
static void parts_of_an_expert_are_parts_of_the_whole(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-tiny");
    enum { N = 2 * 32 * 64 };
    static uint16_t whole[N], part[N];
    xs_synthetic_expert(&s, MOE_BF16, 3, 31, whole);
    for (size_t first = 0; first < N; first += 37) {
        for (size_t n = 1; first + n <= N; n += 411) {
            xs_synthetic_expert_part(&s, MOE_BF16, 3, 31, first, n, part);
            assert_memory_equal(whole + first, part, n * sizeof part[0]);
        }
    }
    static float whole32[N], part32[N];
    xs_synthetic_expert(&s, MOE_F32, 3, 31, whole32);
    xs_synthetic_expert_part(&s, MOE_F32, 3, 31, 2041, 77, part32);
    assert_memory_equal(whole32 + 2041, part32, 77 * sizeof part32[0]);
}

/* n numbers of a uniform distribution: the mean is off by std / sqrt(n), the variance by a factor
 * 1 +- 1 / sqrt(n); six times that is never reached by chance. */
static void check_scale(const float *v, size_t n, double std)
{
    double sum = 0, squares = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        assert_true(isfinite(v[i]));
        sum += (double)v[i];
        squares += (double)v[i] * (double)v[i];
        largest = fmax(largest, fabs((double)v[i]));
    }
    double slack = 6.0 / sqrt((double)n);
    assert_true(fabs(sum / (double)n) < slack * std);
    assert_true(fabs(squares / (double)n / (std * std) - 1.0) < slack);
    assert_true(largest <= 1.7321 * std);
}

static void scales_follow_the_fan_in(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-base-8");
    size_t matrix = (size_t)s.d_ff * s.d_model;
    float *v = malloc(2 * matrix * sizeof *v);
    assert_non_null(v);
    xs_synthetic_expert(&s, MOE_F32, 1, 40, v);
    check_scale(v, matrix, 1.0 / sqrt(768));
    check_scale(v + matrix, matrix, 1.0 / sqrt(3072));
    xs_synthetic_tensor t;
    for (uint32_t i = 0; xs_synthetic_tensor_at(&s, i, &t, NULL) == MOE_OK; i++) {
        size_t n = (size_t)t.dims[0] * t.dims[1];
        if (t.n_dims == 1) {
            xs_synthetic_tensor_fill(&t, MOE_F32, 1, v);
            assert_true(v[0] == 1.0f && v[n - 1] == 1.0f);
        } else if (strstr(t.name, "Attention.k") != NULL || strstr(t.name, "router") != NULL) {
            xs_synthetic_tensor_fill(&t, MOE_F32, 1, v);
            check_scale(v, n, 1.0 / sqrt(768));
        }
    }
    free(v);
}

static void dense_tensors_differ_and_are_the_expected_ones(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-tiny-pregated");
    xs_synthetic_tensor t;
    moe_err err = {0};
    uint32_t n = 0, n_routers = 0, n_pregates = 0;
    uint64_t hashes[256];
    char data[512 * 32 * 2];
    for (; xs_synthetic_tensor_at(&s, n, &t, &err) == MOE_OK; n++) {
        n_routers += strstr(t.name, "router") != NULL;
        n_pregates += strstr(t.name, "pregate") != NULL;
        xs_synthetic_tensor_fill(&t, MOE_BF16, 1, data);
        hashes[n] = t.n_dims == 1 ? n : moe_xxh3(data, (size_t)t.dims[0] * t.dims[1] * 2);
    }
    assert_int_equal(MOE_ERR_NOT_FOUND, err.status);
    assert_int_equal(2, n_routers);  /* the first of two MoE blocks of each stack */
    assert_int_equal(2, n_pregates); /* all but the last */
    qsort(hashes, n, sizeof hashes[0], by_value);
    for (uint32_t i = 1; i < n; i++) {
        assert_true(hashes[i - 1] != hashes[i]);
    }
}

static void flat_indices_are_split_and_joined_alike(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-tiny");
    for (uint32_t i = 0; i < s.n_experts_total; i++) {
        moe_stack stack;
        uint32_t block, expert;
        xs_expert_place(&s, i, &stack, &block, &expert);
        assert_int_equal(i, moe_expert_index(&s, stack, block, expert));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_named_model_has_a_config_that_parses),
        cmocka_unit_test(an_unknown_model_is_refused_with_the_list_of_known_ones),
        cmocka_unit_test(all_experts_differ),
        cmocka_unit_test(the_bits_of_a_seed_never_change),
        cmocka_unit_test(narrow_dtypes_are_the_rounded_f32),
        cmocka_unit_test(parts_of_an_expert_are_parts_of_the_whole),
        cmocka_unit_test(scales_follow_the_fan_in),
        cmocka_unit_test(dense_tensors_differ_and_are_the_expected_ones),
        cmocka_unit_test(flat_indices_are_split_and_joined_alike),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
