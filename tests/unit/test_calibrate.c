/* Calibration without an engine: made-up gates whose experts are known functions of them, so that
 * every guess has a known quality; and recall, names and the file. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "common/file.h"
#include "gpu-worker/quality/calibrate.h"

enum { D = 5, EXPERTS = 4, ENCODER_BLOCKS = 2, DECODER_BLOCKS = 3, SEQUENCES = 80, TOKENS = 10 };

static uint64_t seed;

static double uniform(void)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(seed >> 40) / (double)(1u << 23) - 1.0;
}

static moe_model_shape shape_of_tests(void)
{
    moe_model_shape s = {.d_model = D, .n_experts = EXPERTS, .top_k = 1};
    s.stack[MOE_ENCODER].n_blocks = ENCODER_BLOCKS;
    s.stack[MOE_DECODER].n_blocks = DECODER_BLOCKS;
    s.n_blocks_total = ENCODER_BLOCKS + DECODER_BLOCKS;
    return s;
}

/* The expert of a block: the largest of the first EXPERTS values of the h that decides it. */
static int32_t largest(const float *h)
{
    int32_t best = 0;
    for (int32_t e = 1; e < EXPERTS; e++) {
        best = h[e] > h[best] ? e : best;
    }
    return best;
}

/* In every block h is new. Block b + 1's expert is decided by block b's h; decoder block 0's by the
 * last block's h of the token before. */
static void add_sequence(gw_gate_samples *samples)
{
    gw_record r = {.n_input = TOKENS, .n_steps = TOKENS, .max_steps = TOKENS + 2};
    r.encoder_gates = calloc(ENCODER_BLOCKS * TOKENS * D, sizeof(float));
    r.encoder_experts = calloc(ENCODER_BLOCKS * TOKENS, sizeof(int32_t));
    r.decoder_gates = calloc((size_t)DECODER_BLOCKS * r.max_steps * D, sizeof(float));
    r.decoder_experts = calloc((size_t)DECODER_BLOCKS * r.max_steps, sizeof(int32_t));
    assert_true(r.encoder_gates != NULL && r.encoder_experts != NULL);
    assert_true(r.decoder_gates != NULL && r.decoder_experts != NULL);
    for (size_t i = 0; i < (size_t)ENCODER_BLOCKS * TOKENS * D; i++) {
        r.encoder_gates[i] = (float)uniform();
    }
    for (size_t i = 0; i < (size_t)DECODER_BLOCKS * r.max_steps * D; i++) {
        r.decoder_gates[i] = (float)uniform();
    }
    for (size_t t = 0; t < TOKENS; t++) {
        r.encoder_experts[t] = 3;
        r.encoder_experts[TOKENS + t] = largest(r.encoder_gates + t * D);
        for (size_t b = 0; b < DECODER_BLOCKS; b++) {
            size_t before = b > 0 ? (b - 1) * r.max_steps + t
                                  : (DECODER_BLOCKS - 1) * (size_t)r.max_steps + t - 1;
            r.decoder_experts[b * r.max_steps + t] =
                b == 0 && t == 0 ? 0 : largest(r.decoder_gates + before * D);
        }
    }
    assert_int_equal(MOE_OK, gw_gate_samples_add(samples, &r, NULL));
    gw_record_fini(&r);
}

static double at_1(const gw_recall *r)
{
    return gw_recall_share(r->n_in_1, r->n);
}

static const gw_calibrated *find(const gw_calibration *c, moe_stack stack, uint32_t source,
                                 uint32_t lookahead)
{
    for (uint32_t i = 0; i < c->n; i++) {
        const gw_prediction *p = &c->items[i].fitted.what;
        if (p->stack == stack && p->source == source && p->lookahead == lookahead) {
            return &c->items[i];
        }
    }
    return NULL;
}

