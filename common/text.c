/* text.c - the growing string behind every JSON and Prometheus answer.
 * Called by whoever owns the moe_text, on its thread; a failed allocation is remembered. */
#include "common/text.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void moe_text_init(moe_text *t)
{
    *t = (moe_text){0};
}

void moe_text_fini(moe_text *t)
{
    free(t->data);
    *t = (moe_text){0};
}

/* Room for `more` bytes and a NUL; false once anything has failed. */
static bool reserve(moe_text *t, size_t more)
{
    if (t->failed || more > SIZE_MAX / 2 - t->len - 1) {
        t->failed = true;
        return false;
    }
    size_t need = t->len + more + 1;
    if (need <= t->capacity) {
        return true;
    }
    size_t capacity = t->capacity < 256 ? 256 : t->capacity;
    while (capacity < need) {
        capacity *= 2;
    }
    char *data = realloc(t->data, capacity);
    if (data == NULL) {
        t->failed = true;
        return false;
    }
    t->data = data;
    t->capacity = capacity;
    return true;
}

void moe_text_append(moe_text *t, const char *bytes, size_t n)
{
    if (!reserve(t, n)) {
        return;
    }
    if (n > 0) {
        memcpy(t->data + t->len, bytes, n);
    }
    t->len += n;
    t->data[t->len] = '\0';
}

void moe_text_printf(moe_text *t, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0) {
        t->failed = true;
        return;
    }
    if (!reserve(t, (size_t)n)) {
        return;
    }
    va_start(args, fmt);
    vsnprintf(t->data + t->len, (size_t)n + 1, fmt, args);
    va_end(args);
    t->len += (size_t)n;
}

/* Length of the well-formed UTF-8 sequence at s (n bytes left), 0 if there is none: overlong
 * forms, surrogates and anything above U+10FFFF are not well formed. */
static size_t utf8_sequence(const unsigned char *s, size_t n)
{
    if (s[0] < 0x80) {
        return 1;
    }
    size_t len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || len > n) {
        return 0;
    }
    unsigned char low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80; /* of the second byte */
    unsigned char high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    if (s[1] < low || s[1] > high) {
        return 0;
    }
    for (size_t i = 2; i < len; i++) {
        if ((s[i] & 0xc0u) != 0x80) {
            return 0;
        }
    }
    return len;
}

/* Appends one byte below 0x80. */
static void append_ascii(moe_text *t, unsigned char c)
{
    switch (c) {
    case '"':
        moe_text_append(t, "\\\"", 2);
        return;
    case '\\':
        moe_text_append(t, "\\\\", 2);
        return;
    case '\n':
        moe_text_append(t, "\\n", 2);
        return;
    case '\r':
        moe_text_append(t, "\\r", 2);
        return;
    case '\t':
        moe_text_append(t, "\\t", 2);
        return;
    default:
        break;
    }
    if (c < 0x20 || c == 0x7f) {
        moe_text_printf(t, "\\u%04x", c);
    } else {
        moe_text_append(t, (const char *)&c, 1);
    }
}

void moe_text_json_string(moe_text *t, const char *s, size_t n)
{
    moe_text_append(t, "\"", 1);
    for (size_t i = 0; i < n;) {
        const unsigned char *at = (const unsigned char *)s + i;
        size_t len = utf8_sequence(at, n - i);
        if (len == 0) {
            moe_text_append(t, "\xef\xbf\xbd", 3); /* U+FFFD for each stray byte */
            i++;
            continue;
        }
        if (len == 1) {
            append_ascii(t, *at);
        } else {
            moe_text_append(t, s + i, len);
        }
        i += len;
    }
    moe_text_append(t, "\"", 1);
}

moe_status moe_text_finish(const moe_text *t, moe_err *err)
{
    if (t->failed) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "text of more than %zu bytes", t->len);
    }
    return MOE_OK;
}
