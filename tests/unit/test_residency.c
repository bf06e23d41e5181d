/* residency: loading, evicting by the four steps, holds, pins, predictions, adopting. The test
 * plays the workers on fake lease tables. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/fake_store.h"

static const fake_store_cfg small = {
    .n_experts = 8, .n_slots = 3, .n_tables = 2, .lease_capacity = 2, .max_pinned = 1};

static int setup(void **state)
{
    static fake_store f;
    fake_store_init(&f, &small);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fake_store_fini(*state);
    return 0;
}

static moe_status begin(fake_store *f, uint32_t expert, xs_fetch_class why, int64_t now_ns,
                        uint32_t *out_slot)
{
    return xs_residency_begin_load(f->residency, expert, why, now_ns, out_slot, NULL);
}

static moe_board_state state_of(const fake_store *f, uint32_t expert)
{
    return xs_residency_state(f->residency, expert);
}

/* ---- loading ---- */

static void a_load_shows_on_the_board_step_by_step(void **state)
{
    fake_store *f = *state;
    uint32_t slot = 9;
    assert_int_equal(MOE_BOARD_ABSENT, moe_board_word_state(fake_store_word(f, 5)));
    assert_int_equal(MOE_OK, begin(f, 5, XS_FETCH_DEMAND, 10, &slot));
    uint64_t loading = fake_store_word(f, 5);
    assert_int_equal(MOE_BOARD_LOADING, moe_board_word_state(loading));
    assert_int_equal(slot, moe_board_word_slot(loading));
    xs_residency_publish(f->residency, slot, 20);
    uint64_t ready = fake_store_word(f, 5);
    assert_int_equal(MOE_BOARD_READY, moe_board_word_state(ready));
    assert_int_equal(moe_board_word_generation(loading), moe_board_word_generation(ready));
}

static void a_failed_load_says_so_only_when_somebody_waits(void **state)
{
    fake_store *f = *state;
    uint32_t slot = 0;
    assert_int_equal(MOE_OK, begin(f, 1, XS_FETCH_DEMAND, 1, &slot));
    xs_residency_fail(f->residency, slot, true);
    assert_int_equal(MOE_BOARD_FAILED, state_of(f, 1));
    assert_int_equal(MOE_OK, begin(f, 2, XS_FETCH_NEAR, 1, &slot));
    xs_residency_fail(f->residency, slot, false);
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 2));
    assert_int_equal(3, xs_residency_count(f->residency, XS_SLOT_FREE));
    assert_int_equal(MOE_OK, begin(f, 1, XS_FETCH_DEMAND, 1, &slot)); /* and it is tried again */
}

static void no_word_ever_repeats(void **state)
{
    fake_store *f = *state;
    uint64_t seen[40];
    for (int i = 0; i < 40; i++) { /* the same two experts through the same slots */
        seen[i] = 0;
        uint32_t x = (uint32_t)i % 2;
        uint32_t slot = fake_store_load(f, x, i);
        seen[i] = fake_store_word(f, x);
        assert_int_equal(slot, moe_board_word_slot(seen[i]));
        assert_int_equal(MOE_OK, xs_residency_evict(f->residency, x, NULL));
        for (int j = 0; j < i; j++) {
            assert_true(seen[i] != seen[j]);
        }
    }
}

/* ---- evicting ---- */

static void the_least_recently_used_expert_leaves(void **state)
{
    fake_store *f = *state;
    fake_store_load(f, 0, 10);
    fake_store_load(f, 1, 11);
    fake_store_load(f, 2, 12);
    fake_store_use(f, 0, 0, 100); /* 1 is now the oldest */
    fake_store_use(f, 1, 2, 90);
    fake_store_load(f, 3, 200);
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 1));
    assert_int_equal(MOE_BOARD_READY, state_of(f, 0));
    fake_store_load(f, 4, 201);
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 2));
    assert_int_equal(2, xs_residency_get_counters(f->residency)->evictions);
}

