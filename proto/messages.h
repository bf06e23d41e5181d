/* messages.h - one plain struct per message, its limits, and its bytes.
 * proto/README.md is the specification; numbers here are on the wire: append only.
 *
 * ZeroMQ carries intent, shared memory carries facts (proto/board.h, lease_table.h,
 * dense_table.h): no weight byte crosses a socket.
 * Experts are named by their flat index (common/model_shape.h).
 * Memory: decoding copies; a wire_message owns nothing outside itself, except wire_stats_reply,
 * whose list the caller releases with moe_metrics_fini.
 * Threads: no state.
 */
#ifndef WIRE_PROTO_MESSAGES_H
#define WIRE_PROTO_MESSAGES_H

#include <stddef.h>
#include <stdint.h>

#include "common/metrics.h"
#include "common/shm_region.h"
#include "common/status.h"

enum { WIRE_VERSION = 1 };

typedef enum wire_kind {
    WIRE_HELLO = 1,       /* worker -> store */
    WIRE_WELCOME = 2,     /* store -> worker */
    WIRE_PREDICT = 3,     /* worker -> store, no answer */
    WIRE_WANT = 4,        /* worker -> store; answered by READY or FAILED per expert set */
    WIRE_READY = 5,       /* store -> worker: look at the board */
    WIRE_FAILED = 6,      /* store -> worker: these experts, status, text */
    WIRE_CANCEL = 7,      /* worker -> store: void what this step asked for */
    WIRE_STATS = 8,       /* anyone -> store */
    WIRE_STATS_REPLY = 9, /* store -> */
    WIRE_PREFETCH = 10,   /* operator -> store, admin socket; answered by DONE */
    WIRE_PIN = 11,        /* ... never evict these (pin = 0 undoes) */
    WIRE_EVICT = 12,
    WIRE_DRAIN = 13, /* finish, refuse new work, exit 0 */
    WIRE_DONE = 14,  /* store -> operator: status, text */
    WIRE_PING = 15,
    WIRE_PONG = 16,
    WIRE_ERROR = 17, /* store -> : what was wrong with your message */
    WIRE_RESIZE = 18 /* operator -> store, admin socket: more memory; answered by DONE */
} wire_kind;

enum {
    WIRE_MAX_MESSAGE_BYTES =
        4 << 20, /* ZMQ_MAXMSGSIZE of clients; requests: WIRE_MAX_REQUEST_BYTES */
    WIRE_MAX_REQUEST_BYTES = 64 << 10,
    WIRE_MAX_EXPERTS = 1024, /* per message */
    WIRE_MAX_REGIONS = 8,
    WIRE_MAX_TEXT = 400,  /* with its NUL */
    WIRE_NAME_BYTES = 64, /* with its NUL */
    WIRE_MAX_DEPTH = 6,
    WIRE_MAX_METRICS = 1 << 14, /* samples in a STATS_REPLY */
    WIRE_METRIC_FIELDS = 6,     /* a sample: [name, suffix, labels, help, kind, value] */
    WIRE_MAX_ELEMENTS = 1 << 18 /* msgpack objects in one message: what decoding may allocate */
};

/* Every message starts with these. boot: the store's boot counter as the sender knows it (0:
 * unknown); step: the worker's step counter. Stale predictions are dropped by both. */
typedef struct wire_header {
    uint32_t kind;
    uint32_t version;
    uint32_t boot;
    uint64_t step;
} wire_header;

typedef struct wire_hello {
    wire_header h;
    char name[WIRE_NAME_BYTES]; /* for people: "gpu-worker" */
    uint32_t pid;
    uint32_t worker_id; /* 0: give me one; else the one I had (my lease table may still exist) */
} wire_hello;

typedef enum wire_region_purpose {
    WIRE_REGION_SLOTS = 1,
    WIRE_REGION_DENSE = 2,
    WIRE_REGION_BOARD = 3,
    WIRE_REGION_LEASES = 4
} wire_region_purpose;

