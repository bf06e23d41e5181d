/* Any records as a store's catalogue: refused with a reason, or an index whose numbers fit
 * together, so that nobody who reads extents needs to check again. The functions of LMDB that the
 * reader calls are here, over the input, so that nothing but records is made up: LMDB's own pages
 * are hashed before it sees them. Run by tests/fuzz/replay.c or libFuzzer.
 *
 * Input: entries { u8 database (xs_catalog_db), u8 key bytes, u16 value bytes (little-endian), key,
 * value }. As in LMDB, keys of a database ascend: an entry that does not is left out. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checksum.h"
#include "expert-store/catalog/catalog.h"
#include "expert-store/catalog/catalog_env.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { MAX_ENTRIES = 256, SEGMENT_BYTES = 1 << 20 };

typedef struct entry {
    xs_catalog_db db;
    MDB_val key, value; /* borrowed from the input */
} entry;

static entry entries[MAX_ENTRIES];
static uint32_t n_entries;
static char dir[64]; /* a store without records, made by the first run */

static void must(bool holds)
{
    if (!holds) {
        abort();
    }
}

/* ---- LMDB over the input ---- */

struct MDB_cursor {
    xs_catalog_db db;
    uint32_t next; /* entry */
};
static MDB_cursor the_cursor;

int mdb_env_create(MDB_env **env)
{
    *env = (MDB_env *)(void *)entries; /* never looked into */
    return 0;
}

int mdb_env_set_maxdbs(MDB_env *env, MDB_dbi n)
{
    (void)env;
    (void)n;
    return 0;
}

int mdb_env_open(MDB_env *env, const char *path, unsigned int flags, mdb_mode_t mode)
{
    (void)env;
    (void)path;
    (void)flags;
    (void)mode;
    return 0;
}

void mdb_env_close(MDB_env *env)
{
    (void)env;
}

int mdb_txn_begin(MDB_env *env, MDB_txn *parent, unsigned int flags, MDB_txn **txn)
{
    (void)env;
    (void)parent;
    (void)flags;
    *txn = (MDB_txn *)(void *)entries;
    return 0;
}

void mdb_txn_abort(MDB_txn *txn)
{
    (void)txn;
}

int mdb_dbi_open(MDB_txn *txn, const char *name, unsigned int flags, MDB_dbi *dbi)
{
    (void)txn;
    (void)flags;
    for (MDB_dbi db = 0; db < XS_N_DBS; db++) {
        if (strcmp(name, xs_catalog_db_names[db]) == 0) {
            *dbi = db;
            return 0;
        }
    }
    return MDB_NOTFOUND;
}

int mdb_stat(MDB_txn *txn, MDB_dbi dbi, MDB_stat *stat)
{
    (void)txn;
    *stat = (MDB_stat){.ms_entries = 0};
    for (uint32_t i = 0; i < n_entries; i++) {
        stat->ms_entries += entries[i].db == (xs_catalog_db)dbi;
    }
    return 0;
}

int mdb_get(MDB_txn *txn, MDB_dbi dbi, MDB_val *key, MDB_val *data)
{
    (void)txn;
    for (uint32_t i = 0; i < n_entries; i++) {
        const entry *e = &entries[i];
        if (e->db == (xs_catalog_db)dbi && e->key.mv_size == key->mv_size &&
            memcmp(e->key.mv_data, key->mv_data, key->mv_size) == 0) {
            *data = e->value;
            return 0;
        }
    }
    return MDB_NOTFOUND;
}

int mdb_cursor_open(MDB_txn *txn, MDB_dbi dbi, MDB_cursor **cursor)
{
    (void)txn;
    the_cursor = (MDB_cursor){.db = (xs_catalog_db)dbi};
    *cursor = &the_cursor;
    return 0;
}

int mdb_cursor_get(MDB_cursor *cursor, MDB_val *key, MDB_val *data, MDB_cursor_op op)
{
    must(op == MDB_NEXT);
    while (cursor->next < n_entries) {
        const entry *e = &entries[cursor->next++];
        if (e->db == cursor->db) {
            *key = e->key;
            *data = e->value;
            return 0;
        }
    }
    return MDB_NOTFOUND;
}

void mdb_cursor_close(MDB_cursor *cursor)
{
    (void)cursor;
}

/* ---- the input ---- */

static int compare(const MDB_val *a, const MDB_val *b)
{
    size_t n = a->mv_size < b->mv_size ? a->mv_size : b->mv_size;
    int c = n > 0 ? memcmp(a->mv_data, b->mv_data, n) : 0;
    return c != 0 ? c : (a->mv_size > b->mv_size) - (a->mv_size < b->mv_size);
}

static bool ascends(const entry *e)
{
    for (uint32_t i = n_entries; i > 0; i--) {
        if (entries[i - 1].db == e->db) {
            return compare(&entries[i - 1].key, &e->key) < 0;
        }
    }
    return true;
}

