/* catalog_writer.c - [LMDB] writes the index of a store directory.
 *
 * Called by expert-pack. Owns the LMDB environment and, between two commits, one write transaction.
 * Threads: one per writer. Shutdown: an uncommitted transaction is dropped; what was committed
 * stays and can be resumed.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "expert-store/catalog/catalog.h"
#include "expert-store/catalog/catalog_env.h"
#include "expert-store/catalog/catalog_format.h"

struct xs_catalog_writer {
    char dir[XS_CATALOG_DIR_BYTES];
    MDB_env *env; /* owned; NULL once finished */
    MDB_txn *txn; /* owned; NULL between transactions */
    MDB_dbi dbi[XS_N_DBS];
    xs_meta_record meta;
    char *job; /* owned; "" when never set */
    xs_catalog_progress progress;
    uint32_t n_segments; /* that extents lie in so far */
};

static moe_status begin(xs_catalog_writer *w, moe_err *err)
{
    if (w->txn != NULL) {
        return MOE_OK;
    }
    int rc = mdb_txn_begin(w->env, NULL, 0, &w->txn);
    return rc == 0 ? MOE_OK : xs_lmdb_fail(err, rc, "transaction", w->dir);
}

static moe_status put(xs_catalog_writer *w, xs_catalog_db db, const void *key, size_t key_bytes,
                      const void *data, size_t bytes, moe_err *err)
{
    moe_status st = begin(w, err);
    if (st != MOE_OK) {
        return st;
    }
    MDB_val k = xs_lmdb_val(key, key_bytes), v = xs_lmdb_val(data, bytes);
    int rc = mdb_put(w->txn, w->dbi[db], &k, &v, 0);
    return rc == 0 ? MOE_OK : xs_lmdb_fail(err, rc, "writing", w->dir);
}

static moe_status put_meta(xs_catalog_writer *w, moe_err *err)
{
    return put(w, XS_DB_META, XS_META_KEY, strlen(XS_META_KEY), &w->meta, sizeof w->meta, err);
}

static void note_segment(xs_catalog_writer *w, uint32_t segment)
{
    w->n_segments = segment >= w->n_segments ? segment + 1 : w->n_segments;
}

static moe_status scan_progress(xs_catalog_writer *w, xs_catalog_db db, uint32_t *out_n,
                                moe_err *err)
{
    MDB_cursor *cur = NULL;
    int rc = mdb_cursor_open(w->txn, w->dbi[db], &cur);
    if (rc != 0) {
        return xs_lmdb_fail(err, rc, xs_catalog_db_names[db], w->dir);
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
        note_segment(w, e.segment);
        n++;
    }
    mdb_cursor_close(cur);
    if (rc != MDB_NOTFOUND) {
        return xs_lmdb_fail(err, rc, "resuming", w->dir);
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
    MDB_val key = xs_lmdb_val(XS_JOB_KEY, strlen(XS_JOB_KEY)), val;
    int rc = mdb_get(w->txn, w->dbi[XS_DB_META], &key, &val);
    if (rc != 0 && rc != MDB_NOTFOUND) {
        return xs_lmdb_fail(err, rc, "job text", w->dir);
    }
    return rc == 0 ? replace_job(w, val.mv_data, val.mv_size, err) : replace_job(w, "", 0, err);
}

static moe_status new_uuid(xs_catalog_writer *w, moe_err *err)
{
    if (getrandom(w->meta.uuid, sizeof w->meta.uuid, 0) != (ssize_t)sizeof w->meta.uuid) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno,
                               "random bytes for the UUID");
    }
    return MOE_OK;
}

static moe_status new_meta(xs_catalog_writer *w, moe_err *err)
{
    w->meta = (xs_meta_record){.version = XS_LAYOUT_VERSION, .state = XS_STATE_UNFINISHED};
    memcpy(w->meta.magic, XS_MAGIC, sizeof w->meta.magic);
    return new_uuid(w, err);
}

/* The meta record of an earlier run, or a new one. */
static moe_status start_meta(xs_catalog_writer *w, moe_err *err)
{
    MDB_val key = xs_lmdb_val(XS_META_KEY, strlen(XS_META_KEY)), val;
    int rc = mdb_get(w->txn, w->dbi[XS_DB_META], &key, &val);
    if (rc != 0 && rc != MDB_NOTFOUND) {
        return xs_lmdb_fail(err, rc, "meta record", w->dir);
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
    char path[XS_CATALOG_PATH_BYTES], hash[XS_CATALOG_PATH_BYTES];
    xs_catalog_path(w->dir, "", path);
    xs_catalog_path(w->dir, XS_HASH_FILE, hash);
    if (mkdir(path, 0777) != 0 && errno != EEXIST) {
        int e = errno;
        return MOE_FAIL_NATIVE(err, xs_lmdb_status(e), MOE_LAYER_ERRNO, e, "directory %s", path);
    }
    if (unlink(hash) != 0 && errno != ENOENT) { /* finished, but stopped before the rename */
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "cannot remove %s", hash);
    }
    moe_status st = xs_catalog_open_env(w->dir, 0, &w->env, err);
    st = st != MOE_OK ? st : begin(w, err);
    st = st != MOE_OK ? st : xs_catalog_open_dbs(w->txn, MDB_CREATE, w->dir, w->dbi, err);
    st = st != MOE_OK ? st : start_meta(w, err);
    st = st != MOE_OK ? st : load_job(w, err);
    st = st != MOE_OK ? st : scan_progress(w, XS_DB_EXPERTS, &w->progress.n_experts, err);
    st = st != MOE_OK ? st : scan_progress(w, XS_DB_TENSORS, &w->progress.n_tensors, err);
    return st != MOE_OK ? st : xs_catalog_writer_commit(w, err);
}

