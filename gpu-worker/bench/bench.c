/* bench.c - see bench.h. */
#include "gpu-worker/bench/bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"
#include "gpu-worker/names.h"
#include "gpu-worker/worker.h"

enum { ITEM_BYTES = MOE_CFG_STR_BYTES, ROUTING_SEED = 20240501, DATE_BYTES = 32 };

/* ---- rows ------------------------------------------------------------------------------------ */

static void add_text(moe_text *out, const char *key, const char *value)
{
    moe_text_printf(out, "\"%s\":", key);
    moe_text_json_string(out, value, strlen(value));
    moe_text_append(out, ",", 1);
}

static void add_number(moe_text *out, const char *key, double value)
{
    moe_text_printf(out, "\"%s\":%.6g,", key, value);
}

static void add_known(moe_text *out, const char *key, double value, bool known)
{
    if (known) {
        add_number(out, key, value);
    } else {
        moe_text_printf(out, "\"%s\":null,", key);
    }
}

static void add_samples(moe_text *out, const char *key, gw_samples *s)
{
    static const struct {
        const char *suffix;
        double q;
    } of[] = {{"_min", 0}, {"_p50", 0.5}, {"_p90", 0.9}, {"_p99", 0.99}};
    char name[64];
    for (size_t i = 0; i < sizeof of / sizeof of[0]; i++) {
        snprintf(name, sizeof name, "%s%s", key, of[i].suffix);
        add_known(out, name, gw_samples_percentile(s, of[i].q), s->n > 0);
    }
}

static uint64_t peak_bytes(const gw_bench_result *r)
{
    return r->device_bytes_peak > 0 ? r->device_bytes_peak : r->device_bytes_own;
}

/* Blocks ahead that experts are known, or guessed: 0 when neither. */
static uint32_t lookahead_of(const gw_bench_case *c, const gw_bench_result *r)
{
    bool guesses = c->engine.policy == GW_PREGATED && c->engine.predict != GW_PREDICT_NONE;
    if (r->shape.pregate_lookahead > 0 || !guesses) {
        return r->shape.pregate_lookahead;
    }
    return c->engine.lookahead > 0 ? c->engine.lookahead : 1;
}

/* How the case was set up. */
static void add_case(const gw_bench_case *c, const gw_bench_result *r,
                     const gw_bench_labels *labels, moe_text *out)
{
    add_text(out, "bench", labels->bench);
    add_text(out, "model", r->model);
    add_text(out, "dtype", moe_dtype_name(r->dtype));
    add_text(out, "policy", gw_policy_name(c->engine.policy));
    add_number(out, "batch", c->batch);
    add_number(out, "cells", r->n_cells);
    add_number(out, "lookahead", lookahead_of(c, r));
    add_text(out, "routing", labels->routing);
    if (c->guess_recall > 0) {
        add_number(out, "guess_recall", c->guess_recall);
    }
    add_text(out, "tier", r->all_in_ram ? "ram" : "drive");
    add_text(out, "cell_policy", gw_cell_policy_name(c->engine.cell_policy));
    add_number(out, "cells_share", (double)r->n_cells / r->shape.n_experts_total);
    add_number(out, "prompt_tokens", c->prompt_tokens);
    add_number(out, "output_tokens", c->output_tokens);
    add_number(out, "repeats", c->repeats);
    add_text(out, "backend", labels->backend);
    moe_text_printf(out, "\"pinned\":%s,", r->pinned ? "true" : "false");
}

