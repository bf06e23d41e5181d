/* Any bytes as the header of a safetensors file, and as a shard index: refused with a reason, or a
 * table whose offsets can be trusted. Input: 4 bytes little-endian, how much data the file has;
 * then the JSON. Run by tests/fuzz/replay.c or libFuzzer. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "expert-store/pack/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void must(int holds)
{
    if (!holds) {
        abort();
    }
}

static void check_index(const xs_st_index *index, uint64_t data_off, uint64_t file_bytes)
{
    for (uint32_t i = 0; i < index->n; i++) {
        const xs_st_tensor *t = &index->tensors[i];
        must(t->off >= data_off && t->off <= file_bytes && t->bytes <= file_bytes - t->off);
        must(i == 0 || strcmp(t[-1].name, t->name) < 0);
        uint64_t n = t->dtype != 0 ? moe_dtype_bytes(t->dtype) : 0;
        for (uint32_t d = 0; d < t->n_dims; d++) {
            n *= t->dims[d];
        }
        must(t->dtype == 0 || n == t->bytes);
        for (uint32_t k = 0; k < i; k++) {
            const xs_st_tensor *u = &index->tensors[k];
            must(t->bytes == 0 || u->bytes == 0 || t->off >= u->off + u->bytes ||
                 u->off >= t->off + t->bytes);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < 4) {
        return 0;
    }
    const char *json = (const char *)data + 4;
    size_t n = bytes - 4;
    uint64_t file_bytes = 8 + n + moe_load_le32(data);
    xs_st_index index = {0};
    xs_st_map map = {0};
    moe_err err = {0};
    if (xs_st_parse("f", json, n, file_bytes, &index, &err) == MOE_OK) {
        check_index(&index, 8 + n, file_bytes);
        xs_st_fini(&index);
    } else {
        must(err.status != MOE_OK && err.text[0] != '\0' && index.tensors == NULL);
    }
    err = (moe_err){0};
    if (xs_st_parse_map("f", json, n, &map, &err) == MOE_OK) {
        for (uint32_t i = 0; i < map.n; i++) {
            must(map.entries[i].file[0] != '.' && strchr(map.entries[i].file, '/') == NULL);
        }
        xs_st_map_fini(&map);
    } else {
        must(err.status != MOE_OK && err.text[0] != '\0' && map.entries == NULL);
    }
    return 0;
}
