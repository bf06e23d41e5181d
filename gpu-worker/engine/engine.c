/* engine.c - see engine.h.
 *
 * One mutex guards what other threads see: the waiting list, the array of running sequences
 * (written by the engine thread, so that it reads without the lock), the session pointer
 * (likewise), state and files. Callbacks and steps run without it.
 *
 *   loop:  no session -> attach, retrying        (state: not ready, with a note)
 *          drop cancelled -> admit + encode step -> decode step of all running
 *          a step failed, or the store's memory is gone -> every open sequence ends with that
 * error; the session is remade stop:  every open sequence ends with MOE_ERR_CANCELLED
 */
#include "gpu-worker/engine/engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/lock.h"
#include "common/log.h"
#include "gpu-worker/engine/sampler.h"
#include "gpu-worker/engine/sequence.h"
#include "gpu-worker/engine/session.h"

/* How long one attempt to reach a lost store may block stop(), and the pause between attempts. */
#define REATTACH_TIMEOUT_NS (1 * MOE_NS_PER_S)
#define REATTACH_PAUSE_NS (500 * MOE_NS_PER_MS)
#define IDLE_LOOK_NS (200 * MOE_NS_PER_MS) /* without work: is the store's memory still there? */

/* A checkpoint file that somebody asked for: copied, because the store's memory may go away. */
struct file {
    struct file *next;
    char name[MOE_DENSE_NAME_BYTES];
    uint64_t bytes;
    char data[];
};

struct gw_engine {
    gw_engine_cfg cfg;
    char *endpoint; /* owned; cfg.endpoint points here */
    pthread_t thread;
    moe_mutex mu;
    moe_cond changed; /* anything guarded by mu */

    /* guarded by mu */
    bool stop;
    bool attached_once; /* or start_status says why not */
    moe_status start_status;
    moe_err start_err;
    char note[200];       /* why there is no session */
    gw_session *session;  /* owned; NULL: not ready */
    gw_sequence *waiting; /* owned list, oldest first */
    uint32_t n_waiting;
    gw_sequence **running; /* [max_batch] owned; NULL entries have just ended */
    uint32_t n_running;
    uint64_t next_id;
    struct file *files; /* owned list */

    /* written before create returns, const from then on */
    moe_model_shape shape;
    char model_name[WIRE_NAME_BYTES];
    gw_sequence_limits limits;

    gw_candidate *candidates;                           /* [vocab], owned, engine thread */
    moe_histogram first_token_ns, encode_ns, decode_ns; /* atomic */
};

/* ---- waiting and waking ---- */

static bool stopping(gw_engine *e)
{
    moe_mutex_lock(&e->mu);
    bool stop = e->stop;
    moe_mutex_unlock(&e->mu);
    return stop;
}

/* Work, a stop or a lost store: false only for the last. */
static bool wait_for_work(gw_engine *e)
{
    bool lost = false;
    moe_mutex_lock(&e->mu);
    while (!e->stop && !lost && e->n_waiting == 0 && e->n_running == 0) {
        (void)moe_cond_wait_until(&e->changed, &e->mu, moe_now_ns() + IDLE_LOOK_NS);
        lost = gw_pipeline_store_lost(e->session->pipeline);
    }
    moe_mutex_unlock(&e->mu);
    return !lost;
}

/* ---- counters ---- */

static void count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed); /* statistics only */
}

static moe_worker_counters *counters(const gw_engine *e)
{
    return gw_store_client_counters(e->session->client);
}

static void count_batch(moe_worker_counters *c, uint32_t n)
{
    uint32_t bucket = 0;
    while (bucket + 1 < MOE_BATCH_BUCKETS && (1u << bucket) < n) {
        bucket++;
    }
    count(&c->batch_bucket[bucket], 1);
    if (n > atomic_load_explicit(&c->batch_max, memory_order_relaxed)) {
        atomic_store_explicit(&c->batch_max, n, memory_order_relaxed); /* one writer */
    }
}

/* ---- the end of a sequence ---- */

static void tell_done(const gw_sequence *s, gw_finish finish, const moe_err *err)
{
    if (s->request.on_done != NULL) {
        s->request.on_done(s->request.user, finish, err);
    }
}

