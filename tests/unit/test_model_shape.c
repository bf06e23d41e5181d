/* config.json: what is read, what is refused and under which name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model_shape.h"

#define ORDINARY "SwitchTransformersForConditionalGeneration"
#define PREGATED "PregatedSwitchTransformersForConditionalGeneration"

/* A complete config; `extra` comes first, and the first of two equal keys counts, so it overrides.
 */
static int write_config(char *json, size_t bytes, const char *arch, const char *extra)
{
    return snprintf(json, bytes,
                    "{%s \"architectures\": [\"%s\"], \"model_type\": \"switch_transformers\", "
                    "\"d_model\": 192, \"d_kv\": 32, \"d_ff\": 384, \"num_heads\": 6, "
                    "\"vocab_size\": 4096, \"num_layers\": 6, \"num_decoder_layers\": 8, "
                    "\"num_experts\": 16, \"num_sparse_encoder_layers\": 3, "
                    "\"num_sparse_decoder_layers\": 4, \"dense_act_fn\": \"relu\"}",
                    extra, arch);
}

static moe_status parse_arch(const char *arch, const char *extra, moe_model_shape *out,
                             moe_err *err)
{
    char json[2048];
    int len = write_config(json, sizeof json, arch, extra);
    return moe_model_shape_parse(json, (size_t)len, out, err);
}

static moe_model_shape parse_ok(const char *extra)
{
    moe_model_shape s = {0};
    moe_err err = {0};
    moe_status st = parse_arch(ORDINARY, extra, &s, &err);
    if (st != MOE_OK) {
        print_error("%s\n", err.text);
    }
    assert_int_equal(MOE_OK, st);
    return s;
}

static void expect_refusal(moe_status expected, const char *arch, const char *extra,
                           const char *named)
{
    moe_model_shape s = {.d_model = 77};
    moe_err err = {0};
    assert_int_equal(expected, parse_arch(arch, extra, &s, &err));
    if (strstr(err.text, named) == NULL) {
        print_error("\"%s\" does not name %s\n", err.text, named);
    }
    assert_non_null(strstr(err.text, named));
    assert_int_equal(77, s.d_model); /* untouched */
}

static void dims_are_read(void **state)
{
    (void)state;
    moe_model_shape s = parse_ok("");
    assert_string_equal("switch_transformers", s.model_type);
    assert_int_equal(192, s.d_model);
    assert_int_equal(384, s.d_ff);
    assert_int_equal(32, s.d_head);
    assert_int_equal(6, s.n_heads);
    assert_int_equal(4096, s.vocab);
    assert_int_equal(16, s.n_experts);
    assert_int_equal(1, s.top_k);
    assert_int_equal(MOE_ACT_RELU, s.act);
    assert_int_equal(0, s.pregate_lookahead);
    assert_int_equal(2 * 384 * 192, moe_expert_params(&s));
}

static void absent_and_null_keys_have_the_reference_defaults(void **state)
{
    (void)state;
    moe_model_shape s = parse_ok("\"pad_token_id\": null, \"tie_word_embeddings\": null,");
    assert_int_equal(32, s.n_rel_buckets);
    assert_int_equal(128, s.rel_max_distance);
    assert_int_equal(64, s.expert_capacity);
    assert_true(s.norm_eps == 1e-6f);
    assert_true(s.tied_head);
    assert_int_equal(0, s.pad_id);
    assert_int_equal(1, s.eos_id);
    assert_int_equal(0, s.decoder_start_id);
    s = parse_ok("\"pad_token_id\": 5, \"tie_word_embeddings\": false,");
    assert_int_equal(5, s.decoder_start_id); /* follows the padding token */
    assert_false(s.tied_head);
}

static void every_second_layer_is_sparse_and_experts_count_on(void **state)
{
    (void)state;
    moe_model_shape s = parse_ok("");
    const moe_stack_shape *enc = &s.stack[MOE_ENCODER];
    const moe_stack_shape *dec = &s.stack[MOE_DECODER];
    assert_int_equal(3, enc->n_blocks);
    assert_int_equal(4, dec->n_blocks);
    for (uint32_t i = 0; i < dec->n_layers; i++) {
        assert_int_equal(i % 2, dec->layer_is_moe[i]);
        assert_int_equal(i % 2 == 1 ? (int)(i / 2) : -1, dec->block_of_layer[i]);
    }
    assert_int_equal(7, dec->layer_of_block[3]);
    assert_int_equal(7, s.n_blocks_total);
    assert_int_equal(7 * 16, s.n_experts_total);
    assert_int_equal(3 * 16, dec->first_expert);
    uint32_t index = moe_expert_index(&s, MOE_DECODER, 2, 5);
    assert_int_equal((3 + 2) * 16 + 5, index);
    assert_int_equal(5, moe_block_of_expert(&s, index));
    assert_int_equal(5, moe_flat_block(&s, MOE_DECODER, 2));
    char name[8];
    moe_block_name(&s, 2, name, sizeof name);
    assert_string_equal("enc2", name);
    moe_block_name(&s, 3, name, sizeof name);
    assert_string_equal("dec0", name);
}

