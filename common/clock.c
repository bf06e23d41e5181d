/* clock.c - the monotonic clock, or the one a test has put in its place.
 * Called on every thread. The only state is the fake time, one atomic; nothing to shut down. */
#include "common/clock.h"

#include <errno.h>
#include <stdatomic.h>
#include <time.h>

#include "common/status.h"

/* -1: the real clock. Relaxed: the number carries no other data with it. */
static _Atomic int64_t fake_now_ns = -1;

static int64_t real_now_ns(void)
{
    struct timespec ts = {0};
    int rc = clock_gettime(CLOCK_MONOTONIC, &ts);
    MOE_ASSERT(rc == 0);
    return (int64_t)ts.tv_sec * MOE_NS_PER_S + ts.tv_nsec;
}

int64_t moe_now_ns(void)
{
    int64_t fake = atomic_load_explicit(&fake_now_ns, memory_order_relaxed);
    return fake >= 0 ? fake : real_now_ns();
}

void moe_sleep_ns(int64_t ns)
{
    if (ns <= 0) {
        return;
    }
    if (atomic_load_explicit(&fake_now_ns, memory_order_relaxed) >= 0) {
        atomic_fetch_add_explicit(&fake_now_ns, ns, memory_order_relaxed);
        return;
    }
    int64_t until = 0;
    if (__builtin_add_overflow(real_now_ns(), ns, &until)) {
        until = INT64_MAX;
    }
    struct timespec ts = {.tv_sec = (time_t)(until / MOE_NS_PER_S),
                          .tv_nsec = (long)(until % MOE_NS_PER_S)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR) {
    }
}

void moe_clock_fake(int64_t now_ns)
{
    atomic_store_explicit(&fake_now_ns, now_ns >= 0 ? now_ns : -1, memory_order_relaxed);
}
