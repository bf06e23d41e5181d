/* bytes.h - arithmetic on sizes that cannot wrap, alignment, little-endian access.
 * Threads: no state. */
#ifndef MOE_COMMON_BYTES_H
#define MOE_COMMON_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* False (and *out untouched) on overflow. */
static inline bool moe_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t sum = 0;
    if (__builtin_add_overflow(a, b, &sum)) {
        return false;
    }
    *out = sum;
    return true;
}

static inline bool moe_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t product = 0;
    if (__builtin_mul_overflow(a, b, &product)) {
        return false;
    }
    *out = product;
    return true;
}

/* align is a power of two; n + align must not overflow. */
static inline uint64_t moe_align_up(uint64_t n, uint64_t align)
{
    return (n + align - 1) & ~(align - 1);
}

static inline uint32_t moe_load_le32(const void *p)
{
    uint32_t v = 0;
    memcpy(&v, p, sizeof v);
    return v; /* hosts are little-endian: see the assert below */
}

static inline uint64_t moe_load_le64(const void *p)
{
    uint64_t v = 0;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void moe_store_le32(void *p, uint32_t v)
{
    memcpy(p, &v, sizeof v);
}

static inline void moe_store_le64(void *p, uint64_t v)
{
    memcpy(p, &v, sizeof v);
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "on-disk and shared layouts are LE");

#endif
