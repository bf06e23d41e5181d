/* The engine alone: who joins which step, who ends when and how. Session and forward pass are
 * replaced by fakes (--wrap): a sequence's tokens are its first input id, its last is the end
 * token after input[1] tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/lock.h"
#include "common/log.h"
#include "gpu-worker/engine/engine.h"
#include "gpu-worker/engine/session.h"

enum { EOS = 1, VOCAB = 100, MAX_BATCH = 3, MAX_QUEUE = 8, MAX_ENCODE = 10, MAX_STEPS = 4096 };

/* ---- the fake world; guarded by mu: the engine thread and the test both touch it ---- */

static struct {
    moe_mutex mu;
    moe_cond changed;
    moe_model_shape shape;
    moe_worker_counters counters;
    moe_status create_status; /* of the next session */
    const char *file_text;    /* of "spiece.model" in the store */
    uint32_t n_created, n_destroyed;
    bool store_lost;
    bool hold; /* decode steps wait */
    uint32_t n_held;
    moe_status step_status; /* of the next step */
    int32_t fail_first_id;  /* rows of sequences whose first input id is this fail; 0: none */
    bool fail_in_encode;
    uint32_t n_encodes, encode_tokens[MAX_STEPS], encode_first[MAX_STEPS];
    uint32_t n_decodes, decode_batch[MAX_STEPS];
    bool wanted_logits;
    int32_t next[MAX_BATCH], row_failed[64];
    float logits[MAX_BATCH * VOCAB];
} world;

static moe_status fake_alloc(krn_device *d, size_t bytes, void **out, moe_err *err)
{
    (void)d;
    *out = malloc(bytes);
    return *out != NULL ? MOE_OK : MOE_FAIL(err, MOE_ERR_NO_MEMORY, "test");
}

static void fake_free(krn_device *d, void *p)
{
    (void)d;
    free(p);
}

static const krn_ops fake_ops = {.backend = {.mem_alloc = fake_alloc, .mem_free = fake_free}};

moe_status __wrap_gw_session_create(const gw_engine_cfg *cfg, int64_t connect_timeout_ns,
                                    const moe_model_shape *expected, gw_session **out,
                                    moe_err *err);
moe_status __wrap_gw_session_create(const gw_engine_cfg *cfg, int64_t connect_timeout_ns,
                                    const moe_model_shape *expected, gw_session **out, moe_err *err)
{
    (void)connect_timeout_ns;
    (void)expected;
    moe_mutex_lock(&world.mu);
    moe_status st = world.create_status;
    world.n_created += st == MOE_OK;
    moe_cond_broadcast(&world.changed);
    moe_mutex_unlock(&world.mu);
    if (st != MOE_OK) {
        return MOE_FAIL(err, st, "no session for you");
    }
    gw_session *s = calloc(1, sizeof *s);
    const gw_kv_cache_cfg kv = {.ops = &fake_ops,
                                .n_layers = 1,
                                .width = 1,
                                .n_places = cfg->max_batch,
                                .max_input = cfg->max_input_tokens,
                                .max_output = cfg->max_output_tokens};
    if (s == NULL || gw_kv_cache_create(&kv, &s->kv, err) != MOE_OK) {
        abort();
    }
    *out = s;
    return MOE_OK;
}

void __wrap_gw_session_destroy(gw_session *s);
void __wrap_gw_session_destroy(gw_session *s)
{
    if (s == NULL) {
        return;
    }
    gw_kv_cache_destroy(s->kv);
    free(s);
    moe_mutex_lock(&world.mu);
    world.n_destroyed++;
    moe_cond_broadcast(&world.changed);
    moe_mutex_unlock(&world.mu);
}

const moe_model_shape *__wrap_gw_store_client_shape(const gw_store_client *c);
const moe_model_shape *__wrap_gw_store_client_shape(const gw_store_client *c)
{
    (void)c;
    return &world.shape;
}

const wire_welcome *__wrap_gw_store_client_welcome(const gw_store_client *c);
const wire_welcome *__wrap_gw_store_client_welcome(const gw_store_client *c)
{
    static const wire_welcome welcome = {.model_name = "fake"};
    (void)c;
    return &welcome;
}

moe_worker_counters *__wrap_gw_store_client_counters(const gw_store_client *c);
moe_worker_counters *__wrap_gw_store_client_counters(const gw_store_client *c)
{
    (void)c;
    return &world.counters;
}

