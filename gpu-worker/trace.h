/* trace.h - a timeline for Perfetto (Chrome trace JSON): lanes compute, copies, waits for the store.
 * Threads: add from any thread (a bounded buffer; what does not fit is counted, never blocks);
 * write once everything has stopped. */
#ifndef GW_TRACE_H
#define GW_TRACE_H

#include <stdint.h>

#include "common/status.h"

typedef enum gw_lane { GW_LANE_COMPUTE = 1, GW_LANE_COPY, GW_LANE_STORE, GW_LANE_STEP } gw_lane;
typedef struct gw_trace gw_trace;
MOE_MUST_CHECK moe_status gw_trace_create(uint32_t max_events, gw_trace **out, moe_err *err);
void gw_trace_destroy(gw_trace *t); /* accepts NULL */
/* name is static text; block (flat, or -1), expert (flat, or -1), bytes go into args. t NULL: no-op */
void gw_trace_add(gw_trace *t, gw_lane lane, const char *name, int64_t begin_ns, int64_t end_ns,
                  int32_t block, int32_t expert, uint64_t bytes);
MOE_MUST_CHECK moe_status gw_trace_write(const gw_trace *t, const char *path, moe_err *err);

#endif
