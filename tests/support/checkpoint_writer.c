/* checkpoint_writer.c - see checkpoint_writer.h. */
#include "tests/support/checkpoint_writer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/bytes.h"
#include "common/text.h"
#include "expert-store/catalog/synthetic.h"
#include "expert-store/catalog/tensor_names.h"

enum { STEP = 1 << 18 }; /* elements written at a time */

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "checkpoint_writer: %s\n", what);
        abort();
    }
}

static const char *st_dtype(moe_dtype dtype)
{
    return dtype == MOE_F32 ? "F32" : (dtype == MOE_F16 ? "F16" : "BF16");
}

static ck_tensor *append(ck *c)
{
    c->tensors = realloc(c->tensors, (c->n + 1) * sizeof *c->tensors);
    must(c->tensors != NULL, "memory");
    c->tensors[c->n] = (ck_tensor){.expert = -1, .dims = {1, 1, 1, 1}, .n_dims = 2};
    return &c->tensors[c->n++];
}

static void add_matrix(ck *c, uint32_t index, const char *matrix, uint32_t rows, uint32_t cols,
                       uint64_t first)
{
    moe_stack stack;
    uint32_t block, expert;
    ck_tensor *t = append(c);
    xs_expert_place(&c->shape, index, &stack, &block, &expert);
    xs_expert_tensor_name(&c->shape, stack, block, expert, matrix, t->name);
    snprintf(t->dtype, sizeof t->dtype, "%s", st_dtype(c->dtype));
    t->dims[0] = rows;
    t->dims[1] = cols;
    t->expert = index;
    t->first = first;
}

void ck_init(ck *c, const char *model, moe_dtype dtype, uint64_t seed)
{
    char config[sizeof c->config];
    must(xs_synthetic_config(model, dtype, config, sizeof config, NULL) == MOE_OK, model);
    ck_init_config(c, config, dtype, seed);
}

void ck_init_config(ck *c, const char *config, moe_dtype dtype, uint64_t seed)
{
    *c = (ck){.dtype = dtype, .seed = seed, .n_shards = 1};
    snprintf(c->config, sizeof c->config, "%s", config);
    must(moe_model_shape_parse(c->config, strlen(c->config), &c->shape, NULL) == MOE_OK, "shape");
    xs_synthetic_tensor d;
    for (uint32_t i = 0; xs_synthetic_tensor_at(&c->shape, i, &d, NULL) == MOE_OK; i++) {
        ck_tensor *t = append(c);
        memcpy(t->name, d.name, sizeof t->name);
        memcpy(t->dims, d.dims, sizeof t->dims);
        t->n_dims = d.n_dims;
        snprintf(t->dtype, sizeof t->dtype, "%s", st_dtype(dtype));
    }
    const moe_model_shape *s = &c->shape;
    for (uint32_t i = 0; i < s->n_experts_total; i++) {
        add_matrix(c, i, "wi", s->d_ff, s->d_model, 0);
        add_matrix(c, i, "wo", s->d_model, s->d_ff, (uint64_t)s->d_ff * s->d_model);
    }
}

void ck_fini(ck *c)
{
    free(c->tensors);
    *c = (ck){0};
}

ck_tensor *ck_find(ck *c, const char *name)
{
    for (uint32_t i = 0; i < c->n; i++) {
        if (strcmp(c->tensors[i].name, name) == 0) {
            return &c->tensors[i];
        }
    }
    must(false, name);
    return NULL;
}

ck_tensor *ck_add(ck *c, const char *name, const char *like)
{
    ck_tensor copy = *ck_find(c, like);
    snprintf(copy.name, sizeof copy.name, "%s", name);
    ck_tensor *t = append(c);
    *t = copy;
    return t;
}

void ck_remove(ck *c, const char *name)
{
    ck_tensor *t = ck_find(c, name);
    *t = c->tensors[--c->n];
}

void ck_config_replace(ck *c, const char *from, const char *to)
{
    char *at = strstr(c->config, from);
    must(at != NULL, from);
    char rest[sizeof c->config];
    snprintf(rest, sizeof rest, "%s", at + strlen(from));
    snprintf(at, sizeof c->config - (size_t)(at - c->config), "%s%s", to, rest);
}

void ck_split(ck *c, uint32_t n_shards)
{
    c->n_shards = n_shards;
    for (uint32_t i = 0; i < c->n; i++) {
        c->tensors[i].shard = i * n_shards / c->n;
    }
}

/* ---- writing ---- */

static uint64_t n_elements(const ck_tensor *t)
{
    uint64_t n = 1;
    for (uint32_t d = 0; d < t->n_dims; d++) {
        n *= t->dims[d];
    }
    return n;
}

