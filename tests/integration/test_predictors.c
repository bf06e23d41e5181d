/* Predictors at work: calibrated by the program, put into the store, used by the engine; and made
 * always wrong. Whatever is guessed, every answer is the golden file's. On a pre-gated checkpoint
 * there is one: of a token's first block.
 *
 *   test_predictors EXPERT_PACK EXPERT_STORE GPU_WORKER MODEL_DIR FIT_TEXT [cpu|cuda]
 */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include <cjson/cJSON.h>

#include "common/bytes.h"
#include "common/clock.h"
#include "common/file.h"
#include "gpu-worker/engine/engine.h"
#include "gpu-worker/quality/jobs.h"
#include "tests/support/store_process.h"

enum { N_CASES = 6, MAX_OUTPUT = 96, PATH = 192 };

static struct {
    const char *pack_program, *worker_program, *fit_text, *backend;
    store_process store;
    char good[PATH], bad[PATH]; /* predictor files */
    cJSON *cases;
    const krn_ops *ops;
    krn_device *device;
} the;

static void run(const char *const *argv, const char *out)
{
    int status = -1;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        if (out != NULL) {
            int fd = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0600);
            dup2(fd, STDOUT_FILENO);
        }
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    assert_int_equal(pid, waitpid(pid, &status, 0));
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static char *read_file(const char *path, size_t *out_bytes)
{
    char *data = NULL;
    assert_int_equal(MOE_OK, moe_file_read(path, 64u << 20, &data, out_bytes, NULL));
    return data;
}

/* The same predictors with every weight negated: what seemed the most likely expert is now the
 * least likely one, so the first guess is wrong whenever the calibrated one makes any sense. */
static void write_negated(void)
{
    size_t bytes = 0;
    char *data = read_file(the.good, &bytes);
    size_t first = 8 + (size_t)moe_load_le64(data);
    for (size_t i = first + 3; i < bytes; i += 4) {
        data[i] ^= (char)0x80; /* the sign of a little-endian f32 */
    }
    FILE *f = fopen(the.bad, "wb");
    assert_non_null(f);
    assert_int_equal(1, fwrite(data, bytes, 1, f));
    assert_int_equal(0, fclose(f));
    free(data);
}

static double share(const cJSON *item, const char *who)
{
    const cJSON *r = cJSON_GetObjectItem(cJSON_GetObjectItem(item, who), "recall_at_1");
    assert_non_null(r);
    return r->valuedouble;
}

/* Calibrates the served model; the report is the caller's. */
static cJSON *calibrate(void)
{
    char report[PATH];
    snprintf(report, sizeof report, "%s/report.json", the.store.rig.dir);
    const char *const argv[] = {
        the.worker_program, "calibrate",  "--endpoint",     the.store.rig.endpoint,
        "--pairs",          the.fit_text, "--limit",        "100",
        "--lookahead",      "2",          "--out",          the.good,
        "--backend",        the.backend,  "--fetch-policy", "pregated",
        "--cells",          "16",         "--log-level",    "warn",
        "--json",           NULL};
    run(argv, report);
    write_negated();
    size_t bytes = 0;
    char *text = read_file(report, &bytes);
    cJSON *json = cJSON_ParseWithLength(text, bytes);
    free(text);
    assert_non_null(json);
    return json;
}

static void calibrated_guesses_beat_the_start_on_every_block(void **state)
{
    (void)state;
    cJSON *json = calibrate();
    const cJSON *item = NULL;
    int n = 0, n_first_block = 0;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(json, "predictors"))
    {
        if (cJSON_GetObjectItem(item, "lookahead")->valueint == 1) {
            assert_true(share(item, "calibrated") > share(item, "start"));
            n_first_block += cJSON_IsTrue(cJSON_GetObjectItem(item, "next_token"));
            n++;
        }
    }
    assert_int_equal(2 + 3 + 1, n);
    assert_int_equal(1, n_first_block);
    cJSON_Delete(json);
}

/* ---- running the golden prompts -------------------------------------------------------------- */