/* The entry stays as NULL until compact_running: the caller is going through the array. */
static void end_running(gw_engine *e, uint32_t i, gw_finish finish, const moe_err *err)
{
    gw_sequence *s = e->running[i];
    gw_kv_cache_release(e->session->kv, s->place);
    count(finish == GW_FINISH_ERROR ? &counters(e)->sequences_failed
                                    : &counters(e)->sequences_finished,
          1);
    tell_done(s, finish, err);
    moe_mutex_lock(&e->mu);
    e->running[i] = NULL; /* from here on cancel cannot find it */
    moe_mutex_unlock(&e->mu);
    gw_sequence_destroy(s);
}

static void compact_running(gw_engine *e)
{
    moe_mutex_lock(&e->mu);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < e->n_running; i++) {
        if (e->running[i] != NULL) {
            e->running[kept++] = e->running[i];
        }
    }
    e->n_running = kept;
    moe_mutex_unlock(&e->mu);
}

/* Unlinks the waiting sequences that are cancelled, or all of them. */
static gw_sequence *take_waiting(gw_engine *e, bool all)
{
    gw_sequence *taken = NULL;
    gw_sequence **taken_end = &taken;
    moe_mutex_lock(&e->mu);
    gw_sequence **at = &e->waiting;
    while (*at != NULL) {
        gw_sequence *s = *at;
        if (all || s->cancelled) {
            *at = s->next;
            s->next = NULL;
            *taken_end = s;
            taken_end = &s->next;
            e->n_waiting--;
        } else {
            at = &s->next;
        }
    }
    moe_mutex_unlock(&e->mu);
    return taken;
}

static void end_list(gw_sequence *list, const moe_err *err)
{
    while (list != NULL) {
        gw_sequence *s = list;
        list = s->next;
        tell_done(s, GW_FINISH_ERROR, err);
        gw_sequence_destroy(s);
    }
}

static void end_all(gw_engine *e, const moe_err *err)
{
    for (uint32_t i = 0; i < e->n_running; i++) {
        end_running(e, i, GW_FINISH_ERROR, err);
    }
    compact_running(e);
    end_list(take_waiting(e, true), err);
}

static moe_err cancelled_err(void)
{
    moe_err err = {0};
    (void)MOE_FAIL(&err, MOE_ERR_CANCELLED, "the request was cancelled");
    return err;
}

static bool is_cancelled(gw_engine *e, uint32_t i)
{
    moe_mutex_lock(&e->mu);
    bool cancelled = e->running[i]->cancelled;
    moe_mutex_unlock(&e->mu);
    return cancelled;
}

static void end_cancelled(gw_engine *e)
{
    const moe_err err = cancelled_err();
    end_list(take_waiting(e, false), &err);
    for (uint32_t i = 0; i < e->n_running; i++) {
        if (is_cancelled(e, i)) {
            end_running(e, i, GW_FINISH_ERROR, &err);
        }
    }
    compact_running(e);
}

/* ---- steps ---- */

/* Moves waiting sequences, oldest first, to the end of the running ones while they fit into one
 * encode step and into the kv cache. */
static void admit(gw_engine *e)
{
    uint32_t n_tokens = 0;
    moe_mutex_lock(&e->mu);
    while (e->waiting != NULL && e->n_running < e->cfg.max_batch) {
        gw_sequence *s = e->waiting;
        n_tokens += s->request.n_input;
        if (n_tokens > e->cfg.max_encode_tokens ||
            gw_kv_cache_take(e->session->kv, &s->place, NULL) != MOE_OK) {
            break;
        }
        e->waiting = s->next;
        s->next = NULL;
        e->n_waiting--;
        e->running[e->n_running++] = s;
    }
    moe_mutex_unlock(&e->mu);
}

static bool wants_record(const gw_engine *e, gw_sequence *const *seqs, uint32_t n)
{
    if (e->cfg.routing_log != NULL) {
        return true;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (seqs[i]->request.record != NULL) {
            return true;
        }
    }
    return false;
}

static bool any_wants_logits(gw_sequence *const *seqs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (gw_sequence_wants_logits(seqs[i])) {
            return true;
        }
    }
    return false;
}

static bool any_failed(const int32_t *row_failed, uint32_t n_rows)
{
    for (uint32_t row = 0; row < n_rows; row++) {
        if (row_failed[row] != 0) {
            return true;
        }
    }
    return false;
}

static moe_err expert_err(const gw_step_result *step)
{
    moe_err err = {0};
    (void)MOE_FAIL(&err, MOE_ERR_IO, "an expert that this sequence needs could not be loaded: %s",
                   step->failed_text);
    return err;
}

