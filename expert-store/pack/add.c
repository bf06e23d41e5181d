/* add.c - see add.h. Owns STORE/add.partial, under a flock on the store directory. */
#include "expert-store/pack/add.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checksum.h"
#include "common/file.h"
#include "expert-store/catalog/catalog.h"
#include "expert-store/pack/safetensors.h"
#include "expert-store/pack/store_dir.h"

enum { DIR_BYTES = 900, PATH_BYTES = DIR_BYTES + 64 };
#define MAX_TENSOR_BYTES (256ull << 20)
#define MAX_CATALOG_BYTES (4ull << 30)

typedef struct adder {
    char store[DIR_BYTES], work[DIR_BYTES + 16]; /* the store; STORE/add.partial */
    const char *file, *test_kill_at;             /* borrowed */
    int lock_fd;                                 /* owned; -1: none */
    xs_catalog *catalog;                         /* owned: as it was */
    xs_st_index index;                           /* owned: the file's */
    uint32_t segment;
    char segment_path[PATH_BYTES];
    uint64_t align;
    xs_catalog_writer *writer; /* owned */
    xs_add_result result;
} adder;

static moe_status fail_errno(moe_err *err, const char *what, const char *path)
{
    int e = errno;
    moe_status st = e == ENOSPC || e == EDQUOT                ? MOE_ERR_NO_SPACE
                    : e == EACCES || e == EPERM || e == EROFS ? MOE_ERR_PERMISSION
                                                              : MOE_ERR_IO;
    return MOE_FAIL_NATIVE(err, st, MOE_LAYER_ERRNO, e, "cannot %s %s", what, path);
}

static void kill_point(const adder *a, const char *name)
{
    if (strcmp(a->test_kill_at, name) == 0) {
        raise(SIGKILL);
    }
}

/* ---- before anything is written -------------------------------------------------------------- */

static moe_status take_store(adder *a, const char *store, moe_err *err)
{
    size_t n = strlen(store);
    while (n > 1 && store[n - 1] == '/') {
        n--;
    }
    if (n >= sizeof a->store) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "store path of over %zu bytes", sizeof a->store - 1);
    }
    snprintf(a->store, sizeof a->store, "%.*s", (int)n, store);
    snprintf(a->work, sizeof a->work, "%s/add.partial", a->store);
    a->lock_fd = open(a->store, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (a->lock_fd < 0) {
        return fail_errno(err, "open", a->store);
    }
    if (flock(a->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        moe_status st =
            errno == EWOULDBLOCK
                ? MOE_FAIL(err, MOE_ERR_BUSY, "another expert-pack is adding to %s", a->store)
                : fail_errno(err, "lock", a->store);
        close(a->lock_fd);
        a->lock_fd = -1;
        return st;
    }
    return xs_catalog_open(a->store, &a->catalog, err);
}

static bool is_predictor(const char *name)
{
    return strncmp(name, XS_ADD_PREFIX, strlen(XS_ADD_PREFIX)) == 0;
}

static moe_status check_tensors(const adder *a, moe_err *err)
{
    if (a->index.n == 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "%s has no tensors", a->file);
    }
    for (uint32_t i = 0; i < a->index.n; i++) {
        const xs_st_tensor *t = &a->index.tensors[i];
        if (!is_predictor(t->name)) {
            return MOE_FAIL(err, MOE_ERR_INVALID,
                            "%s: tensor %s is no predictor (its name does not begin with %s)",
                            a->file, t->name, XS_ADD_PREFIX);
        }
        if (t->dtype == 0 || t->n_dims == 0 || t->bytes == 0 || t->bytes > MAX_TENSOR_BYTES) {
            return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                            "%s: tensor %s of %s, %llu bytes: expected f32, bf16 or f16 and at "
                            "most 256 MiB",
                            a->file, t->name, t->dtype_name, (unsigned long long)t->bytes);
        }
    }
    return MOE_OK;
}

