/* The JSON of /v1/completions: every field, every refusal by name, where text is cut, what is
 * written. Argument: a model directory with spiece.model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "common/file.h"
#include "gpu-worker/serve/completions.h"

static gw_tokenizer *tokenizer;
static gw_completion_limits limits;

static moe_status parse(const char *body, gw_completion_request *r, const char **param,
                        moe_err *err)
{
    *r = (gw_completion_request){0};
    return gw_completion_parse(body, strlen(body), &limits, r, param, err);
}

static gw_completion_request accept(const char *body)
{
    gw_completion_request r;
    const char *param = NULL;
    moe_err err = {0};
    if (parse(body, &r, &param, &err) != MOE_OK) {
        fail_msg("%s refused: %s", body, err.text);
    }
    return r;
}

/* Refused with this status, naming this field (NULL: the body), saying this. */
static void refuse(const char *body, moe_status status, const char *field, const char *words)
{
    gw_completion_request r;
    const char *param = "untouched";
    moe_err err = {0};
    moe_status st = parse(body, &r, &param, &err);
    gw_completion_request_fini(&r);
    if (st != status || (field == NULL) != (param == NULL) ||
        (field != NULL && strcmp(field, param) != 0) || strstr(err.text, words) == NULL) {
        fail_msg("%s: status %d, field %s, \"%s\"", body, (int)st, param != NULL ? param : "-",
                 st != MOE_OK ? err.text : "");
    }
    assert_int_equal(0, r.n_prompts); /* out-parameters are left alone */
}

/* ---- fields ---- */

static void a_prompt_alone_gets_the_documented_defaults(void **state)
{
    (void)state;
    gw_completion_request r = accept("{\"prompt\":\"call me ishmael\"}");
    assert_int_equal(1, r.n_prompts);
    assert_true(r.prompt[0].n > 1);
    assert_int_equal(1, r.prompt[0].ids[r.prompt[0].n - 1]);
    assert_int_equal(100, r.max_tokens); /* the limit, being less than 256 */
    assert_true(r.temperature == 0 && r.top_p == 1);
    assert_int_equal(0, r.seed);
    assert_int_equal(0, r.n_stops);
    assert_false(r.stream || r.include_usage);
    gw_completion_request_fini(&r);
    gw_completion_request_fini(&r); /* twice is harmless */
}

static void every_field_arrives(void **state)
{
    (void)state;
    gw_completion_request r = accept(
        " {\"model\":\"demo\",\"prompt\":[5,6],\"max_tokens\":7,\"temperature\":0.5,\"top_p\":0.25,"
        "\"seed\":9007199254740992,\"stop\":[\"a\",\"bc\"],\"stream\":true,"
        "\"stream_options\":{\"include_usage\":true},\"user\":\"someone\"} \r\n\t");
    assert_int_equal(7, r.max_tokens);
    assert_true(r.temperature == 0.5 && r.top_p == 0.25);
    assert_true(r.seed == 9007199254740992u);
    assert_int_equal(2, r.n_stops);
    assert_string_equal("a", r.stop[0]);
    assert_string_equal("bc", r.stop[1]);
    assert_true(r.stream && r.include_usage);
    gw_completion_request_fini(&r);
}

static void null_means_absent(void **state)
{
    (void)state;
    gw_completion_request r =
        accept("{\"prompt\":[5],\"model\":null,\"max_tokens\":null,\"temperature\":null,"
               "\"top_p\":null,\"seed\":null,\"stop\":null,\"stream\":null,\"stream_options\":null,"
               "\"n\":null,\"best_of\":null,\"echo\":null,\"logprobs\":null,\"suffix\":null,"
               "\"logit_bias\":null,\"presence_penalty\":null,\"frequency_penalty\":null}");
    assert_int_equal(100, r.max_tokens);
    gw_completion_request_fini(&r);
}

static void harmless_values_of_unsupported_fields_pass(void **state)
{
    (void)state;
    gw_completion_request r =
        accept("{\"prompt\":[5],\"n\":1,\"best_of\":1,\"echo\":false,\"logit_bias\":{},"
               "\"presence_penalty\":0,\"frequency_penalty\":0.0}");
    gw_completion_request_fini(&r);
}

