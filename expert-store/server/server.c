/* server.c - see server.h. One thread, one ppoll; everything that happens is one of: a message, a
 * read that ended, a re-hashed slot, a signal, a tick. */
#include "expert-store/server/server.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "expert-store/server/handlers.h"
#include "expert-store/server/loading.h"
#include "expert-store/server/machine.h"
#include "expert-store/server/memory_budget.h"
#include "expert-store/server/store_state.h"

enum {
    MESSAGES_PER_TURN = 64,     /* then reads get their turn */
    MESSAGES_US_PER_TURN = 100, /* ... or after this long: some answers take longer than others */
    STARVED_LOOK_US = 200,      /* leases end without a message; about one DMA of an expert */
    STARVED_LOOK_MAX_US = 2000, /* for slots that are leased for long */
    CONTENDED_HOLD_MS = 50,     /* far longer than a worker needs to take a lease */
    RATE_TICK_MS = 250,
    LOG_QUIET_S = 1,
    FLUSH_MS = 50 /* what a socket has not sent when it closes is lost */
};

struct xs_server {
    xs_store store;
    int signal_fd;         /* owned; -1 */
    int64_t next_probe_ns; /* of workers' locks, holds, condemned slots */
    int64_t next_rate_ns;
    int64_t next_look_ns;    /* of the trace recorder */
    int64_t starved_look_ns; /* until the next look for a slot; grows while none is found */
    int64_t stop_by_ns;      /* while stopping */
    bool stop_begun, stop_now;
};

bool xs_log_limit_pass(xs_log_limit *l, int64_t now_ns, uint64_t *out_suppressed)
{
    if (now_ns < l->quiet_until_ns) {
        l->suppressed++;
        return false;
    }
    *out_suppressed = l->suppressed;
    l->suppressed = 0;
    l->quiet_until_ns = now_ns + LOG_QUIET_S * MOE_NS_PER_S;
    return true;
}

/* ---- start ---- */

static moe_status open_signals(xs_server *sv, moe_err *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP); /* the terminal it was started from went away */
    int code = pthread_sigmask(SIG_BLOCK, &set, NULL);
    if (code == 0) {
        sv->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
        code = sv->signal_fd < 0 ? errno : 0;
    }
    return code == 0 ? MOE_OK
                     : MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code,
                                       "cannot take signals through a signalfd");
}

static uint32_t table_mode(const xs_config *cfg)
{
    return cfg->allow_uid[0] != '\0' ? 0660 : 0600;
}

static moe_status open_regions(xs_store *s, moe_err *err)
{
    const xs_regions_cfg cfg = xs_budget_regions_cfg(s);
    moe_status st = xs_regions_open(&cfg, &s->model, &s->regions, err);
    if (st == MOE_OK) {
        s->remove_memory = !s->regions.adopted; /* if the start fails later on */
    }
    return st;
}

static moe_status open_workers(xs_store *s, moe_err *err)
{
    xs_workers_cfg cfg = {.board = s->regions.board.base,
                          .prefix = s->regions.prefix,
                          .n_experts = s->model.shape.n_experts_total,
                          .n_blocks = s->model.shape.n_blocks_total,
                          .max_workers = (uint32_t)s->cfg->max_workers,
                          .mode = table_mode(s->cfg),
                          .grace_ns = (int64_t)s->cfg->worker_grace_ms * MOE_NS_PER_MS,
                          .hold_ns = (int64_t)s->cfg->want_hold_ms * MOE_NS_PER_MS,
                          .leases = &s->leases};
    memcpy(cfg.store_uuid, s->model.uuid, sizeof cfg.store_uuid);
    moe_status st = xs_lease_view_init(&s->leases, cfg.n_experts, cfg.n_blocks, err);
    if (st == MOE_OK) {
        st = xs_workers_create(&cfg, &s->workers, err);
    }
    return st;
}

static void close_workers(xs_store *s)
{
    xs_workers_destroy(s->workers);
    s->workers = NULL;
    xs_lease_view_fini(&s->leases);
}

static void log_refused(const char *why)
{
    moe_log(MOE_LOG_WARN, "store", "memory_not_adopted",
            "reason=\"%s\" effect=\"experts are read again; workers must say HELLO again\"", why);
}

