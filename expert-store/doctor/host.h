/* host.h - the machine as Linux describes it, and what of it suits a store.
 *
 * Reading (facts from /proc, /sys and limits) and judging are apart: judging is pure.
 * Threads: any; no state.
 */
#ifndef XS_HOST_H
#define XS_HOST_H

#include <stdbool.h>
#include <stdint.h>

#include "expert-store/doctor/findings.h"

enum { XS_MAX_NODES = 64 };

typedef struct xs_host {
    char kernel[64];
    uint32_t n_cpus;
    uint64_t memlock_bytes; /* UINT64_MAX: unlimited */
    bool may_lock_anyway;   /* CAP_IPC_LOCK */
    uint64_t ram_bytes, ram_available_bytes;
    uint64_t cgroup_bytes;              /* memory limit of this control group; UINT64_MAX: none */
    uint64_t shm_bytes, shm_free_bytes; /* of /dev/shm; 0 and 0: there is none */
    char shm_huge[32], anonymous_huge[32]; /* the bracketed word; "" unknown */
    uint64_t huge_page_pool_bytes;         /* hugetlb pages set aside */
    uint32_t n_nodes;                      /* NUMA nodes with memory, at least 1 */
} xs_host;

/* root: "" for this machine; tests have a directory that looks like one. What cannot be read stays
 * unknown (0, "", UINT64_MAX for limits): never fails. Limits of the process and shm sizes are
 * always this machine's. */
void xs_host_read(const char *root, xs_host *out);

/* needed_bytes: of slots that are to be locked; 0: no model in view. */
void xs_host_judge(const xs_host *h, uint64_t needed_bytes, xs_findings *out);

/* Memory that slots can have: the least of available RAM, the control group's limit and /dev/shm.
 */
uint64_t xs_host_usable_bytes(const xs_host *h);

#endif
