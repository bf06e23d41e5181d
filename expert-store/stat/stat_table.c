/* stat_table.c - see stat_table.h. */
#include "expert-store/stat/stat_table.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expert-store/stat/lookup.h"

typedef struct view {
    const moe_metrics *now, *earlier; /* borrowed; earlier may be NULL */
    double seconds;
    moe_text *out; /* borrowed */
} view;

/* ---- numbers for people ---- */

static void scaled(double v, double base, const char *const *units, size_t n_units, char *out,
                   size_t out_bytes)
{
    size_t u = 0;
    while (fabs(v) >= base && u + 1 < n_units) {
        v /= base;
        u++;
    }
    int digits = u == 0 || fabs(v) >= 100 ? 0 : fabs(v) >= 10 ? 1 : 2;
    snprintf(out, out_bytes, "%.*f%s%s", digits, v, units[u][0] != '\0' ? " " : "", units[u]);
}

void xs_human_bytes(double bytes, char *out, size_t out_bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    scaled(bytes, 1024, units, 5, out, out_bytes);
}

void xs_human_count(double n, char *out, size_t out_bytes)
{
    static const char *const units[] = {"", "k", "M", "G", "T"};
    scaled(n, 1000, units, 5, out, out_bytes);
}

void xs_human_seconds(double s, char *out, size_t out_bytes)
{
    if (isnan(s)) {
        snprintf(out, out_bytes, "-");
    } else if (s < 1e-3) {
        snprintf(out, out_bytes, "%.0f us", s * 1e6);
    } else if (s < 1) {
        snprintf(out, out_bytes, "%.1f ms", s * 1e3);
    } else if (s < 120) {
        snprintf(out, out_bytes, "%.1f s", s);
    } else if (s < 7200) {
        snprintf(out, out_bytes, "%.0f min", s / 60);
    } else {
        snprintf(out, out_bytes, "%.1f h", s / 3600);
    }
}

/* ---- looking into lists ---- */

static double labelled(const view *v, const char *name, const char *label)
{
    double sum = xs_stat_sum(v->now, name, label);
    return isnan(sum) ? 0 : sum;
}

static double value(const view *v, const char *name)
{
    return labelled(v, name, NULL);
}

static double rate(const view *v, const char *name)
{
    double before = xs_stat_sum(v->earlier, name, NULL);
    return v->seconds > 0 ? (value(v, name) - before) / v->seconds : NAN;
}

static void label_of(const view *v, const char *name, const char *label, char *out,
                     size_t out_bytes)
{
    const moe_metric *item = xs_stat_find(v->now, name);
    snprintf(out, out_bytes, "-");
    if (item != NULL) {
        xs_stat_label(item, label, out, out_bytes);
    }
}

/* ---- lines ---- */

static void group(const view *v, const char *title)
{
    moe_text_printf(v->out, "%s\n", title);
}

static void line(const view *v, const char *what, const char *text)
{
    moe_text_printf(v->out, "  %-22s %s\n", what, text);
}

static void count_line(const view *v, const char *what, const char *name)
{
    char n[32];
    char text[96];
    double per_s = rate(v, name);
    xs_human_count(value(v, name), n, sizeof n);
    snprintf(text, sizeof text, "%s", n);
    if (!isnan(per_s)) {
        char r[32];
        xs_human_count(per_s, r, sizeof r);
        snprintf(text, sizeof text, "%-14s %s/s", n, r);
    }
    line(v, what, text);
}

static void share_line(const view *v, const char *what, const char *name, double all)
{
    char n[32];
    char text[96];
    xs_human_count(value(v, name), n, sizeof n);
    snprintf(text, sizeof text, "%-14s %5.1f %%", n, all > 0 ? 100 * value(v, name) / all : 0.0);
    line(v, what, text);
}

static void quantile_line(const view *v, const char *what, const char *name)
{
    char p[3][32];
    char text[128];
    static const double q[3] = {0.5, 0.9, 0.99};
    for (int i = 0; i < 3; i++) {
        xs_human_seconds(xs_stat_quantile(v->now, NULL, name, q[i]), p[i], sizeof p[i]);
    }
    snprintf(text, sizeof text, "p50 %-10s p90 %-10s p99 %s", p[0], p[1], p[2]);
    line(v, what, text);
}

