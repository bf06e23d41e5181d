/* metrics.c - histograms, and the list of samples that every output is made from.
 * Histograms are written by any thread; a list is filled and printed by its one owner, on request.
 * Relaxed atomics throughout: each counter stands alone, and a reader wants a recent value only. */
#include "common/metrics.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAST_BUCKET = MOE_HIST_BUCKETS - 1 }; /* the one without an upper bound */

void moe_histogram_add_ns(moe_histogram *h, int64_t ns)
{
    uint64_t value = ns > 0 ? (uint64_t)ns : 0;
    uint64_t us = value > 0 ? (value - 1) / 1000 + 1 : 0; /* rounded up */
    int bucket = us <= 1 ? 0 : 64 - __builtin_clzll(us - 1);
    bucket = bucket > LAST_BUCKET ? LAST_BUCKET : bucket;
    atomic_fetch_add_explicit(&h->bucket[bucket], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->count, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_ns, value, memory_order_relaxed);
}

/* Copies the buckets; returns their sum, which fits them even while writers go on. */
static uint64_t snapshot(const moe_histogram *h, uint64_t out_bucket[MOE_HIST_BUCKETS])
{
    uint64_t count = 0;
    for (int i = 0; i < MOE_HIST_BUCKETS; i++) {
        out_bucket[i] = atomic_load_explicit(&h->bucket[i], memory_order_relaxed);
        count += out_bucket[i];
    }
    return count;
}

int64_t moe_histogram_quantile_ns(const moe_histogram *h, double q)
{
    uint64_t bucket[MOE_HIST_BUCKETS];
    uint64_t count = snapshot(h, bucket);
    if (count == 0) {
        return 0;
    }
    double rank = ceil(q * (double)count);
    uint64_t below = 0;
    int i = 0;
    for (; i < LAST_BUCKET - 1; i++) { /* the open bucket answers with the last finite bound */
        below += bucket[i];
        if ((double)below >= rank && below > 0) {
            break;
        }
    }
    return 1000LL << i;
}

void moe_metrics_init(moe_metrics *m)
{
    *m = (moe_metrics){0};
}

void moe_metrics_fini(moe_metrics *m)
{
    free(m->items);
    *m = (moe_metrics){0};
}

static moe_metric *next_item(moe_metrics *m)
{
    if (m->failed) {
        return NULL;
    }
    if (m->n == m->capacity) {
        uint32_t capacity = m->capacity == 0 ? 64 : m->capacity * 2;
        moe_metric *items = realloc(m->items, capacity * sizeof *items);
        if (items == NULL) {
            m->failed = 1;
            return NULL;
        }
        m->items = items;
        m->capacity = capacity;
    }
    moe_metric *item = &m->items[m->n++];
    *item = (moe_metric){0};
    return item;
}

/* Names and labels must fit whole: a cut one would be another metric. Help may be cut. */
static void add_sample(moe_metrics *m, moe_metric_kind kind, const char *name, const char *suffix,
                       const char *help, double value, const char *labels)
{
    moe_metric *item = next_item(m);
    if (item == NULL) {
        return;
    }
    MOE_ASSERT(strlen(name) < sizeof item->name && strlen(labels) < sizeof item->labels);
    snprintf(item->name, sizeof item->name, "%s", name);
    snprintf(item->suffix, sizeof item->suffix, "%s", suffix);
    snprintf(item->labels, sizeof item->labels, "%s", labels);
    snprintf(item->help, sizeof item->help, "%s", help);
    item->kind = (uint32_t)kind;
    item->value = value;
}

enum { LABELS_BYTES = sizeof((moe_metric *)NULL)->labels };

static void format_labels(char *out, const char *fmt, va_list args) MOE_PRINTF(2, 0);
static void format_labels(char *out, const char *fmt, va_list args)
{
    int n = vsnprintf(out, LABELS_BYTES, fmt, args);
    MOE_ASSERT(n >= 0 && n < LABELS_BYTES);
}

void moe_metrics_add(moe_metrics *m, moe_metric_kind kind, const char *name, const char *help,
                     double value, const char *labels_fmt, ...)
{
    char labels[LABELS_BYTES];
    va_list args;
    va_start(args, labels_fmt);
    format_labels(labels, labels_fmt, args);
    va_end(args);
    add_sample(m, kind, name, "", help, value, labels);
}

