/* simulate and access_list: exact hits on traces made by hand, bounds that bound, made-up traces
 * that follow their law. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "expert-store/replay/simulate.h"

enum { KEEP_US = 100, N_EXPERTS = 26 };

/* "AbA": uses of A and A, a prediction of B between, each 10 us after the other; "A3": three uses
 * in a row; "_" 1000 us during which nothing happens. */
static xs_access_list trace(const char *text)
{
    xs_access_list l = {.n_experts = N_EXPERTS};
    int64_t now_us = 0;
    for (const char *at = text; *at != '\0'; at++) {
        bool is_use = *at >= 'A' && *at <= 'Z';
        if (*at == '_') {
            now_us += 1000;
        } else if (*at >= '2' && *at <= '9') {
            l.items[l.n - 1].n = (uint32_t)(*at - '0');
        } else {
            const xs_access a = {.at_us = now_us,
                                 .expert = (uint32_t)(*at - (is_use ? 'A' : 'a')),
                                 .n = 1,
                                 .kind = is_use ? XS_ACCESS_USE : XS_ACCESS_PREDICTION};
            assert_int_equal(MOE_OK, xs_access_list_add(&l, &a, NULL));
            now_us += 10;
        }
    }
    return l;
}

typedef struct counts {
    uint64_t lru, lfu, sieve, predicted, fixed, belady;
} counts;

static counts run(const xs_access_list *l, uint32_t n_slots)
{
    const xs_memory m = {.n_slots = n_slots, .predict_keep_us = KEEP_US};
    counts c;
    assert_int_equal(MOE_OK, xs_simulate_policy(l, &m, XS_EVICT_LRU, &c.lru, NULL));
    assert_int_equal(MOE_OK, xs_simulate_policy(l, &m, XS_EVICT_LFU, &c.lfu, NULL));
    assert_int_equal(MOE_OK, xs_simulate_policy(l, &m, XS_EVICT_SIEVE, &c.sieve, NULL));
    assert_int_equal(MOE_OK, xs_simulate_policy(l, &m, XS_EVICT_PREDICTED, &c.predicted, NULL));
    assert_int_equal(MOE_OK, xs_simulate_static(l, &m, &c.fixed, NULL));
    assert_int_equal(MOE_OK, xs_simulate_belady(l, &m, &c.belady, NULL));
    return c;
}

static void expect(const char *text, uint32_t n_slots, const counts *expected)
{
    xs_access_list l = trace(text);
    const counts got = run(&l, n_slots);
    assert_int_equal(expected->lru, got.lru);
    assert_int_equal(expected->lfu, got.lfu);
    assert_int_equal(expected->sieve, got.sieve);
    assert_int_equal(expected->predicted, got.predicted);
    assert_int_equal(expected->fixed, got.fixed);
    assert_int_equal(expected->belady, got.belady);
    xs_access_list_fini(&l);
}

static void one_favourite_is_kept_by_all(void **state)
{
    (void)state;
    /* All give up B for C and C for B. The static set has A from the start; Belady lets C pass. */
    expect("ABACAB", 2,
           &(counts){.lru = 2, .lfu = 2, .sieve = 2, .predicted = 2, .fixed = 3, .belady = 3});
}

static void a_scan_pushes_a_favourite_out_unless_uses_count(void **state)
{
    (void)state;
    /* LRU forgets A at C; SIEVE spares it there and gives it up at D. */
    expect("AAABCDA", 2,
           &(counts){.lru = 2, .lfu = 3, .sieve = 2, .predicted = 3, .fixed = 4, .belady = 3});
}

static void a_loop_longer_than_the_memory_defeats_recency(void **state)
{
    (void)state;
    /* Four in a loop over three slots. LFU keeps what came back first: after the first lap all have
     * one use, ties go by age as in LRU. */
    expect("ABCDABCDABCD", 3,
           &(counts){.lru = 0, .lfu = 0, .sieve = 0, .predicted = 0, .fixed = 6, .belady = 6});
}

