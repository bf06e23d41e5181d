/* team.c - see team.h. One open job at a time; helpers join it, take pieces, leave.
 *
 * The caller opens the job, works too, closes it, and waits until every helper that joined has
 * left. A helper that wakes late finds the job closed and goes back to sleep: the caller never
 * waits for a thread that has not started.
 */
#include "kernels/backend/team.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "kernels/backend/cpu_pause.h"

enum { IDLE_SPINS = 4000 }; /* some 40 us: the usual gap between two loops of a step */

struct krn_team {
    pthread_mutex_t user; /* held by the stream whose loop runs; only ever try-locked */

    pthread_mutex_t mu;
    pthread_cond_t opened; /* a job was opened, or the team stops */
    pthread_cond_t left;   /* the last helper left a closed job */
    bool is_open;          /* guarded by mu */
    bool stopping;         /* guarded by mu */
    uint32_t n_inside;     /* helpers in the job, guarded by mu */
    /* Written under mu; read without it only to decide whether looking under mu is worth it. */
    _Atomic uint32_t generation;

    /* The job: written by the caller before it opens it, constant while a helper is inside. */
    krn_team_fn fn;
    void *ctx;
    uint32_t n, grain;
    _Atomic uint32_t next_piece; /* relaxed: only hands out numbers */

    uint32_t n_helpers;
    pthread_t *helpers; /* [n_helpers] owned */
};

static void take_pieces(krn_team *t)
{
    uint32_t n_pieces = (t->n + t->grain - 1) / t->grain;
    for (;;) {
        uint32_t piece = atomic_fetch_add_explicit(&t->next_piece, 1, memory_order_relaxed);
        if (piece >= n_pieces) {
            return;
        }
        uint32_t begin = piece * t->grain;
        uint32_t end = t->n - begin < t->grain ? t->n : begin + t->grain;
        t->fn(t->ctx, begin, end);
    }
}

static void spin_for_job(krn_team *t, uint32_t seen)
{
    for (int i = 0; i < IDLE_SPINS; i++) {
        if (atomic_load_explicit(&t->generation, memory_order_relaxed) != seen) {
            return;
        }
        krn_cpu_pause();
    }
}

static void *helper_main(void *arg)
{
    krn_team *t = arg;
    uint32_t seen = 0;
    for (;;) {
        spin_for_job(t, seen);
        pthread_mutex_lock(&t->mu);
        while (!t->stopping && atomic_load_explicit(&t->generation, memory_order_relaxed) == seen) {
            pthread_cond_wait(&t->opened, &t->mu);
        }
        seen = atomic_load_explicit(&t->generation, memory_order_relaxed);
        bool stopping = t->stopping;
        bool joined = t->is_open;
        t->n_inside += joined ? 1 : 0;
        pthread_mutex_unlock(&t->mu);
        if (stopping) {
            return NULL; /* destroy is only called between loops: nothing was joined */
        }
        if (!joined) {
            continue;
        }
        take_pieces(t);
        pthread_mutex_lock(&t->mu);
        t->n_inside--;
        if (t->n_inside == 0) {
            pthread_cond_signal(&t->left);
        }
        pthread_mutex_unlock(&t->mu);
    }
}

void krn_team_for(krn_team *t, uint32_t n, uint32_t grain, krn_team_fn fn, void *ctx)
{
    if (n <= grain || t->n_helpers == 0 || pthread_mutex_trylock(&t->user) != 0) {
        fn(ctx, 0, n);
        return;
    }
    t->fn = fn;
    t->ctx = ctx;
    t->n = n;
    t->grain = grain;
    atomic_store_explicit(&t->next_piece, 0, memory_order_relaxed);

    pthread_mutex_lock(&t->mu);
    t->is_open = true;
    atomic_fetch_add_explicit(&t->generation, 1, memory_order_relaxed);
    pthread_cond_broadcast(&t->opened);
    pthread_mutex_unlock(&t->mu);

    take_pieces(t);

    pthread_mutex_lock(&t->mu);
    t->is_open = false;
    while (t->n_inside > 0) {
        pthread_cond_wait(&t->left, &t->mu);
    }
    pthread_mutex_unlock(&t->mu);
    pthread_mutex_unlock(&t->user);
}

moe_status krn_team_create(uint32_t n_threads, krn_team **out, moe_err *err)
{
    moe_status st = MOE_OK;
    krn_team *t = calloc(1, sizeof *t);
    if (t == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a team of %u threads", n_threads);
    }
    pthread_mutex_init(&t->user, NULL);
    pthread_mutex_init(&t->mu, NULL);
    pthread_cond_init(&t->opened, NULL);
    pthread_cond_init(&t->left, NULL);
    t->helpers = calloc(n_threads, sizeof *t->helpers);
    if (t->helpers == NULL) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a team of %u threads", n_threads);
        goto fail;
    }
    for (uint32_t i = 1; i < n_threads; i++) {
        int rc = pthread_create(&t->helpers[t->n_helpers], NULL, helper_main, t);
        if (rc != 0) {
            st = MOE_FAIL_NATIVE(err, MOE_ERR_NO_MEMORY, MOE_LAYER_ERRNO, rc,
                                 "start helper thread %u of %u", i, n_threads - 1);
            goto fail;
        }
        t->n_helpers++;
    }
    *out = t;
    return MOE_OK;
fail:
    krn_team_destroy(t);
    return st;
}

void krn_team_destroy(krn_team *t)
{
    if (t == NULL) {
        return;
    }
    pthread_mutex_lock(&t->mu);
    t->stopping = true;
    pthread_cond_broadcast(&t->opened);
    pthread_mutex_unlock(&t->mu);
    for (uint32_t i = 0; i < t->n_helpers; i++) {
        pthread_join(t->helpers[i], NULL);
    }
    pthread_cond_destroy(&t->left);
    pthread_cond_destroy(&t->opened);
    pthread_mutex_destroy(&t->mu);
    pthread_mutex_destroy(&t->user);
    free(t->helpers);
    free(t);
}