const moe_dense_entry *__wrap_gw_store_client_dense(const gw_store_client *c, const char *name,
                                                    moe_dense_kind kind, const void **out_payload);
const moe_dense_entry *__wrap_gw_store_client_dense(const gw_store_client *c, const char *name,
                                                    moe_dense_kind kind, const void **out_payload)
{
    static moe_dense_entry entry;
    (void)c;
    if (kind != MOE_DENSE_FILE || strcmp(name, "spiece.model") != 0) {
        return NULL;
    }
    moe_mutex_lock(&world.mu);
    *out_payload = world.file_text;
    entry.bytes = strlen(world.file_text);
    moe_mutex_unlock(&world.mu);
    return &entry;
}

void __wrap_gw_pipeline_metrics(const gw_pipeline *p, moe_metrics *m);
void __wrap_gw_pipeline_metrics(const gw_pipeline *p, moe_metrics *m)
{
    (void)p;
    (void)m;
}

bool __wrap_gw_pipeline_store_lost(const gw_pipeline *p);
bool __wrap_gw_pipeline_store_lost(const gw_pipeline *p)
{
    (void)p;
    moe_mutex_lock(&world.mu);
    bool lost = world.store_lost;
    world.store_lost = false; /* the next session is a good one */
    moe_mutex_unlock(&world.mu);
    return lost;
}

static bool fails(const gw_sequence *s, bool encode)
{
    return world.fail_in_encode == encode && s->request.input_ids[0] == world.fail_first_id;
}

static moe_status begin_step_locked(gw_step_result *out, moe_err *err) MOE_REQUIRES(world.mu);
static moe_status begin_step_locked(gw_step_result *out, moe_err *err)
{
    moe_status st = world.step_status;
    world.step_status = MOE_OK;
    memset(world.row_failed, 0, sizeof world.row_failed);
    *out = (gw_step_result){.view = {.logits = world.logits},
                            .next = world.next,
                            .row_failed = world.row_failed,
                            .failed_text = "the drive is on fire"};
    return st == MOE_OK ? MOE_OK : MOE_FAIL(err, st, "the step broke");
}

moe_status __wrap_gw_forward_encode(gw_forward *f, gw_sequence *const *seqs, uint32_t n,
                                    bool want_record, gw_step_result *out, moe_err *err);
moe_status __wrap_gw_forward_encode(gw_forward *f, gw_sequence *const *seqs, uint32_t n,
                                    bool want_record, gw_step_result *out, moe_err *err)
{
    (void)f;
    (void)want_record;
    moe_mutex_lock(&world.mu);
    moe_status st = begin_step_locked(out, err);
    uint32_t row = 0;
    for (uint32_t i = 0; i < n; i++) {
        const gw_request *r = &seqs[i]->request;
        if (fails(seqs[i], true)) {
            world.row_failed[row + r->n_input - 1] = 1; /* one row is enough */
        }
        row += r->n_input;
    }
    world.encode_tokens[world.n_encodes] = row;
    world.encode_first[world.n_encodes++] = (uint32_t)seqs[0]->request.input_ids[0];
    moe_mutex_unlock(&world.mu);
    return st;
}

moe_status __wrap_gw_forward_decode(gw_forward *f, gw_sequence *const *seqs, uint32_t n,
                                    bool want_record, bool want_logits, gw_step_result *out,
                                    moe_err *err);
moe_status __wrap_gw_forward_decode(gw_forward *f, gw_sequence *const *seqs, uint32_t n,
                                    bool want_record, bool want_logits, gw_step_result *out,
                                    moe_err *err)
{
    (void)f;
    (void)want_record;
    moe_mutex_lock(&world.mu);
    world.n_held++;
    moe_cond_broadcast(&world.changed);
    while (world.hold) {
        moe_cond_wait(&world.changed, &world.mu);
    }
    moe_status st = begin_step_locked(out, err);
    world.wanted_logits = want_logits;
    world.decode_batch[world.n_decodes++ % MAX_STEPS] = n;
    for (uint32_t i = 0; i < n; i++) {
        const int32_t *input = seqs[i]->request.input_ids;
        bool last = (int32_t)seqs[i]->position + 1 >= input[1];
        world.next[i] = last ? EOS : input[0];
        world.row_failed[i] = fails(seqs[i], false);
    }
    moe_mutex_unlock(&world.mu);
    return st;
}

/* ---- clients ---- */

typedef struct client {
    gw_engine *engine;
    uint64_t id;
    int32_t tokens[64];
    uint32_t n_tokens;
    bool cancel_itself;
    uint32_t n_done; /* guarded by world.mu, like finish and err */
    gw_finish finish;
    moe_err err;
} client;

