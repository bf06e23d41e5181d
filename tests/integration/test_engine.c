/* The engine over a real store that is damaged, killed, and replaced under it. The demo
 * checkpoint's golden file says which answer is right, and which prompt needs which expert.
 *
 *   test_engine EXPERT_PACK EXPERT_STORE MODEL_DIR
 */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <cJSON.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/lock.h"
#include "common/log.h"
#include "expert-store/catalog/catalog.h"
#include "gpu-worker/engine/engine.h"
#include "tests/support/store_process.h"

enum { MAX_PROMPTS = 16, MAX_OUTPUT = 96, DAMAGED_BLOCK = 2, DAMAGED_EXPERT = 5 };

static const char *pack_program, *store_program, *model_dir;
static cJSON *cases;
static uint32_t n_cases;

static struct {
    store_process store;
    const krn_ops *ops;
    krn_device *device;
    gw_engine *engine;
    moe_mutex mu;
    moe_cond changed;
} the;

static struct run {
    uint32_t which; /* case */
    int32_t output[MAX_OUTPUT];
    uint32_t n_output; /* guarded by mu, like the rest */
    uint32_t n_done;
    gw_finish finish;
    moe_err err;
} runs[MAX_PROMPTS];

/* ---- store and engine ---- */

static void set_up(const char *ram, gw_policy policy, void (*before_serve)(const char *))
{
    const store_process_cfg cfg = {.pack_program = pack_program,
                                   .store_program = store_program,
                                   .model_dir = model_dir,
                                   .ram = ram,
                                   .before_serve = before_serve};
    const krn_open_cfg open_cfg = {.n_threads = 1};
    moe_err err = {0};
    memset(&the, 0, sizeof the);
    memset(runs, 0, sizeof runs);
    moe_mutex_init(&the.mu);
    moe_cond_init(&the.changed);
    store_process_start(&cfg, &the.store);
    assert_int_equal(MOE_OK, krn_ops_find("cpu", &the.ops, NULL, 0, &err));
    assert_int_equal(MOE_OK, the.ops->backend.open(&open_cfg, &the.device, &err));
    const gw_engine_cfg engine = {.ops = the.ops,
                                  .device = the.device,
                                  .endpoint = the.store.rig.endpoint,
                                  .connect_timeout_ns = 30 * MOE_NS_PER_S,
                                  .policy = policy,
                                  .max_batch = 6,
                                  .max_queue = MAX_PROMPTS,
                                  .max_input_tokens = 128,
                                  .max_output_tokens = MAX_OUTPUT,
                                  .max_encode_tokens = 256,
                                  .expert_deadline_ns = 60 * MOE_NS_PER_S};
    if (gw_engine_create(&engine, &the.engine, &err) != MOE_OK) {
        fail_msg("engine: %s", err.text);
    }
}

static int tear_down(void **state)
{
    (void)state;
    gw_engine_destroy(the.engine);
    the.ops->backend.close(the.device);
    int status = store_process_stop(&the.store);
    moe_cond_fini(&the.changed);
    moe_mutex_fini(&the.mu);
    return status;
}

static void wait_ready(bool ready)
{
    gw_engine_state s;
    int64_t deadline_ns = moe_now_ns() + 60 * MOE_NS_PER_S;
    do {
        moe_sleep_ns(5 * MOE_NS_PER_MS);
        gw_engine_get_state(the.engine, &s);
        assert_true(moe_now_ns() < deadline_ns);
    } while (s.ready != ready);
    assert_true(ready || s.note[0] != '\0');
}

/* ---- sequences ---- */

static void on_token(void *user, int32_t token, uint32_t index)
{
    struct run *r = user;
    moe_mutex_lock(&the.mu);
    r->output[index] = token;
    r->n_output = index + 1;
    moe_cond_broadcast(&the.changed);
    moe_mutex_unlock(&the.mu);
}

static void on_done(void *user, gw_finish finish, const moe_err *err)
{
    struct run *r = user;
    moe_mutex_lock(&the.mu);
    r->n_done++;
    r->finish = finish;
    if (err != NULL) {
        r->err = *err;
    }
    moe_cond_broadcast(&the.changed);
    moe_mutex_unlock(&the.mu);
}

