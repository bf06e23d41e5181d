/* slot_memory.c - see slot_memory.h. */
#include "expert-store/server/slot_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/lock.h"
#include "expert-store/reader/work_pool.h"

enum {
    PIECE_BYTES = 64 << 20, /* 4 to 60 ms of work; a multiple of any huge page used here */
    NICENESS = 10
};

struct xs_slot_memory {
    xs_slot_memory_cfg cfg;
    uint64_t made_bytes; /* of adopted slots */
    int fd;              /* eventfd, owned; -1 */
    bool has_thread;
    pthread_t thread;
    uint64_t done; /* bytes that are made and locked; the thread's */
    moe_mutex mu;
    moe_cond changed;
    bool stop; /* guarded by mu, like all below */
    bool news;
    uint64_t wanted; /* bytes */
    int64_t begin_ns;
    uint64_t huge_before; /* of the region, when what is reported began */
    xs_slot_memory_report report;
};

/* What is not locked works, more slowly: said in the report, and not tried again. */
static bool lock_piece(const xs_slot_memory *m, uint64_t from, uint64_t to, moe_err *why)
{
    bool wanted = m->cfg.pin && m->report.not_pinned[0] == '\0'; /* only this thread writes it */
    return wanted && moe_shm_lock_pages(m->cfg.slots, from, to, why) == MOE_OK;
}

static uint32_t n_slots_in(const xs_slot_memory *m, uint64_t bytes)
{
    uint64_t most = bytes > m->made_bytes ? bytes : m->made_bytes;
    return (uint32_t)(most / m->cfg.slot_bytes);
}

/* The piece after `done`, of what is wanted: pages, lock, news. */
static moe_status make_piece(xs_slot_memory *m, uint64_t wanted, moe_err *err)
{
    uint64_t piece_end = (m->done / m->cfg.piece_bytes + 1) * m->cfg.piece_bytes;
    uint64_t end = wanted < piece_end ? wanted : piece_end;
    uint64_t from = m->done > m->made_bytes ? m->done : m->made_bytes;
    moe_err why = {0};
    moe_status st = from < end ? moe_shm_populate(m->cfg.slots, from, end, err) : MOE_OK;
    if (st != MOE_OK) {
        moe_status released = moe_shm_release(m->cfg.slots, from, end, NULL);
        (void)released; /* some pages may have come; if they stay, the next store gives them back */
    }
    bool locked = st == MOE_OK && lock_piece(m, m->done, end, &why);
    moe_mutex_lock(&m->mu);
    xs_slot_memory_report *r = &m->report;
    if (st == MOE_OK) {
        m->done = end;
        r->n_made = n_slots_in(m, end);
        r->made_bytes += from < end ? end - from : 0;
        r->huge_bytes = m->cfg.slots->huge_bytes - m->huge_before;
        if (why.status != MOE_OK) {
            snprintf(r->not_pinned, sizeof r->not_pinned, "%.299s", why.text);
        }
        r->pinned = locked;
    } else if (err != NULL) {
        r->failure = *err;
    }
    r->ended = st != MOE_OK || end == m->wanted;
    r->took_ns = moe_now_ns() - m->begin_ns;
    m->news = true;
    moe_mutex_unlock(&m->mu);
    xs_wake(m->fd);
    return st;
}

/* Waits until there is something to make. False: the end. */
static bool goes_on(xs_slot_memory *m, uint64_t *out_wanted)
{
    moe_mutex_lock(&m->mu);
    int64_t until_ns = moe_now_ns() + m->cfg.pause_ns;
    while (m->cfg.pause_ns > 0 && !m->stop && moe_cond_wait_until(&m->changed, &m->mu, until_ns)) {
    }
    while (!m->stop && m->report.ended) {
        moe_cond_wait(&m->changed, &m->mu);
    }
    bool on = !m->stop;
    *out_wanted = m->wanted;
    moe_mutex_unlock(&m->mu);
    return on;
}

static void *run(void *arg)
{
    xs_slot_memory *m = arg;
    uint64_t wanted = 0;
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), NICENESS); /* of this thread only, on Linux */
    while (goes_on(m, &wanted)) {
        moe_err err = {0};
        (void)make_piece(m, wanted, &err); /* the report says it */
    }
    return NULL;
}

static moe_status start_thread(xs_slot_memory *m, moe_err *err)
{
    int code = pthread_create(&m->thread, NULL, run, m);
    m->has_thread = code == 0;
    return code == 0 ? MOE_OK
                     : MOE_FAIL_NATIVE(err, MOE_ERR_NO_MEMORY, MOE_LAYER_ERRNO, code,
                                       "cannot start a thread");
}

moe_status xs_slot_memory_create(const xs_slot_memory_cfg *cfg, xs_slot_memory **out, moe_err *err)
{
    xs_slot_memory *m = calloc(1, sizeof *m);
    if (m == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "the maker of slots");
    }
    m->cfg = *cfg;
    m->cfg.piece_bytes = cfg->piece_bytes > 0 ? cfg->piece_bytes : PIECE_BYTES;
    m->made_bytes = cfg->n_made * cfg->slot_bytes;
    m->wanted = cfg->n_wanted * cfg->slot_bytes;
    m->begin_ns = moe_now_ns();
    moe_mutex_init(&m->mu);
    moe_cond_init(&m->changed);
    moe_status st = xs_wake_open(&m->fd, err);
    if (st == MOE_OK) {
        st = make_piece(m, m->wanted, err);
    }
    if (st == MOE_OK) {
        st = start_thread(m, err);
    }
    if (st != MOE_OK) {
        xs_slot_memory_destroy(m);
        return st;
    }
    *out = m;
    return MOE_OK;
}

void xs_slot_memory_destroy(xs_slot_memory *m)
{
    if (m == NULL) {
        return;
    }
    if (m->has_thread) {
        moe_mutex_lock(&m->mu);
        m->stop = true;
        moe_cond_signal(&m->changed);
        moe_mutex_unlock(&m->mu);
        pthread_join(m->thread, NULL);
    }
    if (m->fd >= 0) {
        close(m->fd);
    }
    moe_cond_fini(&m->changed);
    moe_mutex_fini(&m->mu);
    free(m);
}

void xs_slot_memory_grow(xs_slot_memory *m, uint32_t n_wanted)
{
    moe_mutex_lock(&m->mu);
    MOE_ASSERT(n_wanted >= m->report.n_made);
    m->wanted = n_wanted * m->cfg.slot_bytes;
    if (m->report.ended) {
        m->begin_ns = moe_now_ns();
        m->report.made_bytes = 0;
        m->huge_before += m->report.huge_bytes;
    }
    m->report.failure = (moe_err){0};
    m->report.ended = m->done == m->wanted;
    moe_cond_signal(&m->changed);
    moe_mutex_unlock(&m->mu);
}

int xs_slot_memory_fd(const xs_slot_memory *m)
{
    return m->fd;
}

bool xs_slot_memory_look(xs_slot_memory *m, xs_slot_memory_report *out)
{
    xs_wake_clear(m->fd);
    moe_mutex_lock(&m->mu);
    bool news = m->news;
    m->news = false;
    *out = m->report;
    moe_mutex_unlock(&m->mu);
    return news;
}