static void on_token(void *user, int32_t token, uint32_t index)
{
    client *c = user;
    if (index < 64) {
        c->tokens[index] = token;
    }
    c->n_tokens = index + 1;
    if (c->cancel_itself) {
        gw_engine_cancel(c->engine, c->id);
    }
}

static void on_done(void *user, gw_finish finish, const moe_err *err)
{
    client *c = user;
    moe_mutex_lock(&world.mu);
    c->n_done++;
    c->finish = finish;
    if (err != NULL) {
        c->err = *err;
    }
    moe_cond_broadcast(&world.changed);
    moe_mutex_unlock(&world.mu);
}

static void wait_done(client *c)
{
    moe_mutex_lock(&world.mu);
    while (c->n_done == 0) {
        moe_cond_wait(&world.changed, &world.mu);
    }
    moe_mutex_unlock(&world.mu);
}

static void wait_held(uint32_t n)
{
    moe_mutex_lock(&world.mu);
    while (world.n_held < n) {
        moe_cond_wait(&world.changed, &world.mu);
    }
    moe_mutex_unlock(&world.mu);
}

static void set_hold(bool hold)
{
    moe_mutex_lock(&world.mu);
    world.hold = hold;
    moe_cond_broadcast(&world.changed);
    moe_mutex_unlock(&world.mu);
}

static gw_engine *engine;

static moe_status try_submit(client *c, int32_t first, int32_t n_tokens, uint32_t n_input,
                             moe_err *err)
{
    int32_t input[16] = {first, n_tokens};
    input[n_input - 1] = EOS;
    const gw_request r = {.input_ids = input,
                          .n_input = n_input,
                          .max_tokens = 50,
                          .top_p = 1.0f,
                          .on_token = on_token,
                          .on_done = on_done,
                          .user = c};
    c->engine = engine;
    return gw_engine_submit(engine, &r, &c->id, err);
}

static void submit(client *c, int32_t first, int32_t n_tokens, uint32_t n_input)
{
    moe_err err = {0};
    if (try_submit(c, first, n_tokens, n_input, &err) != MOE_OK) {
        fail_msg("submit: %s", err.text);
    }
}

static gw_engine_cfg small_cfg(void)
{
    return (gw_engine_cfg){.ops = &fake_ops,
                           .endpoint = "ipc:///nowhere",
                           .max_batch = MAX_BATCH,
                           .max_queue = MAX_QUEUE,
                           .max_input_tokens = MAX_ENCODE,
                           .max_output_tokens = 60,
                           .max_encode_tokens = MAX_ENCODE};
}

static int start(void **state)
{
    (void)state;
    memset(&world, 0, sizeof world);
    moe_mutex_init(&world.mu);
    moe_cond_init(&world.changed);
    world.shape = (moe_model_shape){.vocab = VOCAB, .eos_id = EOS, .d_model = 1};
    world.file_text = "pieces";
    const gw_engine_cfg cfg = small_cfg();
    return gw_engine_create(&cfg, &engine, NULL) == MOE_OK ? 0 : -1;
}

static int stop(void **state)
{
    (void)state;
    gw_engine_destroy(engine);
    engine = NULL;
    int leaked = world.n_created != world.n_destroyed;
    moe_cond_fini(&world.changed);
    moe_mutex_fini(&world.mu);
    return leaked;
}

static void wait_ready(bool ready)
{
    gw_engine_state s;
    do {
        moe_sleep_ns(MOE_NS_PER_MS);
        gw_engine_get_state(engine, &s);
    } while (s.ready != ready);
}

/* ---- tests ---- */

static void an_answer_ends_with_the_end_token(void **state)
{
    (void)state;
    client c = {0};
    submit(&c, 7, 4, 3);
    wait_done(&c);
    const int32_t expected[] = {7, 7, 7, EOS};
    assert_int_equal(GW_FINISH_STOP, c.finish);
    assert_int_equal(4, c.n_tokens);
    assert_memory_equal(expected, c.tokens, sizeof expected);
}

