/* checkpoint.c - see checkpoint.h. Called by expert-pack's main thread.
 *
 * Owns the shards' tables of contents and the stream that reads ahead in packing order.
 */
#include "expert-store/pack/checkpoint.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checksum.h"
#include "common/file.h"
#include "common/text.h"
#include "expert-store/catalog/tensor_names.h"
#include "expert-store/pack/checkpoint_check.h"
#include "expert-store/pack/safetensors.h"
#include "expert-store/pack/span_stream.h"
#include "expert-store/pack/spiece_check.h"

enum {
    MAX_CONFIG_BYTES = 1 << 20,
    MAX_MAP_BYTES = 32 << 20,
    MAX_FILE_BYTES = 128 << 20, /* tokenizers of 250,000 pieces take about 20 MB */
    STAGE_ELEMENTS = 1 << 18
};

static const char *const kept_files[] = {"config.json",           "generation_config.json",
                                         "spiece.model",          "tokenizer.json",
                                         "tokenizer_config.json", "special_tokens_map.json"};
enum { N_KEPT = sizeof kept_files / sizeof kept_files[0] };

typedef struct shard {
    char *path; /* owned */
    xs_st_index index;
} shard;

struct xs_checkpoint {
    char *dir;       /* owned */
    moe_dtype dtype; /* wanted; 0 keeps */
    shard *shards;   /* [n_shards], owned */
    uint32_t n_shards;
    xs_ck_list list;           /* owned */
    xs_span *spans;            /* [2 * n_experts_total + n_tensors], owned, in packing order */
    moe_dtype *dtypes;         /* of the spans, as they are in the checkpoint; owned */
    xs_source_tensor *tensors; /* owned */
    xs_source_file files[N_KEPT];
    uint32_t n_ignored;
    moe_text job;
    char note[160];
    void *stage; /* [STAGE_ELEMENTS] of at most 4 bytes, owned: what is to be converted */
    bool direct;
    xs_span_stream *stream; /* owned; NULL before the first read */
    uint32_t next_item;     /* the piece the stream is at */
    uint64_t next_off;
    xs_source source;
};

static moe_status path_of(const char *dir, const char *file, char **out, moe_err *err)
{
    if (asprintf(out, "%s/%s", dir, file) < 0) {
        *out = NULL;
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "path of %s", file);
    }
    return MOE_OK;
}

static bool exists(const char *dir, const char *file)
{
    char *path = NULL;
    bool yes = path_of(dir, file, &path, NULL) == MOE_OK && access(path, F_OK) == 0;
    free(path);
    return yes;
}

static moe_status read_file(const char *dir, const char *file, uint64_t max_bytes, char **out_data,
                            size_t *out_bytes, moe_err *err)
{
    char *path = NULL;
    moe_status st = path_of(dir, file, &path, err);
    st = st != MOE_OK ? st : moe_file_read(path, max_bytes, out_data, out_bytes, err);
    free(path);
    return st;
}

/* ---- shards ---- */

static moe_status add_shard(xs_checkpoint *c, const char *file, moe_err *err)
{
    shard *grown = realloc(c->shards, (c->n_shards + 1u) * sizeof *grown);
    if (grown == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "table of shards");
    }
    c->shards = grown;
    shard *s = &c->shards[c->n_shards++];
    *s = (shard){0};
    moe_status st = path_of(c->dir, file, &s->path, err);
    return st != MOE_OK ? st : xs_st_read(s->path, &s->index, err);
}

static int by_file(const void *a, const void *b)
{
    return strcmp(((const xs_st_map_entry *)a)->file, ((const xs_st_map_entry *)b)->file);
}

static moe_status add_mapped_shards(xs_checkpoint *c, xs_st_map *map, moe_err *err)
{
    qsort(map->entries, map->n, sizeof *map->entries, by_file);
    for (uint32_t i = 0; i < map->n; i++) {
        const xs_st_map_entry *e = &map->entries[i];
        if (i > 0 && strcmp(e->file, e[-1].file) == 0) {
            continue;
        }
        if (!exists(c->dir, e->file)) {
            return MOE_FAIL(err, MOE_ERR_NOT_FOUND,
                            "shard %s/%s is missing (tensor '%s' is in it): download it", c->dir,
                            e->file, e->name);
        }
        moe_status st = add_shard(c, e->file, err);
        if (st != MOE_OK) {
            return st;
        }
    }
    return MOE_OK;
}

