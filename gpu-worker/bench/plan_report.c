/* plan_report.c - see plan_report.h. */
#include "gpu-worker/bench/plan_report.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "common/named_model.h"
#include "gpu-worker/bench/bench_stats.h"
#include "gpu-worker/bench/ceilings.h"
#include "gpu-worker/fetch/store_client.h"
#include "gpu-worker/names.h"
#include "gpu-worker/worker.h"

enum {
    CONFIG_BYTES = 1 << 20,
    ITEM_BYTES = 64,
    EXIT_DOES_NOT_FIT = 3,
    LINK_BLOCKS = 8, /* host blocks that --measure copies in turn */
    LOOK_FOR_STORE_S = 5
};

static const char *fit_text(gw_fit fit)
{
    switch (fit) {
    case GW_FIT_RESIDENT:
        return "every expert fits on the device";
    case GW_FIT_PREGATED:
        return "fits: the active experts of two neighbouring blocks (Eq. 1)";
    case GW_FIT_WAVES:
        return "fits in waves: fewer cells than two blocks' active experts";
    case GW_FIT_NOT:
        return "does not fit";
    }
    return "?";
}

static const char *fit_name(gw_fit fit)
{
    static const char *const names[] = {"no", "waves", "pregated", "resident"};
    return names[fit];
}

typedef struct size_text {
    char text[24];
} size_text;

static size_text size_of(uint64_t bytes)
{
    size_text out;
    double mib = (double)bytes / (1 << 20);
    snprintf(out.text, sizeof out.text, mib >= 1024 ? "%.2f GiB" : "%.2f MiB",
             mib >= 1024 ? mib / 1024 : mib);
    return out;
}

/* ---- one batch ------------------------------------------------------------------------------- */

typedef struct batch_plan {
    gw_workload work;
    gw_model_bytes bytes;
    gw_fit_report fit;
    uint32_t n_cells; /* that the times are for */
} batch_plan;

static void plan_batch(const gw_plan_input *in, uint32_t batch, batch_plan *out)
{
    out->work = (gw_workload){.dtype = in->dtype,
                              .batch = batch,
                              .prompt_tokens = in->prompt_tokens,
                              .output_tokens = in->output_tokens,
                              .encode_tokens = in->prompt_tokens};
    gw_cost_bytes(in->shape, &out->work, &out->bytes);
    gw_cost_fit(in->shape, &out->work, in->device_bytes, in->ram_bytes, &out->fit);
    out->n_cells = in->cells > 0 ? in->cells : out->fit.n_cells;
}

static bool knows_speed(const gw_plan_input *in, const batch_plan *p)
{
    bool drive = p->fit.n_slots == in->shape->n_experts_total || in->speeds.drive_gbps > 0;
    return in->speeds.link_gbps > 0 && in->speeds.memory_gbps > 0 && drive;
}

static bool policy_fits(gw_policy policy, const batch_plan *p)
{
    return policy == GW_RESIDENT ? p->fit.device == GW_FIT_RESIDENT : p->fit.device != GW_FIT_NOT;
}

static void text_remedy(const gw_plan_input *in, const batch_plan *p, moe_text *out)
{
    if (p->fit.device == GW_FIT_NOT) {
        moe_text_printf(out,
                        "  does not fit the device: needs %s, has %s: lower the batch, "
                        "--prompt-tokens or --output-tokens, pack with --dtype bf16, or use a "
                        "device with more memory\n",
                        size_of(p->fit.need_waves).text, size_of(in->device_bytes).text);
    }
    if (p->fit.n_slots == 0) {
        moe_text_printf(out,
                        "  does not fit RAM: needs at least %s, has %s: give the store "
                        "more --ram-bytes\n",
                        size_of(p->fit.need_ram_least).text, size_of(in->ram_bytes).text);
    }
}