static void a_leased_slot_is_never_given_away(void **state)
{
    fake_store *f = *state;
    fake_store_load(f, 0, 1);
    fake_store_load(f, 1, 2);
    fake_store_load(f, 2, 3);
    fake_store_lease(f, 0, 0, 0);
    fake_store_lease(f, 1, 1, 1);
    fake_store_load(f, 3, 4); /* takes 2's place, although 0 and 1 are older */
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 2));
    fake_store_lease(f, 0, 1, 3);
    uint32_t slot = 77;
    assert_int_equal(MOE_ERR_NO_SLOT, begin(f, 4, XS_FETCH_DEMAND, 5, &slot));
    assert_int_equal(77, slot);
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 4));
    assert_int_equal(3, xs_residency_leased(f->residency));
    assert_int_equal(0,
                     xs_residency_get_counters(f->residency)->evict_retries); /* not even tried */
    fake_store_release(f, 1, 1);
    fake_store_load(f, 4, 6);
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 1));
}

/* A lease word that names the slot is honoured whoever's word it is: an older generation too. */
static void a_lease_protects_the_slot_not_the_expert(void **state)
{
    fake_store *f = *state;
    uint32_t slot = fake_store_load(f, 0, 1);
    uint64_t stale = moe_board_word(12345, slot, MOE_BOARD_READY);
    atomic_store(&moe_lease_words(f->tables[0])[0], stale);
    assert_int_equal(MOE_ERR_BUSY, xs_residency_evict(f->residency, 0, NULL));
    atomic_store(&moe_lease_words(f->tables[0])[0], 0);
    assert_int_equal(MOE_OK, xs_residency_evict(f->residency, 0, NULL));
}

static void a_table_full_of_rubbish_only_keeps_slots(void **state)
{
    fake_store *f = *state;
    fake_store_load(f, 0, 1);
    atomic_store(&moe_lease_words(f->tables[0])[0], UINT64_MAX);
    moe_lease_header *h = f->tables[0];
    h->capacity = UINT32_MAX; /* the store goes by what it gave out */
    h->n_experts = 0;
    fake_store_load(f, 1, 2);
    fake_store_load(f, 2, 3);
    fake_store_load(f, 3, 4);
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 0));
}

static void held_and_pinned_experts_stay(void **state)
{
    fake_store *f = *state;
    uint32_t slot = fake_store_load(f, 0, 1);
    fake_store_load(f, 1, 2);
    fake_store_load(f, 2, 3);
    xs_residency_hold(f->residency, slot);
    assert_int_equal(MOE_OK, xs_residency_pin(f->residency, 1, true, NULL));
    assert_int_equal(MOE_ERR_BUSY, xs_residency_evict(f->residency, 0, NULL));
    assert_int_equal(MOE_ERR_BUSY, xs_residency_evict(f->residency, 1, NULL));
    fake_store_load(f, 3, 4);
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 2));
    xs_residency_release_hold(f->residency, slot);
    fake_store_load(f, 4, 5);
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 0));
    assert_int_equal(MOE_BOARD_READY, state_of(f, 1));
    assert_int_equal(MOE_OK, xs_residency_pin(f->residency, 1, false, NULL));
    fake_store_load(f, 5, 6);
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 1));
}

static void pins_are_bounded_so_that_workers_can_be_served(void **state)
{
    fake_store *f = *state;
    moe_err err = {0};
    assert_int_equal(MOE_OK, xs_residency_pin(f->residency, 1, true, NULL));
    assert_int_equal(MOE_OK, xs_residency_pin(f->residency, 1, true, NULL)); /* the same one */
    assert_int_equal(MOE_ERR_LIMIT, xs_residency_pin(f->residency, 2, true, &err));
    assert_int_equal(1, xs_residency_n_pinned(f->residency));
    assert_int_equal(MOE_OK, xs_residency_pin(f->residency, 1, false, NULL));
    assert_int_equal(0, xs_residency_n_pinned(f->residency));
}

static void evicting_what_is_not_there_is_not_found(void **state)
{
    fake_store *f = *state;
    uint32_t slot = 0;
    assert_int_equal(MOE_ERR_NOT_FOUND, xs_residency_evict(f->residency, 7, NULL));
    assert_int_equal(MOE_OK, begin(f, 7, XS_FETCH_DEMAND, 1, &slot));
    assert_int_equal(MOE_ERR_NOT_FOUND, xs_residency_evict(f->residency, 7, NULL)); /* loading */
}

