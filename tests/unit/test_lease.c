/* The shared-memory layouts, and the lease protocol: each board state alone, then real threads
 * that evict, reload, lease and read one slot region (meant to run under tsan, too). The protocol's
 * interleavings are searched in tests/spin/lease.pml; this runs the functions workers and store
 * compile in. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/board.h"
#include "proto/dense_table.h"
#include "proto/lease_table.h"

/* ---- layouts --------------------------------------------------------------------------------- */

static void the_board_lies_where_its_table_says(void **state)
{
    (void)state;
    assert_int_equal(0, offsetof(moe_board_header, magic));
    assert_int_equal(8, offsetof(moe_board_header, store_uuid));
    assert_int_equal(24, offsetof(moe_board_header, n_experts));
    assert_int_equal(28, offsetof(moe_board_header, boot));
    assert_int_equal(32, offsetof(moe_board_header, n_slots));
    assert_int_equal(36, offsetof(moe_board_header, layout));
    assert_int_equal(40, offsetof(moe_board_header, slot_bytes));
    assert_int_equal(48, offsetof(moe_board_header, serving));
    assert_int_equal(52, offsetof(moe_board_header, n_made));
    assert_int_equal(56, offsetof(moe_board_header, n_budget));
    assert_int_equal(60, offsetof(moe_board_header, reserved));
    assert_int_equal(64, offsetof(moe_board_header, registry));
    assert_int_equal(512, sizeof(((moe_board_header *)0)->registry));
    assert_int_equal(8192, moe_board_bytes(1));
    assert_int_equal(8192, moe_board_bytes(512));
    assert_int_equal(12288, moe_board_bytes(513));
    assert_int_equal(4096 + (1ull << 35), moe_board_bytes(UINT32_MAX)); /* no 32-bit wrap */
}

static void the_lease_table_lies_where_its_table_says(void **state)
{
    (void)state;
    assert_int_equal(0, offsetof(moe_lease_header, magic));
    assert_int_equal(8, offsetof(moe_lease_header, store_uuid));
    assert_int_equal(24, offsetof(moe_lease_header, worker_id));
    assert_int_equal(28, offsetof(moe_lease_header, capacity));
    assert_int_equal(32, offsetof(moe_lease_header, n_experts));
    assert_int_equal(36, offsetof(moe_lease_header, n_blocks));
    assert_int_equal(40, offsetof(moe_lease_header, layout));
    assert_int_equal(44, offsetof(moe_lease_header, pid));
    assert_int_equal(48, offsetof(moe_lease_header, reserved));
    assert_int_equal(64, offsetof(moe_lease_header, counters));
    assert_int_equal(4096 + 64, moe_lease_uses_off(1));
    assert_int_equal(4096 + 64, moe_lease_uses_off(8));
    assert_int_equal(4096 + 128, moe_lease_uses_off(9));
    assert_int_equal(16, sizeof(moe_use_record));
    assert_int_equal(72, sizeof(moe_block_counters));
    assert_int_equal(4096 + 64 + 64, moe_lease_blocks_off(8, 4));
    assert_int_equal(4096 + 64 + 128, moe_lease_blocks_off(8, 5));
    assert_int_equal(8192, moe_lease_table_bytes(8, 4, 53)); /* 4224 + 53 * 72 = 8040 */
    assert_int_equal(12288, moe_lease_table_bytes(8, 4, 56));
}

static void the_dense_table_lies_where_its_table_says(void **state)
{
    (void)state;
    assert_int_equal(24, offsetof(moe_dense_header, n_entries));
    assert_int_equal(32, sizeof(moe_dense_header));
    assert_int_equal(160, offsetof(moe_dense_entry, kind));
    assert_int_equal(164, offsetof(moe_dense_entry, dtype));
    assert_int_equal(168, offsetof(moe_dense_entry, n_dims));
    assert_int_equal(172, offsetof(moe_dense_entry, dims));
    assert_int_equal(192, offsetof(moe_dense_entry, off));
    assert_int_equal(200, offsetof(moe_dense_entry, bytes));
    assert_int_equal(208, sizeof(moe_dense_entry));
}

