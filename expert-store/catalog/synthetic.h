/* synthetic.h - models of real shapes made from a seed: for benchmarks and tests without a
 * download.
 *
 * Every value is a pure function of (seed, what, index): an expert is computable alone from
 * (seed, stack, block, expert), all experts differ, scales follow 1/sqrt(fan-in), so logits are
 * finite. Names: switch-base-8|16|32|64|128|256, switch-large-128 (d_model 768/1024, d_ff
 * 3072/4096, 12/24 layers per stack, 12/16 heads, MoE in every second layer, vocab 32128), and
 * switch-tiny (about 400 KiB, for tests). Each also with the suffix -pregated: block b's gate
 * decides block b+1.
 *
 * How a value comes about: a key from SplitMix64 over (seed, stack, block, expert) or (seed, tensor
 * name); a 32-bit mixer of (key, counter) gives two 16-bit numbers u; the value is
 * (2u + 1 - 65536) * scale, uniform and symmetric with standard deviation 1/sqrt(fan_in); dtypes
 * narrower than f32 round it. Only integer operations and one multiplication: the same bits on
 * every machine. Cost: see tests/bench/pack.sh. Threads: no state; any thread.
 */
#ifndef XS_SYNTHETIC_H
#define XS_SYNTHETIC_H

#include <stddef.h>
#include <stdint.h>

#include "common/dtype.h"
#include "common/model_shape.h"
#include "common/status.h"

/* config.json of the named model into out; MOE_ERR_INVALID lists the known names. */
MOE_MUST_CHECK moe_status xs_synthetic_config(const char *name, moe_dtype dtype, char *out,
                                              size_t out_bytes, moe_err *err);
/* One expert's payload (wi, then wo) into dst: moe_expert_params(shape) elements of dtype. */
void xs_synthetic_expert(const moe_model_shape *shape, moe_dtype dtype, uint64_t seed,
                         uint32_t expert_index, void *dst);
/* Its elements first to first + n only. */
void xs_synthetic_expert_part(const moe_model_shape *shape, moe_dtype dtype, uint64_t seed,
                              uint32_t expert_index, uint64_t first, size_t n, void *dst);

/* Dense tensors in a fixed order; i counts from 0; returns MOE_ERR_NOT_FOUND past the last. */
typedef struct xs_synthetic_tensor {
    char name[160];
    uint32_t n_dims, dims[4];
} xs_synthetic_tensor;
MOE_MUST_CHECK moe_status xs_synthetic_tensor_at(const moe_model_shape *shape, uint32_t i,
                                                 xs_synthetic_tensor *out, moe_err *err);
void xs_synthetic_tensor_fill(const xs_synthetic_tensor *t, moe_dtype dtype, uint64_t seed,
                              void *dst);
void xs_synthetic_tensor_part(const xs_synthetic_tensor *t, moe_dtype dtype, uint64_t seed,
                              uint64_t first, size_t n, void *dst);

#endif