static void a_prediction_protects_until_it_is_used_or_old(void **state)
{
    (void)state;
    /* C takes the place of A, used once, except under PREDICTED, where it takes B's. */
    expect("BBAaCA", 2,
           &(counts){.lru = 2, .lfu = 1, .sieve = 1, .predicted = 2, .fixed = 3, .belady = 2});
    expect("BBAa_CA", 2,
           &(counts){.lru = 2, .lfu = 1, .sieve = 1, .predicted = 1, .fixed = 3, .belady = 2});
    /* Used meanwhile: what was predicted has come true, and C takes A's place. */
    expect("BBBAaACA", 2,
           &(counts){.lru = 4, .lfu = 3, .sieve = 4, .predicted = 3, .fixed = 5, .belady = 4});
}

static void when_all_is_predicted_a_demand_takes_the_least_used(void **state)
{
    (void)state;
    expect("BBAabCB", 2,
           &(counts){.lru = 1, .lfu = 2, .sieve = 2, .predicted = 2, .fixed = 3, .belady = 2});
}

static void uses_in_a_row_are_hits_after_the_first(void **state)
{
    (void)state;
    expect("A3B", 1,
           &(counts){.lru = 2, .lfu = 2, .sieve = 2, .predicted = 2, .fixed = 2, .belady = 2});
    expect("A5B2A", 2,
           &(counts){.lru = 6, .lfu = 6, .sieve = 6, .predicted = 6, .fixed = 7, .belady = 6});
}

static void one_slot_hits_only_repetitions(void **state)
{
    (void)state;
    expect("AABBBA", 1,
           &(counts){.lru = 3, .lfu = 3, .sieve = 3, .predicted = 3, .fixed = 3, .belady = 3});
}

static void with_room_for_all_only_first_uses_miss(void **state)
{
    (void)state;
    expect("ABCABCCBA", 3,
           &(counts){.lru = 6, .lfu = 6, .sieve = 6, .predicted = 6, .fixed = 9 - 1, .belady = 6});
    expect("ABCABCCBA", 100, /* the static set has them all from the start */
           &(counts){.lru = 6, .lfu = 6, .sieve = 6, .predicted = 6, .fixed = 9, .belady = 6});
}

static void of_equally_used_experts_the_static_set_has_as_many_as_fit(void **state)
{
    (void)state;
    xs_access_list l = trace("ABCDABCD");
    assert_int_equal(4, run(&l, 3).fixed); /* A and B; C and D pass by in turn */
    xs_access_list_fini(&l);
}

static void no_policy_beats_belady(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        const xs_zipf z = {
            .exponent = 0.6, .n_experts = 40, .n_uses = 2000, .n_topics = 3, .seed = seed};
        xs_access_list l = {0};
        assert_int_equal(MOE_OK, xs_access_list_zipf(&z, &l, NULL));
        const uint32_t n_slots = (uint32_t)seed * 2 - 1;
        const counts c = run(&l, n_slots);
        assert_true(c.lru <= c.belady && c.lfu <= c.belady && c.sieve <= c.belady);
        assert_true(c.predicted == c.lfu); /* nothing is predicted */
        assert_true(c.fixed <= c.belady + n_slots);
        xs_access_list_fini(&l);
    }
}

/* What the project promises of its default policy; the measured values are above it by 1 to 4 %. */
static void lfu_reaches_95_percent_of_the_best_static_set_on_zipf(void **state)
{
    (void)state;
    const double exponents[] = {0.8, 1.1};
    for (int e = 0; e < 2; e++) {
        const xs_zipf z = {
            .exponent = exponents[e], .n_experts = 768, .n_uses = 100000, .n_topics = 1, .seed = 1};
        xs_access_list l = {0};
        assert_int_equal(MOE_OK, xs_access_list_zipf(&z, &l, NULL));
        for (uint32_t n_slots = 76; n_slots <= 384; n_slots += 154) {
            const xs_memory m = {.n_slots = n_slots};
            uint64_t lfu = 0;
            uint64_t fixed = 0;
            assert_int_equal(MOE_OK, xs_simulate_policy(&l, &m, XS_EVICT_LFU, &lfu, NULL));
            assert_int_equal(MOE_OK, xs_simulate_static(&l, &m, &fixed, NULL));
            assert_true((double)lfu >= 0.95 * (double)fixed);
        }
        xs_access_list_fini(&l);
    }
}