static moe_dtype dtype_of(const ck_tensor *t)
{
    return strcmp(t->dtype, "F32") == 0    ? MOE_F32
           : strcmp(t->dtype, "BF16") == 0 ? MOE_BF16
           : strcmp(t->dtype, "F16") == 0  ? MOE_F16
                                           : 0;
}

static uint64_t each_bytes(const ck_tensor *t)
{
    moe_dtype dtype = dtype_of(t);
    return dtype != 0 ? moe_dtype_bytes(dtype) : (strcmp(t->dtype, "I64") == 0 ? 8 : 1);
}

static void shard_name(const ck *c, uint32_t shard, char out[64])
{
    if (c->n_shards == 1) {
        snprintf(out, 64, "model.safetensors");
    } else {
        snprintf(out, 64, "model-%05u-of-%05u.safetensors", shard + 1, c->n_shards);
    }
}

static void make_header(const ck *c, uint32_t shard, moe_text *out)
{
    uint64_t off = 0;
    moe_text_printf(out, "{\"__metadata__\": {\"format\": \"pt\"}");
    for (uint32_t i = 0; i < c->n; i++) {
        const ck_tensor *t = &c->tensors[i];
        if (t->shard != shard) {
            continue;
        }
        uint64_t end = off + n_elements(t) * each_bytes(t);
        moe_text_printf(out, ", \"%s\": {\"dtype\": \"%s\", \"shape\": [", t->name, t->dtype);
        for (uint32_t d = 0; d < t->n_dims; d++) {
            moe_text_printf(out, "%s%u", d > 0 ? ", " : "", t->dims[d]);
        }
        moe_text_printf(out, "], \"data_offsets\": [%" PRId64 ", %" PRId64 "]}",
                        (int64_t)off + t->shift_bytes, (int64_t)end + t->shift_bytes);
        off = end;
    }
    moe_text_printf(out, "}");
    must(moe_text_finish(out, NULL) == MOE_OK, "header");
}

static void write_data(const ck *c, const ck_tensor *t, FILE *f)
{
    static char buf[STEP * 8];
    moe_dtype dtype = dtype_of(t);
    uint64_t n = n_elements(t);
    xs_synthetic_tensor d = {.n_dims = t->n_dims};
    memcpy(d.name, t->name, sizeof d.name);
    memcpy(d.dims, t->dims, sizeof d.dims);
    memset(buf, 0, sizeof buf);
    for (uint64_t at = 0; at < n; at += STEP) {
        size_t step = n - at < STEP ? (size_t)(n - at) : STEP;
        if (dtype != 0 && t->expert >= 0) {
            xs_synthetic_expert_part(&c->shape, dtype, c->seed, (uint32_t)t->expert, t->first + at,
                                     step, buf);
        } else if (dtype != 0) {
            xs_synthetic_tensor_part(&d, dtype, c->seed, at, step, buf);
        }
        must(fwrite(buf, each_bytes(t), step, f) == step, "write");
    }
}

static void write_shard(const ck *c, uint32_t shard, const char *path)
{
    moe_text header;
    moe_text_init(&header);
    make_header(c, shard, &header);
    FILE *f = fopen(path, "wb");
    uint64_t n = header.len;
    must(f != NULL, path);
    must(fwrite(&n, sizeof n, 1, f) == 1 && fwrite(header.data, 1, n, f) == n, path);
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->tensors[i].shard == shard) {
            write_data(c, &c->tensors[i], f);
        }
    }
    must(fclose(f) == 0, path);
    moe_text_fini(&header);
}

static void write_index(const ck *c, const char *path)
{
    FILE *f = fopen(path, "wb");
    must(f != NULL, path);
    fprintf(f, "{\"metadata\": {}, \"weight_map\": {");
    for (uint32_t i = 0; i < c->n; i++) {
        char shard[64];
        shard_name(c, c->tensors[i].shard, shard);
        fprintf(f, "%s\n \"%s\": \"%s\"", i > 0 ? "," : "", c->tensors[i].name, shard);
    }
    fprintf(f, "}}\n");
    must(fclose(f) == 0, path);
}

void ck_write(const ck *c, const char *dir)
{
    char path[512], name[64];
    must(mkdir(dir, 0777) == 0 || errno == EEXIST, dir);
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "wb");
    must(f != NULL && fputs(c->config, f) >= 0 && fclose(f) == 0, path);
    for (uint32_t i = 0; i < c->n_shards; i++) {
        shard_name(c, i, name);
        snprintf(path, sizeof path, "%s/%s", dir, name);
        write_shard(c, i, path);
    }
    if (c->n_shards > 1) {
        snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
        write_index(c, path);
    }
}
