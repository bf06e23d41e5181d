/* fetch_thread.c - see fetch_thread.h. */
#include "gpu-worker/fetch/fetch_thread.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/prctl.h>

#include "common/clock.h"
#include "common/lock.h"

static const int64_t spin_ns = 300 * MOE_NS_PER_US; /* since progress, then sleep between looks */
static const int64_t nap_ns = 20 * MOE_NS_PER_US;
static const int64_t park_after_ns = 3 * MOE_NS_PER_MS; /* without a step */
static const int64_t park_ns = 100 * MOE_NS_PER_MS;     /* then look at the store */
enum { TIMER_SLACK_NS = 1000 };                         /* the default would triple nap_ns */

struct gw_fetch {
    gw_fetch_cfg cfg;
    gw_waves *waves; /* owned */
    pthread_t thread;
    bool thread_runs;

    moe_mutex mu;
    moe_cond wake;   /* the thread, when parked */
    moe_cond settle; /* the engine thread: a step has ended, or filling has */

    /* The step the engine thread wants, written before begun (release); read after it (acquire). */
    uint64_t step;
    moe_stack stack;
    uint32_t n_waves;
    _Atomic uint64_t begun, end_asked; /* step numbers */
    _Atomic uint64_t ended; /* release: pairs with the engine's acquire; results are there */
    _Atomic bool stop;
    _Atomic bool store_alive, store_lost;

    /* Results, written before ended (or filled) and read after. */
    bool filled; /* guarded by mu */
    moe_err result;
    moe_status result_status;

    /* The thread's own. */
    uint64_t current; /* step; 0: none is open */
    uint32_t n_mails; /* read so far, modulo 2^32 as the device counts */
    int64_t progress_ns;
    moe_err client_err; /* status MOE_OK: not lost */
};

/* ---- the thread ------------------------------------------------------------------------------ */

static bool adopt_step(gw_fetch *f)
{
    uint64_t begun = atomic_load_explicit(&f->begun, memory_order_acquire);
    if (f->current != 0 || begun == atomic_load_explicit(&f->ended, memory_order_relaxed)) {
        return false;
    }
    f->current = begun;
    gw_waves_begin(f->waves, f->step, f->stack, f->n_waves);
    return true;
}

static bool read_mails(gw_fetch *f)
{
    bool any = false;
    for (;;) {
        uint32_t seq = f->n_mails + 1;
        const krn_mail *m = &f->cfg.ring[seq % f->cfg.depth];
        /* acquire: pairs with the publisher's release; the payload is complete */
        if (atomic_load_explicit(&m->seq, memory_order_acquire) != seq) {
            return any;
        }
        gw_waves_mail(f->waves, m);
        f->n_mails = seq;
        any = true;
    }
}

static void tell_engine(gw_fetch *f)
{
    moe_mutex_lock(&f->mu);
    moe_cond_broadcast(&f->settle);
    moe_mutex_unlock(&f->mu);
}

static void close_step(gw_fetch *f)
{
    gw_waves_end(f->waves);
    f->result_status = gw_waves_health(f->waves, &f->result);
    if (f->result_status == MOE_OK && f->client_err.status != MOE_OK) {
        f->result = f->client_err;
        f->result_status = f->client_err.status;
    }
    atomic_store_explicit(&f->ended, f->current, memory_order_release);
    f->current = 0;
    tell_engine(f);
}

static void poll_store(gw_fetch *f, int64_t now_ns)
{
    gw_store_client *c = f->cfg.waves.client;
    if (f->client_err.status != MOE_OK) {
        return;
    }
    if (gw_store_client_poll(c, now_ns, &f->client_err) != MOE_OK) {
        atomic_store_explicit(&f->store_alive, false, memory_order_relaxed);
        atomic_store_explicit(&f->store_lost, true, memory_order_relaxed);
        return;
    }
    atomic_store_explicit(&f->store_alive, gw_store_client_store_alive(c), memory_order_relaxed);
}

/* One look at everything; true if anything moved. */
static bool look(gw_fetch *f, int64_t now_ns)
{
    bool moved = adopt_step(f);
    /* acquire: the mails the engine has seen come to an end are visible */
    bool end =
        f->current != 0 && atomic_load_explicit(&f->end_asked, memory_order_acquire) == f->current;
    if (f->current != 0) {
        moved = read_mails(f) || moved;
    }
    poll_store(f, now_ns);
    moved = gw_waves_poll_copies(f->waves) || moved;
    if (f->current != 0) {
        moved = gw_waves_advance(f->waves, now_ns) || moved;
    }
    if (end) {
        close_step(f);
        moved = true;
    }
    return moved;
}

static void park(gw_fetch *f)
{
    moe_mutex_lock(&f->mu);
    if (!atomic_load(&f->stop) && atomic_load(&f->begun) == atomic_load(&f->ended)) {
        moe_cond_wait_until(&f->wake, &f->mu, moe_now_ns() + park_ns);
    }
    moe_mutex_unlock(&f->mu);
}

static void rest(gw_fetch *f, int64_t now_ns)
{
    int64_t quiet_ns = now_ns - f->progress_ns;
    if (quiet_ns < spin_ns) {
        return;
    }
    if (f->current == 0 && quiet_ns > park_after_ns && gw_dma_is_idle(f->cfg.waves.dma)) {
        park(f);
    } else {
        moe_sleep_ns(nap_ns);
    }
}

