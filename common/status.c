/* status.c - names of statuses, and the one place where an error is filled in and printed.
 * Called by everyone on every thread; no state; nothing to shut down. */
#include "common/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *moe_status_name(moe_status status)
{
    switch (status) {
#define STATUS_NAME(name, number, text)                                                            \
    case name:                                                                                     \
        return #name;
        MOE_STATUS_LIST(STATUS_NAME)
#undef STATUS_NAME
    }
    return "MOE_ERR_?"; /* a number from the wire that this build does not know */
}

const char *moe_status_text(moe_status status)
{
    switch (status) {
#define STATUS_TEXT(name, number, text)                                                            \
    case name:                                                                                     \
        return text;
        MOE_STATUS_LIST(STATUS_TEXT)
#undef STATUS_TEXT
    }
    return "unknown status";
}

static const char *layer_name(moe_layer layer)
{
    switch (layer) {
    case MOE_LAYER_ERRNO:
        return "errno";
    case MOE_LAYER_LMDB:
        return "lmdb";
    case MOE_LAYER_ZMQ:
        return "zmq";
    case MOE_LAYER_CUDA:
        return "cuda";
    case MOE_LAYER_CUBLAS:
        return "cublas";
    case MOE_LAYER_NONE:
        break;
    }
    return "code";
}

const char *moe_native_text(moe_layer layer, int32_t native)
{
    const char *text = layer == MOE_LAYER_ERRNO && native > 0 ? strerrordesc_np(native) : NULL;
    return text != NULL ? text : "";
}

moe_status(moe_fail)(moe_err *err, moe_status status, moe_layer layer, int32_t native,
                     const char *file, int32_t line, const char *fmt, ...)
{
    if (err == NULL) {
        return status;
    }
    /* Formatted aside, because an argument may be the old err->text: adding context is common. */
    char text[sizeof err->text];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    *err =
        (moe_err){.status = status, .layer = layer, .native = native, .line = line, .file = file};
    memcpy(err->text, text, sizeof text);
    return status;
}

void moe_err_format(const moe_err *err, char *out, uint32_t out_bytes)
{
    const char *native_text = moe_native_text(err->layer, err->native);
    char native[32] = "";
    if (err->native != 0) {
        snprintf(native, sizeof native, " %s %d", layer_name(err->layer), (int)err->native);
    }
    snprintf(out, out_bytes, "%s%s%s (%s%s, %s:%d)",
             err->text[0] != '\0' ? err->text : moe_status_text(err->status),
             native_text[0] != '\0' ? ": " : "", native_text, moe_status_name(err->status), native,
             err->file != NULL ? err->file : "?", (int)err->line);
}

void moe_assert_failed(const char *what, const char *file, int32_t line)
{
    fprintf(stderr, "%s:%d: broken invariant: %s\n", file, (int)line, what);
    abort();
}
