/* dense.c - see dense.h. Two walks over the same list: the first sizes, the second fills. */
#include "expert-store/server/dense.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checksum.h"
#include "common/file.h"
#include "expert-store/catalog/synthetic.h"
#include "proto/dense_table.h"

typedef struct dense_list {
    moe_dense_entry *items; /* owned */
    uint32_t n, capacity;
    uint64_t end; /* of the last payload, if payloads began at 0 */
} dense_list;

static moe_status add_entry(dense_list *list, const moe_dense_entry *e, moe_err *err)
{
    if (list->n == list->capacity) {
        uint32_t capacity = list->capacity == 0 ? 256 : 2 * list->capacity;
        moe_dense_entry *items = realloc(list->items, capacity * sizeof *items);
        if (items == NULL) {
            return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "list of %u dense tensors", capacity);
        }
        list->items = items;
        list->capacity = capacity;
    }
    moe_dense_entry *to = &list->items[list->n++];
    *to = *e;
    to->off = moe_align_up(list->end, MOE_DENSE_ALIGN);
    list->end = to->off + to->bytes;
    return MOE_OK;
}

static moe_dense_entry file_entry(const char *name, uint64_t bytes)
{
    moe_dense_entry e = {.kind = MOE_DENSE_FILE, .bytes = bytes};
    snprintf(e.name, sizeof e.name, "%s", name);
    return e;
}

static moe_status list_catalog(const xs_model *m, dense_list *list, moe_err *err)
{
    const xs_catalog_info *info = xs_catalog_get_info(m->catalog);
    moe_status st = MOE_OK;
    for (uint32_t i = 0; i < info->n_files && st == MOE_OK; i++) {
        const char *name = NULL;
        const void *data = NULL;
        size_t bytes = 0;
        xs_catalog_file(m->catalog, i, &name, &data, &bytes);
        moe_dense_entry e = file_entry(name, bytes);
        st = add_entry(list, &e, err);
    }
    for (uint32_t i = 0; i < info->n_tensors && st == MOE_OK; i++) {
        const xs_tensor_record *t = xs_catalog_tensor(m->catalog, i);
        moe_dense_entry e = {.kind = MOE_DENSE_TENSOR,
                             .dtype = t->dtype,
                             .n_dims = t->n_dims,
                             .bytes = t->extent.payload_bytes};
        memcpy(e.dims, t->dims, sizeof e.dims);
        snprintf(e.name, sizeof e.name, "%s", t->name);
        st = add_entry(list, &e, err);
    }
    return st;
}

static moe_status list_synthetic(const xs_model *m, dense_list *list, moe_err *err)
{
    moe_dense_entry config = file_entry("config.json", strlen(m->config_json));
    moe_status st = add_entry(list, &config, err);
    for (uint32_t i = 0; st == MOE_OK; i++) {
        xs_synthetic_tensor t = {0};
        st = xs_synthetic_tensor_at(&m->shape, i, &t, err);
        if (st == MOE_ERR_NOT_FOUND) {
            return MOE_OK; /* past the last */
        }
        if (st != MOE_OK) {
            return st;
        }
        moe_dense_entry e = {.kind = MOE_DENSE_TENSOR,
                             .dtype = (uint32_t)m->expert_dtype,
                             .n_dims = t.n_dims,
                             .bytes = moe_dtype_bytes(m->expert_dtype)};
        memcpy(e.dims, t.dims, sizeof e.dims);
        memcpy(e.name, t.name, sizeof e.name);
        for (uint32_t d = 0; d < t.n_dims; d++) {
            e.bytes *= t.dims[d];
        }
        st = add_entry(list, &e, err);
    }
    return st;
}

static moe_status list_dense(const xs_model *m, dense_list *list, moe_err *err)
{
    return m->catalog != NULL ? list_catalog(m, list, err) : list_synthetic(m, list, err);
}

static uint64_t payload_off(const dense_list *list)
{
    return moe_align_up(MOE_DENSE_ENTRIES_OFF + (uint64_t)list->n * sizeof(moe_dense_entry),
                        MOE_DENSE_ALIGN);
}

static uint64_t region_bytes(const dense_list *list)
{
    return moe_align_up(payload_off(list) + list->end, 4096);
}

moe_status xs_dense_bytes(const xs_model *m, uint64_t *out_bytes, moe_err *err)
{
    dense_list list = {0};
    moe_status st = list_dense(m, &list, err);
    if (st == MOE_OK) {
        *out_bytes = region_bytes(&list);
    }
    free(list.items);
    return st;
}

bool xs_extent_verify(const xs_extent *extent, const void *bytes)
{
    const char *at = bytes;
    uint64_t left = extent->payload_bytes;
    for (uint32_t i = 0; i < extent->n_chunks; i++) {
        uint64_t n = left < MOE_CHUNK_BYTES ? left : MOE_CHUNK_BYTES;
        if (moe_xxh3(at, n) != moe_load_le64((const char *)extent->hashes + 8ull * i)) {
            return false;
        }
        at += n;
        left -= n;
    }
    return left == 0;
}

