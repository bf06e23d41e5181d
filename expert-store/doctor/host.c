/* host.c - see host.h. */
#include "expert-store/doctor/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/file.h"
#include "common/memory_group.h"

#define GIB ((double)(1ull << 30))

/* ---- reading ---- */

static bool read_file(const char *root, const char *path, char *out, size_t out_bytes)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    return moe_read_pseudo_file(full, out, out_bytes);
}

/* The number behind "Key:", 0 when there is none. */
static uint64_t number_after(const char *text, const char *key, int base)
{
    const char *at = strstr(text, key);
    return at != NULL ? strtoull(at + strlen(key), NULL, base) : 0;
}

static void read_memory(const char *root, xs_host *h)
{
    char text[8192];
    (void)read_file(root, "/proc/meminfo", text, sizeof text);
    h->ram_bytes = number_after(text, "MemTotal:", 10) << 10;
    h->ram_available_bytes = number_after(text, "MemAvailable:", 10) << 10;
    h->huge_page_pool_bytes = number_after(text, "HugePages_Total:", 10) *
                              (number_after(text, "Hugepagesize:", 10) << 10);
}

/* "always [madvise] never" -> "madvise" */
static void read_choice(const char *root, const char *path, char *out, size_t out_bytes)
{
    char text[256];
    (void)read_file(root, path, text, sizeof text);
    const char *open_at = strchr(text, '[');
    const char *from = open_at != NULL ? open_at + 1 : "";
    snprintf(out, out_bytes, "%.*s", (int)strcspn(from, "]"), from);
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Numbers in a list such as "0-1,4". */
static uint32_t count_list(const char *text)
{
    uint32_t n = 0;
    while (*text >= '0' && *text <= '9') {
        char *end = NULL;
        unsigned long first = strtoul(text, &end, 10);
        unsigned long last = *end == '-' ? strtoul(end + 1, &end, 10) : first;
        n += last >= first && last - first < XS_MAX_NODES ? (uint32_t)(last - first) + 1 : 1;
        text = *end == ',' ? end + 1 : "";
    }
    return n;
}

static void read_process(const char *root, xs_host *h)
{
    enum { CAP_IPC_LOCK = 14 };
    char text[4096];
    struct rlimit limit = {0};
    (void)read_file(root, "/proc/self/status", text, sizeof text);
    h->may_lock_anyway = (number_after(text, "CapEff:", 16) >> CAP_IPC_LOCK & 1) != 0;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0) {
        h->memlock_bytes = limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : limit.rlim_cur;
    }
}

void xs_host_read(const char *root, xs_host *out)
{
    moe_memory_group group;
    xs_host h = {0};
    struct utsname name;
    struct statvfs shm = {0};
    char nodes[256];
    snprintf(h.kernel, sizeof h.kernel, "%.60s", uname(&name) == 0 ? name.release : "unknown");
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    h.n_cpus = n_cpus > 0 ? (uint32_t)n_cpus : 1;
    read_process(root, &h);
    read_memory(root, &h);
    moe_memory_group_read(root, &group);
    h.cgroup_bytes = group.limit_bytes;
    if (statvfs("/dev/shm", &shm) == 0) {
        h.shm_bytes = (uint64_t)shm.f_blocks * shm.f_frsize;
        h.shm_free_bytes = (uint64_t)shm.f_bavail * shm.f_frsize;
    }
    read_choice(root, "/sys/kernel/mm/transparent_hugepage/shmem_enabled", h.shm_huge,
                sizeof h.shm_huge);
    read_choice(root, "/sys/kernel/mm/transparent_hugepage/enabled", h.anonymous_huge,
                sizeof h.anonymous_huge);
    (void)read_file(root, "/sys/devices/system/node/has_memory", nodes, sizeof nodes);
    h.n_nodes = count_list(nodes);
    h.n_nodes = h.n_nodes > 0 ? h.n_nodes : 1;
    *out = h;
}

/* ---- judging ---- */

uint64_t xs_host_usable_bytes(const xs_host *h)
{
    return least(least(h->ram_available_bytes, h->cgroup_bytes), h->shm_free_bytes);
}