/* The step of the sequences from `first` on, which were just admitted. */
static moe_status encode_step(gw_engine *e, uint32_t first, moe_err *err)
{
    gw_sequence *const *batch = e->running + first;
    uint32_t n = e->n_running - first;
    gw_step_result step;
    int64_t begin_ns = moe_now_ns();
    moe_status st =
        gw_forward_encode(e->session->forward, batch, n, wants_record(e, batch, n), &step, err);
    if (st != MOE_OK) {
        return st;
    }
    int64_t end_ns = moe_now_ns();
    gw_trace_add(e->cfg.trace, GW_LANE_STEP, "encode", begin_ns, end_ns, -1, -1, 0);
    moe_histogram_add_ns(&e->encode_ns, end_ns - begin_ns);
    count(&counters(e)->encode_steps, 1);
    count(&counters(e)->sequences_started, n);
    uint32_t row = 0;
    for (uint32_t i = first; i < e->n_running; i++) {
        uint32_t n_input = e->running[i]->request.n_input;
        count(&counters(e)->prompt_tokens, n_input);
        if (any_failed(step.row_failed + row, n_input)) {
            const moe_err failed = expert_err(&step);
            end_running(e, i, GW_FINISH_ERROR, &failed);
        } else {
            gw_sequence_record_encode(e->running[i], &e->limits, &step.view, row);
        }
        row += n_input;
    }
    gw_routing_log_add(e->cfg.routing_log, MOE_ENCODER, step.view.experts, step.view.stride, row);
    compact_running(e);
    return MOE_OK;
}

static int32_t choose(gw_engine *e, const gw_sequence *s, const gw_step_result *step, uint32_t row)
{
    const gw_request *r = &s->request;
    if (r->temperature <= 0.0f) {
        return step->next[row];
    }
    return gw_sample(step->view.logits + (size_t)row * e->limits.vocab, e->limits.vocab,
                     r->temperature, r->top_p, r->seed, s->position, e->candidates);
}

static void take_token(gw_engine *e, uint32_t i, const gw_step_result *step)
{
    gw_sequence *s = e->running[i];
    if (step->row_failed[i] != 0) {
        const moe_err failed = expert_err(step);
        end_running(e, i, GW_FINISH_ERROR, &failed);
        return;
    }
    gw_sequence_record_decode(s, &e->limits, &step->view, i);
    int32_t token = 0;
    gw_finish finish = GW_FINISH_STOP;
    uint32_t index = s->position;
    bool ended = gw_sequence_advance(s, choose(e, s, step, i), e->limits.eos_id, &token, &finish);
    if (index == 0) {
        moe_histogram_add_ns(&e->first_token_ns, moe_now_ns() - s->submitted_ns);
    }
    if (s->request.on_token != NULL) {
        s->request.on_token(s->request.user, token, index);
    }
    if (ended) {
        end_running(e, i, finish, NULL);
    }
}

static moe_status decode_step(gw_engine *e, moe_err *err)
{
    gw_sequence *const *batch = e->running;
    uint32_t n = e->n_running;
    gw_step_result step;
    int64_t begin_ns = moe_now_ns();
    moe_status st = gw_forward_decode(e->session->forward, batch, n, wants_record(e, batch, n),
                                      any_wants_logits(batch, n), &step, err);
    if (st != MOE_OK) {
        return st;
    }
    int64_t end_ns = moe_now_ns();
    gw_trace_add(e->cfg.trace, GW_LANE_STEP, "decode", begin_ns, end_ns, -1, -1, 0);
    moe_histogram_add_ns(&e->decode_ns, end_ns - begin_ns);
    count(&counters(e)->decode_steps, 1);
    count(&counters(e)->output_tokens, n);
    count_batch(counters(e), n);
    gw_routing_log_add(e->cfg.routing_log, MOE_DECODER, step.view.experts, step.view.stride, n);
    for (uint32_t i = 0; i < n; i++) {
        take_token(e, i, &step);
    }
    compact_running(e);
    return MOE_OK;
}

static moe_status step(gw_engine *e, moe_err *err)
{
    end_cancelled(e);
    uint32_t n_before = e->n_running;
    admit(e);
    moe_status st = MOE_OK;
    if (e->n_running > n_before) {
        st = encode_step(e, n_before, err);
    }
    if (st == MOE_OK && e->n_running > 0) {
        st = decode_step(e, err);
    }
    return st;
}

