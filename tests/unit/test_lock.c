/* The mutex excludes, and the condition variable wakes or times out on the monotonic clock. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/lock.h"

enum { N_THREADS = 4, N_ROUNDS = 20000 };

typedef struct shared {
    moe_mutex mu;
    moe_cond changed;
    long count; /* guarded by mu */
} shared;

static void init(shared *s)
{
    moe_mutex_init(&s->mu);
    moe_cond_init(&s->changed);
    s->count = 0;
}

static void fini(shared *s)
{
    moe_cond_fini(&s->changed);
    moe_mutex_fini(&s->mu);
}

static void *count_up(void *user)
{
    shared *s = user;
    for (int i = 0; i < N_ROUNDS; i++) {
        moe_mutex_lock(&s->mu);
        s->count++;
        moe_cond_signal(&s->changed);
        moe_mutex_unlock(&s->mu);
    }
    return NULL;
}

static void counting_under_the_lock_loses_nothing(void **state)
{
    (void)state;
    shared s;
    pthread_t threads[N_THREADS];
    init(&s);
    for (int i = 0; i < N_THREADS; i++) {
        assert_int_equal(0, pthread_create(&threads[i], NULL, count_up, &s));
    }
    moe_mutex_lock(&s.mu);
    while (s.count < (long)N_THREADS * N_ROUNDS) {
        moe_cond_wait(&s.changed, &s.mu);
    }
    moe_mutex_unlock(&s.mu);
    for (int i = 0; i < N_THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal((long)N_THREADS * N_ROUNDS, s.count);
    fini(&s);
}

static void waiting_ends_at_the_deadline(void **state)
{
    (void)state;
    shared s;
    init(&s);
    int64_t start = moe_now_ns();
    moe_mutex_lock(&s.mu);
    while (moe_cond_wait_until(&s.changed, &s.mu, start + 5 * MOE_NS_PER_MS)) {
    }
    assert_false(moe_cond_wait_until(&s.changed, &s.mu, -1)); /* long past */
    moe_mutex_unlock(&s.mu);
    assert_true(moe_now_ns() - start >= 5 * MOE_NS_PER_MS);
    fini(&s);
}

static void *broadcast_once(void *user)
{
    shared *s = user;
    moe_mutex_lock(&s->mu);
    s->count = 1;
    moe_cond_broadcast(&s->changed);
    moe_mutex_unlock(&s->mu);
    return NULL;
}

static void a_broadcast_ends_a_wait_before_its_deadline(void **state)
{
    (void)state;
    shared s;
    pthread_t thread;
    init(&s);
    int64_t deadline_ns = moe_now_ns() + 20 * MOE_NS_PER_S;
    bool in_time = true;
    moe_mutex_lock(&s.mu);
    assert_int_equal(0, pthread_create(&thread, NULL, broadcast_once, &s));
    while (s.count == 0 && in_time) {
        in_time = moe_cond_wait_until(&s.changed, &s.mu, deadline_ns);
    }
    moe_mutex_unlock(&s.mu);
    pthread_join(thread, NULL);
    assert_true(in_time);
    fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counting_under_the_lock_loses_nothing),
        cmocka_unit_test(waiting_ends_at_the_deadline),
        cmocka_unit_test(a_broadcast_ends_a_wait_before_its_deadline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
