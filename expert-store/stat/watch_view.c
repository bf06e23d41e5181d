/* watch_view.c - see watch_view.h. */
#include "expert-store/stat/watch_view.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expert-store/stat/lookup.h"
#include "expert-store/stat/stat_table.h"
#include "proto/expert_map.h"

enum {
    LINE_BYTES = 256,
    MAX_EXPERTS = 4096, /* of one block */
    BAR_CELLS = 10,
    ROW_HEAD_COLUMNS = 24, /* "enc11   98.1 %   12/128 " */
    N_HEAD_LINES = 7
};

typedef struct view {
    const moe_metrics *now, *earlier; /* borrowed; earlier may be NULL */
    double seconds;
    xs_screen screen;
    moe_text *out; /* borrowed */
} view;

/* ---- numbers ---- */

static double value(const view *v, const char *name, const char *label)
{
    double sum = xs_stat_sum(v->now, name, label);
    return isnan(sum) ? 0 : sum;
}

/* What came since the earlier list; NaN when there is none. */
static double grown(const view *v, const char *name, const char *label)
{
    double before = xs_stat_sum(v->earlier, name, label);
    return v->earlier == NULL ? NAN : value(v, name, label) - (isnan(before) ? 0 : before);
}

static double rate(const view *v, const char *name)
{
    return v->seconds > 0 ? grown(v, name, NULL) / v->seconds : NAN;
}

/* ---- lines ---- */

/* Plain text only: cut to the screen's width. In UTF-8 a character may take three bytes. */
static void line(const view *v, const char *text)
{
    size_t bytes = 0;
    uint32_t columns = 0;
    while (text[bytes] != '\0') {
        bool begins = (text[bytes] & 0xc0) != 0x80;
        if (begins && columns == v->screen.columns) {
            break;
        }
        columns += begins;
        bytes++;
    }
    moe_text_append(v->out, text, bytes);
    moe_text_append(v->out, "\n", 1);
}

static void percent(double part, double all, char *out, size_t out_bytes)
{
    if (isnan(part) || isnan(all) || all <= 0) {
        snprintf(out, out_bytes, "-");
    } else {
        snprintf(out, out_bytes, "%.1f %%", 100 * part / all);
    }
}

static void per_second(double per_s, char *out, size_t out_bytes)
{
    char n[24];
    if (isnan(per_s)) {
        snprintf(out, out_bytes, "-");
        return;
    }
    xs_human_count(per_s, n, sizeof n);
    snprintf(out, out_bytes, "%s/s", n);
}

static void show_title(const view *v)
{
    char text[LINE_BYTES];
    char model[64] = "-";
    char engine[32] = "-";
    char uptime[32];
    const moe_metric *info = xs_stat_find(v->now, "pregate_store_info");
    const moe_metric *how = xs_stat_find(v->now, "pregate_store_engine");
    if (info != NULL) {
        xs_stat_label(info, "model", model, sizeof model);
    }
    if (how != NULL) {
        xs_stat_label(how, "engine", engine, sizeof engine);
    }
    xs_human_seconds(value(v, "pregate_store_uptime_seconds", NULL), uptime, sizeof uptime);
    snprintf(text, sizeof text, "%s  up %s, boot %.0f  %s%s%s%s", model, uptime,
             value(v, "pregate_store_boot", NULL), engine,
             value(v, "pregate_store_direct", NULL) != 0 ? "" : ", PAGE CACHE",
             value(v, "pregate_store_pinned", NULL) != 0 ? "" : ", NOT PINNED",
             value(v, "pregate_store_stopping", NULL) != 0 ? ", STOPPING" : "");
    line(v, text);
}

/* A bar on a logarithmic scale, so that 10 MB/s and 50 GB/s both show: a cell for each doubling
 * above 32 MB/s. */
static void bar(const view *v, double bytes_per_s, char *out, size_t out_bytes)
{
    double cells = bytes_per_s > 0 ? log2(bytes_per_s / 32e6) : 0;
    size_t used = 0;
    for (int i = 0; i < BAR_CELLS; i++) {
        const char *full = v->screen.utf8 ? "\u2588" : "#";
        const char *empty = v->screen.utf8 ? "\u2591" : ".";
        used += (size_t)snprintf(out + used, out_bytes - used, "%s", i < cells ? full : empty);
    }
}

static void flow(const view *v, const char *counter, char *out, size_t out_bytes)
{
    char cells[BAR_CELLS * 4];
    double bytes_per_s = rate(v, counter);
    bar(v, bytes_per_s, cells, sizeof cells);
    if (isnan(bytes_per_s)) {
        snprintf(out, out_bytes, "%s     - GB/s", cells);
    } else {
        snprintf(out, out_bytes, "%s %5.2f GB/s", cells, bytes_per_s / 1e9);
    }
}

