/* synthetic.c - see synthetic.h. Called by expert-pack --synthetic, by expert-store when it fills
 * slots without a disk, and by tests. Threads: no state. */
#include "expert-store/catalog/synthetic.h"

#include <math.h>
#include <string.h>

#include "common/named_model.h"
#include "expert-store/catalog/tensor_names.h"

moe_status xs_synthetic_config(const char *name, moe_dtype dtype, char *out, size_t out_bytes,
                               moe_err *err)
{
    return moe_named_config(name, dtype, out, out_bytes, err);
}

/* ---- numbers ---- */

typedef struct stream {
    uint32_t k0, k1;
    float scale; /* of the odd integers -65535 to 65535 */
} stream;

/* A counter gives BLOCK elements: one half of each of WORDS words, then the other half, so that
 * compilers see plain vectors. */
enum { WORDS = 16, BLOCK = 2 * WORDS };

static uint64_t splitmix64(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static stream make_stream(uint64_t key, double std)
{
    return (stream){.k0 = (uint32_t)key,
                    .k1 = (uint32_t)(key >> 32),
                    .scale = (float)(std * sqrt(3.0) / 65536.0)};
}

/* The finaliser of MurmurHash3 with a second key word in the middle. */
static inline uint32_t mix(uint32_t counter, uint32_t k0, uint32_t k1)
{
    uint32_t x = counter + k0;
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= k1;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ (x >> 16);
}

static inline float value_of(uint32_t u16, float scale)
{
    return (float)((int32_t)(2u * u16 + 1u) - 65536) * scale;
}

static inline uint16_t bf16_of_finite(float f)
{
    uint32_t bits = 0;
    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE void f32_block(float *restrict out, uint32_t block, stream s)
{
    for (uint32_t j = 0; j < WORDS; j++) {
        uint32_t w = mix(block * WORDS + j, s.k0, s.k1);
        out[j] = value_of(w & 0xffffu, s.scale);
        out[WORDS + j] = value_of(w >> 16, s.scale);
    }
}

ALWAYS_INLINE void bf16_block(uint16_t *restrict out, uint32_t block, stream s)
{
    for (uint32_t j = 0; j < WORDS; j++) {
        uint32_t w = mix(block * WORDS + j, s.k0, s.k1);
        out[j] = bf16_of_finite(value_of(w & 0xffffu, s.scale));
        out[WORDS + j] = bf16_of_finite(value_of(w >> 16, s.scale));
    }
}

ALWAYS_INLINE void bf16_blocks(uint16_t *restrict out, uint32_t first, uint32_t n, stream s)
{
    for (uint32_t b = 0; b < n; b++) {
        bf16_block(out + (size_t)b * BLOCK, first + b, s);
    }
}

#ifdef __x86_64__
/* The same C with wider vectors; the bits are the same. */
__attribute__((target("avx2"))) static void bf16_blocks_avx2(uint16_t *restrict out, uint32_t first,
                                                             uint32_t n, stream s)
{
    bf16_blocks(out, first, n, s);
}
#endif

static void fill_bf16_blocks(uint16_t *out, uint32_t first, uint32_t n, stream s)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2")) {
        bf16_blocks_avx2(out, first, n, s);
        return;
    }
#endif
    bf16_blocks(out, first, n, s);
}

/* Elements skip to skip + n of one block. */
static void fill_in_block(char *out, moe_dtype dtype, uint32_t block, size_t skip, size_t n,
                          stream s)
{
    float values[BLOCK];
    f32_block(values, block, s);
    moe_dtype_convert(out, dtype, values + skip, MOE_F32, n);
}

/* Elements first to first + n of a stream. */
static void fill(void *dst, moe_dtype dtype, uint64_t first, size_t n, stream s)
{
    size_t each = moe_dtype_bytes(dtype);
    uint32_t block = (uint32_t)(first / BLOCK);
    char *out = dst;
    size_t skip = (size_t)(first % BLOCK);
    if (skip > 0) {
        size_t head = n < BLOCK - skip ? n : BLOCK - skip;
        fill_in_block(out, dtype, block++, skip, head, s);
        out += head * each;
        n -= head;
    }
    uint32_t n_blocks = (uint32_t)(n / BLOCK);
    if (dtype == MOE_BF16) {
        fill_bf16_blocks((uint16_t *)(void *)out, block, n_blocks, s);
    } else {
        for (uint32_t b = 0; b < n_blocks; b++) {
            fill_in_block(out + (size_t)b * BLOCK * each, dtype, block + b, 0, BLOCK, s);
        }
    }
    if (n % BLOCK > 0) {
        fill_in_block(out + (size_t)n_blocks * BLOCK * each, dtype, block + n_blocks, 0, n % BLOCK,
                      s);
    }
}