/* ---- lists ---- */

static int largest_first(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

static void made_up_uses_follow_the_law_of_zipf(void **state)
{
    (void)state;
    enum { N = 20, USES = 200000 };
    const xs_zipf z = {.exponent = 1, .n_experts = N, .n_uses = USES, .n_topics = 1, .seed = 3};
    xs_access_list l = {0};
    uint32_t uses[N] = {0};
    double sum = 0;
    assert_int_equal(MOE_OK, xs_access_list_zipf(&z, &l, NULL));
    assert_int_equal(USES, l.n);
    for (uint64_t i = 0; i < l.n; i++) {
        uses[l.items[i].expert]++;
    }
    assert_int_not_equal(0, uses[0] - uses[N - 1]);
    assert_true(uses[0] < uses[1] || uses[1] < uses[2] || uses[2] < uses[3]); /* shuffled */
    qsort(uses, N, sizeof *uses, largest_first);
    for (int k = 1; k <= N; k++) {
        sum += 1.0 / k;
    }
    for (int k = 1; k <= N; k++) {
        double expected = USES / sum / k;
        assert_true(fabs(uses[k - 1] - expected) < 5 * sqrt(expected)); /* five sigma */
    }
    xs_access_list_fini(&l);
}

static uint64_t differences(const xs_access_list *a, const xs_access_list *b)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < a->n; i++) {
        n += a->items[i].expert != b->items[i].expert;
    }
    return n;
}

static void made_up_traces_repeat_with_their_seed(void **state)
{
    (void)state;
    xs_access_list l[3] = {{0}, {0}, {0}};
    const uint64_t seeds[] = {7, 7, 8};
    for (int i = 0; i < 3; i++) {
        const xs_zipf z = {
            .exponent = 0.8, .n_experts = 50, .n_uses = 1000, .n_topics = 1, .seed = seeds[i]};
        assert_int_equal(MOE_OK, xs_access_list_zipf(&z, &l[i], NULL));
    }
    assert_int_equal(0, differences(&l[0], &l[1]));
    assert_true(differences(&l[0], &l[2]) > 500);
    for (int i = 0; i < 3; i++) {
        xs_access_list_fini(&l[i]);
    }
}

static uint32_t favourite(const xs_access_list *l, uint64_t from, uint64_t to)
{
    uint32_t uses[100] = {0};
    uint32_t best = 0;
    for (uint64_t i = from; i < to; i++) {
        uses[l->items[i].expert]++;
    }
    for (uint32_t x = 1; x < 100; x++) {
        best = uses[x] > uses[best] ? x : best;
    }
    return best;
}

static void a_new_topic_has_another_favourite(void **state)
{
    (void)state;
    const xs_zipf z = {.exponent = 2, .n_experts = 100, .n_uses = 3001, .n_topics = 3, .seed = 1};
    xs_access_list l = {0};
    assert_int_equal(MOE_OK, xs_access_list_zipf(&z, &l, NULL));
    assert_int_equal(3001, l.n);
    uint32_t a = favourite(&l, 0, 1000);
    uint32_t b = favourite(&l, 1001, 2002);
    uint32_t c = favourite(&l, 2002, 3001);
    assert_true(a != b && b != c && a != c);
    assert_int_equal(a, favourite(&l, 500, 1000));
    xs_access_list_fini(&l);
}

