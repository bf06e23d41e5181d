/* store_dir.h - a store directory as a whole: make it, remove it, move it into its place.
 * Threads: no state. */
#ifndef XS_STORE_DIR_H
#define XS_STORE_DIR_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"

/* path and path/segments exist afterwards. */
MOE_MUST_CHECK moe_status xs_store_dir_make(const char *path, moe_err *err);
/* Looks like a store, finished or not: there is catalog/data.mdb in it. */
bool xs_store_dir_is_store(const char *path);
/* Removes the files a store consists of, and the directories. Anything else in them is left and is
 * an error that names the directory. Absent is fine. */
MOE_MUST_CHECK moe_status xs_store_dir_remove(const char *path, moe_err *err);
/* fsyncs path's directories, moves path to target in one step, fsyncs the parent. With
 * replace, an older store at target changes places with path (*out_replaced); anything else there
 * is an error. */
MOE_MUST_CHECK moe_status xs_store_dir_publish(const char *path, const char *target, bool replace,
                                               bool *out_replaced, moe_err *err);
/* Bytes its segments occupy on the medium so far. */
uint64_t xs_store_dir_allocated(const char *path);
/* What the filesystem of path has left for us. */
MOE_MUST_CHECK moe_status xs_store_dir_free_bytes(const char *path, uint64_t *out, moe_err *err);
/* What direct I/O on that filesystem asks for, at least XS_EXTENT_ALIGN; path/segments exists. */
MOE_MUST_CHECK moe_status xs_store_dir_align(const char *path, uint64_t *out, moe_err *err);

#endif