/* Which segments extents of the store lie in; owned by the caller, one more than there are. */
static bool *used_segments(const adder *a, bool with_predictors, moe_err *err)
{
    const xs_catalog_info *info = xs_catalog_get_info(a->catalog);
    bool *used = calloc(info->n_segments + 1u, sizeof *used);
    if (used == NULL) {
        (void)MOE_FAIL(err, MOE_ERR_NO_MEMORY, "segments of %s", a->store);
        return NULL;
    }
    for (uint32_t i = 0; i < info->shape.n_experts_total; i++) {
        used[xs_catalog_expert(a->catalog, i)->extent.segment] = true;
    }
    for (uint32_t i = 0; i < info->n_tensors; i++) {
        const xs_tensor_record *t = xs_catalog_tensor(a->catalog, i);
        used[t->extent.segment] =
            used[t->extent.segment] || with_predictors || !is_predictor(t->name);
    }
    return used;
}

/* The lowest that no extent lies in, also none of the tensors that leave: they are in use until the
 * exchange. */
static moe_status choose_segment(adder *a, moe_err *err)
{
    bool *used = used_segments(a, true, err);
    if (used == NULL) {
        return MOE_ERR_NO_MEMORY;
    }
    while (used[a->segment]) {
        a->segment++;
    }
    free(used);
    xs_segment_path(a->store, a->segment, a->segment_path, sizeof a->segment_path);
    return xs_store_dir_align(a->store, &a->align, err);
}

/* ---- writing --------------------------------------------------------------------------------- */

static moe_status copy_file(const char *from, const char *to, moe_err *err)
{
    char *data = NULL;
    size_t bytes = 0;
    moe_status st = moe_file_read(from, MAX_CATALOG_BYTES, &data, &bytes, err);
    if (st != MOE_OK) {
        return st;
    }
    int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    st = fd >= 0 ? moe_pwrite_exact(fd, data, bytes, 0, to, err) : fail_errno(err, "create", to);
    if (fd >= 0) {
        close(fd);
    }
    free(data);
    return st;
}

static moe_status copy_catalog(adder *a, moe_err *err)
{
    char from[PATH_BYTES], to[PATH_BYTES];
    moe_status st = xs_store_dir_remove(a->work, err); /* of a killed run */
    if (st != MOE_OK) {
        return st;
    }
    snprintf(to, sizeof to, "%s/catalog", a->work);
    if (mkdir(a->work, 0777) != 0 || mkdir(to, 0777) != 0) {
        return fail_errno(err, "create", to);
    }
    snprintf(from, sizeof from, "%s/catalog/data.mdb", a->store);
    snprintf(to, sizeof to, "%s/catalog/data.mdb", a->work);
    return copy_file(from, to, err);
}

/* One tensor: from the file, padded, into the segment and the catalogue. */
static moe_status write_tensor(adder *a, const xs_st_tensor *t, int from, int to, uint64_t off,
                               moe_err *err)
{
    uint64_t padded = moe_align_up(t->bytes, a->align);
    uint32_t n_chunks = moe_n_chunks(t->bytes);
    char *data = calloc(1, padded);
    uint64_t *hashes = calloc(n_chunks, sizeof *hashes);
    moe_status st = data != NULL && hashes != NULL
                        ? moe_pread_exact(from, data, t->bytes, t->off, a->file, err)
                        : MOE_FAIL(err, MOE_ERR_NO_MEMORY, "tensor %s", t->name);
    if (st == MOE_OK) {
        for (uint32_t i = 0; i < n_chunks; i++) {
            uint64_t at = (uint64_t)i * MOE_CHUNK_BYTES, left = t->bytes - at;
            hashes[i] = moe_xxh3(data + at, left < MOE_CHUNK_BYTES ? left : MOE_CHUNK_BYTES);
        }
        st = moe_pwrite_exact(to, data, padded, off, a->segment_path, err);
    }
    if (st == MOE_OK) {
        xs_tensor_record rec = {.dtype = t->dtype,
                                .n_dims = t->n_dims,
                                .extent = {.segment = a->segment,
                                           .n_chunks = n_chunks,
                                           .off = off,
                                           .payload_bytes = t->bytes,
                                           .padded_bytes = padded,
                                           .hashes = hashes}};
        snprintf(rec.name, sizeof rec.name, "%s", t->name);
        memcpy(rec.dims, t->dims, sizeof t->dims);
        st = xs_catalog_put_tensor(a->writer, &rec, err);
    }
    free(data);
    free(hashes);
    return st;
}