/* "01001" for a stack whose layers 1 and 4 are sparse. */
static void expect_layout(const char *expected, uint32_t n_sparse)
{
    char extra[128];
    char layout[MOE_MAX_LAYERS + 1] = "";
    snprintf(extra, sizeof extra, "\"num_decoder_layers\": %zu, \"num_sparse_decoder_layers\": %u,",
             strlen(expected), n_sparse);
    moe_model_shape s = parse_ok(extra);
    for (uint32_t i = 0; i < s.stack[MOE_DECODER].n_layers; i++) {
        layout[i] = s.stack[MOE_DECODER].layer_is_moe[i] ? '1' : '0';
    }
    assert_string_equal(expected, layout);
}

static void sparse_layers_follow_the_step(void **state)
{
    (void)state;
    expect_layout("0000", 0);
    expect_layout("111", 3);
    expect_layout("010010", 2);
    expect_layout("111111", 4);   /* step 6/4 = 1: all of them */
    expect_layout("0101010", 3);  /* step 7/3 = 2 */
    expect_layout("01000000", 1); /* step 8 */
}

static void activations_come_from_dense_act_fn(void **state)
{
    (void)state;
    moe_model_shape s = parse_ok("\"dense_act_fn\": \"gelu\",");
    assert_int_equal(MOE_ACT_GELU_ERF, s.act);
    s = parse_ok("\"dense_act_fn\": \"gelu_new\",");
    assert_int_equal(MOE_ACT_GELU_TANH, s.act);
    s = parse_ok("\"feed_forward_proj\": \"gelu_new\",");
    assert_int_equal(MOE_ACT_RELU, s.act); /* the other key says nothing */
    expect_refusal(MOE_ERR_UNSUPPORTED, ORDINARY, "\"dense_act_fn\": \"silu\",", "silu");
    expect_refusal(MOE_ERR_UNSUPPORTED, ORDINARY, "\"is_gated_act\": true,", "is_gated_act");
}

static void a_pregated_checkpoint_says_so_twice(void **state)
{
    (void)state;
    moe_model_shape s = {0};
    assert_int_equal(MOE_OK, parse_arch(PREGATED, "\"pregate\": {\"lookahead\": 1},", &s, NULL));
    assert_int_equal(1, s.pregate_lookahead);
    expect_refusal(MOE_ERR_FORMAT, PREGATED, "", "pregate");
    expect_refusal(MOE_ERR_FORMAT, ORDINARY, "\"pregate\": {\"lookahead\": 1},", "pregate");
    expect_refusal(MOE_ERR_FORMAT, PREGATED, "\"pregate\": {},", "lookahead");
    expect_refusal(MOE_ERR_FORMAT, PREGATED, "\"pregate\": {\"lookahead\": \"1\"},", "lookahead");
    expect_refusal(MOE_ERR_UNSUPPORTED, PREGATED, "\"pregate\": {\"lookahead\": 2},", "lookahead");
    expect_refusal(MOE_ERR_FORMAT, PREGATED, "\"pregate\": 1,", "lookahead");
}

static void other_models_are_refused_by_name(void **state)
{
    (void)state;
    expect_refusal(MOE_ERR_UNSUPPORTED, ORDINARY, "\"model_type\": \"t5\",", "t5");
    expect_refusal(MOE_ERR_UNSUPPORTED, "MixtralForCausalLM", "", "MixtralForCausalLM");
    expect_refusal(MOE_ERR_FORMAT, ORDINARY, "\"architectures\": [],", "architectures");
    expect_refusal(MOE_ERR_FORMAT, ORDINARY, "\"architectures\": \"x\",", "architectures");
    expect_refusal(MOE_ERR_FORMAT, ORDINARY, "\"architectures\": [1],", "architectures");
    expect_refusal(MOE_ERR_FORMAT, ORDINARY, "\"model_type\": 1,", "model_type");
    expect_refusal(MOE_ERR_UNSUPPORTED, ORDINARY, "\"router_bias\": true,", "router_bias");
    expect_refusal(MOE_ERR_UNSUPPORTED, ORDINARY, "\"router_dtype\": \"bfloat16\",",
                   "router_dtype");
}

