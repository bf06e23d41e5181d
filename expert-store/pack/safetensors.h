/* safetensors.h - reads the table of contents of one .safetensors file.
 *
 * A file is: 8 bytes little-endian header length n, n bytes of JSON, then the data. The JSON maps a
 * tensor's name to {"dtype", "shape", "data_offsets": [begin, end)} relative to the data.
 * Everything is checked here, so later code may trust offsets: they lie inside the file, do not
 * overlap, and match shape and dtype; names are unique.
 * Threads: cJSON keeps its last error in a static variable, so one thread at a time.
 */
#ifndef XS_SAFETENSORS_H
#define XS_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "common/dtype.h"
#include "common/status.h"
#include "expert-store/catalog/tensor_names.h"

enum {
    XS_ST_MAX_HEADER = 32 << 20, /* 60,000 experts' matrices take about 16 MB of JSON */
    XS_ST_MAX_DIMS = 4
};

typedef struct xs_st_tensor {
    char name[XS_TENSOR_NAME_BYTES];
    char dtype_name[8]; /* as the file spells it: "BF16" */
    moe_dtype dtype; /* 0: one we do not compute with (allowed here; an error where it is used) */
    uint32_t n_dims, dims[XS_ST_MAX_DIMS];
    uint64_t off, bytes; /* in the file */
} xs_st_tensor;

typedef struct xs_st_index {
    xs_st_tensor *tensors; /* [n], owned, ordered by name */
    uint32_t n;
    uint64_t header_hash; /* XXH3-64 of the JSON */
} xs_st_index;

/* path names the file in errors. MOE_ERR_FORMAT (also for a truncated file, with both sizes),
 * MOE_ERR_LIMIT (header too long, too many dims), MOE_ERR_UNSUPPORTED, MOE_ERR_IO. */
MOE_MUST_CHECK moe_status xs_st_read(const char *path, xs_st_index *out, moe_err *err);
/* The same from memory: header is the JSON, the file is file_bytes long. For tests and fuzzing. */
MOE_MUST_CHECK moe_status xs_st_parse(const char *path, const char *header, size_t header_bytes,
                                      uint64_t file_bytes, xs_st_index *out, moe_err *err);
/* MOE_ERR_FORMAT when the length field is impossible for a file of file_bytes. */
MOE_MUST_CHECK moe_status xs_st_check_length(const char *path, uint64_t header_bytes,
                                             uint64_t file_bytes, moe_err *err);
void xs_st_fini(xs_st_index *index);

/* model.safetensors.index.json: {"weight_map": {tensor: file}}. */
typedef struct xs_st_map_entry {
    char name[XS_TENSOR_NAME_BYTES];
    char file[128]; /* a plain file name: no '/', does not begin with '.' */
} xs_st_map_entry;
typedef struct xs_st_map {
    xs_st_map_entry *entries; /* [n], owned */
    uint32_t n;
} xs_st_map;
MOE_MUST_CHECK moe_status xs_st_parse_map(const char *path, const char *json, size_t bytes,
                                          xs_st_map *out, moe_err *err);
void xs_st_map_fini(xs_st_map *map);

#endif
