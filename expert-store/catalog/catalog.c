/* catalog.c - [LMDB] reads the index of a store directory.
 *
 * Called by expert-store at start and by expert-pack's verify and inspect. Copies everything into
 * plain arrays and closes LMDB before it returns. Threads: an open catalogue is const.
 */
#include "expert-store/catalog/catalog.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checksum.h"
#include "common/file.h"
#include "expert-store/catalog/catalog_env.h"
#include "expert-store/catalog/catalog_format.h"
#include "expert-store/catalog/tensor_names.h"

#define MAX_SEGMENTS (1u << 20)

typedef struct stored_file {
    char name[XS_NAME_BYTES];
    void *data; /* owned */
    size_t bytes;
} stored_file;

struct xs_catalog {
    char dir[XS_CATALOG_DIR_BYTES];
    xs_catalog_info info;
    xs_expert_record *experts; /* [n_experts_total], owned */
    xs_tensor_record *tensors; /* [n_tensors], owned */
    stored_file *files;        /* [n_files], owned */
    uint64_t *hashes;          /* of all extents, owned */
    uint64_t n_hashes;         /* used so far while loading */
};

typedef struct reader {
    MDB_txn *txn;
    MDB_dbi dbi[XS_N_DBS];
    xs_catalog *c;
    moe_err *err;
} reader;

static moe_status bad(reader *r, const char *what)
{
    return MOE_FAIL(r->err, MOE_ERR_FORMAT, "catalogue of %s: %s; pack it again", r->c->dir, what);
}

/* Called for every entry of a database, i counts from 0. */
typedef moe_status (*visit_fn)(reader *r, uint32_t i, const MDB_val *key, const MDB_val *val);

static moe_status for_each(reader *r, xs_catalog_db db, visit_fn visit)
{
    MDB_cursor *cur = NULL;
    int rc = mdb_cursor_open(r->txn, r->dbi[db], &cur);
    if (rc != 0) {
        return xs_lmdb_fail(r->err, rc, xs_catalog_db_names[db], r->c->dir);
    }
    moe_status st = MOE_OK;
    MDB_val key, val;
    uint32_t i = 0;
    while (st == MOE_OK && (rc = mdb_cursor_get(cur, &key, &val, MDB_NEXT)) == 0) {
        st = visit(r, i++, &key, &val);
    }
    if (st == MOE_OK && rc != MDB_NOTFOUND) {
        st = xs_lmdb_fail(r->err, rc, xs_catalog_db_names[db], r->c->dir);
    }
    mdb_cursor_close(cur);
    return st;
}

static moe_status count_hashes(reader *r, uint32_t i, const MDB_val *key, const MDB_val *val)
{
    (void)i;
    (void)key;
    xs_extent_entry e;
    if (val->mv_size < sizeof e) {
        return bad(r, "a record is too short");
    }
    memcpy(&e, val->mv_data, sizeof e);
    if (e.n_chunks > val->mv_size / sizeof *r->c->hashes) { /* before it is allocated for */
        return bad(r, "an extent has the wrong number of hashes");
    }
    r->c->n_hashes += e.n_chunks;
    return MOE_OK;
}

/* head_bytes: what precedes the hashes in the value. */
static moe_status load_extent(reader *r, const xs_extent_entry *e, const MDB_val *val,
                              size_t head_bytes, xs_extent *out)
{
    uint64_t end = 0;
    if (e->payload_bytes == 0 || e->payload_bytes > e->padded_bytes ||
        e->padded_bytes % XS_EXTENT_ALIGN != 0 || e->off % XS_EXTENT_ALIGN != 0 ||
        !moe_add_u64(e->off, e->padded_bytes, &end) || end > INT64_MAX) {
        return bad(r, "an extent's offsets make no sense");
    }
    if (e->segment >= r->c->info.n_segments) {
        return bad(r, "an extent names a segment that does not exist");
    }
    if (e->n_chunks != moe_n_chunks(e->payload_bytes) ||
        val->mv_size != head_bytes + (size_t)e->n_chunks * sizeof(uint64_t)) {
        return bad(r, "an extent has the wrong number of hashes");
    }
    uint64_t *hashes = r->c->hashes + r->c->n_hashes;
    memcpy(hashes, (const char *)val->mv_data + head_bytes, e->n_chunks * sizeof *hashes);
    r->c->n_hashes += e->n_chunks;
    *out = (xs_extent){.segment = e->segment,
                       .n_chunks = e->n_chunks,
                       .off = e->off,
                       .payload_bytes = e->payload_bytes,
                       .padded_bytes = e->padded_bytes,
                       .hashes = hashes};
    return MOE_OK;
}