typedef struct wire_region {
    uint32_t purpose;
    char name[MOE_SHM_NAME_BYTES];
    uint64_t bytes;
    uint32_t page_bytes;
} wire_region;

typedef struct wire_welcome {
    wire_header h;
    uint8_t store_uuid[16];
    uint32_t worker_id;
    uint32_t lease_capacity;
    uint64_t slot_bytes;
    uint64_t expert_bytes; /* payload of one expert inside its slot */
    uint32_t expert_dtype; /* moe_dtype */
    uint32_t n_slots;
    uint32_t n_experts; /* flat, all blocks */
    uint32_t n_regions;
    wire_region regions[WIRE_MAX_REGIONS];
    char model_name[WIRE_NAME_BYTES];
    uint32_t pinned; /* 1: slots are locked in memory */
} wire_welcome;

/* PREDICT, WANT, CANCEL, READY, PREFETCH, PIN, EVICT share one shape. */
typedef struct wire_experts {
    wire_header h;
    uint32_t distance; /* PREDICT: blocks ahead (1 = next); else 0. PIN: 1 pin, 0 unpin */
    uint32_t n;
    uint32_t experts[WIRE_MAX_EXPERTS];
} wire_experts;

typedef struct wire_failed {
    wire_header h;
    uint32_t status; /* moe_status */
    char text[WIRE_MAX_TEXT];
    uint32_t n;
    uint32_t experts[WIRE_MAX_EXPERTS];
} wire_failed;

enum { WIRE_STATS_BLOCKS = 1, WIRE_STATS_MAPS = 2 }; /* flags of STATS */
typedef struct wire_plain {                          /* STATS, DRAIN, PING, PONG */
    wire_header h;
    uint32_t flags;
} wire_plain;

typedef struct wire_outcome { /* DONE, ERROR */
    wire_header h;
    uint32_t status; /* moe_status */
    char text[WIRE_MAX_TEXT];
} wire_outcome;

typedef struct wire_resize {
    wire_header h;
    char text[WIRE_MAX_TEXT]; /* as --ram-bytes: 16GiB, 25%, all */
} wire_resize;

typedef struct wire_stats_reply {
    wire_header h;
    moe_metrics metrics; /* owned by the struct's owner */
} wire_stats_reply;

/* Any decoded message: look at u.h.kind. Large (the expert lists): keep one per loop, not on a
 * deep stack. */
typedef union wire_message {
    wire_header h;
    wire_hello hello;
    wire_welcome welcome;
    wire_experts experts;
    wire_failed failed;
    wire_plain plain;
    wire_outcome outcome;
    wire_resize resize;
    wire_stats_reply stats_reply;
} wire_message;

typedef struct wire_buffer {
    char *data; /* owned; wire_buffer_fini */
    size_t bytes;
} wire_buffer;

void wire_buffer_fini(wire_buffer *b);
/* Encodes by m->h.kind; m->h.version is ignored, WIRE_VERSION is sent. MOE_ERR_LIMIT if a count is
 * over its limit. *out_bytes is owned by the caller. */
MOE_MUST_CHECK moe_status wire_encode(const wire_message *m, wire_buffer *out, moe_err *err);
/* Never allocates more than a small multiple of `bytes`, whatever the bytes declare: a walk over
 * the bytes bounds the sum of declared counts and the depth first (msgpack-c allocates what is
 * declared). Errors: MOE_ERR_FORMAT (malformed, missing, mistyped or repeated field: named),
 * MOE_ERR_VERSION, MOE_ERR_UNSUPPORTED (unknown kind), MOE_ERR_LIMIT. On any error out->h holds
 * what could be read of the header (zeros elsewhere), so that an ERROR can name the step; the rest
 * of *out means nothing and owns nothing.
 * Unknown keys are ignored (later versions may add fields). Expert indices are not compared with
 * the model: that is the receiver's. */
MOE_MUST_CHECK moe_status wire_decode(const void *data, size_t bytes, wire_message *out,
                                      moe_err *err);
const char *wire_kind_name(uint32_t kind); /* "WANT"; "?" if unknown */

#endif
