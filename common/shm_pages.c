/* shm_pages.c - see shm_pages.h. Called by moe_shm_populate only; its threads take the next huge
 * page to make from one counter and are joined before it returns. */
#include "common/shm_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1; older C libraries do not name it */
#endif

enum {
    MAX_THREADS = 8,      /* zeroing: enough for the memory's bandwidth */
    PAGES_PER_THREAD = 8, /* fewer, 3 ms of zeroing, are not worth a thread */
    MAX_FAILURES = 32,    /* then memory is fragmented, and each further try costs milliseconds */
};

typedef struct collapse {
    int fd;
    char *base;
    uint64_t end;
    /* Relaxed: counters only; pthread_join orders what the threads did. */
    _Atomic uint64_t next, n_made, n_failed;
} collapse;

/* 0 or an errno. A huge page grows around an ordinary one: MADV_COLLAPSE refuses a range without
 * any. */
static int make_page(const collapse *c, uint64_t page)
{
    uint64_t off = page * MOE_HUGE_PAGE_BYTES;
    int code = posix_fallocate(c->fd, (off_t)off, 1);
    if (code == 0 && madvise(c->base + off, MOE_HUGE_PAGE_BYTES, MADV_COLLAPSE) != 0) {
        code = errno;
    }
    return code;
}

static void *thread_main(void *arg)
{
    collapse *c = arg;
    while (atomic_load_explicit(&c->n_failed, memory_order_relaxed) < MAX_FAILURES) {
        uint64_t page = atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed);
        if (page >= c->end) {
            break;
        }
        int code = make_page(c, page);
        if (code == 0) {
            atomic_fetch_add_explicit(&c->n_made, 1, memory_order_relaxed);
        } else { /* EINVAL: this kernel never will */
            atomic_fetch_add_explicit(&c->n_failed, code == EINVAL ? MAX_FAILURES : 1,
                                      memory_order_relaxed);
        }
    }
    return NULL;
}

static uint64_t count_threads(uint64_t n_pages)
{
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t n = n_cpus < 1 ? 1 : n_cpus > MAX_THREADS ? MAX_THREADS : (uint64_t)n_cpus;
    uint64_t useful = n_pages / PAGES_PER_THREAD;
    return useful < n ? useful : n;
}

uint64_t moe_shm_collapse(int fd, char *base, uint64_t begin, uint64_t end, uint32_t *refused)
{
    collapse c = {.fd = fd, .base = base, .end = end, .next = begin, .n_failed = *refused};
    pthread_t threads[MAX_THREADS];
    uint64_t n_wanted = count_threads(end - begin);
    uint64_t n_threads = 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited by the threads */
    while (n_threads + 1 < n_wanted &&           /* the caller is one of them */
           pthread_create(&threads[n_threads], NULL, thread_main, &c) == 0) {
        n_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    thread_main(&c);
    for (uint64_t i = 0; i < n_threads; i++) {
        pthread_join(threads[i], NULL);
    }
    *refused = (uint32_t)atomic_load_explicit(&c.n_failed, memory_order_relaxed);
    return atomic_load_explicit(&c.n_made, memory_order_relaxed) * MOE_HUGE_PAGE_BYTES;
}
