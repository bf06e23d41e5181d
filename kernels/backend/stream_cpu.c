/* stream_cpu.c - the `cpu` backend's streams, copies, signals and events.
 *
 * Owns: one thread and one bounded queue per stream. The submitter copies a closure into the queue;
 * the stream's thread runs it in place and only then frees the place.
 * Signals: a waiting stream spins briefly, then sleeps in a futex on the flag itself. write32 wakes
 * it; a plain store by the host does not, so the sleep ends every FLAG_POLL_NS to look again.
 * Shutdown: destroy lets the queue run empty, then joins the thread.
 */
#include "kernels/backend/backend_cpu.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "kernels/backend/cpu_pause.h"

enum {
    IDLE_SPINS = 400, /* some 4 us: the gap between two submissions of a running step */
    FLAG_SPINS = 400,
    FLAG_POLL_NS = 20000,   /* how long a host store may go unseen */
    TIMER_SLACK_NS = 1000,  /* the default of 50 us would triple FLAG_POLL_NS */
    PIECE_BYTES = 256 << 10 /* copies of several streams share the link in such pieces */
};

typedef struct closure {
    krn_cpu_fn fn;
    alignas(max_align_t) unsigned char args[KRN_CPU_ARGS_BYTES];
} closure;

struct krn_stream {
    krn_device *device; /* borrowed, outlives the stream */
    char name[16];
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t submitted_more; /* or stopping */
    pthread_cond_t done_more;      /* somebody waits for room or for the end */
    closure *queue;                /* [KRN_CPU_QUEUE_DEPTH] owned; place n % depth */
    /* Counts since creation; written under mu. The thread peeks at n_submitted without it. */
    _Atomic uint64_t n_submitted;
    uint64_t n_done;    /* guarded by mu */
    uint32_t n_waiters; /* for done_more, guarded by mu */
    bool is_asleep;     /* the thread waits for submitted_more, guarded by mu */
    bool stopping;      /* guarded by mu */
};

static uint64_t submitted_relaxed(const krn_stream *s)
{
    return atomic_load_explicit(&s->n_submitted, memory_order_relaxed);
}

static void spin_for_work(const krn_stream *s, uint64_t n_done)
{
    for (int i = 0; i < IDLE_SPINS && submitted_relaxed(s) == n_done; i++) {
        krn_cpu_pause();
    }
}

static void *stream_main(void *arg)
{
    krn_stream *s = arg;
    pthread_setname_np(pthread_self(), s->name);
    prctl(PR_SET_TIMERSLACK, (unsigned long)TIMER_SLACK_NS);
    krn_team *team = krn_cpu_device_team(s->device);
    for (uint64_t n = 0;; n++) {
        spin_for_work(s, n);
        pthread_mutex_lock(&s->mu);
        while (submitted_relaxed(s) == n && !s->stopping) {
            s->is_asleep = true;
            pthread_cond_wait(&s->submitted_more, &s->mu);
            s->is_asleep = false;
        }
        bool finished = submitted_relaxed(s) == n;
        pthread_mutex_unlock(&s->mu);
        if (finished) {
            return NULL;
        }
        closure *c = &s->queue[n % KRN_CPU_QUEUE_DEPTH];
        c->fn(c->args, team);
        pthread_mutex_lock(&s->mu);
        s->n_done = n + 1;
        if (s->n_waiters > 0) {
            pthread_cond_broadcast(&s->done_more);
        }
        pthread_mutex_unlock(&s->mu);
    }
}

static void wait_done_locked(krn_stream *s, uint64_t n)
{
    s->n_waiters++;
    while (s->n_done < n) {
        pthread_cond_wait(&s->done_more, &s->mu);
    }
    s->n_waiters--;
}

moe_status krn_cpu_submit(krn_stream *s, krn_cpu_fn fn, const void *args, size_t args_bytes,
                          moe_err *err)
{
    (void)err;
    MOE_ASSERT(args_bytes <= KRN_CPU_ARGS_BYTES);
    pthread_mutex_lock(&s->mu);
    uint64_t n = submitted_relaxed(s);
    if (n >= KRN_CPU_QUEUE_DEPTH) {
        wait_done_locked(s, n + 1 - KRN_CPU_QUEUE_DEPTH);
    }
    closure *c = &s->queue[n % KRN_CPU_QUEUE_DEPTH];
    c->fn = fn;
    memcpy(c->args, args, args_bytes);
    atomic_store_explicit(&s->n_submitted, n + 1, memory_order_relaxed);
    if (s->is_asleep) {
        pthread_cond_signal(&s->submitted_more);
    }
    pthread_mutex_unlock(&s->mu);
    return MOE_OK;
}

