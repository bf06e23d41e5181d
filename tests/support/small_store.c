/* small_store.c - see small_store.h. Failures are asserted: a test without its store is no test. */
#include "tests/support/small_store.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checksum.h"
#include "common/file.h"
#include "expert-store/catalog/catalog.h"
#include "expert-store/catalog/synthetic.h"

enum { N_SEGMENTS = 2, FIRST_OFF = 3 * XS_EXTENT_ALIGN, MAX_CHUNKS = 8 };

/* 2 * 2201 * 256 bf16 elements: 2.15 MiB, not a multiple of 4096. */
static const char config_json[] =
    "{\"architectures\": [\"SwitchTransformersForConditionalGeneration\"],"
    " \"model_type\": \"switch_transformers\", \"vocab_size\": 64, \"d_model\": 256,"
    " \"d_ff\": 2201, \"d_kv\": 32, \"num_heads\": 8, \"num_layers\": 2,"
    " \"num_decoder_layers\": 2, \"num_experts\": 4, \"num_sparse_encoder_layers\": 1,"
    " \"num_sparse_decoder_layers\": 1, \"encoder_sparse_step\": 2, \"decoder_sparse_step\": 2,"
    " \"dense_act_fn\": \"relu\", \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\"}";

void small_store_shape(moe_model_shape *out)
{
    moe_status st = moe_model_shape_parse(config_json, sizeof config_json - 1, out, NULL);
    MOE_ASSERT(st == MOE_OK && out->n_experts_total == SMALL_STORE_EXPERTS);
}

static void put_expert(xs_catalog_writer *w, const moe_model_shape *shape, uint32_t index,
                       const int fds[N_SEGMENTS], uint64_t end[N_SEGMENTS])
{
    uint64_t payload = moe_expert_params(shape) * moe_dtype_bytes(SMALL_STORE_DTYPE);
    uint64_t padded = moe_align_up(payload, XS_EXTENT_ALIGN);
    char *bytes = calloc(1, padded);
    MOE_ASSERT(bytes != NULL);
    xs_synthetic_expert(shape, SMALL_STORE_DTYPE, SMALL_STORE_SEED, index, bytes);

    uint64_t hashes[MAX_CHUNKS];
    uint32_t n_chunks = moe_n_chunks(payload);
    MOE_ASSERT(n_chunks <= MAX_CHUNKS);
    for (uint32_t i = 0; i < n_chunks; i++) {
        uint64_t off = (uint64_t)i * MOE_CHUNK_BYTES;
        uint64_t left = payload - off;
        hashes[i] = moe_xxh3(bytes + off, left < MOE_CHUNK_BYTES ? left : MOE_CHUNK_BYTES);
    }
    uint32_t block = moe_block_of_expert(shape, index);
    moe_stack stack = block < shape->stack[MOE_ENCODER].n_blocks ? MOE_ENCODER : MOE_DECODER;
    uint32_t segment = index % N_SEGMENTS;
    uint64_t matrix_bytes = payload / 2;
    xs_expert_record rec = {
        .extent = {.segment = segment,
                   .n_chunks = n_chunks,
                   .off = end[segment],
                   .payload_bytes = payload,
                   .padded_bytes = padded,
                   .hashes = hashes},
        .layer = 1,
        .n_parts = 2,
        .parts = {{0, SMALL_STORE_DTYPE, shape->d_ff, shape->d_model},
                  {matrix_bytes, SMALL_STORE_DTYPE, shape->d_model, shape->d_ff}},
    };
    moe_status st = moe_pwrite_exact(fds[segment], bytes, padded, end[segment], "segment", NULL);
    MOE_ASSERT(st == MOE_OK);
    st = xs_catalog_put_expert(w, stack, 0, index % shape->n_experts, &rec, NULL);
    MOE_ASSERT(st == MOE_OK);
    end[segment] += padded;
    free(bytes);
}

void small_store_create(char out_dir[SMALL_STORE_PATH_BYTES])
{
    snprintf(out_dir, SMALL_STORE_PATH_BYTES, "small-store-XXXXXX");
    MOE_ASSERT(mkdtemp(out_dir) != NULL);
    char path[SMALL_STORE_PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/segments", out_dir);
    MOE_ASSERT(mkdir(path, 0777) == 0);

    int fds[N_SEGMENTS];
    uint64_t end[N_SEGMENTS];
    for (uint32_t i = 0; i < N_SEGMENTS; i++) {
        xs_segment_path(out_dir, i, path, sizeof path);
        fds[i] = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
        MOE_ASSERT(fds[i] >= 0);
        end[i] = FIRST_OFF;
    }
    xs_catalog_writer *w = NULL;
    moe_status st = xs_catalog_writer_open(out_dir, &w, NULL);
    MOE_ASSERT(st == MOE_OK);
    moe_model_shape shape;
    small_store_shape(&shape);
    for (uint32_t i = 0; i < SMALL_STORE_EXPERTS; i++) {
        put_expert(w, &shape, i, fds, end);
    }
    st = xs_catalog_put_file(w, "config.json", config_json, sizeof config_json - 1, NULL);
    MOE_ASSERT(st == MOE_OK);
    st = xs_catalog_writer_finish(w, "small", SMALL_STORE_DTYPE, NULL);
    MOE_ASSERT(st == MOE_OK);
    xs_catalog_writer_close(w);
    for (uint32_t i = 0; i < N_SEGMENTS; i++) {
        MOE_ASSERT(fsync(fds[i]) == 0); /* dirty pages would stay in the page cache */
        close(fds[i]);
    }
}

void small_store_remove(const char *dir)
{
    char command[SMALL_STORE_PATH_BYTES + 16];
    snprintf(command, sizeof command, "rm -r -- '%s'", dir);
    MOE_ASSERT(system(command) == 0);
}
