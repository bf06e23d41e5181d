/* catalog_env.c - see catalog_env.h. Called by catalog.c and catalog_writer.c; no state. */
#include "expert-store/catalog/catalog_env.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/checksum.h"
#include "common/file.h"

const char *const xs_catalog_db_names[XS_N_DBS] = {"meta", "experts", "tensors", "files"};

moe_status xs_lmdb_status(int rc)
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

moe_status xs_lmdb_fail(moe_err *err, int rc, const char *what, const char *dir)
{
    return MOE_FAIL_NATIVE(err, xs_lmdb_status(rc), MOE_LAYER_LMDB, rc, "%s of %s/catalog: %s",
                           what, dir, mdb_strerror(rc));
}

moe_status xs_catalog_copy_dir(const char *dir, char out[XS_CATALOG_DIR_BYTES], moe_err *err)
{
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/') {
        n--;
    }
    if (n == 0 || n >= XS_CATALOG_DIR_BYTES) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "store path is empty or over %d bytes: '%s'",
                        XS_CATALOG_DIR_BYTES - 1, dir);
    }
    memcpy(out, dir, n);
    out[n] = '\0';
    return MOE_OK;
}

void xs_catalog_path(const char *dir, const char *file, char out[XS_CATALOG_PATH_BYTES])
{
    snprintf(out, XS_CATALOG_PATH_BYTES, "%s/catalog%s%s", dir, *file != '\0' ? "/" : "", file);
}

moe_status xs_catalog_open_env(const char *dir, unsigned flags, MDB_env **out, moe_err *err)
{
    char path[XS_CATALOG_PATH_BYTES];
    xs_catalog_path(dir, "", path);
    MDB_env *env = NULL;
    int rc = mdb_env_create(&env);
    if (rc != 0) {
        return xs_lmdb_fail(err, rc, "creation", dir);
    }
    rc = mdb_env_set_maxdbs(env, XS_N_DBS);
    if (rc == 0 && (flags & MDB_RDONLY) == 0) {
        rc = mdb_env_set_mapsize(env, XS_MAX_CATALOG_BYTES);
    }
    if (rc == 0) {
        rc = mdb_env_open(env, path, flags | MDB_NOTLS, 0644);
    }
    if (rc != 0) {
        mdb_env_close(env);
        return xs_lmdb_fail(err, rc, "opening", dir);
    }
    *out = env;
    return MOE_OK;
}

moe_status xs_catalog_open_dbs(MDB_txn *txn, unsigned flags, const char *dir, MDB_dbi out[XS_N_DBS],
                               moe_err *err)
{
    for (int i = 0; i < XS_N_DBS; i++) {
        int rc = mdb_dbi_open(txn, xs_catalog_db_names[i], flags, &out[i]);
        if (rc != 0) {
            return xs_lmdb_fail(err, rc, xs_catalog_db_names[i], dir);
        }
    }
    return MOE_OK;
}

moe_status xs_catalog_hash_data(const char *dir, uint64_t *out, moe_err *err)
{
    char path[XS_CATALOG_PATH_BYTES];
    xs_catalog_path(dir, XS_DATA_FILE, path);
    char *data = NULL;
    size_t bytes = 0;
    moe_status st = moe_file_read(path, XS_MAX_CATALOG_BYTES, &data, &bytes, err);
    if (st == MOE_OK) {
        *out = moe_xxh3(data, bytes);
    }
    free(data);
    return st;
}
