/* The catalogue: what was written is read back; unfinished, foreign and damaged ones are refused.
 */
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

#include "common/checksum.h"
#include "expert-store/catalog/catalog.h"
#include "expert-store/catalog/synthetic.h"
#include "expert-store/catalog/tensor_names.h"

enum { PATH = 256 };
static char dir[64]; /* of the running test */
static moe_model_shape shape;
static char config[4096];

static void path_in(const char *file, char out[PATH])
{
    snprintf(out, PATH, "%s/%s", dir, file);
}

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "catalog-XXXXXX");
    char segments[PATH];
    if (mkdtemp(dir) == NULL ||
        xs_synthetic_config("switch-tiny", MOE_BF16, config, sizeof config, NULL) != MOE_OK ||
        moe_model_shape_parse(config, strlen(config), &shape, NULL) != MOE_OK) {
        return -1;
    }
    path_in("segments", segments);
    return mkdir(segments, 0777);
}

static int remove_dir(void **state)
{
    (void)state;
    const char *const files[] = {
        "catalog/data.mdb",    "catalog/lock.mdb", "catalog/data.xxh3", "segments/000000.seg",
        "segments/000001.seg", "catalog",          "segments"};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char path[PATH];
        path_in(files[i], path);
        remove(path);
    }
    return rmdir(dir);
}

static void set_size(const char *file, off_t bytes)
{
    char path[PATH];
    path_in(file, path);
    FILE *f = fopen(path, "ab");
    assert_non_null(f);
    fclose(f);
    assert_int_equal(0, truncate(path, bytes));
}

static uint64_t hash_of(uint32_t i, uint32_t chunk)
{
    return (uint64_t)i << 32 | (chunk + 1);
}

/* Every second expert in the second segment. */
static xs_extent extent_of(uint32_t i, uint64_t *hashes)
{
    uint64_t payload = moe_expert_params(&shape) * 2;
    uint64_t padded = (payload + XS_EXTENT_ALIGN - 1) / XS_EXTENT_ALIGN * XS_EXTENT_ALIGN;
    uint32_t n_chunks = moe_n_chunks(payload);
    for (uint32_t c = 0; c < n_chunks; c++) {
        hashes[c] = hash_of(i, c);
    }
    return (xs_extent){.segment = i % 2,
                       .n_chunks = n_chunks,
                       .off = i / 2 * padded,
                       .payload_bytes = payload,
                       .padded_bytes = padded,
                       .hashes = hashes};
}

static void put_expert(xs_catalog_writer *w, uint32_t i)
{
    uint64_t hashes[4];
    moe_stack stack;
    uint32_t block, expert;
    xs_expert_place(&shape, i, &stack, &block, &expert);
    xs_expert_record rec = {
        .extent = extent_of(i, hashes),
        .layer = shape.stack[stack].layer_of_block[block],
        .n_parts = 2,
        .parts = {{.off = 0, .dtype = MOE_BF16, .rows = shape.d_ff, .cols = shape.d_model},
                  {.off = moe_expert_params(&shape),
                   .dtype = MOE_BF16,
                   .rows = shape.d_model,
                   .cols = shape.d_ff}}};
    assert_int_equal(MOE_OK, xs_catalog_put_expert(w, stack, block, expert, &rec, NULL));
}

static void put_tensor(xs_catalog_writer *w, const char *name, uint32_t rows)
{
    uint64_t hash = rows;
    xs_tensor_record rec = {.dtype = MOE_F32,
                            .n_dims = 2,
                            .dims = {rows, 8},
                            .extent = {.segment = 1,
                                       .n_chunks = 1,
                                       .off = 1 << 20,
                                       .payload_bytes = (uint64_t)rows * 8 * 4,
                                       .padded_bytes = 4096,
                                       .hashes = &hash}};
    snprintf(rec.name, sizeof rec.name, "%s", name);
    assert_int_equal(MOE_OK, xs_catalog_put_tensor(w, &rec, NULL));
}

static xs_catalog_writer *open_writer(void)
{
    xs_catalog_writer *w = NULL;
    moe_err err = {0};
    if (xs_catalog_writer_open(dir, &w, &err) != MOE_OK) {
        fail_msg("%s", err.text);
    }
    return w;
}

