/* main.c - program expert-stat: what a store is doing, for people and for programs; and the
 * operator's orders. Exit status: 0, 1 when the store does not answer or refuses, 2 for wrong
 * settings. One thread. */
#include <langinfo.h>
#include <locale.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/config.h"
#include "expert-store/stat/expert_list.h"
#include "expert-store/stat/stat_client.h"
#include "expert-store/stat/stat_table.h"
#include "expert-store/stat/watch_view.h"

typedef struct stat_config {
    char endpoint[MOE_CFG_STR_BYTES];
    bool watch, json, prometheus, per_block, color, drain;
    char prefetch[MOE_CFG_STR_BYTES], pin[MOE_CFG_STR_BYTES], unpin[MOE_CFG_STR_BYTES],
        evict[MOE_CFG_STR_BYTES], ram_bytes[MOE_CFG_STR_BYTES];
} stat_config;

#define ROW(field, type, dflt, help) MOE_ROW(stat_config, field, type, 0, 0, dflt, help)
static const moe_config_row rows[] = {
    ROW(endpoint, MOE_CFG_STR, "", "ipc:// address of the store; default as expert-store's"),
    ROW(watch, MOE_CFG_BOOL, "false",
        "draw again, with rates, until interrupted; a number of seconds may follow (default 1)"),
    ROW(json, MOE_CFG_BOOL, "false", "print JSON; with --watch one line each time"),
    ROW(prometheus, MOE_CFG_BOOL, "false", "print the Prometheus text format"),
    ROW(per_block, MOE_CFG_BOOL, "false", "one line per MoE block"),
    ROW(color, MOE_CFG_BOOL, "true", "colours in --watch on a terminal; without them letters"),
    ROW(prefetch, MOE_CFG_STR, "", "read these experts into memory: all, 0-15, dec0, enc1:3-5,..."),
    ROW(pin, MOE_CFG_STR, "", "never evict these experts"),
    ROW(unpin, MOE_CFG_STR, "", "take --pin back"),
    ROW(evict, MOE_CFG_STR, "", "take these experts out of memory"),
    ROW(ram_bytes, MOE_CFG_STR, "", "give the store more memory, while it serves: 16GiB, 25%, all"),
    ROW(drain, MOE_CFG_BOOL, "false", "let the store finish what it is doing and stop"),
};

static const moe_config_spec spec = {
    .program = "expert-stat",
    .section = "stat",
    .synopsis = "[--watch [SECONDS]] [--json|--prometheus] [--per-block]",
    .about = "Shows what an expert-store does, or tells it what to do.",
    .rows = rows,
    .n_rows = sizeof rows / sizeof rows[0],
};

static int fail(const moe_err *err, int code)
{
    char text[600];
    moe_err_format(err, text, sizeof text);
    fprintf(stderr, "expert-stat: %s\n", text);
    return code;
}

/* ---- showing ---- */

/* A screen that is drawn over and over; everything else is printed line after line. */
static bool draws(const stat_config *cfg)
{
    return cfg->watch && !cfg->json && !cfg->prometheus && !cfg->per_block && isatty(STDOUT_FILENO);
}

static xs_screen find_screen(const stat_config *cfg)
{
    struct winsize size = {0};
    bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 0;
    return (xs_screen){.columns = known ? size.ws_col : 80,
                       .rows = known ? size.ws_row - 1u : 23,
                       .color = cfg->color,
                       .utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0};
}

static moe_status format(const stat_config *cfg, const moe_metrics *now, const moe_metrics *earlier,
                         double seconds, moe_text *out, moe_err *err)
{
    if (cfg->json) {
        moe_status st = moe_metrics_json(now, out, err);
        moe_text_append(out, "\n", 1);
        return st;
    }
    if (cfg->prometheus) {
        return moe_metrics_prometheus(now, out, err);
    }
    if (draws(cfg)) {
        const xs_screen screen = find_screen(cfg);
        xs_watch_view(now, earlier, seconds, &screen, out);
    } else if (cfg->per_block) {
        xs_stat_table_blocks(now, out);
    } else {
        xs_stat_table(now, earlier, seconds, out);
    }
    return moe_text_finish(out, err);
}

