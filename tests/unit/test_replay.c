/* Recorded routing, made-up routing, and what caches would hit on it: policies against bounds, and
 * bounds against trying everything. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/named_model.h"
#include "gpu-worker/bench/replay.h"
#include "gpu-worker/bench/routing_choice.h"

static char path[64]; /* scratch file of the running test */

static int make_path(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/pregate-replay-XXXXXX");
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

static void write_path(const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(0, fclose(f));
}

static moe_model_shape shape_of(const char *name)
{
    char json[4096];
    moe_model_shape s;
    moe_err err;
    assert_int_equal(MOE_OK, moe_named_config(name, MOE_BF16, json, sizeof json, &err));
    assert_int_equal(MOE_OK, moe_model_shape_parse(json, strlen(json), &s, &err));
    return s;
}

/* ---- recordings ---- */

static void what_was_recorded_is_read_back(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-tiny");           /* 2 + 2 blocks of 8 experts */
    const int32_t prompt[] = {1, 2, 3, -99, 4, 5, 6, -99}; /* two blocks, stride 4, three rows */
    const int32_t token[] = {7, -1};
    gw_routing_log *log = NULL;
    gw_recording r;
    assert_int_equal(MOE_OK, gw_routing_log_create(path, &log, NULL));
    gw_routing_log_describe(log, "a \"name\"", &s);
    gw_routing_log_describe(log, "again", &s);
    gw_routing_log_add(log, MOE_ENCODER, prompt, 4, 3);
    gw_routing_log_add(log, MOE_DECODER, token, 1, 1);
    assert_int_equal(MOE_OK, gw_routing_log_close(log, NULL));
    assert_int_equal(MOE_OK, gw_recording_load(path, &r, NULL));
    assert_string_equal("a name", r.model);
    assert_int_equal(8, r.n_experts);
    assert_int_equal(2, r.n_steps);
    assert_int_equal(MOE_ENCODER, r.steps[0].stack);
    assert_int_equal(3, r.steps[0].n_rows);
    const int32_t expected[] = {1, 2, 3, 4, 5, 6};
    assert_memory_equal(expected, r.steps[0].experts, sizeof expected);
    assert_int_equal(MOE_DECODER, r.steps[1].stack);
    assert_int_equal(7, r.steps[1].experts[0]);
    assert_int_equal(-1, r.steps[1].experts[1]);
    gw_recording_fini(&r);
}

static void a_full_disk_shows_when_the_recording_is_closed(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-tiny");
    gw_routing_log *log = NULL;
    moe_err err;
    assert_int_equal(MOE_OK, gw_routing_log_create("/dev/full", &log, NULL));
    gw_routing_log_describe(log, "m", &s);
    assert_int_equal(MOE_ERR_IO, gw_routing_log_close(log, &err));
    assert_non_null(strstr(err.text, "/dev/full"));
    assert_int_equal(MOE_ERR_IO, gw_routing_log_create("/nonexistent/x", &log, &err));
    assert_int_equal(MOE_OK, gw_routing_log_close(NULL, NULL));
}

#define HEAD                                                                                       \
    "{\"pregate_routing\":1,\"model\":\"m\",\"n_experts\":8,\"encoder_blocks\":1,"                 \
    "\"decoder_blocks\":1}\n"

static void damage_is_reported_with_its_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *line;
    } cases[] = {
        {"", "line 1"},
        {"{}\n", "line 1"},
        {"{\"pregate_routing\":2,\"n_experts\":8,\"encoder_blocks\":1,\"decoder_blocks\":1}\n",
         "line 1"},
        {HEAD "nonsense\n", "line 2"},
        {HEAD "[\"decoder\",[[1]]]\n[\"middle\",[[1]]]\n", "line 3"},
        {HEAD "[\"decoder\",[[8]]]\n", "line 2"},      /* no such expert */
        {HEAD "[\"decoder\",[[1],[1]]]\n", "line 2"},  /* no such block */
        {HEAD "[\"decoder\",[[\"1\"]]]\n", "line 2"},  /* not a number */
        {HEAD "[\"decoder\",[[1]]\n", "line 2"},       /* cut short */
        {HEAD "[\"decoder\",{\"a\":[1]}]\n", "line 2"} /* not a list */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gw_recording r;
        moe_err err;
        write_path(cases[i].text);
        assert_int_equal(MOE_ERR_FORMAT, gw_recording_load(path, &r, &err));
        if (strstr(err.text, cases[i].line) == NULL) {
            fail_msg("case %zu: no '%s' in '%s'", i, cases[i].line, err.text);
        }
    }
    moe_err err;
    gw_recording r;
    assert_int_equal(MOE_ERR_NOT_FOUND, gw_recording_load("/nonexistent", &r, &err));
}

