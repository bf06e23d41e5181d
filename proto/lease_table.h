/* lease_table.h - one worker's leases, use counters and statistics, in shared memory.
 *
 * Created by the store before WELCOME and listed in the board's registry; mapped read-write by its
 * one worker, which holds flock(LOCK_EX) on the object's fd while it lives: that lock, not a pid,
 * is the worker's liveness. The store maps it too and reads.
 *
 * offset  size  field
 *      0     8  magic "PGLEASE1", written last
 *      8    16  store_uuid
 *     24     4  worker_id
 *     28     4  capacity      lease words
 *     32     4  n_experts     use records
 *     36     4  n_blocks      block counter records
 *     40     4  layout        MOE_LEASE_LAYOUT
 *     44     4  pid           of the worker, written once it holds the lock; atomic
 *     48    16  reserved
 *     64   ...  worker counters (moe_worker_counters), to 4096
 *   4096        lease words   [capacity] u64, 0 = free, else the board word that is leased
 *               use records   [n_experts]  (64-byte aligned)
 *               block counters [n_blocks]  (64-byte aligned)
 *
 * Protocol (model-checked: tests/spin/lease.pml; both halves are the functions below):
 *   worker, take:                          store, evict x (expert-store/server/residency.c):
 *   1 e = board[x]; not READY: want it     1 a lease names its slot: choose another
 *   2 lease[i] = e          (seq_cst)      2 board[x]: READY -> EVICTING    (seq_cst CAS)
 *   3 board[x] == e still?  (seq_cst)      3 scan all lease tables again    (seq_cst)
 *     else lease[i] = 0, back to 1         4 found: back to READY; else ABSENT, slot is free
 * seq_cst on 2 and 3 of both sides forbids that each misses the other's store.
 * A lease names a slot (through its word), so that adoption can protect slots without the board.
 */
#ifndef WIRE_PROTO_LEASE_TABLE_H
#define WIRE_PROTO_LEASE_TABLE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/board.h"

#define MOE_LEASE_MAGIC "PGLEASE1"
enum { MOE_LEASE_LAYOUT = 1, MOE_LEASE_WORDS_OFF = 4096, MOE_BATCH_BUCKETS = 12 };

/* All relaxed: statistics. Written by the worker's fetch thread (block counters, uses) and engine
 * thread (steps, tokens); read by the store at any time. */
typedef struct moe_worker_counters {
    _Atomic uint64_t encode_steps, decode_steps;
    _Atomic uint64_t prompt_tokens, output_tokens;
    _Atomic uint64_t sequences_started, sequences_finished, sequences_failed;
    _Atomic uint64_t batch_bucket[MOE_BATCH_BUCKETS]; /* decode steps with batch <= 2^i */
    _Atomic uint64_t batch_max;
    _Atomic uint64_t copy_bytes, copies, copies_pageable; /* slot -> cell */
    _Atomic uint64_t copy_ns;                             /* sum of copy durations */
    _Atomic uint64_t copy_hidden_ns; /* the part during which compute was not waiting for it */
    _Atomic uint64_t predictions_sent, wants_sent;
    _Atomic uint64_t leases_taken, lease_retries, leases_held; /* leases_held: now */
    _Atomic uint64_t n_cells, cells_used, cell_bytes;          /* gauges */
} moe_worker_counters;

/* Per flat block. hit: there at the first try; late: predicted, not there when wanted; miss: not
 * predicted and not there; wasted: fetched, then dropped unused. */
typedef struct moe_block_counters {
    _Atomic uint64_t cell_hit, cell_late, cell_miss, cell_wasted;
    _Atomic uint64_t slot_hit, slot_late, slot_miss;
    _Atomic uint64_t fetch_predicted, fetch_demand; /* slot -> cell copies, by why */
} moe_block_counters;

typedef struct moe_use_record {
    _Atomic uint64_t count;       /* times this worker used the expert */
    _Atomic uint64_t last_use_ns; /* CLOCK_MONOTONIC */
} moe_use_record;

typedef struct moe_lease_header {
    _Atomic uint64_t magic;
    uint8_t store_uuid[16];
    uint32_t worker_id, capacity, n_experts, n_blocks, layout;
    _Atomic uint32_t pid;
    uint8_t reserved[16];
    moe_worker_counters counters;
} moe_lease_header;

