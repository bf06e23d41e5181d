/* cell_policy.c - see cell_policy.h. Pure; any thread. */
#include "gpu-worker/fetch/cell_policy.h"

static bool goes_sooner(gw_cell_policy policy, const gw_cell_candidate *a,
                        const gw_cell_candidate *b)
{
    if (a->needed != b->needed) {
        return b->needed;
    }
    switch (policy) {
    case GW_CELL_LFU:
        return a->uses != b->uses ? a->uses < b->uses : a->last_use < b->last_use;
    case GW_CELL_LIFO_INACTIVE:
        return a->active != b->active ? b->active : a->loaded > b->loaded;
    case GW_CELL_LRU:
        break;
    }
    return a->last_use < b->last_use;
}

int64_t gw_cell_choose(gw_cell_policy policy, const gw_cell_candidate *c, uint32_t n)
{
    int64_t best = -1;
    for (uint32_t i = 0; i < n; i++) {
        if (!c[i].locked && (best < 0 || goes_sooner(policy, &c[i], &c[best]))) {
            best = i;
        }
    }
    return best;
}
