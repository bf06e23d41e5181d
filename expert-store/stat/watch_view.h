/* watch_view.h - a store at work, as one screen: tier flow, hits, latencies, and a row per block
 * with a cell for each expert.
 *
 * A cell shows where an expert is and how warm (proto/expert_map.h): on the drive, being read, in a
 * slot, or in a slot that a worker is reading now. Where a block has more experts than the screen
 * has columns, a cell stands for several and shows the nearest of them, the warmest of equals.
 * Rates and quantiles are of the time between the two lists.
 * Pure: no clock, no terminal. Threads: any.
 */
#ifndef XS_WATCH_VIEW_H
#define XS_WATCH_VIEW_H

#include <stdbool.h>
#include <stdint.h>

#include "common/metrics.h"
#include "common/text.h"

typedef struct xs_screen {
    uint32_t columns, rows;
    bool color; /* 256 colours; else letters as in proto/expert_map.h */
    bool utf8;  /* blocks and arrows; else ASCII */
} xs_screen;

/* now: with WIRE_STATS_BLOCKS and WIRE_STATS_MAPS. earlier may be NULL: nothing has a rate yet.
 * At most screen->rows lines, none longer than screen->columns. */
void xs_watch_view(const moe_metrics *now, const moe_metrics *earlier, double seconds,
                   const xs_screen *screen, moe_text *out);

#endif