/* Memory first, then every lease table in it; a table that cannot be seen spoils the memory. */
static moe_status open_memory(xs_store *s, int64_t now_ns, moe_err *err)
{
    moe_err why = {0};
    moe_log(MOE_LOG_INFO, "store", "making_memory", "model=%s experts=%u slot_bytes=%llu",
            s->model.name, s->model.shape.n_experts_total, (unsigned long long)s->model.slot_bytes);
    moe_status st = open_regions(s, err);
    if (st == MOE_OK) {
        st = open_workers(s, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    if (s->regions.refused[0] != '\0') {
        log_refused(s->regions.refused);
    }
    if (!s->regions.adopted || xs_workers_adopt(s->workers, now_ns, &why) == MOE_OK) {
        return MOE_OK;
    }
    log_refused(why.text);
    close_workers(s);
    xs_regions_remove(&s->regions);
    xs_regions_close(&s->regions);
    st = open_regions(s, err);
    return st == MOE_OK ? open_workers(s, err) : st;
}

void xs_log_degraded_reads(const xs_store *s)
{
    moe_log(MOE_LOG_WARN, "store", "degraded_reads", "reason=\"%s\"",
            xs_reader_get_report(s->reader)->note);
}

/* That can ever have pages: slices of the ring's buffers are cut for so many. */
static uint32_t most_slots(const xs_store *s)
{
    uint64_t fit = xs_total_ram() / s->model.slot_bytes;
    uint32_t most = fit < s->regions.n_slots ? (uint32_t)fit : s->regions.n_slots;
    return most > s->regions.n_budget ? most : s->regions.n_budget;
}

static moe_status open_reader(xs_store *s, moe_err *err)
{
    const xs_reader_cfg cfg = {.catalog = s->model.catalog,
                               .shape = &s->model.shape,
                               .synthetic_seed = s->model.seed,
                               .synthetic_dtype = s->model.expert_dtype,
                               .slots = s->regions.slots.base,
                               .slot_bytes = s->model.slot_bytes,
                               .n_slots = most_slots(s),
                               .n_made = 0, /* xs_budget_take */
                               .engine = s->model.catalog != NULL ? (xs_engine)s->cfg->engine
                                                                  : XS_ENGINE_SYNTHETIC,
                               .direct = s->cfg->direct,
                               .depth = (uint32_t)s->cfg->depth,
                               .split_bytes = s->cfg->read_split,
                               .n_verify_threads = (uint32_t)s->cfg->verify_threads,
                               .lock_fd = s->lock_fd};
    return xs_reader_create(&cfg, &s->reader, err);
}

static moe_status open_recorder(xs_store *s, moe_err *err)
{
    xs_recorder_cfg cfg = {.path = s->cfg->record_trace,
                           .max_bytes = s->cfg->record_trace_bytes,
                           .leases = &s->leases,
                           .header = {.n_experts = s->model.shape.n_experts_total,
                                      .per_block = s->model.shape.n_experts,
                                      .enc_blocks = s->model.shape.stack[MOE_ENCODER].n_blocks,
                                      .n_slots = s->regions.n_budget,
                                      .slot_bytes = s->model.slot_bytes,
                                      .policy = (uint32_t)s->cfg->evict,
                                      .period_us = (uint32_t)s->cfg->record_trace_period_us,
                                      .predict_keep_us = (uint32_t)s->cfg->predict_keep_ms * 1000}};
    memcpy(cfg.header.store_uuid, s->model.uuid, sizeof cfg.header.store_uuid);
    snprintf(cfg.header.model, sizeof cfg.header.model, "%s", s->model.name);
    return s->cfg->record_trace[0] != '\0' ? xs_recorder_create(&cfg, &s->recorder, err) : MOE_OK;
}

static moe_status open_residency(xs_store *s, int64_t now_ns, moe_err *err)
{
    const xs_residency_cfg cfg = {.board = s->regions.board.base,
                                  .n_experts = s->model.shape.n_experts_total,
                                  .n_slots = s->regions.n_slots,
                                  .n_budget = s->regions.n_budget,
                                  .policy = (xs_evict_policy)s->cfg->evict,
                                  .predict_keep_ns =
                                      (int64_t)s->cfg->predict_keep_ms * MOE_NS_PER_MS,
                                  .max_pinned = xs_budget_max_pinned(s),
                                  .leases = &s->leases,
                                  .recorder = s->recorder,
                                  .kill = &s->kill};
    moe_status st = xs_residency_create(&cfg, &s->residency, err);
    if (st == MOE_OK) {
        st = xs_fetch_queue_create(cfg.n_experts, &s->queue, err);
    }
    if (st == MOE_OK && s->regions.adopted) {
        xs_residency_adopt(s->residency, now_ns);
        st = xs_reverify_create(&s->model, s->regions.slots.base, &s->reverify, err);
    }
    if (st == MOE_OK) {
        xs_workers_attach(s->workers, s->residency, s->limits.lease_capacity);
    }
    return st;
}

static moe_status bind_sockets(xs_store *s, moe_err *err)
{
    char admin[MOE_CFG_STR_BYTES + 8];
    wire_router_cfg cfg = {.endpoint = s->cfg->endpoint,
                           .allow_uid = xs_config_allow_uid(s->cfg),
                           .max_message_bytes = WIRE_MAX_REQUEST_BYTES};
    moe_status st = wire_router_create(&cfg, &s->router, err);
    if (st != MOE_OK) {
        return st;
    }
    cfg.endpoint = admin;
    cfg.allow_uid = -1; /* operators are this user */
    st = wire_admin_endpoint(s->cfg->endpoint, admin, sizeof admin, err);
    return st == MOE_OK ? wire_router_create(&cfg, &s->admin, err) : st;
}

static void begin_serving(xs_store *s)
{
    moe_board_header *h = xs_store_board(s);
    s->boot = atomic_fetch_add_explicit(&h->boot, 1, memory_order_acq_rel) + 1;
    atomic_store_explicit(&h->serving, 1, memory_order_release);
    s->started_ns = moe_now_ns();
    s->rate_ns = s->started_ns;
}

static void log_started(const xs_store *s)
{
    const xs_residency_counters *c = xs_residency_get_counters(s->residency);
    moe_log(MOE_LOG_INFO, "store", "serving",
            "endpoint=%s model=%s experts=%u slots=%u slot_bytes=%llu boot=%u adopted=%llu "
            "workers=%u lease_capacity=%u reads=%u pinned=%d",
            s->cfg->endpoint, s->model.name, s->model.shape.n_experts_total, s->regions.n_budget,
            (unsigned long long)s->model.slot_bytes, s->boot, (unsigned long long)c->adopted,
            xs_workers_count(s->workers), s->limits.lease_capacity, s->limits.in_flight,
            s->memory.pinned);
}

static moe_status start(xs_server *sv, moe_err *err)
{
    xs_store *s = &sv->store;
    char admin[MOE_CFG_STR_BYTES + 8];
    /* The longer one first: a path that is too long is said before anything is done. */
    moe_status st = wire_admin_endpoint(s->cfg->endpoint, admin, sizeof admin, err);
    if (st == MOE_OK) {
        st = wire_endpoint_path(s->cfg->endpoint, s->endpoint_path, sizeof s->endpoint_path, err);
    }
    if (st == MOE_OK) {
        st = xs_model_open(s->cfg, &s->model, err);
    }
    if (st == MOE_OK) {
        st = xs_instance_lock(s->cfg->endpoint, s->endpoint_path, &s->lock_fd, err);
    }
    if (st == MOE_OK) {
        st = open_memory(s, moe_now_ns(), err);
    }
    if (st != MOE_OK) {
        return st;
    }
    st = xs_budget_open(s, err);
    if (st == MOE_OK) {
        st = open_reader(s, err);
    }
    if (st == MOE_OK) {
        xs_budget_set_limits(s);
        st = open_recorder(s, err);
    }
    if (st == MOE_OK) {
        st = open_residency(s, moe_now_ns(), err);
    }
    if (st == MOE_OK) {
        if (xs_reader_get_report(s->reader)->note[0] != '\0') {
            xs_log_degraded_reads(s);
        }
        xs_budget_take(s);
        st = bind_sockets(s, err);
    }
    return st;
}

moe_status xs_server_create(const xs_config *cfg, xs_server **out, moe_err *err)
{
    xs_server *sv = calloc(1, sizeof *sv);
    if (sv == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "the store's state");
    }
    sv->signal_fd = -1;
    sv->store.cfg = cfg;
    sv->store.lock_fd = -1;
    sv->store.regions = XS_REGIONS_NONE;
    sv->store.kill =
        (xs_kill_switch){.at = (xs_kill_at)cfg->test_kill_at, .passes_left = cfg->test_kill_after};
    moe_status st = open_signals(sv, err);
    if (st == MOE_OK) {
        st = start(sv, err);
    }
    if (st != MOE_OK) {
        xs_server_destroy(sv);
        return st;
    }
    begin_serving(&sv->store);
    log_started(&sv->store);
    *out = sv;
    return MOE_OK;
}

void xs_server_destroy(xs_server *sv)
{
    if (sv == NULL) {
        return;
    }
    xs_store *s = &sv->store;
    wire_router_destroy(s->router);
    wire_router_destroy(s->admin);
    xs_reader_destroy(s->reader); /* waits for reads; then no slot changes any more */
    xs_slot_memory_destroy(s->slot_memory);
    xs_reverify_destroy(s->reverify);
    xs_fetch_queue_destroy(s->queue);
    xs_recorder_destroy(s->recorder);
    close_workers(s); /* holds name residency's slots: first */
    xs_residency_destroy(s->residency);
    if (s->remove_memory && s->regions.board.base != NULL) {
        xs_regions_remove(&s->regions);
    }
    xs_regions_close(&s->regions);
    xs_model_close(&s->model);
    if (sv->signal_fd >= 0) {
        close(sv->signal_fd);
    }
    if (s->lock_fd >= 0) {
        close(s->lock_fd); /* last: whoever gets the lock finds nothing of ours running */
    }
    free(sv);
}

/* ---- the loop ---- */

static bool take_messages(xs_store *s, wire_router *router, xs_channel channel)
{
    int64_t now_ns = moe_now_ns();
    const int64_t until_ns = now_ns + MESSAGES_US_PER_TURN * MOE_NS_PER_US;
    for (int i = 0; i < MESSAGES_PER_TURN && now_ns < until_ns; i++) {
        wire_peer peer = {0};
        const void *data = NULL;
        size_t bytes = 0;
        if (wire_router_recv(router, &peer, &data, &bytes, NULL) != MOE_OK) {
            return i > 0;
        }
        xs_handle(s, channel, &peer, data, bytes, now_ns);
        now_ns = moe_now_ns();
    }
    return true;
}

static void take_signals(xs_server *sv)
{
    struct signalfd_siginfo info;
    while (read(sv->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        sv->stop_now = sv->store.stopping;
        sv->store.stopping = true;
    }
}

static void update_rate(xs_store *s, int64_t now_ns)
{
    double seconds = (double)(now_ns - s->rate_ns) / (double)MOE_NS_PER_S;
    if (seconds <= 0) {
        return;
    }
    uint64_t bytes = xs_reader_get_counters(s->reader)->read_bytes;
    double weight = seconds < 2 ? seconds / 2 : 1; /* a time constant of about 2 s */
    s->read_rate += weight * ((double)(bytes - s->rate_bytes) / seconds - s->read_rate);
    s->rate_bytes = bytes;
    s->rate_ns = now_ns;
}

static void look_for_uses(xs_server *sv, int64_t now_ns)
{
    moe_err err = {0};
    sv->next_look_ns = now_ns + (int64_t)sv->store.cfg->record_trace_period_us * MOE_NS_PER_US;
    if (xs_recorder_tick(sv->store.recorder, &err) != MOE_OK) {
        moe_log(MOE_LOG_WARN, "store", "trace_ended", "reason=\"%s\"", err.text);
    }
}

static void tick(xs_server *sv, int64_t now_ns)
{
    xs_store *s = &sv->store;
    if (s->recorder != NULL && now_ns >= sv->next_look_ns) {
        look_for_uses(sv, now_ns);
    }
    if (now_ns >= sv->next_probe_ns) {
        sv->next_probe_ns = now_ns + (int64_t)s->cfg->worker_probe_ms * MOE_NS_PER_MS;
        xs_bury_workers(s, now_ns);
        xs_settle_workers(s, now_ns);
        (void)xs_residency_sweep(s->residency);
    }
    if (now_ns >= sv->next_rate_ns) {
        sv->next_rate_ns = now_ns + RATE_TICK_MS * MOE_NS_PER_MS;
        update_rate(s, now_ns);
    }
}

static void begin_stop(xs_server *sv, int64_t now_ns)
{
    xs_store *s = &sv->store;
    sv->stop_begun = true;
    sv->stop_by_ns = now_ns + (int64_t)s->cfg->drain_ms * MOE_NS_PER_MS;
    atomic_store_explicit(&xs_store_board(s)->serving, 0, memory_order_release);
    moe_log(MOE_LOG_INFO, "store", "stopping", "reads_in_flight=%u", s->n_in_flight);
}

/* A read waits for a slot: has a worker taken, or waited too long with, what was kept for it? */
static void find_slots(xs_store *s, int64_t now_ns)
{
    xs_settle_workers(s, now_ns);
    if (xs_residency_sweep(s->residency) == 0) {
        (void)xs_workers_break_hold(s->workers, now_ns, CONTENDED_HOLD_MS * MOE_NS_PER_MS);
    }
}

static int64_t longer(int64_t look_ns)
{
    int64_t most = STARVED_LOOK_MAX_US * MOE_NS_PER_US;
    return look_ns < most / 2 ? 2 * look_ns : most;
}

/* One look at everything; false when nothing was there. */
static bool turn(xs_server *sv)
{
    xs_store *s = &sv->store;
    bool busy = take_messages(s, s->router, XS_CHANNEL_WORKERS);
    busy |= take_messages(s, s->admin, XS_CHANNEL_ADMIN);
    take_signals(sv);
    int64_t now_ns = moe_now_ns();
    xs_budget_take(s);
    busy |= xs_loading_harvest(s, now_ns);
    xs_loading_reverify(s, now_ns);
    tick(sv, now_ns);
    s->stopping = s->stopping || s->memory.failure.status != MOE_OK;
    if (s->stopping && !sv->stop_begun) {
        begin_stop(sv, now_ns);
    }
    if (s->starved) {
        find_slots(s, now_ns);
    }
    bool waited = s->starved;
    uint32_t n_started = xs_loading_start(s, now_ns);
    sv->starved_look_ns =
        waited && n_started == 0 ? longer(sv->starved_look_ns) : STARVED_LOOK_US * MOE_NS_PER_US;
    return busy;
}

static void wait_for_events(xs_server *sv)
{
    xs_store *s = &sv->store;
    struct pollfd fds[] = {
        {.fd = wire_router_fd(s->router), .events = POLLIN},
        {.fd = wire_router_fd(s->admin), .events = POLLIN},
        {.fd = xs_reader_fd(s->reader), .events = POLLIN},
        {.fd = sv->signal_fd, .events = POLLIN},
        {.fd = s->memory.ended ? -1 : xs_slot_memory_fd(s->slot_memory), .events = POLLIN},
        {.fd = s->reverify != NULL ? xs_reverify_fd(s->reverify) : -1, .events = POLLIN}};
    int64_t now_ns = moe_now_ns();
    int64_t until_ns = sv->next_probe_ns < sv->next_rate_ns ? sv->next_probe_ns : sv->next_rate_ns;
    if (xs_recorder_active(s->recorder) && sv->next_look_ns < until_ns) {
        until_ns = sv->next_look_ns;
    }
    if (s->starved && now_ns + sv->starved_look_ns < until_ns) {
        until_ns = now_ns + sv->starved_look_ns;
    }
    int64_t wait_ns = until_ns > now_ns ? until_ns - now_ns : 0;
    const struct timespec timeout = {.tv_sec = wait_ns / MOE_NS_PER_S,
                                     .tv_nsec = wait_ns % MOE_NS_PER_S};
    (void)ppoll(fds, sizeof fds / sizeof fds[0], &timeout, NULL); /* turn looks at all of them */
}

static bool may_end(const xs_server *sv)
{
    return sv->stop_now ||
           (sv->stop_begun && (xs_loading_is_idle(&sv->store) || moe_now_ns() >= sv->stop_by_ns));
}

/* Answers that were given leave before the sockets close. */
static void flush_answers(const xs_store *s)
{
    int64_t left_ns = s->last_send_ns + FLUSH_MS * MOE_NS_PER_MS - moe_now_ns();
    if (left_ns > 0) {
        moe_sleep_ns(left_ns);
    }
}

moe_status xs_server_run(xs_server *sv, moe_err *err)
{
    while (!may_end(sv)) {
        /* Sockets signal edges only, and sending consumes them too: wait only after a turn in
         * which nothing was received and so nothing was sent. */
        if (!turn(sv)) {
            wait_for_events(sv);
        }
    }
    xs_loading_abandon(&sv->store);
    flush_answers(&sv->store);
    sv->store.remove_memory = !sv->store.cfg->keep_memory;
    moe_log(MOE_LOG_INFO, "store", "stopped", "memory=%s",
            sv->store.cfg->keep_memory ? "kept" : "removed");
    const moe_err *failure = &sv->store.memory.failure;
    if (failure->status != MOE_OK) {
        return MOE_FAIL(err, failure->status, "%u of %u slots made: %.300s",
                        sv->store.memory.n_made, sv->store.regions.n_budget, failure->text);
    }
    return MOE_OK;
}