/* ---- the session ---- */

/* A store that came back must serve what this worker already told its users about. */
static moe_status check_files(gw_engine *e, const gw_session *s, moe_err *err)
{
    moe_status st = MOE_OK;
    moe_mutex_lock(&e->mu);
    for (const struct file *f = e->files; f != NULL && st == MOE_OK; f = f->next) {
        const void *data = NULL;
        const moe_dense_entry *entry =
            gw_store_client_dense(s->client, f->name, MOE_DENSE_FILE, &data);
        if (entry == NULL || entry->bytes != f->bytes || memcmp(data, f->data, f->bytes) != 0) {
            st = MOE_FAIL(err, MOE_ERR_VERSION,
                          "the store now serves a model with another %s: restart this worker to "
                          "use it",
                          f->name);
        }
    }
    moe_mutex_unlock(&e->mu);
    return st;
}

static void set_session(gw_engine *e, gw_session *s, const char *note)
{
    moe_mutex_lock(&e->mu);
    e->session = s;
    (void)snprintf(e->note, sizeof e->note, "%s", note);
    moe_mutex_unlock(&e->mu);
}

static void detach(gw_engine *e, const char *note)
{
    gw_session *s = e->session;
    set_session(e, NULL, note); /* first: others stop looking at it */
    gw_session_destroy(s);
}

static moe_status first_attach(gw_engine *e, moe_err *err)
{
    gw_session *s = NULL;
    moe_status st = gw_session_create(&e->cfg, e->cfg.connect_timeout_ns, NULL, &s, err);
    if (st != MOE_OK) {
        return st;
    }
    e->shape = *gw_store_client_shape(s->client);
    (void)snprintf(e->model_name, sizeof e->model_name, "%s",
                   gw_store_client_welcome(s->client)->model_name);
    gw_routing_log_describe(e->cfg.routing_log, e->model_name, &e->shape);
    e->candidates = calloc(e->shape.vocab, sizeof *e->candidates);
    if (e->candidates == NULL) {
        gw_session_destroy(s);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "sampling over %u tokens", e->shape.vocab);
    }
    e->limits = (gw_sequence_limits){.max_input_tokens = e->cfg.max_input_tokens,
                                     .max_output_tokens = e->cfg.max_output_tokens,
                                     .vocab = e->shape.vocab,
                                     .eos_id = e->shape.eos_id,
                                     .start_id = e->shape.decoder_start_id,
                                     .d_model = e->shape.d_model,
                                     .record_gates = e->cfg.record_gates};
    for (int stack = 0; stack < MOE_N_STACKS; stack++) {
        e->limits.n_blocks[stack] = e->shape.stack[stack].n_blocks;
    }
    set_session(e, s, "");
    return MOE_OK;
}

static void attach_again(gw_engine *e)
{
    moe_err err = {0};
    gw_session *s = NULL;
    moe_status st = gw_session_create(&e->cfg, REATTACH_TIMEOUT_NS, &e->shape, &s, &err);
    if (st == MOE_OK) {
        st = check_files(e, s, &err);
    }
    if (st == MOE_OK) {
        set_session(e, s, "");
        moe_log(MOE_LOG_INFO, "engine", "attached", "model=%s", e->model_name);
        return;
    }
    gw_session_destroy(s);
    char note[sizeof e->note];
    moe_err_format(&err, note, sizeof note);
    if (strcmp(note, e->note) != 0) { /* say it once, not at every attempt */
        moe_log_err("engine", "not_attached", &err);
    }
    moe_mutex_lock(&e->mu);
    (void)snprintf(e->note, sizeof e->note, "%s", note);
    if (!e->stop) {
        (void)moe_cond_wait_until(&e->changed, &e->mu, moe_now_ns() + REATTACH_PAUSE_NS);
    }
    moe_mutex_unlock(&e->mu);
}

static void report_start(gw_engine *e, moe_status st, const moe_err *err)
{
    moe_mutex_lock(&e->mu);
    e->attached_once = st == MOE_OK;
    e->start_status = st;
    e->start_err = *err;
    moe_cond_broadcast(&e->changed);
    moe_mutex_unlock(&e->mu);
}

