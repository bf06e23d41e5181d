/* names.h - names of policies, as settings, rows and reports spell them. Pure. */
#ifndef GW_NAMES_H
#define GW_NAMES_H

#include <string.h>

#include "gpu-worker/fetch/cell_policy.h"
#include "gpu-worker/fetch/pipeline.h"

#define GW_POLICY_NAMES "resident, on-demand, prefetch-all, pregated"
#define GW_CELL_POLICY_NAMES "lru, lfu, lifo-inactive"

static inline const char *gw_policy_name(gw_policy p)
{
    static const char *const names[] = {"resident", "on-demand", "prefetch-all", "pregated"};
    return names[p];
}

static inline const char *gw_cell_policy_name(gw_cell_policy p)
{
    static const char *const names[] = {"lru", "lfu", "lifo-inactive"};
    return names[p];
}

/* -1: no such policy */
static inline int gw_policy_parse(const char *name)
{
    for (int p = GW_RESIDENT; p <= GW_PREGATED; p++) {
        if (strcmp(name, gw_policy_name((gw_policy)p)) == 0) {
            return p;
        }
    }
    return -1;
}

static inline int gw_cell_policy_parse(const char *name)
{
    for (int p = GW_CELL_LRU; p <= GW_CELL_LIFO_INACTIVE; p++) {
        if (strcmp(name, gw_cell_policy_name((gw_cell_policy)p)) == 0) {
            return p;
        }
    }
    return -1;
}

#endif
