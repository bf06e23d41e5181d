/* access_list.h - a trace in memory: which expert was used, in order; recorded or made up.
 * Threads: one owner. */
#ifndef XS_ACCESS_LIST_H
#define XS_ACCESS_LIST_H

#include <stdint.h>

#include "common/status.h"
#include "expert-store/policy/access_trace.h"

typedef enum xs_access_kind { XS_ACCESS_USE = 0, XS_ACCESS_PREDICTION } xs_access_kind;

typedef struct xs_access {
    int64_t at_us;
    uint32_t expert;
    uint32_t n; /* USE: in a row, >= 1 */
    xs_access_kind kind;
} xs_access;

typedef struct xs_access_list { /* in the order of time */
    xs_access *items;           /* owned */
    uint64_t n, capacity;
    uint32_t n_experts;
} xs_access_list;

void xs_access_list_fini(xs_access_list *l); /* accepts {0} */
MOE_MUST_CHECK moe_status xs_access_list_add(xs_access_list *l, const xs_access *a, moe_err *err);
/* What has the same time stays in order. */
MOE_MUST_CHECK moe_status xs_access_list_sort(xs_access_list *l, moe_err *err);
uint64_t xs_access_list_uses(const xs_access_list *l);
uint32_t xs_access_list_distinct(const xs_access_list *l); /* experts used at all */

/* USE and PREDICT records of a recorded trace (expert-store/policy/access_trace.h), sorted by time.
 */
MOE_MUST_CHECK moe_status xs_access_list_read(const void *data, size_t bytes,
                                              xs_trace_header *out_header, xs_access_list *out,
                                              moe_err *err);

typedef struct xs_zipf {
    double exponent; /* the k-th most popular expert has probability ~ k^-exponent */
    uint32_t n_experts;
    uint64_t n_uses;
    uint32_t n_topics; /* >= 1: how often the popularity is drawn, for equal parts of the uses */
    uint64_t seed;
} xs_zipf;
/* Independent draws; which expert is the k-th most popular is drawn, too, once per topic. */
MOE_MUST_CHECK moe_status xs_access_list_zipf(const xs_zipf *z, xs_access_list *out, moe_err *err);

#endif
