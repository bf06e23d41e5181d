/* store_state.h - everything one running store consists of, for the files that act on it together:
 * server.c (makes it, loops, ends it), memory_budget.c, handlers.c (messages), loading.c (reads),
 * store_metrics.c.
 *
 * All of it belongs to the event-loop thread.
 */
#ifndef XS_STORE_STATE_H
#define XS_STORE_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/metrics.h"
#include "expert-store/reader/extent_reader.h"
#include "expert-store/reader/fetch_queue.h"
#include "expert-store/server/lease_view.h"
#include "expert-store/server/model_source.h"
#include "expert-store/server/regions.h"
#include "expert-store/server/residency.h"
#include "expert-store/server/reverify.h"
#include "expert-store/server/slot_memory.h"
#include "expert-store/server/trace_recorder.h"
#include "expert-store/server/workers.h"
#include "expert-store/store_config.h"
#include "proto/messages.h"
#include "proto/socket.h"

enum { XS_N_KINDS = WIRE_RESIZE + 1 };

/* One line of a kind per second at most; the rest is counted and said with the next one. */
typedef struct xs_log_limit {
    int64_t quiet_until_ns;
    uint64_t suppressed;
} xs_log_limit;
/* True: log now, and *out_suppressed lines were not. */
bool xs_log_limit_pass(xs_log_limit *l, int64_t now_ns, uint64_t *out_suppressed);

typedef struct xs_store_counters {
    uint64_t requests[XS_N_KINDS]; /* well-formed messages by kind */
    uint64_t malformed, refused;   /* undecodable; decodable, but answered by ERROR */
    uint64_t replies_dropped;      /* the peer was slow or away */
    uint64_t want_hit, want_late, want_miss, want_repeated; /* experts named by WANTs */
    uint64_t predicted;           /* experts named by PREDICTs that counted */
    uint64_t predictions_stale;   /* PREDICT messages of an older boot or step */
    uint64_t predictions_expired; /* left the queue unread, too old */
    uint64_t cancelled;           /* queue entries dropped by CANCEL and deaths */
    uint64_t loads[XS_N_FETCH_CLASSES];
    uint64_t load_failures;
    uint64_t reverified, reverify_failed;
    moe_histogram want_latency; /* WANT to READY, experts that were not there */
} xs_store_counters;

typedef struct xs_store {
    const xs_config *cfg; /* borrowed */
    xs_model model;
    char endpoint_path[512];
    int lock_fd;
    xs_regions regions;
    bool remove_memory;           /* at the end: unlink all regions */
    xs_slot_memory *slot_memory;  /* owned; it fills regions.slots */
    xs_slot_memory_report memory; /* its latest news that was acted on */
    uint32_t n_ordered;           /* slots that the setting or the last order asked for */
    uint32_t n_promised;          /* slots that the start was asked for: with fewer, it fails */
    xs_limits limits;
    xs_kill_switch kill;

    xs_lease_view leases;
    xs_workers *workers; /* owned, like all below */
    xs_residency *residency;
    xs_fetch_queue *queue;
    xs_reader *reader;
    xs_reverify *reverify; /* NULL: nothing was adopted */
    xs_recorder *recorder; /* NULL: no --record-trace */
    wire_router *router, *admin;

    uint32_t boot;
    int64_t started_ns;
    int64_t last_send_ns;
    bool stopping;          /* finish what WANTs asked for, take nothing new */
    bool starved;           /* a load waits for a slot: look again soon */
    uint32_t n_speculative; /* experts in flight for predictions and warm-up */
    uint32_t n_in_flight;
    uint32_t reverify_next; /* slots below it were handed over */
    bool reverify_busy;
    double read_rate;    /* bytes per second, smoothed over about 2 s */
    uint64_t rate_bytes; /* read_bytes when read_rate was updated */
    int64_t rate_ns;

    xs_store_counters counters;
    xs_log_limit bad_message_log, read_failure_log, adopted_bad_log;
    wire_message in, out; /* scratch of the message at hand; large */
} xs_store;

/* Once for each way in which reads are not what was asked for. */
void xs_log_degraded_reads(const xs_store *s);

static inline moe_board_header *xs_store_board(const xs_store *s)
{
    return (moe_board_header *)s->regions.board.base;
}

#endif