/* ---- experts ---- */

void xs_synthetic_expert_part(const moe_model_shape *shape, moe_dtype dtype, uint64_t seed,
                              uint32_t expert_index, uint64_t first, size_t n, void *dst)
{
    moe_stack stack;
    uint32_t block, expert;
    xs_expert_place(shape, expert_index, &stack, &block, &expert);
    uint64_t key = splitmix64(splitmix64(seed) ^ (uint64_t)stack);
    key = splitmix64(key ^ block);
    key = splitmix64(key ^ expert);
    uint64_t matrix = (uint64_t)shape->d_ff * shape->d_model;
    char *out = dst;
    if (first < matrix) {
        size_t in_wi = n < matrix - first ? n : (size_t)(matrix - first);
        fill(out, dtype, first, in_wi, make_stream(key, 1.0 / sqrt(shape->d_model)));
        out += in_wi * moe_dtype_bytes(dtype);
        first += in_wi;
        n -= in_wi;
    }
    if (n > 0) {
        fill(out, dtype, first - matrix, n, make_stream(splitmix64(key), 1.0 / sqrt(shape->d_ff)));
    }
}

void xs_synthetic_expert(const moe_model_shape *shape, moe_dtype dtype, uint64_t seed,
                         uint32_t expert_index, void *dst)
{
    xs_synthetic_expert_part(shape, dtype, seed, expert_index, 0, moe_expert_params(shape), dst);
}

/* ---- dense tensors ---- */

moe_status xs_synthetic_tensor_at(const moe_model_shape *shape, uint32_t i,
                                  xs_synthetic_tensor *out, moe_err *err)
{
    xs_dense_tensor t;
    if (!xs_dense_tensor_at(shape, i, &t) || t.optional) { /* optional ones come last */
        return MOE_FAIL(err, MOE_ERR_NOT_FOUND, "the model has no dense tensor %u", i);
    }
    _Static_assert(sizeof out->name == sizeof t.name, "one bound for names");
    memcpy(out->name, t.name, sizeof out->name);
    out->n_dims = t.n_dims;
    out->dims[0] = t.dims[0];
    out->dims[1] = t.dims[1];
    out->dims[2] = out->dims[3] = 1;
    return MOE_OK;
}

static double tensor_std(const xs_synthetic_tensor *t)
{
    if (strcmp(t->name, "shared.weight") == 0) {
        return 1.0; /* a tied head divides by sqrt(d_model): logits have deviation 1 */
    }
    double fan_in = sqrt(t->dims[1]);
    if (strstr(t->name, "Attention.q.weight") != NULL) {
        return 1.0 / (8.0 * fan_in); /* attention has no 1/sqrt(d_head); d_head is 64 */
    }
    return 1.0 / fan_in;
}

void xs_synthetic_tensor_part(const xs_synthetic_tensor *t, moe_dtype dtype, uint64_t seed,
                              uint64_t first, size_t n, void *dst)
{
    if (t->n_dims == 1) { /* norm weights */
        const float one = 1.0f;
        size_t each = moe_dtype_bytes(dtype);
        for (size_t i = 0; i < n; i++) {
            moe_dtype_convert((char *)dst + i * each, dtype, &one, MOE_F32, 1);
        }
        return;
    }
    uint64_t key = splitmix64(~seed); /* apart from the experts' keys */
    for (const char *p = t->name; *p != '\0'; p++) {
        key = splitmix64(key ^ (unsigned char)*p);
    }
    fill(dst, dtype, first, n, make_stream(key, tensor_std(t)));
}

void xs_synthetic_tensor_fill(const xs_synthetic_tensor *t, moe_dtype dtype, uint64_t seed,
                              void *dst)
{
    size_t n = 1;
    for (uint32_t d = 0; d < t->n_dims; d++) {
        n *= t->dims[d];
    }
    xs_synthetic_tensor_part(t, dtype, seed, 0, n, dst);
}
