/* text.h - a growing string for JSON, Prometheus and HTML-free prose.
 * An allocation failure is remembered and reported once by moe_text_finish; appends after it do
 * nothing. Threads: one owner. */
#ifndef MOE_COMMON_TEXT_H
#define MOE_COMMON_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include "common/status.h"

typedef struct moe_text {
    char *data; /* owned; NUL-terminated once anything was appended; may be NULL */
    size_t len, capacity;
    bool failed;
} moe_text;

void moe_text_init(moe_text *t);
void moe_text_fini(moe_text *t);
void moe_text_append(moe_text *t, const char *bytes, size_t n);
void moe_text_printf(moe_text *t, const char *fmt, ...) MOE_PRINTF(2, 3);
/* Appends s as a JSON string with quotes; invalid UTF-8 bytes become U+FFFD. */
void moe_text_json_string(moe_text *t, const char *s, size_t n);
MOE_MUST_CHECK moe_status moe_text_finish(const moe_text *t, moe_err *err);

#endif
