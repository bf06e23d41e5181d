/* A sequence: what a request may say, when it ends, what its record keeps. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu-worker/engine/sequence.h"

enum { EOS = 1, VOCAB = 8, D_MODEL = 2 };

static const gw_sequence_limits limits = {.max_input_tokens = 4,
                                          .max_output_tokens = 5,
                                          .vocab = VOCAB,
                                          .eos_id = EOS,
                                          .start_id = 0,
                                          .d_model = D_MODEL,
                                          .n_blocks = {2, 1}};
static const int32_t input[] = {5, 6, EOS};

static gw_request good_request(void)
{
    return (gw_request){.input_ids = input, .n_input = 3, .max_tokens = 5, .top_p = 1.0f};
}

static gw_sequence *sequence_of(const gw_request *r)
{
    gw_sequence *s = NULL;
    assert_int_equal(MOE_OK, gw_sequence_create(r, &limits, &s, NULL));
    return s;
}

static void refuses(gw_request r, moe_status status, const char *field)
{
    gw_sequence *s = NULL;
    moe_err err = {0};
    assert_int_equal(status, gw_sequence_create(&r, &limits, &s, &err));
    assert_null(s);
    assert_non_null(strstr(err.text, field));
}

static void refusals_name_the_field(void **state)
{
    (void)state;
    const int32_t long_input[] = {2, 2, 2, 2, EOS};
    const int32_t no_end[] = {5, 6};
    const int32_t outside[] = {VOCAB, EOS};
    const int32_t negative[] = {-1, EOS};
    gw_request r = good_request();
    r.n_input = 0;
    refuses(r, MOE_ERR_INVALID, "input_ids");
    r = good_request();
    r.input_ids = long_input;
    r.n_input = 5;
    refuses(r, MOE_ERR_LIMIT, "max_input_tokens is 4");
    r = good_request();
    r.input_ids = no_end;
    r.n_input = 2;
    refuses(r, MOE_ERR_INVALID, "end token");
    r.input_ids = outside;
    refuses(r, MOE_ERR_INVALID, "input_ids[0]=8");
    r.input_ids = negative;
    refuses(r, MOE_ERR_INVALID, "input_ids[0]=-1");
    r = good_request();
    r.max_tokens = 6;
    refuses(r, MOE_ERR_LIMIT, "max_tokens=6");
    r.max_tokens = 0;
    refuses(r, MOE_ERR_LIMIT, "max_tokens=0");
    r = good_request();
    r.temperature = -0.5f;
    refuses(r, MOE_ERR_INVALID, "temperature");
    r.temperature = NAN;
    refuses(r, MOE_ERR_INVALID, "temperature");
    r = good_request();
    r.top_p = 0.0f;
    refuses(r, MOE_ERR_INVALID, "top_p");
    r.top_p = 1.5f;
    refuses(r, MOE_ERR_INVALID, "top_p");
    r = good_request();
    r.forced = outside;
    r.n_forced = 1;
    refuses(r, MOE_ERR_INVALID, "forced[0]=8");
    r.n_forced = 5;
    refuses(r, MOE_ERR_INVALID, "n_forced=5");
}

static void the_first_input_is_the_start_token_and_then_what_was_chosen(void **state)
{
    (void)state;
    const gw_request r = good_request();
    gw_sequence *s = sequence_of(&r);
    int32_t token = -1;
    gw_finish finish = GW_FINISH_ERROR;
    assert_int_equal(0, s->feed);
    assert_int_equal(0, s->position);
    assert_false(gw_sequence_advance(s, 7, EOS, &token, &finish));
    assert_int_equal(7, token);
    assert_int_equal(7, s->feed);
    assert_int_equal(1, s->position);
    gw_sequence_destroy(s);
}

static void the_end_token_stops_unless_ignored(void **state)
{
    (void)state;
    gw_request r = good_request();
    gw_sequence *s = sequence_of(&r);
    int32_t token = -1;
    gw_finish finish = GW_FINISH_ERROR;
    assert_true(gw_sequence_advance(s, EOS, EOS, &token, &finish));
    assert_int_equal(GW_FINISH_STOP, finish);
    assert_int_equal(EOS, token);
    gw_sequence_destroy(s);
    r.ignore_eos = true;
    s = sequence_of(&r);
    assert_false(gw_sequence_advance(s, EOS, EOS, &token, &finish));
    gw_sequence_destroy(s);
}

static void max_tokens_ends_it_with_length(void **state)
{
    (void)state;
    gw_request r = good_request();
    r.max_tokens = 2;
    gw_sequence *s = sequence_of(&r);
    int32_t token = -1;
    gw_finish finish = GW_FINISH_ERROR;
    assert_false(gw_sequence_advance(s, 3, EOS, &token, &finish));
    assert_true(gw_sequence_advance(s, 3, EOS, &token, &finish));
    assert_int_equal(GW_FINISH_LENGTH, finish);
    gw_sequence_destroy(s);
}

static void forced_tokens_replace_the_chosen_ones(void **state)
{
    (void)state;
    int32_t forced[] = {4, 2};
    gw_request r = good_request();
    r.forced = forced;
    r.n_forced = 2;
    gw_sequence *s = sequence_of(&r);
    forced[0] = 7; /* the sequence has its own copy */
    int32_t token = -1;
    gw_finish finish = GW_FINISH_ERROR;
    assert_false(gw_sequence_advance(s, EOS, EOS, &token, &finish)); /* a chosen end is replaced */
    assert_int_equal(4, token);
    assert_false(gw_sequence_advance(s, 5, EOS, &token, &finish));
    assert_int_equal(2, token);
    assert_false(gw_sequence_advance(s, 5, EOS, &token, &finish));
    assert_int_equal(5, token);
    gw_sequence_destroy(s);
}

