/* main.c - program expert-replay: what each eviction policy would have kept. Takes a trace that
 * expert-store --record-trace wrote, or makes one up (--zipf), runs every policy over it with
 * memories of several sizes, and prints hit rates beside the best static set and Belady's bound.
 * Results on stdout (--json: one object per size). Exit status: 0, 1 when the trace cannot be read,
 * 2 for wrong settings. One thread. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/config.h"
#include "common/file.h"
#include "common/text.h"
#include "expert-store/replay/simulate.h"

enum { MAX_SIZES = 16 };
#define MAX_TRACE_BYTES (4ull << 30)

typedef struct replay_config {
    double zipf;
    uint64_t experts, accesses, topics, seed;
    char slots[MOE_CFG_STR_BYTES];
    bool json;
} replay_config;

#define ROW(field, type, min, max, dflt, help)                                                     \
    MOE_ROW(replay_config, field, type, min, max, dflt, help)
static const moe_config_row rows[] = {
    ROW(slots, MOE_CFG_STR, 0, 0, "10%,25%,50%",
        "sizes of memory to try: numbers of slots, or shares of the experts"),
    ROW(zipf, MOE_CFG_F64, 0, 8, "0",
        "instead of a file: make up independent uses, the k-th expert's probability ~ k^-this"),
    ROW(experts, MOE_CFG_U64, 1, 1 << 24, "768", "of the made-up model"),
    ROW(accesses, MOE_CFG_U64, 1, 1e9, "200000", "uses to make up"),
    ROW(topics, MOE_CFG_U64, 1, 1e6, "1", "how often a new popularity is drawn meanwhile"),
    ROW(seed, MOE_CFG_U64, 0, 9007199254740992.0, "1", "of what is made up"),
    ROW(json, MOE_CFG_BOOL, 0, 0, "false", "print JSON, one line per size"),
};

static const moe_config_spec spec = {
    .program = "expert-replay",
    .section = "replay",
    .synopsis = "TRACE | --zipf 0.8 [--slots 16,32,25%] [--json]",
    .about = "Replays which experts were used through every eviction policy of expert-store, and "
             "compares their hit rates with the best static set and Belady's bound.",
    .rows = rows,
    .n_rows = sizeof rows / sizeof rows[0],
};

static int fail(const moe_err *err, int code)
{
    char text[600];
    moe_err_format(err, text, sizeof text);
    fprintf(stderr, "expert-replay: %s\n", text);
    return code;
}

/* ---- the trace ---- */

typedef struct trace {
    char name[160]; /* what was replayed, for people */
    xs_access_list list;
    int64_t predict_keep_us;
    uint64_t n_uses, n_predictions;
    uint32_t n_distinct;
} trace;

static moe_status make_up(const replay_config *cfg, trace *out, moe_err *err)
{
    const xs_zipf z = {.exponent = cfg->zipf,
                       .n_experts = (uint32_t)cfg->experts,
                       .n_uses = cfg->accesses,
                       .n_topics = (uint32_t)cfg->topics,
                       .seed = cfg->seed};
    snprintf(out->name, sizeof out->name, "zipf %g, %llu topic%s, seed %llu", cfg->zipf,
             (unsigned long long)cfg->topics, cfg->topics == 1 ? "" : "s",
             (unsigned long long)cfg->seed);
    return xs_access_list_zipf(&z, &out->list, err);
}

static moe_status read_file(const char *path, trace *out, moe_err *err)
{
    char *data = NULL;
    size_t bytes = 0;
    xs_trace_header header;
    moe_status st = moe_file_read(path, MAX_TRACE_BYTES, &data, &bytes, err);
    if (st != MOE_OK) {
        return st;
    }
    st = xs_access_list_read(data, bytes, &header, &out->list, err);
    free(data);
    if (st == MOE_OK) {
        out->predict_keep_us = header.predict_keep_us;
        snprintf(out->name, sizeof out->name, "%s, recorded with %u slots under %s", header.model,
                 header.n_slots,
                 header.policy < XS_N_EVICT_POLICIES
                     ? xs_evict_policy_name((xs_evict_policy)header.policy)
                     : "an unknown policy");
    }
    return st;
}

