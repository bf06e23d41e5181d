/* work_pool.c - one mutex, two lists. Owns its threads; created, fed and destroyed by the extent
 * reader on the event-loop thread. At shutdown the threads finish the queue, then leave. */
#include "expert-store/reader/work_pool.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct work_list {
    xs_work *head, *tail;
} work_list;

struct xs_work_pool {
    pthread_mutex_t mu;
    pthread_cond_t queued; /* the queue grew, or leaving was set */
    pthread_cond_t done;   /* the done list became non-empty */
    work_list queue;       /* guarded by mu */
    work_list finished;    /* guarded by mu */
    bool leaving;          /* guarded by mu */
    int wake_fd;           /* borrowed until destroy */
    uint32_t n_threads;    /* started so far */
    pthread_t *threads;    /* [n_threads] owned */
};

moe_status xs_wake_open(int *out_fd, moe_err *err)
{
    *out_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int code = errno;
    return *out_fd >= 0
               ? MOE_OK
               : MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code, "cannot make an eventfd");
}

void xs_wake(int wake_fd)
{
    uint64_t one = 1;
    ssize_t written = write(wake_fd, &one, sizeof one);
    (void)written; /* fails only when the counter is full, and then the poller wakes anyhow */
}

void xs_wake_clear(int wake_fd)
{
    uint64_t count = 0;
    ssize_t n = read(wake_fd, &count, sizeof count);
    (void)n; /* EAGAIN: nobody woke it */
}

static void append(work_list *list, xs_work *w)
{
    w->next = NULL;
    if (list->tail == NULL) {
        list->head = w;
    } else {
        list->tail->next = w;
    }
    list->tail = w;
}

static xs_work *pop(work_list *list)
{
    xs_work *w = list->head;
    if (w != NULL) {
        list->head = w->next;
        list->tail = list->head == NULL ? NULL : list->tail;
    }
    return w;
}

static void *thread_main(void *arg)
{
    xs_work_pool *p = arg;
    pthread_mutex_lock(&p->mu);
    for (;;) {
        xs_work *w = pop(&p->queue);
        if (w == NULL && p->leaving) {
            break;
        }
        if (w == NULL) {
            pthread_cond_wait(&p->queued, &p->mu);
            continue;
        }
        pthread_mutex_unlock(&p->mu);
        w->run(w);
        pthread_mutex_lock(&p->mu);
        bool first = p->finished.head == NULL;
        append(&p->finished, w);
        if (first) {
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->mu);
            /* Only the first needs to wake: the taker clears the eventfd before it takes the
             * list, so a later one is either in what it takes or first again. */
            xs_wake(p->wake_fd);
            pthread_mutex_lock(&p->mu);
        }
    }
    pthread_mutex_unlock(&p->mu);
    return NULL;
}

static moe_status start_threads(xs_work_pool *p, uint32_t n_threads, const char *name, moe_err *err)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited by the threads */
    int rc = 0;
    while (rc == 0 && p->n_threads < n_threads) {
        rc = pthread_create(&p->threads[p->n_threads], NULL, thread_main, p);
        if (rc == 0) {
            pthread_setname_np(p->threads[p->n_threads], name);
            p->n_threads++;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_NO_MEMORY, MOE_LAYER_ERRNO, rc,
                               "cannot start thread %u of %u of pool %s", p->n_threads + 1,
                               n_threads, name);
    }
    return MOE_OK;
}

moe_status xs_work_pool_create(uint32_t n_threads, const char *name, int wake_fd,
                               xs_work_pool **out, moe_err *err)
{
    xs_work_pool *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "thread pool %s", name);
    }
    pthread_mutex_init(&p->mu, NULL);
    pthread_cond_init(&p->queued, NULL);
    pthread_cond_init(&p->done, NULL);
    p->wake_fd = wake_fd;
    moe_status st = MOE_OK;
    p->threads = calloc(n_threads, sizeof *p->threads);
    if (p->threads == NULL) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%u threads of pool %s", n_threads, name);
        goto fail;
    }
    st = start_threads(p, n_threads, name, err);
    if (st != MOE_OK) {
        goto fail;
    }
    *out = p;
    return MOE_OK;
fail:
    xs_work_pool_destroy(p);
    return st;
}

void xs_work_pool_destroy(xs_work_pool *p)
{
    if (p == NULL) {
        return;
    }
    pthread_mutex_lock(&p->mu);
    p->leaving = true;
    pthread_cond_broadcast(&p->queued);
    pthread_mutex_unlock(&p->mu);
    for (uint32_t i = 0; i < p->n_threads; i++) {
        pthread_join(p->threads[i], NULL);
    }
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->queued);
    pthread_mutex_destroy(&p->mu);
    free(p->threads);
    free(p);
}

void xs_work_pool_submit(xs_work_pool *p, xs_work *w)
{
    pthread_mutex_lock(&p->mu);
    append(&p->queue, w);
    pthread_cond_signal(&p->queued);
    pthread_mutex_unlock(&p->mu);
}

xs_work *xs_work_pool_take_done(xs_work_pool *p)
{
    pthread_mutex_lock(&p->mu);
    xs_work *done = p->finished.head;
    p->finished = (work_list){0};
    pthread_mutex_unlock(&p->mu);
    return done;
}

void xs_work_pool_wait_done(xs_work_pool *p)
{
    pthread_mutex_lock(&p->mu);
    while (p->finished.head == NULL) {
        pthread_cond_wait(&p->done, &p->mu);
    }
    pthread_mutex_unlock(&p->mu);
}
