/* sentencepiece_shim.h - the few calls of libsentencepiece that tokenizer.c needs, as C.
 * No exception leaves it: a bad_alloc or a library error becomes a nonzero return or NULL.
 * Threads: a loaded model is const. */
#ifndef GW_SENTENCEPIECE_SHIM_H
#define GW_SENTENCEPIECE_SHIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gw_spm gw_spm;
/* 0 and *out owned by the caller (gw_spm_destroy), else nonzero and a reason in why. */
int gw_spm_create(const void *model, size_t bytes, gw_spm **out, char *why, size_t why_bytes);
void gw_spm_destroy(gw_spm *m); /* accepts NULL */
uint32_t gw_spm_n_pieces(const gw_spm *m);
/* 0 and malloc'ed *out_ids with room for one more id; else nonzero. */
int gw_spm_encode(const gw_spm *m, const char *text, size_t bytes, int32_t **out_ids,
                  size_t *out_n);
/* 0 and malloc'ed, NUL-terminated *out_text; else nonzero. ids in [0, n_pieces). */
int gw_spm_decode(const gw_spm *m, const int32_t *ids, size_t n, char **out_text);

#ifdef __cplusplus
}
#endif

#endif
