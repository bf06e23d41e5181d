/* store_metrics.h - the list of samples that STATS answers with; names and HELP texts live here.
 * Threads: the store's event loop; reads workers' counters while they change.
 */
#ifndef XS_STORE_METRICS_H
#define XS_STORE_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/metrics.h"
#include "expert-store/server/store_state.h"

/* Appends to an initialised list. flags: WIRE_STATS_BLOCKS gives samples with a block="enc0" label
 * instead of sums over blocks, WIRE_STATS_MAPS adds proto/expert_map.h. */
void xs_store_metrics(xs_store *s, uint32_t flags, int64_t now_ns, moe_metrics *out);

#endif