/* ---- groups ---- */

static void show_store(const view *v)
{
    char text[160];
    char model[64];
    char engine[32];
    char uptime[32];
    label_of(v, "pregate_store_info", "model", model, sizeof model);
    label_of(v, "pregate_store_engine", "engine", engine, sizeof engine);
    xs_human_seconds(value(v, "pregate_store_uptime_seconds"), uptime, sizeof uptime);
    group(v, "store");
    line(v, "model", model);
    snprintf(text, sizeof text, "%s, boot %.0f%s", uptime, value(v, "pregate_store_boot"),
             value(v, "pregate_store_stopping") != 0 ? ", STOPPING" : "");
    line(v, "up", text);
    snprintf(text, sizeof text, "%s, %s, %s%s", engine,
             value(v, "pregate_store_direct") != 0 ? "direct" : "through the page cache",
             value(v, "pregate_store_pinned") != 0 ? "pinned" : "NOT PINNED",
             value(v, "pregate_store_registered_buffers") != 0 ? ", registered buffers" : "");
    line(v, "memory and drive", text);
}

static void show_memory(const view *v)
{
    char text[160];
    char ram[32];
    char slot[32];
    xs_human_bytes(value(v, "pregate_store_ram_bytes"), ram, sizeof ram);
    xs_human_bytes(value(v, "pregate_store_slot_bytes"), slot, sizeof slot);
    group(v, "memory");
    snprintf(text, sizeof text, "%s in %.0f slots of %s", ram, value(v, "pregate_store_slots_max"),
             slot);
    line(v, "experts", text);
    double ordered = value(v, "pregate_store_slots_ordered");
    if (ordered != value(v, "pregate_store_slots_max")) {
        snprintf(text, sizeof text, "%.0f slots%s", ordered,
                 ordered > value(v, "pregate_store_slots_max")
                     ? ", but memory ended early"
                     : "; the others are kept while a worker is there");
        line(v, "asked for", text);
    }
    double unmade = labelled(v, "pregate_store_slots", "state=\"unmade\"");
    if (unmade > 0) {
        snprintf(text, sizeof text, "%.0f slots, while the others serve", unmade);
        line(v, "being made", text);
    }
    snprintf(text, sizeof text, "%.0f of %.0f experts, %.0f leased, %.0f loading, %.0f pinned",
             labelled(v, "pregate_store_slots", "state=\"ready\""),
             value(v, "pregate_store_experts"), value(v, "pregate_store_slots_leased"),
             labelled(v, "pregate_store_slots", "state=\"loading\""),
             value(v, "pregate_store_experts_pinned"));
    line(v, "in memory", text);
    count_line(v, "evictions", "pregate_store_evictions_total");
    count_line(v, "wasted", "pregate_store_wasted_total");
    snprintf(text, sizeof text, "%.0f, %.0f hashed again, %.0f bad",
             value(v, "pregate_store_adopted_slots"), value(v, "pregate_store_reverified_total"),
             value(v, "pregate_store_reverify_failures_total"));
    line(v, "adopted slots", text);
}

static void show_tier(const view *v, const char *title, const char *hit, const char *late,
                      const char *miss)
{
    double all = value(v, hit) + value(v, late) + value(v, miss);
    group(v, title);
    share_line(v, "hit", hit, all);
    share_line(v, "late", late, all);
    share_line(v, "miss", miss, all);
}