moe_status xs_catalog_writer_open(const char *dir, xs_catalog_writer **out, moe_err *err)
{
    xs_catalog_writer *w = calloc(1, sizeof *w);
    if (w == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "catalogue of %s", dir);
    }
    moe_status st = xs_catalog_copy_dir(dir, w->dir, err);
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
static moe_status put_record(xs_catalog_writer *w, xs_catalog_db db, const void *key,
                             size_t key_bytes, const void *head, size_t head_bytes,
                             const xs_extent *e, moe_err *err)
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
        note_segment(w, e->segment);
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
    moe_status st =
        put_record(w, XS_DB_EXPERTS, &key, sizeof key, &r, head_bytes, &rec->extent, err);
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
        put_record(w, XS_DB_TENSORS, rec->name, strlen(rec->name), &h, sizeof h, &rec->extent, err);
    if (st == MOE_OK) {
        w->progress.n_tensors++;
    }
    return st;
}

/* One tensor at or after prefix, if its name begins with it. */
static int drop_tensor(xs_catalog_writer *w, const char *prefix)
{
    MDB_cursor *cur = NULL;
    MDB_val key = xs_lmdb_val(prefix, strlen(prefix)), val;
    int rc = mdb_cursor_open(w->txn, w->dbi[XS_DB_TENSORS], &cur);
    if (rc != 0) {
        return rc;
    }
    rc = mdb_cursor_get(cur, &key, &val, MDB_SET_RANGE);
    if (rc == 0 && (key.mv_size < strlen(prefix) || memcmp(key.mv_data, prefix, strlen(prefix)))) {
        rc = MDB_NOTFOUND;
    }
    rc = rc == 0 ? mdb_cursor_del(cur, 0) : rc;
    mdb_cursor_close(cur);
    return rc;
}

moe_status xs_catalog_amend(xs_catalog_writer *w, const char *prefix, uint32_t *out_n_dropped,
                            moe_err *err)
{
    uint32_t n = 0;
    moe_status st = new_uuid(w, err);
    st = st != MOE_OK ? st : begin(w, err);
    if (st != MOE_OK) {
        return st;
    }
    int rc = drop_tensor(w, prefix);
    for (; rc == 0; rc = drop_tensor(w, prefix)) {
        n++;
    }
    if (rc != MDB_NOTFOUND) {
        return xs_lmdb_fail(err, rc, "dropping tensors", w->dir);
    }
    w->progress.n_tensors -= n;
    *out_n_dropped = n;
    return MOE_OK;
}

moe_status xs_catalog_put_file(xs_catalog_writer *w, const char *name, const void *data,
                               size_t bytes, moe_err *err)
{
    if (*name == '\0' || strlen(name) >= XS_NAME_BYTES) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "file name '%s' is empty or over %d bytes", name,
                        XS_NAME_BYTES - 1);
    }
    return put(w, XS_DB_FILES, name, strlen(name), data, bytes, err);
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
    moe_status st = put(w, XS_DB_META, XS_JOB_KEY, strlen(XS_JOB_KEY), job, strlen(job), err);
    return st != MOE_OK ? st : replace_job(w, job, strlen(job), err);
}

moe_status xs_catalog_writer_commit(xs_catalog_writer *w, moe_err *err)
{
    if (w->txn == NULL) {
        return MOE_OK;
    }
    int rc = mdb_txn_commit(w->txn);
    w->txn = NULL; /* freed, whatever the outcome */
    return rc == 0 ? MOE_OK : xs_lmdb_fail(err, rc, "committing", w->dir);
}

static moe_status write_hash_file(const char *dir, moe_err *err)
{
    uint64_t hash = 0;
    moe_status st = xs_catalog_hash_data(dir, &hash, err);
    if (st != MOE_OK) {
        return st;
    }
    char path[XS_CATALOG_PATH_BYTES], text[24];
    xs_catalog_path(dir, XS_HASH_FILE, path);
    int n = snprintf(text, sizeof text, "%016" PRIx64 "\n", hash);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        int e = errno;
        return MOE_FAIL_NATIVE(err, xs_lmdb_status(e), MOE_LAYER_ERRNO, e, "cannot create %s",
                               path);
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
    int rc = mdb_stat(w->txn, w->dbi[XS_DB_FILES], &s);
    if (rc != 0) {
        return xs_lmdb_fail(err, rc, "statistics", w->dir);
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
    w->meta.n_segments = w->n_segments;
    w->meta.state = XS_STATE_FINISHED;
    st = put_meta(w, err);
    st = st != MOE_OK ? st : xs_catalog_writer_commit(w, err);
    if (st != MOE_OK) {
        return st;
    }
    close_env(w);
    char lock[XS_CATALOG_PATH_BYTES];
    xs_catalog_path(w->dir, "lock.mdb", lock);
    (void)unlink(lock); /* readers need none; leaving it would do no harm */
    return write_hash_file(w->dir, err);
}