static void add_result(const gw_bench_case *c, gw_bench_result *r, moe_text *out)
{
    bool traced = r->trace_dropped == 0;
    double step_ms = gw_samples_percentile(&r->step_ms, 0.5);
    add_samples(out, "ms_per_token", &r->step_ms);
    add_known(out, "tokens_per_s", c->batch * 1e3 / step_ms, step_ms > 0);
    add_samples(out, "first_token_ms", &r->first_token_ms);
    add_samples(out, "block_ms", &r->block_ms);
    add_samples(out, "first_block_ms", &r->first_block_ms);
    add_number(out, "link_floor_ms", r->link_floor_ms);
    add_number(out, "hbm_floor_ms", r->memory_floor_ms);
    add_number(out, "link_gbps", r->ceilings.link_gbps);
    add_number(out, "hbm_gbps", r->ceilings.memory_gbps);
    moe_text_printf(out, "\"device_bytes_peak\":%llu,", (unsigned long long)peak_bytes(r));
    moe_text_printf(out, "\"device_bytes_own\":%llu,", (unsigned long long)r->device_bytes_own);
    add_text(out, "device_bytes_how",
             r->device_bytes_peak > 0 ? "fall of free memory since the bare context"
                                      : "sum of own allocations");
    add_number(out, "hit_rate", r->hit_rate);
    add_number(out, "in_time_rate", r->in_time_rate);
    add_number(out, "slot_miss_rate", r->slot_miss_rate);
    add_number(out, "hidden_rate", r->hidden_rate);
    add_known(out, "hidden_after_first_rate", r->hidden_after_first_rate, traced);
    add_known(out, "link_busy", r->link_busy, traced);
    add_number(out, "active_per_step", r->active_per_step);
    add_number(out, "copied_bytes_per_step", r->copied_bytes);
}

void gw_bench_row(const gw_bench_case *c, gw_bench_result *r, const gw_bench_labels *labels,
                  moe_text *out)
{
    moe_text_append(out, "{", 1);
    add_case(c, r, labels, out);
    add_result(c, r, out);
    add_text(out, "machine", labels->machine);
    add_text(out, "date", labels->date);
    moe_text_printf(out, "\"commit\":");
    moe_text_json_string(out, labels->commit, strlen(labels->commit));
    moe_text_append(out, "}\n", 2);
}

/* ---- the tour -------------------------------------------------------------------------------- */

typedef struct tour {
    const gw_config *cfg; /* borrowed */
    gw_bench_case base;
    char endpoint[MOE_CFG_STR_BYTES];
    char machine[MOE_CFG_STR_BYTES];
    uint32_t n_experts_total;
    FILE *out; /* stdout, or owned */
    uint32_t n_done, n_failed;
} tour;

static moe_status write_row(tour *t, const gw_bench_case *c, gw_bench_result *r,
                            const char *routing, moe_err *err)
{
    char date[DATE_BYTES] = "";
    time_t now = time(NULL);
    struct tm utc;
    moe_text row;
    if (gmtime_r(&now, &utc) != NULL) {
        (void)strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &utc);
    }
    const gw_bench_labels labels = {.bench = t->cfg->bench_name,
                                    .machine = t->machine,
                                    .backend = c->engine.ops->name,
                                    .routing = routing,
                                    .commit = moe_build_id,
                                    .date = date};
    moe_text_init(&row);
    gw_bench_row(c, r, &labels, &row);
    moe_status st = moe_text_finish(&row, err);
    if (st == MOE_OK && (fputs(row.data, t->out) < 0 || fflush(t->out) != 0)) {
        st = MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "write a row to %.200s",
                             t->cfg->out[0] != '\0' ? t->cfg->out : "standard output");
    }
    moe_text_fini(&row);
    return st;
}

