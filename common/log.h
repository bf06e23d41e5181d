/* log.h - key=value lines on stderr: `2026-11-25T10:00:00.123Z WARN store read_failed expert=17`.
 * Only main.c files and event loops log; nothing logs per token or per expert.
 * Threads: any; one line is one write(2). */
#ifndef MOE_COMMON_LOG_H
#define MOE_COMMON_LOG_H

#include "common/status.h"

typedef enum moe_log_level {
    MOE_LOG_DEBUG = 0,
    MOE_LOG_INFO,
    MOE_LOG_WARN,
    MOE_LOG_ERROR
} moe_log_level;

void moe_log_set_level(moe_log_level at_least);
/* fmt is the `key=value ...` part; values with blanks are the caller's to quote. */
void moe_log(moe_log_level level, const char *component, const char *event, const char *fmt, ...)
    MOE_PRINTF(4, 5);
/* Logs `error="..."` from err at ERROR level. */
void moe_log_err(const char *component, const char *event, const moe_err *err);

#endif
