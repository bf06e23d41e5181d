/* stat_table.h - a store's statistics as a table for people: groups, aligned columns, human units;
 * with an earlier list also rates. Pure: no clock, no sockets. Threads: any. */
#ifndef XS_STAT_TABLE_H
#define XS_STAT_TABLE_H

#include "common/metrics.h"
#include "common/text.h"

/* earlier may be NULL; seconds lie between the two lists. */
void xs_stat_table(const moe_metrics *now, const moe_metrics *earlier, double seconds,
                   moe_text *out);
/* One line per block: hits, lates, misses and wasted of both tiers, experts in memory. */
void xs_stat_table_blocks(const moe_metrics *now, moe_text *out);

/* "1.50 GiB", "17.2 k", "12.3 ms" into out (at least 16 bytes). */
void xs_human_bytes(double bytes, char *out, size_t out_bytes);
void xs_human_count(double n, char *out, size_t out_bytes);
void xs_human_seconds(double s, char *out, size_t out_bytes);

#endif