static void sequences_join_and_leave_between_steps(void **state)
{
    (void)state;
    client c[5] = {{0}};
    set_hold(true);
    submit(&c[0], 10, 20, 3);
    wait_held(1);
    for (int i = 1; i < 5; i++) {
        submit(&c[i], 10 + i, 5, 3);
    }
    set_hold(false);
    for (int i = 0; i < 5; i++) {
        wait_done(&c[i]);
        assert_int_equal(i == 0 ? 20 : 5, c[i].n_tokens);
        assert_int_equal(10 + i, c[i].tokens[0]);
    }
    uint32_t largest = 0;
    for (uint32_t i = 0; i < world.n_decodes; i++) {
        largest = world.decode_batch[i] > largest ? world.decode_batch[i] : largest;
    }
    assert_int_equal(1, world.decode_batch[0]);
    assert_int_equal(MAX_BATCH, largest);
    assert_int_equal(20, world.n_decodes); /* all others ran beside the long one */
}

static void an_encode_step_is_bounded_and_in_order(void **state)
{
    (void)state;
    client c[4] = {{0}};
    set_hold(true);
    submit(&c[0], 20, 30, 3);
    wait_held(1);
    submit(&c[1], 21, 3, 6);
    submit(&c[2], 22, 3, 6); /* does not fit beside the 6 before it */
    submit(&c[3], 23, 3, 3); /* would fit, but does not overtake */
    set_hold(false);
    for (int i = 0; i < 4; i++) {
        wait_done(&c[i]);
    }
    const uint32_t firsts[] = {20, 21, 22, 23};
    for (uint32_t i = 0; i < world.n_encodes; i++) {
        assert_true(world.encode_tokens[i] <= MAX_ENCODE);
        assert_int_equal(firsts[i], world.encode_first[i]);
    }
}

static void a_lost_expert_ends_only_the_sequences_that_need_it(void **state)
{
    (void)state;
    for (int in_encode = 0; in_encode < 2; in_encode++) {
        client c[3] = {{0}};
        moe_mutex_lock(&world.mu);
        world.fail_first_id = 31;
        world.fail_in_encode = in_encode != 0;
        moe_mutex_unlock(&world.mu);
        for (int i = 0; i < 3; i++) {
            submit(&c[i], 30 + i, 5, 3);
        }
        for (int i = 0; i < 3; i++) {
            wait_done(&c[i]);
            assert_int_equal(i == 1 ? GW_FINISH_ERROR : GW_FINISH_STOP, c[i].finish);
        }
        assert_int_equal(MOE_ERR_IO, c[1].err.status);
        assert_non_null(strstr(c[1].err.text, "the drive is on fire"));
        assert_int_equal(0, c[1].n_tokens);
        assert_int_equal(5, c[2].n_tokens);
    }
    assert_int_equal(1, world.n_created);
}

static void a_lost_store_ends_all_and_a_new_session_goes_on(void **state)
{
    (void)state;
    client c[5] = {{0}};
    set_hold(true);
    submit(&c[0], 40, 30, 3);
    wait_held(1);
    for (int i = 1; i < 5; i++) {
        submit(&c[i], 40 + i, 5, 3);
    }
    moe_mutex_lock(&world.mu);
    world.step_status = MOE_ERR_DISCONNECTED;
    world.create_status = MOE_ERR_TIMEOUT;
    moe_mutex_unlock(&world.mu);
    set_hold(false);
    for (int i = 0; i < 5; i++) { /* running and waiting ones */
        wait_done(&c[i]);
        assert_int_equal(GW_FINISH_ERROR, c[i].finish);
        assert_int_equal(MOE_ERR_DISCONNECTED, c[i].err.status);
        assert_int_equal(1, c[i].n_done);
    }
    wait_ready(false);
    client late = {0};
    moe_err err = {0};
    assert_int_equal(MOE_ERR_DISCONNECTED, try_submit(&late, 50, 2, 3, &err));
    gw_engine_state s;
    gw_engine_get_state(engine, &s);
    assert_true(s.note[0] != '\0');
    moe_mutex_lock(&world.mu);
    world.create_status = MOE_OK;
    moe_mutex_unlock(&world.mu);
    wait_ready(true);
    submit(&late, 50, 2, 3);
    wait_done(&late);
    assert_int_equal(GW_FINISH_STOP, late.finish);
    assert_int_equal(2, world.n_created);
}

static void an_idle_engine_notices_a_lost_store(void **state)
{
    (void)state;
    moe_mutex_lock(&world.mu);
    world.store_lost = true;
    while (world.n_created < 2) {
        moe_cond_wait(&world.changed, &world.mu);
    }
    moe_mutex_unlock(&world.mu);
    wait_ready(true);
    assert_int_equal(1, world.n_destroyed);
}