static moe_status get_trace(const replay_config *cfg, const char *path, trace *out, moe_err *err)
{
    moe_status st = path != NULL ? read_file(path, out, err) : make_up(cfg, out, err);
    if (st != MOE_OK) {
        return st;
    }
    out->n_uses = xs_access_list_uses(&out->list);
    out->n_distinct = xs_access_list_distinct(&out->list);
    for (uint64_t i = 0; i < out->list.n; i++) {
        out->n_predictions += out->list.items[i].kind == XS_ACCESS_PREDICTION;
    }
    return out->n_uses > 0 ? MOE_OK
                           : MOE_FAIL(err, MOE_ERR_INVALID, "no expert is used in this trace");
}

/* ---- sizes ---- */

static moe_status parse_sizes(const char *text, uint32_t n_experts, uint32_t *sizes,
                              uint32_t *out_n, moe_err *err)
{
    uint32_t n = 0;
    const char *at = text;
    for (bool more = true; more; more = *at++ == ',') {
        char *end = NULL;
        double v = strtod(at, &end);
        bool share = *end == '%';
        double slots = share ? v / 100 * n_experts : v;
        end += share;
        if (end == at || (*end != ',' && *end != '\0') || !(slots > 0 && slots <= 1 << 24) ||
            n == MAX_SIZES) {
            return MOE_FAIL(err, MOE_ERR_INVALID,
                            "--slots \"%.100s\": expected at most %d numbers or shares, as in "
                            "16,32,25%%",
                            text, MAX_SIZES);
        }
        sizes[n++] = slots < 1 ? 1 : (uint32_t)slots;
        at = end;
    }
    *out_n = n;
    return MOE_OK;
}

/* ---- results ---- */

typedef struct result {
    uint32_t n_slots;
    uint64_t best_static, roomier_static, belady, hits[XS_N_EVICT_POLICIES];
    int best; /* policy */
} result;

static moe_status run_size(const trace *t, uint32_t n_slots, result *out, moe_err *err)
{
    const xs_memory m = {.n_slots = n_slots, .predict_keep_us = t->predict_keep_us};
    result r = {.n_slots = n_slots};
    const xs_memory roomier = {.n_slots = n_slots + 1};
    moe_status st = xs_simulate_static(&t->list, &m, &r.best_static, err);
    if (st == MOE_OK) {
        st = xs_simulate_static(&t->list, &roomier, &r.roomier_static, err);
    }
    if (st == MOE_OK) {
        st = xs_simulate_belady(&t->list, &m, &r.belady, err);
    }
    for (int p = 0; p < XS_N_EVICT_POLICIES && st == MOE_OK; p++) {
        st = xs_simulate_policy(&t->list, &m, (xs_evict_policy)p, &r.hits[p], err);
        r.best = r.hits[p] > r.hits[r.best] ? p : r.best;
    }
    if (st == MOE_OK) {
        *out = r;
    }
    return st;
}

static double share(uint64_t part, uint64_t all)
{
    return all > 0 ? (double)part / (double)all : 0;
}

static void print_json(const trace *t, const result *r, moe_text *out)
{
    moe_text_printf(out, "{\"bench\": \"eviction\", \"trace\": ");
    moe_text_json_string(out, t->name, strlen(t->name));
    moe_text_printf(out,
                    ", \"n_experts\": %u, \"n_used\": %u, \"n_uses\": %llu, "
                    "\"n_predictions\": %llu, \"n_slots\": %u, \"hit_rate\": {",
                    t->list.n_experts, t->n_distinct, (unsigned long long)t->n_uses,
                    (unsigned long long)t->n_predictions, r->n_slots);
    for (int p = 0; p < XS_N_EVICT_POLICIES; p++) {
        moe_text_printf(out, "\"%s\": %.4f, ", xs_evict_policy_name((xs_evict_policy)p),
                        share(r->hits[p], t->n_uses));
    }
    moe_text_printf(
        out,
        "\"static\": %.4f, \"static_plus_1\": %.4f, \"belady\": %.4f}, \"best\": \"%s\", "
        "\"best_over_static\": %.4f, \"best_over_static_plus_1\": %.4f}\n",
        share(r->best_static, t->n_uses), share(r->roomier_static, t->n_uses),
        share(r->belady, t->n_uses), xs_evict_policy_name((xs_evict_policy)r->best),
        share(r->hits[r->best], r->best_static), share(r->hits[r->best], r->roomier_static));
}