static moe_status load_part(reader *r, const xs_part_entry *p, uint64_t payload_bytes, xs_part *out)
{
    uint64_t bytes = (uint64_t)p->rows * p->cols;
    size_t each = moe_dtype_bytes((moe_dtype)p->dtype);
    uint64_t end = 0;
    if (each == 0 || !moe_mul_u64(bytes, each, &bytes) || bytes == 0 ||
        !moe_add_u64(p->off, bytes, &end) || end > payload_bytes) {
        return bad(r, "a matrix does not fit its expert");
    }
    *out = (xs_part){.off = p->off, .dtype = p->dtype, .rows = p->rows, .cols = p->cols};
    return MOE_OK;
}

static moe_status load_expert(reader *r, uint32_t i, const MDB_val *key, const MDB_val *val)
{
    xs_catalog *c = r->c;
    xs_expert_key k;
    xs_expert_head h;
    if (key->mv_size != sizeof k || val->mv_size < sizeof h) {
        return bad(r, "an expert's record has the wrong size");
    }
    memcpy(&k, key->mv_data, sizeof k);
    memcpy(&h, val->mv_data, sizeof h);
    if (k.variant_be != 0) {
        return MOE_OK; /* a later version's other form of the expert; variant 0 comes first */
    }
    if (i >= c->info.shape.n_experts_total) {
        return bad(r, "it has more experts than its config.json");
    }
    moe_stack stack;
    uint32_t block, expert;
    xs_expert_place(&c->info.shape, i, &stack, &block, &expert);
    if (be32toh(k.stack_be) != (uint32_t)stack || be32toh(k.block_be) != block ||
        be32toh(k.expert_be) != expert) {
        return bad(r, "its experts are not those of its config.json");
    }
    if (h.n_parts == 0 || h.n_parts > XS_MAX_PARTS ||
        h.layer != c->info.shape.stack[stack].layer_of_block[block]) {
        return bad(r, "an expert's parts or layer make no sense");
    }
    size_t head_bytes = sizeof h + h.n_parts * sizeof(xs_part_entry);
    xs_expert_record *rec = &c->experts[i];
    moe_status st = val->mv_size < head_bytes
                        ? bad(r, "an expert's record is too short")
                        : load_extent(r, &h.extent, val, head_bytes, &rec->extent);
    for (uint32_t p = 0; st == MOE_OK && p < h.n_parts; p++) {
        xs_part_entry e;
        memcpy(&e, (const char *)val->mv_data + sizeof h + p * sizeof e, sizeof e);
        st = load_part(r, &e, h.extent.payload_bytes, &rec->parts[p]);
    }
    if (st != MOE_OK) {
        return st;
    }
    rec->layer = h.layer;
    rec->n_parts = h.n_parts;
    if (rec->extent.payload_bytes != c->experts[0].extent.payload_bytes ||
        rec->extent.padded_bytes != c->experts[0].extent.padded_bytes) {
        return bad(r, "its experts differ in size");
    }
    return MOE_OK;
}

static moe_status load_tensor(reader *r, uint32_t i, const MDB_val *key, const MDB_val *val)
{
    xs_catalog *c = r->c;
    xs_tensor_head h;
    if (i >= c->info.n_tensors || key->mv_size >= XS_NAME_BYTES || val->mv_size < sizeof h) {
        return bad(r, "a tensor's record has the wrong size");
    }
    memcpy(&h, val->mv_data, sizeof h);
    uint64_t bytes = moe_dtype_bytes((moe_dtype)h.dtype);
    for (int d = 0; d < 4; d++) {
        if (!moe_mul_u64(bytes, h.dims[d], &bytes)) {
            return bad(r, "a tensor's shape overflows");
        }
    }
    if (h.n_dims == 0 || h.n_dims > 4 || bytes != h.extent.payload_bytes) {
        return bad(r, "a tensor's shape does not match its size");
    }
    xs_tensor_record *rec = &c->tensors[i];
    moe_status st = load_extent(r, &h.extent, val, sizeof h, &rec->extent);
    if (st != MOE_OK) {
        return st;
    }
    memcpy(rec->name, key->mv_data, key->mv_size);
    rec->dtype = h.dtype;
    rec->n_dims = h.n_dims;
    memcpy(rec->dims, h.dims, sizeof rec->dims);
    c->info.dense_bytes += bytes;
    return MOE_OK;
}