static void show_flow(const view *v)
{
    char text[LINE_BYTES];
    char to_slots[96];
    char to_cells[96];
    const char *arrow = v->screen.utf8 ? "\u2192" : "->";
    flow(v, "pregate_store_read_bytes_total", to_slots, sizeof to_slots);
    flow(v, "pregate_worker_copy_bytes_total", to_cells, sizeof to_cells);
    snprintf(text, sizeof text, "drive %s slots  %s    slots %s cells  %s", arrow, to_slots, arrow,
             to_cells);
    line(v, text);
}

typedef struct tier {
    const char *name, *hit, *late, *miss;
} tier;

static void show_tier(const view *v, const tier *t, const char *more)
{
    char text[LINE_BYTES];
    char shares[3][32];
    const char *const names[3] = {t->hit, t->late, t->miss};
    double all = grown(v, t->hit, NULL) + grown(v, t->late, NULL) + grown(v, t->miss, NULL);
    for (int i = 0; i < 3; i++) {
        percent(grown(v, names[i], NULL), all, shares[i], sizeof shares[i]);
    }
    snprintf(text, sizeof text, "%s  hit %-8s late %-8s miss %-8s  %s", t->name, shares[0],
             shares[1], shares[2], more);
    line(v, text);
}

static void show_tiers(const view *v)
{
    static const tier slots = {"slots", "pregate_slot_hit_total", "pregate_slot_late_total",
                               "pregate_slot_miss_total"};
    static const tier cells = {"cells", "pregate_cell_hit_total", "pregate_cell_late_total",
                               "pregate_cell_miss_total"};
    char more[128];
    char a[32];
    char b[32];
    per_second(rate(v, "pregate_store_evictions_total"), a, sizeof a);
    per_second(rate(v, "pregate_store_wasted_total"), b, sizeof b);
    snprintf(more, sizeof more, "evicted %s, wasted %s", a, b);
    show_tier(v, &slots, more);
    per_second(rate(v, "pregate_worker_output_tokens_total"), a, sizeof a);
    per_second(rate(v, "pregate_worker_decode_steps_total"), b, sizeof b);
    snprintf(more, sizeof more, "tokens %s, steps %s, workers %.0f", a, b,
             value(v, "pregate_store_workers", NULL));
    show_tier(v, &cells, more);
}

static void show_quantiles(const view *v)
{
    static const struct {
        const char *what, *name;
    } histograms[] = {{"one expert", "pregate_store_read_seconds"},
                      {"want to ready", "pregate_store_want_seconds"}};
    static const double q[3] = {0.5, 0.9, 0.99};
    char text[LINE_BYTES];
    size_t used = 0;
    for (int h = 0; h < 2; h++) {
        char p[3][32];
        for (int i = 0; i < 3; i++) {
            xs_human_seconds(xs_stat_quantile(v->now, v->earlier, histograms[h].name, q[i]), p[i],
                             sizeof p[i]);
        }
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s p50 %s p90 %s p99 %s",
                                 h > 0 ? "    " : "", histograms[h].what, p[0], p[1], p[2]);
    }
    line(v, text);
}

static void show_queue(const view *v)
{
    char text[LINE_BYTES];
    snprintf(text, sizeof text,
             "queue  demand %.0f, near %.0f, far %.0f, warm %.0f; in flight %.0f",
             value(v, "pregate_store_queue_depth", "class=\"demand\""),
             value(v, "pregate_store_queue_depth", "class=\"near\""),
             value(v, "pregate_store_queue_depth", "class=\"far\""),
             value(v, "pregate_store_queue_depth", "class=\"warm\""),
             value(v, "pregate_store_experts_in_flight", NULL));
    line(v, text);
}

/* ---- the map ---- */

typedef struct cell {
    wire_map_place place;
    uint32_t heat;
} cell;

/* The nearest, the warmest of equals. */
static cell better(cell a, cell b)
{
    if (a.place != b.place) {
        return a.place > b.place ? a : b;
    }
    return a.heat >= b.heat ? a : b;
}

/* Puts the characters of one sample where they belong; returns one past the last. */
static uint32_t place_sample(const moe_metric *item, char *map)
{
    char from_text[16];
    char part[WIRE_MAP_EXPERTS + 1];
    xs_stat_label(item, "from", from_text, sizeof from_text);
    xs_stat_label(item, "map", part, sizeof part);
    unsigned long from = strtoul(from_text, NULL, 10);
    size_t n = strlen(part);
    if (from + n > MAX_EXPERTS) {
        return 0;
    }
    memcpy(map + from, part, n);
    return (uint32_t)(from + n);
}

/* The whole map of a block; its length. */
static uint32_t collect_map(const view *v, const char *block, char *map)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < v->now->n; i++) {
        const moe_metric *item = &v->now->items[i];
        char its[24];
        if (strcmp(item->name, WIRE_MAP_METRIC) != 0) {
            continue;
        }
        xs_stat_label(item, "block", its, sizeof its);
        if (strcmp(its, block) == 0) {
            uint32_t end = place_sample(item, map);
            n = end > n ? end : n;
        }
    }
    return n;
}

/* Grey for the drive, yellow while it is read, green for a slot, blue while a worker reads it; the
 * warmer the brighter. Indices into the 256-colour cube. */