static int by_tensor_name(const void *a, const void *b)
{
    return strcmp(((const xs_ck_tensor *)a)->t->name, ((const xs_ck_tensor *)b)->t->name);
}

static moe_status build_list(xs_checkpoint *c, moe_err *err)
{
    size_t total = 0;
    for (uint32_t i = 0; i < c->n_shards; i++) {
        total += c->shards[i].index.n;
    }
    c->list.items = calloc(total + 1, sizeof *c->list.items);
    if (c->list.items == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "table of %zu tensors", total);
    }
    for (uint32_t i = 0; i < c->n_shards; i++) {
        for (uint32_t k = 0; k < c->shards[i].index.n; k++) {
            c->list.items[c->list.n++] =
                (xs_ck_tensor){.t = &c->shards[i].index.tensors[k], .shard = i};
        }
    }
    qsort(c->list.items, c->list.n, sizeof *c->list.items, by_tensor_name);
    for (uint32_t i = 1; i < c->list.n; i++) {
        const xs_ck_tensor *a = &c->list.items[i - 1], *b = &c->list.items[i];
        if (strcmp(a->t->name, b->t->name) == 0) {
            return MOE_FAIL(err, MOE_ERR_FORMAT, "tensor '%s' is in both %s and %s: remove one",
                            b->t->name, c->shards[a->shard].path, c->shards[b->shard].path);
        }
    }
    return MOE_OK;
}

/* Each tensor lies where the index says. */
static moe_status check_map(const xs_checkpoint *c, const xs_st_map *map, moe_err *err)
{
    for (uint32_t i = 0; i < map->n; i++) {
        const xs_st_map_entry *e = &map->entries[i];
        const xs_ck_tensor *t = xs_ck_find(&c->list, e->name);
        const char *in = t != NULL ? strrchr(c->shards[t->shard].path, '/') + 1 : "";
        if (strcmp(in, e->file) != 0) {
            return MOE_FAIL(err, MOE_ERR_FORMAT,
                            "model.safetensors.index.json says that tensor '%s' is in %s, but it "
                            "is not: index and shards are of different downloads",
                            e->name, e->file);
        }
    }
    return MOE_OK;
}

static moe_status open_sharded(xs_checkpoint *c, moe_err *err)
{
    static const char index_name[] = "model.safetensors.index.json";
    char *text = NULL;
    size_t bytes = 0;
    xs_st_map map = {0};
    moe_status st = read_file(c->dir, index_name, MAX_MAP_BYTES, &text, &bytes, err);
    st = st != MOE_OK ? st : xs_st_parse_map(index_name, text, bytes, &map, err);
    st = st != MOE_OK ? st : add_mapped_shards(c, &map, err);
    st = st != MOE_OK ? st : build_list(c, err);
    st = st != MOE_OK ? st : check_map(c, &map, err);
    xs_st_map_fini(&map);
    free(text);
    return st;
}

static moe_status open_weights(xs_checkpoint *c, moe_err *err)
{
    if (exists(c->dir, "model.safetensors")) {
        moe_status st = add_shard(c, "model.safetensors", err);
        return st != MOE_OK ? st : build_list(c, err);
    }
    if (exists(c->dir, "model.safetensors.index.json")) {
        return open_sharded(c, err);
    }
    if (exists(c->dir, "pytorch_model.bin") || exists(c->dir, "pytorch_model.bin.index.json")) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "%.120s has its weights as a pickle only (pytorch_model.bin). Convert it "
                        "once, with Python started in that directory:\n"
                        "  from transformers import AutoModelForSeq2SeqLM\n"
                        "  model = AutoModelForSeq2SeqLM.from_pretrained('.')\n"
                        "  model.save_pretrained('.')",
                        c->dir);
    }
    return MOE_FAIL(err, MOE_ERR_NOT_FOUND,
                    "%s has neither model.safetensors nor model.safetensors.index.json", c->dir);
}

/* ---- what becomes of it in the store ---- */

