/* backend_cpu.c - the `cpu` device: its memory, its helper team and its imagined link.
 *
 * Owns: the krn_device. Streams and events live in stream_cpu.c.
 * Threads: see backend.h; the link is shared by all streams' threads and locks itself.
 * Shutdown: close after every stream and event is destroyed.
 */
#include "kernels/backend/backend_cpu.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"

enum {
    DEVICE_ALIGN = 64,      /* a cache line, and a 512-bit load */
    SHORT_DEBT_NS = 100000, /* sleeping for less costs more than it says */
    MAX_THREADS = 256
};

struct krn_device {
    krn_team *team;   /* owned */
    double link_gbps; /* 0: copies run at memory speed */
    pthread_mutex_t link_mu;
    int64_t link_free_ns; /* when the last byte so far has crossed, guarded by link_mu */
};

moe_status krn_cpu_probe(moe_err *err)
{
    (void)err;
    return MOE_OK;
}

static uint32_t default_threads(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores > 2 ? (uint32_t)(cores < MAX_THREADS ? cores - 1 : MAX_THREADS) : 1;
}

moe_status krn_cpu_open(const krn_open_cfg *cfg, krn_device **out, moe_err *err)
{
    if (cfg->n_threads > MAX_THREADS || !(cfg->link_gbps >= 0.0)) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "cpu device: n_threads=%u (at most %d), link_gbps=%g",
                        cfg->n_threads, MAX_THREADS, cfg->link_gbps);
    }
    krn_device *d = calloc(1, sizeof *d);
    if (d == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "cpu device");
    }
    uint32_t n_threads = cfg->n_threads != 0 ? cfg->n_threads : default_threads();
    moe_status st = krn_team_create(n_threads, &d->team, err);
    if (st != MOE_OK) {
        free(d);
        return st;
    }
    d->link_gbps = cfg->link_gbps;
    pthread_mutex_init(&d->link_mu, NULL);
    *out = d;
    return MOE_OK;
}

void krn_cpu_close(krn_device *d)
{
    if (d == NULL) {
        return;
    }
    krn_team_destroy(d->team);
    pthread_mutex_destroy(&d->link_mu);
    free(d);
}

static void read_cpu_name(char *out, size_t out_bytes)
{
    snprintf(out, out_bytes, "cpu");
    FILE *f = fopen("/proc/cpuinfo", "re");
    if (f == NULL) {
        return;
    }
    char line[256];
    while (fgets(line, sizeof line, f) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon != NULL) {
            line[strcspn(line, "\n")] = '\0';
            snprintf(out, out_bytes, "cpu: %.80s", colon + 1 + strspn(colon + 1, " "));
            break;
        }
    }
    fclose(f);
}

void krn_cpu_info(krn_device *d, krn_device_info *out)
{
    (void)d;
    memset(out, 0, sizeof *out);
    read_cpu_name(out->name, sizeof out->name);
    long page = sysconf(_SC_PAGESIZE), all = sysconf(_SC_PHYS_PAGES);
    long available = sysconf(_SC_AVPHYS_PAGES);
    if (page > 0 && all > 0 && available > 0) {
        out->memory_bytes = (uint64_t)all * (uint64_t)page;
        out->memory_free_bytes = (uint64_t)available * (uint64_t)page;
    }
}

static moe_status alloc_aligned(size_t align, size_t bytes, const char *what, void **out,
                                moe_err *err)
{
    void *p = NULL;
    if (bytes == 0 || bytes > SIZE_MAX - align) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "%s memory: %zu bytes", what, bytes);
    }
    int rc = posix_memalign(&p, align, bytes);
    if (rc != 0) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_NO_MEMORY, MOE_LAYER_ERRNO, rc, "%s memory: %zu bytes",
                               what, bytes);
    }
    *out = p;
    return MOE_OK;
}

moe_status krn_cpu_mem_alloc(krn_device *d, size_t bytes, void **out, moe_err *err)
{
    (void)d;
    return alloc_aligned(DEVICE_ALIGN, bytes, "device", out, err);
}

void krn_cpu_mem_free(krn_device *d, void *p)
{
    (void)d;
    free(p);
}

moe_status krn_cpu_host_alloc(krn_device *d, size_t bytes, void **out, moe_err *err)
{
    (void)d;
    moe_status st = alloc_aligned((size_t)sysconf(_SC_PAGESIZE), bytes, "mapped", out, err);
    if (st == MOE_OK) {
        memset(*out, 0, bytes);
    }
    return st;
}

void krn_cpu_host_free(krn_device *d, void *p)
{
    (void)d;
    free(p);
}

moe_status krn_cpu_host_register(krn_device *d, const void *p, size_t bytes, moe_err *err)
{
    (void)d;
    if (p == NULL || bytes == 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "register %zu bytes of host memory", bytes);
    }
    return MOE_OK; /* every host page can be copied from as it is */
}

void krn_cpu_host_unregister(krn_device *d, const void *p)
{
    (void)d;
    (void)p;
}

krn_team *krn_cpu_device_team(krn_device *d)
{
    return d->team;
}

void krn_cpu_device_cross_link(krn_device *d, size_t bytes, bool is_last)
{
    if (d->link_gbps <= 0.0) {
        return;
    }
    int64_t now = moe_now_ns();
    pthread_mutex_lock(&d->link_mu);
    int64_t start = d->link_free_ns > now ? d->link_free_ns : now;
    int64_t due = start + (int64_t)((double)bytes / d->link_gbps); /* 1 GB/s is 1 byte/ns */
    d->link_free_ns = due;
    pthread_mutex_unlock(&d->link_mu);
    if (is_last || due - now > SHORT_DEBT_NS) {
        moe_sleep_ns(due - now);
    }
}