static moe_status load_file(reader *r, uint32_t i, const MDB_val *key, const MDB_val *val)
{
    xs_catalog *c = r->c;
    if (i >= c->info.n_files || key->mv_size >= XS_NAME_BYTES) {
        return bad(r, "a file's name or number is out of bounds");
    }
    stored_file *f = &c->files[i];
    f->data = malloc(val->mv_size + 1);
    if (f->data == NULL) {
        return MOE_FAIL(r->err, MOE_ERR_NO_MEMORY, "file %u of %s", i, c->dir);
    }
    memcpy(f->data, val->mv_data, val->mv_size);
    ((char *)f->data)[val->mv_size] = '\0';
    memcpy(f->name, key->mv_data, key->mv_size);
    f->bytes = val->mv_size;
    return MOE_OK;
}

static moe_status load_shape(reader *r)
{
    xs_catalog *c = r->c;
    for (uint32_t i = 0; i < c->info.n_files; i++) {
        if (strcmp(c->files[i].name, "config.json") == 0) {
            return moe_model_shape_parse(c->files[i].data, c->files[i].bytes, &c->info.shape,
                                         r->err);
        }
    }
    return bad(r, "config.json is missing");
}

static moe_status load_meta(reader *r, xs_meta_record *out)
{
    MDB_val key = xs_lmdb_val(XS_META_KEY, strlen(XS_META_KEY)), val;
    int rc = mdb_get(r->txn, r->dbi[XS_DB_META], &key, &val);
    if (rc != 0) {
        return xs_lmdb_fail(r->err, rc, "meta record", r->c->dir);
    }
    xs_meta_record m;
    if (val.mv_size < offsetof(xs_meta_record, state)) {
        return bad(r, "the meta record is too short");
    }
    memcpy(&m, val.mv_data, val.mv_size < sizeof m ? val.mv_size : sizeof m);
    if (memcmp(m.magic, XS_MAGIC, sizeof m.magic) != 0) {
        return bad(r, "no " XS_MAGIC " in it");
    }
    if (m.version != XS_LAYOUT_VERSION) {
        return MOE_FAIL(r->err, MOE_ERR_VERSION,
                        "%s has layout version %u, this program reads %d: pack it again with this "
                        "version's expert-pack",
                        r->c->dir, m.version, XS_LAYOUT_VERSION);
    }
    if (val.mv_size != sizeof m || m.state != XS_STATE_FINISHED || m.n_segments > MAX_SEGMENTS ||
        m.n_experts == 0) {
        return bad(r, "the meta record makes no sense");
    }
    *out = m;
    return MOE_OK;
}

static moe_status check_counts(reader *r, const xs_meta_record *m)
{
    MDB_stat tensors, files;
    int rc = mdb_stat(r->txn, r->dbi[XS_DB_TENSORS], &tensors);
    rc = rc != 0 ? rc : mdb_stat(r->txn, r->dbi[XS_DB_FILES], &files);
    if (rc != 0) {
        return xs_lmdb_fail(r->err, rc, "statistics", r->c->dir);
    }
    if (tensors.ms_entries != m->n_tensors || files.ms_entries != m->n_files) {
        return bad(r, "entries are missing");
    }
    return MOE_OK;
}

static moe_status allocate_index(reader *r)
{
    xs_catalog *c = r->c;
    moe_status st = for_each(r, XS_DB_EXPERTS, count_hashes);
    st = st != MOE_OK ? st : for_each(r, XS_DB_TENSORS, count_hashes);
    if (st != MOE_OK) {
        return st;
    }
    if (c->n_hashes > XS_MAX_CATALOG_BYTES / sizeof *c->hashes) {
        return bad(r, "the number of hashes is out of bounds");
    }
    c->experts = calloc(c->info.shape.n_experts_total + 1u, sizeof *c->experts);
    c->tensors = calloc(c->info.n_tensors + 1u, sizeof *c->tensors);
    c->hashes = malloc((c->n_hashes + 1) * sizeof *c->hashes);
    c->n_hashes = 0;
    if (c->experts == NULL || c->tensors == NULL || c->hashes == NULL) {
        return MOE_FAIL(r->err, MOE_ERR_NO_MEMORY, "index of %s", c->dir);
    }
    return MOE_OK;
}

