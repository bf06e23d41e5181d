/* jobs.c - see jobs.h. */
#include "gpu-worker/quality/jobs.h"

#include <stdlib.h>

#include "common/lock.h"

struct gw_jobs_group {
    moe_mutex mu;
    moe_cond changed;
    uint32_t n_open;   /* guarded by mu */
    moe_err first_err; /* guarded by mu; status MOE_OK: none */
};

static void on_token(void *user, int32_t token, uint32_t index)
{
    gw_job *j = user;
    if (index < j->max_tokens) {
        j->ids[index] = token;
        j->n_ids = index + 1;
    }
}

static void on_done(void *user, gw_finish finish, const moe_err *err)
{
    gw_job *j = user;
    struct gw_jobs_group *g = j->group;
    j->finish = finish;
    moe_mutex_lock(&g->mu);
    if (finish == GW_FINISH_ERROR && g->first_err.status == MOE_OK && err != NULL) {
        g->first_err = *err;
    }
    g->n_open--;
    moe_cond_broadcast(&g->changed);
    moe_mutex_unlock(&g->mu);
}

/* Waits until fewer than `most` are open. */
static void wait_below(struct gw_jobs_group *g, uint32_t most)
{
    moe_mutex_lock(&g->mu);
    while (g->n_open >= most) {
        moe_cond_wait(&g->changed, &g->mu);
    }
    moe_mutex_unlock(&g->mu);
}

static uint32_t count_open(struct gw_jobs_group *g, int change)
{
    moe_mutex_lock(&g->mu);
    g->n_open += (uint32_t)change;
    uint32_t n = g->n_open;
    moe_mutex_unlock(&g->mu);
    return n;
}

static moe_status submit(gw_engine *engine, struct gw_jobs_group *g, gw_job *j, moe_err *err)
{
    j->group = g;
    j->n_ids = 0;
    j->ids = calloc(j->max_tokens, sizeof *j->ids);
    if (j->ids == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "an answer of %u tokens", j->max_tokens);
    }
    const gw_request r = {.input_ids = j->input,
                          .n_input = j->n_input,
                          .forced = j->forced,
                          .n_forced = j->n_forced,
                          .max_tokens = j->max_tokens,
                          .top_p = 1.0f,
                          .record = j->record,
                          .on_token = on_token,
                          .on_done = on_done,
                          .user = j};
    const gw_record wanted = j->record != NULL ? *j->record : (gw_record){.want_logits = false};
    for (;;) {
        uint32_t n_open = count_open(g, +1);
        moe_status st = gw_engine_submit(engine, &r, NULL, err);
        if (st == MOE_OK) {
            return st;
        }
        count_open(g, -1);
        if (st != MOE_ERR_BUSY || n_open == 1) {
            return st;
        }
        wait_below(g, n_open - 1); /* one of ours leaves the queue */
        if (j->record != NULL) {
            *j->record = wanted; /* the refusal emptied it */
        }
    }
}

moe_status gw_jobs_run(gw_engine *engine, gw_job *jobs, uint32_t n, moe_err *err)
{
    struct gw_jobs_group g = {.n_open = 0};
    moe_mutex_init(&g.mu);
    moe_cond_init(&g.changed);
    moe_status st = MOE_OK;
    for (uint32_t i = 0; i < n && st == MOE_OK; i++) {
        st = submit(engine, &g, &jobs[i], err);
    }
    wait_below(&g, 1);
    if (st == MOE_OK && g.first_err.status != MOE_OK) {
        st = g.first_err.status;
        if (err != NULL) {
            *err = g.first_err;
        }
    }
    moe_cond_fini(&g.changed);
    moe_mutex_fini(&g.mu);
    return st;
}

void gw_jobs_fini(gw_job *jobs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        free(jobs[i].ids);
        jobs[i].ids = NULL;
    }
}