static const cJSON *get(uint32_t which, const char *key)
{
    const cJSON *item = cJSON_GetObjectItem(cJSON_GetArrayItem(cases, (int)which), key);
    assert_non_null(item);
    return item;
}

static void submit(struct run *r, uint32_t which)
{
    int32_t ids[128];
    uint32_t n = 0;
    const cJSON *item = NULL;
    moe_err err = {0};
    cJSON_ArrayForEach(item, get(which, "input_ids"))
    {
        ids[n++] = item->valueint;
    }
    memset(r, 0, sizeof *r);
    r->which = which;
    const gw_request request = {.input_ids = ids,
                                .n_input = n,
                                .max_tokens = MAX_OUTPUT,
                                .top_p = 1.0f,
                                .on_token = on_token,
                                .on_done = on_done,
                                .user = r};
    if (gw_engine_submit(the.engine, &request, NULL, &err) != MOE_OK) {
        fail_msg("submit: %s", err.text);
    }
}

static void submit_all(void)
{
    for (uint32_t i = 0; i < n_cases; i++) {
        submit(&runs[i], i);
    }
}

static void wait_tokens(struct run *r, uint32_t n)
{
    moe_mutex_lock(&the.mu);
    while (r->n_output < n && r->n_done == 0) {
        moe_cond_wait(&the.changed, &the.mu);
    }
    moe_mutex_unlock(&the.mu);
}

static void wait_done(struct run *r)
{
    moe_mutex_lock(&the.mu);
    while (r->n_done == 0) {
        moe_cond_wait(&the.changed, &the.mu);
    }
    moe_mutex_unlock(&the.mu);
    assert_int_equal(1, r->n_done);
}

static void assert_right(const struct run *r)
{
    const cJSON *item = NULL;
    uint32_t i = 0;
    if (r->finish == GW_FINISH_ERROR) {
        fail_msg("prompt %u failed: %s", r->which, r->err.text);
    }
    assert_int_equal(cJSON_GetArraySize(get(r->which, "output_ids")), r->n_output);
    cJSON_ArrayForEach(item, get(r->which, "output_ids"))
    {
        assert_int_equal(item->valueint, r->output[i]);
        i++;
    }
}

/* ---- tests ---- */

/* First decoder position at which this prompt needs the damaged expert; -1: never. */
static int first_use(uint32_t which)
{
    const cJSON *block = cJSON_GetArrayItem(get(which, "decoder_experts"), DAMAGED_BLOCK);
    for (int i = 0; i < cJSON_GetArraySize(block); i++) {
        if (cJSON_GetArrayItem(block, i)->valueint == DAMAGED_EXPERT) {
            return i;
        }
    }
    return -1;
}

/* Flips one bit of that expert in its segment. */
static void damage_expert(const char *store_dir)
{
    char path[1024];
    xs_catalog *catalog = NULL;
    assert_int_equal(MOE_OK, xs_catalog_open(store_dir, &catalog, NULL));
    const moe_model_shape *shape = &xs_catalog_get_info(catalog)->shape;
    uint32_t index = moe_expert_index(shape, MOE_DECODER, DAMAGED_BLOCK, DAMAGED_EXPERT);
    const xs_extent *extent = &xs_catalog_expert(catalog, index)->extent;
    off_t at = (off_t)(extent->off + extent->payload_bytes / 2);
    xs_catalog_segment_path(catalog, extent->segment, path, sizeof path);
    xs_catalog_close(catalog);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    unsigned char byte = 0;
    assert_true(fd >= 0);
    assert_int_equal(1, pread(fd, &byte, 1, at));
    byte ^= 0x10;
    assert_int_equal(1, pwrite(fd, &byte, 1, at));
    close(fd);
}