static void ids_get_an_end_unless_they_have_one(void **state)
{
    (void)state;
    gw_completion_request r = accept("{\"prompt\":[[5,6],[7,1],[]]}");
    assert_int_equal(3, r.n_prompts);
    assert_int_equal(3, r.prompt[0].n);
    assert_int_equal(5, r.prompt[0].ids[0]);
    assert_int_equal(1, r.prompt[0].ids[2]);
    assert_int_equal(2, r.prompt[1].n);
    assert_int_equal(1, r.prompt[2].n);
    gw_completion_request_fini(&r);
}

static void texts_and_ids_may_share_a_list(void **state)
{
    (void)state;
    gw_completion_request r = accept("{\"prompt\":[\"one\",[5,6],\"two\"]}");
    assert_int_equal(3, r.n_prompts);
    assert_int_equal(3, r.prompt[1].n);
    gw_completion_request_fini(&r);
}

static void as_many_prompts_as_allowed_and_no_more(void **state)
{
    (void)state;
    moe_text body;
    moe_text_init(&body);
    moe_text_printf(&body, "{\"prompt\":[[5]");
    for (int i = 1; i < GW_MAX_PROMPTS; i++) {
        moe_text_printf(&body, ",[5]");
    }
    moe_text_printf(&body, "]}");
    gw_completion_request r = accept(body.data);
    assert_int_equal(GW_MAX_PROMPTS, r.n_prompts);
    gw_completion_request_fini(&r);
    body.len -= 2;
    moe_text_printf(&body, ",[5]]}");
    refuse(body.data, MOE_ERR_LIMIT, "prompt", "65 entries; at most 64");
    moe_text_fini(&body);
}

static void text_needs_a_tokenizer_and_ids_do_not(void **state)
{
    (void)state;
    limits.tokenizer = NULL;
    refuse("{\"prompt\":\"a\"}", MOE_ERR_UNSUPPORTED, "prompt", "no tokenizer");
    gw_completion_request r = accept("{\"prompt\":[5]}");
    gw_completion_request_fini(&r);
    limits.tokenizer = tokenizer;
}

/* ---- refusals ---- */

static void bodies_that_are_no_object_are_refused(void **state)
{
    (void)state;
    static const char *const bodies[] = {"",
                                         "{",
                                         "[]",
                                         "\"prompt\"",
                                         "{\"prompt\":[5]} {}",
                                         "{\"prompt\":[5]}x",
                                         "{\"prompt\":[5],}",
                                         "prompt=5",
                                         "{\"prompt\":nan}"};
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        refuse(bodies[i], MOE_ERR_FORMAT, NULL, "not a JSON object");
    }
}

static void nul_characters_are_refused_not_cut_at(void **state)
{
    (void)state;
    refuse("{\"prompt\":\"a\\u0000b\"}", MOE_ERR_FORMAT, NULL, "NUL character at offset 12");
    gw_completion_request r = accept("{\"prompt\":\"a\\\\u0000b\"}"); /* a backslash, then text */
    gw_completion_request_fini(&r);
    static const char raw[] = "{\"prompt\":\"a\0b\"}";
    const char *param = NULL;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_FORMAT,
                     gw_completion_parse(raw, sizeof raw - 1, &limits, &r, &param, &err));
    assert_non_null(strstr(err.text, "NUL byte at offset 12"));
}

static void deep_nesting_is_refused_before_it_recurses(void **state)
{
    (void)state;
    enum { DEEP = 100000 };
    char *body = malloc(DEEP + 1);
    assert_non_null(body);
    memset(body, '[', DEEP);
    body[DEEP] = '\0';
    refuse(body, MOE_ERR_LIMIT, NULL, "nests deeper than 16");
    free(body);
    gw_completion_request r = accept("{\"prompt\":[5],\"x\":\"[[[[[[[[[[[[[[[[[[[[\"}");
    gw_completion_request_fini(&r);
}