static void a_prediction_keeps_its_expert_from_other_guesses_but_not_from_a_demand(void **state)
{
    fake_store *f = *state;
    uint32_t slot = 0;
    for (uint32_t x = 0; x < 3; x++) {
        fake_store_load(f, x, 10);
        xs_residency_predict(f->residency, x, 10);
    }
    assert_int_equal(MOE_ERR_NO_SLOT, begin(f, 3, XS_FETCH_NEAR, 11, &slot));
    assert_int_equal(MOE_OK, begin(f, 3, XS_FETCH_DEMAND, 11, &slot));
    xs_residency_publish(f->residency, slot, 11);
    assert_true(xs_residency_is_predicted(f->residency, 2, 11));
    assert_int_equal(MOE_OK, begin(f, 4, XS_FETCH_NEAR, 12, &slot)); /* 3 is no prediction */
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 3));
    xs_residency_publish(f->residency, slot, 12);
    xs_residency_predict(f->residency, 4, 12);
    assert_int_equal(MOE_ERR_NO_SLOT, begin(f, 5, XS_FETCH_FAR, 13, &slot));
    fake_store_use(f, 0, 2, 14); /* came true: from now on an expert like others */
    assert_int_equal(MOE_OK, begin(f, 5, XS_FETCH_FAR, 15, &slot));
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 2));
    assert_false(xs_residency_is_predicted(f->residency, 4, 12 + 1000)); /* expired */
}

static void only_unused_guesses_count_as_wasted(void **state)
{
    fake_store *f = *state;
    uint32_t slot = 0;
    fake_store_load(f, 0, 1); /* a demand, never used */
    assert_int_equal(MOE_OK, begin(f, 1, XS_FETCH_NEAR, 2, &slot));
    xs_residency_publish(f->residency, slot, 2);
    fake_store_use(f, 1, 1, 3); /* a guess that was used */
    assert_int_equal(MOE_OK, begin(f, 2, XS_FETCH_WARM, 4, &slot));
    xs_residency_publish(f->residency, slot, 4); /* a guess that was not */
    for (uint32_t x = 0; x < 3; x++) {
        assert_int_equal(MOE_OK, xs_residency_evict(f->residency, x, NULL));
    }
    assert_int_equal(1, xs_residency_get_counters(f->residency)->wasted);
    assert_int_equal(MOE_OK, begin(f, 3, XS_FETCH_NEAR, 5, &slot));
    xs_residency_slot(f->residency, slot)->wanted = true; /* a WANT came while it was read */
    xs_residency_publish(f->residency, slot, 6);
    assert_int_equal(MOE_OK, xs_residency_evict(f->residency, 3, NULL));
    assert_int_equal(1, xs_residency_get_counters(f->residency)->wasted);
}

/* The first use is what it was loaded for; the second one shows that it is wanted again. */
static void use_twice(fake_store *f, uint32_t expert, int64_t now_ns)
{
    fake_store_use(f, 0, expert, now_ns);
    fake_store_use(f, 0, expert, now_ns);
}

static void lfu_and_sieve_choose_by_use(void **state)
{
    (void)state;
    const xs_evict_policy policies[] = {XS_EVICT_LFU, XS_EVICT_SIEVE};
    for (int i = 0; i < 2; i++) {
        fake_store f;
        fake_store_cfg cfg = small;
        cfg.policy = policies[i];
        fake_store_init(&f, &cfg);
        fake_store_load(&f, 0, 1);
        fake_store_load(&f, 1, 2);
        fake_store_load(&f, 2, 3);
        use_twice(&f, 0, 10); /* oldest load, but used again */
        fake_store_use(&f, 0, 1, 11);
        use_twice(&f, 2, 12);
        fake_store_load(&f, 3, 20);
        assert_int_equal(MOE_BOARD_ABSENT, state_of(&f, 1));
        fake_store_fini(&f);
    }
}

/* SIEVE spares a visited slot once: its hand clears the bit in passing. */
static void sieve_remembers_what_its_hand_has_passed(void **state)
{
    (void)state;
    fake_store f;
    fake_store_cfg cfg = small;
    cfg.policy = XS_EVICT_SIEVE;
    fake_store_init(&f, &cfg);
    fake_store_load(&f, 0, 1);
    fake_store_load(&f, 1, 2);
    fake_store_load(&f, 2, 3);
    use_twice(&f, 0, 10);
    fake_store_load(&f, 3, 20); /* passes 0, takes 1 */
    assert_int_equal(MOE_BOARD_READY, state_of(&f, 0));
    use_twice(&f, 2, 21);
    use_twice(&f, 3, 21);
    fake_store_load(&f, 4, 30); /* 2 and 3 were used since, 0 was not */
    assert_int_equal(MOE_BOARD_ABSENT, state_of(&f, 0));
    fake_store_fini(&f);
}