/* ---- made-up routing ---- */

static gw_routing_spec spec_of(const char *text)
{
    gw_routing_spec spec;
    assert_int_equal(MOE_OK, gw_routing_spec_parse(text, &spec, NULL));
    return spec;
}

static gw_chooser *chooser_of(const char *text, const moe_model_shape *s, uint64_t seed)
{
    gw_routing_spec spec = spec_of(text);
    gw_chooser *c = NULL;
    moe_err err;
    if (gw_chooser_create(&spec, s, seed, &c, &err) != MOE_OK) {
        fail_msg("%s", err.text);
    }
    return c;
}

static void settings_of_routing_are_checked(void **state)
{
    (void)state;
    assert_int_equal(GW_ROUTING_MODEL, spec_of("model").kind);
    assert_int_equal(GW_ROUTING_UNIFORM, spec_of("uniform").kind);
    assert_true(spec_of("zipf:1.5").zipf_s == 1.5);
    assert_int_equal(4, spec_of("forced:4").forced_k);
    assert_string_equal("a/b", spec_of("trace:a/b").path);
    static const char *const bad[] = {"",         "zipf",       "zipf:",    "zipf:x", "zipf:-1",
                                      "forced:0", "forced:1.5", "forced:x", "trace:", "uniform "};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        gw_routing_spec spec;
        moe_err err;
        assert_int_equal(MOE_ERR_INVALID, gw_routing_spec_parse(bad[i], &spec, &err));
    }
    moe_model_shape s = shape_of("switch-tiny");
    gw_routing_spec too_many = spec_of("forced:9");
    gw_chooser *c = NULL;
    assert_int_equal(MOE_ERR_INVALID, gw_chooser_create(&too_many, &s, 1, &c, NULL));
    assert_null(c);
}

enum { DRAWS = 40000 };