static void judge_memlock(const xs_host *h, uint64_t needed_bytes, xs_findings *out)
{
    if (h->memlock_bytes == UINT64_MAX) {
        xs_findings_add(out, "memlock", XS_GOOD, "unlimited");
        return;
    }
    if (h->may_lock_anyway) {
        xs_findings_add(out, "memlock", XS_GOOD,
                        "limit %.2f GiB, which does not bind this process (CAP_IPC_LOCK)",
                        (double)h->memlock_bytes / GIB);
        return;
    }
    if (needed_bytes > 0 && h->memlock_bytes >= needed_bytes) {
        xs_findings_add(out, "memlock", XS_GOOD, "limit %.2f GiB, the slots need %.2f",
                        (double)h->memlock_bytes / GIB, (double)needed_bytes / GIB);
        return;
    }
    xs_finding *f = xs_findings_add(out, "memlock", XS_SLOW, "limit %.2f GiB: slots are not locked",
                                    (double)h->memlock_bytes / GIB);
    xs_finding_cost(f,
                    "slots may be swapped out, and io_uring pins their pages anew for each read: "
                    "about 30 us of CPU per MiB");
    xs_finding_change(f, "`ulimit -l unlimited` for a shell, LimitMEMLOCK=infinity in a systemd "
                         "unit, `--ulimit memlock=-1` for a container");
}

static void judge_shm(const xs_host *h, uint64_t needed_bytes, xs_findings *out)
{
    bool enough = needed_bytes > 0 ? h->shm_free_bytes >= needed_bytes
                                   : h->shm_free_bytes >= h->ram_available_bytes / 4;
    if (h->shm_bytes == 0) {
        xs_finding *f = xs_findings_add(out, "/dev/shm", XS_BAD, "not there");
        xs_finding_cost(f, "store and workers have nowhere to share memory");
        xs_finding_change(f, "mount -t tmpfs tmpfs /dev/shm");
        return;
    }
    xs_finding *f =
        xs_findings_add(out, "/dev/shm", enough ? XS_GOOD : XS_SLOW, "%.2f GiB, %.2f free",
                        (double)h->shm_bytes / GIB, (double)h->shm_free_bytes / GIB);
    if (!enough) {
        xs_finding_cost(f, "--ram-bytes can be at most %.2f GiB, however much RAM there is",
                        (double)h->shm_free_bytes / GIB);
        xs_finding_change(f, "mount -o remount,size=90%% /dev/shm; for a container, --shm-size");
    }
}

static void judge_ram(const xs_host *h, uint64_t needed_bytes, xs_findings *out)
{
    bool enough =
        needed_bytes == 0 || least(h->ram_available_bytes, h->cgroup_bytes) >= needed_bytes;
    xs_finding *f = NULL;
    if (h->cgroup_bytes < h->ram_bytes) {
        f = xs_findings_add(out, "RAM", enough ? XS_GOOD : XS_NOTE,
                            "%.1f GiB, %.1f available; this control group may have %.1f",
                            (double)h->ram_bytes / GIB, (double)h->ram_available_bytes / GIB,
                            (double)h->cgroup_bytes / GIB);
    } else {
        f = xs_findings_add(out, "RAM", enough ? XS_GOOD : XS_NOTE, "%.1f GiB, %.1f available",
                            (double)h->ram_bytes / GIB, (double)h->ram_available_bytes / GIB);
    }
    if (!enough) {
        xs_finding_cost(f, "not every expert has a slot: the rest is read when needed (below)");
    }
}

/* For information: common/shm_pages.h depends on no setting. */
static void judge_huge_pages(const xs_host *h, xs_findings *out)
{
    xs_findings_add(out, "huge pages", XS_NOTE,
                    "shared memory: %s, anonymous: %s, set aside: %.1f GiB. The store makes huge "
                    "pages for its slots itself, from Linux 6.1 on",
                    h->shm_huge[0] != '\0' ? h->shm_huge : "unknown",
                    h->anonymous_huge[0] != '\0' ? h->anonymous_huge : "unknown",
                    (double)h->huge_page_pool_bytes / GIB);
}

static void judge_nodes(const xs_host *h, xs_findings *out)
{
    if (h->n_nodes == 1) {
        xs_findings_add(out, "NUMA", XS_GOOD, "one memory node, %u processors", h->n_cpus);
        return;
    }
    xs_finding *f = xs_findings_add(out, "NUMA", XS_SLOW, "%u memory nodes, %u processors",
                                    h->n_nodes, h->n_cpus);
    xs_finding_cost(f,
                    "slots may lie on a node other than the GPU's: copies cross the link between "
                    "nodes");
    xs_finding_change(f, "start the store on the GPU's node (nvidia-smi topo -m): numactl "
                         "--cpunodebind=N --preferred=N expert-store ...");
}

void xs_host_judge(const xs_host *h, uint64_t needed_bytes, xs_findings *out)
{
    judge_memlock(h, needed_bytes, out);
    judge_shm(h, needed_bytes, out);
    judge_ram(h, needed_bytes, out);
    judge_huge_pages(h, out);
    judge_nodes(h, out);
}