static void dims_out_of_bounds_are_named(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"\"d_model\": 0,", "d_model"},
        {"\"d_model\": -192,", "d_model"},
        {"\"d_ff\": 65537,", "d_ff"},
        {"\"d_kv\": 1e300,", "d_kv"},
        {"\"num_heads\": 5000,", "num_heads"},
        {"\"vocab_size\": 1,", "vocab_size"},
        {"\"vocab_size\": 4194305,", "vocab_size"},
        {"\"num_experts\": 4097,", "num_experts"},
        {"\"num_layers\": 65,", "num_layers"},
        {"\"num_decoder_layers\": 0,", "num_decoder_layers"},
        {"\"num_sparse_encoder_layers\": 7,", "num_sparse_encoder_layers"},
        {"\"num_sparse_decoder_layers\": -1,", "num_sparse_decoder_layers"},
        {"\"expert_capacity\": 0,", "expert_capacity"},
        {"\"relative_attention_num_buckets\": 33,", "relative_attention_num_buckets"},
        {"\"relative_attention_max_distance\": 16,", "relative_attention_max_distance"},
        {"\"layer_norm_epsilon\": 0,", "layer_norm_epsilon"},
        {"\"eos_token_id\": 4096,", "eos_token_id"},
        {"\"pad_token_id\": -1,", "pad_token_id"},
        {"\"decoder_start_token_id\": 9999,", "decoder_start_token_id"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        expect_refusal(MOE_ERR_LIMIT, ORDINARY, bad[i][0], bad[i][1]);
    }
}

static void wrong_types_are_named(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"\"d_model\": \"192\",", "d_model"},
        {"\"d_model\": 192.5,", "d_model"},
        {"\"d_model\": null,", "d_model"},
        {"\"d_ff\": [384],", "d_ff"},
        {"\"num_experts\": true,", "num_experts"},
        {"\"is_gated_act\": 0,", "is_gated_act"},
        {"\"dense_act_fn\": 1,", "dense_act_fn"},
        {"\"layer_norm_epsilon\": \"x\",", "epsilon"},
        {"\"eos_token_id\": [1, 2],", "eos_token_id"},
        {"\"tie_word_embeddings\": 1,", "tie_word"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        expect_refusal(MOE_ERR_FORMAT, ORDINARY, bad[i][0], bad[i][1]);
    }
}

static void expect_not_json(const char *text, size_t bytes)
{
    moe_model_shape s = {0};
    char *exact = malloc(bytes > 0 ? bytes : 1); /* so that asan sees a read past the end */
    assert_non_null(exact);
    memcpy(exact, text, bytes);
    assert_int_equal(MOE_ERR_FORMAT, moe_model_shape_parse(exact, bytes, &s, NULL));
    free(exact);
}

static void text_that_is_no_json_object_is_refused(void **state)
{
    (void)state;
    expect_not_json("", 0);
    expect_not_json("{", 1);
    expect_not_json("[1, 2]", 6);
    expect_not_json("{} x", 4);
    expect_not_json("{}{}", 4);
    expect_not_json("\0", 1);
    expect_not_json("{\"d_model\": 1", 13);
    char deep[5000];
    memset(deep, '[', sizeof deep);
    expect_not_json(deep, sizeof deep);
}

static void only_blanks_may_follow_the_object(void **state)
{
    (void)state;
    moe_model_shape s = {0};
    char json[2048];
    int len = write_config(json, sizeof json - 8, ORDINARY, "");
    memcpy(json + len, " \r\n\tx", 5);
    assert_int_equal(MOE_OK, moe_model_shape_parse(json, (size_t)len + 4, &s, NULL));
    assert_int_equal(MOE_ERR_FORMAT, moe_model_shape_parse(json, (size_t)len + 5, &s, NULL));
}

static void an_oversized_text_is_refused_unread(void **state)
{
    (void)state;
    moe_model_shape s = {0};
    assert_int_equal(MOE_ERR_LIMIT, moe_model_shape_parse("{}", (1 << 20) + 1, &s, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dims_are_read),
        cmocka_unit_test(absent_and_null_keys_have_the_reference_defaults),
        cmocka_unit_test(every_second_layer_is_sparse_and_experts_count_on),
        cmocka_unit_test(sparse_layers_follow_the_step),
        cmocka_unit_test(activations_come_from_dense_act_fn),
        cmocka_unit_test(a_pregated_checkpoint_says_so_twice),
        cmocka_unit_test(other_models_are_refused_by_name),
        cmocka_unit_test(dims_out_of_bounds_are_named),
        cmocka_unit_test(wrong_types_are_named),
        cmocka_unit_test(text_that_is_no_json_object_is_refused),
        cmocka_unit_test(only_blanks_may_follow_the_object),
        cmocka_unit_test(an_oversized_text_is_refused_unread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
