/* reverify.c - see reverify.h. */
#include "expert-store/server/reverify.h"

#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/lock.h"
#include "expert-store/reader/work_pool.h"

typedef enum phase { IDLE = 0, GIVEN, DONE } phase;

struct xs_reverify {
    const xs_model *model; /* borrowed */
    const char *slots;     /* borrowed */
    void *scratch;         /* [slot_bytes], owned; the thread's */
    int fd;                /* eventfd, owned; -1 */
    bool has_thread;
    pthread_t thread;
    moe_mutex mu;
    moe_cond changed;
    phase at; /* guarded by mu, like all below */
    bool stop;
    bool good;
    uint32_t expert, slot;
};

static void work_locked(xs_reverify *v) MOE_REQUIRES(v->mu)
{
    uint32_t expert = v->expert;
    const char *bytes = v->slots + (uint64_t)v->slot * v->model->slot_bytes;
    moe_mutex_unlock(&v->mu);
    bool good = xs_model_verify_expert(v->model, expert, bytes, v->scratch);
    moe_mutex_lock(&v->mu);
    v->good = good;
    v->at = DONE;
    xs_wake(v->fd);
}

static void *run(void *arg)
{
    xs_reverify *v = arg;
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), 19); /* of this thread only, on Linux */
    moe_mutex_lock(&v->mu);
    while (!v->stop) {
        if (v->at == GIVEN) {
            work_locked(v);
        } else {
            moe_cond_wait(&v->changed, &v->mu);
        }
    }
    moe_mutex_unlock(&v->mu);
    return NULL;
}

moe_status xs_reverify_create(const xs_model *model, const void *slots, xs_reverify **out,
                              moe_err *err)
{
    xs_reverify *v = calloc(1, sizeof *v);
    if (v == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "re-hashing of slots");
    }
    v->model = model;
    v->slots = slots;
    moe_mutex_init(&v->mu);
    moe_cond_init(&v->changed);
    moe_status st = xs_wake_open(&v->fd, err);
    if (st != MOE_OK) {
        goto fail;
    }
    v->scratch = malloc(model->slot_bytes);
    if (v->scratch == NULL) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "re-hashing of slots");
        goto fail;
    }
    int code = pthread_create(&v->thread, NULL, run, v);
    if (code != 0) {
        st =
            MOE_FAIL_NATIVE(err, MOE_ERR_NO_MEMORY, MOE_LAYER_ERRNO, code, "cannot start a thread");
        goto fail;
    }
    v->has_thread = true;
    *out = v;
    return MOE_OK;
fail:
    xs_reverify_destroy(v);
    return st;
}

void xs_reverify_destroy(xs_reverify *v)
{
    if (v == NULL) {
        return;
    }
    if (v->has_thread) {
        moe_mutex_lock(&v->mu);
        v->stop = true;
        moe_cond_signal(&v->changed);
        moe_mutex_unlock(&v->mu);
        pthread_join(v->thread, NULL);
    }
    if (v->fd >= 0) {
        close(v->fd);
    }
    moe_cond_fini(&v->changed);
    moe_mutex_fini(&v->mu);
    free(v->scratch);
    free(v);
}

int xs_reverify_fd(const xs_reverify *v)
{
    return v->fd;
}

void xs_reverify_start(xs_reverify *v, uint32_t expert, uint32_t slot)
{
    moe_mutex_lock(&v->mu);
    MOE_ASSERT(v->at == IDLE);
    v->expert = expert;
    v->slot = slot;
    v->at = GIVEN;
    moe_cond_signal(&v->changed);
    moe_mutex_unlock(&v->mu);
}

bool xs_reverify_take(xs_reverify *v, uint32_t *out_expert, uint32_t *out_slot, bool *out_good)
{
    xs_wake_clear(v->fd);
    moe_mutex_lock(&v->mu);
    bool done = v->at == DONE;
    if (done) {
        *out_expert = v->expert;
        *out_slot = v->slot;
        *out_good = v->good;
        v->at = IDLE;
    }
    moe_mutex_unlock(&v->mu);
    return done;
}
