/* trace.c - a bounded list of timed events, written out as Chrome trace JSON.
 *
 * Any thread adds: a place is taken by an atomic count, so two threads never share one. Events
 * beyond the bound are counted and dropped. Writing happens after all adders have stopped.
 */
#include "gpu-worker/fetch/trace.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

struct gw_trace {
    gw_trace_event *events; /* [max] owned */
    uint32_t max;
    _Atomic uint64_t
        n_added; /* relaxed: only hands out places; joining the adders orders the rest */
};

moe_status gw_trace_create(uint32_t max_events, gw_trace **out, moe_err *err)
{
    gw_trace *t = calloc(1, sizeof *t);
    if (t != NULL) {
        t->events = calloc(max_events, sizeof *t->events);
    }
    if (t == NULL || t->events == NULL) {
        gw_trace_destroy(t);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "trace of %u events", max_events);
    }
    t->max = max_events;
    *out = t;
    return MOE_OK;
}

void gw_trace_destroy(gw_trace *t)
{
    if (t == NULL) {
        return;
    }
    free(t->events);
    free(t);
}

void gw_trace_add(gw_trace *t, gw_lane lane, const char *name, int64_t begin_ns, int64_t end_ns,
                  int32_t block, int32_t expert, uint64_t bytes)
{
    if (t == NULL) {
        return;
    }
    uint64_t place = atomic_fetch_add_explicit(&t->n_added, 1, memory_order_relaxed);
    if (place < t->max) {
        t->events[place] = (gw_trace_event){.name = name,
                                            .begin_ns = begin_ns,
                                            .end_ns = end_ns,
                                            .bytes = bytes,
                                            .block = block,
                                            .expert = expert,
                                            .lane = lane};
    }
}

uint32_t gw_trace_n_events(const gw_trace *t)
{
    uint64_t added = atomic_load_explicit(&t->n_added, memory_order_relaxed);
    return added < t->max ? (uint32_t)added : t->max;
}

const gw_trace_event *gw_trace_at(const gw_trace *t, uint32_t i)
{
    return &t->events[i];
}

uint64_t gw_trace_n_dropped(const gw_trace *t)
{
    return atomic_load_explicit(&t->n_added, memory_order_relaxed) - gw_trace_n_events(t);
}

static const char *lane_name(gw_lane lane)
{
    switch (lane) {
    case GW_LANE_COMPUTE:
        return "compute";
    case GW_LANE_COPY:
        return "copies";
    case GW_LANE_STORE:
        return "waits for the store";
    case GW_LANE_STEP:
        return "steps";
    }
    return "?";
}

static void write_lanes(FILE *f)
{
    for (int lane = GW_LANE_COMPUTE; lane <= GW_LANE_STEP; lane++) {
        fprintf(f,
                "{\"ph\":\"M\",\"pid\":1,\"tid\":%d,\"name\":\"thread_name\","
                "\"args\":{\"name\":\"%s\"}},\n",
                lane, lane_name((gw_lane)lane));
    }
}

/* Times are microseconds; args only where they mean something. */
static void write_event(FILE *f, const gw_trace_event *e)
{
    int64_t dur_ns = e->end_ns > e->begin_ns ? e->end_ns - e->begin_ns : 0;
    const char *comma = "";
    fprintf(
        f, "{\"ph\":\"X\",\"pid\":1,\"tid\":%d,\"name\":\"%s\",\"ts\":%.3f,\"dur\":%.3f,\"args\":{",
        (int)e->lane, e->name, (double)e->begin_ns / 1e3, (double)dur_ns / 1e3);
    if (e->block >= 0) {
        fprintf(f, "\"block\":%d", e->block);
        comma = ",";
    }
    if (e->expert >= 0) {
        fprintf(f, "%s\"expert\":%d", comma, e->expert);
        comma = ",";
    }
    if (e->bytes > 0) {
        fprintf(f, "%s\"bytes\":%llu", comma, (unsigned long long)e->bytes);
    }
    fputs("}},\n", f);
}

moe_status gw_trace_write(const gw_trace *t, const char *path, moe_err *err)
{
    FILE *f = fopen(path, "we");
    if (f == NULL) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "create trace %s", path);
    }
    fputs("{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n", f);
    write_lanes(f);
    for (uint32_t i = 0; i < gw_trace_n_events(t); i++) {
        write_event(f, &t->events[i]);
    }
    /* Last in the list, so that every line above may end in a comma. */
    fprintf(
        f,
        "{\"ph\":\"M\",\"pid\":1,\"name\":\"process_name\",\"args\":{\"name\":\"gpu-worker\"}}\n"
        "],\"otherData\":{\"dropped_events\":\"%llu\"}}\n",
        (unsigned long long)gw_trace_n_dropped(t));
    bool bad = ferror(f) != 0;
    if (fclose(f) != 0 || bad) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "write trace %s", path);
    }
    return MOE_OK;
}
