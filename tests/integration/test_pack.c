/* The program expert-pack, run as a user runs it: packs, verifies, refuses bad input with one clear
 * error, and goes on after it was killed at any moment. Argument: the program.
 * Each test works in a directory of its own below the current one, which is removed at its end. */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/file.h"
#include "expert-store/catalog/catalog.h"
#include "expert-store/catalog/synthetic.h"
#include "expert-store/pack/store_dir.h"
#include "tests/support/checkpoint_writer.h"

enum { PATH = 512, OUTPUT = 32768, MAX_ARGS = 24 };
static const char *program;
static char dir[64];

/* ---- helpers ---- */

/* A path in the test's directory; a few may be in use at once. */
static const char *in(const char *name)
{
    static char paths[8][PATH];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, PATH, "%s/%s", dir, name);
    return path;
}

static void remove_tree(const char *path)
{
    DIR *d = opendir(path);
    for (struct dirent *e = d != NULL ? readdir(d) : NULL; e != NULL; e = readdir(d)) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            char child[PATH];
            snprintf(child, sizeof child, "%.250s/%.250s", path, e->d_name);
            remove_tree(child);
        }
    }
    if (d != NULL) {
        closedir(d);
    }
    remove(path);
}

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "pack-XXXXXX");
    return mkdtemp(dir) != NULL ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    remove_tree(dir);
    return 0;
}

typedef struct run {
    int code;            /* exit code, or minus the signal */
    char output[OUTPUT]; /* stdout and stderr */
} run;

/* The child's end of out_fd is its stdout and stderr. */
static pid_t start(const char *const *argv, int *out_fd)
{
    int fds[2];
    assert_int_equal(0, pipe(fds));
    pid_t pid = fork();
    if (pid == 0) {
        dup2(fds[1], STDOUT_FILENO);
        dup2(fds[1], STDERR_FILENO);
        close(fds[0]);
        execv(program, (char **)(uintptr_t)argv);
        _exit(127);
    }
    close(fds[1]);
    *out_fd = fds[0];
    return pid;
}

/* The result is static. */
static const run *finish(pid_t pid, int fd)
{
    static run r;
    size_t n = 0;
    for (ssize_t got = 1; got > 0 && n<sizeof r.output - 1; n += got> 0 ? (size_t)got : 0) {
        got = read(fd, r.output + n, sizeof r.output - 1 - n);
    }
    r.output[n] = '\0';
    close(fd);
    int status = 0;
    assert_int_equal(pid, waitpid(pid, &status, 0));
    r.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return &r;
}

/* Arguments end with NULL. */
static const run *pack(const char *first, ...)
{
    const char *argv[MAX_ARGS] = {program, first};
    va_list args;
    va_start(args, first);
    for (int i = 2; argv[i - 1] != NULL && i < MAX_ARGS; i++) {
        argv[i] = va_arg(args, const char *);
    }
    va_end(args);
    int fd = -1;
    pid_t pid = start(argv, &fd);
    return finish(pid, fd);
}

static void expect(const run *r, int code, const char *text)
{
    if (r->code != code || strstr(r->output, text) == NULL) {
        fail_msg("expected %d and '%s', got %d: %s", code, text, r->code, r->output);
    }
}