static moe_dtype stored_dtype(const xs_checkpoint *c, moe_dtype dtype)
{
    return c->dtype != 0 ? c->dtype : dtype;
}

static void set_span(xs_checkpoint *c, uint32_t i, const xs_ck_tensor *t)
{
    c->spans[i] =
        (xs_span){.path = c->shards[t->shard].path, .off = t->t->off, .bytes = t->t->bytes};
    c->dtypes[i] = t->t->dtype;
}

/* Every expert is stored in one dtype: slots are of one size. */
static moe_status plan_experts(xs_checkpoint *c, moe_err *err)
{
    static const char *const matrices[2] = {"wi", "wo"};
    const moe_model_shape *s = &c->source.shape;
    for (uint32_t i = 0; i < 2 * s->n_experts_total; i++) {
        moe_stack stack;
        uint32_t block, expert;
        char name[XS_TENSOR_NAME_BYTES];
        xs_expert_place(s, i / 2, &stack, &block, &expert);
        xs_expert_tensor_name(s, stack, block, expert, matrices[i % 2], name);
        const xs_ck_tensor *t = xs_ck_find(&c->list, name);
        moe_dtype dtype = stored_dtype(c, t->t->dtype);
        set_span(c, i, t);
        if (i == 0) {
            c->source.expert_dtype = dtype;
        } else if (dtype != c->source.expert_dtype) {
            return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                            "tensor '%s' is %s, other experts are %s: choose one with --dtype",
                            name, moe_dtype_name(dtype), moe_dtype_name(c->source.expert_dtype));
        }
    }
    return MOE_OK;
}

static void plan_dense(xs_checkpoint *c)
{
    const moe_model_shape *s = &c->source.shape;
    xs_dense_tensor d;
    uint32_t n = 0;
    for (uint32_t i = 0; xs_dense_tensor_at(s, i, &d); i++) {
        const xs_ck_tensor *t = xs_ck_find_dense(&c->list, s, d.name);
        if (t == NULL) {
            continue; /* optional */
        }
        xs_source_tensor *out = &c->tensors[n];
        *out = (xs_source_tensor){.dtype = stored_dtype(c, t->t->dtype),
                                  .n_dims = d.n_dims,
                                  .dims = {d.dims[0], d.dims[1], 1, 1}};
        memcpy(out->name, d.name, sizeof out->name);
        set_span(c, 2 * s->n_experts_total + n++, t);
    }
    c->source.tensors = c->tensors;
    c->source.n_tensors = n;
}

static moe_status plan(xs_checkpoint *c, moe_err *err)
{
    size_t n_spans = 2 * (size_t)c->source.shape.n_experts_total + c->list.n;
    c->spans = calloc(n_spans + 1, sizeof *c->spans);
    c->dtypes = calloc(n_spans + 1, sizeof *c->dtypes);
    c->tensors = calloc(c->list.n + 1u, sizeof *c->tensors);
    c->stage = malloc(STAGE_ELEMENTS * sizeof(float));
    if (c->spans == NULL || c->dtypes == NULL || c->tensors == NULL || c->stage == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "plan of %zu tensors", n_spans);
    }
    moe_status st = plan_experts(c, err);
    if (st == MOE_OK) {
        plan_dense(c);
    }
    return st;
}

static moe_status check_spiece(const xs_checkpoint *c, const xs_source_file *f, moe_err *err)
{
    uint32_t n_pieces;
    moe_err why = {0};
    if (xs_spiece_check(f->data, f->bytes, &n_pieces, &why) != MOE_OK) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "%s/%s: %s: download it again", c->dir, f->name,
                        why.text);
    }
    return MOE_OK;
}

static moe_status keep_files(xs_checkpoint *c, moe_err *err)
{
    for (int i = 0; i < N_KEPT; i++) {
        if (!exists(c->dir, kept_files[i])) {
            continue;
        }
        xs_source_file *f = &c->files[c->source.n_files];
        char *data = NULL;
        moe_status st = read_file(c->dir, kept_files[i], MAX_FILE_BYTES, &data, &f->bytes, err);
        if (st != MOE_OK) {
            return st;
        }
        f->data = data;
        snprintf(f->name, sizeof f->name, "%s", kept_files[i]);
        c->source.n_files++;
        if (strcmp(f->name, "spiece.model") == 0) {
            st = check_spiece(c, f, err);
            if (st != MOE_OK) {
                return st;
            }
        }
    }
    c->source.files = c->files;
    return MOE_OK;
}