static void fill(gw_fetch *f)
{
    bool done = f->cfg.waves.policy != GW_RESIDENT;
    moe_status st = MOE_OK;
    while (!done && !atomic_load(&f->stop)) {
        int64_t now_ns = moe_now_ns();
        poll_store(f, now_ns);
        bool moved = gw_waves_poll_copies(f->waves);
        done = gw_waves_fill(f->waves, now_ns, &st, &f->result);
        if (!moved) {
            moe_sleep_ns(nap_ns);
        }
    }
    moe_mutex_lock(&f->mu);
    f->filled = true;
    f->result_status = st;
    moe_cond_broadcast(&f->settle);
    moe_mutex_unlock(&f->mu);
}

static void *fetch_main(void *arg)
{
    gw_fetch *f = arg;
    pthread_setname_np(pthread_self(), "pregate-fetch");
    prctl(PR_SET_TIMERSLACK, (unsigned long)TIMER_SLACK_NS);
    fill(f);
    f->progress_ns = moe_now_ns();
    while (!atomic_load_explicit(&f->stop, memory_order_acquire)) {
        int64_t now_ns = moe_now_ns();
        if (look(f, now_ns)) {
            f->progress_ns = now_ns;
        } else {
            rest(f, now_ns);
        }
    }
    adopt_step(f); /* begun, but not looked at yet: it has waits to release, too */
    gw_waves_release_all(f->waves);
    return NULL;
}

/* ---- the engine's side ----------------------------------------------------------------------- */

static moe_status start(gw_fetch *f, moe_err *err)
{
    int rc = pthread_create(&f->thread, NULL, fetch_main, f);
    if (rc != 0) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_NO_MEMORY, MOE_LAYER_ERRNO, rc, "fetch thread");
    }
    f->thread_runs = true;
    moe_mutex_lock(&f->mu);
    while (!f->filled) {
        moe_cond_wait(&f->settle, &f->mu);
    }
    moe_status st = f->result_status;
    moe_mutex_unlock(&f->mu);
    if (st != MOE_OK && err != NULL) {
        *err = f->result;
    }
    return st;
}

moe_status gw_fetch_create(const gw_fetch_cfg *cfg, gw_fetch **out, moe_err *err)
{
    gw_fetch *f = calloc(1, sizeof *f);
    if (f == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "fetch thread");
    }
    f->cfg = *cfg;
    atomic_store(&f->store_alive, true);
    moe_mutex_init(&f->mu);
    moe_cond_init(&f->wake);
    moe_cond_init(&f->settle);
    moe_status st = gw_waves_create(&cfg->waves, &f->waves, err);
    if (st == MOE_OK) {
        st = start(f, err);
    }
    if (st != MOE_OK) {
        gw_fetch_destroy(f);
        return st;
    }
    *out = f;
    return MOE_OK;
}

static void wake_thread(gw_fetch *f)
{
    moe_mutex_lock(&f->mu);
    moe_cond_signal(&f->wake);
    moe_mutex_unlock(&f->mu);
}

void gw_fetch_destroy(gw_fetch *f)
{
    if (f == NULL) {
        return;
    }
    if (f->thread_runs) {
        atomic_store_explicit(&f->stop, true, memory_order_release);
        wake_thread(f);
        pthread_join(f->thread, NULL);
    }
    gw_waves_destroy(f->waves);
    moe_cond_fini(&f->settle);
    moe_cond_fini(&f->wake);
    moe_mutex_fini(&f->mu);
    free(f);
}

void gw_fetch_begin_step(gw_fetch *f, uint64_t step, moe_stack stack, uint32_t n_waves)
{
    MOE_ASSERT(atomic_load(&f->begun) == atomic_load(&f->ended));
    f->step = step;
    f->stack = stack;
    f->n_waves = n_waves;
    atomic_store_explicit(&f->begun, step, memory_order_release);
    wake_thread(f);
}

moe_status gw_fetch_end_step(gw_fetch *f, const char **out_failed_text, moe_err *err)
{
    uint64_t step = atomic_load_explicit(&f->begun, memory_order_relaxed);
    atomic_store_explicit(&f->end_asked, step, memory_order_release);
    wake_thread(f);
    int64_t spin_until_ns = moe_now_ns() + spin_ns;
    while (atomic_load_explicit(&f->ended, memory_order_acquire) != step &&
           moe_now_ns() < spin_until_ns) {
    }
    moe_mutex_lock(&f->mu);
    while (atomic_load_explicit(&f->ended, memory_order_acquire) != step) {
        moe_cond_wait(&f->settle, &f->mu);
    }
    moe_mutex_unlock(&f->mu);
    *out_failed_text = gw_waves_failed_text(f->waves);
    if (f->result_status != MOE_OK && err != NULL) {
        *err = f->result;
    }
    return f->result_status;
}

bool gw_fetch_store_alive(const gw_fetch *f)
{
    return atomic_load_explicit(&f->store_alive, memory_order_relaxed);
}

bool gw_fetch_store_lost(const gw_fetch *f)
{
    return atomic_load_explicit(&f->store_lost, memory_order_relaxed);
}
