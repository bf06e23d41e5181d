/* trace.h - a timeline for Perfetto (Chrome trace JSON): lanes compute, copies, waits for the
 * store. Threads: add from any thread (a bounded buffer; what does not fit is counted, never
 * blocks); write once everything has stopped. */
#ifndef GW_TRACE_H
#define GW_TRACE_H

#include <stdint.h>

#include "common/status.h"

typedef enum gw_lane { GW_LANE_COMPUTE = 1, GW_LANE_COPY, GW_LANE_STORE, GW_LANE_STEP } gw_lane;
typedef struct gw_trace gw_trace;
MOE_MUST_CHECK moe_status gw_trace_create(uint32_t max_events, gw_trace **out, moe_err *err);
void gw_trace_destroy(gw_trace *t); /* accepts NULL */
/* name is static text; block (flat, or -1), expert (flat, or -1), bytes go into args. t NULL: no-op
 */
void gw_trace_add(gw_trace *t, gw_lane lane, const char *name, int64_t begin_ns, int64_t end_ns,
                  int32_t block, int32_t expert, uint64_t bytes);
typedef struct gw_trace_event {
    const char *name; /* static */
    int64_t begin_ns, end_ns;
    uint64_t bytes;
    int32_t block, expert;
    gw_lane lane;
} gw_trace_event;
/* What was kept, in no particular order, and how many were not; once everything has stopped. */
uint32_t gw_trace_n_events(const gw_trace *t);
const gw_trace_event *gw_trace_at(const gw_trace *t, uint32_t i);
uint64_t gw_trace_n_dropped(const gw_trace *t);
MOE_MUST_CHECK moe_status gw_trace_write(const gw_trace *t, const char *path, moe_err *err);

#endif