static void numbers_out_of_range_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *fields, *name, *words;
    } cases[] = {
        {"\"max_tokens\":0", "max_tokens", "an integer between 1 and 100"},
        {"\"max_tokens\":101", "max_tokens", "an integer between 1 and 100"},
        {"\"max_tokens\":1.5", "max_tokens", "an integer"},
        {"\"max_tokens\":\"5\"", "max_tokens", "an integer"},
        {"\"max_tokens\":true", "max_tokens", "an integer"},
        {"\"temperature\":-0.1", "temperature", "a number between 0 and 2"},
        {"\"temperature\":2.1", "temperature", "a number between 0 and 2"},
        {"\"temperature\":1e999", "temperature", "a number between 0 and 2"},
        {"\"top_p\":0", "top_p", "a number between 1e-06 and 1"},
        {"\"top_p\":1.01", "top_p", "between 1e-06 and 1"},
        {"\"seed\":-1", "seed", "an integer between 0 and 9007199254740992"},
        {"\"seed\":0.5", "seed", "an integer"},
        {"\"seed\":1e300", "seed", "an integer"},
        {"\"stream\":1", "stream", "true or false"},
        {"\"stream\":\"true\"", "stream", "true or false"},
        {"\"stream_options\":true", "stream_options", "an object"},
        {"\"stream_options\":[]", "stream_options", "an object"},
        {"\"stream_options\":{\"include_usage\":1}", "include_usage", "true or false"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char body[200];
        snprintf(body, sizeof body, "{\"prompt\":[5],%s}", cases[i].fields);
        refuse(body, MOE_ERR_INVALID, cases[i].name, cases[i].words);
    }
}

static void what_we_cannot_honour_is_refused_by_name(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"\"n\":2", "n"},
        {"\"best_of\":2", "best_of"},
        {"\"presence_penalty\":0.5", "presence_penalty"},
        {"\"frequency_penalty\":-1", "frequency_penalty"},
        {"\"echo\":true", "echo"},
        {"\"logprobs\":3", "logprobs"},
        {"\"logprobs\":0", "logprobs"},
        {"\"suffix\":\"x\"", "suffix"},
        {"\"logit_bias\":{\"5\":-100}", "logit_bias"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char body[200];
        snprintf(body, sizeof body, "{\"prompt\":[5],%s}", cases[i][0]);
        refuse(body, MOE_ERR_UNSUPPORTED, cases[i][1], "not supported");
    }
    refuse("{\"prompt\":[5],\"n\":\"2\"}", MOE_ERR_INVALID, "n", "a number");
}

static void prompts_that_are_none_are_refused(void **state)
{
    (void)state;
    static const char *const bodies[] = {"{}", "{\"prompt\":null}", "{\"prompt\":5}",
                                         "{\"prompt\":[]}", "{\"prompt\":{\"a\":1}}"};
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        refuse(bodies[i], MOE_ERR_INVALID, "prompt", "prompt must be a string, a list");
    }
    refuse("{\"prompt\":[\"a\",5]}", MOE_ERR_INVALID, "prompt", "mixes");
    refuse("{\"prompt\":[5,\"a\"]}", MOE_ERR_INVALID, "prompt", "prompt id 1 is not an integer");
    refuse("{\"prompt\":[5,-1]}", MOE_ERR_INVALID, "prompt", "prompt id 1");
    refuse("{\"prompt\":[4096]}", MOE_ERR_INVALID, "prompt", "in [0, 4096)");
    refuse("{\"prompt\":[[5],[1.5]]}", MOE_ERR_INVALID, "prompt", "prompt id 0");
    refuse("{\"prompt\":\"\xff\"}", MOE_ERR_INVALID, "prompt", "UTF-8");
}

static void prompts_that_are_too_long_are_refused_with_both_counts(void **state)
{
    (void)state;
    refuse("{\"prompt\":[5,5,5,5,5,5,5,5,5,5,5,5,5,5,5,5]}", MOE_ERR_LIMIT, "prompt",
           "17 tokens; at most 16");
    refuse("{\"prompt\":\"one two three four five six seven eight nine ten eleven twelve thirteen "
           "fourteen fifteen sixteen\"}",
           MOE_ERR_LIMIT, "prompt", "16");
    gw_completion_request r = accept("{\"prompt\":[5,5,5,5,5,5,5,5,5,5,5,5,5,5,5]}");
    assert_int_equal(16, r.prompt[0].n);
    gw_completion_request_fini(&r);
}