static int falling(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* Five standard deviations of a frequency over 40,000 draws are at most 0.0125. */
static void zipf_and_uniform_follow_their_law(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-tiny");
    static const double exponents[] = {0, 1, 2};
    static int32_t ids[DRAWS];
    for (size_t i = 0; i < 3; i++) {
        char text[32];
        double f[8] = {0}, sum = 0;
        snprintf(text, sizeof text, i == 0 ? "uniform" : "zipf:%g", exponents[i]);
        gw_chooser *c = chooser_of(text, &s, 7);
        gw_chooser_begin_step(c, MOE_DECODER);
        gw_chooser_choose(c, 1, DRAWS, ids);
        for (int k = 0; k < DRAWS; k++) {
            assert_true(ids[k] >= 0 && ids[k] < 8);
            f[ids[k]] += 1.0 / DRAWS;
        }
        qsort(f, 8, sizeof f[0], falling);
        for (int r = 0; r < 8; r++) {
            sum += pow(r + 1, -exponents[i]);
        }
        for (int r = 0; r < 8; r++) {
            double expected = pow(r + 1, -exponents[i]) / sum;
            if (fabs(f[r] - expected) > 0.0125) {
                fail_msg("%s rank %d: expected %g, got %g", text, r, expected, f[r]);
            }
        }
        gw_chooser_destroy(c);
    }
}

static uint32_t count_distinct(const int32_t *ids, uint32_t n, uint32_t *out_most)
{
    uint32_t seen[64] = {0}, distinct = 0;
    *out_most = 0;
    for (uint32_t i = 0; i < n; i++) {
        distinct += seen[ids[i]]++ == 0;
        *out_most = seen[ids[i]] > *out_most ? seen[ids[i]] : *out_most;
    }
    return distinct;
}

static void forced_makes_exactly_k_experts_active(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-tiny");
    gw_chooser *c = chooser_of("forced:3", &s, 1);
    int32_t first[8], ids[8];
    uint32_t most = 0, changed = 0;
    gw_chooser_begin_step(c, MOE_DECODER);
    gw_chooser_choose(c, 0, 8, first);
    for (int step = 0; step < 50; step++) {
        gw_chooser_begin_step(c, MOE_DECODER);
        gw_chooser_choose(c, 0, 8, ids);
        assert_int_equal(3, count_distinct(ids, 8, &most));
        assert_int_equal(3, most); /* dealt out evenly: 3 + 3 + 2 */
        changed += memcmp(first, ids, sizeof ids) != 0;
    }
    assert_true(changed > 40); /* drawn anew */
    gw_chooser_choose(c, 1, 2, ids);
    assert_int_equal(2, count_distinct(ids, 2, &most)); /* fewer rows */
    gw_chooser_destroy(c);
}

static void rows_of_several_experts_choose_different_ones(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-tiny");
    s.top_k = 4;
    static const char *const texts[] = {"uniform", "zipf:3", "forced:4"};
    for (size_t i = 0; i < 3; i++) {
        gw_chooser *c = chooser_of(texts[i], &s, 3);
        int32_t ids[50 * 4];
        uint32_t most = 0;
        gw_chooser_begin_step(c, MOE_ENCODER);
        gw_chooser_choose(c, 0, 50, ids);
        for (uint32_t t = 0; t < 50; t++) {
            assert_int_equal(4, count_distinct(ids + 4 * (size_t)t, 4, &most));
        }
        gw_chooser_destroy(c);
    }
}

static void a_seed_gives_the_same_choices(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-base-128");
    int32_t ids[2][64], other[64];
    for (uint64_t i = 0; i < 3; i++) {
        gw_chooser *c = chooser_of("zipf:1", &s, i < 2 ? 5 : 6);
        gw_chooser_begin_step(c, MOE_DECODER);
        gw_chooser_choose(c, 2, 64, i < 2 ? ids[i] : other);
        gw_chooser_destroy(c);
    }
    assert_memory_equal(ids[0], ids[1], sizeof ids[0]);
    assert_memory_not_equal(ids[0], other, sizeof other);
}

static void a_recording_is_followed_and_starts_again(void **state)
{
    (void)state;
    moe_model_shape s = shape_of("switch-tiny");
    write_path("{\"pregate_routing\":1,\"n_experts\":8,\"encoder_blocks\":2,"
               "\"decoder_blocks\":2}\n"
               "[\"encoder\",[[1,2],[3,4]]]\n"
               "[\"decoder\",[[5],[6]]]\n"
               "[\"decoder\",[[7],[0]]]\n");
    char text[80];
    snprintf(text, sizeof text, "trace:%s", path);
    gw_chooser *c = chooser_of(text, &s, 1);
    static const int32_t expected[] = {6, 0, 6};
    int32_t ids[3];
    for (int i = 0; i < 3; i++) {
        gw_chooser_begin_step(c, MOE_DECODER);
        gw_chooser_choose(c, 1, 1, ids);
        assert_int_equal(expected[i], ids[0]);
    }
    gw_chooser_begin_step(c, MOE_ENCODER);
    gw_chooser_choose(c, 1, 3, ids);
    assert_int_equal(3, ids[0]);
    assert_int_equal(4, ids[1]);
    assert_int_equal(3, ids[2]); /* more rows than recorded: from the first again */
    gw_chooser_destroy(c);
    moe_model_shape other = shape_of("switch-base-8");
    gw_routing_spec spec = spec_of(text);
    moe_err err;
    assert_int_equal(MOE_ERR_INVALID, gw_chooser_create(&spec, &other, 1, &c, &err));
    assert_non_null(strstr(err.text, "2 + 2 blocks of 8 experts, the model has 6 + 6 of 8"));
    write_path("{\"pregate_routing\":1,\"n_experts\":8,\"encoder_blocks\":2,"
               "\"decoder_blocks\":2}\n[\"encoder\",[[1],[-1]]]\n[\"decoder\",[[5],[6]]]\n");
    assert_int_equal(MOE_ERR_INVALID, gw_chooser_create(&spec, &s, 1, &c, &err));
}

/* ---- caches ---- */

/* A recording of decode steps of one block, one row each. */
static void uses_of(const int32_t *experts, uint32_t n, uint32_t n_experts, uint32_t skip,
                    gw_uses *out)
{
    gw_recording r = {.n_experts = n_experts, .n_blocks = {0, 1}};
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(MOE_OK, gw_recording_add(&r, MOE_DECODER, experts + i, 1, 1, NULL));
    }
    assert_int_equal(MOE_OK, gw_uses_create(&r, skip, out, NULL));
    gw_recording_fini(&r);
}

