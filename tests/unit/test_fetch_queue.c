/* The fetch queue: order, merging, cancelling; and a long random walk beside a naive model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "expert-store/reader/fetch_queue.h"

static int calls_until_failure = -1; /* -1: never */

void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes)
{
    if (calls_until_failure > 0 && --calls_until_failure == 0) {
        return NULL;
    }
    return __real_calloc(n, bytes);
}

static xs_fetch_queue *make_queue(uint32_t n_experts)
{
    xs_fetch_queue *q = NULL;
    moe_err err = {0};
    assert_int_equal(MOE_OK, xs_fetch_queue_create(n_experts, &q, &err));
    return q;
}

static uint32_t pop_expert(xs_fetch_queue *q)
{
    uint32_t expert = UINT32_MAX;
    xs_fetch_class cls = XS_FETCH_WARM;
    uint64_t workers = 0;
    int64_t asked_ns = 0;
    return xs_fetch_queue_pop(q, &expert, &cls, &workers, &asked_ns) ? expert : UINT32_MAX;
}

static void urgent_classes_come_first_and_equals_in_order_of_asking(void **state)
{
    (void)state;
    xs_fetch_queue *q = make_queue(10);
    assert_false(xs_fetch_queue_push(q, 1, XS_FETCH_WARM, 63, 0, 1));
    assert_false(xs_fetch_queue_push(q, 2, XS_FETCH_FAR, 0, 5, 2));
    assert_false(xs_fetch_queue_push(q, 3, XS_FETCH_NEAR, 0, 5, 3));
    assert_false(xs_fetch_queue_push(q, 4, XS_FETCH_DEMAND, 1, 5, 4));
    assert_false(xs_fetch_queue_push(q, 5, XS_FETCH_NEAR, 1, 5, 5));
    assert_false(xs_fetch_queue_push(q, 6, XS_FETCH_DEMAND, 0, 5, 6));
    assert_int_equal(2, xs_fetch_queue_length(q, XS_FETCH_NEAR));
    const uint32_t expected[] = {4, 6, 3, 5, 2, 1, UINT32_MAX};
    for (int i = 0; i < 7; i++) {
        assert_int_equal(expected[i], pop_expert(q));
    }
    xs_fetch_queue_destroy(q);
}

static void equal_asks_merge_and_an_urgent_one_moves_the_entry_up(void **state)
{
    (void)state;
    xs_fetch_queue *q = make_queue(10);
    assert_false(xs_fetch_queue_push(q, 1, XS_FETCH_DEMAND, 0, 7, 100));
    assert_false(xs_fetch_queue_push(q, 2, XS_FETCH_FAR, 1, 7, 101));
    assert_true(xs_fetch_queue_push(q, 2, XS_FETCH_DEMAND, 3, 7, 102));
    assert_true(xs_fetch_queue_push(q, 2, XS_FETCH_WARM, 63, 0, 103)); /* does not move it down */
    assert_int_equal(0, xs_fetch_queue_length(q, XS_FETCH_FAR));
    assert_int_equal(2, xs_fetch_queue_length(q, XS_FETCH_DEMAND));
    assert_int_equal(1, pop_expert(q));

    uint32_t expert = 0;
    xs_fetch_class cls = XS_FETCH_WARM;
    uint64_t workers = 0;
    int64_t asked_ns = 0;
    assert_true(xs_fetch_queue_peek(q, &expert, &cls, &asked_ns));
    assert_int_equal(2, expert);
    assert_true(xs_fetch_queue_pop(q, &expert, &cls, &workers, &asked_ns));
    assert_int_equal(2, expert);
    assert_int_equal(XS_FETCH_DEMAND, cls);
    assert_int_equal(101, asked_ns); /* first asked, not last */
    assert_true(workers == ((1ull << 1) | (1ull << 3) | (1ull << 63)));
    assert_false(xs_fetch_queue_peek(q, &expert, &cls, &asked_ns));
    xs_fetch_queue_destroy(q);
}

