/* bench_reader.c - reads random experts of a store through the extent reader and prints one JSON
 * object. One event loop as the store's: submit, poll, harvest. drive.sh compares it with fio. */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/config.h"
#include "common/shm_region.h"
#include "common/text.h"
#include "expert-store/catalog/catalog.h"
#include "expert-store/reader/extent_reader.h"

typedef struct bench_config {
    char store[MOE_CFG_STR_BYTES];
    int engine;
    bool direct;
    uint64_t depth, split_bytes, n_slots, demand, speculative, verify_threads, seed;
    double seconds;
} bench_config;

#define ROW(field, type, min, max, dflt, help)                                                     \
    MOE_ROW(bench_config, field, type, min, max, dflt, help)

static const moe_config_row rows[] = {
    ROW(store, MOE_CFG_STR, 0, 0, "", "store directory"),
    MOE_ROW_ENUM(bench_config, engine, "auto|io_uring|pread", "auto", "how to read"),
    ROW(direct, MOE_CFG_BOOL, 0, 1, "true", "ask for O_DIRECT"),
    ROW(depth, MOE_CFG_U64, 1, 4096, "64", "reads in flight"),
    ROW(split_bytes, MOE_CFG_SIZE, 4096, 1 << 30, "256KiB", "one read"),
    ROW(n_slots, MOE_CFG_U64, 1, 1 << 16, "16", "slots to read into"),
    ROW(demand, MOE_CFG_U64, 0, 1 << 16, "0",
        "experts in flight whose latency counts; 0 = as many as slots and reader take"),
    ROW(speculative, MOE_CFG_U64, 0, 64, "0", "further experts in flight, begun anew as they end"),
    ROW(verify_threads, MOE_CFG_U64, 1, 64, "2", "threads that hash chunks"),
    ROW(seed, MOE_CFG_U64, 0, 1e18, "1", "of the random choice of experts"),
    ROW(seconds, MOE_CFG_F64, 0.1, 600, "5", "how long new reads are started"),
};

static const moe_config_spec spec = {
    .program = "bench_reader",
    .section = "bench_reader",
    .synopsis = "--store DIR [--depth N]",
    .about = "Reads random experts of a store and prints GB/s and latencies as JSON.",
    .rows = rows,
    .n_rows = sizeof rows / sizeof rows[0],
};

typedef struct bench {
    const bench_config *cfg;
    xs_catalog *catalog;
    xs_reader *reader;
    moe_shm_region slots; /* as the store makes them */
    uint64_t slot_bytes;
    int64_t *latency_ns; /* [n] submit to verified; grows */
    size_t n, capacity;
    double seconds, cpu_seconds;
    uint64_t bytes;
} bench;

static uint64_t next_random(uint64_t *state) /* xorshift64* */
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dull;
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static moe_status keep_latency(bench *b, int64_t ns, moe_err *err)
{
    if (b->n == b->capacity) {
        size_t capacity = b->capacity == 0 ? 4096 : 2 * b->capacity;
        int64_t *grown = realloc(b->latency_ns, capacity * sizeof *grown);
        if (grown == NULL) {
            return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%zu latencies", capacity);
        }
        b->latency_ns = grown;
        b->capacity = capacity;
    }
    b->latency_ns[b->n++] = ns;
    return MOE_OK;
}

static moe_status harvest(bench *b, bool *busy, moe_err *err)
{
    struct pollfd watched = {.fd = xs_reader_fd(b->reader), .events = POLLIN};
    if (poll(&watched, 1, -1) < 0 && errno != EINTR) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "poll");
    }
    xs_completion done[16];
    uint32_t n = xs_reader_harvest(b->reader, done, 16);
    for (uint32_t i = 0; i < n; i++) {
        if (done[i].status != MOE_OK) {
            return MOE_FAIL(err, done[i].status, "%s", done[i].text);
        }
        busy[done[i].slot] = false;
        if (done[i].slot < b->cfg->speculative) {
            continue;
        }
        moe_status st =
            keep_latency(b, done[i].queued_ns + done[i].read_ns + done[i].verify_ns, err);
        if (st != MOE_OK) {
            return st;
        }
    }
    return MOE_OK;
}

/* The first slots are the speculative ones, the others those of demand. */
static moe_status submit(bench *b, bool *busy, uint64_t *random, moe_err *err)
{
    uint32_t n_experts = xs_catalog_get_info(b->catalog)->shape.n_experts_total;
    uint64_t n_used = b->cfg->demand == 0 ? b->cfg->n_slots : b->cfg->speculative + b->cfg->demand;
    for (uint32_t slot = 0; slot < n_used; slot++) {
        if (busy[slot]) {
            continue;
        }
        uint32_t expert = (uint32_t)(next_random(random) % n_experts);
        moe_status st = slot < b->cfg->speculative
                            ? xs_reader_submit_speculative(b->reader, expert, slot, 0, err)
                            : xs_reader_submit(b->reader, expert, slot, 0, err);
        if (st != MOE_OK) {
            return st == MOE_ERR_AGAIN ? MOE_OK : st;
        }
        busy[slot] = true;
    }
    return MOE_OK;
}

