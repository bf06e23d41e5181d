/* The lease protocol under load: the store's own eviction code on one thread, workers on others,
 * over the same board, lease tables and slots. Slots are plain memory, so that a slot given away
 * while somebody reads it shows as wrong bytes, and under tsan as a race. From time to time the
 * store "crashes" in the middle of things and another one adopts what it left.
 * argv: seconds (default 2). */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "common/clock.h"
#include "tests/support/fake_store.h"

enum { N_EXPERTS = 12, N_SLOTS = 5, N_WORKERS = 3, LEASES = 1, SLOT_WORDS = 64 };

static double run_seconds = 2;

typedef struct bench {
    fake_store store;
    uint64_t slots[N_SLOTS][SLOT_WORDS]; /* [slot]: every word names expert and load */
    _Atomic int stop;
    uint64_t n_loads, n_adoptions;
    uint64_t evictions, evict_retries; /* summed over crashes */
} bench;

typedef struct worker {
    bench *b;
    uint32_t id;
    uint64_t n_leases, n_retries, n_wrong;
    pthread_t thread;
} worker;

static uint32_t next_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*seed >> 33);
}

/* What the store writes into a slot for the load that made this board word. */
static uint64_t mark_of(uint32_t expert, uint64_t word)
{
    return (uint64_t)expert << 32 | moe_board_word_generation(word);
}

/* ---- workers ---- */

static uint64_t count_wrong(const uint64_t *slot, uint64_t mark)
{
    uint64_t n = 0;
    for (int i = 0; i < SLOT_WORDS; i++) {
        n += slot[i] != mark;
    }
    return n;
}

static void read_one(worker *w, uint32_t expert, uint32_t n_looks)
{
    bench *b = w->b;
    uint64_t word = 0;
    _Atomic uint64_t *lease = &moe_lease_words(b->store.tables[w->id])[0];
    if (moe_lease_take(lease, &moe_board_words(b->store.board)[expert], &word, &w->n_retries) !=
        MOE_LEASE_TAKEN) {
        return;
    }
    for (uint32_t look = 0; look < n_looks; look++) {
        w->n_wrong += count_wrong(b->slots[moe_board_word_slot(word)], mark_of(expert, word));
    }
    fake_store_use(&b->store, w->id, expert, moe_now_ns());
    w->n_leases++;
    moe_lease_release(lease);
}

static void *run_worker(void *arg)
{
    worker *w = arg;
    uint64_t seed = 1000 + w->id;
    while (atomic_load_explicit(&w->b->stop, memory_order_relaxed) == 0) {
        read_one(w, next_random(&seed) % N_EXPERTS, next_random(&seed) % 8 + 1);
    }
    return NULL;
}

/* ---- the store ---- */

static bool load_one(bench *b, uint32_t expert)
{
    uint32_t slot = 0;
    if (xs_residency_state(b->store.residency, expert) != MOE_BOARD_ABSENT ||
        xs_residency_begin_load(b->store.residency, expert, XS_FETCH_DEMAND, moe_now_ns(), &slot,
                                NULL) != MOE_OK) {
        return false;
    }
    uint64_t mark = mark_of(expert, fake_store_word(&b->store, expert));
    for (int i = 0; i < SLOT_WORDS; i++) {
        b->slots[slot][i] = mark;
    }
    xs_residency_publish(b->store.residency, slot, moe_now_ns());
    b->n_loads++;
    return true;
}

static void keep_counters(bench *b)
{
    const xs_residency_counters *c = xs_residency_get_counters(b->store.residency);
    b->evictions += c->evictions;
    b->evict_retries += c->evict_retries;
}

/* Dies between two steps: an expert is left LOADING and half-written, another one EVICTING. */
static void crash(bench *b, uint32_t a, uint32_t c)
{
    uint32_t slot = 0;
    uint64_t word = fake_store_word(&b->store, c);
    keep_counters(b);
    if (xs_residency_state(b->store.residency, a) == MOE_BOARD_ABSENT &&
        xs_residency_begin_load(b->store.residency, a, XS_FETCH_DEMAND, moe_now_ns(), &slot,
                                NULL) == MOE_OK) {
        b->slots[slot][0] = UINT64_MAX;
        word = fake_store_word(&b->store, c); /* it may have lost its slot to that */
    }
    if (moe_board_word_state(word) == MOE_BOARD_READY) {
        fake_store_set_word(&b->store, c,
                            moe_board_word(moe_board_word_generation(word),
                                           moe_board_word_slot(word), MOE_BOARD_EVICTING));
    }
    fake_store_crash(&b->store);
    assert_int_equal(MOE_OK, xs_board_check(b->store.board, moe_board_bytes(N_EXPERTS),
                                            &b->store.geometry, NULL));
    xs_residency_adopt(b->store.residency, moe_now_ns());
    b->n_adoptions++;
}

static void run_store(bench *b)
{
    uint64_t seed = 7;
    int64_t end_ns = moe_now_ns() + (int64_t)(run_seconds * (double)MOE_NS_PER_S);
    for (uint32_t i = 0; moe_now_ns() < end_ns; i++) {
        (void)load_one(b, next_random(&seed) % N_EXPERTS);
        if (i % 64 == 63) {
            (void)xs_residency_sweep(b->store.residency);
        }
        if (i % 512 == 511) {
            crash(b, next_random(&seed) % N_EXPERTS, next_random(&seed) % N_EXPERTS);
        }
    }
    keep_counters(b);
    atomic_store(&b->stop, 1);
}

static void no_slot_changes_under_a_lease(void **state)
{
    (void)state;
    static bench b;
    static worker workers[N_WORKERS];
    const fake_store_cfg cfg = {.n_experts = N_EXPERTS,
                                .n_slots = N_SLOTS,
                                .n_tables = N_WORKERS,
                                .lease_capacity = LEASES};
    uint64_t n_leases = 0;
    uint64_t n_retries = 0;
    uint64_t n_wrong = 0;
    fake_store_init(&b.store, &cfg);
    for (uint32_t i = 0; i < N_WORKERS; i++) {
        workers[i] = (worker){.b = &b, .id = i};
        assert_int_equal(0, pthread_create(&workers[i].thread, NULL, run_worker, &workers[i]));
    }
    run_store(&b);
    for (uint32_t i = 0; i < N_WORKERS; i++) {
        pthread_join(workers[i].thread, NULL);
        n_leases += workers[i].n_leases;
        n_retries += workers[i].n_retries;
        n_wrong += workers[i].n_wrong;
    }
    printf("%llu loads, %llu evictions (%llu undone), %llu adoptions; %llu leases (%llu retried)\n",
           (unsigned long long)b.n_loads, (unsigned long long)b.evictions,
           (unsigned long long)b.evict_retries, (unsigned long long)b.n_adoptions,
           (unsigned long long)n_leases, (unsigned long long)n_retries);
    assert_int_equal(0, n_wrong);
    assert_true(n_leases > 100 && b.evictions > 100 && b.n_adoptions > 0);
    fake_store_fini(&b.store);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_slot_changes_under_a_lease),
    };
    if (argc > 1) {
        run_seconds = strtod(argv[1], NULL);
    }
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