static gw_engine *open_engine(gw_engine_cfg cfg)
{
    gw_engine *engine = NULL;
    moe_err err = {0};
    cfg.ops = the.ops;
    cfg.device = the.device;
    cfg.endpoint = the.store.rig.endpoint;
    cfg.connect_timeout_ns = 30 * MOE_NS_PER_S;
    cfg.max_batch = 2;
    cfg.max_queue = N_CASES;
    cfg.max_input_tokens = 128;
    cfg.max_output_tokens = MAX_OUTPUT;
    cfg.max_encode_tokens = 256;
    cfg.expert_deadline_ns = 60 * MOE_NS_PER_S;
    if (gw_engine_create(&cfg, &engine, &err) != MOE_OK) {
        fail_msg("engine: %s", err.text);
    }
    return engine;
}

static int32_t *ids_of(const cJSON *array, uint32_t *out_n)
{
    const cJSON *item = NULL;
    int32_t *ids = calloc((size_t)cJSON_GetArraySize(array) + 1, sizeof *ids);
    assert_non_null(ids);
    *out_n = 0;
    cJSON_ArrayForEach(item, array)
    {
        ids[(*out_n)++] = item->valueint;
    }
    return ids;
}

static void assert_golden_answers(gw_engine *engine)
{
    gw_job jobs[N_CASES];
    int32_t *inputs[N_CASES], *expected[N_CASES];
    uint32_t n_expected[N_CASES];
    moe_err err = {0};
    for (int i = 0; i < N_CASES; i++) {
        const cJSON *c = cJSON_GetArrayItem(the.cases, i);
        jobs[i] = (gw_job){.max_tokens = MAX_OUTPUT};
        inputs[i] = ids_of(cJSON_GetObjectItem(c, "input_ids"), &jobs[i].n_input);
        expected[i] = ids_of(cJSON_GetObjectItem(c, "output_ids"), &n_expected[i]);
        jobs[i].input = inputs[i];
    }
    if (gw_jobs_run(engine, jobs, N_CASES, &err) != MOE_OK) {
        fail_msg("%s", err.text);
    }
    for (int i = 0; i < N_CASES; i++) {
        assert_int_equal(n_expected[i], jobs[i].n_ids);
        assert_memory_equal(expected[i], jobs[i].ids, n_expected[i] * sizeof(int32_t));
        free(inputs[i]);
        free(expected[i]);
    }
    gw_jobs_fini(jobs, N_CASES);
}

/* ---- what it cost ---------------------------------------------------------------------------- */

typedef struct costs {
    double used, wasted, wasted_bytes, passed_over, blocks_off, predicted, demanded, missed;
    double predicted_first; /* copies guessed for the decoder's first block */
    double predictors, told;
} costs;

static double value(const moe_metrics *m, const char *name, const char *labels)
{
    double v = moe_metrics_find(m, name, labels);
    if (isnan(v)) {
        fail_msg("no metric %s %s", name, labels != NULL ? labels : "");
    }
    return v;
}

static costs costs_of(gw_engine *engine)
{
    static const char *const blocks[] = {"enc0", "enc1", "enc2", "dec0", "dec1", "dec2", "dec3"};
    costs c = {0};
    moe_metrics m;
    moe_metrics_init(&m);
    gw_engine_metrics(engine, &m);
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++) {
        char labels[32];
        snprintf(labels, sizeof labels, "block=\"%s\"", blocks[i]);
        c.used += value(&m, "pregate_worker_guess_used_total", labels);
        c.wasted += value(&m, "pregate_worker_guess_wasted_total", labels);
        c.wasted_bytes += value(&m, "pregate_worker_guess_wasted_bytes_total", labels);
        c.blocks_off += value(&m, "pregate_worker_guess_off", labels);
        c.predicted += value(&m, "pregate_worker_fetch_predicted_total", labels);
        c.demanded += value(&m, "pregate_worker_fetch_demand_total", labels);
        c.missed += value(&m, "pregate_worker_cell_miss_total", labels);
        double useful = value(&m, "pregate_worker_guess_useful_ratio", labels);
        assert_true(useful >= 0 && useful <= 1);
    }
    c.predicted_first = value(&m, "pregate_worker_fetch_predicted_total", "block=\"dec0\"");
    c.passed_over = value(&m, "pregate_worker_guesses_passed_over_total", NULL);
    c.predictors = value(&m, "pregate_worker_predictors", NULL);
    c.told = value(&m, "pregate_worker_predictions_sent_total", NULL);
    moe_metrics_fini(&m);
    return c;
}

static costs run_with(gw_engine_cfg cfg)
{
    cfg.policy = GW_PREGATED;
    gw_engine *engine = open_engine(cfg);
    assert_golden_answers(engine);
    costs c = costs_of(engine);
    gw_engine_destroy(engine);
    return c;
}

