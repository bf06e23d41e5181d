/* lookup.c - see lookup.h. */
#include "expert-store/stat/lookup.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

double xs_stat_sum(const moe_metrics *m, const char *name, const char *label)
{
    double sum = NAN;
    for (uint32_t i = 0; m != NULL && i < m->n; i++) {
        const moe_metric *item = &m->items[i];
        if (item->suffix[0] == '\0' && strcmp(item->name, name) == 0 &&
            (label == NULL || strstr(item->labels, label) != NULL)) {
            sum = (isnan(sum) ? 0 : sum) + item->value;
        }
    }
    return sum;
}

const moe_metric *xs_stat_find(const moe_metrics *m, const char *name)
{
    for (uint32_t i = 0; i < m->n; i++) {
        if (strcmp(m->items[i].name, name) == 0) {
            return &m->items[i];
        }
    }
    return NULL;
}

void xs_stat_label(const moe_metric *item, const char *label, char *out, size_t out_bytes)
{
    char key[40];
    snprintf(key, sizeof key, "%s=\"", label);
    const char *at = strstr(item->labels, key);
    at = at != NULL ? at + strlen(key) : "";
    snprintf(out, out_bytes, "%.*s", (int)strcspn(at, "\""), at);
}

/* The sample of a histogram with that suffix and labels; 0 when absent. */
static double sample(const moe_metrics *m, const char *name, const char *suffix, const char *labels)
{
    for (uint32_t i = 0; m != NULL && i < m->n; i++) {
        const moe_metric *item = &m->items[i];
        if (strcmp(item->name, name) == 0 && strcmp(item->suffix, suffix) == 0 &&
            (labels == NULL || strcmp(item->labels, labels) == 0)) {
            return item->value;
        }
    }
    return 0;
}

double xs_stat_quantile(const moe_metrics *m, const moe_metrics *earlier, const char *name,
                        double q)
{
    double count = sample(m, name, "_count", NULL) - sample(earlier, name, "_count", NULL);
    for (uint32_t i = 0; i < m->n && count > 0; i++) {
        const moe_metric *item = &m->items[i];
        const char *le = strstr(item->labels, "le=\"");
        if (strcmp(item->name, name) == 0 && strcmp(item->suffix, "_bucket") == 0 && le != NULL &&
            item->value - sample(earlier, name, "_bucket", item->labels) >= q * count) {
            return strtod(le + strlen("le=\""), NULL);
        }
    }
    return NAN;
}
