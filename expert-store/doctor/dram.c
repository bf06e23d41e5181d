/* dram.c - see dram.h. */
#include "expert-store/doctor/dram.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

enum { MAX_THREADS = 64, BUFFER_BYTES = 64 << 20 /* far above a core's share of any cache */ };

typedef struct copier {
    pthread_t thread;
    char *from, *to; /* [BUFFER_BYTES] owned */
    double seconds;
    double gb_per_s;
} copier;

/* Pages are touched first; the copy of the last round is what the next one reads. */
static void *copy_until(void *arg)
{
    copier *c = arg;
    memset(c->from, 1, BUFFER_BYTES);
    memset(c->to, 2, BUFFER_BYTES);
    uint64_t bytes = 0;
    int64_t from_ns = moe_now_ns();
    int64_t until_ns = from_ns + (int64_t)(c->seconds * 1e9);
    int64_t now_ns = from_ns;
    while (now_ns < until_ns) {
        memcpy(c->to, c->from, BUFFER_BYTES);
        char *other = c->to;
        c->to = c->from;
        c->from = other;
        bytes += BUFFER_BYTES;
        now_ns = moe_now_ns();
    }
    c->gb_per_s = now_ns > from_ns ? (double)bytes / (double)(now_ns - from_ns) : 0;
    return NULL;
}

moe_status xs_dram_measure(uint32_t n_threads, double seconds, double *out_gb_per_s, moe_err *err)
{
    copier copiers[MAX_THREADS] = {{0}};
    uint32_t wanted = n_threads < MAX_THREADS ? n_threads : MAX_THREADS;
    uint32_t n = 0;
    double sum = 0;
    for (; n < wanted; n++) {
        copier *c = &copiers[n];
        c->seconds = seconds;
        c->from = malloc(BUFFER_BYTES);
        c->to = malloc(BUFFER_BYTES);
        if (c->from == NULL || c->to == NULL ||
            pthread_create(&c->thread, NULL, copy_until, c) != 0) {
            free(c->from);
            free(c->to);
            break;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        (void)pthread_join(copiers[i].thread, NULL);
        sum += copiers[i].gb_per_s;
        free(copiers[i].from);
        free(copiers[i].to);
    }
    if (n < wanted) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "only %u of %u threads could copy", n, wanted);
    }
    *out_gb_per_s = sum;
    return MOE_OK;
}
