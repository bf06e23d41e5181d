/* checkpoint_writer.h - writes a Hugging Face checkpoint of a synthetic model: what expert-pack is
 * tested with. A test may bend the list of tensors, the config or the files before or after
 * writing. The values are those of expert-store/catalog/synthetic.h, so packing the checkpoint and
 * packing the synthetic model must give the same bytes. Everything asserts. Threads: none. */
#ifndef TESTS_CHECKPOINT_WRITER_H
#define TESTS_CHECKPOINT_WRITER_H

#include <stdint.h>

#include "common/dtype.h"
#include "common/model_shape.h"

typedef struct ck_tensor {
    char name[160];
    char dtype[8]; /* as safetensors spells it */
    uint32_t n_dims, dims[4];
    int64_t expert; /* flat index; -1: dense */
    uint64_t first; /* element of the expert's payload where this matrix begins */
    uint32_t shard;
    int64_t shift_bytes; /* added to data_offsets: to make lying headers */
} ck_tensor;

typedef struct ck {
    moe_model_shape shape;
    moe_dtype dtype;
    uint64_t seed;
    char config[4096];
    ck_tensor *tensors; /* [n], owned */
    uint32_t n, n_shards;
} ck;

void ck_init(ck *c, const char *model, moe_dtype dtype, uint64_t seed);
/* A model of any shape. */
void ck_init_config(ck *c, const char *config, moe_dtype dtype, uint64_t seed);
void ck_fini(ck *c);
ck_tensor *ck_find(ck *c, const char *name); /* asserts that it is there */
/* A copy of like under another name. */
ck_tensor *ck_add(ck *c, const char *name, const char *like);
void ck_remove(ck *c, const char *name);
/* Replaces the first `from` in the config text. */
void ck_config_replace(ck *c, const char *from, const char *to);
/* Spreads the tensors over n shards: model-00001-of-0000n.safetensors and an index. */
void ck_split(ck *c, uint32_t n_shards);
/* Makes dir and writes everything into it. */
void ck_write(const ck *c, const char *dir);

#endif