static void text_times(const gw_plan_input *in, const batch_plan *p, moe_text *out)
{
    char name[ITEM_BYTES];
    if (!knows_speed(in, p)) {
        moe_text_printf(out, "  no times: give --link-gbps and --memory-gbps%s, or --measure\n",
                        p->fit.n_slots < in->shape->n_experts_total ? " and --drive-gbps" : "");
        return;
    }
    moe_text_printf(out, "  %-13s %10s %12s %12s   %s\n", "policy", "ms/token", "one fetch ms",
                    "link floor", "formula (c: resident / L, f: one fetch)");
    for (uint32_t i = 0; gw_list_item(in->policies, i, name, sizeof name); i++) {
        int policy = gw_policy_parse(name);
        gw_step_cost cost;
        if (policy < 0) {
            continue; /* refused before */
        }
        if (!policy_fits((gw_policy)policy, p)) {
            moe_text_printf(
                out, "  %-13s does not fit: needs %s on the device\n", name,
                size_of(policy == GW_RESIDENT ? p->fit.need_resident : p->fit.need_waves).text);
            continue;
        }
        gw_cost_step(in->shape, &p->work, &in->speeds, (gw_policy)policy, p->n_cells,
                     p->fit.n_slots, &cost);
        moe_text_printf(out, "  %-13s %10.3f %12.3f %12.3f   %s\n", name, cost.ms, cost.fetch_ms,
                        cost.link_floor_ms, gw_cost_formula((gw_policy)policy));
    }
    moe_text_printf(out, "  first token, link floor: %.1f ms (every expert of the prompt once)\n",
                    gw_cost_first_token_link_ms(in->shape, &p->work, in->speeds.link_gbps));
}

static void text_batch(const gw_plan_input *in, const batch_plan *p, moe_text *out)
{
    const gw_model_bytes *b = &p->bytes;
    moe_text_printf(out, "\nbatch %u: %s", p->work.batch, fit_text(p->fit.device));
    if (p->fit.device != GW_FIT_NOT) {
        moe_text_printf(out, "; %u cells", p->n_cells);
    }
    moe_text_printf(out,
                    "\n  device: %s for all, %s by Eq. 1, %s at least, budget "
                    "%s\n    dense weights %s, keys and values %s, activations %s, "
                    "one cell %s\n",
                    size_of(p->fit.need_resident).text, size_of(p->fit.need_pregated).text,
                    size_of(p->fit.need_waves).text, size_of(in->device_bytes).text,
                    size_of(b->dense).text, size_of(b->kv).text, size_of(b->workspace).text,
                    size_of(b->cell).text);
    moe_text_printf(out, "  RAM: %s for all experts, budget %s: %u of %u experts%s\n",
                    size_of(p->fit.need_ram_all).text, size_of(in->ram_bytes).text, p->fit.n_slots,
                    in->shape->n_experts_total,
                    p->fit.n_slots < in->shape->n_experts_total ? ", the rest on the drive" : "");
    text_remedy(in, p, out);
    if (p->fit.device != GW_FIT_NOT && p->fit.n_slots > 0) {
        text_times(in, p, out);
    }
}

static void json_policies(const gw_plan_input *in, const batch_plan *p, moe_text *out)
{
    char name[ITEM_BYTES];
    moe_text_printf(out, ",\"policies\":[");
    for (uint32_t i = 0; gw_list_item(in->policies, i, name, sizeof name); i++) {
        int policy = gw_policy_parse(name);
        if (policy < 0) {
            continue; /* refused before */
        }
        moe_text_printf(out, "%s{\"policy\":\"%s\",\"fits\":%s", i > 0 ? "," : "", name,
                        policy_fits((gw_policy)policy, p) ? "true" : "false");
        if (policy_fits((gw_policy)policy, p) && p->fit.n_slots > 0 && knows_speed(in, p)) {
            gw_step_cost cost;
            gw_cost_step(in->shape, &p->work, &in->speeds, (gw_policy)policy, p->n_cells,
                         p->fit.n_slots, &cost);
            moe_text_printf(out,
                            ",\"ms_per_token\":%.6g,\"fetch_ms\":%.6g,\"link_floor_ms\":%.6g,"
                            "\"memory_floor_ms\":%.6g,\"formula\":\"%s\"",
                            cost.ms, cost.fetch_ms, cost.link_floor_ms, cost.memory_floor_ms,
                            gw_cost_formula((gw_policy)policy));
        }
        moe_text_printf(out, "}");
    }
    moe_text_printf(out, "]");
}