/* Leaves out the expert `missing`; n_experts_total for none. */
static void write_store(uint32_t missing)
{
    xs_catalog_writer *w = open_writer();
    for (uint32_t i = 0; i < shape.n_experts_total; i++) {
        if (i != missing) {
            put_expert(w, i);
        }
    }
    put_tensor(w, "b.weight", 16);
    put_tensor(w, "a.weight", 3);
    assert_int_equal(MOE_OK, xs_catalog_put_file(w, "config.json", config, strlen(config), NULL));
    assert_int_equal(MOE_OK, xs_catalog_put_file(w, "spiece.model", "\0\1\2", 3, NULL));
    assert_int_equal(MOE_OK, xs_catalog_writer_finish(w, "tiny", MOE_BF16, NULL));
    xs_catalog_writer_close(w);
    set_size("segments/000000.seg", 16 * 8192);
    set_size("segments/000001.seg", (1 << 20) + 4096);
}

static void assert_refused(const char *path, moe_status status, const char *reason)
{
    xs_catalog *c = NULL;
    moe_err err = {0};
    moe_status st = xs_catalog_open(path, &c, &err);
    if (st != status || strstr(err.text, reason) == NULL) {
        fail_msg("%s: %s", moe_status_name(st), err.text);
    }
    assert_null(c);
}

static void what_was_written_is_read_back(void **state)
{
    (void)state;
    write_store(shape.n_experts_total);
    xs_catalog *c = NULL;
    char with_slash[80];
    snprintf(with_slash, sizeof with_slash, "%s/", dir);
    assert_int_equal(MOE_OK, xs_catalog_open(with_slash, &c, NULL));
    const xs_catalog_info *info = xs_catalog_get_info(c);
    assert_string_equal("tiny", info->model_name);
    assert_int_equal(MOE_BF16, info->expert_dtype);
    assert_int_equal(32, info->shape.n_experts_total);
    assert_int_equal(moe_expert_params(&shape) * 2, info->expert_bytes);
    assert_int_equal(8192, info->slot_bytes);
    assert_int_equal(2, info->n_segments);
    assert_int_equal((16 + 3) * 8 * 4, info->dense_bytes);
    uint8_t zero[16] = {0};
    assert_memory_not_equal(zero, info->uuid, sizeof zero);
    for (uint32_t i = 0; i < 32; i++) {
        const xs_expert_record *e = xs_catalog_expert(c, i);
        assert_int_equal(i % 2, e->extent.segment);
        assert_int_equal(i / 2 * 8192, e->extent.off);
        assert_int_equal(hash_of(i, 0), e->extent.hashes[0]);
        assert_int_equal(i / 8 % 2 * 2 + 1, e->layer);
        assert_int_equal(shape.d_ff, e->parts[1].cols);
    }
    assert_int_equal(2, info->n_tensors);
    assert_string_equal("a.weight", xs_catalog_tensor(c, 0)->name);
    assert_int_equal(16, xs_catalog_tensor(c, 1)->dims[0]);
    assert_int_equal(16, xs_catalog_tensor(c, 1)->extent.hashes[0]);
    const char *name = NULL;
    const void *data = NULL;
    size_t bytes = 0;
    xs_catalog_file(c, 1, &name, &data, &bytes);
    assert_string_equal("spiece.model", name);
    assert_int_equal(3, bytes);
    assert_memory_equal("\0\1\2", data, 3);
    char path[PATH], expected[PATH];
    xs_catalog_segment_path(c, 7, path, sizeof path);
    path_in("segments/000007.seg", expected);
    assert_string_equal(expected, path);
    xs_catalog_close(c);
    xs_catalog_close(NULL);
}

static void a_directory_that_is_no_store_is_refused(void **state)
{
    (void)state;
    assert_refused("no-such-directory", MOE_ERR_NOT_FOUND, "no-such-directory");
    assert_refused(dir, MOE_ERR_FORMAT, "not a store");
    assert_refused("", MOE_ERR_INVALID, "empty");
}

static void an_unfinished_store_is_refused_by_name(void **state)
{
    (void)state;
    xs_catalog_writer *w = open_writer();
    put_expert(w, 0);
    assert_int_equal(MOE_OK, xs_catalog_writer_commit(w, NULL));
    assert_refused(dir, MOE_ERR_FORMAT, "unfinished");
    xs_catalog_writer_close(w);
    assert_refused(dir, MOE_ERR_FORMAT, dir);
}

static void the_name_partial_is_refused_even_when_finished(void **state)
{
    (void)state;
    write_store(shape.n_experts_total);
    char partial[80];
    snprintf(partial, sizeof partial, "%s.partial", dir);
    assert_int_equal(0, rename(dir, partial));
    assert_refused(partial, MOE_ERR_FORMAT, "unfinished");
    assert_int_equal(0, rename(partial, dir));
}

static void a_missing_expert_is_noticed(void **state)
{
    (void)state;
    write_store(31);
    assert_refused(dir, MOE_ERR_FORMAT, "not those of its config.json");
}

