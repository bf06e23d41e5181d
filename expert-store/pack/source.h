/* source.h - what pack.c reads from: the bytes of a model as they shall be stored.
 *
 * Two makers: checkpoint.h (a Hugging Face directory) and synthetic_source.h (a seed). Items are
 * numbered in packing order: experts by flat index, then dense tensors. An item's payload is a
 * byte stream of known length in the stored dtype, read in pieces in order. Reading may begin with
 * any item, and begin anew; from there on the next item follows, so a source can read ahead.
 * Threads: one. Memory: everything here is borrowed from the maker until its close.
 */
#ifndef XS_SOURCE_H
#define XS_SOURCE_H

#include <stddef.h>
#include <stdint.h>

#include "common/dtype.h"
#include "common/model_shape.h"
#include "common/status.h"
#include "expert-store/catalog/tensor_names.h"

typedef struct xs_source_tensor {
    char name[XS_TENSOR_NAME_BYTES];
    moe_dtype dtype; /* as stored */
    uint32_t n_dims, dims[4];
} xs_source_tensor;

typedef struct xs_source_file {
    char name[64];
    void *data;
    size_t bytes;
} xs_source_file;

/* A piece of an item's payload. off and bytes are multiples of 4. */
typedef struct xs_piece {
    uint32_t item;
    uint64_t off;
    size_t bytes;
} xs_piece;

typedef struct xs_source {
    char model_name[64];
    moe_model_shape shape;
    moe_dtype expert_dtype;          /* as stored */
    const xs_source_tensor *tensors; /* [n_tensors] */
    uint32_t n_tensors;
    const xs_source_file *files; /* [n_files] */
    uint32_t n_files;
    const char *job;  /* tells this source and dtype from any other: resuming compares it */
    const char *note; /* one line for the user, "" for none */
    void *self;
    moe_status (*read)(void *self, const xs_piece *piece, void *dst, moe_err *err) MOE_MUST_CHECK;
} xs_source;

static inline uint64_t xs_source_tensor_bytes(const xs_source_tensor *t)
{
    uint64_t bytes = moe_dtype_bytes(t->dtype);
    for (uint32_t d = 0; d < t->n_dims; d++) {
        bytes *= t->dims[d];
    }
    return bytes;
}

#endif