static moe_status run(bench *b, bool *busy, moe_err *err)
{
    uint64_t random = b->cfg->seed * 2 + 1;
    int64_t start_ns = moe_now_ns();
    int64_t stop_ns = start_ns + (int64_t)(b->cfg->seconds * 1e9);
    double cpu_before = cpu_seconds();
    for (;;) {
        if (moe_now_ns() < stop_ns) {
            moe_status st = submit(b, busy, &random, err);
            if (st != MOE_OK) {
                return st;
            }
        }
        if (xs_reader_get_counters(b->reader)->experts_in_flight == 0) {
            break; /* only after stop_ns: until then some were just submitted */
        }
        moe_status st = harvest(b, busy, err);
        if (st != MOE_OK) {
            return st;
        }
    }
    b->seconds = (double)(moe_now_ns() - start_ns) / 1e9;
    b->cpu_seconds = cpu_seconds() - cpu_before;
    b->bytes = xs_reader_get_counters(b->reader)->read_bytes;
    return MOE_OK;
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a;
    int64_t y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void print_result(bench *b)
{
    static const char *const names[] = {"auto", "io_uring", "pread", "synthetic"};
    const xs_reader_report *report = xs_reader_get_report(b->reader);
    qsort(b->latency_ns, b->n, sizeof *b->latency_ns, by_value);
    double gb = (double)b->bytes / 1e9;
    size_t middle = b->n / 2;
    size_t late = b->n * 99 / 100;
    moe_text note;
    moe_text_init(&note);
    moe_text_json_string(&note, report->note, strlen(report->note));
    printf(
        "{\"bench\": \"reader\", \"engine\": \"%s\", \"direct\": %s, \"registered_buffers\": %s, "
        "\"note\": %s, \"depth\": %llu, \"split_bytes\": %llu, \"verify_threads\": %llu, "
        "\"slot_bytes\": %llu, \"huge_bytes\": %llu, \"demand\": %llu, \"speculative\": %llu, "
        "\"experts\": %zu, \"seconds\": %.3f, \"gb_per_s\": %.3f, "
        "\"cpu_seconds_per_gb\": %.4f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n",
        names[report->engine], report->direct ? "true" : "false",
        report->registered_buffers ? "true" : "false", note.data != NULL ? note.data : "\"\"",
        (unsigned long long)b->cfg->depth, (unsigned long long)b->cfg->split_bytes,
        (unsigned long long)b->cfg->verify_threads, (unsigned long long)b->slot_bytes,
        (unsigned long long)b->slots.huge_bytes, (unsigned long long)b->cfg->demand,
        (unsigned long long)b->cfg->speculative, b->n, b->seconds, gb / b->seconds,
        b->cpu_seconds / gb, (double)b->latency_ns[middle] / 1e3,
        (double)b->latency_ns[late] / 1e3);
    moe_text_fini(&note);
}

static moe_status measure(bench *b, moe_err *err)
{
    bool *busy = NULL;
    moe_status st = xs_catalog_open(b->cfg->store, &b->catalog, err);
    if (st != MOE_OK) {
        return st;
    }
    if (b->cfg->speculative + b->cfg->demand > b->cfg->n_slots ||
        b->cfg->speculative == b->cfg->n_slots) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "%llu slots are too few",
                        (unsigned long long)b->cfg->n_slots);
    }
    b->slot_bytes = xs_catalog_get_info(b->catalog)->slot_bytes;
    size_t bytes = b->slot_bytes * b->cfg->n_slots;
    busy = calloc(b->cfg->n_slots, sizeof *busy);
    if (busy == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%zu bytes of slots", bytes);
    }
    char name[MOE_SHM_NAME_BYTES];
    snprintf(name, sizeof name, "/pregate-bench-%ld", (long)getpid());
    st = moe_shm_create(name, bytes, 0600, &b->slots, err);
    moe_shm_unlink(name);
    if (st != MOE_OK) {
        free(busy);
        return st;
    }
    xs_reader_cfg cfg = {.catalog = b->catalog,
                         .slots = b->slots.base,
                         .slot_bytes = b->slot_bytes,
                         .n_slots = (uint32_t)b->cfg->n_slots,
                         .n_made = (uint32_t)b->cfg->n_slots,
                         .engine = (xs_engine)b->cfg->engine,
                         .direct = b->cfg->direct,
                         .depth = (uint32_t)b->cfg->depth,
                         .split_bytes = b->cfg->split_bytes,
                         .n_verify_threads = (uint32_t)b->cfg->verify_threads,
                         .lock_fd = -1};
    st = xs_reader_create(&cfg, &b->reader, err);
    if (st == MOE_OK) {
        st = run(b, busy, err);
    }
    if (st == MOE_OK) {
        print_result(b);
    }
    xs_reader_destroy(b->reader);
    moe_shm_close(&b->slots);
    free(busy);
    return st;
}

int main(int argc, char **argv)
{
    bench_config cfg;
    moe_config_action action = MOE_CONFIG_RUN;
    uint32_t n_positional = 0;
    moe_err err = {0};
    moe_status st = moe_config_load(&spec, argc, argv, &cfg, NULL, 0, &n_positional, &action, &err);
    if (st == MOE_OK && action != MOE_CONFIG_RUN) {
        moe_config_help(&spec, stdout);
        return 0;
    }
    bench b = {.cfg = &cfg, .slots = MOE_SHM_REGION_NONE};
    if (st == MOE_OK) {
        st = measure(&b, &err);
    }
    xs_catalog_close(b.catalog);
    free(b.latency_ns);
    if (st != MOE_OK) {
        char text[600];
        moe_err_format(&err, text, sizeof text);
        fprintf(stderr, "bench_reader: %s\n", text);
        return 1;
    }
    return 0;
}