static void init_with(fake_store *f, xs_evict_policy policy)
{
    fake_store_cfg cfg = small;
    cfg.policy = policy;
    fake_store_init(f, &cfg);
}

static void lfu_knows_an_expert_that_comes_back(void **state)
{
    (void)state;
    fake_store f;
    init_with(&f, XS_EVICT_LFU);
    fake_store_load(&f, 0, 1);
    use_twice(&f, 0, 2);
    fake_store_load(&f, 1, 3);
    fake_store_load(&f, 2, 4);
    use_twice(&f, 1, 5);
    use_twice(&f, 1, 6);
    use_twice(&f, 2, 7);
    use_twice(&f, 2, 8);
    fake_store_load(&f, 3, 9); /* in place of 0, the least used */
    assert_int_equal(MOE_BOARD_ABSENT, state_of(&f, 0));
    fake_store_use(&f, 0, 3, 10);
    fake_store_load(&f, 0, 11); /* in place of 3; not used since it came back, but known */
    assert_int_equal(MOE_BOARD_ABSENT, state_of(&f, 3));
    fake_store_load(&f, 4, 12); /* 0 has two uses, still the fewest */
    assert_int_equal(MOE_BOARD_ABSENT, state_of(&f, 0));
    fake_store_use(&f, 0, 4, 13);
    fake_store_load(&f, 0, 14);
    use_twice(&f, 0, 15);
    fake_store_use(&f, 0, 0, 16); /* over both stays more than 1 and 2 */
    fake_store_load(&f, 3, 17);
    assert_int_equal(MOE_BOARD_READY, state_of(&f, 0));
    assert_int_equal(MOE_BOARD_ABSENT, state_of(&f, 1)); /* of 1 and 2 the longer unused */
    fake_store_fini(&f);
}

static void lfu_knows_after_an_adoption_what_was_used_before(void **state)
{
    (void)state;
    fake_store f;
    init_with(&f, XS_EVICT_LFU);
    for (uint32_t x = 0; x < 3; x++) {
        fake_store_load(&f, x, 1 + x);
    }
    for (int i = 0; i < 100; i++) { /* more than the period of three slots */
        fake_store_use(&f, 0, 0, 10);
        fake_store_use(&f, 0, 2, 11);
        if (i < 80) {
            fake_store_use(&f, 0, 1, 12); /* the last used, but the least */
        }
    }
    fake_store_crash(&f);
    xs_residency_adopt(f.residency, 20);
    fake_store_load(&f, 3, 21);
    assert_int_equal(MOE_BOARD_ABSENT, state_of(&f, 1));
    fake_store_fini(&f);
}

/* A demand's own choice, that is; guesses spare predicted experts under every policy. */
static void only_predicted_lets_a_demand_spare_what_is_predicted(void **state)
{
    (void)state;
    const xs_evict_policy policies[] = {XS_EVICT_LRU, XS_EVICT_PREDICTED};
    const uint32_t leaves[] = {0, 1};
    for (int i = 0; i < 2; i++) {
        fake_store f;
        init_with(&f, policies[i]);
        fake_store_load(&f, 0, 1);
        fake_store_load(&f, 1, 2);
        fake_store_load(&f, 2, 3);
        xs_residency_predict(f.residency, 0, 5);
        fake_store_load(&f, 3, 6);
        assert_int_equal(MOE_BOARD_ABSENT, state_of(&f, leaves[i]));
        fake_store_fini(&f);
    }
}

/* ---- condemned slots ---- */

static void a_condemned_expert_leaves_at_once_and_its_slot_when_nobody_reads_it(void **state)
{
    fake_store *f = *state;
    uint32_t slot = fake_store_load(f, 0, 1);
    fake_store_lease(f, 0, 0, 0);
    xs_residency_condemn(f->residency, slot);
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 0));
    assert_int_equal(0, xs_residency_sweep(f->residency));
    fake_store_load(f, 1, 2);
    fake_store_load(f, 2, 2);
    uint32_t other = fake_store_load(f, 3, 3); /* evicts one of those, not the condemned slot */
    assert_int_not_equal(slot, other);
    uint64_t word = 0;
    uint64_t retries = 0;
    assert_int_equal(MOE_LEASE_NOT_READY,
                     moe_lease_take(&moe_lease_words(f->tables[1])[0],
                                    &moe_board_words(f->board)[0], &word, &retries));
    fake_store_release(f, 0, 0);
    assert_int_equal(1, xs_residency_sweep(f->residency));
    assert_int_equal(slot, fake_store_load(f, 4, 4));
    xs_residency_hold(f->residency, slot); /* its keeper does not know yet */
    xs_residency_condemn(f->residency, slot);
    assert_int_equal(0, xs_residency_sweep(f->residency));
    xs_residency_release_hold(f->residency, slot);
    assert_int_equal(1, xs_residency_sweep(f->residency));
}