_Static_assert(offsetof(moe_lease_header, worker_id) == 24, "table above");
_Static_assert(offsetof(moe_lease_header, counters) == 64, "table above");
_Static_assert(sizeof(moe_lease_header) <= MOE_LEASE_WORDS_OFF, "words follow the header");

static inline uint64_t moe_lease_uses_off(uint32_t capacity)
{
    return (MOE_LEASE_WORDS_OFF + 8ull * capacity + 63) & ~63ull;
}
static inline uint64_t moe_lease_blocks_off(uint32_t capacity, uint32_t n_experts)
{
    return (moe_lease_uses_off(capacity) + sizeof(moe_use_record) * (uint64_t)n_experts + 63) &
           ~63ull;
}
static inline uint64_t moe_lease_table_bytes(uint32_t capacity, uint32_t n_experts,
                                             uint32_t n_blocks)
{
    return (moe_lease_blocks_off(capacity, n_experts) +
            sizeof(moe_block_counters) * (uint64_t)n_blocks + 4095) &
           ~4095ull;
}
static inline _Atomic uint64_t *moe_lease_words(void *table)
{
    return (_Atomic uint64_t *)(void *)((char *)table + MOE_LEASE_WORDS_OFF);
}
static inline moe_use_record *moe_lease_uses(void *table)
{
    const moe_lease_header *h = table;
    return (moe_use_record *)(void *)((char *)table + moe_lease_uses_off(h->capacity));
}
static inline moe_block_counters *moe_lease_blocks(void *table)
{
    const moe_lease_header *h = table;
    return (moe_block_counters *)(void *)((char *)table +
                                          moe_lease_blocks_off(h->capacity, h->n_experts));
}

typedef enum moe_lease_take_result {
    MOE_LEASE_TAKEN,     /* the slot may be read until moe_lease_release */
    MOE_LEASE_NOT_READY, /* WANT it, or wait: the board is the truth */
    MOE_LEASE_LOADING_FAILED
} moe_lease_take_result;

/* Steps 1-3 of the worker for expert x with free lease word i. On TAKEN, *out_word is the leased
 * board word. Never blocks: EVICTING and a lost race are looked at again a bounded number of
 * times, then NOT_READY. *retries counts lost races. */
static inline moe_lease_take_result moe_lease_take(_Atomic uint64_t *lease,
                                                   const _Atomic uint64_t *board_word,
                                                   uint64_t *out_word, uint64_t *retries)
{
    for (int attempt = 0; attempt < 64; attempt++) {
        /* acquire: pairs with the store's release that published READY after the last byte. */
        uint64_t e = atomic_load_explicit(board_word, memory_order_acquire);
        moe_board_state state = moe_board_word_state(e);
        if (state == MOE_BOARD_EVICTING) {
            continue; /* the store decides within a scan */
        }
        if (state == MOE_BOARD_FAILED) {
            return MOE_LEASE_LOADING_FAILED;
        }
        if (state != MOE_BOARD_READY) {
            return MOE_LEASE_NOT_READY;
        }
        atomic_store_explicit(lease, e, memory_order_seq_cst);
        if (atomic_load_explicit(board_word, memory_order_seq_cst) == e) {
            *out_word = e;
            return MOE_LEASE_TAKEN;
        }
        atomic_store_explicit(lease, 0, memory_order_release);
        *retries += 1;
    }
    return MOE_LEASE_NOT_READY;
}

/* release: every read of the slot happens before the store may see the word free. */
static inline void moe_lease_release(_Atomic uint64_t *lease)
{
    atomic_store_explicit(lease, 0, memory_order_release);
}

/* Store side of steps 1 and 3: does any word of this table name the slot? */
static inline bool moe_lease_names_slot(void *table, uint32_t slot)
{
    const moe_lease_header *h = table;
    _Atomic uint64_t *words = moe_lease_words(table);
    for (uint32_t i = 0; i < h->capacity; i++) {
        uint64_t w = atomic_load_explicit(&words[i], memory_order_seq_cst);
        if (w != 0 && moe_board_word_slot(w) == slot) {
            return true;
        }
    }
    return false;
}

#endif