/* Sizes, times and hashes rather than paths: a moved checkpoint is still the same. */
static moe_status describe_job(xs_checkpoint *c, moe_err *err)
{
    moe_text_printf(&c->job, "checkpoint dtype=%s\n",
                    c->dtype != 0 ? moe_dtype_name(c->dtype) : "keep");
    for (uint32_t i = 0; i < c->source.n_files; i++) {
        moe_text_printf(&c->job, "%s %016" PRIx64 "\n", c->files[i].name,
                        moe_xxh3(c->files[i].data, c->files[i].bytes));
    }
    for (uint32_t i = 0; i < c->n_shards; i++) {
        struct stat sb;
        const shard *s = &c->shards[i];
        if (stat(s->path, &sb) != 0) {
            return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "stat of %s", s->path);
        }
        moe_text_printf(&c->job, "%s %lld %lld.%09ld %016" PRIx64 "\n", strrchr(s->path, '/') + 1,
                        (long long)sb.st_size, (long long)sb.st_mtim.tv_sec, sb.st_mtim.tv_nsec,
                        s->index.header_hash);
    }
    c->source.job = c->job.data;
    return moe_text_finish(&c->job, err);
}

static void describe_note(xs_checkpoint *c)
{
    if (c->n_ignored > 0) {
        snprintf(c->note, sizeof c->note,
                 "%u tensors left out: copies of the tied embedding, or never read", c->n_ignored);
    }
    c->source.note = c->note;
}

/* ---- reading ---- */

/* The stream's next elements, converted. */
static moe_status read_elements(xs_checkpoint *c, moe_dtype from, size_t n, char *dst, moe_dtype to,
                                moe_err *err)
{
    size_t from_each = moe_dtype_bytes(from), to_each = moe_dtype_bytes(to);
    if (from == to) {
        return xs_span_stream_read(c->stream, dst, n * to_each, err);
    }
    while (n > 0) {
        size_t step = n < STAGE_ELEMENTS ? n : STAGE_ELEMENTS;
        moe_status st = xs_span_stream_read(c->stream, c->stage, step * from_each, err);
        if (st != MOE_OK) {
            return st;
        }
        moe_dtype_convert(dst, to, c->stage, from, step);
        dst += step * to_each;
        n -= step;
    }
    return MOE_OK;
}

/* An expert is two spans back to back, a dense tensor one. */
static uint32_t first_span(const xs_checkpoint *c, uint32_t item)
{
    uint32_t n_experts = c->source.shape.n_experts_total;
    return item < n_experts ? 2 * item : n_experts + item;
}

static moe_dtype item_dtype(const xs_checkpoint *c, uint32_t item)
{
    uint32_t n_experts = c->source.shape.n_experts_total;
    return item < n_experts ? c->source.expert_dtype : c->tensors[item - n_experts].dtype;
}

static uint64_t item_bytes(const xs_checkpoint *c, uint32_t item)
{
    uint64_t n = 0;
    for (uint32_t i = first_span(c, item); i < first_span(c, item + 1); i++) {
        n += c->spans[i].bytes / moe_dtype_bytes(c->dtypes[i]);
    }
    return n * moe_dtype_bytes(item_dtype(c, item));
}

/* Makes the stream stand at the piece: as it does, unless reading begins, or begins anew. */
static moe_status seek(xs_checkpoint *c, const xs_piece *piece, moe_err *err)
{
    if (c->stream != NULL && piece->item == c->next_item && piece->off == c->next_off) {
        return MOE_OK;
    }
    MOE_ASSERT(piece->off == 0);
    xs_span_stream_destroy(c->stream);
    c->stream = NULL;
    uint32_t first = first_span(c, piece->item);
    uint32_t n_spans = 2 * c->source.shape.n_experts_total + c->source.n_tensors;
    return xs_span_stream_create(&c->spans[first], n_spans - first, c->direct, &c->stream, err);
}