/* Into the store, which is then killed and started again: it must not adopt its old memory. */
static void serve_with(const char *predictors)
{
    char store[PATH];
    snprintf(store, sizeof store, "%s/model.store", the.store.rig.dir);
    const char *const argv[] = {the.pack_program, "add", store, predictors, NULL};
    run(argv, "/dev/null");
    store_process_restart(&the.store, SIGKILL);
}

static void good_guesses_are_used_and_pay(void **state)
{
    (void)state;
    serve_with(the.good);
    costs c = run_with((gw_engine_cfg){.n_cells = 12});
    assert_true(c.predictors == 3 + 4 + 4); /* lookahead 1 and 2; the decoder's wrap */
    assert_true(c.used > 0 && c.predicted > 0);
    assert_true(c.predicted_first > 0); /* by the last block of the token before */
    costs none = run_with((gw_engine_cfg){.n_cells = 12, .predict = GW_PREDICT_NONE});
    assert_true(none.predicted == 0 && none.used == 0 && none.wasted == 0);
    assert_true(c.demanded < none.demanded);
    costs router = run_with((gw_engine_cfg){.n_cells = 12, .predict = GW_PREDICT_ROUTER});
    assert_true(router.predicted > 0 && router.predicted_first == 0);
    assert_true(router.demanded < none.demanded);
}

static void more_guesses_and_further_ones_change_no_answer(void **state)
{
    (void)state;
    costs c = run_with((gw_engine_cfg){.n_cells = 12, .predict_top = 3, .lookahead = 2});
    assert_true(c.used > 0);
    (void)run_with((gw_engine_cfg){.n_cells = 2, .predict_top = 8, .lookahead = 4});
}

static void a_budget_bounds_what_a_step_guesses(void **state)
{
    (void)state;
    costs none = run_with((gw_engine_cfg){.n_cells = 12, .predict_bytes = 1});
    assert_true(none.used == 0 && none.wasted == 0); /* less than one expert */
    costs all = run_with((gw_engine_cfg){.n_cells = 12});
    uint64_t expert_bytes = 2ull * 192 * 384 * 2;
    costs one = run_with((gw_engine_cfg){.n_cells = 12, .predict_bytes = expert_bytes});
    assert_true(one.used > 0 && one.used < all.used); /* of up to eight guesses in a step */
}

static void always_wrong_guesses_change_no_answer_and_are_turned_off(void **state)
{
    (void)state;
    serve_with(the.bad);
    gw_engine *engine = open_engine((gw_engine_cfg){.policy = GW_PREGATED, .n_cells = 8});
    costs c = {0};
    for (int i = 0; i < 10 && (c.blocks_off == 0 || c.passed_over == 0); i++) {
        assert_golden_answers(engine);
        c = costs_of(engine);
    }
    gw_engine_destroy(engine);
    assert_true(c.wasted > c.used); /* another token may use it while it is still in a cell */
    assert_true(c.wasted_bytes > 0 && c.missed > 0);
    assert_true(c.blocks_off > 0 && c.passed_over > 0);
    (void)run_with((gw_engine_cfg){.n_cells = 8, .predict_top = 8, .lookahead = 4});
    (void)run_with((gw_engine_cfg){.n_cells = 2});
}

/* With few slots guesses reach the store, too: it reads the wrong experts. */
static void wrong_guesses_over_a_store_with_little_memory(void **state)
{
    (void)state;
    snprintf(the.store.ram_bytes, sizeof the.store.ram_bytes, "%u", 24u * 299008u);
    store_process_restart(&the.store, SIGTERM);
    costs c = run_with((gw_engine_cfg){.n_cells = 8, .lookahead = 2});
    assert_true(c.told > 0);
}

/* ---- a pre-gated checkpoint: its first block ------------------------------------------------- */

static void only_the_first_block_is_left_to_guess(void **state)
{
    (void)state;
    cJSON *json = calibrate();
    const cJSON *all = cJSON_GetObjectItem(json, "predictors"), *item = cJSON_GetArrayItem(all, 0);
    assert_int_equal(1, cJSON_GetArraySize(all));
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(item, "next_token")));
    assert_string_equal("dec0", cJSON_GetObjectItem(item, "target")->valuestring);
    assert_true(share(item, "calibrated") > share(item, "start"));
    cJSON_Delete(json);
}