/* ---- adopting ---- */

static moe_status check(const fake_store *f)
{
    return xs_board_check(f->board, moe_board_bytes(f->cfg.n_experts), &f->geometry, NULL);
}

static void a_board_is_adopted_state_by_state(void **state)
{
    fake_store *f = *state;
    fake_store_load(f, 0, 1);
    fake_store_set_word(f, 1, moe_board_word(20, 1, MOE_BOARD_EVICTING));
    fake_store_set_word(f, 2, moe_board_word(21, 2, MOE_BOARD_LOADING));
    fake_store_set_word(f, 3, moe_board_word(22, 2, MOE_BOARD_FAILED)); /* holds no slot */
    fake_store_set_word(f, 4, moe_board_word(30, 0, MOE_BOARD_ABSENT));
    assert_int_equal(MOE_OK, check(f));
    fake_store_crash(f);
    xs_residency_adopt(f->residency, 100);
    assert_int_equal(MOE_BOARD_READY, state_of(f, 0));
    assert_int_equal(moe_board_word(20, 1, MOE_BOARD_READY), fake_store_word(f, 1));
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 2));
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 3));
    assert_int_equal(2, xs_residency_count(f->residency, XS_SLOT_READY));
    assert_int_equal(1, xs_residency_count(f->residency, XS_SLOT_FREE));
    assert_true(xs_residency_slot(f->residency, 0)->unverified);
    const xs_residency_counters *c = xs_residency_get_counters(f->residency);
    assert_int_equal(2, c->adopted);
    assert_int_equal(1, c->adopted_loading);
    fake_store_load(f, 5, 101); /* generations go on after the highest, an absent expert's too */
    assert_int_equal(31, moe_board_word_generation(fake_store_word(f, 5)));
}

static void a_free_slot_that_a_lease_names_is_kept_out_of_use(void **state)
{
    fake_store *f = *state;
    for (uint32_t x = 0; x < 3; x++) {
        fake_store_load(f, x, 1);
    }
    fake_store_lease(f, 1, 0, 1);
    uint32_t slot = moe_board_word_slot(fake_store_word(f, 1));
    fake_store_set_word(f, 1, moe_board_word(9, 0, MOE_BOARD_ABSENT));
    fake_store_crash(f);
    xs_residency_adopt(f->residency, 2);
    assert_int_equal(1, xs_residency_count(f->residency, XS_SLOT_CONDEMNED));
    assert_int_not_equal(slot, fake_store_load(f, 5, 3));
    assert_int_equal(0, xs_residency_sweep(f->residency));
    fake_store_release(f, 1, 0);
    assert_int_equal(1, xs_residency_sweep(f->residency));
    assert_int_equal(slot, fake_store_load(f, 6, 4));
}

static void an_adopted_slot_that_is_leased_stays_leased(void **state)
{
    fake_store *f = *state;
    for (uint32_t x = 0; x < 3; x++) {
        fake_store_load(f, x, 1);
        fake_store_lease(f, x % 2, x / 2, x);
    }
    fake_store_crash(f);
    xs_residency_adopt(f->residency, 2);
    uint32_t slot = 0;
    assert_int_equal(MOE_ERR_NO_SLOT, begin(f, 5, XS_FETCH_DEMAND, 3, &slot));
    fake_store_release(f, 1, 0);
    fake_store_load(f, 5, 4);
    assert_int_equal(MOE_BOARD_ABSENT, state_of(f, 1));
}

