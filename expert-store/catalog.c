/* catalog.c - [LMDB] reads and writes the index of a store directory.
 *
 * Owns: the LMDB environment while it is open. The reader (expert-store, expert-pack verify) copies
 * everything into plain arrays and closes LMDB before it returns; the writer (expert-pack) keeps
 * one write transaction between commits. Threads: one per object; an open catalogue is const.
 * Shutdown: an uncommitted transaction is dropped; what was committed stays and can be resumed.
 */
#include "expert-store/catalog.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checksum.h"
#include "common/file.h"
#include "expert-store/catalog_format.h"
#include "expert-store/tensor_names.h"

enum { DIR_BYTES = 1024, PATH_BYTES = DIR_BYTES + 64 };
enum db { DB_META, DB_EXPERTS, DB_TENSORS, DB_FILES, N_DBS };
static const char *const db_names[N_DBS] = {"meta", "experts", "tensors", "files"};

#define MAX_CATALOG_BYTES (4ull << 30) /* LMDB map, address space only; far above any tokenizer */
#define MAX_SEGMENTS (1u << 20)

typedef struct stored_file {
    char name[XS_NAME_BYTES];
    void *data; /* owned */
    size_t bytes;
} stored_file;

struct xs_catalog {
    char dir[DIR_BYTES];
    xs_catalog_info info;
    xs_expert_record *experts; /* [n_experts_total], owned */
    xs_tensor_record *tensors; /* [n_tensors], owned */
    stored_file *files;        /* [n_files], owned */
    uint64_t *hashes;          /* of all extents, owned */
    uint64_t n_hashes;         /* used so far while loading */
};

struct xs_catalog_writer {
    char dir[DIR_BYTES];
    MDB_env *env; /* owned; NULL once finished */
    MDB_txn *txn; /* owned; NULL between transactions */
    MDB_dbi dbi[N_DBS];
    xs_meta_record meta;
    char *job; /* owned; "" when never set */
    xs_catalog_progress progress;
};

/* ---- LMDB helpers ---- */

static moe_status lmdb_status(int rc)
{
    switch (rc) {
    case ENOMEM:
        return MOE_ERR_NO_MEMORY;
    case ENOENT:
    case MDB_NOTFOUND:
        return MOE_ERR_NOT_FOUND;
    case EACCES:
    case EPERM:
    case EROFS:
        return MOE_ERR_PERMISSION;
    case ENOSPC:
    case EDQUOT:
    case MDB_MAP_FULL:
        return MOE_ERR_NO_SPACE;
    case MDB_VERSION_MISMATCH:
        return MOE_ERR_VERSION;
    case MDB_INVALID:
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
        return MOE_ERR_FORMAT;
    default:
        return MOE_ERR_IO;
    }
}

static moe_status lmdb_fail(moe_err *err, int rc, const char *what, const char *dir)
{
    return MOE_FAIL_NATIVE(err, lmdb_status(rc), MOE_LAYER_LMDB, rc, "%s of %s/catalog: %s", what,
                           dir, mdb_strerror(rc));
}

static moe_status copy_dir(const char *dir, char out[DIR_BYTES], moe_err *err)
{
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/') {
        n--;
    }
    if (n == 0 || n >= DIR_BYTES) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "store path is empty or over %d bytes: '%s'",
                        DIR_BYTES - 1, dir);
    }
    memcpy(out, dir, n);
    out[n] = '\0';
    return MOE_OK;
}

static void catalog_path(const char *dir, const char *file, char out[PATH_BYTES])
{
    snprintf(out, PATH_BYTES, "%s/catalog%s%s", dir, *file != '\0' ? "/" : "", file);
}

static moe_status open_env(const char *dir, unsigned flags, MDB_env **out, moe_err *err)
{
    char path[PATH_BYTES];
    catalog_path(dir, "", path);
    MDB_env *env = NULL;
    int rc = mdb_env_create(&env);
    if (rc != 0) {
        return lmdb_fail(err, rc, "creation", dir);
    }
    rc = mdb_env_set_maxdbs(env, N_DBS);
    if (rc == 0 && (flags & MDB_RDONLY) == 0) {
        rc = mdb_env_set_mapsize(env, MAX_CATALOG_BYTES);
    }
    if (rc == 0) {
        rc = mdb_env_open(env, path, flags | MDB_NOTLS, 0644);
    }
    if (rc != 0) {
        mdb_env_close(env);
        return lmdb_fail(err, rc, "opening", dir);
    }
    *out = env;
    return MOE_OK;
}

