/* tokenizer.c - see tokenizer.h. */
#include "gpu-worker/engine/tokenizer.h"

#include <stdbool.h>
#include <stdlib.h>

#include "gpu-worker/engine/sentencepiece_shim.h"

enum { EOS_ID = 1 }; /* and 0 is padding: the T5 family's convention */

struct gw_tokenizer {
    gw_spm *model; /* owned */
    uint32_t n_pieces;
};

moe_status gw_tokenizer_create(const void *model, size_t bytes, gw_tokenizer **out, moe_err *err)
{
    gw_tokenizer *t = calloc(1, sizeof *t);
    if (t == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "tokenizer");
    }
    char why[200] = "";
    if (gw_spm_create(model, bytes, &t->model, why, sizeof why) != 0) {
        free(t);
        return MOE_FAIL(err, MOE_ERR_FORMAT, "not a sentencepiece model (%zu bytes): %s", bytes,
                        why);
    }
    t->n_pieces = gw_spm_n_pieces(t->model);
    if (t->n_pieces <= EOS_ID) {
        moe_status st = MOE_FAIL(err, MOE_ERR_FORMAT,
                                 "sentencepiece model with %u pieces, expected at least"
                                 " padding (0) and </s> (1)",
                                 t->n_pieces);
        gw_tokenizer_destroy(t);
        return st;
    }
    *out = t;
    return MOE_OK;
}

void gw_tokenizer_destroy(gw_tokenizer *t)
{
    if (t == NULL) {
        return;
    }
    gw_spm_destroy(t->model);
    free(t);
}

uint32_t gw_tokenizer_vocab(const gw_tokenizer *t)
{
    return t->n_pieces;
}

/* Length of the UTF-8 character at s (n bytes left), 0 if there is none: overlong forms, surrogates
 * and code points past U+10FFFF are none. */
static size_t utf8_length(const unsigned char *s, size_t n)
{
    unsigned lead = s[0];
    if (lead < 0x80) {
        return 1;
    }
    size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || n < length) {
        return 0;
    }
    unsigned lowest = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    unsigned highest = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (s[1] < lowest || s[1] > highest) {
        return 0;
    }
    for (size_t i = 2; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    return length;
}

/* Offset of the first byte that is not UTF-8; bytes if all is. */
static size_t utf8_valid_prefix(const char *text, size_t bytes)
{
    size_t at = 0;
    while (at < bytes) {
        size_t length = utf8_length((const unsigned char *)text + at, bytes - at);
        if (length == 0) {
            break;
        }
        at += length;
    }
    return at;
}

moe_status gw_tokenizer_encode(const gw_tokenizer *t, const char *text, size_t bytes,
                               uint32_t max_ids, int32_t **out_ids, uint32_t *out_n, moe_err *err)
{
    size_t valid = utf8_valid_prefix(text, bytes);
    if (valid != bytes) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "the text is not UTF-8 at byte %zu of %zu", valid,
                        bytes);
    }
    int32_t *ids = NULL;
    size_t n = 0;
    if (gw_spm_encode(t->model, text, bytes, &ids, &n) != 0) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "tokenizing %zu bytes", bytes);
    }
    if (n + 1 > max_ids) {
        free(ids);
        return MOE_FAIL(err, MOE_ERR_LIMIT, "the text has %zu tokens with </s>, the limit is %u",
                        n + 1, max_ids);
    }
    ids[n] = EOS_ID; /* the shim leaves room for it */
    *out_ids = ids;
    *out_n = (uint32_t)n + 1;
    return MOE_OK;
}

/* Padding, end and ids without a piece have no text. */
static bool has_text(const gw_tokenizer *t, int32_t id)
{
    return id > EOS_ID && (uint32_t)id < t->n_pieces;
}

moe_status gw_tokenizer_decode(const gw_tokenizer *t, const int32_t *ids, uint32_t n,
                               char **out_text, moe_err *err)
{
    int32_t *kept = malloc(((size_t)n + 1) * sizeof *kept);
    if (kept == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "decoding %u tokens", n);
    }
    size_t n_kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (has_text(t, ids[i])) {
            kept[n_kept++] = ids[i];
        }
    }
    char *text = NULL;
    int failed = gw_spm_decode(t->model, kept, n_kept, &text);
    free(kept);
    if (failed) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "decoding %u tokens", n);
    }
    *out_text = text;
    return MOE_OK;
}