static void a_store_with_other_files_is_not_attached(void **state)
{
    (void)state;
    const void *data = NULL;
    uint64_t bytes = 0;
    assert_int_equal(MOE_OK, gw_engine_file(engine, "spiece.model", &data, &bytes, NULL));
    assert_int_equal(6, bytes);
    moe_mutex_lock(&world.mu);
    world.file_text = "other pieces";
    world.store_lost = true;
    while (world.n_created < 3) { /* tried again and again */
        moe_cond_wait(&world.changed, &world.mu);
    }
    moe_mutex_unlock(&world.mu);
    gw_engine_state s;
    gw_engine_get_state(engine, &s);
    assert_false(s.ready);
    assert_non_null(strstr(s.note, "spiece.model"));
    assert_memory_equal("pieces", data, 6); /* ours until destroy */
}

static void files_are_found_by_name(void **state)
{
    (void)state;
    const void *data = NULL;
    const void *again = NULL;
    uint64_t bytes = 0;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_NOT_FOUND, gw_engine_file(engine, "nothing", &data, &bytes, &err));
    assert_non_null(strstr(err.text, "nothing"));
    assert_int_equal(MOE_OK, gw_engine_file(engine, "spiece.model", &data, &bytes, NULL));
    assert_int_equal(MOE_OK, gw_engine_file(engine, "spiece.model", &again, &bytes, NULL));
    assert_ptr_equal(data, again);
    assert_string_equal("fake", gw_engine_model_name(engine));
    assert_int_equal(VOCAB, gw_engine_shape(engine)->vocab);
}

static void cancel_ends_running_and_waiting_ones_once(void **state)
{
    (void)state;
    client c[5] = {{0}};
    set_hold(true);
    submit(&c[0], 60, 40, 3);
    wait_held(1);
    for (int i = 1; i < 5; i++) {
        submit(&c[i], 60 + i, 6, 3);
    }
    gw_engine_cancel(engine, c[0].id);
    gw_engine_cancel(engine, c[4].id);
    gw_engine_cancel(engine, c[4].id);
    gw_engine_cancel(engine, 12345); /* unknown: nothing */
    set_hold(false);
    for (int i = 0; i < 5; i++) {
        bool cancelled = i == 0 || i == 4;
        wait_done(&c[i]);
        assert_int_equal(1, c[i].n_done);
        assert_int_equal(cancelled ? GW_FINISH_ERROR : GW_FINISH_STOP, c[i].finish);
        assert_int_equal(cancelled ? MOE_ERR_CANCELLED : MOE_OK, c[i].err.status);
    }
    assert_int_equal(1, c[0].n_tokens); /* of the step that was under way */
    assert_int_equal(0, c[4].n_tokens);
}

static void a_callback_may_cancel(void **state)
{
    (void)state;
    client c = {.cancel_itself = true};
    set_hold(true);
    submit(&c, 70, 40, 3);
    wait_held(1); /* c.id is set before its first token */
    set_hold(false);
    wait_done(&c);
    assert_int_equal(MOE_ERR_CANCELLED, c.err.status);
    assert_int_equal(1, c.n_tokens);
}

static void a_full_queue_refuses(void **state)
{
    (void)state;
    client c[1 + MAX_QUEUE] = {{0}};
    client refused = {0};
    moe_err err = {0};
    set_hold(true);
    submit(&c[0], 80, 3, 3);
    wait_held(1);
    for (int i = 1; i <= MAX_QUEUE; i++) {
        submit(&c[i], 80, 3, 3);
    }
    gw_engine_state s;
    gw_engine_get_state(engine, &s);
    assert_int_equal(1, s.running);
    assert_int_equal(MAX_QUEUE, s.waiting);
    assert_int_equal(MOE_ERR_BUSY, try_submit(&refused, 80, 3, 3, &err));
    assert_non_null(strstr(err.text, "max_queue"));
    set_hold(false);
    for (int i = 0; i <= MAX_QUEUE; i++) {
        wait_done(&c[i]);
    }
    assert_int_equal(0, refused.n_done);
}

