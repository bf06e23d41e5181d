/* file.h - whole-file reads and exact reads and writes; EINTR and short transfers handled here
 * once. Threads: no state. */
#ifndef MOE_COMMON_FILE_H
#define MOE_COMMON_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

/* *out_data is owned by the caller (free) and NUL-terminated past *out_bytes. MOE_ERR_LIMIT when
 * the file is larger than max_bytes, MOE_ERR_NOT_FOUND when absent. */
MOE_MUST_CHECK moe_status moe_file_read(const char *path, uint64_t max_bytes, char **out_data,
                                        size_t *out_bytes, moe_err *err);
/* MOE_ERR_IO "unexpected end of file" when the file ends early. `what` names the file in errors. */
MOE_MUST_CHECK moe_status moe_pread_exact(int fd, void *buf, size_t bytes, uint64_t off,
                                          const char *what, moe_err *err);
/* ENOSPC and EDQUOT give MOE_ERR_NO_SPACE. */
MOE_MUST_CHECK moe_status moe_pwrite_exact(int fd, const void *buf, size_t bytes, uint64_t off,
                                           const char *what, moe_err *err);

/* Files of /proc and /sys have no size: one read gets what fits, terminated. False: nothing. */
bool moe_read_pseudo_file(const char *path, char *out, size_t out_bytes);

#endif