static moe_status open_dbs(MDB_txn *txn, unsigned flags, const char *dir, MDB_dbi out[N_DBS],
                           moe_err *err)
{
    for (int i = 0; i < N_DBS; i++) {
        int rc = mdb_dbi_open(txn, db_names[i], flags, &out[i]);
        if (rc != 0) {
            return lmdb_fail(err, rc, db_names[i], dir);
        }
    }
    return MOE_OK;
}

static MDB_val val_of(const void *data, size_t bytes)
{
    return (MDB_val){.mv_size = bytes, .mv_data = (void *)(uintptr_t)data};
}

/* ---- reading ---- */

typedef struct reader {
    MDB_txn *txn;
    MDB_dbi dbi[N_DBS];
    xs_catalog *c;
    moe_err *err;
} reader;

static moe_status bad(reader *r, const char *what)
{
    return MOE_FAIL(r->err, MOE_ERR_FORMAT, "catalogue of %s: %s; pack it again", r->c->dir, what);
}

/* Called for every entry of a database, i counts from 0. */
typedef moe_status (*visit_fn)(reader *r, uint32_t i, const MDB_val *key, const MDB_val *val);

static moe_status for_each(reader *r, enum db db, visit_fn visit)
{
    MDB_cursor *cur = NULL;
    int rc = mdb_cursor_open(r->txn, r->dbi[db], &cur);
    if (rc != 0) {
        return lmdb_fail(r->err, rc, db_names[db], r->c->dir);
    }
    moe_status st = MOE_OK;
    MDB_val key, val;
    uint32_t i = 0;
    while (st == MOE_OK && (rc = mdb_cursor_get(cur, &key, &val, MDB_NEXT)) == 0) {
        st = visit(r, i++, &key, &val);
    }
    if (st == MOE_OK && rc != MDB_NOTFOUND) {
        st = lmdb_fail(r->err, rc, db_names[db], r->c->dir);
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
    MDB_val key = val_of(XS_META_KEY, strlen(XS_META_KEY)), val;
    int rc = mdb_get(r->txn, r->dbi[DB_META], &key, &val);
    if (rc != 0) {
        return lmdb_fail(r->err, rc, "meta record", r->c->dir);
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
    int rc = mdb_stat(r->txn, r->dbi[DB_TENSORS], &tensors);
    rc = rc != 0 ? rc : mdb_stat(r->txn, r->dbi[DB_FILES], &files);
    if (rc != 0) {
        return lmdb_fail(r->err, rc, "statistics", r->c->dir);
    }
    if (tensors.ms_entries != m->n_tensors || files.ms_entries != m->n_files) {
        return bad(r, "entries are missing");
    }
    return MOE_OK;
}

static moe_status allocate_index(reader *r)
{
    xs_catalog *c = r->c;
    moe_status st = for_each(r, DB_EXPERTS, count_hashes);
    st = st != MOE_OK ? st : for_each(r, DB_TENSORS, count_hashes);
    if (st != MOE_OK) {
        return st;
    }
    if (c->n_hashes > MAX_CATALOG_BYTES / sizeof *c->hashes) {
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
    st = for_each(r, DB_FILES, load_file);
    st = st != MOE_OK ? st : load_shape(r);
    if (st == MOE_OK && c->info.shape.n_experts_total != m.n_experts) {
        st = bad(r, "its experts are not those of its config.json");
    }
    st = st != MOE_OK ? st : allocate_index(r);
    st = st != MOE_OK ? st : for_each(r, DB_EXPERTS, load_expert);
    st = st != MOE_OK ? st : for_each(r, DB_TENSORS, load_tensor);
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
    moe_status st = open_env(c->dir, MDB_RDONLY | MDB_NOLOCK, &env, err);
    if (st != MOE_OK) {
        return st;
    }
    int rc = mdb_txn_begin(env, NULL, MDB_RDONLY, &r.txn);
    if (rc != 0) {
        st = lmdb_fail(err, rc, "reading", c->dir);
        goto out;
    }
    st = open_dbs(r.txn, 0, c->dir, r.dbi, err);
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
        char path[PATH_BYTES];
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
    char data[PATH_BYTES], hash[PATH_BYTES];
    catalog_path(dir, XS_DATA_FILE, data);
    catalog_path(dir, XS_HASH_FILE, hash);
    if (!S_ISDIR(sb.st_mode) || stat(data, &sb) != 0) {
        return MOE_FAIL(err, MOE_ERR_FORMAT,
                        "%s is not a store (no catalog/" XS_DATA_FILE
                        " in it): make one with expert-pack",
                        dir);
    }
    return ends_with(dir, ".partial") || access(hash, F_OK) != 0 ? unfinished(dir, err) : MOE_OK;
}

static moe_status hash_data_file(const char *dir, uint64_t *out, moe_err *err)
{
    char path[PATH_BYTES];
    catalog_path(dir, XS_DATA_FILE, path);
    char *data = NULL;
    size_t bytes = 0;
    moe_status st = moe_file_read(path, MAX_CATALOG_BYTES, &data, &bytes, err);
    if (st == MOE_OK) {
        *out = moe_xxh3(data, bytes);
    }
    free(data);
    return st;
}

static moe_status check_hash(const char *dir, moe_err *err)
{
    char path[PATH_BYTES], expected[17];
    catalog_path(dir, XS_HASH_FILE, path);
    char *text = NULL;
    size_t bytes = 0;
    uint64_t hash = 0;
    moe_status st = moe_file_read(path, 64, &text, &bytes, err);
    st = st != MOE_OK ? st : hash_data_file(dir, &hash, err);
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
    moe_status st = copy_dir(store_dir, c->dir, err);
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

/* ---- writing ---- */

static moe_status begin(xs_catalog_writer *w, moe_err *err)
{
    if (w->txn != NULL) {
        return MOE_OK;
    }
    int rc = mdb_txn_begin(w->env, NULL, 0, &w->txn);
    return rc == 0 ? MOE_OK : lmdb_fail(err, rc, "transaction", w->dir);
}

static moe_status put(xs_catalog_writer *w, enum db db, const void *key, size_t key_bytes,
                      const void *data, size_t bytes, moe_err *err)
{
    moe_status st = begin(w, err);
    if (st != MOE_OK) {
        return st;
    }
    MDB_val k = val_of(key, key_bytes), v = val_of(data, bytes);
    int rc = mdb_put(w->txn, w->dbi[db], &k, &v, 0);
    return rc == 0 ? MOE_OK : lmdb_fail(err, rc, "writing", w->dir);
}

static moe_status put_meta(xs_catalog_writer *w, moe_err *err)
{
    return put(w, DB_META, XS_META_KEY, strlen(XS_META_KEY), &w->meta, sizeof w->meta, err);
}

static void note_extent(xs_catalog_progress *p, uint32_t segment, uint64_t end)
{
    if (segment > p->end_segment) {
        p->end_segment = segment;
        p->end_off = end;
    } else if (segment == p->end_segment && end > p->end_off) {
        p->end_off = end;
    }
}

static moe_status scan_progress(xs_catalog_writer *w, enum db db, uint32_t *out_n, moe_err *err)
{
    MDB_cursor *cur = NULL;
    int rc = mdb_cursor_open(w->txn, w->dbi[db], &cur);
    if (rc != 0) {
        return lmdb_fail(err, rc, db_names[db], w->dir);
    }
    MDB_val key, val;
    uint32_t n = 0;
    while ((rc = mdb_cursor_get(cur, &key, &val, MDB_NEXT)) == 0) {
        xs_extent_entry e;
        if (val.mv_size < sizeof e) {
            rc = MDB_CORRUPTED;
            break;
        }
        memcpy(&e, val.mv_data, sizeof e);
        note_extent(&w->progress, e.segment, e.off + e.padded_bytes);
        n++;
    }
    mdb_cursor_close(cur);
    if (rc != MDB_NOTFOUND) {
        return lmdb_fail(err, rc, "resuming", w->dir);
    }
    *out_n = n;
    return MOE_OK;
}

static moe_status replace_job(xs_catalog_writer *w, const char *job, size_t bytes, moe_err *err)
{
    char *copy = strndup(job, bytes);
    if (copy == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "job text");
    }
    free(w->job);
    w->job = copy;
    return MOE_OK;
}

static moe_status load_job(xs_catalog_writer *w, moe_err *err)
{
    MDB_val key = val_of(XS_JOB_KEY, strlen(XS_JOB_KEY)), val;
    int rc = mdb_get(w->txn, w->dbi[DB_META], &key, &val);
    if (rc != 0 && rc != MDB_NOTFOUND) {
        return lmdb_fail(err, rc, "job text", w->dir);
    }
    return rc == 0 ? replace_job(w, val.mv_data, val.mv_size, err) : replace_job(w, "", 0, err);
}

static moe_status new_meta(xs_catalog_writer *w, moe_err *err)
{
    w->meta = (xs_meta_record){.version = XS_LAYOUT_VERSION, .state = XS_STATE_UNFINISHED};
    memcpy(w->meta.magic, XS_MAGIC, sizeof w->meta.magic);
    if (getrandom(w->meta.uuid, sizeof w->meta.uuid, 0) != (ssize_t)sizeof w->meta.uuid) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno,
                               "random bytes for the UUID");
    }
    return MOE_OK;
}

/* The meta record of an earlier run, or a new one. */
static moe_status start_meta(xs_catalog_writer *w, moe_err *err)
{
    MDB_val key = val_of(XS_META_KEY, strlen(XS_META_KEY)), val;
    int rc = mdb_get(w->txn, w->dbi[DB_META], &key, &val);
    if (rc != 0 && rc != MDB_NOTFOUND) {
        return lmdb_fail(err, rc, "meta record", w->dir);
    }
    if (rc == 0) {
        if (val.mv_size != sizeof w->meta) {
            return MOE_FAIL(err, MOE_ERR_VERSION, "%s was begun by another version: remove it",
                            w->dir);
        }
        memcpy(&w->meta, val.mv_data, sizeof w->meta);
        if (memcmp(w->meta.magic, XS_MAGIC, sizeof w->meta.magic) != 0 ||
            w->meta.version != XS_LAYOUT_VERSION) {
            return MOE_FAIL(err, MOE_ERR_VERSION, "%s was begun by another version: remove it",
                            w->dir);
        }
        w->meta.state = XS_STATE_UNFINISHED;
    } else {
        moe_status st = new_meta(w, err);
        if (st != MOE_OK) {
            return st;
        }
    }
    return put_meta(w, err);
}

static moe_status start(xs_catalog_writer *w, moe_err *err)
{
    char path[PATH_BYTES], hash[PATH_BYTES];
    catalog_path(w->dir, "", path);
    catalog_path(w->dir, XS_HASH_FILE, hash);
    if (mkdir(path, 0777) != 0 && errno != EEXIST) {
        int e = errno;
        return MOE_FAIL_NATIVE(err, lmdb_status(e), MOE_LAYER_ERRNO, e, "directory %s", path);
    }
    if (unlink(hash) != 0 && errno != ENOENT) { /* finished, but stopped before the rename */
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "cannot remove %s", hash);
    }
    moe_status st = open_env(w->dir, 0, &w->env, err);
    st = st != MOE_OK ? st : begin(w, err);
    st = st != MOE_OK ? st : open_dbs(w->txn, MDB_CREATE, w->dir, w->dbi, err);
    st = st != MOE_OK ? st : start_meta(w, err);
    st = st != MOE_OK ? st : load_job(w, err);
    st = st != MOE_OK ? st : scan_progress(w, DB_EXPERTS, &w->progress.n_experts, err);
    st = st != MOE_OK ? st : scan_progress(w, DB_TENSORS, &w->progress.n_tensors, err);
    return st != MOE_OK ? st : xs_catalog_writer_commit(w, err);
}

