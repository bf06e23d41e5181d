/* bench_stats.h - percentiles, list settings, and busy time: the small arithmetic of `bench`.
 * Pure; any thread. */
#ifndef GW_BENCH_STATS_H
#define GW_BENCH_STATS_H

#include <stdint.h>

#include "common/status.h"

/* Nearest rank: the smallest value with at least q of all at or below it. Sorts values; 0 for none.
 * q in [0, 1]; 0: the smallest. */
double gw_percentile(double *values, uint32_t n, double q);

/* A growing list of samples. A failed allocation is remembered: check `failed` once at the end. */
typedef struct gw_samples {
    double *values; /* owned */
    uint32_t n, capacity;
    int failed;
} gw_samples;
void gw_samples_add(gw_samples *s, double value);
void gw_samples_fini(gw_samples *s); /* accepts zeroed */
double gw_samples_percentile(gw_samples *s, double q);
double gw_samples_mean(const gw_samples *s);

/* "a,b,c": the i-th item into out, without blanks around it. False past the last. An empty text has
 * no items; an item that does not fit is cut. */
int gw_list_item(const char *list, uint32_t i, char *out, uint32_t out_bytes);
/* "12" -> 12; "20%" -> that share of `all`, rounded down, at least 1. MOE_ERR_INVALID names the
 * setting. */
MOE_MUST_CHECK moe_status gw_parse_count(const char *text, uint32_t all, const char *setting,
                                         uint32_t *out, moe_err *err);

typedef struct gw_span {
    int64_t begin_ns, end_ns;
} gw_span;
/* Length of the union of spans inside [window). Sorts spans by begin. */
int64_t gw_spans_busy_ns(gw_span *spans, uint32_t n, gw_span window);

#endif