static void a_hole_in_the_experts_is_noticed(void **state)
{
    (void)state;
    write_store(5);
    assert_refused(dir, MOE_ERR_FORMAT, "not those of its config.json");
}

/* Whatever byte it is: LMDB must not be shown a damaged page. */
static void a_flipped_byte_anywhere_in_the_index_is_noticed(void **state)
{
    (void)state;
    write_store(shape.n_experts_total);
    char path[PATH];
    path_in("catalog/data.mdb", path);
    struct stat sb;
    assert_int_equal(0, stat(path, &sb));
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    for (long at = 0; at < sb.st_size; at += 997) {
        fseek(f, at, SEEK_SET);
        int was = fgetc(f);
        fseek(f, at, SEEK_SET);
        fputc(was ^ 0x40, f);
        fflush(f);
        assert_refused(dir, MOE_ERR_CORRUPT, "checksum");
        fseek(f, at, SEEK_SET);
        fputc(was, f);
        fflush(f);
    }
    fclose(f);
    xs_catalog *c = NULL;
    assert_int_equal(MOE_OK, xs_catalog_open(dir, &c, NULL));
    xs_catalog_close(c);
}

static void short_or_absent_files_are_noticed(void **state)
{
    (void)state;
    char path[PATH];
    write_store(shape.n_experts_total);
    set_size("segments/000000.seg", 16 * 8192 - 1);
    assert_refused(dir, MOE_ERR_IO, "000000.seg");
    path_in("segments/000000.seg", path);
    assert_int_equal(0, unlink(path));
    assert_refused(dir, MOE_ERR_NOT_FOUND, "000000.seg");
    set_size("segments/000000.seg", 16 * 8192);
    set_size("catalog/data.mdb", 8192);
    assert_refused(dir, MOE_ERR_CORRUPT, "checksum");
    set_size("catalog/data.mdb", 0);
    assert_refused(dir, MOE_ERR_CORRUPT, "checksum");
    set_size("catalog/data.xxh3", 3);
    assert_refused(dir, MOE_ERR_CORRUPT, "checksum");
}

static void a_reopened_writer_knows_what_was_committed(void **state)
{
    (void)state;
    xs_catalog_progress p;
    xs_catalog_writer *w = open_writer();
    assert_string_equal("", xs_catalog_writer_job(w));
    assert_int_equal(MOE_OK, xs_catalog_writer_set_job(w, "seed=1", NULL));
    put_expert(w, 0);
    put_expert(w, 1);
    assert_int_equal(MOE_OK, xs_catalog_writer_commit(w, NULL));
    put_expert(w, 2);
    xs_catalog_writer_progress(w, &p);
    assert_int_equal(3, p.n_experts);
    xs_catalog_writer_close(w); /* the third was not committed */

    w = open_writer();
    xs_catalog_writer_progress(w, &p);
    assert_int_equal(2, p.n_experts);
    assert_int_equal(0, p.n_tensors);
    assert_string_equal("seed=1", xs_catalog_writer_job(w));
    put_tensor(w, "t", 1);
    assert_int_equal(MOE_OK, xs_catalog_writer_commit(w, NULL));
    xs_catalog_writer_close(w);

    w = open_writer();
    xs_catalog_writer_progress(w, &p);
    assert_int_equal(2, p.n_experts);
    assert_int_equal(1, p.n_tensors);
    xs_catalog_writer_close(w);
    xs_catalog_writer_close(NULL);
}

/* A run may die between finishing and moving the directory into place. */
static void a_finished_catalogue_can_be_opened_and_finished_again(void **state)
{
    (void)state;
    write_store(shape.n_experts_total);
    xs_catalog_writer *w = open_writer();
    assert_refused(dir, MOE_ERR_FORMAT, "unfinished");
    assert_int_equal(MOE_OK, xs_catalog_writer_finish(w, "again", MOE_BF16, NULL));
    xs_catalog_writer_close(w);
    xs_catalog *c = NULL;
    assert_int_equal(MOE_OK, xs_catalog_open(dir, &c, NULL));
    assert_string_equal("again", xs_catalog_get_info(c)->model_name);
    assert_int_equal(2, xs_catalog_get_info(c)->n_files);
    xs_catalog_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_was_written_is_read_back, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(a_directory_that_is_no_store_is_refused, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(an_unfinished_store_is_refused_by_name, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(the_name_partial_is_refused_even_when_finished, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(a_missing_expert_is_noticed, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(a_hole_in_the_experts_is_noticed, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(a_flipped_byte_anywhere_in_the_index_is_noticed, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(short_or_absent_files_are_noticed, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(a_reopened_writer_knows_what_was_committed, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(a_finished_catalogue_can_be_opened_and_finished_again,
                                        make_dir, remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