static void sorting_is_by_time_and_keeps_order_within_it(void **state)
{
    (void)state;
    for (uint32_t n = 0; n <= 33; n++) {
        xs_access_list l = {.n_experts = 64};
        for (uint32_t i = 0; i < n; i++) {
            const xs_access a = {.at_us = (int64_t)(i * 7 % 5), .expert = i, .n = 1};
            assert_int_equal(MOE_OK, xs_access_list_add(&l, &a, NULL));
        }
        assert_int_equal(MOE_OK, xs_access_list_sort(&l, NULL));
        assert_int_equal(n, l.n);
        for (uint32_t i = 1; i < n; i++) {
            const xs_access *a = &l.items[i - 1];
            const xs_access *b = &l.items[i];
            assert_true(a->at_us < b->at_us || (a->at_us == b->at_us && a->expert < b->expert));
        }
        const xs_access more = {.n = 1};
        assert_int_equal(MOE_OK, xs_access_list_add(&l, &more, NULL)); /* it still grows */
        xs_access_list_fini(&l);
    }
}

static void a_recorded_trace_becomes_uses_and_predictions_in_order(void **state)
{
    (void)state;
    const xs_trace_event events[] = {
        {XS_TRACE_WANT, 1, 3, 1},   {XS_TRACE_LOAD, 2, 3, 0}, {XS_TRACE_PREDICT, 50, 4, 2},
        {XS_TRACE_EVICT, 60, 9, 1}, {XS_TRACE_USE, 40, 3, 2}, /* found at the end of its period */
        {XS_TRACE_USE, 50, 4, 1},
    };
    uint8_t data[512] = {0};
    xs_trace_header h = {.n_experts = 10, .per_block = 10, .n_slots = 2, .predict_keep_us = 9};
    memcpy(h.magic, XS_TRACE_MAGIC, sizeof h.magic);
    memcpy(data, &h, sizeof h);
    size_t bytes = sizeof h;
    int64_t last_us = 0;
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++) {
        bytes += xs_trace_encode(&events[i], &last_us, data + bytes);
    }
    xs_access_list l = {0};
    xs_trace_header got;
    assert_int_equal(MOE_OK, xs_access_list_read(data, bytes, &got, &l, NULL));
    assert_int_equal(9, got.predict_keep_us);
    assert_int_equal(3, l.n);
    assert_int_equal(3, l.items[0].expert);
    assert_int_equal(2, l.items[0].n);
    assert_int_equal(XS_ACCESS_PREDICTION, l.items[1].kind);
    assert_int_equal(1, l.items[1].n); /* not its distance */
    assert_int_equal(XS_ACCESS_USE, l.items[2].kind);
    assert_int_equal(3, xs_access_list_uses(&l));
    assert_int_equal(2, xs_access_list_distinct(&l));
    xs_access_list_fini(&l);
    data[bytes] = 0x07; /* a kind that is none */
    data[bytes + 1] = 0x01;
    assert_int_equal(MOE_ERR_FORMAT, xs_access_list_read(data, bytes + 2, &got, &l, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_favourite_is_kept_by_all),
        cmocka_unit_test(a_scan_pushes_a_favourite_out_unless_uses_count),
        cmocka_unit_test(a_loop_longer_than_the_memory_defeats_recency),
        cmocka_unit_test(a_prediction_protects_until_it_is_used_or_old),
        cmocka_unit_test(when_all_is_predicted_a_demand_takes_the_least_used),
        cmocka_unit_test(uses_in_a_row_are_hits_after_the_first),
        cmocka_unit_test(one_slot_hits_only_repetitions),
        cmocka_unit_test(with_room_for_all_only_first_uses_miss),
        cmocka_unit_test(of_equally_used_experts_the_static_set_has_as_many_as_fit),
        cmocka_unit_test(no_policy_beats_belady),
        cmocka_unit_test(lfu_reaches_95_percent_of_the_best_static_set_on_zipf),
        cmocka_unit_test(made_up_uses_follow_the_law_of_zipf),
        cmocka_unit_test(made_up_traces_repeat_with_their_seed),
        cmocka_unit_test(a_new_topic_has_another_favourite),
        cmocka_unit_test(sorting_is_by_time_and_keeps_order_within_it),
        cmocka_unit_test(a_recorded_trace_becomes_uses_and_predictions_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