moe_status krn_cpu_stream_create(krn_device *d, const char *name, krn_stream **out, moe_err *err)
{
    moe_status st = MOE_OK;
    krn_stream *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "stream %s", name);
    }
    s->device = d;
    snprintf(s->name, sizeof s->name, "%s", name);
    s->queue = calloc(KRN_CPU_QUEUE_DEPTH, sizeof *s->queue);
    if (s->queue == NULL) {
        free(s);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "queue of stream %s", name);
    }
    pthread_mutex_init(&s->mu, NULL);
    pthread_cond_init(&s->submitted_more, NULL);
    pthread_cond_init(&s->done_more, NULL);
    int rc = pthread_create(&s->thread, NULL, stream_main, s);
    if (rc != 0) {
        st = MOE_FAIL_NATIVE(err, MOE_ERR_NO_MEMORY, MOE_LAYER_ERRNO, rc, "thread of stream %s",
                             name);
        goto fail;
    }
    *out = s;
    return MOE_OK;
fail:
    pthread_cond_destroy(&s->done_more);
    pthread_cond_destroy(&s->submitted_more);
    pthread_mutex_destroy(&s->mu);
    free(s->queue);
    free(s);
    return st;
}

void krn_cpu_stream_destroy(krn_stream *s)
{
    if (s == NULL) {
        return;
    }
    pthread_mutex_lock(&s->mu);
    s->stopping = true;
    pthread_cond_signal(&s->submitted_more);
    pthread_mutex_unlock(&s->mu);
    pthread_join(s->thread, NULL);
    pthread_cond_destroy(&s->done_more);
    pthread_cond_destroy(&s->submitted_more);
    pthread_mutex_destroy(&s->mu);
    free(s->queue);
    free(s);
}

moe_status krn_cpu_stream_sync(krn_stream *s, moe_err *err)
{
    (void)err;
    pthread_mutex_lock(&s->mu);
    wait_done_locked(s, submitted_relaxed(s));
    pthread_mutex_unlock(&s->mu);
    return MOE_OK;
}

/* ---- copies ---- */

typedef struct copy_args {
    krn_device *device;
    char *dst;
    const char *src;
    size_t bytes;
} copy_args;

/* Each piece arrives at the end of its time on the link: who reads early sees the old bytes. */
static void run_copy(const void *args, krn_team *team)
{
    (void)team;
    const copy_args *a = args;
    for (size_t off = 0; off < a->bytes; off += PIECE_BYTES) {
        size_t left = a->bytes - off;
        size_t piece = left < PIECE_BYTES ? left : PIECE_BYTES;
        krn_cpu_device_cross_link(a->device, piece, piece == left);
        memcpy(a->dst + off, a->src + off, piece);
    }
}

moe_status krn_cpu_copy_async(krn_stream *s, void *dst, const void *src, size_t bytes, moe_err *err)
{
    if (bytes == 0) {
        return MOE_OK;
    }
    if (dst == NULL || src == NULL) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "copy of %zu bytes from or to NULL", bytes);
    }
    copy_args a = {.device = s->device, .dst = dst, .src = src, .bytes = bytes};
    return krn_cpu_submit(s, run_copy, &a, sizeof a, err);
}

typedef struct fill_args {
    void *dst;
    size_t bytes;
    uint8_t value;
} fill_args;

static void run_fill(const void *args, krn_team *team)
{
    (void)team;
    const fill_args *a = args;
    memset(a->dst, a->value, a->bytes);
}

moe_status krn_cpu_fill_async(krn_stream *s, void *dst, uint8_t value, size_t bytes, moe_err *err)
{
    if (bytes == 0) {
        return MOE_OK;
    }
    if (dst == NULL) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "fill of %zu bytes at NULL", bytes);
    }
    fill_args a = {.dst = dst, .bytes = bytes, .value = value};
    return krn_cpu_submit(s, run_fill, &a, sizeof a, err);
}

