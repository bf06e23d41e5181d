/* store_config.c - see store_config.h. */
#include "expert-store/store_config.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/board.h"

#define ROW(field, type, min, max, dflt, help) MOE_ROW(xs_config, field, type, min, max, dflt, help)
#define ROW_ENUM(field, choices, dflt, help) MOE_ROW_ENUM(xs_config, field, choices, dflt, help)
#define ONE_TIB 1099511627776.0

static const moe_config_row rows[] = {
    ROW(store, MOE_CFG_STR, 0, 0, "", "store directory written by expert-pack"),
    ROW(ram_bytes, MOE_CFG_STR, 0, 0, "all",
        "memory for experts: a size (16GiB), a share of this machine's memory (25%), or all = a "
        "slot for every expert"),
    ROW(endpoint, MOE_CFG_STR, 0, 0, "",
        "ipc:// address workers connect to; default $XDG_RUNTIME_DIR/pregate/store.sock, else "
        "a per-user directory under the temporary one"),
    ROW(synthetic, MOE_CFG_STR, 0, 0, "",
        "serve a made-up model (switch-base-128, switch-tiny, ...) instead of --store"),
    ROW(seed, MOE_CFG_U64, 0, 9007199254740992.0, "1", "seed of --synthetic"),
    ROW_ENUM(dtype, "bf16|f16|f32", "bf16", "element type of --synthetic"),
    ROW(max_workers, MOE_CFG_U64, 1, 63, "8", "workers served at the same time"),
    ROW(leases_per_worker, MOE_CFG_U64, 0, 65536, "0",
        "slots one worker may hold at the same time; 0 = from --ram-bytes, at most 256"),
    ROW_ENUM(evict, "lru|lfu|sieve|predicted", "predicted",
             "which expert leaves a full memory first; predicted: the least used lately (lfu) of "
             "those that no prediction names"),
    ROW_ENUM(engine, "auto|io_uring|pread", "auto", "how the drive is read"),
    ROW(direct, MOE_CFG_BOOL, 0, 0, "true", "read past the page cache (O_DIRECT)"),
    ROW(pin, MOE_CFG_BOOL, 0, 0, "true", "lock the slots in memory"),
    ROW(depth, MOE_CFG_U64, 1, 1024, "64", "reads in flight at the drive"),
    ROW(read_split, MOE_CFG_SIZE, 4096, 1 << 30, "256KiB", "one read; a multiple of 4096"),
    ROW(verify_threads, MOE_CFG_U64, 1, 64, "2", "threads that check hashes beside the reads"),
    ROW(speculative_bytes, MOE_CFG_SIZE, 0, ONE_TIB, "0B",
        "most bytes in flight for predictions; 0 = one expert, at least 8 MiB"),
    ROW(want_hold_ms, MOE_CFG_U64, 1, 600000, "2000",
        "how long a slot loaded for a worker waits for that worker's lease"),
    ROW(predict_keep_ms, MOE_CFG_U64, 1, 600000, "500", "how long a prediction counts"),
    ROW(worker_grace_ms, MOE_CFG_U64, 1, 600000, "5000",
        "how long a new worker may take to lock its lease table"),
    ROW(worker_probe_ms, MOE_CFG_U64, 1, 60000, "200", "how often workers' locks are looked at"),
    ROW(drain_ms, MOE_CFG_U64, 0, 600000, "10000", "longest wait for reads in flight at a stop"),
    ROW(keep_memory, MOE_CFG_BOOL, 0, 0, "false",
        "leave the memory behind at a stop, for the next start to adopt"),
    ROW(allow_uid, MOE_CFG_STR, 0, 0, "",
        "a second user id whose workers are served; regions become readable by the group"),
    ROW(metrics_name, MOE_CFG_STR, 0, 0, "", "label store=\"...\" of the statistics; default none"),
    ROW(record_trace, MOE_CFG_STR, 0, 0, "",
        "write which experts are used, read and evicted into this file, for expert-replay; begun "
        "anew at each start"),
    ROW(record_trace_bytes, MOE_CFG_SIZE, 4096, ONE_TIB, "1GiB", "longest --record-trace"),
    ROW(record_trace_period_us, MOE_CFG_U64, 100, 1e6, "1000",
        "how often --record-trace looks for uses"),
    ROW_ENUM(log_level, "debug|info|warn|error", "info", "least level that is logged"),
    ROW_ENUM(test_kill_at, "none|mid_read|evicting|welcome", "none",
             "tests only: die at this point as if by kill -9"),
    ROW(test_kill_after, MOE_CFG_U64, 1, 1e9, "1", "tests only: at the n-th pass of that point"),
    ROW(test_memory_piece, MOE_CFG_SIZE, 0, ONE_TIB, "0B",
        "tests only: memory made at a time, a multiple of 4096; 0 = 64 MiB"),
    ROW(test_memory_pause_ms, MOE_CFG_U64, 0, 60000, "0", "tests only: pause after each piece"),
};

const moe_config_spec xs_config_spec = {
    .program = "expert-store",
    .section = "store",
    .synopsis = "--store NAME.store [--ram-bytes 16GiB]",
    .about = "Keeps the experts of one model in memory and on the drive, and serves them to "
             "gpu-worker processes through shared memory.",
    .rows = rows,
    .n_rows = sizeof rows / sizeof rows[0],
};

moe_status xs_config_check(xs_config *cfg, moe_err *err)
{
    if (cfg->store[0] == '\0' && cfg->synthetic[0] == '\0') {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "nothing to serve: give --store NAME.store (made by expert-pack) or "
                        "--synthetic switch-base-128");
    }
    if (cfg->store[0] != '\0' && cfg->synthetic[0] != '\0') {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "--store %.100s and --synthetic %.60s exclude each other", cfg->store,
                        cfg->synthetic);
    }
    if (cfg->read_split % 4096 != 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "--read-split %llu is no multiple of 4096",
                        (unsigned long long)cfg->read_split);
    }
    if (cfg->allow_uid[0] != '\0' && xs_config_allow_uid(cfg) < 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "--allow-uid %.40s: expected a numeric user id",
                        cfg->allow_uid);
    }
    if (cfg->endpoint[0] == '\0') {
        return moe_default_endpoint(cfg->endpoint, sizeof cfg->endpoint, err);
    }
    return MOE_OK;
}

moe_dtype xs_config_dtype(const xs_config *cfg)
{
    static const moe_dtype dtypes[] = {MOE_BF16, MOE_F16, MOE_F32};
    return dtypes[cfg->dtype];
}

int64_t xs_config_allow_uid(const xs_config *cfg)
{
    char *end = NULL;
    errno = 0;
    long long uid = strtoll(cfg->allow_uid, &end, 10);
    bool number = cfg->allow_uid[0] != '\0' && *end == '\0' && errno == 0;
    return number && uid >= 0 && uid < UINT32_MAX ? uid : -1; /* that one means nobody */
}

void xs_kill_point(xs_kill_switch *k, xs_kill_at here)
{
    if (k->at != here || here == XS_KILL_NONE) {
        return;
    }
    k->passes_left--;
    if (k->passes_left == 0) {
        raise(SIGKILL);
    }
}