static void json_batch(const gw_plan_input *in, const batch_plan *p, moe_text *out)
{
    moe_text_printf(
        out,
        "{\"batch\":%u,\"device_fit\":\"%s\",\"n_cells\":%u,"
        "\"need_resident_bytes\":%llu,\"need_eq1_bytes\":%llu,\"need_least_bytes\":%llu,"
        "\"dense_bytes\":%llu,\"kv_bytes\":%llu,\"workspace_bytes\":%llu,"
        "\"cell_bytes\":%llu,\"need_ram_all_bytes\":%llu,\"need_ram_least_bytes\":%llu,"
        "\"n_slots\":%u",
        p->work.batch, fit_name(p->fit.device), p->n_cells,
        (unsigned long long)p->fit.need_resident, (unsigned long long)p->fit.need_pregated,
        (unsigned long long)p->fit.need_waves, (unsigned long long)p->bytes.dense,
        (unsigned long long)p->bytes.kv, (unsigned long long)p->bytes.workspace,
        (unsigned long long)p->bytes.cell, (unsigned long long)p->fit.need_ram_all,
        (unsigned long long)p->fit.need_ram_least, p->fit.n_slots);
    if (in->speeds.link_gbps > 0) {
        moe_text_printf(out, ",\"first_token_link_floor_ms\":%.6g",
                        gw_cost_first_token_link_ms(in->shape, &p->work, in->speeds.link_gbps));
    }
    json_policies(in, p, out);
    moe_text_printf(out, "}");
}

static void json_head(const gw_plan_input *in, moe_text *out)
{
    moe_text_printf(out, "{\"model\":");
    moe_text_json_string(out, in->model_name, strlen(in->model_name));
    moe_text_printf(out,
                    ",\"dtype\":\"%s\",\"n_experts\":%u,\"n_experts_total\":%u,"
                    "\"device_bytes\":%llu,\"ram_bytes\":%llu,\"link_gbps\":%.6g,"
                    "\"memory_gbps\":%.6g,\"drive_gbps\":%.6g,\"batches\":[",
                    moe_dtype_name(in->dtype), in->shape->n_experts, in->shape->n_experts_total,
                    (unsigned long long)in->device_bytes, (unsigned long long)in->ram_bytes,
                    in->speeds.link_gbps, in->speeds.memory_gbps, in->speeds.drive_gbps);
}

static void text_head(const gw_plan_input *in, moe_text *out)
{
    const moe_model_shape *s = in->shape;
    moe_text_printf(out,
                    "%s, %s, %s: %u + %u layers, %u + %u MoE blocks of %u experts\n"
                    "link %.4g GB/s, device memory %.4g GB/s, drive %.4g GB/s (0: not known)\n",
                    in->model_name, moe_dtype_name(in->dtype),
                    s->pregate_lookahead > 0 ? "pre-gated" : "ordinary",
                    s->stack[MOE_ENCODER].n_layers, s->stack[MOE_DECODER].n_layers,
                    s->stack[MOE_ENCODER].n_blocks, s->stack[MOE_DECODER].n_blocks, s->n_experts,
                    in->speeds.link_gbps, in->speeds.memory_gbps, in->speeds.drive_gbps);
}

static moe_status check_policies(const char *policies, moe_err *err)
{
    char name[ITEM_BYTES];
    for (uint32_t i = 0; gw_list_item(policies, i, name, sizeof name); i++) {
        if (gw_policy_parse(name) < 0) {
            return MOE_FAIL(err, MOE_ERR_INVALID, "--policies: '%s' is none of " GW_POLICY_NAMES,
                            name);
        }
    }
    return MOE_OK;
}

