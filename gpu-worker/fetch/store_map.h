/* store_map.h - a worker's view of the store's shared memory: mapped, checked, locked.
 * Used by store_client.c only. Opened and closed on the client's thread; getters are plain reads.
 */
#ifndef GW_STORE_MAP_H
#define GW_STORE_MAP_H

#include <stdbool.h>

#include "common/model_shape.h"
#include "common/shm_region.h"
#include "proto/dense_table.h"
#include "proto/lease_table.h"
#include "proto/messages.h"

typedef struct gw_store_map {
    moe_shm_region slots, dense, board; /* owned, read-only */
    moe_shm_region leases;              /* owned, read-write, flocked: that is our liveness */
    uint32_t n_slots;                   /* of the slots region, as checked */
} gw_store_map;

#define GW_STORE_MAP_NONE                                                                          \
    ((gw_store_map){MOE_SHM_REGION_NONE, MOE_SHM_REGION_NONE, MOE_SHM_REGION_NONE,                 \
                    MOE_SHM_REGION_NONE, 0})

/* Maps what the WELCOME announces, checks every header against it and against the config.json in
 * the dense region, and locks the lease table. MOE_ERR_FORMAT and MOE_ERR_BUSY name the region. */
MOE_MUST_CHECK moe_status gw_store_map_open(const wire_welcome *w, gw_store_map *out_map,
                                            moe_model_shape *out_shape, moe_err *err);
void gw_store_map_close(gw_store_map *m); /* accepts GW_STORE_MAP_NONE; frees the lock */
/* Are these regions, by name, still the very objects that are mapped here? */
bool gw_store_map_is_current(const gw_store_map *m, const wire_welcome *w);
/* NULL if absent; entries were checked by open. */
const moe_dense_entry *gw_store_map_dense(const gw_store_map *m, const char *name,
                                          moe_dense_kind kind);

#endif
