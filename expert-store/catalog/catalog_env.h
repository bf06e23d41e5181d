/* catalog_env.h - [LMDB] the environment under a catalogue, for its reader and its writer only.
 * Threads: no state. */
#ifndef XS_CATALOG_ENV_H
#define XS_CATALOG_ENV_H

#include <lmdb.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"
#include "expert-store/catalog/catalog_format.h"

enum { XS_CATALOG_DIR_BYTES = 1024, XS_CATALOG_PATH_BYTES = XS_CATALOG_DIR_BYTES + 64 };
#define XS_MAX_CATALOG_BYTES (4ull << 30) /* LMDB map, address space only; above any tokenizer */

typedef enum xs_catalog_db {
    XS_DB_META,
    XS_DB_EXPERTS,
    XS_DB_TENSORS,
    XS_DB_FILES,
    XS_N_DBS
} xs_catalog_db;
extern const char *const xs_catalog_db_names[XS_N_DBS];

/* The status of an errno or an LMDB code; and a failure with LMDB's text: "WHAT of DIR/catalog". */
moe_status xs_lmdb_status(int rc);
moe_status xs_lmdb_fail(moe_err *err, int rc, const char *what, const char *dir);

static inline MDB_val xs_lmdb_val(const void *data, size_t bytes)
{
    return (MDB_val){.mv_size = bytes, .mv_data = (void *)(uintptr_t)data};
}

/* Without trailing slashes. */
MOE_MUST_CHECK moe_status xs_catalog_copy_dir(const char *dir, char out[XS_CATALOG_DIR_BYTES],
                                              moe_err *err);
/* DIR/catalog/FILE, or DIR/catalog for "". */
void xs_catalog_path(const char *dir, const char *file, char out[XS_CATALOG_PATH_BYTES]);
/* flags: of mdb_env_open. The caller closes *out. */
MOE_MUST_CHECK moe_status xs_catalog_open_env(const char *dir, unsigned flags, MDB_env **out,
                                              moe_err *err);
MOE_MUST_CHECK moe_status xs_catalog_open_dbs(MDB_txn *txn, unsigned flags, const char *dir,
                                              MDB_dbi out[XS_N_DBS], moe_err *err);
/* XXH3-64 of data.mdb. */
MOE_MUST_CHECK moe_status xs_catalog_hash_data(const char *dir, uint64_t *out, moe_err *err);

#endif