static void the_token_before_fetches_the_first_block(void **state)
{
    (void)state;
    serve_with(the.good);
    costs none = run_with((gw_engine_cfg){.n_cells = 12, .predict = GW_PREDICT_NONE});
    assert_true(none.predicted_first == 0 && none.used == 0);
    costs c = run_with((gw_engine_cfg){.n_cells = 12});
    assert_true(c.predictors == 1);
    assert_true(c.predicted_first > 0 && c.used > 0 && c.wasted < c.used);
    assert_true(c.missed < none.missed);
    (void)run_with((gw_engine_cfg){.n_cells = 2});
}

static void a_wrong_guess_of_the_first_block_changes_no_answer(void **state)
{
    (void)state;
    serve_with(the.bad);
    costs c = run_with((gw_engine_cfg){.n_cells = 8});
    assert_true(c.wasted > 0);
    (void)run_with((gw_engine_cfg){.n_cells = 2});
}

/* Is the model of this directory pre-gated? */
static bool is_pregated(const char *model_dir)
{
    char path[1024];
    size_t bytes = 0;
    snprintf(path, sizeof path, "%s/config.json", model_dir);
    char *text = read_file(path, &bytes);
    cJSON *config = cJSON_ParseWithLength(text, bytes);
    bool pregated = cJSON_HasObjectItem(config, "pregate");
    cJSON_Delete(config);
    free(text);
    return pregated;
}

int main(int argc, char **argv)
{
    if (argc != 6 && argc != 7) {
        fprintf(stderr,
                "usage: %s EXPERT_PACK EXPERT_STORE GPU_WORKER MODEL_DIR FIT_TEXT [BACKEND]\n",
                argv[0]);
        return 1;
    }
    char golden[1024];
    const krn_open_cfg open_cfg = {.n_threads = 1};
    const store_process_cfg cfg = {
        .pack_program = argv[1], .store_program = argv[2], .model_dir = argv[4], .ram = "100%"};
    size_t bytes = 0;
    moe_err err = {0};
    char *json = NULL;
    the.pack_program = argv[1];
    the.worker_program = argv[3];
    the.fit_text = argv[5];
    the.backend = argc == 7 ? argv[6] : "cpu";
    snprintf(golden, sizeof golden, "%s/golden.json", argv[4]);
    moe_status st = krn_ops_find(the.backend, &the.ops, NULL, 0, &err);
    if (st == MOE_OK) {
        st = the.ops->backend.open(&open_cfg, &the.device, &err);
    }
    if (st == MOE_OK) {
        st = moe_file_read(golden, 64u << 20, &json, &bytes, &err);
    }
    if (st != MOE_OK) {
        fprintf(stderr, "%s\n", err.text);
        return st == MOE_ERR_DEVICE ? 77 : 1;
    }
    the.cases = cJSON_ParseWithLength(json, bytes);
    free(json);
    store_process_start(&cfg, &the.store);
    snprintf(the.good, sizeof the.good, "%s/good.safetensors", the.store.rig.dir);
    snprintf(the.bad, sizeof the.bad, "%s/bad.safetensors", the.store.rig.dir);
    const struct CMUnitTest pregated[] = {
        cmocka_unit_test(only_the_first_block_is_left_to_guess),
        cmocka_unit_test(the_token_before_fetches_the_first_block),
        cmocka_unit_test(a_wrong_guess_of_the_first_block_changes_no_answer),
    };
    const struct CMUnitTest ordinary[] = {
        cmocka_unit_test(calibrated_guesses_beat_the_start_on_every_block),
        cmocka_unit_test(good_guesses_are_used_and_pay),
        cmocka_unit_test(more_guesses_and_further_ones_change_no_answer),
        cmocka_unit_test(a_budget_bounds_what_a_step_guesses),
        cmocka_unit_test(always_wrong_guesses_change_no_answer_and_are_turned_off),
        cmocka_unit_test(wrong_guesses_over_a_store_with_little_memory),
    };
    int failed = is_pregated(argv[4]) ? cmocka_run_group_tests(pregated, NULL, NULL)
                                      : cmocka_run_group_tests(ordinary, NULL, NULL);
    the.ops->backend.close(the.device);
    failed += store_process_stop(&the.store) != 0;
    cJSON_Delete(the.cases);
    return failed != 0;
}
