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
    ROW_ENUM(
        products, "auto|own", "auto",
        "cuda: who multiplies the rows of prompts: cuBLASLt where it is found, or kernels of our "
        "own"),
    ROW_ENUM(sync, "auto|device|host", "auto",
             "who waits for experts: the device, without the host, or (slower, for sanitizers) the "
             "host; auto = device, but host under CUDA_LAUNCH_BLOCKING"),
    ROW(device, MOE_CFG_U64, 0, 63, "0", "cuda: index of the device"),
    ROW(threads, MOE_CFG_U64, 0, 256, "0", "cpu: threads that compute; 0 = one less than cores"),
    ROW(cpu_link_gbps, MOE_CFG_F64, 0, 10000, "0",
        "cpu: copies to cells no faster than this many 1e9 bytes/s; 0 = as fast as they go"),
    ROW(cells, MOE_CFG_U64, 0, 1 << 20, "0", "experts on the device; 0 = from cell-bytes"),
    ROW(cell_bytes, MOE_CFG_SIZE, 0, 1e15, "0B",
        "device memory for experts; 0 = twice the largest active set of one decode step"),
    ROW_ENUM(cell_policy, "lru|lfu|lifo-inactive", "lru",
             "which expert leaves a full device first"),
    ROW_ENUM(predict, "store|router|none", "store",
             "pregated on an ordinary checkpoint: who guesses experts of later blocks; store = its "
             "predictors, and the next router where it has none"),
    ROW(predict_top, MOE_CFG_U64, 1, 8, "1", "guesses per token and block"),
    ROW(predict_bytes, MOE_CFG_SIZE, 0, 1e15, "0B",
        "most bytes of guessed copies in one step; 0 = as the cells allow"),
    ROW(lookahead, MOE_CFG_U64, 1, 4, "1",
        "blocks ahead that are guessed (past the next one only from drive to memory) or, "
        "calibrate, that guesses are fitted for"),
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
    ROW(record_routing, MOE_CFG_STR, 0, 0, "",
        "write which experts every step chose to this file, for replay and --routing trace:FILE"),
    ROW_ENUM(log_level, "debug|info|warn|error", "info", "least level that is logged"),

    ROW(prompt, MOE_CFG_STR, 0, 0, "", "run: the text; else --file, else standard input"),
    ROW(file, MOE_CFG_STR, 0, 0, "", "run: one prompt a line; replay: the recording"),
    ROW(max_tokens, MOE_CFG_U64, 1, 16384, "256", "run: longest answer"),
    ROW(seed, MOE_CFG_U64, 0, 1.8e19, "0", "run: of sampling; calibrate: of the fit"),
    ROW(temperature, MOE_CFG_F64, 0, 2, "0", "run: 0 = always the likeliest token"),
    ROW(top_p, MOE_CFG_F64, 0.0001, 1, "1", "run: sample from the likeliest tokens of this mass"),
    ROW(json, MOE_CFG_BOOL, 0, 0, "false",
        "run: one JSON object a line instead of text; elsewhere instead of a table"),

    ROW(http, MOE_CFG_STR, 0, 0, "127.0.0.1:8080", "serve: address to listen on"),
    ROW(api_key_file, MOE_CFG_STR, 0, 0, "", "serve: file whose first line is the bearer token"),
    ROW(allow_host, MOE_CFG_STR, 0, 0, "",
        "serve: a Host header to accept besides our own address"),
    ROW(max_connections, MOE_CFG_U64, 1, 65536, "512", "serve: open connections"),
    ROW(max_body_bytes, MOE_CFG_SIZE, 1024, 1 << 28, "1MiB", "serve: largest request body"),
    ROW(drain_s, MOE_CFG_U64, 0, 3600, "10", "serve: longest wait for open requests at a stop"),

    ROW(policies, MOE_CFG_STR, 0, 0, "resident,pregated,on-demand",
        "bench, plan: fetch policies to compare"),
    ROW(batches, MOE_CFG_STR, 0, 0, "1", "bench, plan: numbers of sequences decoded together"),
    ROW(cell_sweep, MOE_CFG_STR, 0, 0, "",
        "bench, replay: numbers of cells, each a count or a share of all experts like 20%"),
    ROW(cell_policies, MOE_CFG_STR, 0, 0, "lru", "bench: policies for a full device to compare"),
    ROW(routing, MOE_CFG_STR, 0, 0, "model",
        "bench: who chooses experts: model, or made up: uniform, zipf:S, forced:K, trace:FILE"),
    ROW(guess_recall, MOE_CFG_F64, 0, 1, "0",
        "bench: with made-up routing, how often the token before is right about the first block"),
    ROW(prompt_tokens, MOE_CFG_U64, 1, 16384, "256", "bench, plan: random ids of a prompt"),
    ROW(output_tokens, MOE_CFG_U64, 2, 16384, "256", "bench, plan: tokens decoded a sequence"),
    ROW(warmups, MOE_CFG_U64, 0, 1000, "1", "bench: answers before those that count"),
    ROW(repeats, MOE_CFG_U64, 1, 1000, "4", "bench: answers that count"),
    ROW(bench_name, MOE_CFG_STR, 0, 0, "main", "bench: value of the key \"bench\""),
    ROW(machine, MOE_CFG_STR, 0, 0, "", "bench: value of the key \"machine\"; default the device"),
    ROW(out, MOE_CFG_STR, 0, 0, "",
        "bench: append rows to this file, default standard output; calibrate: the predictors"),

    ROW(pairs, MOE_CFG_STR, 0, 0, "",
        "eval, calibrate: input TAB reference a line, or running text to restore case and "
        "punctuation of"),
    ROW(limit, MOE_CFG_U64, 0, 1e9, "0",
        "eval, calibrate: only the first pairs of the file; 0 = all"),
    ROW(held_out, MOE_CFG_STR, 0, 0, "",
        "calibrate: pairs to judge predictors on; default the last tenth of --pairs"),
    ROW_ENUM(decoding, "forced|greedy", "forced",
             "calibrate: forced = the decoder is fed the references"),

    ROW(model, MOE_CFG_STR, 0, 0, "", "plan: a checkpoint's directory; default what the store has"),
    ROW(synthetic, MOE_CFG_STR, 0, 0, "", "plan: a model by name, e.g. switch-base-128"),
    ROW_ENUM(dtype, "auto|bf16|f32|f16", "auto", "plan: element type; auto = the checkpoint's"),
    ROW(device_bytes, MOE_CFG_SIZE, 0, 1e15, "0B",
        "plan: device memory to use; 0 = what is free on this machine's device"),
    ROW(ram_bytes, MOE_CFG_SIZE, 0, 1e15, "0B",
        "plan: memory for the store; 0 = three quarters of this machine's"),
    ROW(link_gbps, MOE_CFG_F64, 0, 1e6, "0", "plan: host to device, 1e9 bytes/s"),
    ROW(memory_gbps, MOE_CFG_F64, 0, 1e6, "0", "plan: device memory, 1e9 bytes/s"),
    ROW(drive_gbps, MOE_CFG_F64, 0, 1e6, "0", "plan: drive, 1e9 bytes/s"),
    ROW(resident_ms, MOE_CFG_F64, 0, 1e6, "0",
        "plan: a measured step with everything resident; 0 = its memory floor"),
    ROW(measure, MOE_CFG_BOOL, 0, 0, "false", "plan: measure link and device memory here"),

    ROW(skip_steps, MOE_CFG_U64, 0, 1e9, "0",
        "replay: first steps that fill cells but do not count"),
};

const moe_config_spec gw_config_spec = {
    .program = "gpu-worker",
    .section = "worker",
    .commands = "run|serve|bench|plan|replay|eval|calibrate",
    .synopsis = "run|serve|bench|plan|replay FILE|eval|calibrate [options]",
    .about = "Runs the transformer; its experts come from expert-store while blocks compute.\n"
             "  run    answers prompts from --prompt, --file or standard input and exits\n"
             "  serve  answers HTTP: /v1/completions, /v1/models, /health, /metrics\n"
             "  bench  measures decoding of the store's model: policies, batches, cells, routings\n"
             "  plan   says whether a model fits this machine, and how fast it can be\n"
             "  replay runs a recorded routing against every cell policy, offline\n"
             "  eval   scores the store's model on a file of pairs\n"
             "  calibrate  fits predictors of experts for an ordinary checkpoint",
    .rows = rows,
    .n_rows = sizeof rows / sizeof rows[0],
};