static void a_board_with_a_wrong_header_is_refused(void **state)
{
    fake_store *f = *state;
    moe_board_header *h = f->board;
    assert_int_equal(MOE_OK, check(f));
    assert_int_equal(MOE_ERR_FORMAT, xs_board_check(f->board, 4096, &f->geometry, NULL));
    f->geometry.store_uuid[3] ^= 1;
    assert_int_equal(MOE_ERR_FORMAT, check(f));
    f->geometry.store_uuid[3] ^= 1;
    f->geometry.n_slots++;
    assert_int_equal(MOE_ERR_FORMAT, check(f));
    f->geometry.n_slots--;
    f->geometry.slot_bytes *= 2;
    assert_int_equal(MOE_ERR_FORMAT, check(f));
    f->geometry.slot_bytes /= 2;
    h->n_experts--;
    assert_int_equal(MOE_ERR_FORMAT, check(f));
    h->n_experts++;
    h->layout++;
    assert_int_equal(MOE_ERR_FORMAT, check(f));
    h->layout--;
    assert_int_equal(MOE_OK, check(f));
    xs_board_supersede(f->board);
    assert_int_equal(0, memcmp(&h->magic, MOE_BOARD_SUPERSEDED, 8));
    assert_int_equal(MOE_ERR_FORMAT, check(f));
    atomic_store(&h->magic, 0); /* its maker died before it was finished */
    assert_int_equal(MOE_ERR_FORMAT, check(f));
}

static void a_board_with_impossible_words_is_refused(void **state)
{
    fake_store *f = *state;
    moe_err err = {0};
    fake_store_set_word(f, 2, moe_board_word(1, 3, MOE_BOARD_READY)); /* slots are 0 to 2 */
    assert_int_equal(MOE_ERR_FORMAT, check(f));
    fake_store_set_word(f, 2, moe_board_word(1, 1, MOE_BOARD_READY));
    assert_int_equal(MOE_OK, check(f));
    fake_store_set_word(f, 6, moe_board_word(2, 1, MOE_BOARD_LOADING)); /* the same slot */
    assert_int_equal(MOE_ERR_FORMAT,
                     xs_board_check(f->board, moe_board_bytes(8), &f->geometry, &err));
    assert_non_null(strstr(err.text, "expert 6"));
    fake_store_set_word(f, 6, moe_board_word(2, 1, MOE_BOARD_EVICTING));
    assert_int_equal(MOE_ERR_FORMAT, check(f));
    fake_store_set_word(f, 6, moe_board_word(2, 1, MOE_BOARD_FAILED)); /* holds none */
    assert_int_equal(MOE_OK, check(f));
    fake_store_set_word(f, 7, 5); /* no such state */
    assert_int_equal(MOE_ERR_FORMAT, check(f));
}

static void a_lease_table_of_another_shape_is_refused(void **state)
{
    fake_store *f = *state;
    xs_lease_geometry g = {.worker_id = 1, .capacity = 2, .n_experts = 8, .n_blocks = FAKE_BLOCKS};
    memcpy(g.store_uuid, f->geometry.store_uuid, sizeof g.store_uuid);
    uint64_t bytes = moe_lease_table_bytes(2, 8, FAKE_BLOCKS);
    moe_lease_header *h = f->tables[0];
    assert_int_equal(MOE_OK, xs_lease_table_check(h, bytes, &g, NULL));
    assert_int_equal(MOE_ERR_FORMAT, xs_lease_table_check(h, bytes + 4096, &g, NULL));
    assert_int_equal(MOE_ERR_FORMAT, xs_lease_table_check(h, 4, &g, NULL));
    h->capacity = 3; /* fits the same pages, but is not what was given out */
    assert_int_equal(MOE_ERR_FORMAT, xs_lease_table_check(h, bytes, &g, NULL));
    h->capacity = 1u << 30;
    g.capacity = 1u << 30; /* would reach far behind the mapping */
    assert_int_equal(MOE_ERR_FORMAT, xs_lease_table_check(h, bytes, &g, NULL));
    h->capacity = g.capacity = 0;
    assert_int_equal(MOE_ERR_FORMAT, xs_lease_table_check(h, bytes, &g, NULL));
    h->capacity = g.capacity = 2;
    g.worker_id = 2;
    assert_int_equal(MOE_ERR_FORMAT, xs_lease_table_check(h, bytes, &g, NULL));
    g.worker_id = 1;
    g.store_uuid[0] ^= 1;
    assert_int_equal(MOE_ERR_FORMAT, xs_lease_table_check(h, bytes, &g, NULL));
}

/* ---- counters of workers that are gone ---- */