static void stop_strings_have_bounds(void **state)
{
    (void)state;
    char body[400], long_stop[GW_STOP_BYTES + 1];
    memset(long_stop, 's', GW_STOP_BYTES);
    long_stop[GW_STOP_BYTES] = '\0';
    snprintf(body, sizeof body, "{\"prompt\":[5],\"stop\":\"%s\"}", long_stop);
    refuse(body, MOE_ERR_INVALID, "stop", "1 to 127 bytes");
    snprintf(body, sizeof body, "{\"prompt\":[5],\"stop\":\"%s\"}", long_stop + 1);
    gw_completion_request r = accept(body);
    assert_string_equal(long_stop + 1, r.stop[0]);
    gw_completion_request_fini(&r);
    refuse("{\"prompt\":[5],\"stop\":\"\"}", MOE_ERR_INVALID, "stop", "1 to 127 bytes");
    refuse("{\"prompt\":[5],\"stop\":[\"a\",5]}", MOE_ERR_INVALID, "stop", "list of such");
    refuse("{\"prompt\":[5],\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]}", MOE_ERR_LIMIT, "stop",
           "5 strings; at most 4");
    r = accept("{\"prompt\":[5],\"stop\":[]}");
    assert_int_equal(0, r.n_stops);
    gw_completion_request_fini(&r);
}

static void another_model_is_not_found(void **state)
{
    (void)state;
    refuse("{\"prompt\":[5],\"model\":\"gpt\"}", MOE_ERR_NOT_FOUND, "model",
           "'gpt' is not served here; 'demo' is");
    refuse("{\"prompt\":[5],\"model\":5}", MOE_ERR_INVALID, "model", "a string");
}

static void prompts_parsed_before_the_bad_one_are_freed(void **state)
{
    (void)state; /* what it checks is seen by the address sanitizer */
    refuse("{\"prompt\":[\"a\",[5],[5000]]}", MOE_ERR_INVALID, "prompt", "prompt id 0");
}

/* ---- where text is cut ---- */

static gw_completion_request with_stops(const char *a, const char *b)
{
    gw_completion_request r = {.n_stops = b != NULL ? 2 : a != NULL ? 1 : 0};
    snprintf(r.stop[0], GW_STOP_BYTES, "%s", a != NULL ? a : "");
    snprintf(r.stop[1], GW_STOP_BYTES, "%s", b != NULL ? b : "");
    return r;
}

static void the_first_stop_string_in_the_text_wins(void **state)
{
    (void)state;
    gw_completion_request r = with_stops("end", "nd");
    assert_int_equal(6, gw_stop_find(&r, "at a send", 9));
    assert_int_equal(2, gw_stop_find(&r, "a nd end", 8));
    assert_int_equal(4, gw_stop_find(&r, "none", 4));
    assert_int_equal(0, gw_stop_find(&r, "", 0));
    r = with_stops(NULL, NULL);
    assert_int_equal(3, gw_stop_find(&r, "end", 3));
}

static void beginnings_of_stop_strings_are_held_back(void **state)
{
    (void)state;
    gw_completion_request r = with_stops("###", "\n\n");
    assert_int_equal(0, gw_stop_holdback(&r, "text", 4));
    assert_int_equal(1, gw_stop_holdback(&r, "text#", 5));
    assert_int_equal(2, gw_stop_holdback(&r, "text##", 6));
    assert_int_equal(2, gw_stop_holdback(&r, "##", 2));
    assert_int_equal(1, gw_stop_holdback(&r, "text\n", 5));
    assert_int_equal(0, gw_stop_holdback(&r, "te#xt", 5));
    assert_int_equal(0, gw_stop_holdback(&r, "", 0));
    r = with_stops("##x", "#y"); /* a shorter beginning does not take it back */
    assert_int_equal(2, gw_stop_holdback(&r, "text##", 6));
    r = with_stops("abab", NULL); /* the longest beginning, not the first */
    assert_int_equal(3, gw_stop_holdback(&r, "xaba", 4));
}

