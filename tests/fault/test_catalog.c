/* The catalogue when LMDB fails: the n-th call, for every n and several codes. Whatever fails is
 * told with LMDB's own code and the store's name, nothing half-made is handed out, and what was
 * committed before can be resumed and read. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <lmdb.h>

#include "common/checksum.h"
#include "expert-store/catalog/catalog.h"
#include "expert-store/catalog/synthetic.h"
#include "expert-store/catalog/tensor_names.h"
#include "tests/support/small_store.h"

static int calls_until_failure = -1; /* -1: never; 0: it was */
static int failure_code;

/* Is this the call that fails? */
static bool fails_now(void)
{
    if (calls_until_failure <= 0) {
        return false;
    }
    calls_until_failure--;
    return calls_until_failure == 0;
}

/* MDB_FN(name, (parameters), (arguments)): fails instead of being called. */
#define MDB_FN(name, parameters, arguments)                                                        \
    int __real_##name parameters;                                                                  \
    int __wrap_##name parameters;                                                                  \
    int __wrap_##name parameters                                                                   \
    {                                                                                              \
        return fails_now() ? failure_code : __real_##name arguments;                               \
    }
MDB_FN(mdb_env_create, (MDB_env * *env), (env))
MDB_FN(mdb_env_set_maxdbs, (MDB_env * env, MDB_dbi n), (env, n))
MDB_FN(mdb_env_set_mapsize, (MDB_env * env, size_t bytes), (env, bytes))
MDB_FN(mdb_env_open, (MDB_env * env, const char *path, unsigned int flags, mdb_mode_t mode),
       (env, path, flags, mode))
MDB_FN(mdb_txn_begin, (MDB_env * env, MDB_txn *parent, unsigned int flags, MDB_txn **txn),
       (env, parent, flags, txn))
MDB_FN(mdb_dbi_open, (MDB_txn * txn, const char *name, unsigned int flags, MDB_dbi *dbi),
       (txn, name, flags, dbi))
MDB_FN(mdb_get, (MDB_txn * txn, MDB_dbi dbi, MDB_val *key, MDB_val *data), (txn, dbi, key, data))
MDB_FN(mdb_put, (MDB_txn * txn, MDB_dbi dbi, MDB_val *key, MDB_val *data, unsigned int flags),
       (txn, dbi, key, data, flags))
MDB_FN(mdb_stat, (MDB_txn * txn, MDB_dbi dbi, MDB_stat *stat), (txn, dbi, stat))
MDB_FN(mdb_cursor_open, (MDB_txn * txn, MDB_dbi dbi, MDB_cursor **cursor), (txn, dbi, cursor))
MDB_FN(mdb_cursor_get, (MDB_cursor * cursor, MDB_val *key, MDB_val *data, MDB_cursor_op op),
       (cursor, key, data, op))

/* A failed commit frees the transaction too. */
int __real_mdb_txn_commit(MDB_txn *txn);
int __wrap_mdb_txn_commit(MDB_txn *txn);
int __wrap_mdb_txn_commit(MDB_txn *txn)
{
    if (fails_now()) {
        mdb_txn_abort(txn);
        return failure_code;
    }
    return __real_mdb_txn_commit(txn);
}

static const int codes[] = {EIO, ENOSPC, ENOMEM, MDB_MAP_FULL, MDB_CORRUPTED, MDB_PANIC};
enum { N_CODES = sizeof codes / sizeof codes[0] };

static void assert_told(moe_status st, const moe_err *err, const char *dir)
{
    assert_int_not_equal(MOE_OK, st);
    assert_int_equal(st, err->status);
    assert_int_equal(MOE_LAYER_LMDB, err->layer);
    assert_int_equal(failure_code, err->native);
    assert_non_null(strstr(err->text, dir));
}

static void a_reader_tells_every_failure_and_hands_out_nothing(void **state)
{
    (void)state;
    char dir[SMALL_STORE_PATH_BYTES];
    small_store_create(dir);
    int n_failures = 0;
    for (int n = 1;; n++) {
        xs_catalog *c = NULL;
        moe_err err = {0};
        failure_code = codes[n % N_CODES];
        calls_until_failure = n;
        moe_status st = xs_catalog_open(dir, &c, &err);
        bool failed = calls_until_failure == 0;
        calls_until_failure = -1;
        if (!failed) {
            assert_int_equal(MOE_OK, st);
            assert_int_equal(SMALL_STORE_EXPERTS, xs_catalog_get_info(c)->shape.n_experts_total);
            xs_catalog_close(c);
            break;
        }
        assert_told(st, &err, dir);
        assert_null(c);
        n_failures++;
    }
    assert_true(n_failures > 20); /* each record of the index is a call */
    small_store_remove(dir);
}

