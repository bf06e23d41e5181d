/* safetensors.c - see safetensors.h. Called by checkpoint.c on the main thread; holds no state. */
#include "expert-store/pack/safetensors.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checksum.h"
#include "common/file.h"

enum { LENGTH_BYTES = 8 };

typedef struct parse {
    const char *path;
    uint64_t data_off, data_bytes;
    moe_err *err;
} parse;

static const struct {
    const char *name;
    uint32_t bytes;
    moe_dtype dtype;
} dtypes[] = {
    {"BF16", 2, MOE_BF16}, {"F32", 4, MOE_F32}, {"F16", 2, MOE_F16}, {"F64", 8, 0},
    {"I64", 8, 0},         {"I32", 4, 0},       {"I16", 2, 0},       {"I8", 1, 0},
    {"U64", 8, 0},         {"U32", 4, 0},       {"U16", 2, 0},       {"U8", 1, 0},
    {"BOOL", 1, 0},        {"F8_E4M3", 1, 0},   {"F8_E5M2", 1, 0},
};
enum { N_DTYPES = sizeof dtypes / sizeof dtypes[0] };

static moe_status bad(const parse *p, const char *tensor, const char *what)
{
    return MOE_FAIL(p->err, MOE_ERR_FORMAT, "%s: tensor '%.140s': %s; download the file again",
                    p->path, tensor, what);
}

/* A whole number of JSON up to 2^53, where doubles are exact. */
static bool get_u64(const cJSON *item, uint64_t *out)
{
    const double limit = 9007199254740992.0;
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0) || item->valuedouble > limit) {
        return false;
    }
    uint64_t v = (uint64_t)item->valuedouble;
    if ((double)v != item->valuedouble) {
        return false;
    }
    *out = v;
    return true;
}

static moe_status parse_dtype(const parse *p, const cJSON *item, xs_st_tensor *t,
                              uint32_t *out_bytes)
{
    if (!cJSON_IsString(item)) {
        return bad(p, t->name, "no dtype");
    }
    for (int i = 0; i < N_DTYPES; i++) {
        if (strcmp(item->valuestring, dtypes[i].name) == 0) {
            snprintf(t->dtype_name, sizeof t->dtype_name, "%s", dtypes[i].name);
            t->dtype = dtypes[i].dtype;
            *out_bytes = dtypes[i].bytes;
            return MOE_OK;
        }
    }
    return MOE_FAIL(p->err, MOE_ERR_UNSUPPORTED, "%s: tensor '%s': unknown dtype '%.20s'", p->path,
                    t->name, item->valuestring);
}

/* *inout_bytes: of one element, then of the tensor. */
static moe_status parse_shape(const parse *p, const cJSON *item, xs_st_tensor *t,
                              uint64_t *inout_bytes)
{
    if (!cJSON_IsArray(item)) {
        return bad(p, t->name, "no shape");
    }
    for (uint32_t i = 0; i < XS_ST_MAX_DIMS; i++) {
        t->dims[i] = 1;
    }
    t->n_dims = 0;
    const cJSON *dim = NULL;
    cJSON_ArrayForEach(dim, item)
    {
        uint64_t v = 0;
        if (t->n_dims == XS_ST_MAX_DIMS) {
            return MOE_FAIL(p->err, MOE_ERR_LIMIT, "%s: tensor '%s' has more than %d dimensions",
                            p->path, t->name, XS_ST_MAX_DIMS);
        }
        if (!get_u64(dim, &v) || v > UINT32_MAX || !moe_mul_u64(*inout_bytes, v, inout_bytes)) {
            return bad(p, t->name, "its shape is not a list of sizes");
        }
        t->dims[t->n_dims++] = (uint32_t)v;
    }
    return MOE_OK;
}

static moe_status parse_offsets(const parse *p, const cJSON *item, xs_st_tensor *t, uint64_t bytes)
{
    uint64_t begin = 0, end = 0;
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != 2 ||
        !get_u64(cJSON_GetArrayItem(item, 0), &begin) ||
        !get_u64(cJSON_GetArrayItem(item, 1), &end) || begin > end) {
        return bad(p, t->name, "data_offsets is not [begin, end]");
    }
    if (end - begin != bytes) {
        return MOE_FAIL(p->err, MOE_ERR_FORMAT,
                        "%s: tensor '%s': data_offsets hold %" PRIu64
                        " bytes, shape and dtype need %" PRIu64 "; download the file again",
                        p->path, t->name, end - begin, bytes);
    }
    if (end > p->data_bytes) {
        return MOE_FAIL(p->err, MOE_ERR_FORMAT,
                        "%s is truncated: tensor '%s' ends at byte %" PRIu64
                        ", the file has %" PRIu64 "; download it again",
                        p->path, t->name, p->data_off + end, p->data_off + p->data_bytes);
    }
    t->off = p->data_off + begin;
    t->bytes = bytes;
    return MOE_OK;
}

