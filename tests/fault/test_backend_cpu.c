/* The cpu backend when memory or threads run out: every failure is a status, nothing leaks, nothing
 * hangs, and out-parameters stay as they were. Under asan: no leak either. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/ops.h"

static int calls_until_failure = -1; /* -1: never; counts every wrapped call of the main thread */

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
int __real_posix_memalign(void **out, size_t align, size_t size);
int __wrap_posix_memalign(void **out, size_t align, size_t size);
int __real_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);

static int fails_now(void)
{
    if (calls_until_failure <= 0) {
        return 0;
    }
    return --calls_until_failure == 0;
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails_now() ? NULL : __real_calloc(n, size);
}

int __wrap_posix_memalign(void **out, size_t align, size_t size)
{
    return fails_now() ? 12 /* ENOMEM */ : __real_posix_memalign(out, align, size);
}

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
    return fails_now() ? 11 /* EAGAIN */ : __real_pthread_create(t, attr, fn, arg);
}

typedef struct everything {
    krn_device *device;
    krn_stream *stream;
    krn_event *event;
    void *cell, *mapped;
} everything;

static moe_status create(const krn_ops *ops, everything *e, moe_err *err)
{
    const krn_open_cfg cfg = {.n_threads = 3};
    moe_status st = ops->backend.open(&cfg, &e->device, err);
    if (st == MOE_OK) {
        st = ops->backend.stream_create(e->device, "fault", &e->stream, err);
    }
    if (st == MOE_OK) {
        st = ops->backend.event_create(e->device, &e->event, err);
    }
    if (st == MOE_OK) {
        st = ops->backend.mem_alloc(e->device, 4096, &e->cell, err);
    }
    if (st == MOE_OK) {
        st = ops->backend.host_alloc(e->device, 4096, &e->mapped, err);
    }
    return st;
}

static void destroy(const krn_ops *ops, everything *e)
{
    ops->backend.stream_destroy(e->stream);
    if (e->device != NULL) {
        ops->backend.event_destroy(e->event);
        ops->backend.mem_free(e->device, e->cell);
        ops->backend.host_free(e->device, e->mapped);
    }
    ops->backend.close(e->device);
}

static void every_failing_allocation_or_thread_is_reported(void **state)
{
    (void)state;
    const krn_ops *ops = NULL;
    assert_int_equal(MOE_OK, krn_ops_find("cpu", &ops, NULL, 0, NULL));
    for (int n = 1;; n++) {
        everything e = {.device = NULL};
        moe_err err = {0};
        calls_until_failure = n;
        moe_status st = create(ops, &e, &err);
        int failure_was_injected = calls_until_failure == 0;
        calls_until_failure = -1;
        destroy(ops, &e);
        if (!failure_was_injected) {
            assert_int_equal(MOE_OK, st);
            assert_true(n > 8); /* device, team, helpers, 2 threads, stream, queue, thread, ... */
            return;
        }
        assert_int_equal(MOE_ERR_NO_MEMORY, st);
        assert_int_equal(MOE_ERR_NO_MEMORY, err.status);
        assert_true(err.text[0] != '\0');
        assert_null(e.mapped);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_failing_allocation_or_thread_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
