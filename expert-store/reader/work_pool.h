/* work_pool.h - threads that run small pieces of work and tell an eventfd when some are done.
 *
 *   caller --submit--> queue --run() on a pool thread--> done list --take_done--> caller
 *
 * Used three times by the extent reader: to verify chunks, to pread, to compute synthetic experts.
 * Work is intrusive: nothing is allocated after creation. Work belongs to the pool from submit
 * until take_done returned it.
 * Threads: submit, take_done, wait_done and destroy from one thread, the owner's; run() on the
 * pool's, which have every signal blocked.
 */
#ifndef XS_WORK_POOL_H
#define XS_WORK_POOL_H

#include <stdint.h>

#include "common/status.h"

typedef struct xs_work {
    struct xs_work *next; /* the pool's while it has the work; then the rest of the done list */
    void (*run)(struct xs_work *self);
} xs_work;

typedef struct xs_work_pool xs_work_pool; /* opaque */

/* name: at most 15 bytes, seen in ps -L. wake_fd: a non-blocking eventfd, borrowed, written
 * whenever the done list became non-empty. */
MOE_MUST_CHECK moe_status xs_work_pool_create(uint32_t n_threads, const char *name, int wake_fd,
                                              xs_work_pool **out, moe_err *err);
/* Runs what is still queued, joins; accepts NULL. */
void xs_work_pool_destroy(xs_work_pool *p);
void xs_work_pool_submit(xs_work_pool *p, xs_work *w);
/* All that is done, first done first, linked by next; NULL when nothing is. */
xs_work *xs_work_pool_take_done(xs_work_pool *p);
/* Blocks until take_done would return something; work must be queued or running. */
void xs_work_pool_wait_done(xs_work_pool *p);
/* A non-blocking eventfd, the caller's to close; -1 on failure. */
MOE_MUST_CHECK moe_status xs_wake_open(int *out_fd, moe_err *err);
/* Adds 1 to it, so that its poller looks again. */
void xs_wake(int wake_fd);
/* Before looking: what comes after the look wakes anew. */
void xs_wake_clear(int wake_fd);

#endif