static uint32_t colour_of(cell c)
{
    static const uint8_t grey[] = {234, 235, 236, 237, 238, 239, 240, 241, 242, 243};
    static const uint8_t green[] = {22, 22, 28, 28, 34, 34, 40, 40, 46, 46};
    static const uint8_t blue[] = {18, 19, 20, 21, 27, 33, 39, 45, 51, 123};
    switch (c.place) {
    case WIRE_MAP_LOADING:
        return 220;
    case WIRE_MAP_SLOT:
        return green[c.heat];
    case WIRE_MAP_LEASED:
        return blue[c.heat];
    case WIRE_MAP_DRIVE:
        break;
    }
    return grey[c.heat];
}

static void show_cell(const view *v, cell c, uint32_t *last_colour)
{
    if (!v->screen.color) {
        moe_text_printf(v->out, "%c", wire_map_char(c.place, c.heat));
        return;
    }
    if (*last_colour != colour_of(c)) {
        *last_colour = colour_of(c);
        moe_text_printf(v->out, "\033[38;5;%um", *last_colour);
    }
    moe_text_printf(v->out, "%s",
                    v->screen.utf8              ? "\u2588"
                    : c.place == WIRE_MAP_DRIVE ? "."
                                                : "#");
}

/* A cell each, apart where there is room; else a cell for several. */
static void show_map(const view *v, const char *map, uint32_t n)
{
    uint32_t room = v->screen.columns > ROW_HEAD_COLUMNS ? v->screen.columns - ROW_HEAD_COLUMNS : 0;
    uint32_t per_cell = room > 0 ? (n + room - 1) / room : 0;
    const char *gap = room >= 2 * n ? " " : "";
    uint32_t last_colour = UINT32_MAX;
    for (uint32_t at = 0; per_cell > 0 && at < n; at += per_cell) {
        cell best = {WIRE_MAP_DRIVE, 0};
        for (uint32_t i = at; i < at + per_cell && i < n; i++) {
            cell c = {WIRE_MAP_DRIVE, 0};
            if (wire_map_read(map[i], &c.place, &c.heat)) {
                best = better(best, c);
            }
        }
        show_cell(v, best, &last_colour);
        moe_text_printf(v->out, "%s", gap);
    }
    moe_text_printf(v->out, "%s\n", last_colour != UINT32_MAX ? "\033[0m" : "");
}

static void show_block(const view *v, const char *block)
{
    static char map[MAX_EXPERTS];
    char label[40];
    char hits[32];
    char head[64];
    memset(map, 'a', sizeof map);
    snprintf(label, sizeof label, "block=\"%s\"", block);
    uint32_t n = collect_map(v, block, map);
    double hit = grown(v, "pregate_slot_hit_total", label);
    double all = hit + grown(v, "pregate_slot_late_total", label) +
                 grown(v, "pregate_slot_miss_total", label);
    percent(hit, all, hits, sizeof hits);
    snprintf(head, sizeof head, "%-6s%9s%5.0f/%-3u", block, hits,
             value(v, "pregate_store_block_ready", label), n);
    moe_text_printf(v->out, "%-*.*s", (int)ROW_HEAD_COLUMNS, (int)ROW_HEAD_COLUMNS, head);
    show_map(v, map, n);
}

/* The next block's sample from index *from on, which moves past it; NULL after the last. */
static const moe_metric *next_block(const view *v, uint32_t *from)
{
    while (*from < v->now->n) {
        const moe_metric *item = &v->now->items[(*from)++];
        if (strcmp(item->name, "pregate_store_block_ready") == 0) {
            return item;
        }
    }
    return NULL;
}

/* What does not fit is counted in the last line. */
static void show_blocks(const view *v)
{
    uint32_t room = v->screen.rows > N_HEAD_LINES ? v->screen.rows - N_HEAD_LINES : 0;
    uint32_t n_blocks = 0;
    uint32_t at = 0;
    while (next_block(v, &at) != NULL) {
        n_blocks++;
    }
    uint32_t n_shown = n_blocks <= room ? n_blocks : room > 0 ? room - 1 : 0;
    at = 0;
    for (uint32_t i = 0; i < n_shown; i++) {
        char block[24];
        xs_stat_label(next_block(v, &at), "block", block, sizeof block);
        show_block(v, block);
    }
    if (n_shown < n_blocks && room > 0) {
        char text[64];
        snprintf(text, sizeof text, "... and %u more: make the window higher", n_blocks - n_shown);
        line(v, text);
    }
}

void xs_watch_view(const moe_metrics *now, const moe_metrics *earlier, double seconds,
                   const xs_screen *screen, moe_text *out)
{
    const view v = {.now = now,
                    .earlier = earlier,
                    .seconds = earlier != NULL ? seconds : 0,
                    .screen = *screen,
                    .out = out};
    show_title(&v);
    show_flow(&v);
    show_tiers(&v);
    show_quantiles(&v);
    show_queue(&v);
    line(&v, "block  slot hit    ready experts: on the drive, being read, in a slot, leased; "
             "brighter: warmer");
    show_blocks(&v);
}