static void a_board_word_gives_back_its_parts(void **state)
{
    (void)state;
    assert_true(moe_board_word(0x11223344, 0x556677, MOE_BOARD_READY) == 0x1122334455667702ull);
    static const uint32_t generations[] = {0, 1, UINT32_MAX}, slots[] = {0, 1, MOE_MAX_SLOTS};
    for (int g = 0; g < 3; g++) {
        for (int s = 0; s < 3; s++) {
            for (uint32_t st = MOE_BOARD_ABSENT; st <= MOE_BOARD_FAILED; st++) {
                uint64_t w = moe_board_word(generations[g], slots[s], (moe_board_state)st);
                assert_int_equal(generations[g], moe_board_word_generation(w));
                assert_int_equal(slots[s], moe_board_word_slot(w));
                assert_int_equal(st, moe_board_word_state(w));
            }
        }
    }
}

/* ---- take and release, one state at a time --------------------------------------------------- */

static moe_lease_take_result take_from(uint64_t board, uint64_t *lease_left, uint64_t *word)
{
    _Atomic uint64_t board_word, lease;
    uint64_t retries = 0;
    atomic_init(&board_word, board);
    atomic_init(&lease, 0);
    moe_lease_take_result got = moe_lease_take(&lease, &board_word, word, &retries);
    assert_int_equal(0, retries); /* nobody else writes */
    *lease_left = atomic_load(&lease);
    if (got == MOE_LEASE_TAKEN) {
        moe_lease_release(&lease);
        assert_int_equal(0, atomic_load(&lease));
    }
    return got;
}

static void only_a_ready_expert_is_leased(void **state)
{
    (void)state;
    uint64_t lease = 1, word = 7;
    uint64_t ready = moe_board_word(3, 9, MOE_BOARD_READY);
    assert_int_equal(MOE_LEASE_TAKEN, take_from(ready, &lease, &word));
    assert_true(lease == ready && word == ready);
    static const struct {
        moe_board_state board;
        moe_lease_take_result take;
    } others[] = {{MOE_BOARD_ABSENT, MOE_LEASE_NOT_READY},
                  {MOE_BOARD_LOADING, MOE_LEASE_NOT_READY},
                  {MOE_BOARD_EVICTING, MOE_LEASE_NOT_READY}, /* and it returns */
                  {MOE_BOARD_FAILED, MOE_LEASE_LOADING_FAILED}};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        word = 7;
        assert_int_equal(others[i].take,
                         take_from(moe_board_word(3, 9, others[i].board), &lease, &word));
        assert_int_equal(0, lease);
        assert_int_equal(7, word); /* left alone */
    }
    assert_int_equal(MOE_LEASE_NOT_READY, take_from(0, &lease, &word)); /* a fresh board */
}

static void a_table_names_the_slots_of_its_leases(void **state)
{
    (void)state;
    moe_lease_header *table = aligned_alloc(64, moe_lease_table_bytes(4, 1, 1));
    assert_non_null(table);
    memset(table, 0, moe_lease_table_bytes(4, 1, 1));
    table->capacity = 4;
    table->n_experts = 1;
    assert_false(moe_lease_names_slot(table, 0)); /* free words are not slot 0 */
    _Atomic uint64_t *words = moe_lease_words(table);
    atomic_store(&words[3], moe_board_word(0, 0, MOE_BOARD_READY));
    assert_true(moe_lease_names_slot(table, 0));
    atomic_store(&words[0], moe_board_word(5, MOE_MAX_SLOTS, MOE_BOARD_READY));
    assert_true(moe_lease_names_slot(table, MOE_MAX_SLOTS));
    assert_false(moe_lease_names_slot(table, 5));
    moe_lease_release(&words[3]);
    assert_false(moe_lease_names_slot(table, 0));
    assert_ptr_equal((char *)table + moe_lease_uses_off(4), moe_lease_uses(table));
    assert_ptr_equal((char *)table + moe_lease_blocks_off(4, 1), moe_lease_blocks(table));
    free(table);
}

/* ---- two workers and a store, two experts and one slot more than is comfortable -------------- */

enum { N_EXPERTS = 3, N_SLOTS = 2, N_WORKERS = 2, SLOT_WORDS = 64, LOADS = 200000 };

typedef struct scene {
    _Atomic uint64_t board[N_EXPERTS];
    uint32_t slot[N_SLOTS][SLOT_WORDS]; /* plain memory, as DMA sees it: all words = generation */
    moe_lease_header *table[N_WORKERS];
    _Atomic bool stop;
} scene;

typedef struct reader {
    scene *s;
    uint32_t worker;
    uint64_t taken, retries, wrong_words;
} reader;