moe_status xs_catalog_writer_open(const char *dir, xs_catalog_writer **out, moe_err *err)
{
    xs_catalog_writer *w = calloc(1, sizeof *w);
    if (w == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "catalogue of %s", dir);
    }
    moe_status st = copy_dir(dir, w->dir, err);
    st = st != MOE_OK ? st : start(w, err);
    if (st != MOE_OK) {
        xs_catalog_writer_close(w);
        return st;
    }
    *out = w;
    return MOE_OK;
}

static void close_env(xs_catalog_writer *w)
{
    if (w->txn != NULL) {
        mdb_txn_abort(w->txn);
        w->txn = NULL;
    }
    if (w->env != NULL) {
        mdb_env_close(w->env);
        w->env = NULL;
    }
}

void xs_catalog_writer_close(xs_catalog_writer *w)
{
    if (w == NULL) {
        return;
    }
    close_env(w);
    free(w->job);
    free(w);
}

static xs_extent_entry extent_entry(const xs_extent *e)
{
    return (xs_extent_entry){.segment = e->segment,
                             .n_chunks = e->n_chunks,
                             .off = e->off,
                             .payload_bytes = e->payload_bytes,
                             .padded_bytes = e->padded_bytes};
}

/* head (head_bytes long), then the extent's hashes, under key. */
static moe_status put_record(xs_catalog_writer *w, enum db db, const void *key, size_t key_bytes,
                             const void *head, size_t head_bytes, const xs_extent *e, moe_err *err)
{
    size_t hash_bytes = e->n_chunks * sizeof *e->hashes;
    char *record = malloc(head_bytes + hash_bytes);
    if (record == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "record of %zu bytes", head_bytes + hash_bytes);
    }
    memcpy(record, head, head_bytes);
    memcpy(record + head_bytes, e->hashes, hash_bytes);
    moe_status st = put(w, db, key, key_bytes, record, head_bytes + hash_bytes, err);
    if (st == MOE_OK) {
        note_extent(&w->progress, e->segment, e->off + e->padded_bytes);
    }
    free(record);
    return st;
}