static void assert_same_file(const char *a, const char *b)
{
    char *x = NULL, *y = NULL;
    size_t n = 0, m = 0;
    assert_int_equal(MOE_OK, moe_file_read(a, 1 << 30, &x, &n, NULL));
    assert_int_equal(MOE_OK, moe_file_read(b, 1 << 30, &y, &m, NULL));
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

static uint32_t n_segments(const char *store)
{
    xs_catalog *c = NULL;
    moe_err err = {0};
    if (xs_catalog_open(store, &c, &err) != MOE_OK) {
        fail_msg("%s", err.text);
    }
    uint32_t n = xs_catalog_get_info(c)->n_segments;
    xs_catalog_close(c);
    return n;
}

static void assert_same_weights(const char *a, const char *b)
{
    uint32_t n = n_segments(a);
    assert_int_equal(n, n_segments(b));
    for (uint32_t i = 0; i < n; i++) {
        char x[PATH], y[PATH];
        xs_segment_path(a, i, x, sizeof x);
        xs_segment_path(b, i, y, sizeof y);
        assert_same_file(x, y);
    }
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static void write_file(const char *path, const void *data, size_t bytes)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(bytes, fwrite(data, 1, bytes, f));
    assert_int_equal(0, fclose(f));
}

/* The tiny checkpoint, unchanged, in dir/NAME. */
static void write_checkpoint(const char *name, const char *model, moe_dtype dtype, uint32_t shards)
{
    ck c;
    ck_init(&c, model, dtype, 1);
    ck_split(&c, shards);
    ck_write(&c, in(name));
    ck_fini(&c);
}

static void pack_synthetic(const char *model, const char *dtype, const char *out)
{
    expect(pack("--synthetic", model, "--dtype", dtype, "--out", out, NULL), 0, "32 experts");
}

/* ---- what works ---- */

static void a_checkpoint_and_its_synthetic_model_become_the_same_store(void **state)
{
    (void)state;
    const char *const models[] = {"switch-tiny", "switch-tiny-pregated"};
    for (int i = 0; i < 2; i++) {
        for (uint32_t shards = 1; shards <= 3; shards += 2) {
            write_checkpoint("ck", models[i], MOE_BF16, shards);
            expect(pack(in("ck"), "--out", in("a.store"), NULL), 0, "32 experts of bf16");
            pack_synthetic(models[i], "bf16", in("b.store"));
            expect(pack("verify", in("a.store"), NULL), 0, "117 extents read, 0 bad");
            assert_same_weights(in("a.store"), in("b.store"));
            remove_tree(in("ck"));
            remove_tree(in("a.store"));
            remove_tree(in("b.store"));
        }
    }
}

/* Four blocks a stack: a router in the first only, pre-gates in all but the last. */
static void a_pregated_model_of_many_blocks_is_accepted(void **state)
{
    (void)state;
    ck c;
    ck_init(&c, "switch-tiny-pregated", MOE_BF16, 1);
    ck_config_replace(&c, "\"num_sparse_encoder_layers\": 2", "\"num_sparse_encoder_layers\": 4");
    ck_config_replace(&c, "\"num_sparse_decoder_layers\": 2", "\"num_sparse_decoder_layers\": 4");
    char config[sizeof c.config];
    memcpy(config, c.config, sizeof config);
    ck_fini(&c);
    ck_init_config(&c, config, MOE_BF16, 1);
    ck_write(&c, in("ck"));
    ck_fini(&c);
    expect(pack(in("ck"), "--out", in("a.store"), NULL), 0, "64 experts");
    const run *r = pack("inspect", in("a.store"), "--json", NULL);
    expect(r, 0, "\"encoder.block.0.layer.1.mlp.router.classifier.weight\"");
    expect(r, 0, "\"decoder.block.2.layer.2.mlp.pregate.classifier.weight\"");
    assert_null(strstr(r->output, "decoder.block.1.layer.2.mlp.router"));
    assert_null(strstr(r->output, "decoder.block.3.layer.2.mlp.pregate"));
}

static void dtypes_are_converted_when_asked(void **state)
{
    (void)state;
    write_checkpoint("f32", "switch-tiny", MOE_F32, 2);
    write_checkpoint("f16", "switch-tiny", MOE_F16, 1);
    expect(pack(in("f32"), "--out", in("keep.store"), NULL), 0, "of f32");
    pack_synthetic("switch-tiny", "f32", in("f32.store"));
    assert_same_weights(in("keep.store"), in("f32.store"));
    expect(pack(in("f32"), "--dtype", "bf16", "--out", in("a.store"), NULL), 0, "of bf16");
    pack_synthetic("switch-tiny", "bf16", in("bf16.store"));
    assert_same_weights(in("a.store"), in("bf16.store"));
    expect(pack(in("f16"), "--out", in("f16.store"), NULL), 0, "of f16");
    expect(pack(in("f16"), "--dtype", "f32", "--out", in("b.store"), NULL), 0, "of f32");
    expect(pack("verify", in("b.store"), NULL), 0, "0 bad");
}

/* One expert in another dtype: slots are of one size, so somebody has to choose. */
static void mixed_dtypes_need_a_choice(void **state)
{
    (void)state;
    ck c;
    ck_init(&c, "switch-tiny", MOE_BF16, 1);
    snprintf(ck_find(&c, "encoder.block.1.layer.1.mlp.experts.expert_3.wo.weight")->dtype, 8,
             "F32");
    snprintf(ck_find(&c, "encoder.block.1.layer.1.mlp.router.classifier.weight")->dtype, 8, "F32");
    ck_write(&c, in("ck"));
    ck_fini(&c);
    expect(pack(in("ck"), "--out", in("a.store"), NULL), 1, "expert_3.wo.weight' is f32");
    expect(pack(in("ck"), "--dtype", "bf16", "--out", in("a.store"), NULL), 0, "of bf16");
    pack_synthetic("switch-tiny", "bf16", in("b.store"));
    assert_same_weights(in("a.store"), in("b.store"));
}

static void small_segments_and_single_buffers_change_nothing_but_the_files(void **state)
{
    (void)state;
    write_checkpoint("ck", "switch-tiny", MOE_BF16, 1);
    expect(pack(in("ck"), "--segment-bytes", "64KiB", "--buffers", "2", "--writers", "1",
                "--commit-every", "1", "--out", in("a.store"), NULL),
           0, "32 experts");
    assert_true(n_segments(in("a.store")) > 8);
    expect(pack("verify", in("a.store"), "--verify-threads", "1", NULL), 0, "0 bad");
    expect(pack("verify", in("a.store"), "--no-direct", NULL), 0, "0 bad");
    expect(pack(in("ck"), "--no-direct", "--segment-bytes", "64KiB", "--out", in("b.store"), NULL),
           0, "32 experts");
    assert_same_weights(in("a.store"), in("b.store"));
}

/* The bytes of each expert, read from the segments, against the generator. */
static void assert_experts_of_seed(const char *store, moe_dtype dtype, uint64_t seed)
{
    xs_catalog *c = NULL;
    assert_int_equal(MOE_OK, xs_catalog_open(store, &c, NULL));
    const xs_catalog_info *info = xs_catalog_get_info(c);
    char *expected = malloc(info->expert_bytes), *stored = malloc(info->expert_bytes);
    for (uint32_t i = 0; i < info->shape.n_experts_total; i++) {
        const xs_extent *e = &xs_catalog_expert(c, i)->extent;
        char path[PATH];
        xs_catalog_segment_path(c, e->segment, path, sizeof path);
        int fd = open(path, O_RDONLY);
        assert_int_equal(MOE_OK,
                         moe_pread_exact(fd, stored, info->expert_bytes, e->off, path, NULL));
        close(fd);
        xs_synthetic_expert(&info->shape, dtype, seed, i, expected);
        assert_memory_equal(expected, stored, info->expert_bytes);
    }
    free(expected);
    free(stored);
    xs_catalog_close(c);
}

/* Experts of 3.1 MiB: several chunks, several buffers, odd file offsets, windows that end in the
 * middle of an element. */
static void large_experts_arrive_whole(void **state)
{
    (void)state;
    ck c;
    ck_init(&c, "switch-tiny", MOE_BF16, 3);
    ck_config_replace(&c, "\"d_model\": 32", "\"d_model\": 776");
    ck_config_replace(&c, "\"d_ff\": 64", "\"d_ff\": 1048");
    ck_config_replace(&c, "\"num_experts\": 8", "\"num_experts\": 3");
    char config[sizeof c.config];
    memcpy(config, c.config, sizeof config);
    ck_fini(&c);
    const moe_dtype dtypes[] = {MOE_BF16, MOE_F32};
    for (int i = 0; i < 2; i++) {
        ck_init_config(&c, config, dtypes[i], 3);
        ck_split(&c, 2);
        ck_write(&c, in("ck"));
        ck_fini(&c);
        expect(pack(in("ck"), "--out", in("keep.store"), NULL), 0, "12 experts");
        expect(pack(in("ck"), "--dtype", "bf16", "--buffer-bytes", "1MiB", "--buffers", "2",
                    "--no-direct", "--out", in("bf16.store"), NULL),
               0, "12 experts of bf16");
        assert_experts_of_seed(in("keep.store"), dtypes[i], 3);
        assert_experts_of_seed(in("bf16.store"), MOE_BF16, 3);
        expect(pack("verify", in("keep.store"), NULL), 0, "0 bad");
        expect(pack("verify", in("bf16.store"), NULL), 0, "0 bad");
        remove_tree(in("ck"));
        remove_tree(in("keep.store"));
        remove_tree(in("bf16.store"));
    }
}

static void the_files_beside_the_weights_are_kept_byte_for_byte(void **state)
{
    (void)state;
    static char blob[300000];
    for (size_t i = 0; i < sizeof blob; i++) {
        blob[i] = (char)(i * 2654435761u >> 13);
    }
    memcpy(blob + 1, "\12\325\247\22", 4); /* field 1 of a protocol buffer, 299989 bytes long */
    const char *const names[] = {"generation_config.json", "spiece.model", "tokenizer.json",
                                 "tokenizer_config.json", "special_tokens_map.json"};
    write_checkpoint("ck", "switch-tiny", MOE_BF16, 1);
    for (size_t i = 0; i < 5; i++) {
        char name[64];
        snprintf(name, sizeof name, "ck/%s", names[i]);
        write_file(in(name), blob + i, i == 0 ? 0 : sizeof blob - 7 * i);
    }
    write_file(in("ck/README.md"), "not kept", 8);
    expect(pack(in("ck"), "--out", in("a.store"), NULL), 0, "32 experts");
    xs_catalog *c = NULL;
    assert_int_equal(MOE_OK, xs_catalog_open(in("a.store"), &c, NULL));
    assert_int_equal(6, xs_catalog_get_info(c)->n_files);
    for (uint32_t i = 0; i < 6; i++) {
        const char *name = NULL;
        const void *data = NULL;
        size_t bytes = 0, expected_bytes = 0;
        char path[64], *expected = NULL;
        xs_catalog_file(c, i, &name, &data, &bytes);
        snprintf(path, sizeof path, "ck/%s", name);
        assert_int_equal(MOE_OK,
                         moe_file_read(in(path), 1 << 20, &expected, &expected_bytes, NULL));
        assert_int_equal(expected_bytes, bytes);
        assert_memory_equal(expected, data, bytes);
        free(expected);
    }
    xs_catalog_close(c);
    expect(pack("inspect", in("a.store"), NULL), 0, "spiece.model (299993 bytes)");
    expect(pack("inspect", in("a.store"), "--json", NULL), 0, "\"n_experts\": 32");
}

/* The tied matrix under its other names, and a bias that nobody reads. */
static void copies_of_a_tied_embedding_are_left_out(void **state)
{
    (void)state;
    ck c;
    ck_init(&c, "switch-tiny", MOE_BF16, 1);
    ck_add(&c, "lm_head.weight", "shared.weight");
    ck_add(&c, "encoder.embed_tokens.weight", "shared.weight");
    ck_add(&c, "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
           "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
    ck_write(&c, in("ck"));
    expect(pack(in("ck"), "--out", in("a.store"), NULL), 0, "3 tensors left out");
    pack_synthetic("switch-tiny", "bf16", in("b.store"));
    assert_same_weights(in("a.store"), in("b.store"));

    ck_remove(&c, "shared.weight"); /* saved under one of its other names only */
    ck_remove(&c, "lm_head.weight");
    ck_write(&c, in("ck2"));
    expect(pack(in("ck2"), "--out", in("c.store"), NULL), 0, "85 dense tensors");
    ck_fini(&c);
}

static void an_untied_model_keeps_its_head_and_embeddings(void **state)
{
    (void)state;
    ck c;
    ck_init(&c, "switch-tiny", MOE_BF16, 1);
    ck_config_replace(&c, "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    ck_write(&c, in("no-head"));
    expect(pack(in("no-head"), "--out", in("a.store"), NULL), 1, "'lm_head.weight' is missing");
    ck_add(&c, "lm_head.weight", "shared.weight");
    ck_write(&c, in("head"));
    expect(pack(in("head"), "--out", in("a.store"), NULL), 0, "86 dense tensors");
    ck_add(&c, "decoder.embed_tokens.weight", "shared.weight");
    ck_add(&c, "encoder.embed_tokens.weight", "shared.weight");
    ck_write(&c, in("all"));
    expect(pack(in("all"), "--out", in("b.store"), NULL), 0, "88 dense tensors");
    ck_fini(&c);
}

/* ---- damage ---- */

static void flip_byte(const char *path, long at)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(0, fseek(f, at, SEEK_SET));
    int was = fgetc(f);
    assert_int_not_equal(EOF, was);
    fseek(f, at, SEEK_SET);
    fputc(was ^ 1, f);
    fclose(f);
}

static void verify_names_what_a_flipped_byte_damaged(void **state)
{
    (void)state;
    pack_synthetic("switch-tiny", "bf16", in("a.store"));
    char segment[PATH];
    snprintf(segment, sizeof segment, "%s", in("a.store/segments/000000.seg"));
    xs_catalog *c = NULL;
    assert_int_equal(MOE_OK, xs_catalog_open(in("a.store"), &c, NULL));
    const xs_extent *expert = &xs_catalog_expert(c, 19)->extent; /* decoder block 0, expert 3 */
    const xs_extent *norm = NULL;
    for (uint32_t i = 0; norm == NULL; i++) {
        const xs_tensor_record *t = xs_catalog_tensor(c, i);
        norm = strcmp(t->name, "encoder.final_layer_norm.weight") == 0 ? &t->extent : NULL;
    }
    long last = (long)(expert->off + expert->payload_bytes - 1);
    flip_byte(segment, last);
    expect(pack("verify", in("a.store"), NULL), 1, "expert 3 of dec0 (segment 000000, offset");
    expect(pack("verify", in("a.store"), NULL), 1, "1 of 117 extents are bad");
    flip_byte(segment, (long)(norm->off + norm->padded_bytes - 1));
    expect(pack("verify", in("a.store"), NULL), 1, "'encoder.final_layer_norm.weight'");
    expect(pack("verify", in("a.store"), "--json", NULL), 1, "\"n_bad\": 2");
    expect(pack("verify", in("a.store"), NULL), 1, "padding is not zero");
    flip_byte(segment, last);
    flip_byte(segment, (long)(norm->off + norm->padded_bytes - 1));
    expect(pack("verify", in("a.store"), NULL), 0, "0 bad");
    flip_byte(in("a.store/catalog/data.mdb"), 9000);
    expect(pack("verify", in("a.store"), NULL), 1, "does not match its checksum");
    xs_catalog_close(c);
}

/* ---- bad input ---- */

#define ENC1 "encoder.block.1.layer.1.mlp."
#define DEC3 "decoder.block.3.layer.2.mlp."

typedef struct bad_input {
    const char *model;
    void (*bend)(ck *c);  /* before writing; may be NULL */
    void (*damage)(void); /* after writing, in dir/ck; may be NULL */
    const char *error;
} bad_input;

static void no_expert(ck *c)
{
    ck_remove(c, DEC3 "experts.expert_5.wi.weight");
}
static void one_expert_too_many(ck *c)
{
    ck_add(c, DEC3 "experts.expert_8.wi.weight", DEC3 "experts.expert_7.wi.weight");
}
static void odd_expert_tensor(ck *c)
{
    ck_add(c, DEC3 "experts.expert_0.wi_1.weight", DEC3 "experts.expert_7.wi.weight");
}
static void no_router(ck *c)
{
    ck_remove(c, ENC1 "router.classifier.weight");
}
static void router_bias(ck *c)
{
    ck_add(c, ENC1 "router.classifier.bias", "encoder.final_layer_norm.weight");
}
static void stray_pregate(ck *c)
{
    ck_add(c, ENC1 "pregate.classifier.weight", ENC1 "router.classifier.weight");
}
static void no_pregate(ck *c)
{
    ck_remove(c, ENC1 "pregate.classifier.weight");
}
static void second_router(ck *c)
{
    ck_add(c, DEC3 "router.classifier.weight", ENC1 "router.classifier.weight");
}
static void last_pregate(ck *c)
{
    ck_add(c, DEC3 "pregate.classifier.weight", ENC1 "router.classifier.weight");
}
static void router_in_a_dense_layer(ck *c)
{
    ck_add(c, "encoder.block.2.layer.1.mlp.router.classifier.weight",
           ENC1 "router.classifier.weight");
}
static void all_layers_sparse(ck *c)
{
    ck_config_replace(c, "\"num_sparse_encoder_layers\": 2", "\"num_sparse_encoder_layers\": 4");
}
static void no_layer_sparse(ck *c)
{
    ck_config_replace(c, "\"num_sparse_encoder_layers\": 2", "\"num_sparse_encoder_layers\": 0");
}
static void nothing_sparse(ck *c)
{
    no_layer_sparse(c);
    ck_config_replace(c, "\"num_sparse_decoder_layers\": 2", "\"num_sparse_decoder_layers\": 0");
}
static void fewer_layers(ck *c)
{
    ck_config_replace(c, "\"num_decoder_layers\": 4", "\"num_decoder_layers\": 2");
    ck_config_replace(c, "\"num_sparse_decoder_layers\": 2", "\"num_sparse_decoder_layers\": 1");
}
static void other_width(ck *c)
{
    ck_config_replace(c, "\"d_ff\": 64", "\"d_ff\": 96");
}
static void wrong_shape(ck *c)
{
    ck_find(c, "shared.weight")->dims[1] = 31;
}
static void wrong_dtype(ck *c)
{
    snprintf(ck_find(c, "decoder.final_layer_norm.weight")->dtype, 8, "I64");
}
static void gated(ck *c)
{
    ck_add(c, "encoder.block.0.layer.1.mlp.wi_0.weight", "encoder.block.0.layer.1.mlp.wi.weight");
}
static void unknown_tensor(ck *c)
{
    ck_add(c, "encoder.block.0.layer.0.SelfAttention.q.bias", "encoder.final_layer_norm.weight");
}
static void other_architecture(ck *c)
{
    ck_config_replace(c, "switch_transformers", "mixtral");
}
static void broken_config(ck *c)
{
    ck_config_replace(c, "\"d_model\":", "\"d_model\"");
}
static void twice(ck *c)
{
    ck_add(c, "shared.weight", "shared.weight");
}
static void in_two_shards(ck *c)
{
    ck_split(c, 2);
    ck_add(c, "shared.weight", "shared.weight")->shard = 1;
}
static void overlapping(ck *c)
{
    ck_find(c, "decoder.final_layer_norm.weight")->shift_bytes = -2;
}
static void out_of_range(ck *c)
{
    c->tensors[c->n - 1].shift_bytes = 2;
}
static void before_the_data(ck *c)
{
    c->tensors[0].shift_bytes = -2;
}
static void three_shards(ck *c)
{
    ck_split(c, 3);
}

#define SHARD2 "ck/model-00002-of-00003.safetensors"
static void lose_a_shard(void)
{
    assert_int_equal(0, unlink(in(SHARD2)));
}
static void cut_a_shard(void)
{
    struct stat sb;
    assert_int_equal(0, stat(in(SHARD2), &sb));
    assert_int_equal(0, truncate(in(SHARD2), sb.st_size - 1));
}
static void empty_a_shard(void)
{
    assert_int_equal(0, truncate(in(SHARD2), 0));
}
static void cut_a_header(void)
{
    assert_int_equal(0, truncate(in(SHARD2), 300));
}
static void swap_two_shards(void)
{
    assert_int_equal(0, rename(in(SHARD2), in("ck/tmp")));
    assert_int_equal(0, rename(in("ck/model-00001-of-00003.safetensors"), in(SHARD2)));
    assert_int_equal(0, rename(in("ck/tmp"), in("ck/model-00001-of-00003.safetensors")));
}
static void break_the_index(void)
{
    assert_int_equal(0, truncate(in("ck/model.safetensors.index.json"), 100));
}
static void break_the_header(void)
{
    flip_byte(in("ck/model.safetensors"), 9);
}
static void huge_header(void)
{
    write_file(in("ck/model.safetensors"), "\377\377\377\377\377\377\377\377{}", 10);
}
static void lose_the_config(void)
{
    assert_int_equal(0, unlink(in("ck/config.json")));
}
static void lose_the_weights(void)
{
    assert_int_equal(0, unlink(in("ck/model.safetensors")));
}
static void only_a_pickle(void)
{
    assert_int_equal(0, rename(in("ck/model.safetensors"), in("ck/pytorch_model.bin")));
}

static void other_bytes_as_tokenizer(void)
{
    write_file(in("ck/spiece.model"), "\377these are no pieces", 21);
}
static void empty_tokenizer(void)
{
    write_file(in("ck/spiece.model"), "", 0);
}

static void each_bad_input_gets_one_clear_error(void **state)
{
    (void)state;
    static const bad_input cases[] = {
        {"switch-tiny", no_expert, NULL, "'" DEC3 "experts.expert_5.wi.weight' is missing"},
        {"switch-tiny", one_expert_too_many, NULL, "num_experts is 8"},
        {"switch-tiny", odd_expert_tensor, NULL, "'" DEC3 "experts.expert_0.wi_1.weight'"},
        {"switch-tiny", no_router, NULL, "'" ENC1 "router.classifier.weight' is missing"},
        {"switch-tiny", router_bias, NULL,
         "'" ENC1 "router.classifier.bias': only gates without bias"},
        {"switch-tiny", stray_pregate, NULL, "describes an ordinary model"},
        {"switch-tiny-pregated", no_pregate, NULL,
         "'" ENC1 "pregate.classifier.weight' is missing"},
        {"switch-tiny-pregated", second_router, NULL,
         "'" DEC3 "router.classifier.weight': one gate too many"},
        {"switch-tiny-pregated", last_pregate, NULL,
         "'" DEC3 "pregate.classifier.weight': one gate too many"},
        {"switch-tiny", router_in_a_dense_layer, NULL, "makes layer 2 of the encoder sparse"},
        {"switch-tiny", all_layers_sparse, NULL,
         "'encoder.block.0.layer.1.mlp.wi.weight': it makes layer 0 of the encoder dense"},
        {"switch-tiny", no_layer_sparse, NULL, "num_sparse_encoder_layers"},
        {"switch-tiny", nothing_sparse, NULL, "no sparse layer"},
        {"switch-tiny", fewer_layers, NULL, "the decoder has 2 layers"},
        {"switch-tiny", other_width, NULL, "has shape [64, 32], config.json asks for [96, 32]"},
        {"switch-tiny", wrong_shape, NULL, "'shared.weight' has shape [512, 31]"},
        {"switch-tiny", wrong_dtype, NULL, "'decoder.final_layer_norm.weight' has dtype I64"},
        {"switch-tiny", gated, NULL, "'encoder.block.0.layer.1.mlp.wi_0.weight' is no part of"},
        {"switch-tiny", unknown_tensor, NULL, "SelfAttention.q.bias' is no part of"},
        {"switch-tiny", other_architecture, NULL, "only switch_transformers is supported"},
        {"switch-tiny", broken_config, NULL, "config.json is not JSON"},
        {"switch-tiny", twice, NULL, "'shared.weight': it is there twice"},
        {"switch-tiny", in_two_shards, NULL, "'shared.weight' is in both"},
        {"switch-tiny", overlapping, NULL, "overlap"},
        {"switch-tiny", out_of_range, NULL, "is truncated"},
        {"switch-tiny", before_the_data, NULL, "data_offsets is not [begin, end]"},
        {"switch-tiny", three_shards, lose_a_shard, "-00002-of-00003.safetensors is missing"},
        {"switch-tiny", three_shards, cut_a_shard, "-00002-of-00003.safetensors is truncated"},
        {"switch-tiny", three_shards, empty_a_shard, "or truncated: 0 bytes long"},
        {"switch-tiny", three_shards, cut_a_header, "or truncated: 300 bytes long"},
        {"switch-tiny", three_shards, swap_two_shards, "index and shards are of different"},
        {"switch-tiny", three_shards, break_the_index, "model.safetensors.index.json"},
        {"switch-tiny", NULL, break_the_header, "header is not a JSON object"},
        {"switch-tiny", NULL, huge_header, "not a safetensors file"},
        {"switch-tiny", NULL, lose_the_config, "config.json"},
        {"switch-tiny", NULL, lose_the_weights, "neither model.safetensors nor"},
        {"switch-tiny", NULL, only_a_pickle, "model.save_pretrained('.')"},
        {"switch-tiny", NULL, other_bytes_as_tokenizer,
         "ck/spiece.model: not a sentencepiece model, or damaged: byte 0 of 21"},
        {"switch-tiny", NULL, empty_tokenizer,
         "ck/spiece.model: not a sentencepiece model: it has"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ck c;
        ck_init(&c, cases[i].model, MOE_BF16, 1);
        if (cases[i].bend != NULL) {
            cases[i].bend(&c);
        }
        ck_write(&c, in("ck"));
        ck_fini(&c);
        if (cases[i].damage != NULL) {
            cases[i].damage();
        }
        const run *r = pack(in("ck"), "--out", in("a.store"), NULL);
        if (r->code != 1 || strstr(r->output, cases[i].error) == NULL) {
            fail_msg("case %zu, '%s': %d: %s", i, cases[i].error, r->code, r->output);
        }
        if (exists(in("a.store")) || exists(in("a.store.partial"))) {
            fail_msg("case %zu left something behind", i);
        }
        remove_tree(in("ck"));
    }
}

static void wrong_usage_is_explained(void **state)
{
    (void)state;
    expect(pack("--out", in("a.store"), NULL), 2, "either one checkpoint directory or --synthetic");
    expect(pack("--synthetic", "switch-tiny", NULL), 2, "--out NAME.store is missing");
    expect(pack(in("x"), "--synthetic", "switch-tiny", "--out", in("a.store"), NULL), 2, "either");
    expect(pack("verify", NULL), 2, "take one store");
    expect(pack(in("x"), "--out", in("a.store"), "--buffer-bytes", "1500KiB", NULL), 2, "multiple");
    expect(pack("--synthetic", "switch-huge", "--out", in("a.store"), NULL), 1, "switch-large-128");
    expect(pack(in("nothing-here"), "--out", in("a.store"), NULL), 1, "nothing-here");
    expect(pack(program, "--out", in("a.store"), NULL), 1, "is a file");
    expect(pack("--synthetic", "switch-tiny", "--out", in("no/such/dir/a.store"), NULL), 1,
           "no/such/dir/a.store.partial");
}

/* ---- interruptions ---- */

static void a_killed_run_goes_on_and_ends_in_the_same_store(void **state)
{
    (void)state;
    pack_synthetic("switch-tiny", "bf16", in("whole.store"));
    const struct {
        const char *kill_at, *resumed; /* what the next run says; commits are every 4 items */
    } cases[] = {
        {"after-item:1", "32 experts"},
        {"after-item:30", "28 of 117 experts and tensors done"},
        {"after-item:36", "32 of 117 experts and tensors done"}, /* before its commit */
        {"after-commit:1", "4 of 117 experts and tensors done"},
        {"after-commit:9", "36 of 117 experts and tensors done"},
        {"before-rename", "117 of 117 experts and tensors done"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const run *r = pack("--synthetic", "switch-tiny", "--out", in("a.store"), "--commit-every",
                            "4", "--test-kill-at", cases[i].kill_at, NULL);
        expect(r, -SIGKILL, "");
        assert_false(exists(in("a.store")));
        expect(pack("verify", in("a.store.partial"), NULL), 1,
               "a.store.partial is an unfinished store: run expert-pack again");
        r = pack("--synthetic", "switch-tiny", "--out", in("a.store"), NULL);
        expect(r, 0, cases[i].resumed);
        assert_false(exists(in("a.store.partial")));
        expect(pack("verify", in("a.store"), NULL), 0, "0 bad");
        assert_same_weights(in("whole.store"), in("a.store"));
        remove_tree(in("a.store"));
    }
}

/* A model of 1.2 GB, so that there is time for a signal; only the beginning is ever written. */
static void a_signal_stops_it_between_two_items(void **state)
{
    (void)state;
    char out[PATH];
    snprintf(out, sizeof out, "%s", in("a.store"));
    const char *const argv[] = {program, "--synthetic", "switch-base-8",   "--commit-every", "1",
                                "--out", out,           "--segment-bytes", "64MiB",          NULL};
    const int signals[] = {SIGINT, SIGTERM};
    for (int i = 0; i < 2; i++) {
        int fd = -1;
        pid_t pid = start(argv, &fd);
        while (!exists(in("a.store.partial/segments/000000.seg")) && kill(pid, 0) == 0) {
            usleep(1000);
        }
        kill(pid, signals[i]);
        const run *r = finish(pid, fd);
        expect(r, 130, "experts and tensors done; ");
        expect(r, 130, "run the same command again to go on");
        assert_false(exists(in("a.store")));
        remove_tree(in("a.store.partial"));
    }
}

/* Killed again and again, each time a little further. */
static void a_run_killed_at_every_commit_still_arrives(void **state)
{
    (void)state;
    write_checkpoint("ck", "switch-tiny", MOE_BF16, 2);
    int kills = 0;
    while (pack(in("ck"), "--out", in("a.store"), "--commit-every", "9", "--test-kill-at",
                "after-commit:1", NULL)
               ->code == -SIGKILL) {
        kills++;
        assert_true(kills < 20);
    }
    assert_int_equal(13, kills); /* 117 items, 9 a run; then a run with nothing left to commit */
    expect(pack("verify", in("a.store"), NULL), 0, "0 bad");
}

static void killed_after_the_rename_the_store_is_whole(void **state)
{
    (void)state;
    expect(pack("--synthetic", "switch-tiny", "--out", in("a.store"), "--test-kill-at",
                "after-rename", NULL),
           -SIGKILL, "");
    assert_false(exists(in("a.store.partial")));
    expect(pack("verify", in("a.store"), NULL), 0, "0 bad");
}

static void an_existing_store_is_replaced_only_by_force(void **state)
{
    (void)state;
    pack_synthetic("switch-tiny", "bf16", in("a.store"));
    pack_synthetic("switch-tiny", "f32", in("f32.store"));
    const char *f32[] = {"--synthetic", "switch-tiny", "--dtype", "f32"};
    expect(pack(f32[0], f32[1], f32[2], f32[3], "--out", in("a.store"), NULL), 1, "--force");
    expect(pack("inspect", in("a.store"), NULL), 0, "bf16");
    const char *const kills[] = {"after-item:3", "before-rename"};
    for (int i = 0; i < 2; i++) { /* until the rename the old one stays */
        expect(pack(f32[0], f32[1], f32[2], f32[3], "--out", in("a.store"), "--force",
                    "--test-kill-at", kills[i], NULL),
               -SIGKILL, "");
        expect(pack("inspect", in("a.store"), NULL), 0, "bf16");
    }
    expect(pack(f32[0], f32[1], f32[2], f32[3], "--out", in("a.store"), "--force", "--test-kill-at",
                "after-rename", NULL),
           -SIGKILL, "");
    assert_same_weights(in("f32.store"), in("a.store"));
    expect(pack("--synthetic", "switch-tiny", "--out", in("a.store"), "--force", NULL), 0, "bf16");
    assert_false(exists(in("a.store.partial")));
    expect(pack("verify", in("a.store"), NULL), 0, "0 bad");
}

static void what_is_not_a_store_is_never_replaced(void **state)
{
    (void)state;
    assert_int_equal(0, mkdir(in("home"), 0777));
    write_file(in("home/thesis.tex"), "x", 1);
    expect(pack("--synthetic", "switch-tiny", "--out", in("home"), "--force", NULL), 1,
           "is not a store");
    write_file(in("file"), "x", 1);
    expect(pack("--synthetic", "switch-tiny", "--out", in("file"), "--force", NULL), 1,
           "is not a store");
    assert_true(exists(in("home/thesis.tex")) && exists(in("file")));
}

static void another_jobs_leftovers_are_not_resumed(void **state)
{
    (void)state;
    pack_synthetic("switch-tiny", "bf16", in("whole.store"));
    expect(pack("--synthetic", "switch-tiny", "--seed", "2", "--out", in("a.store"),
                "--commit-every", "4", "--test-kill-at", "after-commit:2", NULL),
           -SIGKILL, "");
    expect(pack("--synthetic", "switch-tiny", "--out", in("a.store"), NULL), 1,
           "begun from another checkpoint");
    expect(pack("--synthetic", "switch-tiny", "--seed", "2", "--dtype", "f32", "--out",
                in("a.store"), NULL),
           1, "begun from another checkpoint");
    expect(pack("--synthetic", "switch-tiny", "--out", in("a.store"), "--force", NULL), 0,
           "32 experts");
    assert_same_weights(in("whole.store"), in("a.store"));
}

static void files_that_are_not_ours_are_never_removed(void **state)
{
    (void)state;
    expect(pack("--synthetic", "switch-tiny", "--seed", "2", "--out", in("a.store"),
                "--test-kill-at", "after-commit:1", NULL),
           -SIGKILL, "");
    write_file(in("a.store.partial/segments/thesis.tex"), "x", 1);
    expect(pack("--synthetic", "switch-tiny", "--out", in("a.store"), "--force", NULL), 1,
           "cannot remove");
    assert_true(exists(in("a.store.partial/segments/thesis.tex")));
}

static void a_changed_checkpoint_is_not_resumed(void **state)
{
    (void)state;
    write_checkpoint("ck", "switch-tiny", MOE_BF16, 1);
    expect(pack(in("ck"), "--out", in("a.store"), "--test-kill-at", "after-commit:1", NULL),
           -SIGKILL, "");
    usleep(20000);
    flip_byte(in("ck/model.safetensors"), 100000);
    expect(pack(in("ck"), "--out", in("a.store"), NULL), 1, "begun from another checkpoint");
}

static void lost_segments_of_an_earlier_run_are_noticed(void **state)
{
    (void)state;
    expect(pack("--synthetic", "switch-tiny", "--out", in("a.store"), "--commit-every", "4",
                "--test-kill-at", "after-commit:2", NULL),
           -SIGKILL, "");
    assert_int_equal(0, unlink(in("a.store.partial/segments/000000.seg")));
    expect(pack("--synthetic", "switch-tiny", "--out", in("a.store"), NULL), 1,
           "is missing or cut short");
}

static void two_packers_do_not_share_a_directory(void **state)
{
    (void)state;
    assert_int_equal(MOE_OK, xs_store_dir_make(in("a.store.partial"), NULL));
    int fd = open(in("a.store.partial"), O_RDONLY | O_DIRECTORY);
    assert_int_equal(0, flock(fd, LOCK_EX));
    expect(pack("--synthetic", "switch-tiny", "--out", in("a.store"), NULL), 1,
           "another expert-pack is writing");
    close(fd);
    pack_synthetic("switch-tiny", "bf16", in("a.store"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
        TEST(a_checkpoint_and_its_synthetic_model_become_the_same_store),
        TEST(a_pregated_model_of_many_blocks_is_accepted),
        TEST(dtypes_are_converted_when_asked),
        TEST(mixed_dtypes_need_a_choice),
        TEST(small_segments_and_single_buffers_change_nothing_but_the_files),
        TEST(large_experts_arrive_whole),
        TEST(the_files_beside_the_weights_are_kept_byte_for_byte),
        TEST(copies_of_a_tied_embedding_are_left_out),
        TEST(an_untied_model_keeps_its_head_and_embeddings),
        TEST(verify_names_what_a_flipped_byte_damaged),
        TEST(each_bad_input_gets_one_clear_error),
        TEST(wrong_usage_is_explained),
        TEST(a_killed_run_goes_on_and_ends_in_the_same_store),
        TEST(a_signal_stops_it_between_two_items),
        TEST(a_run_killed_at_every_commit_still_arrives),
        TEST(killed_after_the_rename_the_store_is_whole),
        TEST(an_existing_store_is_replaced_only_by_force),
        TEST(what_is_not_a_store_is_never_replaced),
        TEST(another_jobs_leftovers_are_not_resumed),
        TEST(files_that_are_not_ours_are_never_removed),
        TEST(a_changed_checkpoint_is_not_resumed),
        TEST(lost_segments_of_an_earlier_run_are_noticed),
        TEST(two_packers_do_not_share_a_directory),
    };
    if (argc != 2) {
        fprintf(stderr, "usage: test_pack EXPERT_PACK\n");
        return 2;
    }
    program = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
