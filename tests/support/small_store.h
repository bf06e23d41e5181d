/* small_store.h - a store directory of a few MiB, made with the catalogue writer: two stacks of one
 * MoE block with 4 experts each, every expert in 3 chunks, the last one short and padded, spread
 * over two segments. Expert bytes are those of the synthetic generator with SMALL_STORE_SEED.
 * Threads: none of its own. */
#ifndef TESTS_SMALL_STORE_H
#define TESTS_SMALL_STORE_H

#include "common/dtype.h"
#include "common/model_shape.h"

enum {
    SMALL_STORE_SEED = 20240607,
    SMALL_STORE_EXPERTS = 8,
    SMALL_STORE_PATH_BYTES = 256,
};

#define SMALL_STORE_DTYPE MOE_BF16

/* Makes the store in a new directory below the current one; its path goes to out_dir. Asserts. */
void small_store_create(char out_dir[SMALL_STORE_PATH_BYTES]);
void small_store_remove(const char *dir);
/* The model of the store. */
void small_store_shape(moe_model_shape *out);

#endif