static void run_case(tour *t, const gw_bench_case *c, const char *routing)
{
    gw_bench_result r;
    moe_err err;
    moe_status st = gw_bench_case_run(c, &r, &err);
    if (st == MOE_OK) {
        moe_log(MOE_LOG_INFO, "bench", "case",
                "policy=%s batch=%u cells=%u cell_policy=%s routing=%s ms_per_token=%.3f "
                "first_token_ms=%.1f link_floor_ms=%.3f",
                gw_policy_name(c->engine.policy), c->batch, r.n_cells,
                gw_cell_policy_name(c->engine.cell_policy), routing,
                gw_samples_percentile(&r.step_ms, 0.5),
                gw_samples_percentile(&r.first_token_ms, 0.5), r.link_floor_ms);
        st = write_row(t, c, &r, routing, &err);
        gw_bench_result_fini(&r);
    }
    if (st != MOE_OK) {
        moe_log(MOE_LOG_ERROR, "bench", "case_failed", "policy=%s batch=%u routing=%s",
                gw_policy_name(c->engine.policy), c->batch, routing);
        moe_log_err("bench", "case_failed", &err);
        t->n_failed++;
    }
    t->n_done++;
}

/* Runs over one list, innermost last: cell policies, cells, routings, batches, policies. */
static moe_status tour_cell_policies(tour *t, gw_bench_case c, const char *routing, moe_err *err)
{
    char item[ITEM_BYTES];
    for (uint32_t i = 0; gw_list_item(t->cfg->cell_policies, i, item, sizeof item); i++) {
        int policy = gw_cell_policy_parse(item);
        if (policy < 0) {
            return MOE_FAIL(err, MOE_ERR_INVALID,
                            "--cell-policies: '%.60s' is none of " GW_CELL_POLICY_NAMES, item);
        }
        c.engine.cell_policy = (gw_cell_policy)policy;
        run_case(t, &c, routing);
        if (c.engine.policy == GW_RESIDENT) {
            break;
        }
    }
    return MOE_OK;
}

static moe_status tour_cells(tour *t, gw_bench_case c, const char *routing, moe_err *err)
{
    char item[ITEM_BYTES];
    moe_status st = MOE_OK;
    if (t->cfg->cell_sweep[0] == '\0' || c.engine.policy == GW_RESIDENT) {
        c.n_cells = (uint32_t)t->cfg->cells;
        return tour_cell_policies(t, c, routing, err);
    }
    for (uint32_t i = 0; st == MOE_OK && gw_list_item(t->cfg->cell_sweep, i, item, sizeof item);
         i++) {
        st = gw_parse_count(item, t->n_experts_total, "--cell-sweep", &c.n_cells, err);
        if (st == MOE_OK) {
            c.n_cells = c.n_cells < 2 ? 2 : c.n_cells;
            st = tour_cell_policies(t, c, routing, err);
        }
    }
    return st;
}

static moe_status tour_routings(tour *t, gw_bench_case c, moe_err *err)
{
    char item[ITEM_BYTES];
    moe_status st = MOE_OK;
    for (uint32_t i = 0; st == MOE_OK && gw_list_item(t->cfg->routing, i, item, sizeof item); i++) {
        st = gw_routing_spec_parse(item, &c.routing, err);
        if (st == MOE_OK) {
            st = tour_cells(t, c, item, err);
        }
    }
    return st;
}

static moe_status tour_batches(tour *t, gw_bench_case c, moe_err *err)
{
    char item[ITEM_BYTES];
    moe_status st = MOE_OK;
    for (uint32_t i = 0; st == MOE_OK && gw_list_item(t->cfg->batches, i, item, sizeof item); i++) {
        st = gw_parse_count(item, 0, "--batches", &c.batch, err);
        if (st == MOE_OK && (c.batch == 0 || c.batch > 256)) {
            st = MOE_FAIL(err, MOE_ERR_INVALID,
                          "--batches: %u sequences, 1 to 256 can be decoded "
                          "together",
                          c.batch);
        }
        if (st == MOE_OK) {
            st = tour_routings(t, c, err);
        }
    }
    return st;
}