static void what_a_gone_worker_counted_is_kept(void **state)
{
    fake_store *f = *state;
    moe_lease_header *h = f->tables[1];
    fake_store_use(f, 1, 4, 50);
    fake_store_use(f, 0, 4, 40);
    atomic_store(&h->counters.decode_steps, 7);
    atomic_store(&h->counters.batch_max, 5);
    atomic_store(&h->counters.leases_held, 2);
    atomic_store(&moe_lease_blocks(f->tables[1])[1].slot_hit, 11);
    atomic_store(&moe_lease_blocks(f->tables[0])[1].slot_hit, 1);
    xs_lease_view_remove(&f->leases, 1);
    int64_t last_ns = 0;
    assert_int_equal(2, xs_lease_view_uses(&f->leases, 4, &last_ns));
    assert_int_equal(40, last_ns);
    assert_int_equal(7, f->leases.gone.decode_steps);
    assert_int_equal(5, f->leases.gone.batch_max);
    assert_int_equal(0, f->leases.gone.leases_held);
    moe_block_counters b;
    xs_lease_view_block(&f->leases, 1, &b);
    assert_int_equal(12, b.slot_hit);
}

/* ---- the budget ---- */

static void more_may_be_pinned_once_there_is_more_memory(void **state)
{
    fake_store *f = *state;
    assert_int_equal(MOE_OK, xs_residency_pin(f->residency, 0, true, NULL));
    assert_int_equal(MOE_ERR_LIMIT, xs_residency_pin(f->residency, 1, true, NULL));
    xs_residency_set_max_pinned(f->residency, 2);
    assert_int_equal(MOE_OK, xs_residency_pin(f->residency, 1, true, NULL));
}

static void a_shrunk_board_keeps_what_fits(void **state)
{
    fake_store *f = *state;
    uint32_t slot[3];
    for (uint32_t x = 0; x < 3; x++) {
        slot[x] = fake_store_load(f, x, 10);
    }
    uint64_t last = fake_store_word(f, 2);
    fake_store_crash(f);
    xs_board_shrink(f->board, 2);
    for (uint32_t x = 0; x < 3; x++) {
        uint64_t w = fake_store_word(f, x);
        assert_int_equal(slot[x] < 2 ? MOE_BOARD_READY : MOE_BOARD_ABSENT, moe_board_word_state(w));
    }
    assert_int_equal(moe_board_word_generation(last),
                     moe_board_word_generation(fake_store_word(f, 2)));
    assert_int_equal(2, ((moe_board_header *)f->board)->n_made);
    xs_board_shrink(f->board, 3); /* makes nothing */
    assert_int_equal(2, ((moe_board_header *)f->board)->n_made);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_load_shows_on_the_board_step_by_step),
        TEST(a_failed_load_says_so_only_when_somebody_waits),
        TEST(no_word_ever_repeats),
        TEST(the_least_recently_used_expert_leaves),
        TEST(a_leased_slot_is_never_given_away),
        TEST(a_lease_protects_the_slot_not_the_expert),
        TEST(a_table_full_of_rubbish_only_keeps_slots),
        TEST(held_and_pinned_experts_stay),
        TEST(pins_are_bounded_so_that_workers_can_be_served),
        TEST(evicting_what_is_not_there_is_not_found),
        TEST(a_prediction_keeps_its_expert_from_other_guesses_but_not_from_a_demand),
        TEST(only_predicted_lets_a_demand_spare_what_is_predicted),
        TEST(lfu_knows_an_expert_that_comes_back),
        TEST(lfu_knows_after_an_adoption_what_was_used_before),
        TEST(only_unused_guesses_count_as_wasted),
        cmocka_unit_test(lfu_and_sieve_choose_by_use),
        cmocka_unit_test(sieve_remembers_what_its_hand_has_passed),
        TEST(a_condemned_expert_leaves_at_once_and_its_slot_when_nobody_reads_it),
        TEST(a_board_is_adopted_state_by_state),
        TEST(a_free_slot_that_a_lease_names_is_kept_out_of_use),
        TEST(an_adopted_slot_that_is_leased_stays_leased),
        TEST(a_board_with_a_wrong_header_is_refused),
        TEST(a_board_with_impossible_words_is_refused),
        TEST(a_lease_table_of_another_shape_is_refused),
        TEST(what_a_gone_worker_counted_is_kept),
        TEST(more_may_be_pinned_once_there_is_more_memory),
        TEST(a_shrunk_board_keeps_what_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
