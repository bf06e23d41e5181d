/* store_config.h - the settings of expert-store: one table row each (store_config.c).
 *
 * Filled once by main.c, const from then on and handed down. Checks that need more than one
 * setting are in xs_config_check. Threads: plain data.
 */
#ifndef XS_STORE_CONFIG_H
#define XS_STORE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "common/config.h"
#include "common/dtype.h"
#include "common/status.h"

/* Where a test wants this process to die, as if by kill -9 (test_kill_at). */
typedef enum xs_kill_at {
    XS_KILL_NONE = 0,
    XS_KILL_MID_READ, /* a read of a slot is in flight */
    XS_KILL_EVICTING, /* the board says EVICTING, the slot is not free yet */
    XS_KILL_WELCOME   /* a lease table is registered, its WELCOME not sent */
} xs_kill_at;

typedef struct xs_config {
    char store[MOE_CFG_STR_BYTES];
    char ram_bytes[MOE_CFG_STR_BYTES]; /* "all", "25%" or a size; see xs_size_slots */
    char endpoint[MOE_CFG_STR_BYTES];  /* "" until xs_config_check fills the default in */
    char synthetic[MOE_CFG_STR_BYTES];
    uint64_t seed;
    int dtype; /* index into "bf16|f16|f32"; xs_config_dtype */
    uint64_t max_workers, leases_per_worker;
    int evict;  /* xs_evict_policy */
    int engine; /* xs_engine AUTO, IO_URING, PREAD */
    bool direct, pin;
    uint64_t depth, read_split, verify_threads;
    uint64_t speculative_bytes;
    uint64_t want_hold_ms, predict_keep_ms, worker_grace_ms, worker_probe_ms, drain_ms;
    bool keep_memory;
    char allow_uid[MOE_CFG_STR_BYTES];
    char metrics_name[MOE_CFG_STR_BYTES];
    char record_trace[MOE_CFG_STR_BYTES];
    uint64_t record_trace_bytes, record_trace_period_us;
    int log_level;    /* moe_log_level */
    int test_kill_at; /* xs_kill_at */
    uint64_t test_kill_after;
    uint64_t test_memory_piece, test_memory_pause_ms;
} xs_config;

extern const moe_config_spec xs_config_spec;

/* Cross-checks and fills the default endpoint in. Errors name the settings. */
MOE_MUST_CHECK moe_status xs_config_check(xs_config *cfg, moe_err *err);
moe_dtype xs_config_dtype(const xs_config *cfg);
int64_t xs_config_allow_uid(const xs_config *cfg); /* -1: none */

/* Tests only: counts passes of the point that test_kill_at names; the test_kill_after-th one is
 * the last thing this process does. Does nothing with the default settings. */
typedef struct xs_kill_switch {
    xs_kill_at at;
    uint64_t passes_left;
} xs_kill_switch;
void xs_kill_point(xs_kill_switch *k, xs_kill_at here);

#endif