static void print_heading(const trace *t, moe_text *out)
{
    moe_text_printf(out, "%s: %u experts, %u of them used %llu times, %llu predictions\n%8s",
                    t->name, t->list.n_experts, t->n_distinct, (unsigned long long)t->n_uses,
                    (unsigned long long)t->n_predictions, "slots");
    for (int p = 0; p < XS_N_EVICT_POLICIES; p++) {
        moe_text_printf(out, " %10s", xs_evict_policy_name((xs_evict_policy)p));
    }
    moe_text_printf(out, " %10s %10s %10s   best / static\n", "static", "static + 1", "belady");
}

static void print_row(const trace *t, const result *r, moe_text *out)
{
    moe_text_printf(out, "%8u", r->n_slots);
    for (int p = 0; p < XS_N_EVICT_POLICIES; p++) {
        moe_text_printf(out, " %8.2f %%", 100 * share(r->hits[p], t->n_uses));
    }
    moe_text_printf(
        out, " %8.2f %% %8.2f %% %8.2f %%   %.3f (%s)\n", 100 * share(r->best_static, t->n_uses),
        100 * share(r->roomier_static, t->n_uses), 100 * share(r->belady, t->n_uses),
        share(r->hits[r->best], r->best_static), xs_evict_policy_name((xs_evict_policy)r->best));
}

static moe_status replay(const replay_config *cfg, const trace *t, const uint32_t *sizes,
                         uint32_t n_sizes, moe_text *out, moe_err *err)
{
    if (!cfg->json) {
        print_heading(t, out);
    }
    for (uint32_t i = 0; i < n_sizes; i++) {
        result r = {0};
        moe_status st = run_size(t, sizes[i], &r, err);
        if (st != MOE_OK) {
            return st;
        }
        if (cfg->json) {
            print_json(t, &r, out);
        } else {
            print_row(t, &r, out);
        }
    }
    return moe_text_finish(out, err);
}

static int run(const replay_config *cfg, const char *path)
{
    trace t = {0};
    moe_err err = {0};
    moe_text text;
    uint32_t sizes[MAX_SIZES];
    uint32_t n_sizes = 0;
    int exit_status = 1;
    moe_text_init(&text);
    moe_status st = get_trace(cfg, path, &t, &err);
    if (st == MOE_OK) {
        st = parse_sizes(cfg->slots, t.list.n_experts, sizes, &n_sizes, &err);
        exit_status = st == MOE_OK ? 1 : 2;
    }
    if (st == MOE_OK) {
        st = replay(cfg, &t, sizes, n_sizes, &text, &err);
    }
    if (st == MOE_OK) {
        fwrite(text.data, 1, text.len, stdout);
    }
    moe_text_fini(&text);
    xs_access_list_fini(&t.list);
    return st == MOE_OK ? 0 : fail(&err, exit_status);
}

int main(int argc, char **argv)
{
    replay_config cfg;
    moe_err err = {0};
    const char *path = NULL;
    uint32_t n_paths = 0;
    moe_config_action action = MOE_CONFIG_RUN;
    moe_status st = moe_config_load(&spec, argc, argv, &cfg, &path, 1, &n_paths, &action, &err);
    if (st != MOE_OK) {
        return fail(&err, 2);
    }
    if (moe_config_answer(&spec, action, &cfg, stdout)) {
        return 0;
    }
    if ((n_paths == 1) == (cfg.zipf > 0)) {
        (void)MOE_FAIL(&err, MOE_ERR_INVALID,
                       "give either a TRACE that expert-store --record-trace wrote, or --zipf 0.8");
        return fail(&err, 2);
    }
    return run(&cfg, n_paths == 1 ? path : NULL);
}