static void unfinished_utf8_is_held_back(void **state)
{
    (void)state;
    gw_completion_request r = with_stops(NULL, NULL);
    assert_int_equal(1, gw_stop_holdback(&r, "a\xc3", 2));
    assert_int_equal(0, gw_stop_holdback(&r, "a\xc3\xa9", 3));
    assert_int_equal(1, gw_stop_holdback(&r, "a\xe2", 2));
    assert_int_equal(2, gw_stop_holdback(&r, "a\xe2\x82", 3));
    assert_int_equal(0, gw_stop_holdback(&r, "a\xe2\x82\xac", 4));
    assert_int_equal(3, gw_stop_holdback(&r, "a\xf0\x9f\x98", 4));
    assert_int_equal(0, gw_stop_holdback(&r, "a\xf0\x9f\x98\x80", 5));
    assert_int_equal(0,
                     gw_stop_holdback(&r, "\x80\x80\x80\x80", 4)); /* stray: nothing to wait for */
    r = with_stops("b\xc3\xa9", NULL); /* both at once: the longer one */
    assert_int_equal(2, gw_stop_holdback(&r, "ab\xc3", 3));
}

/* Whatever is streamed piece by piece is the text up to the stop string, for every split. */
static void pieces_add_up_to_the_text_before_the_stop(void **state)
{
    (void)state;
    static const char text[] = "na\xc3\xafve n\xe2\x82\xac n#n##n###rest";
    gw_completion_request r = with_stops("###", "zzz");
    char streamed[64] = "";
    size_t sent = 0;
    for (size_t len = 0; len <= sizeof text - 1; len++) {
        size_t cut = gw_stop_find(&r, text, len);
        size_t upto = cut < len ? cut : len - gw_stop_holdback(&r, text, len);
        assert_true(upto >= sent);
        memcpy(streamed + sent, text + sent, upto - sent);
        assert_true(upto == 0 || ((unsigned char)text[upto] & 0xc0) != 0x80);
        sent = upto;
    }
    assert_string_equal("na\xc3\xafve n\xe2\x82\xac n#n##n", streamed);
}

/* ---- what is written ---- */

static cJSON *parse_output(moe_text *t)
{
    assert_int_equal(MOE_OK, moe_text_finish(t, NULL));
    cJSON *root = cJSON_ParseWithOpts(t->data, NULL, 1);
    if (root == NULL) {
        fail_msg("not JSON: %s", t->data);
    }
    moe_text_fini(t);
    return root;
}

static void a_response_is_json_with_every_field(void **state)
{
    (void)state;
    moe_text t;
    moe_text_init(&t);
    gw_choice_text choices[] = {{"a \"b\"\n", 6, "stop", 0}, {"\xff", 1, NULL, 1}};
    gw_usage usage = {.prompt_tokens = 3, .completion_tokens = 4};
    gw_completion_write(&t, "cmpl-1", 1700000000, "de\"mo", choices, 2, &usage);
    cJSON *root = parse_output(&t);
    assert_string_equal("cmpl-1", cJSON_GetObjectItem(root, "id")->valuestring);
    assert_string_equal("text_completion", cJSON_GetObjectItem(root, "object")->valuestring);
    assert_true(cJSON_GetObjectItem(root, "created")->valuedouble == 1700000000);
    assert_string_equal("de\"mo", cJSON_GetObjectItem(root, "model")->valuestring);
    const cJSON *first = cJSON_GetArrayItem(cJSON_GetObjectItem(root, "choices"), 0);
    const cJSON *second = cJSON_GetArrayItem(cJSON_GetObjectItem(root, "choices"), 1);
    assert_string_equal("a \"b\"\n", cJSON_GetObjectItem(first, "text")->valuestring);
    assert_string_equal("stop", cJSON_GetObjectItem(first, "finish_reason")->valuestring);
    assert_string_equal("\xef\xbf\xbd", cJSON_GetObjectItem(second, "text")->valuestring);
    assert_int_equal(1, cJSON_GetObjectItem(second, "index")->valueint);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(second, "finish_reason")));
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(second, "logprobs")));
    const cJSON *u = cJSON_GetObjectItem(root, "usage");
    assert_int_equal(3, cJSON_GetObjectItem(u, "prompt_tokens")->valueint);
    assert_int_equal(4, cJSON_GetObjectItem(u, "completion_tokens")->valueint);
    assert_int_equal(7, cJSON_GetObjectItem(u, "total_tokens")->valueint);
    cJSON_Delete(root);
}