void moe_metrics_add_histogram(moe_metrics *m, const char *name, const char *help,
                               const moe_histogram *h, const char *labels_fmt, ...)
{
    char labels[LABELS_BYTES];
    va_list args;
    va_start(args, labels_fmt);
    format_labels(labels, labels_fmt, args);
    va_end(args);

    uint64_t bucket[MOE_HIST_BUCKETS];
    uint64_t count = snapshot(h, bucket);
    uint64_t sum_ns = atomic_load_explicit(&h->sum_ns, memory_order_relaxed);
    uint64_t cumulative = 0;
    for (int i = 0; i < MOE_HIST_BUCKETS; i++) {
        char le[32] = "+Inf";
        char with_le[LABELS_BYTES + 48];
        if (i < LAST_BUCKET) {
            snprintf(le, sizeof le, "%.10g", ldexp(1e-6, i));
        }
        snprintf(with_le, sizeof with_le, "%s%sle=\"%s\"", labels, labels[0] != '\0' ? "," : "",
                 le);
        cumulative += bucket[i];
        add_sample(m, MOE_METRIC_HISTOGRAM, name, "_bucket", help, (double)cumulative, with_le);
    }
    add_sample(m, MOE_METRIC_HISTOGRAM, name, "_sum", help, (double)sum_ns / 1e9, labels);
    add_sample(m, MOE_METRIC_HISTOGRAM, name, "_count", help, (double)count, labels);
}

double moe_metrics_find(const moe_metrics *m, const char *name, const char *labels)
{
    for (uint32_t i = 0; i < m->n; i++) {
        const moe_metric *item = &m->items[i];
        if (item->suffix[0] == '\0' && strcmp(item->name, name) == 0 &&
            (labels == NULL || strcmp(item->labels, labels) == 0)) {
            return item->value;
        }
    }
    return NAN;
}

/* Shortest text that reads back as the same double. Finite values only. */
static void append_finite(moe_text *out, double v)
{
    char text[40];
    snprintf(text, sizeof text, "%.15g", v);
    if (strtod(text, NULL) != v) {
        snprintf(text, sizeof text, "%.17g", v);
    }
    moe_text_append(out, text, strlen(text));
}

static moe_status check_complete(const moe_metrics *m, moe_err *err)
{
    if (m->failed) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a list of more than %u metrics", m->n);
    }
    return MOE_OK;
}

/* ---- Prometheus ---- */

static const char *kind_name(uint32_t kind)
{
    switch (kind) {
    case MOE_METRIC_COUNTER:
        return "counter";
    case MOE_METRIC_GAUGE:
        return "gauge";
    case MOE_METRIC_HISTOGRAM:
        return "histogram";
    default:
        return "untyped"; /* a list from a newer peer */
    }
}

static void append_header(moe_text *out, const moe_metric *item)
{
    moe_text_printf(out, "# HELP %s ", item->name);
    for (const char *c = item->help; *c != '\0'; c++) {
        if (*c == '\\') {
            moe_text_append(out, "\\\\", 2);
        } else if (*c == '\n') {
            moe_text_append(out, "\\n", 2);
        } else {
            moe_text_append(out, c, 1);
        }
    }
    moe_text_printf(out, "\n# TYPE %s %s\n", item->name, kind_name(item->kind));
}

static void append_sample(moe_text *out, const moe_metric *item)
{
    bool labelled = item->labels[0] != '\0';
    moe_text_printf(out, "%s%s%s%s%s ", item->name, item->suffix, labelled ? "{" : "", item->labels,
                    labelled ? "}" : "");
    if (isnan(item->value)) {
        moe_text_printf(out, "NaN");
    } else if (isinf(item->value)) {
        moe_text_printf(out, item->value > 0 ? "+Inf" : "-Inf");
    } else {
        append_finite(out, item->value);
    }
    moe_text_append(out, "\n", 1);
}

moe_status moe_metrics_prometheus(const moe_metrics *m, moe_text *out, moe_err *err)
{
    moe_status st = check_complete(m, err);
    if (st != MOE_OK) {
        return st;
    }
    unsigned char *printed = calloc((size_t)m->n + 1, 1);
    if (printed == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "marks for %u metrics", m->n);
    }
    for (uint32_t i = 0; i < m->n; i++) {
        if (printed[i]) {
            continue;
        }
        append_header(out, &m->items[i]);
        for (uint32_t j = i; j < m->n; j++) { /* one group per name, wherever its samples are */
            if (strcmp(m->items[i].name, m->items[j].name) == 0) {
                append_sample(out, &m->items[j]);
                printed[j] = 1;
            }
        }
    }
    free(printed);
    return moe_text_finish(out, err);
}