moe_status xs_catalog_put_expert(xs_catalog_writer *w, moe_stack stack, uint32_t block,
                                 uint32_t expert, const xs_expert_record *rec, moe_err *err)
{
    MOE_ASSERT(rec->n_parts > 0 && rec->n_parts <= XS_MAX_PARTS);
    struct {
        xs_expert_head head;
        xs_part_entry parts[XS_MAX_PARTS];
    } r = {.head = {
               .extent = extent_entry(&rec->extent), .layer = rec->layer, .n_parts = rec->n_parts}};
    _Static_assert(sizeof r == sizeof r.head + sizeof r.parts, "no padding before the parts");
    for (uint32_t i = 0; i < rec->n_parts; i++) {
        r.parts[i] = (xs_part_entry){.off = rec->parts[i].off,
                                     .dtype = rec->parts[i].dtype,
                                     .rows = rec->parts[i].rows,
                                     .cols = rec->parts[i].cols};
    }
    xs_expert_key key = {.stack_be = htobe32((uint32_t)stack),
                         .block_be = htobe32(block),
                         .expert_be = htobe32(expert)};
    size_t head_bytes = sizeof r.head + rec->n_parts * sizeof r.parts[0];
    moe_status st = put_record(w, DB_EXPERTS, &key, sizeof key, &r, head_bytes, &rec->extent, err);
    if (st == MOE_OK) {
        w->progress.n_experts++;
    }
    return st;
}