static void give_up_session(gw_engine *e, const moe_err *err)
{
    char note[sizeof e->note];
    moe_err_format(err, note, sizeof note);
    moe_log_err("engine", "session_ended", err);
    end_all(e, err);
    detach(e, note);
}

static void run_steps(gw_engine *e)
{
    moe_err err = {0};
    moe_status st = MOE_OK;
    if (!wait_for_work(e)) {
        st = MOE_FAIL(&err, MOE_ERR_DISCONNECTED,
                      "the store at %.200s stopped or serves other memory now", e->endpoint);
    } else if (!stopping(e)) {
        st = step(e, &err);
    }
    if (st != MOE_OK) {
        give_up_session(e, &err);
    }
}

static void *engine_main(void *arg)
{
    gw_engine *e = arg;
    moe_err err = {0};
    moe_status st = first_attach(e, &err);
    report_start(e, st, &err);
    if (st != MOE_OK) {
        return NULL;
    }
    while (!stopping(e)) {
        if (e->session == NULL) {
            attach_again(e);
        } else {
            run_steps(e);
        }
    }
    const moe_err cancelled = cancelled_err();
    end_all(e, &cancelled);
    detach(e, "stopped");
    return NULL;
}

/* ---- what other threads call ---- */

static moe_status check_cfg(const gw_engine_cfg *cfg, moe_err *err)
{
    if (cfg->max_batch == 0 || cfg->max_queue == 0 || cfg->max_input_tokens == 0 ||
        cfg->max_output_tokens == 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "max_batch=%u max_queue=%u max_input_tokens=%u max_output_tokens=%u: none "
                        "may be 0",
                        cfg->max_batch, cfg->max_queue, cfg->max_input_tokens,
                        cfg->max_output_tokens);
    }
    if (cfg->max_encode_tokens < cfg->max_input_tokens) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "max_encode_tokens=%u is below max_input_tokens=%u: such a prompt could "
                        "never be encoded",
                        cfg->max_encode_tokens, cfg->max_input_tokens);
    }
    return MOE_OK;
}

static void free_engine(gw_engine *e)
{
    while (e->files != NULL) {
        struct file *next = e->files->next;
        free(e->files);
        e->files = next;
    }
    moe_cond_fini(&e->changed);
    moe_mutex_fini(&e->mu);
    free(e->candidates);
    free(e->running);
    free(e->endpoint);
    free(e);
}

static gw_engine *new_engine(const gw_engine_cfg *cfg)
{
    gw_engine *e = calloc(1, sizeof *e);
    if (e == NULL) {
        return NULL;
    }
    moe_mutex_init(&e->mu);
    moe_cond_init(&e->changed);
    e->cfg = *cfg;
    e->next_id = 1;
    e->start_status = MOE_ERR_AGAIN; /* until report_start */
    e->endpoint = strdup(cfg->endpoint);
    e->running = calloc(cfg->max_batch, sizeof *e->running);
    if (e->endpoint == NULL || e->running == NULL) {
        free_engine(e);
        return NULL;
    }
    e->cfg.endpoint = e->endpoint;
    return e;
}

moe_status gw_engine_create(const gw_engine_cfg *cfg, gw_engine **out, moe_err *err)
{
    moe_status st = check_cfg(cfg, err);
    if (st != MOE_OK) {
        return st;
    }
    gw_engine *e = new_engine(cfg);
    if (e == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "engine of %u sequences", cfg->max_batch);
    }
    int rc = pthread_create(&e->thread, NULL, engine_main, e);
    if (rc != 0) {
        free_engine(e);
        return MOE_FAIL_NATIVE(err, MOE_ERR_NO_MEMORY, MOE_LAYER_ERRNO, rc, "engine thread");
    }
    moe_mutex_lock(&e->mu);
    while (e->start_status == MOE_ERR_AGAIN) {
        moe_cond_wait(&e->changed, &e->mu);
    }
    st = e->start_status;
    moe_mutex_unlock(&e->mu);
    if (st != MOE_OK) {
        pthread_join(e->thread, NULL);
        if (err != NULL) {
            *err = e->start_err;
        }
        free_engine(e);
        return st;
    }
    *out = e;
    return MOE_OK;
}

void gw_engine_destroy(gw_engine *e)
{
    if (e == NULL) {
        return;
    }
    moe_mutex_lock(&e->mu);
    e->stop = true;
    moe_cond_broadcast(&e->changed);
    moe_mutex_unlock(&e->mu);
    pthread_join(e->thread, NULL);
    free_engine(e);
}