static void show_drive(const view *v)
{
    char total[32];
    char per_s[32];
    char text[160];
    xs_human_bytes(value(v, "pregate_store_read_bytes_total"), total, sizeof total);
    double now = rate(v, "pregate_store_read_bytes_total");
    xs_human_bytes(isnan(now) ? value(v, "pregate_store_read_bytes_per_second") : now, per_s,
                   sizeof per_s);
    group(v, "drive");
    snprintf(text, sizeof text, "%-14s %s/s", total, per_s);
    line(v, "read", text);
    snprintf(text, sizeof text, "demand %.0f, near %.0f, far %.0f, warm %.0f; in flight %.0f",
             labelled(v, "pregate_store_queue_depth", "class=\"demand\""),
             labelled(v, "pregate_store_queue_depth", "class=\"near\""),
             labelled(v, "pregate_store_queue_depth", "class=\"far\""),
             labelled(v, "pregate_store_queue_depth", "class=\"warm\""),
             value(v, "pregate_store_experts_in_flight"));
    line(v, "queue", text);
    quantile_line(v, "one expert", "pregate_store_read_seconds");
    quantile_line(v, "want to ready", "pregate_store_want_seconds");
    count_line(v, "failed reads", "pregate_store_load_failures_total");
    count_line(v, "bad hashes", "pregate_store_verify_failures_total");
}

static void show_workers(const view *v)
{
    char text[160];
    double copied = value(v, "pregate_worker_copy_seconds_total");
    group(v, "workers");
    snprintf(text, sizeof text, "%.0f of %.0f, %.0f leases each at most",
             value(v, "pregate_store_workers"), value(v, "pregate_store_workers_max"),
             value(v, "pregate_store_lease_capacity"));
    line(v, "served", text);
    count_line(v, "decoder steps", "pregate_worker_decode_steps_total");
    count_line(v, "tokens made", "pregate_worker_output_tokens_total");
    count_line(v, "experts copied", "pregate_worker_copies_total");
    snprintf(text, sizeof text, "%.1f %% of copy time",
             copied > 0 ? 100 * value(v, "pregate_worker_copy_hidden_seconds_total") / copied
                        : 0.0);
    line(v, "hidden by compute", text);
    count_line(v, "refused messages", "pregate_store_refused_total");
    count_line(v, "malformed messages", "pregate_store_malformed_total");
}

void xs_stat_table(const moe_metrics *now, const moe_metrics *earlier, double seconds,
                   moe_text *out)
{
    const view v = {
        .now = now, .earlier = earlier, .seconds = earlier != NULL ? seconds : 0, .out = out};
    show_store(&v);
    show_memory(&v);
    show_tier(&v, "slots (host memory)", "pregate_slot_hit_total", "pregate_slot_late_total",
              "pregate_slot_miss_total");
    show_tier(&v, "cells (device memory)", "pregate_cell_hit_total", "pregate_cell_late_total",
              "pregate_cell_miss_total");
    count_line(&v, "wasted", "pregate_cell_wasted_total");
    show_drive(&v);
    show_workers(&v);
}

void xs_stat_table_blocks(const moe_metrics *now, moe_text *out)
{
    static const char *const columns[] = {"pregate_slot_hit_total",    "pregate_slot_late_total",
                                          "pregate_slot_miss_total",   "pregate_cell_hit_total",
                                          "pregate_cell_late_total",   "pregate_cell_miss_total",
                                          "pregate_cell_wasted_total", "pregate_store_block_ready"};
    moe_text_printf(out, "%-8s %10s %10s %10s %10s %10s %10s %10s %10s\n", "block", "slot hit",
                    "late", "miss", "cell hit", "late", "miss", "wasted", "in memory");
    for (uint32_t i = 0; i < now->n; i++) {
        char block[24];
        char label[40];
        if (strcmp(now->items[i].name, "pregate_store_block_ready") != 0) {
            continue;
        }
        xs_stat_label(&now->items[i], "block", block, sizeof block);
        snprintf(label, sizeof label, "block=\"%s\"", block);
        moe_text_printf(out, "%-8s", block);
        for (size_t c = 0; c < sizeof columns / sizeof columns[0]; c++) {
            char n[32];
            double sum = xs_stat_sum(now, columns[c], label);
            xs_human_count(isnan(sum) ? 0 : sum, n, sizeof n);
            moe_text_printf(out, " %10s", n);
        }
        moe_text_append(out, "\n", 1);
    }
}