static void sampling_asks_for_logits_and_obeys_them(void **state)
{
    (void)state;
    client c = {0};
    const int32_t input[] = {90, 3, EOS};
    for (int i = 0; i < MAX_BATCH * VOCAB; i++) {
        world.logits[i] = i % VOCAB == 42 ? 100.0f : 0.0f;
    }
    const gw_request r = {.input_ids = input,
                          .n_input = 3,
                          .max_tokens = 3,
                          .temperature = 1.0f,
                          .top_p = 0.9f,
                          .on_token = on_token,
                          .on_done = on_done,
                          .user = &c};
    assert_int_equal(MOE_OK, gw_engine_submit(engine, &r, NULL, NULL));
    wait_done(&c);
    assert_true(world.wanted_logits);
    assert_int_equal(GW_FINISH_LENGTH, c.finish);
    assert_int_equal(42, c.tokens[0]);
    client greedy = {0};
    submit(&greedy, 91, 2, 3);
    wait_done(&greedy);
    assert_false(world.wanted_logits);
}

static void counters_and_metrics_follow(void **state)
{
    (void)state;
    client c[3] = {{0}};
    set_hold(true);
    for (int i = 0; i < 3; i++) {
        submit(&c[i], 92, 4, 3);
    }
    set_hold(false);
    for (int i = 0; i < 3; i++) {
        wait_done(&c[i]);
    }
    moe_metrics m;
    moe_metrics_init(&m);
    gw_engine_metrics(engine, &m);
    assert_true(moe_metrics_find(&m, "pregate_worker_prompt_tokens_total", NULL) == 9.0);
    assert_true(moe_metrics_find(&m, "pregate_worker_output_tokens_total", NULL) == 12.0);
    assert_true(moe_metrics_find(&m, "pregate_worker_sequences_finished_total", NULL) == 3.0);
    assert_true(moe_metrics_find(&m, "pregate_worker_ready", NULL) == 1.0);
    double steps = 0;
    for (uint32_t i = 0; i < MOE_BATCH_BUCKETS; i++) {
        steps += (double)world.counters.batch_bucket[i];
    }
    assert_true(steps == world.n_decodes);
    assert_int_equal(0, m.failed);
    moe_metrics_fini(&m);
}

static void a_stop_cancels_what_is_open(void **state)
{
    (void)state;
    client c[5] = {{0}};
    for (int i = 0; i < 5; i++) {
        submit(&c[i], 95, 49, 3);
    }
    gw_engine_destroy(engine); /* the engine may be anywhere */
    engine = NULL;
    for (int i = 0; i < 5; i++) {
        assert_int_equal(1, c[i].n_done);
        assert_true(c[i].finish == GW_FINISH_STOP || c[i].err.status == MOE_ERR_CANCELLED);
    }
}

static void a_failed_start_says_why(void **state)
{
    (void)state;
    gw_engine *e = NULL;
    moe_err err = {0};
    gw_engine_cfg cfg = small_cfg();
    world.create_status = MOE_ERR_TIMEOUT;
    assert_int_equal(MOE_ERR_TIMEOUT, gw_engine_create(&cfg, &e, &err));
    assert_null(e);
    assert_string_equal("no session for you", err.text);
    cfg.max_encode_tokens = cfg.max_input_tokens - 1;
    assert_int_equal(MOE_ERR_INVALID, gw_engine_create(&cfg, &e, &err));
    assert_non_null(strstr(err.text, "max_encode_tokens"));
    cfg = small_cfg();
    cfg.max_batch = 0;
    assert_int_equal(MOE_ERR_INVALID, gw_engine_create(&cfg, &e, &err));
    assert_non_null(strstr(err.text, "max_batch"));
    gw_engine_destroy(NULL);
}

#define ENGINE_TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ENGINE_TEST(an_answer_ends_with_the_end_token),
        ENGINE_TEST(sequences_join_and_leave_between_steps),
        ENGINE_TEST(an_encode_step_is_bounded_and_in_order),
        ENGINE_TEST(a_lost_expert_ends_only_the_sequences_that_need_it),
        ENGINE_TEST(a_lost_store_ends_all_and_a_new_session_goes_on),
        ENGINE_TEST(an_idle_engine_notices_a_lost_store),
        ENGINE_TEST(a_store_with_other_files_is_not_attached),
        ENGINE_TEST(files_are_found_by_name),
        ENGINE_TEST(cancel_ends_running_and_waiting_ones_once),
        ENGINE_TEST(a_callback_may_cancel),
        ENGINE_TEST(a_full_queue_refuses),
        ENGINE_TEST(sampling_asks_for_logits_and_obeys_them),
        ENGINE_TEST(counters_and_metrics_follow),
        ENGINE_TEST(a_stop_cancels_what_is_open),
        ENGINE_TEST(a_failed_start_says_why),
    };
    moe_log_set_level(MOE_LOG_ERROR + 1); /* sessions end here on purpose */
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