static moe_status load_index(reader *r)
{
    xs_catalog *c = r->c;
    xs_meta_record m = {0};
    moe_status st = load_meta(r, &m);
    st = st != MOE_OK ? st : check_counts(r, &m);
    if (st != MOE_OK) {
        return st;
    }
    memcpy(c->info.uuid, m.uuid, sizeof c->info.uuid);
    memcpy(c->info.model_name, m.model_name, sizeof c->info.model_name);
    c->info.model_name[sizeof c->info.model_name - 1] = '\0';
    c->info.expert_dtype = m.expert_dtype;
    c->info.n_segments = m.n_segments;
    c->info.n_tensors = m.n_tensors;
    c->info.n_files = m.n_files;
    c->files = calloc(m.n_files + 1u, sizeof *c->files);
    if (c->files == NULL) {
        return MOE_FAIL(r->err, MOE_ERR_NO_MEMORY, "index of %s", c->dir);
    }
    st = for_each(r, XS_DB_FILES, load_file);
    st = st != MOE_OK ? st : load_shape(r);
    if (st == MOE_OK && c->info.shape.n_experts_total != m.n_experts) {
        st = bad(r, "its experts are not those of its config.json");
    }
    st = st != MOE_OK ? st : allocate_index(r);
    st = st != MOE_OK ? st : for_each(r, XS_DB_EXPERTS, load_expert);
    st = st != MOE_OK ? st : for_each(r, XS_DB_TENSORS, load_tensor);
    if (st == MOE_OK && c->experts[m.n_experts - 1].n_parts == 0) {
        st = bad(r, "experts are missing");
    }
    if (st == MOE_OK) {
        c->info.expert_bytes = c->experts[0].extent.payload_bytes;
        c->info.slot_bytes = c->experts[0].extent.padded_bytes;
    }
    return st;
}

static moe_status load_all(xs_catalog *c, moe_err *err)
{
    reader r = {.c = c, .err = err};
    MDB_env *env = NULL;
    /* A finished store never changes: no lock file, so read-only media work too. */
    moe_status st = xs_catalog_open_env(c->dir, MDB_RDONLY | MDB_NOLOCK, &env, err);
    if (st != MOE_OK) {
        return st;
    }
    int rc = mdb_txn_begin(env, NULL, MDB_RDONLY, &r.txn);
    if (rc != 0) {
        st = xs_lmdb_fail(err, rc, "reading", c->dir);
        goto out;
    }
    st = xs_catalog_open_dbs(r.txn, 0, c->dir, r.dbi, err);
    st = st != MOE_OK ? st : load_index(&r);
    mdb_txn_abort(r.txn);
out:
    mdb_env_close(env);
    return st;
}

/* What each segment must at least hold, against what is there. */
static moe_status check_segments(const xs_catalog *c, moe_err *err)
{
    uint64_t *need = calloc(c->info.n_segments + 1u, sizeof *need);
    if (need == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "segments of %s", c->dir);
    }
    for (uint32_t i = 0; i < c->info.shape.n_experts_total + c->info.n_tensors; i++) {
        const xs_extent *e = i < c->info.shape.n_experts_total
                                 ? &c->experts[i].extent
                                 : &c->tensors[i - c->info.shape.n_experts_total].extent;
        uint64_t end = e->off + e->padded_bytes;
        need[e->segment] = end > need[e->segment] ? end : need[e->segment];
    }
    moe_status st = MOE_OK;
    for (uint32_t i = 0; st == MOE_OK && i < c->info.n_segments; i++) {
        char path[XS_CATALOG_PATH_BYTES];
        struct stat sb;
        xs_segment_path(c->dir, i, path, sizeof path);
        if (stat(path, &sb) != 0) {
            int e = errno;
            st = MOE_FAIL_NATIVE(err, e == ENOENT ? MOE_ERR_NOT_FOUND : MOE_ERR_IO, MOE_LAYER_ERRNO,
                                 e, "segment %s", path);
        } else if ((uint64_t)sb.st_size < need[i]) {
            st = MOE_FAIL(err, MOE_ERR_IO,
                          "segment %s has %lld bytes, the catalogue needs %" PRIu64
                          ": it was cut short; copy it again or pack again",
                          path, (long long)sb.st_size, need[i]);
        }
    }
    free(need);
    return st;
}

static bool ends_with(const char *s, const char *suffix)
{
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && strcmp(s + n - m, suffix) == 0;
}

