/* fields.h - what each message kind carries, as tables that encode.c and decode.c both walk.
 *
 * The only place where a wire key meets a struct member. A key means the same field in every
 * message; keys are append only, and 0 and 1 keep their meaning in every protocol version.
 * Private to proto/. Threads: const data.
 */
#ifndef WIRE_PROTO_FIELDS_H
#define WIRE_PROTO_FIELDS_H

#include <stddef.h>
#include <stdint.h>

#include "proto/messages.h"

enum {
    WIRE_KEY_KIND = 0,
    WIRE_KEY_VERSION = 1,
    WIRE_KEY_BOOT = 2,
    WIRE_KEY_STEP = 3,
    WIRE_KEY_NAME = 4,
    WIRE_KEY_PID = 5,
    WIRE_KEY_WORKER_ID = 6,
    WIRE_KEY_DISTANCE = 7,
    WIRE_KEY_EXPERTS = 8,
    WIRE_KEY_STATUS = 9,
    WIRE_KEY_TEXT = 10,
    WIRE_KEY_FLAGS = 11,
    WIRE_KEY_METRICS = 12,
    WIRE_KEY_STORE_UUID = 13,
    WIRE_KEY_LEASE_CAPACITY = 14,
    WIRE_KEY_SLOT_BYTES = 15,
    WIRE_KEY_EXPERT_BYTES = 16,
    WIRE_KEY_EXPERT_DTYPE = 17,
    WIRE_KEY_N_SLOTS = 18,
    WIRE_KEY_N_EXPERTS = 19,
    WIRE_KEY_REGIONS = 20,
    WIRE_KEY_PINNED = 21,
    WIRE_KEY_PURPOSE = 22,
    WIRE_KEY_BYTES = 23,
    WIRE_KEY_PAGE_BYTES = 24
};

typedef enum wire_type {
    WIRE_TYPE_U32,
    WIRE_TYPE_U64,
    WIRE_TYPE_STR,     /* char[max], NUL-terminated in memory, no NUL on the wire */
    WIRE_TYPE_BIN,     /* uint8_t[max], exactly max bytes */
    WIRE_TYPE_U32S,    /* uint32_t[max], how many: uint32_t at count_off */
    WIRE_TYPE_REGIONS, /* wire_region[max], how many: uint32_t at count_off */
    WIRE_TYPE_METRICS  /* moe_metrics */
} wire_type;

typedef struct wire_field {
    uint8_t key;
    const char *name; /* static */
    wire_type type;
    size_t off;
    size_t count_off; /* lists only */
    uint32_t max;     /* STR, BIN: bytes of the member; lists: elements */
} wire_field;

typedef struct wire_layout {
    const wire_field *fields; /* [n], static; the header's four are not among them */
    uint32_t n;
} wire_layout;

extern const wire_layout wire_header_layout; /* into wire_header */
extern const wire_layout wire_region_layout; /* into wire_region */
/* Into the wire_message of this kind; NULL if the kind is unknown. */
const wire_layout *wire_layout_of(uint32_t kind);

#endif
