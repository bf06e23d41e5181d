/* worker_config.h - the settings of gpu-worker, as one table (common/config.h).
 * Filled once at start on the main thread; const from then on. */
#ifndef GW_WORKER_CONFIG_H
#define GW_WORKER_CONFIG_H

#include "common/config.h"
#include "gpu-worker/engine/engine.h"

typedef struct gw_config {
    /* how to compute */
    char endpoint[MOE_CFG_STR_BYTES];
    int backend;         /* "auto|cpu|cuda" */
    int fetch_policy;    /* gw_policy */
    int expert_capacity; /* 0 none, 1 checkpoint */
    int products;        /* 0 auto, 1 own */
    int sync;            /* 0 auto, 1 device, 2 host */
    uint64_t device, threads;
    double cpu_link_gbps;
    uint64_t cells, cell_bytes;
    int cell_policy; /* gw_cell_policy */
    int predict;     /* gw_predict */
    uint64_t predict_top, predict_bytes, lookahead;
    uint64_t max_batch, max_queue;
    uint64_t max_input_tokens, max_output_tokens, max_encode_tokens;
    uint64_t connect_timeout_s, expert_deadline_s;
    char trace[MOE_CFG_STR_BYTES];
    char record_routing[MOE_CFG_STR_BYTES];
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
    /* bench, and partly plan and replay; lists are "a,b,c" */
    char policies[MOE_CFG_STR_BYTES];
    char batches[MOE_CFG_STR_BYTES];
    char cell_sweep[MOE_CFG_STR_BYTES];
    char cell_policies[MOE_CFG_STR_BYTES];
    char routing[MOE_CFG_STR_BYTES];
    double guess_recall;
    uint64_t prompt_tokens, output_tokens, warmups, repeats;
    char bench_name[MOE_CFG_STR_BYTES];
    char machine[MOE_CFG_STR_BYTES];
    char out[MOE_CFG_STR_BYTES];
    /* plan */
    char model[MOE_CFG_STR_BYTES];
    char synthetic[MOE_CFG_STR_BYTES];
    int dtype; /* "auto|bf16|f32|f16" */
    uint64_t device_bytes, ram_bytes;
    double link_gbps, memory_gbps, drive_gbps, resident_ms;
    bool measure;
    /* eval, calibrate */
    char pairs[MOE_CFG_STR_BYTES];
    char held_out[MOE_CFG_STR_BYTES];
    uint64_t limit;
    int decoding;      /* 0 forced, 1 greedy */
    bool record_gates; /* not a setting: calibrate's engine */
    /* replay */
    uint64_t skip_steps;
} gw_config;

extern const moe_config_spec gw_config_spec;

#endif