static void read_entries(const uint8_t *data, size_t bytes)
{
    n_entries = 0;
    while (bytes >= 4 && n_entries < MAX_ENTRIES) {
        size_t key_bytes = data[1], value_bytes = (size_t)data[2] | (size_t)data[3] << 8;
        entry e = {.db = (xs_catalog_db)(data[0] % XS_N_DBS)};
        data += 4;
        bytes -= 4;
        if (key_bytes + value_bytes > bytes) {
            return;
        }
        e.key = xs_lmdb_val(data, key_bytes);
        e.value = xs_lmdb_val(data + key_bytes, value_bytes);
        data += key_bytes + value_bytes;
        bytes -= key_bytes + value_bytes;
        if (key_bytes > 0 && ascends(&e)) {
            entries[n_entries++] = e;
        }
    }
}

/* ---- the store around it ---- */

static int make_file(const char *path, const char *text, off_t bytes)
{
    FILE *f = fopen(path, "w");
    int failed = f == NULL || fputs(text, f) < 0;
    failed |= f != NULL && fclose(f) != 0;
    return failed || truncate(path, bytes) != 0;
}

static void remove_store(void)
{
    static const char *const names[] = {"catalog/data.mdb", "catalog/data.xxh3", "catalog",
                                        "segments/000000.seg", "segments"};
    char path[128];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        remove(path);
    }
    remove(dir);
}

static void make_store(void)
{
    char path[128], text[32];
    snprintf(dir, sizeof dir, "/tmp/pregate-fuzz-catalog-XXXXXX");
    must(mkdtemp(dir) != NULL);
    atexit(remove_store);
    snprintf(path, sizeof path, "%s/segments", dir);
    must(mkdir(path, 0700) == 0);
    snprintf(path, sizeof path, "%s/segments/000000.seg", dir);
    must(make_file(path, "", SEGMENT_BYTES) == 0);
    snprintf(path, sizeof path, "%s/catalog", dir);
    must(mkdir(path, 0700) == 0);
    snprintf(path, sizeof path, "%s/catalog/" XS_DATA_FILE, dir);
    must(make_file(path, "x", 1) == 0);
    snprintf(text, sizeof text, "%016" PRIx64 "\n", moe_xxh3("x", 1));
    snprintf(path, sizeof path, "%s/catalog/" XS_HASH_FILE, dir);
    must(make_file(path, text, 17) == 0);
}

static void check_extent(const xs_extent *e, uint32_t n_segments)
{
    uint64_t sum = 0;
    must(e->segment < n_segments && e->off % XS_EXTENT_ALIGN == 0);
    must(e->payload_bytes > 0 && e->payload_bytes <= e->padded_bytes);
    must(e->off + e->padded_bytes <= SEGMENT_BYTES);
    must(e->n_chunks == moe_n_chunks(e->payload_bytes));
    for (uint32_t i = 0; i < e->n_chunks; i++) {
        sum += e->hashes[i]; /* a sanitizer looks */
    }
    (void)*(volatile uint64_t *)&sum;
}

static void check_catalog(const xs_catalog *c)
{
    const xs_catalog_info *info = xs_catalog_get_info(c);
    must(strlen(info->model_name) < sizeof info->model_name);
    for (uint32_t i = 0; i < info->shape.n_experts_total; i++) {
        const xs_expert_record *e = xs_catalog_expert(c, i);
        check_extent(&e->extent, info->n_segments);
        must(e->extent.payload_bytes == info->expert_bytes);
        must(e->extent.padded_bytes == info->slot_bytes);
        must(e->n_parts >= 1 && e->n_parts <= XS_MAX_PARTS);
        for (uint32_t p = 0; p < e->n_parts; p++) {
            must(e->parts[p].off < info->expert_bytes);
        }
    }
    for (uint32_t i = 0; i < info->n_tensors; i++) {
        const xs_tensor_record *t = xs_catalog_tensor(c, i);
        check_extent(&t->extent, info->n_segments);
        must(strlen(t->name) < sizeof t->name && t->n_dims >= 1 && t->n_dims <= 4);
    }
    for (uint32_t i = 0; i < info->n_files; i++) {
        const char *name = NULL;
        const void *data = NULL;
        size_t bytes = 0;
        xs_catalog_file(c, i, &name, &data, &bytes);
        must(strlen(name) < XS_NAME_BYTES && data != NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    xs_catalog *c = NULL;
    moe_err err = {0};
    if (dir[0] == '\0') {
        make_store();
    }
    read_entries(data, bytes);
    if (xs_catalog_open(dir, &c, &err) != MOE_OK) {
        must(c == NULL && err.status != MOE_OK && err.text[0] != '\0');
        return 0;
    }
    check_catalog(c);
    xs_catalog_close(c);
    return 0;
}
