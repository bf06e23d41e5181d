/* session.c - see session.h. */
#include "gpu-worker/engine/session.h"

#include <stdlib.h>
#include <string.h>

#include "common/log.h"

static void log_waiting(void *user, const char *endpoint)
{
    (void)user;
    moe_log(
        MOE_LOG_INFO, "engine", "waiting_for_store",
        "endpoint=%s effect=\"waits until one answers there\" remedy=\"start expert-store, or name "
        "its --endpoint\"",
        endpoint);
}

static moe_status check_model(const gw_session *s, const moe_model_shape *expected, moe_err *err)
{
    if (expected == NULL ||
        memcmp(gw_store_client_shape(s->client), expected, sizeof *expected) == 0) {
        return MOE_OK;
    }
    return MOE_FAIL(err, MOE_ERR_VERSION,
                    "the store now serves another model (%s): restart this worker to use it",
                    gw_store_client_welcome(s->client)->model_name);
}

static moe_status connect_store(gw_session *s, const gw_engine_cfg *cfg, int64_t timeout_ns,
                                const moe_model_shape *expected, moe_err *err)
{
    const gw_store_client_cfg client = {.endpoint = cfg->endpoint,
                                        .name = "gpu-worker",
                                        .connect_timeout_ns = timeout_ns,
                                        .on_waiting = expected == NULL ? log_waiting : NULL};
    moe_status st = gw_store_client_create(&client, &s->client, err);
    return st == MOE_OK ? check_model(s, expected, err) : st;
}

static moe_status create_kv(gw_session *s, const gw_engine_cfg *cfg, moe_err *err)
{
    const moe_model_shape *shape = gw_store_client_shape(s->client);
    const gw_kv_cache_cfg kv = {.ops = cfg->ops,
                                .device = cfg->device,
                                .n_layers = shape->stack[MOE_DECODER].n_layers,
                                .width = shape->n_heads * shape->d_head,
                                .n_places = cfg->max_batch,
                                .max_input = cfg->max_input_tokens,
                                .max_output = cfg->max_output_tokens};
    return gw_kv_cache_create(&kv, &s->kv, err);
}

static uint32_t max_rows(const gw_engine_cfg *cfg)
{
    return cfg->max_encode_tokens > cfg->max_batch ? cfg->max_encode_tokens : cfg->max_batch;
}

static moe_status create_pipeline(gw_session *s, const gw_engine_cfg *cfg, moe_err *err)
{
    const gw_pipeline_cfg pipeline = {.ops = cfg->ops,
                                      .device = cfg->device,
                                      .compute = s->compute,
                                      .client = s->client,
                                      .policy = cfg->policy,
                                      .n_cells = cfg->n_cells,
                                      .cell_bytes = cfg->cell_bytes,
                                      .cell_policy = cfg->cell_policy,
                                      .decode_rows = cfg->max_batch,
                                      .max_rows = max_rows(cfg),
                                      .predict_bytes = cfg->predict_bytes,
                                      .expert_deadline_ns = cfg->expert_deadline_ns,
                                      .trace = cfg->trace};
    return gw_pipeline_create(&pipeline, &s->pipeline, err);
}

static moe_status create_forward(gw_session *s, const gw_engine_cfg *cfg, moe_err *err)
{
    const moe_model_shape *shape = gw_store_client_shape(s->client);
    const gw_forward_cfg forward = {
        .ops = cfg->ops,
        .device = cfg->device,
        .compute = s->compute,
        .shape = shape,
        .weights = &s->weights,
        .kv = s->kv,
        .pipeline = s->pipeline,
        .expert_dtype = gw_store_client_welcome(s->client)->expert_dtype,
        .expert_capacity = cfg->checkpoint_capacity ? shape->expert_capacity : 0,
        .max_rows = max_rows(cfg),
        .max_batch = cfg->max_batch,
        .record_gates = cfg->record_gates,
        .sync_host = cfg->sync_host,
        .predictors = &s->predictors,
        .predict = cfg->predict,
        .predict_top = cfg->predict_top,
        .lookahead = cfg->lookahead};
    krn_device_info info;
    cfg->ops->backend.info(cfg->device, &info);
    s->on_tensor_cores = info.on_tensor_cores;
    return gw_forward_create(&forward, &s->forward, err);
}

moe_status gw_session_create(const gw_engine_cfg *cfg, int64_t connect_timeout_ns,
                             const moe_model_shape *expected, gw_session **out, moe_err *err)
{
    gw_session *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "session");
    }
    s->ops = cfg->ops;
    moe_status st = connect_store(s, cfg, connect_timeout_ns, expected, err);
    if (st != MOE_OK) {
        goto fail;
    }
    st = cfg->ops->backend.stream_create(cfg->device, "compute", &s->compute, err);
    if (st != MOE_OK) {
        goto fail;
    }
    st = gw_dense_weights_load(cfg->ops, cfg->device, s->compute, s->client,
                               gw_store_client_shape(s->client), &s->weights, err);
    if (st != MOE_OK) {
        goto fail;
    }
    st = gw_predictors_load(cfg->ops, cfg->device, s->compute, s->client,
                            gw_store_client_shape(s->client), &s->predictors, err);
    if (st != MOE_OK) {
        goto fail;
    }
    st = create_kv(s, cfg, err);
    if (st != MOE_OK) {
        goto fail;
    }
    st = create_pipeline(s, cfg, err);
    if (st != MOE_OK) {
        goto fail;
    }
    st = create_forward(s, cfg, err);
    if (st != MOE_OK) {
        goto fail;
    }
    *out = s;
    return MOE_OK;
fail:
    gw_session_destroy(s);
    return st;
}

void gw_session_destroy(gw_session *s)
{
    if (s == NULL) {
        return;
    }
    gw_pipeline_destroy(s->pipeline); /* first: the compute stream may be waiting for it */
    gw_forward_destroy(s->forward);
    gw_kv_cache_destroy(s->kv);
    gw_predictors_unload(&s->predictors);
    gw_dense_weights_unload(&s->weights);
    s->ops->backend.stream_destroy(s->compute);
    gw_store_client_destroy(s->client);
    free(s);
}
