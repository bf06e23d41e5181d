/* worker_config.h - the settings of gpu-worker, as one table (common/config.h).
 * Filled once at start on the main thread; const from then on. */
#ifndef GW_WORKER_CONFIG_H
#define GW_WORKER_CONFIG_H

#include "common/config.h"
#include "gpu-worker/engine.h"

typedef struct gw_config {
    /* how to compute */
    char endpoint[MOE_CFG_STR_BYTES];
    int backend;         /* "auto|cpu|cuda" */
    int fetch_policy;    /* gw_policy */
    int expert_capacity; /* 0 none, 1 checkpoint */
    uint64_t device, threads;
    double cpu_link_gbps;
    uint64_t cells, cell_bytes;
    uint64_t max_batch, max_queue;
    uint64_t max_input_tokens, max_output_tokens, max_encode_tokens;
    uint64_t connect_timeout_s, expert_deadline_s;
    char trace[MOE_CFG_STR_BYTES];
    int log_level;
    /* run */
    char prompt[MOE_CFG_STR_BYTES];
    char file[MOE_CFG_STR_BYTES];
    uint64_t max_tokens, seed;
    double temperature, top_p;
    bool json;
    /* serve */
    char http[MOE_CFG_STR_BYTES];
    char api_key_file[MOE_CFG_STR_BYTES];
    char allow_host[MOE_CFG_STR_BYTES];
    uint64_t max_connections, max_body_bytes, drain_s;
} gw_config;

extern const moe_config_spec gw_config_spec;

#endif
