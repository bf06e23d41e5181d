/* status.h - what a function that can fail returns, and the story that goes with it.
 *
 * Five native number spaces meet in this project (errno and io_uring, LMDB, ZeroMQ, CUDA,
 * cuBLAS). One small status says what a caller can do about it; moe_err keeps the native code,
 * the place and the object. Status numbers travel on the wire: append only.
 *
 * Rules: a function that can fail returns moe_status, is MOE_MUST_CHECK and takes `moe_err *err`
 * last, which may be NULL. Success leaves *err alone. Failure fills *err where it happened and
 * leaves every out-parameter alone. Libraries do not log.
 * Threads: no state; a moe_err belongs to its caller.
 */
#ifndef MOE_COMMON_STATUS_H
#define MOE_COMMON_STATUS_H

#include <stdint.h>

#define MOE_STATUS_LIST(X)                                                                         \
    X(MOE_OK, 0, "success")                                                                        \
    X(MOE_ERR_INVALID, 1, "invalid argument")                                                      \
    X(MOE_ERR_NO_MEMORY, 2, "out of memory")                                                       \
    X(MOE_ERR_NO_SLOT, 3, "every pinned slot is in use")                                           \
    X(MOE_ERR_IO, 4, "input/output failed")                                                        \
    X(MOE_ERR_FORMAT, 5, "malformed data")                                                         \
    X(MOE_ERR_CORRUPT, 6, "data does not match its checksum")                                      \
    X(MOE_ERR_NOT_FOUND, 7, "not found")                                                           \
    X(MOE_ERR_UNSUPPORTED, 8, "not supported")                                                     \
    X(MOE_ERR_TIMEOUT, 9, "timed out")                                                             \
    X(MOE_ERR_BUSY, 10, "in use by another process")                                               \
    X(MOE_ERR_LIMIT, 11, "over a limit")                                                           \
    X(MOE_ERR_DEVICE, 12, "device failed or absent")                                               \
    X(MOE_ERR_CANCELLED, 13, "cancelled")                                                          \
    X(MOE_ERR_DISCONNECTED, 14, "the other process is away")                                       \
    X(MOE_ERR_NO_SPACE, 15, "not enough space")                                                    \
    X(MOE_ERR_PERMISSION, 16, "not permitted")                                                     \
    X(MOE_ERR_VERSION, 17, "version mismatch")                                                     \
    X(MOE_ERR_AGAIN, 18, "would block; try again")                                                 \
    X(MOE_ERR_INTERNAL, 19, "internal error")

#define MOE_STATUS_ENUM(name, number, text) name = number,
typedef enum moe_status { MOE_STATUS_LIST(MOE_STATUS_ENUM) } moe_status;
#undef MOE_STATUS_ENUM

typedef enum moe_layer {
    MOE_LAYER_NONE = 0,
    MOE_LAYER_ERRNO,
    MOE_LAYER_LMDB,
    MOE_LAYER_ZMQ,
    MOE_LAYER_CUDA,
    MOE_LAYER_CUBLAS
} moe_layer;

typedef struct moe_err {
    moe_status status;
    moe_layer layer;  /* whose numbering `native` uses */
    int32_t native;   /* raw code, 0 if none */
    int32_t line;     /* of `file`: the failing call */
    const char *file; /* borrowed, static */
    char text[400];   /* what was being done, to which object, and the remedy if there is one */
} moe_err;

#define MOE_MUST_CHECK __attribute__((warn_unused_result))
#define MOE_PRINTF(fmt_at, args_at) __attribute__((format(printf, fmt_at, args_at)))

/* "MOE_ERR_NO_SLOT" and "every pinned slot is in use"; never NULL. */
const char *moe_status_name(moe_status status);
const char *moe_status_text(moe_status status);
/* Text of a native code ("No such file or directory"); LMDB, ZeroMQ and CUDA texts are put into
 * err->text by the modules that own those packages, so this knows errno only. */
const char *moe_native_text(moe_layer layer, int32_t native);

/* Fills *err (if not NULL) and returns `status`, so that `return MOE_FAIL(...)` reads as one step.
 */
moe_status moe_fail(moe_err *err, moe_status status, moe_layer layer, int32_t native,
                    const char *file, int32_t line, const char *fmt, ...) MOE_PRINTF(7, 8);
#ifdef __clang_analyzer__ /* sees one file at a time: tell it that what goes in comes out */
#define moe_fail(err, status, ...) ((moe_fail)((err), (status), __VA_ARGS__), (status))
#endif
#define MOE_FAIL(err, status, ...)                                                                 \
    moe_fail((err), (status), MOE_LAYER_NONE, 0, __FILE__, __LINE__, __VA_ARGS__)
#define MOE_FAIL_NATIVE(err, status, layer, native, ...)                                           \
    moe_fail((err), (status), (layer), (native), __FILE__, __LINE__, __VA_ARGS__)

/* One line for a person: "cannot open X: No such file or directory (MOE_ERR_IO errno 2, f.c:12)".
 */
void moe_err_format(const moe_err *err, char *out, uint32_t out_bytes);

/* For our own bugs only, active in every build; never for I/O, peers or the device. */
_Noreturn void moe_assert_failed(const char *what, const char *file, int32_t line);
#define MOE_ASSERT(cond) ((cond) ? (void)0 : moe_assert_failed(#cond, __FILE__, __LINE__))

#endif
