/* worker_config.c - see worker_config.h. */
#include "gpu-worker/worker_config.h"

#define ROW(field, type, min, max, dflt, help) MOE_ROW(gw_config, field, type, min, max, dflt, help)
#define ROW_ENUM(field, choices, dflt, help) MOE_ROW_ENUM(gw_config, field, choices, dflt, help)

static const moe_config_row rows[] = {
    ROW(endpoint, MOE_CFG_STR, 0, 0, "",
        "ipc:// address of the store; default $XDG_RUNTIME_DIR/pregate/store.sock, else a per-user "
        "directory under the temporary one"),
    ROW_ENUM(backend, "auto|cpu|cuda", "auto", "where to compute; auto = cuda if a device answers"),
    ROW_ENUM(fetch_policy, "resident|on-demand|prefetch-all|pregated", "pregated",
             "when experts travel to the device; never changes an answer"),
    ROW_ENUM(expert_capacity, "none|checkpoint", "none",
             "checkpoint = drop tokens over the checkpoint's expert_capacity, as transformers 4"),
    ROW(device, MOE_CFG_U64, 0, 63, "0", "cuda: index of the device"),
    ROW(threads, MOE_CFG_U64, 0, 256, "0", "cpu: threads that compute; 0 = one less than cores"),
    ROW(cpu_link_gbps, MOE_CFG_F64, 0, 10000, "0",
        "cpu: copies to cells no faster than this many 1e9 bytes/s; 0 = as fast as they go"),
    ROW(cells, MOE_CFG_U64, 0, 1 << 20, "0", "experts on the device; 0 = from cell-bytes"),
    ROW(cell_bytes, MOE_CFG_SIZE, 0, 1e15, "0B",
        "device memory for experts; 0 = twice the largest active set of one decode step"),
    ROW(max_batch, MOE_CFG_U64, 1, 256, "16", "sequences decoded together"),
    ROW(max_queue, MOE_CFG_U64, 1, 65536, "256", "waiting sequences; more are refused (503)"),
    ROW(max_input_tokens, MOE_CFG_U64, 1, 16384, "512", "longest prompt"),
    ROW(max_output_tokens, MOE_CFG_U64, 1, 16384, "256", "longest answer"),
    ROW(max_encode_tokens, MOE_CFG_U64, 0, 65536, "0",
        "prompt tokens of one encode step; 0 = max-input-tokens"),
    ROW(connect_timeout_s, MOE_CFG_U64, 1, 86400, "86400",
        "how long to wait for the store at start"),
    ROW(expert_deadline_s, MOE_CFG_U64, 1, 3600, "20",
        "an expert that takes longer fails the requests that need it"),
    ROW(trace, MOE_CFG_STR, 0, 0, "", "write a timeline for Perfetto to this file at the end"),
    ROW_ENUM(log_level, "debug|info|warn|error", "info", "least level that is logged"),

    ROW(prompt, MOE_CFG_STR, 0, 0, "", "run: the text; else --file, else standard input"),
    ROW(file, MOE_CFG_STR, 0, 0, "", "run: one prompt a line"),
    ROW(max_tokens, MOE_CFG_U64, 1, 16384, "256", "run: longest answer"),
    ROW(seed, MOE_CFG_U64, 0, 1.8e19, "0", "run: of sampling"),
    ROW(temperature, MOE_CFG_F64, 0, 2, "0", "run: 0 = always the likeliest token"),
    ROW(top_p, MOE_CFG_F64, 0.0001, 1, "1", "run: sample from the likeliest tokens of this mass"),
    ROW(json, MOE_CFG_BOOL, 0, 0, "false", "run: one JSON object a line instead of text"),

    ROW(http, MOE_CFG_STR, 0, 0, "127.0.0.1:8080", "serve: address to listen on"),
    ROW(api_key_file, MOE_CFG_STR, 0, 0, "", "serve: file whose first line is the bearer token"),
    ROW(allow_host, MOE_CFG_STR, 0, 0, "",
        "serve: a Host header to accept besides our own address"),
    ROW(max_connections, MOE_CFG_U64, 1, 65536, "512", "serve: open connections"),
    ROW(max_body_bytes, MOE_CFG_SIZE, 1024, 1 << 28, "1MiB", "serve: largest request body"),
    ROW(drain_s, MOE_CFG_U64, 0, 3600, "10", "serve: longest wait for open requests at a stop"),
};

const moe_config_spec gw_config_spec = {
    .program = "gpu-worker",
    .section = "worker",
    .synopsis = "run|serve [options]",
    .about = "Runs the transformer; its experts come from expert-store while blocks compute.\n"
             "  run    answers prompts from --prompt, --file or standard input and exits\n"
             "  serve  answers HTTP: /v1/completions, /v1/models, /health, /metrics",
    .rows = rows,
    .n_rows = sizeof rows / sizeof rows[0],
};
