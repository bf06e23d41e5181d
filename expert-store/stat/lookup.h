/* lookup.h - finding things in a list of statistics. Pure. Threads: any. */
#ifndef XS_STAT_LOOKUP_H
#define XS_STAT_LOOKUP_H

#include "common/metrics.h"

/* Sum of all samples of that name whose labels contain `label` (NULL: all); NaN when absent. m may
 * be NULL. */
double xs_stat_sum(const moe_metrics *m, const char *name, const char *label);
/* The first sample of that name; NULL when absent. */
const moe_metric *xs_stat_find(const moe_metrics *m, const char *name);
/* The text of a label, e.g. of "model" in model="switch"; "" when absent. */
void xs_stat_label(const moe_metric *item, const char *label, char *out, size_t out_bytes);
/* q in (0, 1] from the _bucket samples of a histogram, of what came after `earlier` (NULL: of all);
 * NaN when that is nothing. */
double xs_stat_quantile(const moe_metrics *m, const moe_metrics *earlier, const char *name,
                        double q);

#endif