/* ---- signals ---- */

typedef struct flag_args {
    uint32_t *flag;
    uint32_t value;
} flag_args;

static void futex_sleep(uint32_t *flag, uint32_t seen)
{
    struct timespec timeout = {.tv_nsec = FLAG_POLL_NS};
    /* Every outcome (woken, changed, timed out, interrupted) leads to another look. */
    syscall(SYS_futex, flag, FUTEX_WAIT_PRIVATE, seen, &timeout, NULL, 0);
}

static void futex_wake_all(uint32_t *flag)
{
    syscall(SYS_futex, flag, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* The acquire pairs with run_write's release, or with the host's own release store. */
static void run_wait(const void *args, krn_team *team)
{
    (void)team;
    const flag_args *a = args;
    for (int i = 0;; i++) {
        uint32_t seen = __atomic_load_n(a->flag, __ATOMIC_ACQUIRE);
        if (seen == a->value) {
            break;
        }
        if (i < FLAG_SPINS) {
            krn_cpu_pause();
        } else {
            futex_sleep(a->flag, seen);
        }
    }
    __atomic_store_n(a->flag, 0, __ATOMIC_RELEASE);
}

static void run_write(const void *args, krn_team *team)
{
    (void)team;
    const flag_args *a = args;
    __atomic_store_n(a->flag, a->value, __ATOMIC_RELEASE);
    futex_wake_all(a->flag);
}

static moe_status submit_flag(krn_stream *s, krn_cpu_fn fn, uint32_t *flag, uint32_t value,
                              moe_err *err)
{
    if (flag == NULL || (uintptr_t)flag % sizeof *flag != 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "flag at %p is not 4-byte aligned memory",
                        (void *)flag);
    }
    flag_args a = {.flag = flag, .value = value};
    return krn_cpu_submit(s, fn, &a, sizeof a, err);
}

moe_status krn_cpu_write32_async(krn_stream *s, uint32_t *flag, uint32_t value, moe_err *err)
{
    return submit_flag(s, run_write, flag, value, err);
}

moe_status krn_cpu_wait32_async(krn_stream *s, uint32_t *flag, uint32_t value, moe_err *err)
{
    return submit_flag(s, run_wait, flag, value, err);
}

/* ---- events ---- */

struct krn_event {
    _Atomic uint32_t n_recorded; /* relaxed: bumped by the recording thread */
    _Atomic uint32_t n_passed;   /* release after passed_ns; pairs with krn_cpu_event_query */
    _Atomic int64_t passed_ns;
};

typedef struct event_args {
    krn_event *event;
    uint32_t record;
} event_args;

static void run_event(const void *args, krn_team *team)
{
    (void)team;
    const event_args *a = args;
    atomic_store_explicit(&a->event->passed_ns, moe_now_ns(), memory_order_relaxed);
    atomic_store_explicit(&a->event->n_passed, a->record, memory_order_release);
}

moe_status krn_cpu_event_create(krn_device *d, krn_event **out, moe_err *err)
{
    (void)d;
    krn_event *e = calloc(1, sizeof *e);
    if (e == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "event");
    }
    *out = e;
    return MOE_OK;
}

void krn_cpu_event_destroy(krn_event *e)
{
    free(e);
}

moe_status krn_cpu_event_record(krn_event *e, krn_stream *s, moe_err *err)
{
    uint32_t record = atomic_fetch_add_explicit(&e->n_recorded, 1, memory_order_relaxed) + 1;
    event_args a = {.event = e, .record = record};
    return krn_cpu_submit(s, run_event, &a, sizeof a, err);
}

moe_status krn_cpu_event_query(krn_event *e, moe_err *err)
{
    uint32_t passed = atomic_load_explicit(&e->n_passed, memory_order_acquire);
    if (passed == atomic_load_explicit(&e->n_recorded, memory_order_relaxed)) {
        return MOE_OK;
    }
    return MOE_FAIL(err, MOE_ERR_AGAIN, "event has not passed");
}

int64_t krn_cpu_event_ns(krn_event *e)
{
    return atomic_load_explicit(&e->passed_ns, memory_order_relaxed);
}
