/* board.h - the board: one 64-bit word per expert that says where it is in pinned memory.
 *
 * Written by one thread of the store, mapped read-only by workers. Also holds the registry of
 * lease tables, so that a store that adopts this memory finds every worker.
 *
 * offset  size  field         meaning (little-endian)
 *      0     8  magic         "PGBOARD1", written last; "PGSUPERS" once a refused adoption
 *                             replaced this memory: workers let go of it
 *      8    16  store_uuid    of the packing whose experts these are
 *     24     4  n_experts     words that follow at offset 4096
 *     28     4  boot          how many stores have served this board, from 1; atomic
 *     32     4  n_slots       addresses of the slots region: one for every expert
 *     36     4  layout        MOE_BOARD_LAYOUT
 *     40     8  slot_bytes
 *     48     4  serving       1 while a store serves; 0 after a clean stop; atomic
 *     52     4  n_made        slots 0..n_made have pages; no other may be touched; atomic, grows
 *     56     4  n_budget      slots that there shall be: n_made grows up to it; atomic
 *     60     4  reserved      0
 *     64   512  registry      [64] { u32 worker_id (0 = free), u32 lease capacity }; atomic ids
 *   4096  8*n   words
 *
 * Word: generation 32 | slot 24 | state 8. Every load gets a new generation, and an ABSENT or
 * FAILED word keeps its last one: no word repeats (until 2^32 loads later), and a lease compares
 * whole words. Slot: meaningful in LOADING, READY and EVICTING.
 *
 *   ABSENT --load starts--> LOADING --verified--> READY --evict--> EVICTING --no lease--> ABSENT
 *                              |                   |  \ <--leased--/
 *                              |                   \--found corrupt when hashed again--> ABSENT
 *                              \--failed--> FAILED (a WANT waits; asked again: LOADING) or ABSENT
 */
#ifndef WIRE_PROTO_BOARD_H
#define WIRE_PROTO_BOARD_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MOE_BOARD_LAYOUT = 3,
    MOE_BOARD_WORDS_OFF = 4096,
    MOE_BOARD_MAX_WORKERS = 64,
    MOE_MAX_SLOTS = (1 << 24) - 1
};
#define MOE_BOARD_MAGIC "PGBOARD1"
#define MOE_BOARD_SUPERSEDED "PGSUPERS"

typedef enum moe_board_state {
    MOE_BOARD_ABSENT = 0,
    MOE_BOARD_LOADING = 1,
    MOE_BOARD_READY = 2,
    MOE_BOARD_EVICTING = 3,
    MOE_BOARD_FAILED = 4
} moe_board_state;

typedef struct moe_board_registry_entry {
    _Atomic uint32_t worker_id; /* written last */
    uint32_t lease_capacity;    /* as given out: a worker may overwrite its table's header */
} moe_board_registry_entry;

typedef struct moe_board_header {
    _Atomic uint64_t magic;
    uint8_t store_uuid[16];
    uint32_t n_experts;
    _Atomic uint32_t boot;
    uint32_t n_slots;
    uint32_t layout;
    uint64_t slot_bytes;
    _Atomic uint32_t serving;
    _Atomic uint32_t n_made;
    _Atomic uint32_t n_budget;
    uint8_t reserved[4];
    moe_board_registry_entry registry[MOE_BOARD_MAX_WORKERS];
} moe_board_header;

_Static_assert(offsetof(moe_board_header, n_experts) == 24, "table above");
_Static_assert(offsetof(moe_board_header, slot_bytes) == 40, "table above");
_Static_assert(offsetof(moe_board_header, registry) == 64, "table above");
_Static_assert(sizeof(moe_board_header) <= MOE_BOARD_WORDS_OFF, "words follow the header");

static inline uint64_t moe_board_word(uint32_t generation, uint32_t slot, moe_board_state state)
{
    return (uint64_t)generation << 32 | (uint64_t)(slot & 0xffffffu) << 8 | (uint64_t)state;
}
static inline uint32_t moe_board_word_generation(uint64_t w)
{
    return (uint32_t)(w >> 32);
}
static inline uint32_t moe_board_word_slot(uint64_t w)
{
    return (uint32_t)(w >> 8) & 0xffffffu;
}
static inline moe_board_state moe_board_word_state(uint64_t w)
{
    return (moe_board_state)(w & 0xffu);
}
static inline _Atomic uint64_t *moe_board_words(void *board)
{
    return (_Atomic uint64_t *)(void *)((char *)board + MOE_BOARD_WORDS_OFF);
}
static inline uint64_t moe_board_bytes(uint32_t n_experts)
{
    return (MOE_BOARD_WORDS_OFF + 8ull * n_experts + 4095) & ~4095ull;
}

#endif