/* ---- JSON ---- */

static void append_json_number(moe_text *out, double v)
{
    if (isfinite(v)) {
        append_finite(out, v);
    } else {
        moe_text_append(out, "null", 4);
    }
}

static void append_json_key(moe_text *out, const char *name, const char *labels)
{
    char key[sizeof((moe_metric *)NULL)->name + LABELS_BYTES + 4];
    bool labelled = labels[0] != '\0';
    int len = snprintf(key, sizeof key, "%s%s%s%s", name, labelled ? "{" : "", labels,
                       labelled ? "}" : "");
    moe_text_json_string(out, key, (size_t)len);
    moe_text_append(out, ": ", 2);
}

/* The upper bound of a bucket sample, in seconds; NaN when its labels carry none. */
static double bucket_bound(const moe_metric *item)
{
    const char *le = strstr(item->labels, "le=\"");
    return le != NULL ? strtod(le + 4, NULL) : NAN; /* strtod reads "+Inf" */
}

/* bucket: [n] cumulative samples of one histogram. The open bucket gives the last finite bound. */
static double bucket_quantile(const moe_metric *bucket, uint32_t n, double q)
{
    double rank = ceil(q * bucket[n - 1].value);
    double bound = 0;
    for (uint32_t i = 0; i < n; i++) {
        double at = bucket_bound(&bucket[i]);
        bound = isfinite(at) ? at : bound;
        if (bucket[i].value >= rank) {
            break;
        }
    }
    return bucket[n - 1].value > 0 ? bound : 0;
}

static bool same_series(const moe_metric *a, const moe_metric *b, const char *suffix)
{
    return strcmp(a->name, b->name) == 0 && strcmp(b->suffix, suffix) == 0;
}

/* One object for the run of samples that starts at item `at`, as moe_metrics_add_histogram wrote
 * them: buckets, sum, count. Returns the index after it; `at` itself when it is no such run. */
static uint32_t append_json_histogram(const moe_metrics *m, uint32_t at, moe_text *out)
{
    static const double quantiles[] = {0.5, 0.9, 0.99};
    const moe_metric *first = &m->items[at];
    uint32_t end = at;
    while (end < m->n && same_series(first, &m->items[end], "_bucket")) {
        end++;
    }
    if (end == at || end + 2 > m->n || !same_series(first, &m->items[end], "_sum") ||
        !same_series(first, &m->items[end + 1], "_count")) {
        return at;
    }
    append_json_key(out, first->name, m->items[end].labels);
    moe_text_printf(out, "{\"count\": ");
    append_json_number(out, m->items[end + 1].value);
    moe_text_printf(out, ", \"sum\": ");
    append_json_number(out, m->items[end].value);
    for (size_t i = 0; i < sizeof quantiles / sizeof quantiles[0]; i++) {
        moe_text_printf(out, ", \"p%d\": ", (int)(quantiles[i] * 100 + 0.5));
        append_json_number(out, bucket_quantile(first, end - at, quantiles[i]));
    }
    moe_text_append(out, "}", 1);
    return end + 2;
}

moe_status moe_metrics_json(const moe_metrics *m, moe_text *out, moe_err *err)
{
    moe_status st = check_complete(m, err);
    if (st != MOE_OK) {
        return st;
    }
    moe_text_append(out, "{", 1);
    for (uint32_t i = 0; i < m->n;) {
        moe_text_printf(out, i == 0 ? "\n  " : ",\n  ");
        uint32_t next = append_json_histogram(m, i, out);
        if (next == i) { /* an ordinary sample, or a piece of a histogram from elsewhere */
            const moe_metric *item = &m->items[i];
            char name[sizeof item->name + sizeof item->suffix];
            snprintf(name, sizeof name, "%s%s", item->name, item->suffix);
            append_json_key(out, name, item->labels);
            append_json_number(out, item->value);
            next = i + 1;
        }
        i = next;
    }
    moe_text_append(out, "\n}\n", 3);
    return moe_text_finish(out, err);
}