static moe_status read_piece(void *self, const xs_piece *piece, void *dst, moe_err *err)
{
    xs_checkpoint *c = self;
    moe_dtype to = item_dtype(c, piece->item);
    size_t each = moe_dtype_bytes(to), left = piece->bytes / each;
    uint64_t skip = piece->off / each; /* elements of the item before the piece */
    uint32_t end = first_span(c, piece->item + 1);
    char *out = dst;
    moe_status st = seek(c, piece, err);
    for (uint32_t i = first_span(c, piece->item); st == MOE_OK && left > 0 && i < end; i++) {
        uint64_t here = c->spans[i].bytes / moe_dtype_bytes(c->dtypes[i]);
        if (skip >= here) {
            skip -= here;
            continue;
        }
        size_t n = left < here - skip ? left : (size_t)(here - skip);
        st = read_elements(c, c->dtypes[i], n, out, to, err);
        out += n * each;
        left -= n;
        skip = 0;
    }
    if (st != MOE_OK) {
        xs_span_stream_destroy(c->stream); /* it stands nowhere any more */
        c->stream = NULL;
        return st;
    }
    c->next_item = piece->item;
    c->next_off = piece->off + piece->bytes;
    if (c->next_off == item_bytes(c, piece->item)) {
        c->next_item++;
        c->next_off = 0;
    }
    return MOE_OK;
}

/* ---- life ---- */

static moe_status open_dir(xs_checkpoint *c, const char *dir, moe_err *err)
{
    struct stat sb;
    if (stat(dir, &sb) != 0) {
        int e = errno;
        return MOE_FAIL_NATIVE(err, MOE_ERR_NOT_FOUND, MOE_LAYER_ERRNO, e, "checkpoint %s", dir);
    }
    if (!S_ISDIR(sb.st_mode)) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "%s is a file: give the checkpoint's directory, with config.json in it",
                        dir);
    }
    c->dir = realpath(dir, NULL);
    if (c->dir == NULL) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "path of %s", dir);
    }
    const char *slash = strrchr(c->dir, '/');
    snprintf(c->source.model_name, sizeof c->source.model_name, "%s", slash + 1);
    return MOE_OK;
}

static moe_status read_config(xs_checkpoint *c, moe_err *err)
{
    char *json = NULL;
    size_t bytes = 0;
    moe_status st = read_file(c->dir, "config.json", MAX_CONFIG_BYTES, &json, &bytes, err);
    st = st != MOE_OK ? st : moe_model_shape_parse(json, bytes, &c->source.shape, err);
    free(json);
    return st;
}

moe_status xs_checkpoint_open(const char *dir, moe_dtype dtype, bool direct, xs_checkpoint **out,
                              moe_err *err)
{
    xs_checkpoint *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "checkpoint %s", dir);
    }
    moe_text_init(&c->job);
    c->dtype = dtype;
    c->direct = direct;
    moe_status st = open_dir(c, dir, err);
    st = st != MOE_OK ? st : read_config(c, err);
    st = st != MOE_OK ? st : open_weights(c, err);
    st = st != MOE_OK ? st : xs_ck_check(&c->list, &c->source.shape, &c->n_ignored, err);
    st = st != MOE_OK ? st : plan(c, err);
    st = st != MOE_OK ? st : keep_files(c, err);
    st = st != MOE_OK ? st : describe_job(c, err);
    if (st != MOE_OK) {
        xs_checkpoint_close(c);
        return st;
    }
    describe_note(c);
    c->source.self = c;
    c->source.read = read_piece;
    *out = c;
    return MOE_OK;
}

void xs_checkpoint_close(xs_checkpoint *c)
{
    if (c == NULL) {
        return;
    }
    xs_span_stream_destroy(c->stream); /* before the paths it reads */
    for (uint32_t i = 0; i < c->n_shards; i++) {
        xs_st_fini(&c->shards[i].index);
        free(c->shards[i].path);
    }
    for (int i = 0; i < N_KEPT; i++) {
        free(c->files[i].data);
    }
    moe_text_fini(&c->job);
    free(c->shards);
    free(c->list.items);
    free(c->spans);
    free(c->dtypes);
    free(c->tensors);
    free(c->stage);
    free(c->dir);
    free(c);
}

const xs_source *xs_checkpoint_source(const xs_checkpoint *c)
{
    return &c->source;
}
