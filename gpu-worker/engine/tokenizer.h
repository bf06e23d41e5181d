/* tokenizer.h - text <-> ids, by the checkpoint's own spiece.model. sentencepiece_shim.cc
 * [libsentencepiece] is the one C++ file. Ids equal Hugging Face's T5 tokenizer: pieces + </s>, no
 * prefix, no lower-casing; ids 0 and 1, and ids without a piece, are dropped before decoding.
 * Threads: a loaded tokenizer is const; encode and decode from any thread. */
#ifndef GW_TOKENIZER_H
#define GW_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

typedef struct gw_tokenizer gw_tokenizer;
/* model bytes are copied. MOE_ERR_FORMAT if it is not a sentencepiece model. */
MOE_MUST_CHECK moe_status gw_tokenizer_create(const void *model, size_t bytes, gw_tokenizer **out,
                                              moe_err *err);
void gw_tokenizer_destroy(gw_tokenizer *t);
uint32_t gw_tokenizer_vocab(const gw_tokenizer *t);
/* *out_ids is owned by the caller (free), ends with </s> (1). MOE_ERR_LIMIT over max_ids names both
 * counts; MOE_ERR_INVALID for text that is not UTF-8. */
MOE_MUST_CHECK moe_status gw_tokenizer_encode(const gw_tokenizer *t, const char *text, size_t bytes,
                                              uint32_t max_ids, int32_t **out_ids, uint32_t *out_n,
                                              moe_err *err);
/* *out_text is owned by the caller (free), NUL-terminated UTF-8. */
MOE_MUST_CHECK moe_status gw_tokenizer_decode(const gw_tokenizer *t, const int32_t *ids, uint32_t n,
                                              char **out_text, moe_err *err);

#endif