static void the_record_keeps_this_sequences_rows(void **state)
{
    (void)state;
    gw_record rec = {.want_logits = true};
    gw_request r = good_request();
    r.record = &rec;
    gw_sequence *s = sequence_of(&r);
    /* encode: 5 rows of a batch, ours are 1..3; two blocks */
    const int32_t encoder_experts[] = {0, 1, 2, 3, 0, 9, 9, 9, 4, 5, 6, 7, 0, 9, 9, 9};
    const float hidden[] = {0, 0, 1, 2, 3, 4, 5, 6, 0, 0};
    const gw_step_view encode = {.experts = encoder_experts, .stride = 8, .hidden = hidden};
    gw_sequence_record_encode(s, &limits, &encode, 1);
    const int32_t expected[] = {1, 2, 3, 5, 6, 7};
    assert_int_equal(3, rec.n_input);
    assert_memory_equal(expected, rec.encoder_experts, sizeof expected);
    assert_memory_equal(hidden + 2, rec.encoder_out, 6 * sizeof(float));
    /* decode: row 1 of 2, two steps */
    const int32_t decoder_experts[] = {8, 3};
    const float logits[2 * VOCAB] = {[VOCAB] = 1, 5, 2, 5, 3, 0, 4, -7};
    const gw_step_view decode = {.experts = decoder_experts, .stride = 2, .logits = logits};
    int32_t token = 0;
    gw_finish finish = GW_FINISH_STOP;
    gw_sequence_record_decode(s, &limits, &decode, 1);
    assert_false(gw_sequence_advance(s, 2, EOS, &token, &finish));
    gw_sequence_record_decode(s, &limits, &decode, 0);
    assert_int_equal(2, rec.n_steps);
    assert_int_equal(5, rec.max_steps);
    assert_int_equal(3, rec.decoder_experts[0]);
    assert_int_equal(8, rec.decoder_experts[1]);
    assert_true(rec.logits_sum[0] == 13.0 && rec.logits_sum[1] == 0.0);
    assert_memory_equal(logits + VOCAB, rec.logits, VOCAB * sizeof(float));
    assert_memory_equal(logits, rec.logits + VOCAB, VOCAB * sizeof(float));
    const int32_t top5[] = {1, 3, 6, 4, 2}; /* of the first step; the tie goes to the lower id */
    assert_memory_equal(top5, rec.top5_id, sizeof top5);
    assert_true(rec.top5_logit[0] == 5.0f && rec.top5_logit[4] == 2.0f);
    gw_sequence_destroy(s);
    gw_record_fini(&rec);
}

