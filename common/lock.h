/* lock.h - mutex and condition variable with contracts that clang checks (-Wthread-safety).
 *
 * Under gcc the annotations vanish and only the comments remain. clang cannot see a sibling member
 * from inside a C struct, so a member says `guarded by mu` in its comment; MOE_GUARDED_BY is for
 * variables at file scope, MOE_REQUIRES for functions that want the lock held (`_locked`).
 * Waits use CLOCK_MONOTONIC, the clock of moe_now_ns() when it is not faked.
 * Threads: any. A mutex is destroyed by its owner when nobody can use it any more.
 */
#ifndef MOE_COMMON_LOCK_H
#define MOE_COMMON_LOCK_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "common/clock.h"
#include "common/status.h"

#if defined(__clang__)
#define MOE_THREAD_SAFETY(x) __attribute__((x))
#else
#define MOE_THREAD_SAFETY(x)
#endif

#define MOE_CAPABILITY MOE_THREAD_SAFETY(capability("mutex"))
#define MOE_GUARDED_BY(mutex) MOE_THREAD_SAFETY(guarded_by(mutex))
#define MOE_REQUIRES(...) MOE_THREAD_SAFETY(requires_capability(__VA_ARGS__))
#define MOE_ACQUIRES(...) MOE_THREAD_SAFETY(acquire_capability(__VA_ARGS__))
#define MOE_RELEASES(...) MOE_THREAD_SAFETY(release_capability(__VA_ARGS__))
#define MOE_EXCLUDES(...) MOE_THREAD_SAFETY(locks_excluded(__VA_ARGS__))
#define MOE_UNCHECKED MOE_THREAD_SAFETY(no_thread_safety_analysis)

typedef struct MOE_CAPABILITY moe_mutex {
    pthread_mutex_t native;
} moe_mutex;

typedef struct moe_cond {
    pthread_cond_t native;
} moe_cond;

/* The return codes below can only be our own bugs (an unknown mutex, a double unlock). */

static inline void moe_mutex_init(moe_mutex *m)
{
    int rc = pthread_mutex_init(&m->native, NULL);
    MOE_ASSERT(rc == 0);
}

static inline void moe_mutex_fini(moe_mutex *m)
{
    int rc = pthread_mutex_destroy(&m->native);
    MOE_ASSERT(rc == 0);
}

static inline void moe_mutex_lock(moe_mutex *m) MOE_ACQUIRES(*m) MOE_UNCHECKED;
static inline void moe_mutex_lock(moe_mutex *m)
{
    int rc = pthread_mutex_lock(&m->native);
    MOE_ASSERT(rc == 0);
}

static inline void moe_mutex_unlock(moe_mutex *m) MOE_RELEASES(*m) MOE_UNCHECKED;
static inline void moe_mutex_unlock(moe_mutex *m)
{
    int rc = pthread_mutex_unlock(&m->native);
    MOE_ASSERT(rc == 0);
}

static inline void moe_cond_init(moe_cond *c)
{
    pthread_condattr_t attr;
    int rc = pthread_condattr_init(&attr);
    MOE_ASSERT(rc == 0);
    rc = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    MOE_ASSERT(rc == 0);
    rc = pthread_cond_init(&c->native, &attr);
    MOE_ASSERT(rc == 0);
    pthread_condattr_destroy(&attr);
}

static inline void moe_cond_fini(moe_cond *c)
{
    int rc = pthread_cond_destroy(&c->native);
    MOE_ASSERT(rc == 0);
}

static inline void moe_cond_signal(moe_cond *c)
{
    pthread_cond_signal(&c->native);
}

static inline void moe_cond_broadcast(moe_cond *c)
{
    pthread_cond_broadcast(&c->native);
}

/* Both may wake without a reason: wait in a loop that looks at the condition itself. */
static inline void moe_cond_wait(moe_cond *c, moe_mutex *m) MOE_REQUIRES(*m);
static inline void moe_cond_wait(moe_cond *c, moe_mutex *m)
{
    int rc = pthread_cond_wait(&c->native, &m->native);
    MOE_ASSERT(rc == 0);
}

/* False once deadline_ns (monotonic) has passed. */
static inline bool moe_cond_wait_until(moe_cond *c, moe_mutex *m, int64_t deadline_ns)
    MOE_REQUIRES(*m);
static inline bool moe_cond_wait_until(moe_cond *c, moe_mutex *m, int64_t deadline_ns)
{
    int64_t at = deadline_ns > 0 ? deadline_ns : 0;
    struct timespec ts = {.tv_sec = (time_t)(at / MOE_NS_PER_S),
                          .tv_nsec = (long)(at % MOE_NS_PER_S)};
    int rc = pthread_cond_timedwait(&c->native, &m->native, &ts);
    MOE_ASSERT(rc == 0 || rc == ETIMEDOUT);
    return rc == 0;
}

#endif
