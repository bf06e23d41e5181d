/* spiece_check.c - see spiece_check.h. Called by checkpoint.c at open. */
#include "expert-store/pack/spiece_check.h"

#include <stdbool.h>
#include <string.h>

enum { VARINT = 0, FIXED64 = 1, LENGTH_AND_BYTES = 2, FIXED32 = 5 };
enum { PIECES = 1 };

typedef struct reader {
    const uint8_t *at, *end;
} reader;

static bool read_varint(reader *r, uint64_t *out)
{
    *out = 0;
    for (unsigned shift = 0; shift < 64 && r->at < r->end; shift += 7) {
        uint8_t byte = *r->at++;
        *out |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            return true;
        }
    }
    return false;
}

static bool skip(reader *r, uint64_t bytes)
{
    if (bytes > (uint64_t)(r->end - r->at)) {
        return false;
    }
    r->at += bytes;
    return true;
}

/* One field: its key and what follows. */
static bool read_field(reader *r, uint64_t *out_number)
{
    uint64_t key, value;
    if (!read_varint(r, &key)) {
        return false;
    }
    *out_number = key >> 3;
    switch (key & 7) {
    case VARINT:
        return read_varint(r, &value);
    case FIXED64:
        return skip(r, 8);
    case LENGTH_AND_BYTES:
        return read_varint(r, &value) && skip(r, value);
    case FIXED32:
        return skip(r, 4);
    default:
        return false;
    }
}

moe_status xs_spiece_check(const void *data, size_t bytes, uint32_t *out_n_pieces, moe_err *err)
{
    const uint8_t *begin = data;
    reader r = {.at = begin, .end = begin + bytes};
    *out_n_pieces = 0;
    while (r.at < r.end) {
        const uint8_t *field = r.at;
        uint64_t number = 0;
        if (!read_field(&r, &number) || number == 0) {
            return MOE_FAIL(err, MOE_ERR_FORMAT,
                            "not a sentencepiece model, or damaged: byte %zu of %zu",
                            (size_t)(field - begin), bytes);
        }
        *out_n_pieces += number == PIECES;
    }
    return *out_n_pieces > 0
               ? MOE_OK
               : MOE_FAIL(err, MOE_ERR_FORMAT, "not a sentencepiece model: it has no pieces");
}
