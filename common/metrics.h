/* metrics.h - counters and histograms, and the one list of samples every output is made from.
 *
 * A component fills a moe_metrics list on request; the list goes over the wire (proto STATS), into
 * Prometheus text, into JSON, or into expert-stat's table. Names: `pregate_store_reads_total`.
 * Histograms: powers of two from 1 us, relaxed atomics: many writers, readers see a recent value.
 * Threads: moe_histogram any; a moe_metrics list has one owner.
 */
#ifndef MOE_COMMON_METRICS_H
#define MOE_COMMON_METRICS_H

#include <stdatomic.h>
#include <stdint.h>

#include "common/status.h"
#include "common/text.h"

enum { MOE_HIST_BUCKETS = 32 }; /* bucket i counts values <= 2^i us; the last is +inf */

typedef struct moe_histogram {
    _Atomic uint64_t bucket[MOE_HIST_BUCKETS];
    _Atomic uint64_t count;
    _Atomic uint64_t sum_ns;
} moe_histogram;

void moe_histogram_add_ns(moe_histogram *h, int64_t ns); /* negative counts as 0 */
/* Upper bound of the bucket holding quantile q in (0, 1], in ns; 0 when empty. Values beyond the
 * last finite bound (2^30 us) answer with that bound. */
int64_t moe_histogram_quantile_ns(const moe_histogram *h, double q);

typedef enum moe_metric_kind {
    MOE_METRIC_COUNTER = 1,
    MOE_METRIC_GAUGE = 2,
    MOE_METRIC_HISTOGRAM = 3
} moe_metric_kind;

typedef struct moe_metric {
    char name[64];   /* base name; histogram samples carry _bucket, _sum, _count in `suffix` */
    char suffix[8];  /* "", "_bucket", "_sum", "_count" */
    char labels[96]; /* `block="dec0",worker="1"`, may be empty */
    char help[96];   /* one line */
    uint32_t kind;   /* moe_metric_kind */
    double value;
} moe_metric;

typedef struct moe_metrics {
    moe_metric *items; /* owned */
    uint32_t n, capacity;
    int failed; /* an allocation failed; outputs refuse */
} moe_metrics;

void moe_metrics_init(moe_metrics *m);
void moe_metrics_fini(moe_metrics *m);
void moe_metrics_add(moe_metrics *m, moe_metric_kind kind, const char *name, const char *help,
                     double value, const char *labels_fmt, ...) MOE_PRINTF(6, 7);
/* Adds _bucket (le in seconds), _sum (seconds) and _count samples. */
void moe_metrics_add_histogram(moe_metrics *m, const char *name, const char *help,
                               const moe_histogram *h, const char *labels_fmt, ...)
    MOE_PRINTF(5, 6);
/* The value of the first sample with this name, suffix "" and labels (NULL: any); NaN if absent. */
double moe_metrics_find(const moe_metrics *m, const char *name, const char *labels);
/* Text exposition format 0.0.4: HELP and TYPE once per name, samples grouped by name. */
MOE_MUST_CHECK moe_status moe_metrics_prometheus(const moe_metrics *m, moe_text *out, moe_err *err);
/* {"name": value, "name{labels}": value, ...}, histograms with p50/p90/p99 in seconds. */
MOE_MUST_CHECK moe_status moe_metrics_json(const moe_metrics *m, moe_text *out, moe_err *err);

#endif