static void an_event_without_choices_or_usage_is_json(void **state)
{
    (void)state;
    moe_text t;
    moe_text_init(&t);
    gw_completion_write(&t, "cmpl-1", 1, "demo", NULL, 0, NULL);
    cJSON *root = parse_output(&t);
    assert_int_equal(0, cJSON_GetArraySize(cJSON_GetObjectItem(root, "choices")));
    assert_null(cJSON_GetObjectItem(root, "usage"));
    cJSON_Delete(root);
}

static void an_error_is_json_with_every_field(void **state)
{
    (void)state;
    moe_text t;
    moe_text_init(&t);
    gw_error_write(&t, "bad \"thing\"", "invalid_request_error", "prompt", NULL);
    cJSON *root = parse_output(&t);
    const cJSON *e = cJSON_GetObjectItem(root, "error");
    assert_string_equal("bad \"thing\"", cJSON_GetObjectItem(e, "message")->valuestring);
    assert_string_equal("invalid_request_error", cJSON_GetObjectItem(e, "type")->valuestring);
    assert_string_equal("prompt", cJSON_GetObjectItem(e, "param")->valuestring);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(e, "code")));
    cJSON_Delete(root);
}

static void load_tokenizer(const char *dir)
{
    char path[1024];
    char *data = NULL;
    size_t bytes = 0;
    moe_err err = {0};
    snprintf(path, sizeof path, "%s/spiece.model", dir);
    if (moe_file_read(path, 16u << 20, &data, &bytes, &err) != MOE_OK ||
        gw_tokenizer_create(data, bytes, &tokenizer, &err) != MOE_OK) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    free(data);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompt_alone_gets_the_documented_defaults),
        cmocka_unit_test(every_field_arrives),
        cmocka_unit_test(null_means_absent),
        cmocka_unit_test(harmless_values_of_unsupported_fields_pass),
        cmocka_unit_test(ids_get_an_end_unless_they_have_one),
        cmocka_unit_test(texts_and_ids_may_share_a_list),
        cmocka_unit_test(as_many_prompts_as_allowed_and_no_more),
        cmocka_unit_test(text_needs_a_tokenizer_and_ids_do_not),
        cmocka_unit_test(bodies_that_are_no_object_are_refused),
        cmocka_unit_test(nul_characters_are_refused_not_cut_at),
        cmocka_unit_test(deep_nesting_is_refused_before_it_recurses),
        cmocka_unit_test(numbers_out_of_range_are_refused_by_name),
        cmocka_unit_test(what_we_cannot_honour_is_refused_by_name),
        cmocka_unit_test(prompts_that_are_none_are_refused),
        cmocka_unit_test(prompts_that_are_too_long_are_refused_with_both_counts),
        cmocka_unit_test(stop_strings_have_bounds),
        cmocka_unit_test(another_model_is_not_found),
        cmocka_unit_test(prompts_parsed_before_the_bad_one_are_freed),
        cmocka_unit_test(the_first_stop_string_in_the_text_wins),
        cmocka_unit_test(beginnings_of_stop_strings_are_held_back),
        cmocka_unit_test(unfinished_utf8_is_held_back),
        cmocka_unit_test(pieces_add_up_to_the_text_before_the_stop),
        cmocka_unit_test(a_response_is_json_with_every_field),
        cmocka_unit_test(an_event_without_choices_or_usage_is_json),
        cmocka_unit_test(an_error_is_json_with_every_field),
    };
    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL-DIR\n", argv[0]);
        return 2;
    }
    load_tokenizer(argv[1]);
    limits = (gw_completion_limits){.tokenizer = tokenizer,
                                    .model_name = "demo",
                                    .vocab = gw_tokenizer_vocab(tokenizer),
                                    .max_input_tokens = 16,
                                    .max_output_tokens = 100};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    gw_tokenizer_destroy(tokenizer);
    return failed != 0;
}
