/* dtype.c - names, sizes and conversions of weight element types.
 * Called by the packer, the catalogue and the kernels, on any thread; no state. */
#include "common/dtype.h"

#include <stdbool.h>

#include "common/status.h"

static const struct {
    moe_dtype dtype;
    const char *name;
    size_t bytes;
} dtypes[] = {
    {MOE_F32, "f32", 4}, {MOE_BF16, "bf16", 2}, {MOE_F16, "f16", 2},
    {MOE_I32, "i32", 4}, {MOE_U8, "u8", 1},
};

enum { N_DTYPES = sizeof dtypes / sizeof dtypes[0], CHUNK = 512 };

size_t moe_dtype_bytes(moe_dtype dtype)
{
    for (size_t i = 0; i < N_DTYPES; i++) {
        if (dtypes[i].dtype == dtype) {
            return dtypes[i].bytes;
        }
    }
    return 0;
}

const char *moe_dtype_name(moe_dtype dtype)
{
    for (size_t i = 0; i < N_DTYPES; i++) {
        if (dtypes[i].dtype == dtype) {
            return dtypes[i].name;
        }
    }
    return "?";
}

int moe_dtype_parse(const char *name)
{
    for (size_t i = 0; i < N_DTYPES; i++) {
        if (strcmp(dtypes[i].name, name) == 0) {
            return (int)dtypes[i].dtype;
        }
    }
    return 0;
}

float moe_f16_to_f32(uint16_t v)
{
    uint32_t sign = (uint32_t)(v & 0x8000u) << 16;
    uint32_t exponent = (v >> 10) & 0x1fu;
    uint32_t mantissa = v & 0x3ffu;
    if (exponent == 0) { /* zero or subnormal: mantissa counts units of 2^-24, exact in f32 */
        float magnitude = (float)mantissa * 0x1p-24f;
        return sign != 0 ? -magnitude : magnitude;
    }
    uint32_t bits = sign | (mantissa << 13);
    if (exponent == 31) {
        bits |= 0x7f800000u | (mantissa != 0 ? 0x00400000u : 0u); /* infinity, or a quiet NaN */
    } else {
        bits |= (exponent + 112) << 23; /* bias 15 to bias 127 */
    }
    float f = 0.0f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* bits >> shift, rounded to nearest, ties to even; shift in 1..31. */
static uint32_t shift_right_round_even(uint32_t bits, uint32_t shift)
{
    uint32_t half_minus_one = (1u << (shift - 1)) - 1;
    return (bits + half_minus_one + ((bits >> shift) & 1u)) >> shift;
}

uint16_t moe_f32_to_f16(float f)
{
    uint32_t bits = 0;
    memcpy(&bits, &f, sizeof bits);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    }
    if (magnitude >= 0x477ff000u) { /* 65520: half way from the largest f16 to the next */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude >= 0x38800000u) { /* 2^-14, the smallest normal f16 */
        return (uint16_t)(sign | shift_right_round_even(magnitude - 0x38000000u, 13));
    }
    if (magnitude <= 0x33000000u) { /* 2^-25: half of the smallest subnormal, ties to zero */
        return (uint16_t)sign;
    }
    uint32_t exponent = magnitude >> 23;
    uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    return (uint16_t)(sign | shift_right_round_even(mantissa, 126 - exponent));
}

static void load_f32(float *out, const unsigned char *src, moe_dtype dtype, size_t n)
{
    if (dtype == MOE_F32) {
        memcpy(out, src, n * sizeof *out);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint16_t v = 0;
        memcpy(&v, src + 2 * i, sizeof v);
        out[i] = dtype == MOE_BF16 ? moe_bf16_to_f32(v) : moe_f16_to_f32(v);
    }
}

static void store_f32(unsigned char *dst, moe_dtype dtype, const float *in, size_t n)
{
    if (dtype == MOE_F32) {
        memcpy(dst, in, n * sizeof *in);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint16_t v = dtype == MOE_BF16 ? moe_f32_to_bf16(in[i]) : moe_f32_to_f16(in[i]);
        memcpy(dst + 2 * i, &v, sizeof v);
    }
}

static bool is_float(moe_dtype dtype)
{
    return dtype == MOE_F32 || dtype == MOE_BF16 || dtype == MOE_F16;
}

void moe_dtype_convert(void *dst, moe_dtype dst_dtype, const void *src, moe_dtype src_dtype,
                       size_t n)
{
    MOE_ASSERT(is_float(dst_dtype) && is_float(src_dtype));
    size_t dst_bytes = moe_dtype_bytes(dst_dtype);
    size_t src_bytes = moe_dtype_bytes(src_dtype);
    if (dst_dtype == src_dtype) {
        memcpy(dst, src, n * src_bytes);
        return;
    }
    float chunk[CHUNK];
    for (size_t at = 0; at < n; at += CHUNK) {
        size_t len = n - at < CHUNK ? n - at : CHUNK;
        load_f32(chunk, (const unsigned char *)src + at * src_bytes, src_dtype, len);
        store_f32((unsigned char *)dst + at * dst_bytes, dst_dtype, chunk, len);
    }
}