static uint64_t policy_hits(const gw_uses *u, gw_cell_policy policy, uint32_t n_cells)
{
    uint64_t hits = 0;
    assert_int_equal(MOE_OK, gw_replay_policy(u, policy, n_cells, &hits, NULL));
    return hits;
}

static uint64_t static_hits(const gw_uses *u, uint32_t n_cells)
{
    uint64_t hits = 0;
    assert_int_equal(MOE_OK, gw_replay_best_static(u, n_cells, &hits, NULL));
    return hits;
}

static uint64_t belady_hits(const gw_uses *u, uint32_t n_cells)
{
    uint64_t hits = 0;
    assert_int_equal(MOE_OK, gw_replay_belady(u, n_cells, &hits, NULL));
    return hits;
}

static void a_set_holds_each_expert_once_and_flat(void **state)
{
    (void)state;
    gw_recording r = {.n_experts = 4, .n_blocks = {1, 2}};
    const int32_t prompt[] = {3, 0, 3, -1}, token[] = {1, 1, 2, 0}; /* two blocks of two rows */
    gw_uses u;
    assert_int_equal(MOE_OK, gw_recording_add(&r, MOE_ENCODER, prompt, 4, 4, NULL));
    assert_int_equal(MOE_OK, gw_recording_add(&r, MOE_DECODER, token, 2, 2, NULL));
    assert_int_equal(MOE_OK, gw_uses_create(&r, 1, &u, NULL));
    const uint32_t expected[] = {0, 3, 4 + 1, 8 + 0, 8 + 2};
    const uint32_t at[] = {0, 2, 3, 5};
    assert_int_equal(3, u.n_sets);
    assert_memory_equal(at, u.set_at, sizeof at);
    assert_memory_equal(expected, u.expert, sizeof expected);
    assert_int_equal(12, u.n_experts_total);
    assert_int_equal(3, gw_uses_counted(&u)); /* without the prompt */
    gw_uses_fini(&u);
    gw_recording_fini(&r);
}

static void policies_do_what_their_names_say(void **state)
{
    (void)state;
    /* 0 and 1 fill two cells; 2 replaces one of them */
    static const int32_t experts[] = {0, 0, 1, 2, 0, 1};
    gw_uses u;
    uses_of(experts, 6, 4, 0, &u);
    /* lru: 0 m, 0 h, 1 m, 2 m (out 0), 0 m (out 1), 1 m */
    assert_int_equal(1, policy_hits(&u, GW_CELL_LRU, 2));
    /* lfu: 0 m, 0 h, 1 m, 2 m (out 1), 0 h, 1 m */
    assert_int_equal(2, policy_hits(&u, GW_CELL_LFU, 2));
    assert_int_equal(3, policy_hits(&u, GW_CELL_LRU, 3));
    /* counts 3, 2, 1: two cells hold 0 and 1 from the start */
    assert_int_equal(5, static_hits(&u, 2));
    /* 0 m, 0 h, 1 m, 2 m (not kept), 0 h, 1 h */
    assert_int_equal(3, belady_hits(&u, 2));
    gw_uses_fini(&u);
    uses_of(experts, 6, 4, 3, &u); /* only 2 0 1 count */
    assert_int_equal(0, policy_hits(&u, GW_CELL_LRU, 2));
    assert_int_equal(2, belady_hits(&u, 2));
    assert_int_equal(2, static_hits(&u, 2));
    gw_uses_fini(&u);
    assert_int_equal(MOE_ERR_LIMIT, gw_replay_policy(&u, GW_CELL_LRU, 1, NULL, NULL));
}

static uint32_t next_random(uint64_t *x)
{
    *x = *x * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*x >> 33);
}

/* Most hits that any choice of what to keep after each set can reach, by trying all of them. */
static uint32_t best_possible(const gw_uses *u, uint32_t set, uint32_t kept, uint32_t n_cells)
{
    if (set == u->n_sets) {
        return 0;
    }
    uint32_t here = 0, best = 0;
    for (uint32_t i = u->set_at[set]; i < u->set_at[set + 1]; i++) {
        here |= 1u << u->expert[i];
    }
    uint32_t hits = (uint32_t)__builtin_popcount(here & kept), all = here | kept;
    for (uint32_t keep = all;; keep = (keep - 1) & all) { /* every subset */
        if ((uint32_t)__builtin_popcount(keep) == n_cells || keep == all) {
            if ((uint32_t)__builtin_popcount(keep) <= n_cells) {
                uint32_t later = best_possible(u, set + 1, keep, n_cells);
                best = later > best ? later : best;
            }
        }
        if (keep == 0) {
            break;
        }
    }
    return hits + best;
}

