/* findings.c - see findings.h. */
#include "expert-store/doctor/findings.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const verdict_names[XS_N_VERDICTS] = {
    [XS_GOOD] = "good", [XS_NOTE] = "note", [XS_SLOW] = "slow", [XS_BAD] = "bad"};

const char *xs_verdict_name(xs_verdict v)
{
    return verdict_names[v];
}

xs_finding *xs_findings_add(xs_findings *f, const char *name, xs_verdict verdict, const char *fmt,
                            ...)
{
    MOE_ASSERT(f->n < XS_MAX_FINDINGS);
    xs_finding *item = &f->items[f->n++];
    *item = (xs_finding){.name = name, .verdict = verdict};
    va_list args;
    va_start(args, fmt);
    vsnprintf(item->found, sizeof item->found, fmt, args);
    va_end(args);
    return item;
}

void xs_finding_cost(xs_finding *f, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(f->cost, sizeof f->cost, fmt, args);
    va_end(args);
}

void xs_finding_change(xs_finding *f, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(f->change, sizeof f->change, fmt, args);
    va_end(args);
}

xs_verdict xs_findings_worst(const xs_findings *f)
{
    xs_verdict worst = XS_GOOD;
    for (uint32_t i = 0; i < f->n; i++) {
        worst = f->items[i].verdict > worst ? f->items[i].verdict : worst;
    }
    return worst;
}

void xs_findings_table(const xs_findings *f, moe_text *out)
{
    for (uint32_t i = 0; i < f->n; i++) {
        const xs_finding *item = &f->items[i];
        moe_text_printf(out, "%-4s  %-11s %s\n", xs_verdict_name(item->verdict), item->name,
                        item->found);
        if (item->cost[0] != '\0') {
            moe_text_printf(out, "%18scosts:  %s\n", "", item->cost);
        }
        if (item->change[0] != '\0') {
            moe_text_printf(out, "%18schange: %s\n", "", item->change);
        }
    }
}

static void member(moe_text *out, const char *key, const char *value)
{
    moe_text_printf(out, "%s\"%s\": ", strcmp(key, "name") == 0 ? "" : ", ", key);
    moe_text_json_string(out, value, strlen(value));
}

void xs_findings_json(const xs_findings *f, moe_text *out)
{
    moe_text_printf(out, "[");
    for (uint32_t i = 0; i < f->n; i++) {
        const xs_finding *item = &f->items[i];
        moe_text_printf(out, "%s{", i > 0 ? ", " : "");
        member(out, "name", item->name);
        member(out, "verdict", xs_verdict_name(item->verdict));
        member(out, "found", item->found);
        member(out, "cost", item->cost);
        member(out, "change", item->change);
        moe_text_printf(out, "}");
    }
    moe_text_printf(out, "]");
}