/* Close to ln of the softmax of logits, computed in long double. */
static void assert_logprob(const float *logits, int32_t id, double got)
{
    long double sum = 0;
    for (int i = 0; i < VOCAB; i++) {
        sum += expl((long double)logits[i]);
    }
    long double expected = (long double)logits[id] - logl(sum);
    assert_true(fabsl(expected - (long double)got) < 1e-12L);
}

static void the_record_keeps_gates_and_what_forcing_costs(void **state)
{
    (void)state;
    gw_sequence_limits with_gates = limits;
    with_gates.record_gates = true;
    const int32_t forced[] = {3, 6};
    gw_record rec = {.want_gates = true};
    gw_request r = good_request();
    r.record = &rec;
    r.forced = forced;
    r.n_forced = 2;
    gw_sequence *s = NULL;
    assert_int_equal(MOE_OK, gw_sequence_create(&r, &with_gates, &s, NULL));
    /* encode: rows 1..3 of a batch of 5, stride 6; two blocks; d_model 2 */
    float gates[2 * 6 * D_MODEL];
    for (int i = 0; i < 2 * 6 * D_MODEL; i++) {
        gates[i] = (float)i;
    }
    const int32_t experts[12] = {0};
    const float hidden[5 * D_MODEL] = {0};
    const gw_step_view encode = {.experts = experts, .stride = 6, .hidden = hidden, .gates = gates};
    gw_sequence_record_encode(s, &with_gates, &encode, 1);
    const float encoder_gates[] = {2, 3, 4, 5, 6, 7, 14, 15, 16, 17, 18, 19};
    assert_memory_equal(encoder_gates, rec.encoder_gates, sizeof encoder_gates);
    /* decode: row 1 of 2, three steps: two forced, one free */
    const float logits[2 * VOCAB] = {[VOCAB] = 1, 5, 2, 5, 3, 0, 4, -7};
    const gw_step_view decode = {.experts = experts, .stride = 6, .logits = logits, .gates = gates};
    int32_t token = 0;
    gw_finish finish = GW_FINISH_STOP;
    for (int step = 0; step < 3; step++) {
        gw_sequence_record_decode(s, &with_gates, &decode, 1);
        assert_false(gw_sequence_advance(s, 2, EOS, &token, &finish));
    }
    const float decoder_gates[5 * D_MODEL] = {2, 3, 2, 3, 2, 3};
    assert_memory_equal(decoder_gates, rec.decoder_gates, sizeof decoder_gates);
    assert_logprob(logits + VOCAB, 3, rec.forced_logprob[0]);
    assert_logprob(logits + VOCAB, 6, rec.forced_logprob[1]);
    assert_true(rec.forced_logprob[2] == 0.0);
    gw_sequence_destroy(s);
    gw_record_fini(&rec);
    rec.want_gates = true; /* of an engine that keeps none */
    refuses(r, MOE_ERR_INVALID, "record");
}

static void only_samplers_and_records_want_logits(void **state)
{
    (void)state;
    gw_record rec = {0};
    gw_request r = good_request();
    gw_sequence *s = sequence_of(&r);
    assert_false(gw_sequence_wants_logits(s));
    gw_sequence_destroy(s);
    r.temperature = 0.7f;
    s = sequence_of(&r);
    assert_true(gw_sequence_wants_logits(s));
    gw_sequence_destroy(s);
    r = good_request();
    r.record = &rec;
    s = sequence_of(&r);
    assert_true(gw_sequence_wants_logits(s));
    assert_null(rec.logits); /* not asked for */
    gw_sequence_destroy(s);
    gw_record_fini(&rec);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refusals_name_the_field),
        cmocka_unit_test(the_first_input_is_the_start_token_and_then_what_was_chosen),
        cmocka_unit_test(the_end_token_stops_unless_ignored),
        cmocka_unit_test(max_tokens_ends_it_with_length),
        cmocka_unit_test(forced_tokens_replace_the_chosen_ones),
        cmocka_unit_test(the_record_keeps_this_sequences_rows),
        cmocka_unit_test(the_record_keeps_gates_and_what_forcing_costs),
        cmocka_unit_test(only_samplers_and_records_want_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