/* Over what is there, each line cleared behind its end, so that nothing flickers. */
static void redraw(const moe_text *text)
{
    static const char home[] = "\033[H";
    static const char clear_line[] = "\033[K\n";
    static const char clear_below[] = "\033[J";
    fputs(home, stdout);
    for (const char *at = text->data; *at != '\0';) {
        size_t n = strcspn(at, "\n");
        fwrite(at, 1, n, stdout);
        fputs(at[n] != '\0' ? clear_line : "", stdout);
        at += n + (at[n] != '\0');
    }
    fputs(clear_below, stdout);
}

static moe_status print(const stat_config *cfg, const moe_metrics *now, const moe_metrics *earlier,
                        double seconds, moe_err *err)
{
    moe_text text;
    moe_text_init(&text);
    moe_status st = format(cfg, now, earlier, seconds, &text, err);
    if (st == MOE_OK) {
        if (cfg->watch && !cfg->json && !cfg->prometheus && isatty(STDOUT_FILENO)) {
            redraw(&text);
        } else {
            fwrite(text.data, 1, text.len, stdout);
        }
        fflush(stdout);
    }
    moe_text_fini(&text);
    return st;
}

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

static moe_status show(const stat_config *cfg, xs_stat_client *client, double period_s,
                       moe_err *err)
{
    moe_metrics earlier;
    moe_metrics_init(&earlier);
    int64_t earlier_ns = 0;
    const uint32_t flags = draws(cfg)       ? WIRE_STATS_BLOCKS | WIRE_STATS_MAPS
                           : cfg->per_block ? WIRE_STATS_BLOCKS
                                            : 0;
    moe_status st = MOE_OK;
    do {
        moe_metrics now;
        moe_metrics_init(&now);
        st = xs_stat_fetch(client, flags, &now, err);
        int64_t now_ns = moe_now_ns();
        if (st == MOE_OK) {
            double seconds = (double)(now_ns - earlier_ns) / (double)MOE_NS_PER_S;
            st = print(cfg, &now, earlier.n > 0 ? &earlier : NULL, seconds, err);
        }
        moe_metrics_fini(&earlier);
        earlier = now;
        earlier_ns = now_ns;
        if (st == MOE_OK && cfg->watch && !interrupted) {
            usleep((useconds_t)(period_s * 1e6)); /* ends early at a signal, as it should */
        }
    } while (st == MOE_OK && cfg->watch && !interrupted);
    moe_metrics_fini(&earlier);
    return interrupted ? MOE_OK : st;
}

/* ---- orders ---- */

static moe_status learn_space(const stat_config *cfg, xs_expert_space *out, moe_err *err)
{
    static xs_stat_client client; /* holds messages: off the stack */
    moe_metrics m;
    moe_metrics_init(&m);
    moe_status st = xs_stat_open(&client, cfg->endpoint, false, err);
    if (st == MOE_OK) {
        st = xs_stat_fetch(&client, 0, &m, err);
    }
    if (st == MOE_OK) {
        *out = (xs_expert_space){
            .n_experts = (uint32_t)moe_metrics_find(&m, "pregate_store_experts", NULL),
            .per_block = (uint32_t)moe_metrics_find(&m, "pregate_store_experts_per_block", NULL),
            .enc_blocks = (uint32_t)moe_metrics_find(&m, "pregate_store_encoder_blocks", NULL)};
    }
    moe_metrics_fini(&m);
    xs_stat_close(&client);
    return st;
}

typedef struct order {
    wire_kind kind;
    uint32_t pin;
    const char *list; /* borrowed */
} order;

/* The store's own words, if it took the order. */
static moe_status told(moe_status st, const char *text)
{
    if (st == MOE_OK) {
        printf("%s\n", text);
    }
    return st;
}