moe_status gw_plan_report(const gw_plan_input *in, bool json, moe_text *out, bool *out_fits,
                          moe_err *err)
{
    char item[ITEM_BYTES];
    bool fits = true;
    moe_status st = check_policies(in->policies, err);
    if (json) {
        json_head(in, out);
    } else {
        text_head(in, out);
    }
    for (uint32_t i = 0; st == MOE_OK && gw_list_item(in->batches, i, item, sizeof item); i++) {
        uint32_t batch = 0;
        batch_plan p;
        st = gw_parse_count(item, 0, "--batches", &batch, err);
        if (st != MOE_OK || batch == 0) {
            return st != MOE_OK ? st : MOE_FAIL(err, MOE_ERR_INVALID, "--batches: 0 sequences");
        }
        plan_batch(in, batch, &p);
        fits = fits && p.fit.device != GW_FIT_NOT && p.fit.n_slots > 0;
        if (json) {
            moe_text_printf(out, "%s", i > 0 ? "," : "");
            json_batch(in, &p, out);
        } else {
            text_batch(in, &p, out);
        }
    }
    if (json) {
        moe_text_printf(out, "],\"fits\":%s}\n", fits ? "true" : "false");
    }
    if (st == MOE_OK) {
        st = moe_text_finish(out, err);
    }
    if (st == MOE_OK) {
        *out_fits = fits;
    }
    return st;
}

/* ---- where the model comes from -------------------------------------------------------------- */

typedef struct subject {
    char name[MOE_CFG_STR_BYTES];
    moe_model_shape shape;
    moe_dtype dtype;
} subject;

/* "torch_dtype" or "dtype" of config.json; bf16 when it says neither. */
static moe_dtype stored_dtype(const char *json, size_t bytes)
{
    static const struct {
        const char *name;
        moe_dtype dtype;
    } known[] = {{"bfloat16", MOE_BF16}, {"float32", MOE_F32}, {"float16", MOE_F16}};
    moe_dtype found = MOE_BF16;
    cJSON *root = cJSON_ParseWithLength(json, bytes);
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, "torch_dtype");
    item = cJSON_IsString(item) ? item : cJSON_GetObjectItemCaseSensitive(root, "dtype");
    for (size_t i = 0; cJSON_IsString(item) && i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(item->valuestring, known[i].name) == 0) {
            found = known[i].dtype;
        }
    }
    cJSON_Delete(root);
    return found;
}

static moe_status parse_config(const char *json, size_t bytes, subject *out, moe_err *err)
{
    moe_status st = moe_model_shape_parse(json, bytes, &out->shape, err);
    if (st == MOE_OK) {
        out->dtype = stored_dtype(json, bytes);
    }
    return st;
}

static moe_status subject_by_name(const char *name, subject *out, moe_err *err)
{
    char json[4096];
    moe_status st = moe_named_config(name, MOE_BF16, json, sizeof json, err);
    snprintf(out->name, sizeof out->name, "%s", name);
    return st == MOE_OK ? parse_config(json, strlen(json), out, err) : st;
}

static moe_status subject_in_dir(const char *dir, subject *out, moe_err *err)
{
    char path[MOE_CFG_STR_BYTES + 16];
    char *json = NULL;
    size_t bytes = 0;
    snprintf(out->name, sizeof out->name, "%s", dir);
    snprintf(path, sizeof path, "%s/config.json", dir);
    moe_status st = moe_file_read(path, CONFIG_BYTES, &json, &bytes, err);
    if (st == MOE_OK) {
        st = parse_config(json, bytes, out, err);
    }
    free(json);
    return st;
}

static moe_status subject_of_store(const gw_config *cfg, subject *out, moe_err *err)
{
    char endpoint[MOE_CFG_STR_BYTES];
    gw_store_client *client = NULL;
    moe_status st = gw_endpoint_of(cfg, endpoint, sizeof endpoint, err);
    if (st != MOE_OK) {
        return st;
    }
    bool nobody = strncmp(endpoint, "ipc://", 6) == 0 && access(endpoint + 6, F_OK) != 0;
    const gw_store_client_cfg c = {.endpoint = endpoint,
                                   .name = "plan",
                                   .connect_timeout_ns = LOOK_FOR_STORE_S * MOE_NS_PER_S};
    if (nobody || gw_store_client_create(&c, &client, err) != MOE_OK) {
        return MOE_FAIL(
            err, MOE_ERR_NOT_FOUND,
            "no model: give --synthetic NAME or --model DIR; no store answers at %.300s", endpoint);
    }
    const wire_welcome *w = gw_store_client_welcome(client);
    snprintf(out->name, sizeof out->name, "%s", w->model_name);
    out->shape = *gw_store_client_shape(client);
    out->dtype = (moe_dtype)w->expert_dtype;
    gw_store_client_destroy(client);
    return MOE_OK;
}