static moe_status parse_tensor(const parse *p, const cJSON *item, xs_st_tensor *t)
{
    if (strlen(item->string) >= sizeof t->name) {
        return bad(p, item->string, "name too long");
    }
    memcpy(t->name, item->string, strlen(item->string) + 1);
    if (!cJSON_IsObject(item)) {
        return bad(p, t->name, "not an object");
    }
    uint32_t each = 0;
    moe_status st = parse_dtype(p, cJSON_GetObjectItemCaseSensitive(item, "dtype"), t, &each);
    uint64_t bytes = each;
    if (st == MOE_OK) {
        st = parse_shape(p, cJSON_GetObjectItemCaseSensitive(item, "shape"), t, &bytes);
    }
    if (st == MOE_OK) {
        st = parse_offsets(p, cJSON_GetObjectItemCaseSensitive(item, "data_offsets"), t, bytes);
    }
    return st;
}

static int by_offset(const void *a, const void *b)
{
    const xs_st_tensor *x = a, *y = b;
    if (x->off != y->off) {
        return x->off < y->off ? -1 : 1;
    }
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first */
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const xs_st_tensor *)a)->name, ((const xs_st_tensor *)b)->name);
}

/* Leaves the tensors ordered by name. */
static moe_status check_together(const parse *p, xs_st_tensor *tensors, uint32_t n)
{
    qsort(tensors, n, sizeof *tensors, by_offset);
    for (uint32_t i = 1; i < n; i++) {
        if (tensors[i - 1].off + tensors[i - 1].bytes > tensors[i].off) {
            return MOE_FAIL(p->err, MOE_ERR_FORMAT,
                            "%s: tensors '%.120s' and '%.120s' overlap; download the file again",
                            p->path, tensors[i - 1].name, tensors[i].name);
        }
    }
    qsort(tensors, n, sizeof *tensors, by_name);
    for (uint32_t i = 1; i < n; i++) {
        if (strcmp(tensors[i - 1].name, tensors[i].name) == 0) {
            return bad(p, tensors[i].name, "it is there twice");
        }
    }
    return MOE_OK;
}

static moe_status parse_all(const parse *p, const cJSON *root, xs_st_index *out)
{
    uint32_t n = 0;
    xs_st_tensor *tensors = calloc((size_t)cJSON_GetArraySize(root) + 1, sizeof *tensors);
    if (tensors == NULL) {
        return MOE_FAIL(p->err, MOE_ERR_NO_MEMORY, "tensor table of %s", p->path);
    }
    moe_status st = MOE_OK;
    const cJSON *item = NULL;
    cJSON_ArrayForEach(item, root)
    {
        if (strcmp(item->string, "__metadata__") == 0) {
            continue;
        }
        st = parse_tensor(p, item, &tensors[n++]);
        if (st != MOE_OK) {
            goto fail;
        }
    }
    st = check_together(p, tensors, n);
    if (st != MOE_OK) {
        goto fail;
    }
    *out = (xs_st_index){.tensors = tensors, .n = n};
    return MOE_OK;
fail:
    free(tensors);
    return st;
}

moe_status xs_st_check_length(const char *path, uint64_t header_bytes, uint64_t file_bytes,
                              moe_err *err)
{
    if (file_bytes < LENGTH_BYTES || header_bytes > file_bytes - LENGTH_BYTES || header_bytes < 2) {
        return MOE_FAIL(err, MOE_ERR_FORMAT,
                        "%s is not a safetensors file, or truncated: %" PRIu64
                        " bytes long, header of %" PRIu64 "; download it again",
                        path, file_bytes, header_bytes);
    }
    if (header_bytes > XS_ST_MAX_HEADER) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "%s: header of %" PRIu64 " bytes, at most %d are read",
                        path, header_bytes, XS_ST_MAX_HEADER);
    }
    return MOE_OK;
}