const moe_model_shape *gw_engine_shape(const gw_engine *e)
{
    return &e->shape;
}

const char *gw_engine_model_name(const gw_engine *e)
{
    return e->model_name;
}

static const struct file *find_file_locked(gw_engine *e, const char *name) MOE_REQUIRES(e->mu);
static const struct file *find_file_locked(gw_engine *e, const char *name)
{
    for (const struct file *f = e->files; f != NULL; f = f->next) {
        if (strcmp(f->name, name) == 0) {
            return f;
        }
    }
    return NULL;
}

static moe_status copy_file_locked(gw_engine *e, const char *name, moe_err *err)
    MOE_REQUIRES(e->mu);
static moe_status copy_file_locked(gw_engine *e, const char *name, moe_err *err)
{
    if (e->session == NULL) {
        return MOE_FAIL(err, MOE_ERR_DISCONNECTED, "file %s: %s", name, e->note);
    }
    const void *data = NULL;
    const moe_dense_entry *entry =
        gw_store_client_dense(e->session->client, name, MOE_DENSE_FILE, &data);
    if (entry == NULL) {
        return MOE_FAIL(err, MOE_ERR_NOT_FOUND, "the checkpoint %s has no file %s", e->model_name,
                        name);
    }
    struct file *f = malloc(sizeof *f + entry->bytes);
    if (f == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "file %s of %llu bytes", name,
                        (unsigned long long)entry->bytes);
    }
    (void)snprintf(f->name, sizeof f->name, "%s", name);
    f->bytes = entry->bytes;
    memcpy(f->data, data, entry->bytes);
    f->next = e->files;
    e->files = f;
    return MOE_OK;
}

moe_status gw_engine_file(const gw_engine *engine, const char *name, const void **out_data,
                          uint64_t *out_bytes, moe_err *err)
{
    gw_engine *e = (gw_engine *)(uintptr_t)engine; /* const to callers: only a cache changes */
    moe_status st = MOE_OK;
    moe_mutex_lock(&e->mu);
    if (find_file_locked(e, name) == NULL) {
        st = copy_file_locked(e, name, err);
    }
    if (st == MOE_OK) {
        const struct file *f = find_file_locked(e, name);
        *out_data = f->data;
        *out_bytes = f->bytes;
    }
    moe_mutex_unlock(&e->mu);
    return st;
}

static moe_status enqueue_locked(gw_engine *e, gw_sequence *s, moe_err *err) MOE_REQUIRES(e->mu);
static moe_status enqueue_locked(gw_engine *e, gw_sequence *s, moe_err *err)
{
    if (e->stop || e->session == NULL) {
        return MOE_FAIL(err, MOE_ERR_DISCONNECTED, "not ready: %s", e->note);
    }
    if (e->n_waiting >= e->cfg.max_queue) {
        return MOE_FAIL(err, MOE_ERR_BUSY, "%u sequences are waiting, max_queue is %u",
                        e->n_waiting, e->cfg.max_queue);
    }
    gw_sequence **end = &e->waiting;
    while (*end != NULL) {
        end = &(*end)->next;
    }
    s->id = e->next_id++;
    *end = s;
    e->n_waiting++;
    moe_cond_broadcast(&e->changed);
    return MOE_OK;
}

moe_status gw_engine_submit(gw_engine *e, const gw_request *r, uint64_t *out_id, moe_err *err)
{
    gw_sequence *s = NULL;
    moe_status st = gw_sequence_create(r, &e->limits, &s, err);
    if (st != MOE_OK) {
        return st;
    }
    moe_mutex_lock(&e->mu);
    st = enqueue_locked(e, s, err);
    if (st == MOE_OK && out_id != NULL) {
        *out_id = s->id; /* before unlocking: then it may be gone */
    }
    moe_mutex_unlock(&e->mu);
    if (st != MOE_OK) {
        if (r->record != NULL) {
            gw_record_fini(r->record);
        }
        gw_sequence_destroy(s);
    }
    return st;
}

void gw_engine_cancel(gw_engine *e, uint64_t id)
{
    moe_mutex_lock(&e->mu);
    for (gw_sequence *s = e->waiting; s != NULL; s = s->next) {
        s->cancelled = s->cancelled || s->id == id;
    }
    for (uint32_t i = 0; i < e->n_running; i++) {
        if (e->running[i] != NULL && e->running[i]->id == id) {
            e->running[i]->cancelled = true;
        }
    }
    moe_mutex_unlock(&e->mu);
}