/* Segments are few and dense tensors lie together, so one open file is kept. */
typedef struct segment_file {
    uint32_t segment;
    int fd; /* owned; -1 none */
    char path[PATH_MAX];
} segment_file;

static moe_status open_segment(const xs_catalog *c, uint32_t segment, segment_file *f, moe_err *err)
{
    if (f->fd >= 0 && f->segment == segment) {
        return MOE_OK;
    }
    if (f->fd >= 0) {
        close(f->fd);
    }
    xs_catalog_segment_path(c, segment, f->path, sizeof f->path);
    f->segment = segment;
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC);
    if (f->fd < 0) {
        int code = errno;
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code, "cannot open %s", f->path);
    }
    return MOE_OK;
}

static moe_status read_tensor(const xs_catalog *c, const xs_tensor_record *t, segment_file *f,
                              void *dst, moe_err *err)
{
    moe_status st = open_segment(c, t->extent.segment, f, err);
    if (st != MOE_OK) {
        return st;
    }
    st = moe_pread_exact(f->fd, dst, t->extent.payload_bytes, t->extent.off, f->path, err);
    if (st == MOE_OK && !xs_extent_verify(&t->extent, dst)) {
        st = MOE_FAIL(err, MOE_ERR_CORRUPT,
                      "tensor %s in %s at %llu: pack the checkpoint again, or check the drive",
                      t->name, f->path, (unsigned long long)t->extent.off);
    }
    return st;
}

/* Entries are files first, then tensors, each in catalogue order (list_catalog). */
static moe_status fill_catalog(const xs_model *m, const dense_list *list, char *region,
                               moe_err *err)
{
    const xs_catalog_info *info = xs_catalog_get_info(m->catalog);
    segment_file f = {.fd = -1};
    moe_status st = MOE_OK;
    for (uint32_t i = 0; i < info->n_files; i++) {
        const char *name = NULL;
        const void *data = NULL;
        size_t bytes = 0;
        xs_catalog_file(m->catalog, i, &name, &data, &bytes);
        memcpy(region + list->items[i].off, data, bytes);
    }
    for (uint32_t i = 0; i < info->n_tensors && st == MOE_OK; i++) {
        st = read_tensor(m->catalog, xs_catalog_tensor(m->catalog, i), &f,
                         region + list->items[info->n_files + i].off, err);
    }
    if (f.fd >= 0) {
        close(f.fd);
    }
    return st;
}

static moe_status fill_synthetic(const xs_model *m, const dense_list *list, char *region,
                                 moe_err *err)
{
    memcpy(region + list->items[0].off, m->config_json, list->items[0].bytes);
    for (uint32_t i = 1; i < list->n; i++) {
        xs_synthetic_tensor t = {0};
        moe_status st = xs_synthetic_tensor_at(&m->shape, i - 1, &t, err);
        if (st != MOE_OK) {
            return st;
        }
        xs_synthetic_tensor_fill(&t, m->expert_dtype, m->seed, region + list->items[i].off);
    }
    return MOE_OK;
}

static uint64_t dense_magic(void)
{
    uint64_t magic = 0;
    memcpy(&magic, MOE_DENSE_MAGIC, sizeof magic);
    return magic;
}

moe_status xs_dense_load(const xs_model *m, void *region, uint64_t bytes, moe_err *err)
{
    dense_list list = {0};
    moe_dense_header *h = region;
    moe_status st = list_dense(m, &list, err);
    if (st != MOE_OK) {
        goto out;
    }
    MOE_ASSERT(region_bytes(&list) == bytes);
    uint64_t payloads = payload_off(&list);
    for (uint32_t i = 0; i < list.n; i++) {
        list.items[i].off += payloads;
    }
    memcpy(h->store_uuid, m->uuid, sizeof h->store_uuid);
    h->n_entries = list.n;
    if (list.n > 0) {
        memcpy((char *)region + MOE_DENSE_ENTRIES_OFF, list.items, list.n * sizeof *list.items);
    }
    st = m->catalog != NULL ? fill_catalog(m, &list, region, err)
                            : fill_synthetic(m, &list, region, err);
    if (st == MOE_OK) {
        /* release: whoever sees the magic sees everything above. */
        atomic_store_explicit(&h->magic, dense_magic(), memory_order_release);
    }
out:
    free(list.items);
    return st;
}

bool xs_dense_matches(const xs_model *m, const void *region, uint64_t bytes,
                      uint64_t expected_bytes)
{
    const moe_dense_header *h = region;
    return bytes == expected_bytes && bytes >= sizeof *h &&
           atomic_load_explicit(&h->magic, memory_order_acquire) == dense_magic() &&
           memcmp(h->store_uuid, m->uuid, sizeof h->store_uuid) == 0;
}