static void *run_reader(void *arg)
{
    reader *r = arg;
    _Atomic uint64_t *lease = &moe_lease_words(r->s->table[r->worker])[r->worker];
    for (uint32_t x = 0; !atomic_load_explicit(&r->s->stop, memory_order_relaxed); x++) {
        uint64_t word = 0;
        if (moe_lease_take(lease, &r->s->board[x % N_EXPERTS], &word, &r->retries) !=
            MOE_LEASE_TAKEN) {
            continue;
        }
        const uint32_t *slot = r->s->slot[moe_board_word_slot(word)];
        for (uint32_t i = 0; i < SLOT_WORDS; i++) {
            r->wrong_words += slot[i] != moe_board_word_generation(word);
        }
        r->taken++;
        moe_lease_release(lease);
    }
    return NULL;
}

static bool leased(scene *s, uint32_t slot)
{
    for (uint32_t w = 0; w < N_WORKERS; w++) {
        if (moe_lease_names_slot(s->table[w], slot)) {
            return true;
        }
    }
    return false;
}

/* The store's column of lease_table.h. */
static bool evict(scene *s, uint32_t x)
{
    uint64_t ready = atomic_load(&s->board[x]);
    uint32_t slot = moe_board_word_slot(ready);
    if (moe_board_word_state(ready) != MOE_BOARD_READY || leased(s, slot)) {
        return false;
    }
    uint64_t evicting = moe_board_word(moe_board_word_generation(ready), slot, MOE_BOARD_EVICTING);
    atomic_compare_exchange_strong(&s->board[x], &ready, evicting);
    if (leased(s, slot)) {
        atomic_store(&s->board[x], ready);
        return false;
    }
    atomic_store(&s->board[x], 0);
    return true;
}

static void load(scene *s, uint32_t x, uint32_t slot, uint32_t generation)
{
    atomic_store(&s->board[x], moe_board_word(generation, slot, MOE_BOARD_LOADING));
    for (uint32_t i = 0; i < SLOT_WORDS; i++) {
        s->slot[slot][i] = generation;
    }
    atomic_store_explicit(&s->board[x], moe_board_word(generation, slot, MOE_BOARD_READY),
                          memory_order_release);
}

static void a_leased_slot_is_never_rewritten(void **state)
{
    (void)state;
    static scene s;
    for (uint32_t w = 0; w < N_WORKERS; w++) {
        s.table[w] = aligned_alloc(64, moe_lease_table_bytes(N_WORKERS, 1, 1));
        assert_non_null(s.table[w]);
        memset(s.table[w], 0, moe_lease_table_bytes(N_WORKERS, 1, 1));
        s.table[w]->capacity = N_WORKERS;
    }
    load(&s, 0, 0, 1);
    load(&s, 1, 1, 1);
    reader readers[N_WORKERS];
    pthread_t threads[N_WORKERS];
    for (uint32_t w = 0; w < N_WORKERS; w++) {
        readers[w] = (reader){.s = &s, .worker = w};
        assert_int_equal(0, pthread_create(&threads[w], NULL, run_reader, &readers[w]));
    }
    uint32_t absent = 2; /* the one expert without a slot: it takes the next victim's */
    for (uint32_t generation = 2; generation < LOADS;) {
        uint32_t victim = (absent + 1 + generation % 2) % N_EXPERTS;
        uint32_t slot = moe_board_word_slot(atomic_load(&s.board[victim]));
        if (evict(&s, victim)) {
            load(&s, absent, slot, generation++);
            absent = victim;
        }
    }
    atomic_store(&s.stop, true);
    for (uint32_t w = 0; w < N_WORKERS; w++) {
        pthread_join(threads[w], NULL);
    }
    for (uint32_t w = 0; w < N_WORKERS; w++) { /* after all joined: an assert jumps */
        assert_int_equal(0, readers[w].wrong_words);
        print_message("worker %u: %llu leases, %llu lost races\n", w,
                      (unsigned long long)readers[w].taken, (unsigned long long)readers[w].retries);
        free(s.table[w]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_board_lies_where_its_table_says),
        cmocka_unit_test(the_lease_table_lies_where_its_table_says),
        cmocka_unit_test(the_dense_table_lies_where_its_table_says),
        cmocka_unit_test(a_board_word_gives_back_its_parts),
        cmocka_unit_test(only_a_ready_expert_is_leased),
        cmocka_unit_test(a_table_names_the_slots_of_its_leases),
        cmocka_unit_test(a_leased_slot_is_never_rewritten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