static moe_status unfinished(const char *dir, moe_err *err)
{
    return MOE_FAIL(err, MOE_ERR_FORMAT,
                    "%s is an unfinished store: run expert-pack again with the same arguments (it "
                    "resumes), or remove the directory",
                    dir);
}

static moe_status check_finished(const char *dir, moe_err *err)
{
    struct stat sb;
    if (stat(dir, &sb) != 0) {
        int e = errno;
        return MOE_FAIL_NATIVE(err, e == EACCES ? MOE_ERR_PERMISSION : MOE_ERR_NOT_FOUND,
                               MOE_LAYER_ERRNO, e, "store %s", dir);
    }
    char data[XS_CATALOG_PATH_BYTES], hash[XS_CATALOG_PATH_BYTES];
    xs_catalog_path(dir, XS_DATA_FILE, data);
    xs_catalog_path(dir, XS_HASH_FILE, hash);
    if (!S_ISDIR(sb.st_mode) || stat(data, &sb) != 0) {
        return MOE_FAIL(err, MOE_ERR_FORMAT,
                        "%s is not a store (no catalog/" XS_DATA_FILE
                        " in it): make one with expert-pack",
                        dir);
    }
    return ends_with(dir, ".partial") || access(hash, F_OK) != 0 ? unfinished(dir, err) : MOE_OK;
}

static moe_status check_hash(const char *dir, moe_err *err)
{
    char path[XS_CATALOG_PATH_BYTES], expected[17];
    xs_catalog_path(dir, XS_HASH_FILE, path);
    char *text = NULL;
    size_t bytes = 0;
    uint64_t hash = 0;
    moe_status st = moe_file_read(path, 64, &text, &bytes, err);
    st = st != MOE_OK ? st : xs_catalog_hash_data(dir, &hash, err);
    if (st == MOE_OK) {
        snprintf(expected, sizeof expected, "%016" PRIx64, hash);
        if (bytes != sizeof expected || memcmp(text, expected, sizeof expected - 1) != 0) {
            st = MOE_FAIL(err, MOE_ERR_CORRUPT,
                          "catalogue %s/catalog/" XS_DATA_FILE
                          " does not match its checksum: copy the store again or pack again",
                          dir);
        }
    }
    free(text);
    return st;
}

moe_status xs_catalog_open(const char *store_dir, xs_catalog **out, moe_err *err)
{
    xs_catalog *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "catalogue of %s", store_dir);
    }
    moe_status st = xs_catalog_copy_dir(store_dir, c->dir, err);
    st = st != MOE_OK ? st : check_finished(c->dir, err);
    st = st != MOE_OK ? st : check_hash(c->dir, err);
    st = st != MOE_OK ? st : load_all(c, err);
    st = st != MOE_OK ? st : check_segments(c, err);
    if (st != MOE_OK) {
        xs_catalog_close(c);
        return st;
    }
    *out = c;
    return MOE_OK;
}

void xs_catalog_close(xs_catalog *c)
{
    if (c == NULL) {
        return;
    }
    for (uint32_t i = 0; c->files != NULL && i < c->info.n_files; i++) {
        free(c->files[i].data);
    }
    free(c->files);
    free(c->experts);
    free(c->tensors);
    free(c->hashes);
    free(c);
}

const xs_catalog_info *xs_catalog_get_info(const xs_catalog *c)
{
    return &c->info;
}

const xs_expert_record *xs_catalog_expert(const xs_catalog *c, uint32_t expert_index)
{
    MOE_ASSERT(expert_index < c->info.shape.n_experts_total);
    return &c->experts[expert_index];
}

const xs_tensor_record *xs_catalog_tensor(const xs_catalog *c, uint32_t i)
{
    MOE_ASSERT(i < c->info.n_tensors);
    return &c->tensors[i];
}

void xs_catalog_file(const xs_catalog *c, uint32_t i, const char **out_name, const void **out_data,
                     size_t *out_bytes)
{
    MOE_ASSERT(i < c->info.n_files);
    *out_name = c->files[i].name;
    *out_data = c->files[i].data;
    *out_bytes = c->files[i].bytes;
}

void xs_segment_path(const char *store_dir, uint32_t segment, char *out, size_t out_bytes)
{
    snprintf(out, out_bytes, "%s/segments/%06u.seg", store_dir, segment);
}

void xs_catalog_segment_path(const xs_catalog *c, uint32_t segment, char *out, size_t out_bytes)
{
    xs_segment_path(c->dir, segment, out, out_bytes);
}