static void damage_ends_only_the_answers_that_need_that_expert(void **state)
{
    (void)state;
    uint32_t n_hit = 0;
    set_up("25%", GW_ON_DEMAND, damage_expert);
    submit_all();
    for (uint32_t i = 0; i < n_cases; i++) {
        int use = first_use(i);
        wait_done(&runs[i]);
        if (use < 0) {
            assert_right(&runs[i]);
            continue;
        }
        n_hit++;
        assert_int_equal(GW_FINISH_ERROR, runs[i].finish);
        assert_int_equal(MOE_ERR_IO, runs[i].err.status);
        assert_non_null(strstr(runs[i].err.text, "checksum"));
        assert_int_equal(use, runs[i].n_output); /* up to there it was right */
    }
    assert_in_range(n_hit, 1, n_cases - 1); /* both kinds were there */
    gw_engine_state s;
    gw_engine_get_state(the.engine, &s);
    assert_true(s.ready);
}

static void a_killed_store_that_comes_back_is_not_noticed(void **state)
{
    (void)state;
    set_up("25%", GW_PREGATED, NULL);
    submit_all();
    wait_tokens(&runs[0], 3);
    store_process_restart(&the.store, SIGKILL);
    for (uint32_t i = 0; i < n_cases; i++) {
        wait_done(&runs[i]);
        assert_right(&runs[i]);
    }
}

static void a_replaced_store_ends_what_is_open_and_serves_what_follows(void **state)
{
    (void)state;
    set_up("25%", GW_PREGATED, NULL);
    submit_all();
    wait_tokens(&runs[0], 3);
    store_process_restart(&the.store, SIGTERM);
    uint32_t n_failed = 0;
    for (uint32_t i = 0; i < n_cases; i++) {
        wait_done(&runs[i]);
        if (runs[i].finish != GW_FINISH_ERROR) {
            assert_right(&runs[i]);
            continue;
        }
        n_failed++;
        assert_true(runs[i].err.status == MOE_ERR_DISCONNECTED || runs[i].err.status == MOE_ERR_IO);
        assert_true(runs[i].err.text[0] != '\0');
    }
    assert_true(n_failed > 0);
    wait_ready(true);
    submit(&runs[0], 0);
    wait_done(&runs[0]);
    assert_right(&runs[0]);
}

static void an_idle_engine_follows_a_replaced_store(void **state)
{
    (void)state;
    set_up("100%", GW_RESIDENT, NULL);
    submit(&runs[0], 1);
    wait_done(&runs[0]);
    assert_right(&runs[0]);
    store_process_restart(&the.store, SIGTERM);
    wait_ready(false);
    wait_ready(true);
    submit(&runs[0], 2);
    wait_done(&runs[0]);
    assert_right(&runs[0]);
}

static int read_cases(void)
{
    char path[1024];
    char *json = NULL;
    size_t bytes = 0;
    moe_err err = {0};
    (void)snprintf(path, sizeof path, "%s/golden.json", model_dir);
    if (moe_file_read(path, 64u << 20, &json, &bytes, &err) != MOE_OK) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    cases = cJSON_ParseWithLength(json, bytes);
    free(json);
    n_cases = (uint32_t)cJSON_GetArraySize(cases);
    n_cases = n_cases < MAX_PROMPTS ? n_cases : MAX_PROMPTS;
    return n_cases > 1 ? 0 : -1;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: %s EXPERT_PACK EXPERT_STORE MODEL_DIR\n", argv[0]);
        return 1;
    }
    pack_program = argv[1];
    store_program = argv[2];
    model_dir = argv[3];
    if (read_cases() != 0) {
        return 1;
    }
    moe_log_set_level(MOE_LOG_ERROR + 1); /* sessions end here on purpose */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(damage_ends_only_the_answers_that_need_that_expert, tear_down),
        cmocka_unit_test_teardown(a_killed_store_that_comes_back_is_not_noticed, tear_down),
        cmocka_unit_test_teardown(a_replaced_store_ends_what_is_open_and_serves_what_follows,
                                  tear_down),
        cmocka_unit_test_teardown(an_idle_engine_follows_a_replaced_store, tear_down),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cJSON_Delete(cases);
    return failed != 0;
}