static void what_h_decides_is_learnt_and_what_it_does_not_is_not(void **state)
{
    (void)state;
    const moe_model_shape shape = shape_of_tests();
    gw_gate_samples samples;
    seed = 11;
    assert_int_equal(MOE_OK, gw_gate_samples_init(&shape, &samples, NULL));
    for (int i = 0; i < SEQUENCES; i++) {
        add_sequence(&samples);
    }
    float zero[EXPERTS * D] = {0}, right[EXPERTS * D] = {0};
    for (int e = 0; e < EXPERTS; e++) {
        right[e * D + e] = 1.0f;
    }
    const float *routers[] = {zero, zero, zero, zero, right};
    const gw_calibrate_cfg cfg = {.samples = &samples,
                                  .shape = &shape,
                                  .routers = routers,
                                  .n_fit = 50,
                                  .n_validation = 60,
                                  .lookahead = 2,
                                  .seed = 1};
    gw_calibration c;
    assert_int_equal(MOE_OK, gw_calibrate(&cfg, &c, NULL));
    assert_int_equal(1 + 3 + 3, c.n); /* the decoder's go on into the next token */
    const gw_calibrated *encoder = find(&c, MOE_ENCODER, 0, 1);
    assert_true(at_1(&encoder->recall) > 0.9 && at_1(&encoder->start) < 0.5);
    assert_int_equal(20 * TOKENS, encoder->recall.n);
    assert_int_equal(20, encoder->recall.n_sets);
    assert_int_equal(0, encoder->previous.n);
    assert_true(at_1(&find(&c, MOE_DECODER, 0, 1)->recall) > 0.9);
    const gw_calibrated *second = find(&c, MOE_DECODER, 1, 1); /* its start is perfect */
    assert_true(at_1(&second->start) == 1.0 && at_1(&second->recall) == 1.0);
    assert_int_equal(GW_FIT_START, second->kind);
    assert_int_equal(second->recall.n_exact, second->recall.n_sets);
    assert_memory_equal(right, second->fitted.weight, sizeof right);
    const gw_calibrated *first_block = find(&c, MOE_DECODER, 2, 1);
    assert_true(first_block->fitted.what.next_token && first_block->fitted.what.target == 0);
    assert_int_equal(20 * (TOKENS - 1), first_block->recall.n);
    assert_int_equal(3 * (TOKENS - 1), first_block->recall.n_sets); /* 8, 8 and 4 sequences */
    assert_true(at_1(&first_block->recall) > 0.9);
    const gw_calibrated *hopeless = find(&c, MOE_DECODER, 0, 2); /* another h decides */
    assert_true(at_1(&hopeless->recall) < 0.5 && at_1(&hopeless->previous) < 0.5);
    gw_calibration_fini(&c);
    gw_gate_samples_fini(&samples);
}

/* ---- recall ---------------------------------------------------------------------------------- */

static const double fixed_scores[] = {4, 3, 2, 1};

static void guess_fixed(void *user, const gw_guess_place *at, double *scores)
{
    (void)user;
    (void)at;
    memcpy(scores, fixed_scores, sizeof fixed_scores);
}

static void recall_counts_ranks_and_sets(void **state)
{
    (void)state;
    moe_model_shape shape = shape_of_tests();
    gw_gate_samples s;
    assert_int_equal(MOE_OK, gw_gate_samples_init(&shape, &s, NULL));
    /* Decoder block 0: sequence 0 uses 0 0 1, sequence 1 uses 0 3. Guesses are 0, 1, 2, 3. */
    const int32_t tokens[2][3] = {{0, 0, 1}, {0, 3, 0}};
    for (int i = 0; i < 2; i++) {
        gw_record r = {.n_input = 1, .n_steps = 3 - (uint32_t)i, .max_steps = 3};
        float gates[DECODER_BLOCKS * 3 * D] = {0};
        int32_t experts[DECODER_BLOCKS * 3] = {0};
        memcpy(experts, tokens[i], sizeof tokens[i]);
        r.encoder_gates = r.decoder_gates = gates;
        r.encoder_experts = r.decoder_experts = experts;
        assert_int_equal(MOE_OK, gw_gate_samples_add(&s, &r, NULL));
    }
    gw_prediction p = {.stack = MOE_DECODER, .target = 0};
    gw_recall r;
    assert_int_equal(MOE_OK, gw_recall_count(&s, &p, EXPERTS, 0, 2, guess_fixed, NULL, &r, NULL));
    assert_int_equal(5, r.n);
    assert_int_equal(3, r.n_in_1);
    assert_int_equal(4, r.n_in_2);
    assert_int_equal(5, r.n_in_4);
    assert_int_equal(3, r.n_sets); /* {0}, {0, 3}, {1} */
    assert_int_equal(1, r.n_exact);
    p.next_token = true; /* without the first of each */
    assert_int_equal(MOE_OK, gw_recall_count(&s, &p, EXPERTS, 0, 2, guess_fixed, NULL, &r, NULL));
    assert_int_equal(3, r.n);
    assert_int_equal(2, r.n_sets);
    assert_int_equal(0, r.n_exact);
    gw_gate_samples_fini(&s);
}