void gw_engine_get_state(gw_engine *e, gw_engine_state *out)
{
    moe_mutex_lock(&e->mu);
    *out = (gw_engine_state){
        .ready = e->session != NULL, .running = e->n_running, .waiting = e->n_waiting};
    (void)snprintf(out->note, sizeof out->note, "%s", e->note);
    moe_mutex_unlock(&e->mu);
}

static uint64_t read_counter(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

struct counter_row {
    size_t offset; /* of the counter in moe_worker_counters */
    const char *name, *help;
};
#define COUNTER(field, help_text)                                                                  \
    {                                                                                              \
        offsetof(moe_worker_counters, field), "pregate_worker_" #field "_total", help_text         \
    }
static const struct counter_row counter_rows[] = {
    COUNTER(encode_steps, "Encoder passes over the prompts of new sequences"),
    COUNTER(decode_steps, "Decoder passes, one token of every running sequence each"),
    COUNTER(prompt_tokens, "Tokens encoded"),
    COUNTER(output_tokens, "Tokens decoded"),
    COUNTER(sequences_started, "Sequences whose prompt was encoded"),
    COUNTER(sequences_finished, "Sequences that ended with an answer"),
    COUNTER(sequences_failed, "Sequences that ended with an error or were cancelled while running"),
};

static void add_counters(const moe_worker_counters *c, moe_metrics *m)
{
    for (size_t i = 0; i < sizeof counter_rows / sizeof *counter_rows; i++) {
        const struct counter_row *row = &counter_rows[i];
        const void *counter = (const char *)c + row->offset;
        moe_metrics_add(m, MOE_METRIC_COUNTER, row->name, row->help, (double)read_counter(counter),
                        "%s", "");
    }
    for (uint32_t i = 0; i < MOE_BATCH_BUCKETS; i++) {
        moe_metrics_add(m, MOE_METRIC_COUNTER, "pregate_worker_batch_steps_total",
                        "Decode steps by number of sequences, up to a power of two",
                        (double)read_counter(&c->batch_bucket[i]), "batch=\"%u\"", 1u << i);
    }
    moe_metrics_add(m, MOE_METRIC_GAUGE, "pregate_worker_batch_max",
                    "Most sequences decoded together", (double)read_counter(&c->batch_max), "%s",
                    "");
}

void gw_engine_metrics(gw_engine *e, moe_metrics *m)
{
    moe_mutex_lock(&e->mu); /* the session must not go away meanwhile */
    moe_metrics_add(m, MOE_METRIC_GAUGE, "pregate_worker_ready", "1 when requests are served",
                    e->session != NULL ? 1.0 : 0.0, "%s", "");
    moe_metrics_add(m, MOE_METRIC_GAUGE, "pregate_worker_running", "Sequences being decoded",
                    (double)e->n_running, "%s", "");
    moe_metrics_add(m, MOE_METRIC_GAUGE, "pregate_worker_waiting", "Sequences in the queue",
                    (double)e->n_waiting, "%s", "");
    if (e->session != NULL) {
        add_counters(gw_store_client_counters(e->session->client), m);
        gw_pipeline_metrics(e->session->pipeline, m);
        moe_metrics_add(m, MOE_METRIC_GAUGE, "pregate_worker_prompts_on_tensor_cores",
                        "1: cuBLASLt multiplies the rows of prompts",
                        e->session->on_tensor_cores ? 1.0 : 0.0, "%s", "");
        moe_metrics_add(m, MOE_METRIC_GAUGE, "pregate_worker_predictors",
                        "Predictors of experts that the store has for an ordinary checkpoint",
                        (double)e->session->predictors.n, "%s", "");
    }
    moe_mutex_unlock(&e->mu);
    moe_metrics_add_histogram(m, "pregate_worker_first_token_seconds",
                              "From submission to the first token", &e->first_token_ns, "%s", "");
    moe_metrics_add_histogram(m, "pregate_worker_encode_seconds", "Encode steps", &e->encode_ns,
                              "%s", "");
    moe_metrics_add_histogram(m, "pregate_worker_decode_seconds", "Decode steps", &e->decode_ns,
                              "%s", "");
}