enum { CONFIG_BYTES = 4096 };
static char config[CONFIG_BYTES];
static moe_model_shape shape;

static moe_status put_expert(xs_catalog_writer *w, uint32_t i, moe_err *err)
{
    moe_stack stack;
    uint32_t block, expert;
    uint64_t payload = moe_expert_params(&shape) * 2;
    uint64_t padded = (payload + XS_EXTENT_ALIGN - 1) / XS_EXTENT_ALIGN * XS_EXTENT_ALIGN;
    uint64_t hashes[4] = {i, i, i, i};
    xs_expert_place(&shape, i, &stack, &block, &expert);
    assert_true(moe_n_chunks(payload) <= 4);
    xs_expert_record rec = {
        .extent = {.n_chunks = moe_n_chunks(payload),
                   .off = i * padded,
                   .payload_bytes = payload,
                   .padded_bytes = padded,
                   .hashes = hashes},
        .layer = shape.stack[stack].layer_of_block[block],
        .n_parts = 2,
        .parts = {{.off = 0, .dtype = MOE_BF16, .rows = shape.d_ff, .cols = shape.d_model},
                  {.off = moe_expert_params(&shape),
                   .dtype = MOE_BF16,
                   .rows = shape.d_model,
                   .cols = shape.d_ff}}};
    return xs_catalog_put_expert(w, stack, block, expert, &rec, err);
}

/* Packs as expert-pack does, from where an earlier run stopped, committing every 8 experts. */
static moe_status write_store(const char *dir, moe_err *err)
{
    xs_catalog_writer *w = NULL;
    xs_catalog_progress p;
    moe_status st = xs_catalog_writer_open(dir, &w, err);
    if (st != MOE_OK) {
        assert_null(w);
        return st;
    }
    xs_catalog_writer_progress(w, &p);
    if (*xs_catalog_writer_job(w) == '\0') {
        st = xs_catalog_writer_set_job(w, "job", err);
    }
    for (uint32_t i = p.n_experts; st == MOE_OK && i < shape.n_experts_total; i++) {
        st = put_expert(w, i, err);
        if (st == MOE_OK && i % 8 == 7) {
            st = xs_catalog_writer_commit(w, err);
        }
    }
    st = st != MOE_OK ? st : xs_catalog_put_file(w, "config.json", config, strlen(config), err);
    st = st != MOE_OK ? st : xs_catalog_writer_finish(w, "tiny", MOE_BF16, err);
    xs_catalog_writer_close(w);
    return st;
}

static void assert_readable(const char *dir)
{
    xs_catalog *c = NULL;
    char path[SMALL_STORE_PATH_BYTES];
    xs_segment_path(dir, 0, path, sizeof path);
    FILE *f = fopen(path, "ab");
    assert_non_null(f);
    fclose(f);
    assert_int_equal(0, truncate(path, 1 << 20));
    assert_int_equal(MOE_OK, xs_catalog_open(dir, &c, NULL));
    for (uint32_t i = 0; i < shape.n_experts_total; i++) {
        assert_int_equal(i, xs_catalog_expert(c, i)->extent.hashes[0]);
    }
    xs_catalog_close(c);
}

static void make_dir(char dir[SMALL_STORE_PATH_BYTES])
{
    char path[SMALL_STORE_PATH_BYTES + 16];
    snprintf(dir, SMALL_STORE_PATH_BYTES, "fault-catalog-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/segments", dir);
    assert_int_equal(0, mkdir(path, 0777));
}

static void a_writer_tells_every_failure_and_can_be_resumed(void **state)
{
    (void)state;
    assert_int_equal(MOE_OK,
                     xs_synthetic_config("switch-tiny", MOE_BF16, config, sizeof config, NULL));
    assert_int_equal(MOE_OK, moe_model_shape_parse(config, strlen(config), &shape, NULL));
    bool failed = true;
    for (int n = 1; failed; n++) {
        char dir[SMALL_STORE_PATH_BYTES];
        moe_err err = {0};
        make_dir(dir);
        failure_code = codes[n % N_CODES];
        calls_until_failure = n;
        moe_status st = write_store(dir, &err);
        failed = calls_until_failure == 0;
        calls_until_failure = -1;
        if (failed) {
            xs_catalog *c = NULL;
            assert_told(st, &err, dir);
            assert_int_not_equal(MOE_OK, xs_catalog_open(dir, &c, NULL)); /* it is unfinished */
            assert_int_equal(MOE_OK, write_store(dir, NULL));
        } else {
            assert_int_equal(MOE_OK, st);
            assert_true(n > 60); /* each put is a call */
        }
        assert_readable(dir);
        small_store_remove(dir);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_reader_tells_every_failure_and_hands_out_nothing),
        cmocka_unit_test(a_writer_tells_every_failure_and_can_be_resumed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