static moe_status find_subject(const gw_config *cfg, subject *out, moe_err *err)
{
    static const moe_dtype dtypes[] = {0, MOE_BF16, MOE_F32, MOE_F16};
    moe_status st = cfg->synthetic[0] != '\0' ? subject_by_name(cfg->synthetic, out, err)
                    : cfg->model[0] != '\0'   ? subject_in_dir(cfg->model, out, err)
                                              : subject_of_store(cfg, out, err);
    if (st == MOE_OK && cfg->dtype != 0) {
        out->dtype = dtypes[cfg->dtype];
    }
    return st;
}

/* ---- what this machine has ------------------------------------------------------------------- */

static uint64_t machine_ram(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (uint64_t)pages / 4 * 3 * (uint64_t)page : 0;
}

/* Opens the device only for what the settings leave open. */
static moe_status look_at_device(const gw_config *cfg, const subject *s, gw_plan_input *in,
                                 moe_err *err)
{
    gw_worker w = {0};
    krn_device_info info;
    if (cfg->device_bytes > 0 && !cfg->measure) {
        return MOE_OK;
    }
    moe_status st = gw_worker_open_device(cfg, &w, err);
    if (st != MOE_OK) {
        return st;
    }
    w.ops->backend.info(w.device, &info);
    if (cfg->device_bytes == 0) {
        in->device_bytes = info.memory_free_bytes;
    }
    if (cfg->measure) {
        uint64_t block = moe_expert_params(&s->shape) * moe_dtype_bytes(s->dtype);
        const gw_link_source link = {
            .stride_bytes = block, .block_bytes = block, .n_blocks = LINK_BLOCKS};
        gw_ceilings c = {0};
        st = gw_ceilings_measure(w.ops, w.device, &link, &c, err);
        in->speeds.link_gbps = in->speeds.link_gbps > 0 ? in->speeds.link_gbps : c.link_gbps;
        in->speeds.memory_gbps =
            in->speeds.memory_gbps > 0 ? in->speeds.memory_gbps : c.memory_gbps;
    }
    gw_worker_close(cfg, &w);
    return st;
}

static moe_status report(const gw_config *cfg, bool *out_fits, moe_err *err)
{
    subject s = {.name = ""};
    moe_text text;
    moe_status st = find_subject(cfg, &s, err);
    if (st != MOE_OK) {
        return st;
    }
    gw_plan_input in = {.model_name = s.name,
                        .shape = &s.shape,
                        .dtype = s.dtype,
                        .device_bytes = cfg->device_bytes,
                        .ram_bytes = cfg->ram_bytes > 0 ? cfg->ram_bytes : machine_ram(),
                        .speeds = {.link_gbps = cfg->link_gbps,
                                   .memory_gbps = cfg->memory_gbps,
                                   .drive_gbps = cfg->drive_gbps,
                                   .resident_ms = cfg->resident_ms},
                        .policies = cfg->policies,
                        .batches = cfg->batches,
                        .prompt_tokens = (uint32_t)cfg->prompt_tokens,
                        .output_tokens = (uint32_t)cfg->output_tokens,
                        .cells = (uint32_t)cfg->cells};
    st = look_at_device(cfg, &s, &in, err);
    if (st != MOE_OK) {
        return st;
    }
    moe_text_init(&text);
    st = gw_plan_report(&in, cfg->json, &text, out_fits, err);
    if (st == MOE_OK) {
        fputs(text.data, stdout);
    }
    moe_text_fini(&text);
    return st;
}

int gw_plan_main(const gw_config *cfg)
{
    bool fits = false;
    moe_err err;
    if (report(cfg, &fits, &err) != MOE_OK) {
        moe_log_err("plan", "failed", &err);
        return 1;
    }
    return fits ? 0 : EXIT_DOES_NOT_FIT;
}
