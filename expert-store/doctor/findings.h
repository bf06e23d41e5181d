/* findings.h - what expert-doctor has to say: one finding a line, for people or as JSON.
 * Threads: one owner. Memory: fixed.
 */
#ifndef XS_FINDINGS_H
#define XS_FINDINGS_H

#include "common/status.h"
#include "common/text.h"

typedef enum xs_verdict {
    XS_GOOD = 0, /* nothing to do */
    XS_NOTE,     /* to know; nothing is wrong */
    XS_SLOW,     /* works, at the stated cost */
    XS_BAD,      /* will not work like this */
    XS_N_VERDICTS
} xs_verdict;

enum { XS_MAX_FINDINGS = 24 };

typedef struct xs_finding {
    const char *name; /* static: "memlock" */
    xs_verdict verdict;
    char found[240];
    char cost[200];   /* "" when there is none */
    char change[240]; /* "" when there is nothing to change */
} xs_finding;

typedef struct xs_findings {
    xs_finding items[XS_MAX_FINDINGS];
    uint32_t n;
} xs_findings;

/* Adds one with `found` filled in; the caller fills cost and change. Never NULL. */
xs_finding *xs_findings_add(xs_findings *f, const char *name, xs_verdict verdict, const char *fmt,
                            ...) MOE_PRINTF(4, 5);
void xs_finding_cost(xs_finding *f, const char *fmt, ...) MOE_PRINTF(2, 3);
void xs_finding_change(xs_finding *f, const char *fmt, ...) MOE_PRINTF(2, 3);
const char *xs_verdict_name(xs_verdict v);
xs_verdict xs_findings_worst(const xs_findings *f);

/* A line each, with "costs" and "change" lines below where there are any. */
void xs_findings_table(const xs_findings *f, moe_text *out);
/* A JSON array. */
void xs_findings_json(const xs_findings *f, moe_text *out);

#endif
