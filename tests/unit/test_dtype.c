/* Element types: sizes, names, and conversions checked over every 16-bit pattern. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "common/dtype.h"

static uint32_t bits_of(float f)
{
    uint32_t bits = 0;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits)
{
    float f = 0;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static void names_and_sizes_agree_in_both_directions(void **state)
{
    (void)state;
    const moe_dtype all[] = {MOE_F32, MOE_BF16, MOE_F16, MOE_I32, MOE_U8};
    const size_t bytes[] = {4, 2, 2, 4, 1};
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(bytes[i], moe_dtype_bytes(all[i]));
        assert_int_equal(all[i], moe_dtype_parse(moe_dtype_name(all[i])));
    }
    assert_int_equal(0, moe_dtype_bytes((moe_dtype)99));
    assert_string_equal("?", moe_dtype_name((moe_dtype)0));
    assert_int_equal(0, moe_dtype_parse("BF16"));
    assert_int_equal(0, moe_dtype_parse(""));
}

static void every_bf16_survives_f32_and_back(void **state)
{
    (void)state;
    for (uint32_t v = 0; v <= 0xffff; v++) {
        float f = moe_bf16_to_f32((uint16_t)v);
        uint16_t back = moe_f32_to_bf16(f);
        if (isnan(f)) {
            assert_true(isnan(moe_bf16_to_f32(back)));
        } else {
            assert_int_equal(v, back);
        }
    }
}

static void every_f16_survives_f32_and_back(void **state)
{
    (void)state;
    for (uint32_t v = 0; v <= 0xffff; v++) {
        float f = moe_f16_to_f32((uint16_t)v);
        uint16_t back = moe_f32_to_f16(f);
        if (isnan(f)) {
            assert_true(isnan(moe_f16_to_f32(back)));
            assert_int_equal(v & 0x8000u, back & 0x8000u);
        } else {
            assert_int_equal(v, back);
        }
    }
}

/* Value of a finite f16, from its definition. */
static double f16_value(uint16_t v)
{
    int exponent = (v >> 10) & 31;
    int mantissa = v & 1023;
    double magnitude = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return (v & 0x8000) != 0 ? -magnitude : magnitude;
}

static void f16_values_follow_the_definition(void **state)
{
    (void)state;
    for (uint32_t v = 0; v <= 0xffff; v++) {
        if ((v & 0x7c00) != 0x7c00) {
            assert_true((double)moe_f16_to_f32((uint16_t)v) == f16_value((uint16_t)v));
        }
    }
    assert_true(isinf(moe_f16_to_f32(0x7c00)) && moe_f16_to_f32(0xfc00) < 0);
}

/* The midpoint of each pair of neighbours must go to the even one, and its neighbours in f32 to
 * the nearer one. */
static void f16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t v = 0; v < 0x7bff; v++) {
        float middle = (float)((f16_value((uint16_t)v) + f16_value((uint16_t)(v + 1))) / 2);
        assert_int_equal(v % 2 == 0 ? v : v + 1, moe_f32_to_f16(middle));
        assert_int_equal(v, moe_f32_to_f16(float_of(bits_of(middle) - 1)));
        assert_int_equal(v + 1, moe_f32_to_f16(float_of(bits_of(middle) + 1)));
    }
}

static void f16_overflow_gives_infinity_at_half_an_ulp(void **state)
{
    (void)state;
    assert_int_equal(0x7bff, moe_f32_to_f16(65504.0f));
    assert_int_equal(0x7bff, moe_f32_to_f16(nextafterf(65520.0f, 0)));
    assert_int_equal(0x7c00, moe_f32_to_f16(65520.0f));
    assert_int_equal(0xfc00, moe_f32_to_f16(-INFINITY));
    assert_int_equal(0x0000, moe_f32_to_f16(0x1p-25f));
    assert_int_equal(0x8000, moe_f32_to_f16(-0x1p-140f));
    assert_int_equal(0x0001, moe_f32_to_f16(nextafterf(0x1p-25f, 1)));
}

static void bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    assert_int_equal(0x3f80, moe_f32_to_bf16(float_of(0x3f808000u))); /* tie, even below */
    assert_int_equal(0x3f82, moe_f32_to_bf16(float_of(0x3f818000u))); /* tie, even above */
    assert_int_equal(0x3f81, moe_f32_to_bf16(float_of(0x3f808001u)));
    assert_int_equal(0x3f80, moe_f32_to_bf16(float_of(0x3f807fffu)));
    assert_int_equal(0x7f80, moe_f32_to_bf16(float_of(0x7f7fffffu))); /* overflow: infinity */
    assert_true(isnan(moe_bf16_to_f32(moe_f32_to_bf16(float_of(0x7f800001u)))));
}

static void arrays_convert_between_all_pairs(void **state)
{
    (void)state;
    enum { N = 1301 }; /* not a multiple of any chunk */
    static float f32[N];
    static uint16_t bf16[N], f16[N], through[N];
    static float back[N];
    for (int i = 0; i < N; i++) {
        f32[i] = (float)(i - 650) / 4.0f; /* exact in f16; in bf16 only the small ones are */
    }
    moe_dtype_convert(bf16, MOE_BF16, f32, MOE_F32, N);
    moe_dtype_convert(f16, MOE_F16, f32, MOE_F32, N);
    for (int i = 0; i < N; i++) {
        assert_int_equal(moe_f32_to_bf16(f32[i]), bf16[i]);
        assert_int_equal(moe_f32_to_f16(f32[i]), f16[i]);
    }
    moe_dtype_convert(back, MOE_F32, f16, MOE_F16, N);
    assert_memory_equal(f32, back, sizeof f32);
    moe_dtype_convert(through, MOE_BF16, f16, MOE_F16, N);
    assert_memory_equal(bf16, through, sizeof bf16);
    moe_dtype_convert(through, MOE_BF16, bf16, MOE_BF16, N);
    assert_memory_equal(bf16, through, sizeof bf16);
    moe_dtype_convert(through, MOE_F16, bf16, MOE_BF16, N);
    for (int i = 0; i < N; i++) {
        assert_true(moe_f16_to_f32(through[i]) == moe_bf16_to_f32(bf16[i]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_sizes_agree_in_both_directions),
        cmocka_unit_test(every_bf16_survives_f32_and_back),
        cmocka_unit_test(every_f16_survives_f32_and_back),
        cmocka_unit_test(f16_values_follow_the_definition),
        cmocka_unit_test(f16_rounds_to_nearest_even),
        cmocka_unit_test(f16_overflow_gives_infinity_at_half_an_ulp),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(arrays_convert_between_all_pairs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
