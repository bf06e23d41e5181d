/* worker.c - see worker.h. */
#include "gpu-worker/worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"

enum { TRACE_EVENTS = 1 << 20 };
static const char *const backend_names[] = {"auto", "cpu", "cuda"};

static void say_who_multiplies(const gw_worker *w)
{
    krn_device_info info;
    w->ops->backend.info(w->device, &info);
    if (info.on_tensor_cores) {
        moe_log(MOE_LOG_INFO, "worker", "products", "by=\"%s\"", info.products);
    } else if (info.products[0] != '\0') {
        moe_log(
            MOE_LOG_WARN, "worker", "products",
            "by=\"kernels of our own\" reason=\"%s\" cost=\"the matrix products of prompts take "
            "two to three times as long\" remedy=\"install cuBLAS of the CUDA Toolkit, or name "
            "its directory in LD_LIBRARY_PATH\"",
            info.products);
    }
}

moe_status gw_worker_open_device(const gw_config *cfg, gw_worker *w, moe_err *err)
{
    char note[200] = "";
    moe_status st = krn_ops_find(backend_names[cfg->backend], &w->ops, note, sizeof note, err);
    if (st != MOE_OK) {
        return st;
    }
    if (note[0] != '\0') {
        moe_log(MOE_LOG_INFO, "worker", "backend", "name=%s note=\"%s\"", w->ops->name, note);
    }
    krn_open_cfg open = {.device_index = (uint32_t)cfg->device,
                         .n_threads = (uint32_t)cfg->threads,
                         .link_gbps = cfg->cpu_link_gbps,
                         .own_products = cfg->products == 1};
    st = w->ops->backend.open(&open, &w->device, err);
    if (st == MOE_OK) {
        say_who_multiplies(w);
    }
    return st;
}

moe_status gw_endpoint_of(const gw_config *cfg, char *out, size_t out_bytes, moe_err *err)
{
    if (cfg->endpoint[0] == '\0') {
        return moe_default_endpoint(out, out_bytes, err);
    }
    snprintf(out, out_bytes, "%s", cfg->endpoint);
    return MOE_OK;
}

/* A device that runs one kernel at a time must never wait for the host. */
static bool waits_on_host(const gw_config *cfg)
{
    const char *blocking = getenv("CUDA_LAUNCH_BLOCKING");
    bool one_by_one = blocking != NULL && strcmp(blocking, "") != 0 && strcmp(blocking, "0") != 0;
    if (cfg->sync == 0 && one_by_one) {
        moe_log(MOE_LOG_WARN, "worker", "sync_host",
                "reason=CUDA_LAUNCH_BLOCKING cost=\"a host synchronisation per block\" "
                "remedy=\"unset CUDA_LAUNCH_BLOCKING\"");
    }
    return cfg->sync == 2 || (cfg->sync == 0 && one_by_one);
}

gw_engine_cfg gw_engine_cfg_of(const gw_config *cfg, const gw_worker *w, const char *endpoint)
{
    return (gw_engine_cfg){
        .ops = w->ops,
        .device = w->device,
        .endpoint = endpoint,
        .connect_timeout_ns = (int64_t)cfg->connect_timeout_s * MOE_NS_PER_S,
        .policy = (gw_policy)cfg->fetch_policy,
        .n_cells = (uint32_t)cfg->cells,
        .cell_bytes = cfg->cell_bytes,
        .max_batch = (uint32_t)cfg->max_batch,
        .max_queue = (uint32_t)cfg->max_queue,
        .max_input_tokens = (uint32_t)cfg->max_input_tokens,
        .max_output_tokens = (uint32_t)cfg->max_output_tokens,
        .max_encode_tokens =
            (uint32_t)(cfg->max_encode_tokens > cfg->max_input_tokens ? cfg->max_encode_tokens
                                                                      : cfg->max_input_tokens),
        .checkpoint_capacity = cfg->expert_capacity == 1,
        .sync_host = waits_on_host(cfg),
        .predict = (gw_predict)cfg->predict,
        .predict_top = (uint32_t)cfg->predict_top,
        .predict_bytes = cfg->predict_bytes,
        .lookahead = (uint32_t)cfg->lookahead,
        .record_gates = cfg->record_gates,
        .expert_deadline_ns = (int64_t)cfg->expert_deadline_s * MOE_NS_PER_S,
        .cell_policy = (gw_cell_policy)cfg->cell_policy,
        .trace = w->trace,
        .routing_log = w->routing_log,
    };
}

static moe_status open_engine(const gw_config *cfg, gw_worker *w, moe_err *err)
{
    char endpoint[MOE_CFG_STR_BYTES];
    moe_status st = gw_endpoint_of(cfg, endpoint, sizeof endpoint, err);
    if (st != MOE_OK) {
        return st;
    }
    const gw_engine_cfg e = gw_engine_cfg_of(cfg, w, endpoint);
    return gw_engine_create(&e, &w->engine, err);
}

static moe_status open_tokenizer(gw_worker *w, moe_err *err)
{
    const void *model = NULL;
    uint64_t bytes = 0;
    if (gw_engine_file(w->engine, "spiece.model", &model, &bytes, NULL) != MOE_OK) {
        moe_log(
            MOE_LOG_WARN, "worker", "no_tokenizer",
            "cost=\"prompts as token ids only\" remedy=\"pack a checkpoint with spiece.model\"");
        return MOE_OK;
    }
    return gw_tokenizer_create(model, bytes, &w->tokenizer, err);
}

moe_status gw_worker_open(const gw_config *cfg, gw_worker *w, moe_err *err)
{
    *w = (gw_worker){0};
    moe_status st = gw_worker_open_device(cfg, w, err);
    if (st == MOE_OK && cfg->trace[0] != '\0') {
        st = gw_trace_create(TRACE_EVENTS, &w->trace, err);
    }
    if (st == MOE_OK && w->trace != NULL) {
        /* An empty one now: a path that cannot be written is said before hours of work. */
        st = gw_trace_write(w->trace, cfg->trace, err);
        if (st != MOE_OK) {
            gw_trace_destroy(w->trace);
            w->trace = NULL;
        }
    }
    if (st == MOE_OK && cfg->record_routing[0] != '\0') {
        st = gw_routing_log_create(cfg->record_routing, &w->routing_log, err);
    }
    if (st == MOE_OK) {
        st = open_engine(cfg, w, err);
    }
    if (st == MOE_OK) {
        st = open_tokenizer(w, err);
    }
    if (st != MOE_OK) {
        gw_worker_close(cfg, w);
    }
    return st;
}

void gw_worker_close(const gw_config *cfg, gw_worker *w)
{
    gw_engine_destroy(w->engine);
    gw_tokenizer_destroy(w->tokenizer);
    moe_err err;
    if (w->trace != NULL && gw_trace_write(w->trace, cfg->trace, &err) != MOE_OK) {
        moe_log_err("worker", "trace_not_written", &err);
    }
    gw_trace_destroy(w->trace);
    if (gw_routing_log_close(w->routing_log, &err) != MOE_OK) {
        moe_log_err("worker", "recording_not_written", &err);
    }
    if (w->ops != NULL && w->device != NULL) {
        w->ops->backend.close(w->device);
    }
    *w = (gw_worker){0};
}