static moe_status give_list(const stat_config *cfg, xs_stat_client *client, const order *o,
                            moe_err *err)
{
    char text[WIRE_MAX_TEXT];
    xs_expert_space space = {0};
    uint32_t *experts = NULL;
    uint32_t n = 0;
    moe_status st = learn_space(cfg, &space, err);
    if (st == MOE_OK) {
        st = xs_expert_list_parse(o->list, &space, &experts, &n, err);
    }
    for (uint32_t done = 0; done < n && st == MOE_OK; done += WIRE_MAX_EXPERTS) {
        uint32_t part = n - done < WIRE_MAX_EXPERTS ? n - done : WIRE_MAX_EXPERTS;
        st = told(xs_stat_order(client, o->kind, o->pin, experts + done, part, text, err), text);
    }
    free(experts);
    return st;
}

static moe_status give_orders(const stat_config *cfg, xs_stat_client *client, moe_err *err)
{
    char text[WIRE_MAX_TEXT];
    const order orders[] = {{WIRE_EVICT, 0, cfg->evict},
                            {WIRE_PIN, 0, cfg->unpin},
                            {WIRE_PIN, 1, cfg->pin},
                            {WIRE_PREFETCH, 0, cfg->prefetch}};
    moe_status st = MOE_OK;
    if (cfg->ram_bytes[0] != '\0') {
        st = told(xs_stat_resize(client, cfg->ram_bytes, text, err), text);
    }
    for (size_t i = 0; i < sizeof orders / sizeof orders[0] && st == MOE_OK; i++) {
        if (orders[i].list[0] != '\0') {
            st = give_list(cfg, client, &orders[i], err);
        }
    }
    if (st == MOE_OK && cfg->drain) {
        st = told(xs_stat_order(client, WIRE_DRAIN, 0, NULL, 0, text, err), text);
    }
    return st;
}

/* ---- program ---- */

static bool has_orders(const stat_config *cfg)
{
    return cfg->drain || cfg->prefetch[0] != '\0' || cfg->pin[0] != '\0' || cfg->unpin[0] != '\0' ||
           cfg->evict[0] != '\0' || cfg->ram_bytes[0] != '\0';
}

static moe_status check(stat_config *cfg, const char *period, double *out_period_s, moe_err *err)
{
    if (cfg->json && cfg->prometheus) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "--json and --prometheus exclude each other");
    }
    *out_period_s = 1;
    if (period != NULL) {
        char *end = NULL;
        *out_period_s = strtod(period, &end);
        if (!cfg->watch || *end != '\0' || !(*out_period_s >= 0.05 && *out_period_s <= 3600)) {
            return MOE_FAIL(err, MOE_ERR_INVALID,
                            "unexpected \"%.40s\": only --watch takes a number, 0.05 to 3600 "
                            "seconds",
                            period);
        }
    }
    if (cfg->endpoint[0] == '\0') {
        return moe_default_endpoint(cfg->endpoint, sizeof cfg->endpoint, err);
    }
    return MOE_OK;
}

static int run(const stat_config *cfg, double period_s)
{
    static xs_stat_client client; /* holds messages: off the stack */
    moe_err err = {0};
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    moe_status st = xs_stat_open(&client, cfg->endpoint, has_orders(cfg), &err);
    if (st == MOE_OK) {
        st = has_orders(cfg) ? give_orders(cfg, &client, &err) : show(cfg, &client, period_s, &err);
    }
    xs_stat_close(&client);
    return st == MOE_OK ? 0 : fail(&err, 1);
}

int main(int argc, char **argv)
{
    static stat_config cfg;
    moe_err err = {0};
    (void)setlocale(LC_CTYPE, ""); /* only to know whether the terminal takes UTF-8 */
    const char *period = NULL;
    uint32_t n_positional = 0;
    double period_s = 1;
    moe_config_action action = MOE_CONFIG_RUN;
    moe_status st =
        moe_config_load(&spec, argc, argv, &cfg, &period, 1, &n_positional, &action, &err);
    if (st != MOE_OK) {
        return fail(&err, 2);
    }
    if (moe_config_answer(&spec, action, &cfg, stdout)) {
        return 0;
    }
    st = check(&cfg, n_positional > 0 ? period : NULL, &period_s, &err);
    return st == MOE_OK ? run(&cfg, period_s) : fail(&err, 2);
}