static void cancel_takes_one_workers_asks_up_to_the_step(void **state)
{
    (void)state;
    xs_fetch_queue *q = make_queue(10);
    xs_fetch_queue_push(q, 1, XS_FETCH_DEMAND, 0, 5, 0);
    xs_fetch_queue_push(q, 2, XS_FETCH_DEMAND, 0, 6, 0);
    xs_fetch_queue_push(q, 3, XS_FETCH_NEAR, 0, 5, 0);
    xs_fetch_queue_push(q, 3, XS_FETCH_NEAR, 1, 5, 0); /* somebody else wants it, too */
    xs_fetch_queue_push(q, 4, XS_FETCH_FAR, 0, 5, 0);
    xs_fetch_queue_push(q, 4, XS_FETCH_FAR, 0, 9, 0); /* asked again, later: lives */
    assert_int_equal(1, xs_fetch_queue_cancel(q, 0, 5));
    assert_int_equal(2, pop_expert(q));
    assert_int_equal(3, pop_expert(q));
    assert_int_equal(4, pop_expert(q));
    assert_int_equal(UINT32_MAX, pop_expert(q));
    xs_fetch_queue_destroy(q);
}

static void a_workers_death_drops_all_it_alone_wanted(void **state)
{
    (void)state;
    xs_fetch_queue *q = make_queue(10);
    xs_fetch_queue_push(q, 1, XS_FETCH_DEMAND, 63, UINT64_MAX, 0);
    xs_fetch_queue_push(q, 2, XS_FETCH_WARM, 63, 3, 0);
    xs_fetch_queue_push(q, 2, XS_FETCH_NEAR, 62, 3, 0);
    assert_int_equal(1, xs_fetch_queue_cancel(q, 63, UINT64_MAX));
    assert_int_equal(2, pop_expert(q));
    xs_fetch_queue_destroy(q);
}

static void an_old_step_does_not_outlive_its_entry(void **state)
{
    (void)state;
    xs_fetch_queue *q = make_queue(2);
    xs_fetch_queue_push(q, 1, XS_FETCH_DEMAND, 0, 9, 0);
    assert_int_equal(1, pop_expert(q));
    xs_fetch_queue_push(q, 1, XS_FETCH_DEMAND, 0, 2, 0); /* a worker that began anew */
    assert_int_equal(1, xs_fetch_queue_cancel(q, 0, 2));
    assert_int_equal(UINT32_MAX, pop_expert(q));
    xs_fetch_queue_destroy(q);
}

/* ---- the naive model: an array in order of arrival ---- */

enum { N_EXPERTS = 12, N_WORKERS = 4, N_OPERATIONS = 20000 };

typedef struct model_entry {
    uint32_t expert;
    xs_fetch_class cls;
    bool asks[N_WORKERS];
    uint64_t step[N_WORKERS];
    int64_t asked_ns;
} model_entry;

typedef struct model {
    model_entry at[N_EXPERTS];
    uint32_t n;
} model;

static void model_delete(model *m, uint32_t i)
{
    memmove(&m->at[i], &m->at[i + 1], (m->n - i - 1) * sizeof m->at[0]);
    m->n--;
}

static bool model_push(model *m, uint32_t expert, xs_fetch_class cls, uint32_t worker,
                       uint64_t step, int64_t now_ns)
{
    model_entry e = {.expert = expert, .cls = cls, .asked_ns = now_ns};
    bool merged = false;
    uint32_t i = 0;
    while (i < m->n && m->at[i].expert != expert) {
        i++;
    }
    if (i < m->n) {
        merged = true;
        e = m->at[i];
        if (cls < e.cls) { /* to the end of its new class: of everything, in this model */
            e.cls = cls;
            model_delete(m, i);
            i = m->n++;
        }
    } else {
        m->n++;
    }
    e.step[worker] = e.asks[worker] && e.step[worker] > step ? e.step[worker] : step;
    e.asks[worker] = true;
    m->at[i] = e;
    return merged;
}

static int64_t model_first(const model *m)
{
    int64_t first = -1;
    for (uint32_t i = 0; i < m->n; i++) {
        if (first < 0 || m->at[i].cls < m->at[first].cls) {
            first = i;
        }
    }
    return first;
}

