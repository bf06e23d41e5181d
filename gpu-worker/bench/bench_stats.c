/* bench_stats.c - see bench_stats.h. */
#include "gpu-worker/bench/bench_stats.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double gw_percentile(double *values, uint32_t n, double q)
{
    if (n == 0) {
        return 0;
    }
    qsort(values, n, sizeof *values, compare_doubles);
    double rank = ceil(q * n);
    uint32_t at = rank < 1 ? 0 : rank > n ? n - 1 : (uint32_t)rank - 1;
    return values[at];
}

void gw_samples_add(gw_samples *s, double value)
{
    if (s->n == s->capacity) {
        uint32_t capacity = s->capacity == 0 ? 256 : s->capacity * 2;
        double *values = realloc(s->values, capacity * sizeof *values);
        if (values == NULL) {
            s->failed = 1;
            return;
        }
        s->values = values;
        s->capacity = capacity;
    }
    s->values[s->n++] = value;
}

void gw_samples_fini(gw_samples *s)
{
    free(s->values);
    *s = (gw_samples){0};
}

double gw_samples_percentile(gw_samples *s, double q)
{
    return gw_percentile(s->values, s->n, q);
}

double gw_samples_mean(const gw_samples *s)
{
    double sum = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        sum += s->values[i];
    }
    return s->n > 0 ? sum / s->n : 0;
}

int gw_list_item(const char *list, uint32_t i, char *out, uint32_t out_bytes)
{
    const char *at = list;
    for (; i > 0; i--) {
        at = strchr(at, ',');
        if (at == NULL) {
            return 0;
        }
        at++;
    }
    at += strspn(at, " ");
    size_t n = strcspn(at, ",");
    while (n > 0 && at[n - 1] == ' ') {
        n--;
    }
    if (n == 0 && list[0] == '\0') {
        return 0;
    }
    n = n < out_bytes ? n : out_bytes - 1;
    memcpy(out, at, n);
    out[n] = '\0';
    return 1;
}

moe_status gw_parse_count(const char *text, uint32_t all, const char *setting, uint32_t *out,
                          moe_err *err)
{
    char *end = NULL;
    errno = 0;
    double n = strtod(text, &end);
    bool share = end != text && strcmp(end, "%") == 0;
    bool good = end != text && (share || *end == '\0') && errno == 0 && n >= 0 &&
                n <= (share ? 100 : 4e9) && (share || n == floor(n));
    if (!good) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "%s: '%.60s' is neither a count nor a share like 20%%", setting, text);
    }
    double count = share ? floor(n / 100 * all) : n;
    *out = share && count < 1 ? 1 : (uint32_t)count;
    return MOE_OK;
}

static int compare_spans(const void *a, const void *b)
{
    const gw_span *x = a, *y = b;
    return (x->begin_ns > y->begin_ns) - (x->begin_ns < y->begin_ns);
}

int64_t gw_spans_busy_ns(gw_span *spans, uint32_t n, gw_span window)
{
    int64_t busy = 0, covered = window.begin_ns;
    if (n > 0) {
        qsort(spans, n, sizeof *spans, compare_spans);
    }
    for (uint32_t i = 0; i < n; i++) {
        int64_t begin = spans[i].begin_ns > covered ? spans[i].begin_ns : covered;
        int64_t end = spans[i].end_ns < window.end_ns ? spans[i].end_ns : window.end_ns;
        if (end > begin) {
            busy += end - begin;
            covered = end;
        }
    }
    return busy;
}