moe_status xs_catalog_put_tensor(xs_catalog_writer *w, const xs_tensor_record *rec, moe_err *err)
{
    MOE_ASSERT(rec->n_dims > 0 && rec->n_dims <= 4);
    xs_tensor_head h = {.extent = extent_entry(&rec->extent),
                        .dtype = rec->dtype,
                        .n_dims = rec->n_dims,
                        .dims = {1, 1, 1, 1}};
    memcpy(h.dims, rec->dims, rec->n_dims * sizeof h.dims[0]);
    moe_status st =
        put_record(w, DB_TENSORS, rec->name, strlen(rec->name), &h, sizeof h, &rec->extent, err);
    if (st == MOE_OK) {
        w->progress.n_tensors++;
    }
    return st;
}

moe_status xs_catalog_put_file(xs_catalog_writer *w, const char *name, const void *data,
                               size_t bytes, moe_err *err)
{
    if (*name == '\0' || strlen(name) >= XS_NAME_BYTES) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "file name '%s' is empty or over %d bytes", name,
                        XS_NAME_BYTES - 1);
    }
    return put(w, DB_FILES, name, strlen(name), data, bytes, err);
}

void xs_catalog_writer_progress(const xs_catalog_writer *w, xs_catalog_progress *out)
{
    *out = w->progress;
}