static uint32_t model_cancel(model *m, uint32_t worker, uint64_t step)
{
    uint32_t n_dropped = 0;
    for (uint32_t i = 0; i < m->n;) {
        model_entry *e = &m->at[i];
        bool asked = e->asks[worker];
        e->asks[worker] = asked && e->step[worker] > step;
        bool wanted = false;
        for (int w = 0; w < N_WORKERS; w++) {
            wanted = wanted || e->asks[w];
        }
        if (wanted) {
            i++;
        } else {
            model_delete(m, i);
            n_dropped++;
        }
    }
    return n_dropped;
}

static void pop_both(xs_fetch_queue *q, model *m)
{
    uint32_t expert = 0;
    xs_fetch_class cls = XS_FETCH_WARM;
    uint64_t workers = 0;
    int64_t asked_ns = 0;
    int64_t first = model_first(m);
    assert_int_equal(first >= 0, xs_fetch_queue_pop(q, &expert, &cls, &workers, &asked_ns));
    if (first < 0) {
        return;
    }
    const model_entry *e = &m->at[first];
    assert_int_equal(e->expert, expert);
    assert_int_equal(e->cls, cls);
    assert_int_equal(e->asked_ns, asked_ns);
    for (uint32_t w = 0; w < N_WORKERS; w++) {
        assert_int_equal(e->asks[w], (workers >> w) & 1u);
    }
    model_delete(m, (uint32_t)first);
}

static void random_operations_agree_with_the_naive_model(void **state)
{
    (void)state;
    xs_fetch_queue *q = make_queue(N_EXPERTS);
    model m = {.n = 0};
    unsigned seed = 20240607;
    for (int64_t i = 0; i < N_OPERATIONS; i++) {
        uint32_t expert = (uint32_t)rand_r(&seed) % N_EXPERTS;
        uint32_t worker = (uint32_t)rand_r(&seed) % N_WORKERS;
        uint64_t step = (uint64_t)(i / 50) + (uint64_t)rand_r(&seed) % 3;
        int what = rand_r(&seed) % 10;
        if (what < 6) {
            xs_fetch_class cls = (xs_fetch_class)(rand_r(&seed) % XS_N_FETCH_CLASSES);
            assert_int_equal(model_push(&m, expert, cls, worker, step, i),
                             xs_fetch_queue_push(q, expert, cls, worker, step, i));
        } else if (what < 8) {
            pop_both(q, &m);
        } else if (what < 9) {
            step = rand_r(&seed) % 8 == 0 ? UINT64_MAX : step;
            assert_int_equal(model_cancel(&m, worker, step),
                             xs_fetch_queue_cancel(q, worker, step));
        } else {
            uint32_t at = 0;
            while (at < m.n && m.at[at].expert != expert) {
                at++;
            }
            assert_int_equal(at < m.n, xs_fetch_queue_remove(q, expert));
            if (at < m.n) {
                model_delete(&m, at);
            }
        }
        uint32_t total = 0;
        for (int cls = 0; cls < XS_N_FETCH_CLASSES; cls++) {
            total += xs_fetch_queue_length(q, (xs_fetch_class)cls);
        }
        assert_int_equal(m.n, total);
    }
    while (m.n > 0) {
        pop_both(q, &m);
    }
    xs_fetch_queue_destroy(q);
}

static void create_survives_every_failing_allocation(void **state)
{
    (void)state;
    for (int n = 1;; n++) {
        xs_fetch_queue *q = NULL;
        calls_until_failure = n;
        moe_status st = xs_fetch_queue_create(4, &q, NULL);
        bool injected = calls_until_failure == 0;
        calls_until_failure = -1;
        if (!injected) {
            assert_int_equal(MOE_OK, st);
            xs_fetch_queue_destroy(q);
            return;
        }
        assert_int_equal(MOE_ERR_NO_MEMORY, st);
        assert_null(q);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(urgent_classes_come_first_and_equals_in_order_of_asking),
        cmocka_unit_test(equal_asks_merge_and_an_urgent_one_moves_the_entry_up),
        cmocka_unit_test(cancel_takes_one_workers_asks_up_to_the_step),
        cmocka_unit_test(a_workers_death_drops_all_it_alone_wanted),
        cmocka_unit_test(an_old_step_does_not_outlive_its_entry),
        cmocka_unit_test(random_operations_agree_with_the_naive_model),
        cmocka_unit_test(create_survives_every_failing_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
