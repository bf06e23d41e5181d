/* dtype.h - the element types of weights. Threads: no state. */
#ifndef MOE_COMMON_DTYPE_H
#define MOE_COMMON_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Numbers are stored in catalogues and shared memory: append only. */
typedef enum moe_dtype {
    MOE_F32 = 1,
    MOE_BF16 = 2,
    MOE_F16 = 3,
    MOE_I32 = 4,
    MOE_U8 = 5
} moe_dtype;

size_t moe_dtype_bytes(moe_dtype dtype);     /* of one element; 0 if unknown */
const char *moe_dtype_name(moe_dtype dtype); /* "bf16"; "?" if unknown */
int moe_dtype_parse(const char *name);       /* "bf16", "f32", "f16" -> moe_dtype; 0 if unknown */

static inline float moe_bf16_to_f32(uint16_t v)
{
    uint32_t bits = (uint32_t)v << 16;
    float f = 0.0f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Round to nearest even; NaN stays NaN (quiet). */
static inline uint16_t moe_f32_to_bf16(float f)
{
    uint32_t bits = 0;
    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((bits >> 16) | 0x0040u);
    }
    bits += 0x7fffu + ((bits >> 16) & 1u);
    return (uint16_t)(bits >> 16);
}

float moe_f16_to_f32(uint16_t v);
uint16_t moe_f32_to_f16(float f); /* round to nearest even; overflow gives infinity */
/* Converts n elements between MOE_F32, MOE_BF16 and MOE_F16; src and dst must not overlap. */
void moe_dtype_convert(void *dst, moe_dtype dst_dtype, const void *src, moe_dtype src_dtype,
                       size_t n);

#endif