/* Random steps of one block of n_experts with `rows` rows. */
static void random_uses(uint64_t *seed, uint32_t n_experts, uint32_t n_blocks, uint32_t rows,
                        uint32_t n_steps, gw_uses *out)
{
    gw_recording r = {.n_experts = n_experts, .n_blocks = {0, n_blocks}};
    int32_t ids[64];
    for (uint32_t i = 0; i < n_steps; i++) {
        for (uint32_t t = 0; t < n_blocks * rows; t++) {
            uint32_t a = next_random(seed) % n_experts, b = next_random(seed) % n_experts;
            ids[t] = (int32_t)(a < b ? a : b); /* skewed */
        }
        assert_int_equal(MOE_OK, gw_recording_add(&r, MOE_DECODER, ids, rows, rows, NULL));
    }
    assert_int_equal(MOE_OK, gw_uses_create(&r, 0, out, NULL));
    gw_recording_fini(&r);
}

static void belady_is_what_trying_everything_finds(void **state)
{
    (void)state;
    uint64_t seed = 1;
    for (int i = 0; i < 40; i++) {
        gw_uses u;
        random_uses(&seed, 5, 1, 1 + (uint32_t)i % 3, 7, &u);
        for (uint32_t n_cells = 2; n_cells <= 3; n_cells++) {
            assert_int_equal(best_possible(&u, 0, 0, n_cells), belady_hits(&u, n_cells));
        }
        gw_uses_fini(&u);
    }
}

static void no_policy_beats_belady_and_more_cells_lose_nothing_there(void **state)
{
    (void)state;
    uint64_t seed = 2;
    for (int i = 0; i < 60; i++) {
        gw_uses u;
        random_uses(&seed, 16, 3, 1 + (uint32_t)i % 12, 40, &u);
        uint64_t smaller = 0;
        for (uint32_t n_cells = 2; n_cells <= 48; n_cells += 5) {
            uint64_t bound = belady_hits(&u, n_cells);
            assert_true(bound >= smaller);
            smaller = bound;
            for (int p = 0; p < 3; p++) {
                assert_true(policy_hits(&u, (gw_cell_policy)p, n_cells) <= bound);
            }
        }
        gw_uses_fini(&u);
    }
}

static void with_a_cell_for_every_expert_only_first_uses_miss(void **state)
{
    (void)state;
    uint64_t seed = 3;
    gw_uses u;
    random_uses(&seed, 8, 2, 3, 50, &u);
    uint32_t first_uses = 0;
    uint8_t seen[16] = {0};
    for (uint32_t i = 0; i < u.n_uses; i++) {
        first_uses += seen[u.expert[i]]++ == 0;
    }
    for (int p = 0; p < 3; p++) {
        assert_int_equal(u.n_uses - first_uses, policy_hits(&u, (gw_cell_policy)p, 16));
    }
    assert_int_equal(u.n_uses - first_uses, belady_hits(&u, 16));
    assert_int_equal(u.n_uses, static_hits(&u, 16));
    gw_uses_fini(&u);
}

int main(void)
{
#define WITH_FILE(test) cmocka_unit_test_setup_teardown(test, make_path, remove_path)
    const struct CMUnitTest tests[] = {
        WITH_FILE(what_was_recorded_is_read_back),
        cmocka_unit_test(a_full_disk_shows_when_the_recording_is_closed),
        WITH_FILE(damage_is_reported_with_its_line),
        cmocka_unit_test(settings_of_routing_are_checked),
        cmocka_unit_test(zipf_and_uniform_follow_their_law),
        cmocka_unit_test(forced_makes_exactly_k_experts_active),
        cmocka_unit_test(rows_of_several_experts_choose_different_ones),
        cmocka_unit_test(a_seed_gives_the_same_choices),
        WITH_FILE(a_recording_is_followed_and_starts_again),
        cmocka_unit_test(a_set_holds_each_expert_once_and_flat),
        cmocka_unit_test(policies_do_what_their_names_say),
        cmocka_unit_test(belady_is_what_trying_everything_finds),
        cmocka_unit_test(no_policy_beats_belady_and_more_cells_lose_nothing_there),
        cmocka_unit_test(with_a_cell_for_every_expert_only_first_uses_miss),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