static moe_status write_tensors(adder *a, moe_err *err)
{
    moe_status st = MOE_OK;
    uint64_t off = 0;
    int from = open(a->file, O_RDONLY | O_CLOEXEC);
    int to = open(a->segment_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (from < 0 || to < 0) {
        st = fail_errno(err, "open", from < 0 ? a->file : a->segment_path);
    }
    for (uint32_t i = 0; i < a->index.n && st == MOE_OK; i++) {
        const xs_st_tensor *t = &a->index.tensors[i];
        st = write_tensor(a, t, from, to, off, err);
        off += moe_align_up(t->bytes, a->align);
        a->result.bytes += t->bytes;
        a->result.n_added++;
    }
    if (st == MOE_OK && fsync(to) != 0) {
        st = fail_errno(err, "sync", a->segment_path);
    }
    if (from >= 0) {
        close(from);
    }
    if (to >= 0) {
        close(to);
    }
    return st;
}

static moe_status write_catalog(adder *a, moe_err *err)
{
    const xs_catalog_info *info = xs_catalog_get_info(a->catalog);
    moe_status st = xs_catalog_writer_open(a->work, &a->writer, err);
    if (st == MOE_OK) {
        st = xs_catalog_amend(a->writer, XS_ADD_PREFIX, &a->result.n_dropped, err);
    }
    if (st == MOE_OK) {
        st = write_tensors(a, err);
    }
    return st == MOE_OK
               ? xs_catalog_writer_finish(a->writer, info->model_name, info->expert_dtype, err)
               : st;
}

/* ---- the exchange ---------------------------------------------------------------------------- */

static moe_status sync_dir(const char *dir, const char *name, moe_err *err)
{
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s%s%s", dir, *name != '\0' ? "/" : "", name);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return fail_errno(err, "open", path);
    }
    moe_status st = fsync(fd) == 0 ? MOE_OK : fail_errno(err, "sync", path);
    close(fd);
    return st;
}

static moe_status exchange(adder *a, moe_err *err)
{
    char now[PATH_BYTES], then[PATH_BYTES];
    snprintf(now, sizeof now, "%s/catalog", a->store);
    snprintf(then, sizeof then, "%s/catalog", a->work);
    moe_status st = sync_dir(a->store, "segments", err);
    st = st != MOE_OK ? st : sync_dir(a->work, "catalog", err);
    if (st != MOE_OK) {
        return st;
    }
    kill_point(a, "before-exchange");
    if (renameat2(AT_FDCWD, then, AT_FDCWD, now, RENAME_EXCHANGE) != 0) {
        return fail_errno(err, "exchange the catalogue of", a->store);
    }
    kill_point(a, "after-exchange");
    return sync_dir(a->store, "", err);
}

/* What only tensors that left lay in gives its bytes back. */
static moe_status empty_unused_segments(const adder *a, moe_err *err)
{
    bool *used = used_segments(a, false, err);
    if (used == NULL) {
        return MOE_ERR_NO_MEMORY;
    }
    moe_status st = MOE_OK;
    for (uint32_t i = 0; i < xs_catalog_get_info(a->catalog)->n_segments && st == MOE_OK; i++) {
        char path[PATH_BYTES];
        xs_segment_path(a->store, i, path, sizeof path);
        if (!used[i] && i != a->segment && truncate(path, 0) != 0) {
            st = fail_errno(err, "empty", path);
        }
    }
    free(used);
    return st;
}

moe_status xs_add(const char *store, const char *file, const char *test_kill_at, xs_add_result *out,
                  moe_err *err)
{
    adder a = {.file = file, .test_kill_at = test_kill_at, .lock_fd = -1};
    moe_status st = take_store(&a, store, err);
    st = st != MOE_OK ? st : xs_st_read(file, &a.index, err);
    st = st != MOE_OK ? st : check_tensors(&a, err);
    st = st != MOE_OK ? st : choose_segment(&a, err);
    st = st != MOE_OK ? st : copy_catalog(&a, err);
    st = st != MOE_OK ? st : write_catalog(&a, err);
    st = st != MOE_OK ? st : exchange(&a, err);
    st = st != MOE_OK ? st : empty_unused_segments(&a, err);
    xs_catalog_writer_close(a.writer);
    if (a.lock_fd >= 0) { /* only then is the directory ours; what a failed run left goes, too */
        moe_status left = xs_store_dir_remove(a.work, st == MOE_OK ? err : NULL);
        st = st == MOE_OK ? left : st;
        close(a.lock_fd);
    }
    xs_st_fini(&a.index);
    xs_catalog_close(a.catalog);
    if (st == MOE_OK) {
        *out = a.result;
    }
    return st;
}
