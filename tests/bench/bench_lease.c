/* bench_lease.c - what a resident expert costs a worker before its copy: take a lease, give it
 * back. Run by hand against a store that serves: bench_lease --endpoint ipc:///... prints one JSON
 * object. One thread, as the fetch thread; the slots' bytes are not touched. */
#include <stdio.h>
#include <stdlib.h>

#include "common/clock.h"
#include "common/config.h"
#include "gpu-worker/fetch/store_client.h"

typedef struct bench_config {
    char endpoint[MOE_CFG_STR_BYTES];
    uint64_t rounds, experts;
} bench_config;

static const moe_config_row rows[] = {
    MOE_ROW(bench_config, endpoint, MOE_CFG_STR, 0, 0, "", "of the store; empty: the default one"),
    MOE_ROW(bench_config, rounds, MOE_CFG_U64, 1, 1e8, "1000000", "leases to take"),
    MOE_ROW(bench_config, experts, MOE_CFG_U64, 1, 65536, "64",
            "experts to make resident first, 0 to N - 1; no more than the slots hold easily"),
};

static const moe_config_spec spec = {.program = "bench_lease",
                                     .section = "bench_lease",
                                     .synopsis = "[options]",
                                     .about = "Times a lease and its release.",
                                     .rows = rows,
                                     .n_rows = sizeof rows / sizeof rows[0]};

static int fail(const moe_err *err)
{
    char text[800];
    moe_err_format(err, text, sizeof text);
    fprintf(stderr, "bench_lease: %s\n", text);
    return 1;
}

/* Makes *out_n experts resident, at most `wanted` and no more than the slots hold easily. */
static moe_status make_resident(gw_store_client *c, uint32_t wanted, uint32_t *out_n, moe_err *err)
{
    const wire_welcome *w = gw_store_client_welcome(c);
    uint32_t n = w->n_slots < w->n_experts ? w->n_slots / 2 : w->n_experts;
    n = n > wanted ? wanted : n > 0 ? n : 1;
    for (uint32_t x = 0; x < n; x++) {
        int64_t deadline_ns = moe_now_ns() + 10 * MOE_NS_PER_S;
        gw_store_client_want(c, 1, &x, 1);
        while (!gw_store_client_is_resident(c, x)) {
            moe_status st = gw_store_client_poll(c, moe_now_ns(), err);
            if (st != MOE_OK) {
                return st;
            }
            if (moe_now_ns() > deadline_ns) {
                return MOE_FAIL(err, MOE_ERR_TIMEOUT, "expert %u does not become resident", x);
            }
        }
    }
    *out_n = n;
    return MOE_OK;
}

static int compare(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* One lease is shorter than two looks at the clock: that cost is measured and taken off. */
static int64_t clock_cost_ns(void)
{
    enum { LOOKS = 100000 };
    int64_t begin_ns = moe_now_ns();
    for (int i = 0; i < LOOKS; i++) {
        (void)moe_now_ns();
    }
    return (moe_now_ns() - begin_ns) / LOOKS;
}

static moe_status measure(gw_store_client *c, uint32_t n_experts, int32_t *ns, uint64_t rounds,
                          moe_err *err)
{
    const int64_t clock_ns = clock_cost_ns();
    for (uint64_t i = 0; i < rounds; i++) {
        gw_lease lease;
        int64_t begin_ns = moe_now_ns();
        moe_status st = gw_store_client_lease(c, (uint32_t)(i % n_experts), &lease, err);
        if (st != MOE_OK) {
            return st;
        }
        gw_store_client_release(c, &lease);
        int64_t took_ns = moe_now_ns() - begin_ns - clock_ns;
        ns[i] = took_ns < INT32_MAX ? (int32_t)took_ns : INT32_MAX;
    }
    return MOE_OK;
}

static int run(const bench_config *cfg)
{
    moe_err err;
    gw_store_client *c = NULL;
    uint32_t n = 0;
    const gw_store_client_cfg client = {
        .endpoint = cfg->endpoint, .name = "bench_lease", .connect_timeout_ns = 120 * MOE_NS_PER_S};
    int32_t *ns = calloc(cfg->rounds, sizeof *ns);
    if (ns == NULL) {
        return fail(&(moe_err){.status = MOE_ERR_NO_MEMORY, .file = __FILE__});
    }
    moe_status st = gw_store_client_create(&client, &c, &err);
    if (st == MOE_OK) {
        st = make_resident(c, (uint32_t)cfg->experts, &n, &err);
    }
    if (st == MOE_OK) {
        st = measure(c, n, ns, cfg->rounds, &err);
    }
    gw_store_client_destroy(c);
    if (st == MOE_OK) {
        qsort(ns, cfg->rounds, sizeof *ns, compare);
        printf("{\"leases\": %llu, \"experts\": %u, \"lease_release_ns_p50\": %d, "
               "\"lease_release_ns_p99\": %d, \"lease_release_ns_max\": %d}\n",
               (unsigned long long)cfg->rounds, n, ns[cfg->rounds / 2],
               ns[cfg->rounds - 1 - cfg->rounds / 100], ns[cfg->rounds - 1]);
    }
    free(ns);
    return st == MOE_OK ? 0 : fail(&err);
}

int main(int argc, char **argv)
{
    bench_config cfg;
    moe_config_action action = MOE_CONFIG_RUN;
    uint32_t n_positional = 0;
    moe_err err;
    moe_status st = moe_config_load(&spec, argc, argv, &cfg, NULL, 0, &n_positional, &action, &err);
    if (st == MOE_OK && action == MOE_CONFIG_HELP) {
        moe_config_help(&spec, stdout);
        return 0;
    }
    if (st == MOE_OK && cfg.endpoint[0] == '\0') {
        st = moe_default_endpoint(cfg.endpoint, sizeof cfg.endpoint, &err);
    }
    return st == MOE_OK ? run(&cfg) : fail(&err);
}
