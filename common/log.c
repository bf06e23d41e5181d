/* log.c - builds one line and hands it to the kernel in one write, so that lines of several
 * threads and processes never mix. Called by main.c files and event loops, on any thread; the only
 * state is the level. Nothing is buffered, so nothing is lost or flushed at shutdown. */
#include "common/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 2048 }; /* longer lines are cut: under PIPE_BUF, so a pipe keeps them whole */

static _Atomic int least_level = MOE_LOG_INFO; /* relaxed: a late change only delays itself */

void moe_log_set_level(moe_log_level at_least)
{
    atomic_store_explicit(&least_level, (int)at_least, memory_order_relaxed);
}

static const char *level_name(moe_log_level level)
{
    switch (level) {
    case MOE_LOG_DEBUG:
        return "DEBUG";
    case MOE_LOG_INFO:
        return "INFO";
    case MOE_LOG_WARN:
        return "WARN";
    case MOE_LOG_ERROR:
        break;
    }
    return "ERROR";
}

/* Writes the time and the fixed words; returns their length. */
static size_t begin_line(char *line, moe_log_level level, const char *component, const char *event)
{
    struct timespec now = {0};
    struct tm utc = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t len = strftime(line, LINE_BYTES, "%Y-%m-%dT%H:%M:%S", &utc);
    int n = snprintf(line + len, LINE_BYTES - len, ".%03dZ %s %s %s", (int)(now.tv_nsec / 1000000),
                     level_name(level), component, event);
    len += n > 0 ? (size_t)n : 0;
    return len < LINE_BYTES ? len : LINE_BYTES - 1;
}

void moe_log(moe_log_level level, const char *component, const char *event, const char *fmt, ...)
{
    if ((int)level < atomic_load_explicit(&least_level, memory_order_relaxed)) {
        return;
    }
    char line[LINE_BYTES];
    size_t len = begin_line(line, level, component, event);
    if (fmt[0] != '\0' && len + 1 < sizeof line) {
        line[len++] = ' ';
        va_list args;
        va_start(args, fmt);
        int n = vsnprintf(line + len, sizeof line - len, fmt, args);
        va_end(args);
        len += n > 0 ? (size_t)n : 0;
    }
    if (len > sizeof line - 1) {
        len = sizeof line - 1;
    }
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)line[i] < ' ') {
            line[i] = ' '; /* a value must not be able to forge a second line */
        }
    }
    line[len++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, len);
    (void)written; /* there is nobody to tell */
}

void moe_log_err(const char *component, const char *event, const moe_err *err)
{
    char text[sizeof err->text + 200];
    moe_err_format(err, text, sizeof text);
    for (char *quote = strchr(text, '"'); quote != NULL; quote = strchr(quote, '"')) {
        *quote = '\'';
    }
    moe_log(MOE_LOG_ERROR, component, event, "error=\"%s\"", text);
}