const char *xs_catalog_writer_job(const xs_catalog_writer *w)
{
    return w->job;
}

moe_status xs_catalog_writer_set_job(xs_catalog_writer *w, const char *job, moe_err *err)
{
    moe_status st = put(w, DB_META, XS_JOB_KEY, strlen(XS_JOB_KEY), job, strlen(job), err);
    return st != MOE_OK ? st : replace_job(w, job, strlen(job), err);
}

moe_status xs_catalog_writer_commit(xs_catalog_writer *w, moe_err *err)
{
    if (w->txn == NULL) {
        return MOE_OK;
    }
    int rc = mdb_txn_commit(w->txn);
    w->txn = NULL; /* freed, whatever the outcome */
    return rc == 0 ? MOE_OK : lmdb_fail(err, rc, "committing", w->dir);
}

static moe_status write_hash_file(const char *dir, moe_err *err)
{
    uint64_t hash = 0;
    moe_status st = hash_data_file(dir, &hash, err);
    if (st != MOE_OK) {
        return st;
    }
    char path[PATH_BYTES], text[24];
    catalog_path(dir, XS_HASH_FILE, path);
    int n = snprintf(text, sizeof text, "%016" PRIx64 "\n", hash);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        int e = errno;
        return MOE_FAIL_NATIVE(err, lmdb_status(e), MOE_LAYER_ERRNO, e, "cannot create %s", path);
    }
    st = moe_pwrite_exact(fd, text, (size_t)n, 0, path, err);
    if (st == MOE_OK && fsync(fd) != 0) {
        st = MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "fsync of %s", path);
    }
    close(fd);
    return st;
}

static moe_status count_files(xs_catalog_writer *w, uint32_t *out, moe_err *err)
{
    moe_status st = begin(w, err);
    if (st != MOE_OK) {
        return st;
    }
    MDB_stat s;
    int rc = mdb_stat(w->txn, w->dbi[DB_FILES], &s);
    if (rc != 0) {
        return lmdb_fail(err, rc, "statistics", w->dir);
    }
    *out = (uint32_t)s.ms_entries;
    return MOE_OK;
}

moe_status xs_catalog_writer_finish(xs_catalog_writer *w, const char *model_name,
                                    uint32_t expert_dtype, moe_err *err)
{
    moe_status st = count_files(w, &w->meta.n_files, err);
    if (st != MOE_OK) {
        return st;
    }
    snprintf(w->meta.model_name, sizeof w->meta.model_name, "%s", model_name);
    w->meta.expert_dtype = expert_dtype;
    w->meta.n_experts = w->progress.n_experts;
    w->meta.n_tensors = w->progress.n_tensors;
    w->meta.n_segments = w->progress.end_off > 0 ? w->progress.end_segment + 1 : 0;
    w->meta.state = XS_STATE_FINISHED;
    st = put_meta(w, err);
    st = st != MOE_OK ? st : xs_catalog_writer_commit(w, err);
    if (st != MOE_OK) {
        return st;
    }
    close_env(w);
    char lock[PATH_BYTES];
    catalog_path(w->dir, "lock.mdb", lock);
    (void)unlink(lock); /* readers need none; leaving it would do no harm */
    return write_hash_file(w->dir, err);
}