/* ---- names and files ------------------------------------------------------------------------- */

static void predictions_wrap_in_the_decoder_only(void **state)
{
    (void)state;
    moe_model_shape s = shape_of_tests();
    gw_prediction p;
    char name[GW_PREDICTOR_NAME_BYTES];
    assert_true(gw_prediction_of(&s, MOE_DECODER, 2, 1, &p));
    assert_true(p.next_token && p.target == 0);
    gw_predictor_name(&p, name);
    assert_string_equal("predictor.decoder.block.2.lookahead.1.weight", name);
    assert_true(gw_prediction_of(&s, MOE_DECODER, 0, 2, &p));
    assert_true(!p.next_token && p.target == 2);
    assert_true(gw_prediction_of(&s, MOE_ENCODER, 0, 1, &p));
    assert_false(gw_prediction_of(&s, MOE_ENCODER, 1, 1, &p));
    assert_false(gw_prediction_of(&s, MOE_DECODER, 3, 1, &p));
    assert_false(gw_prediction_of(&s, MOE_DECODER, 2, 4, &p)); /* the token after the next */
    assert_false(gw_prediction_of(&s, MOE_DECODER, 0, 5, &p));
    s.pregate_lookahead = 1; /* then only a token's first block is open */
    assert_true(gw_prediction_of(&s, MOE_DECODER, 2, 1, &p));
    assert_true(p.next_token && p.target == 0);
    assert_false(gw_prediction_of(&s, MOE_DECODER, 0, 1, &p));
    assert_false(gw_prediction_of(&s, MOE_DECODER, 2, 2, &p));
    assert_false(gw_prediction_of(&s, MOE_ENCODER, 0, 1, &p));
}

static void the_file_is_safetensors(void **state)
{
    (void)state;
    char path[] = "/tmp/pregate-predictors-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    float a[] = {1, 2, 3, 4, 5, 6}, b[] = {7, 8, 9, 10, 11, 12};
    const gw_fitted fitted[] = {
        {.what = {.stack = MOE_ENCODER, .source = 0, .lookahead = 1}, .weight = a},
        {.what = {.stack = MOE_DECODER, .source = 1, .lookahead = 2}, .weight = b}};
    assert_int_equal(MOE_OK, gw_predictor_file_write(path, fitted, 2, 2, 3, "a \"note\"", NULL));
    char *bytes = NULL;
    size_t n = 0;
    assert_int_equal(MOE_OK, moe_file_read(path, 1 << 20, &bytes, &n, NULL));
    uint64_t header = moe_load_le64(bytes);
    assert_int_equal(0, header % 8);
    assert_int_equal(8 + header + sizeof a + sizeof b, n);
    assert_memory_equal(a, bytes + 8 + header, sizeof a);
    assert_memory_equal(b, bytes + 8 + header + sizeof a, sizeof b);
    bytes[8 + header - 1] = '\0';
    assert_non_null(strstr(bytes + 8, "{\"__metadata__\":{\"note\":\"a \\\"note\\\"\"}"));
    assert_non_null(strstr(bytes + 8, "\"predictor.decoder.block.1.lookahead.2.weight\":{\"dtype\":"
                                      "\"F32\",\"shape\":[2,3],\"data_offsets\":[24,48]}"));
    free(bytes);
    unlink(path);
    moe_err err = {0};
    assert_int_equal(MOE_ERR_IO,
                     gw_predictor_file_write("/nonexistent/p", fitted, 2, 2, 3, "", &err));
    assert_non_null(strstr(err.text, "/nonexistent/p"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_h_decides_is_learnt_and_what_it_does_not_is_not),
        cmocka_unit_test(recall_counts_ranks_and_sets),
        cmocka_unit_test(predictions_wrap_in_the_decoder_only),
        cmocka_unit_test(the_file_is_safetensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