moe_status xs_st_parse(const char *path, const char *header, size_t header_bytes,
                       uint64_t file_bytes, xs_st_index *out, moe_err *err)
{
    moe_status st = xs_st_check_length(path, header_bytes, file_bytes, err);
    if (st != MOE_OK) {
        return st;
    }
    parse p = {.path = path,
               .data_off = LENGTH_BYTES + header_bytes,
               .data_bytes = file_bytes - LENGTH_BYTES - header_bytes,
               .err = err};
    cJSON *root = cJSON_ParseWithLength(header, header_bytes);
    if (!cJSON_IsObject(root)) {
        st = MOE_FAIL(err, MOE_ERR_FORMAT,
                      "%s: its header is not a JSON object: not a safetensors file, or damaged; "
                      "download it again",
                      path);
    } else {
        st = parse_all(&p, root, out);
    }
    cJSON_Delete(root);
    if (st == MOE_OK) {
        out->header_hash = moe_xxh3(header, header_bytes);
    }
    return st;
}

static moe_status read_header(int fd, const char *path, xs_st_index *out, moe_err *err)
{
    struct stat sb;
    if (fstat(fd, &sb) != 0 || !S_ISREG(sb.st_mode)) {
        return MOE_FAIL(err, MOE_ERR_IO, "%s is not a regular file", path);
    }
    uint64_t file_bytes = (uint64_t)sb.st_size, header_bytes = 0;
    moe_status st = xs_st_check_length(path, 2, file_bytes, err);
    st = st != MOE_OK ? st : moe_pread_exact(fd, &header_bytes, sizeof header_bytes, 0, path, err);
    st = st != MOE_OK ? st : xs_st_check_length(path, header_bytes, file_bytes, err);
    if (st != MOE_OK) {
        return st;
    }
    char *header = malloc(header_bytes);
    if (header == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "header of %s, %" PRIu64 " bytes", path,
                        header_bytes);
    }
    st = moe_pread_exact(fd, header, header_bytes, LENGTH_BYTES, path, err);
    st = st != MOE_OK ? st : xs_st_parse(path, header, header_bytes, file_bytes, out, err);
    free(header);
    return st;
}

moe_status xs_st_read(const char *path, xs_st_index *out, moe_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        int e = errno;
        return MOE_FAIL_NATIVE(err, e == ENOENT ? MOE_ERR_NOT_FOUND : MOE_ERR_IO, MOE_LAYER_ERRNO,
                               e, "cannot open %s", path);
    }
    moe_status st = read_header(fd, path, out, err);
    close(fd);
    return st;
}

void xs_st_fini(xs_st_index *index)
{
    free(index->tensors);
    *index = (xs_st_index){0};
}

static moe_status parse_map_entry(const char *path, const cJSON *item, xs_st_map_entry *out,
                                  moe_err *err)
{
    if (strlen(item->string) >= sizeof out->name || !cJSON_IsString(item)) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "%s: weight_map entry '%.140s' names no file", path,
                        item->string);
    }
    const char *file = item->valuestring;
    if (*file == '\0' || *file == '.' || strchr(file, '/') != NULL ||
        strlen(file) >= sizeof out->file) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "%s: '%.120s' is not a plain file name (tensor '%s')",
                        path, file, item->string);
    }
    memcpy(out->name, item->string, strlen(item->string) + 1);
    memcpy(out->file, file, strlen(file) + 1);
    return MOE_OK;
}

static moe_status parse_map(const char *path, const cJSON *root, xs_st_map *out, moe_err *err)
{
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(root, "weight_map");
    if (!cJSON_IsObject(map) || map->child == NULL) {
        return MOE_FAIL(err, MOE_ERR_FORMAT,
                        "%s: no weight_map in it, or not JSON; download it again", path);
    }
    uint32_t n = 0;
    xs_st_map_entry *entries = calloc((size_t)cJSON_GetArraySize(map), sizeof *entries);
    if (entries == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "weight_map of %s", path);
    }
    const cJSON *item = NULL;
    cJSON_ArrayForEach(item, map)
    {
        moe_status st = parse_map_entry(path, item, &entries[n++], err);
        if (st != MOE_OK) {
            free(entries);
            return st;
        }
    }
    *out = (xs_st_map){.entries = entries, .n = n};
    return MOE_OK;
}

moe_status xs_st_parse_map(const char *path, const char *json, size_t bytes, xs_st_map *out,
                           moe_err *err)
{
    cJSON *root = cJSON_ParseWithLength(json, bytes);
    moe_status st = parse_map(path, root, out, err); /* accepts NULL: nothing is found in it */
    cJSON_Delete(root);
    return st;
}

void xs_st_map_fini(xs_st_map *map)
{
    free(map->entries);
    *map = (xs_st_map){0};
}