static moe_status tour_policies(tour *t, moe_err *err)
{
    char item[ITEM_BYTES];
    moe_status st = MOE_OK;
    gw_bench_case c = t->base;
    for (uint32_t i = 0; st == MOE_OK && gw_list_item(t->cfg->policies, i, item, sizeof item);
         i++) {
        int policy = gw_policy_parse(item);
        if (policy < 0) {
            return MOE_FAIL(err, MOE_ERR_INVALID, "--policies: '%.60s' is none of " GW_POLICY_NAMES,
                            item);
        }
        c.engine.policy = (gw_policy)policy;
        st = tour_batches(t, c, err);
    }
    return st;
}

/* ---- set up and down ------------------------------------------------------------------------- */

static moe_status open_output(tour *t, moe_err *err)
{
    t->out = stdout;
    if (t->cfg->out[0] == '\0') {
        return MOE_OK;
    }
    t->out = fopen(t->cfg->out, "ae");
    if (t->out == NULL) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "open %.200s", t->cfg->out);
    }
    return MOE_OK;
}

/* Waits for the store, fills its memory, and learns what percentages are of. */
static moe_status meet_store(tour *t, moe_err *err)
{
    const gw_store_client_cfg cfg = {.endpoint = t->endpoint,
                                     .name = "bench",
                                     .connect_timeout_ns = t->base.engine.connect_timeout_ns};
    gw_store_client *client = NULL;
    bool all = false;
    moe_status st = gw_store_client_create(&cfg, &client, err);
    if (st != MOE_OK) {
        return st;
    }
    t->n_experts_total = gw_store_client_shape(client)->n_experts_total;
    gw_store_client_destroy(client);
    int64_t begin_ns = moe_now_ns();
    st = gw_bench_fill_ram(t->endpoint, t->base.engine.connect_timeout_ns, &all, err);
    if (st == MOE_OK) {
        moe_log(MOE_LOG_INFO, "bench", "tier", "name=%s seconds=%.1f", all ? "ram" : "drive",
                (double)(moe_now_ns() - begin_ns) / 1e9);
    }
    return st;
}

static moe_status run_tour(tour *t, gw_worker *w, moe_err *err)
{
    const gw_config *cfg = t->cfg;
    krn_device_info info;
    moe_status st = gw_endpoint_of(cfg, t->endpoint, sizeof t->endpoint, err);
    if (st == MOE_OK && cfg->record_routing[0] != '\0') {
        st = gw_routing_log_create(cfg->record_routing, &w->routing_log, err);
    }
    if (st == MOE_OK) {
        st = open_output(t, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    w->ops->backend.info(w->device, &info);
    snprintf(t->machine, sizeof t->machine, "%s",
             cfg->machine[0] != '\0' ? cfg->machine : info.name);
    t->base = (gw_bench_case){.engine = gw_engine_cfg_of(cfg, w, t->endpoint),
                              .prompt_tokens = (uint32_t)cfg->prompt_tokens,
                              .output_tokens = (uint32_t)cfg->output_tokens,
                              .warmups = (uint32_t)cfg->warmups,
                              .repeats = (uint32_t)cfg->repeats,
                              .guess_recall = cfg->guess_recall,
                              .seed = cfg->seed + ROUTING_SEED,
                              .context_free_bytes = info.memory_free_bytes,
                              .trace_path = cfg->trace};
    st = meet_store(t, err);
    return st == MOE_OK ? tour_policies(t, err) : st;
}

int gw_bench_main(const gw_config *cfg)
{
    tour t = {.cfg = cfg};
    gw_worker w = {0};
    moe_err err;
    moe_status st = gw_worker_open_device(cfg, &w, &err);
    if (st == MOE_OK) {
        st = run_tour(&t, &w, &err);
    }
    if (st != MOE_OK) {
        moe_log_err("bench", "failed", &err);
    }
    if (t.out != NULL && t.out != stdout && fclose(t.out) != 0) {
        moe_log(MOE_LOG_ERROR, "bench", "failed", "text=\"write %s\"", cfg->out);
        t.n_failed++;
    }
    gw_worker_close(cfg, &w);
    return st == MOE_OK && t.n_failed == 0 ? 0 : 1;
}
