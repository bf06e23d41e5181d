/* completions.c - see completions.h. */
#include "gpu-worker/serve/completions.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { EOS_ID = 1, MAX_JSON_DEPTH = 16 };

/* What cJSON does not refuse: nesting that a request never needs (it recurses, up to 1000 levels),
 * and NUL characters, at which its strings would end early. */
static moe_status prescan(const char *body, size_t bytes, moe_err *err)
{
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = body[i];
        if (c == '\0') {
            return MOE_FAIL(err, MOE_ERR_FORMAT, "the body holds a NUL byte at offset %zu", i);
        }
        if (in_string) {
            if (c == '\\') {
                i++;
                if (bytes - i >= 5 && memcmp(body + i, "u0000", 5) == 0) {
                    return MOE_FAIL(err, MOE_ERR_FORMAT,
                                    "the body holds a NUL character at offset %zu", i - 1);
                }
            } else if (c == '"') {
                in_string = false;
            }
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > MAX_JSON_DEPTH) {
                return MOE_FAIL(err, MOE_ERR_LIMIT, "the body nests deeper than %d levels",
                                MAX_JSON_DEPTH);
            }
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return MOE_OK;
}

/* One JSON object and nothing behind it; owned by the caller. */
static moe_status parse_object(const char *body, size_t bytes, cJSON **out, moe_err *err)
{
    const char *end = NULL;
    moe_status st = prescan(body, bytes, err);
    if (st != MOE_OK) {
        return st;
    }
    cJSON *root = cJSON_ParseWithLengthOpts(body, bytes, &end, false);
    while (root != NULL && end < body + bytes && strchr(" \t\r\n", *end) != NULL) {
        end++;
    }
    if (!cJSON_IsObject(root) || end != body + bytes) {
        cJSON_Delete(root);
        return MOE_FAIL(err, MOE_ERR_FORMAT, "the body is not a JSON object");
    }
    *out = root;
    return MOE_OK;
}

static bool is_set(const cJSON *item)
{
    return item != NULL && !cJSON_IsNull(item);
}

static moe_status number_field(const cJSON *root, const char *name, double min, double max,
                               bool integer, double *out, const char **out_param, moe_err *err)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, name);
    if (!is_set(item)) {
        return MOE_OK;
    }
    double v = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    if (!(v >= min && v <= max) || (integer && v != floor(v))) {
        *out_param = name;
        return MOE_FAIL(err, MOE_ERR_INVALID, "%s must be %s between %.16g and %.16g", name,
                        integer ? "an integer" : "a number", min, max);
    }
    *out = v;
    return MOE_OK;
}

static moe_status bool_field(const cJSON *root, const char *name, bool *out, const char **out_param,
                             moe_err *err)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, name);
    if (!is_set(item)) {
        return MOE_OK;
    }
    if (!cJSON_IsBool(item)) {
        *out_param = name;
        return MOE_FAIL(err, MOE_ERR_INVALID, "%s must be true or false", name);
    }
    *out = cJSON_IsTrue(item);
    return MOE_OK;
}

static moe_status parse_stream_options(const cJSON *root, gw_completion_request *r,
                                       const char **out_param, moe_err *err)
{
    const cJSON *options = cJSON_GetObjectItemCaseSensitive(root, "stream_options");
    if (!is_set(options)) {
        return MOE_OK;
    }
    if (!cJSON_IsObject(options)) {
        *out_param = "stream_options";
        return MOE_FAIL(err, MOE_ERR_INVALID, "stream_options must be an object");
    }
    return bool_field(options, "include_usage", &r->include_usage, out_param, err);
}

/* Fields whose default is harmless and whose other values we cannot honour. */
static moe_status refuse_unsupported(const cJSON *root, const char **out_param, moe_err *err)
{
    static const struct {
        const char *name;
        double harmless; /* number that asks for nothing */
    } numbers[] = {{"n", 1}, {"best_of", 1}, {"presence_penalty", 0}, {"frequency_penalty", 0}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, numbers[i].name);
        if (!is_set(item)) {
            continue;
        }
        *out_param = numbers[i].name;
        if (!cJSON_IsNumber(item)) {
            return MOE_FAIL(err, MOE_ERR_INVALID, "%s must be a number", numbers[i].name);
        }
        if (item->valuedouble != numbers[i].harmless) {
            return MOE_FAIL(err, MOE_ERR_UNSUPPORTED, "%s other than %g is not supported",
                            numbers[i].name, numbers[i].harmless);
        }
    }
    static const char *const others[] = {"echo", "logprobs", "suffix", "logit_bias"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, others[i]);
        bool harmless = !is_set(item) || cJSON_IsFalse(item) ||
                        (cJSON_IsObject(item) && cJSON_GetArraySize(item) == 0);
        if (!harmless) {
            *out_param = others[i];
            return MOE_FAIL(err, MOE_ERR_UNSUPPORTED, "%s is not supported", others[i]);
        }
    }
    return MOE_OK;
}

static moe_status parse_stop(const cJSON *root, gw_completion_request *r, const char **out_param,
                             moe_err *err)
{
    const cJSON *stop = cJSON_GetObjectItemCaseSensitive(root, "stop");
    if (!is_set(stop)) {
        return MOE_OK;
    }
    *out_param = "stop";
    bool list = cJSON_IsArray(stop);
    int n = list ? cJSON_GetArraySize(stop) : 1;
    if (n > GW_MAX_STOPS) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "stop has %d strings; at most %d are allowed", n,
                        GW_MAX_STOPS);
    }
    for (int i = 0; i < n; i++) {
        const cJSON *item = list ? cJSON_GetArrayItem(stop, i) : stop;
        size_t len = cJSON_IsString(item) ? strlen(item->valuestring) : 0;
        if (len == 0 || len >= GW_STOP_BYTES) {
            return MOE_FAIL(err, MOE_ERR_INVALID,
                            "stop must be a string of 1 to %d bytes or a list of such",
                            GW_STOP_BYTES - 1);
        }
        memcpy(r->stop[r->n_stops++], item->valuestring, len + 1);
    }
    return MOE_OK;
}

static moe_status add_text_prompt(const cJSON *item, const gw_completion_limits *limits,
                                  gw_completion_request *r, moe_err *err)
{
    if (limits->tokenizer == NULL) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "this model has no tokenizer: give prompt as a list of token ids");
    }
    gw_prompt *p = &r->prompt[r->n_prompts];
    moe_status st =
        gw_tokenizer_encode(limits->tokenizer, item->valuestring, strlen(item->valuestring),
                            limits->max_input_tokens, &p->ids, &p->n, err);
    if (st == MOE_OK) {
        r->n_prompts++;
    }
    return st;
}

/* Ids as given; </s> is added at the end unless it is there. */
static moe_status add_ids_prompt(const cJSON *list, const gw_completion_limits *limits,
                                 gw_completion_request *r, moe_err *err)
{
    uint32_t n = (uint32_t)cJSON_GetArraySize(list);
    int32_t *ids = malloc(((size_t)n + 1) * sizeof *ids);
    if (ids == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a prompt of %u ids", n);
    }
    uint32_t i = 0;
    moe_status st = MOE_OK;
    const cJSON *item = NULL;
    cJSON_ArrayForEach(item, list)
    {
        double v = cJSON_IsNumber(item) ? item->valuedouble : -1;
        if (v < 0 || v >= limits->vocab || v != floor(v)) {
            st = MOE_FAIL(err, MOE_ERR_INVALID, "prompt id %u is not an integer in [0, %u)", i,
                          limits->vocab);
            goto fail;
        }
        ids[i++] = (int32_t)v;
    }
    if (n == 0 || ids[n - 1] != EOS_ID) {
        ids[n++] = EOS_ID;
    }
    if (n > limits->max_input_tokens) {
        st = MOE_FAIL(err, MOE_ERR_LIMIT, "prompt has %u tokens; at most %u are allowed", n,
                      limits->max_input_tokens);
        goto fail;
    }
    r->prompt[r->n_prompts++] = (gw_prompt){ids, n};
    return MOE_OK;
fail:
    free(ids);
    return st;
}

static moe_status parse_prompt(const cJSON *root, const gw_completion_limits *limits,
                               gw_completion_request *r, moe_err *err)
{
    const cJSON *prompt = cJSON_GetObjectItemCaseSensitive(root, "prompt");
    if (cJSON_IsString(prompt)) {
        return add_text_prompt(prompt, limits, r, err);
    }
    if (!cJSON_IsArray(prompt) || cJSON_GetArraySize(prompt) == 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "prompt must be a string, a list of strings, a list of token ids or a list "
                        "of such lists");
    }
    if (cJSON_IsNumber(cJSON_GetArrayItem(prompt, 0))) {
        return add_ids_prompt(prompt, limits, r, err);
    }
    if (cJSON_GetArraySize(prompt) > GW_MAX_PROMPTS) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "prompt has %d entries; at most %d are allowed",
                        cJSON_GetArraySize(prompt), GW_MAX_PROMPTS);
    }
    const cJSON *item = NULL;
    cJSON_ArrayForEach(item, prompt)
    {
        moe_status st = cJSON_IsString(item)  ? add_text_prompt(item, limits, r, err)
                        : cJSON_IsArray(item) ? add_ids_prompt(item, limits, r, err)
                                              : MOE_FAIL(err, MOE_ERR_INVALID,
                                                         "prompt mixes strings and other values");
        if (st != MOE_OK) {
            return st;
        }
    }
    return MOE_OK;
}

static moe_status parse_model(const cJSON *root, const gw_completion_limits *limits,
                              const char **out_param, moe_err *err)
{
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(root, "model");
    if (!is_set(model)) {
        return MOE_OK;
    }
    *out_param = "model";
    if (!cJSON_IsString(model)) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "model must be a string");
    }
    if (strcmp(model->valuestring, limits->model_name) != 0) {
        return MOE_FAIL(err, MOE_ERR_NOT_FOUND, "model '%.100s' is not served here; '%s' is",
                        model->valuestring, limits->model_name);
    }
    return MOE_OK;
}

static moe_status parse_fields(const cJSON *root, const gw_completion_limits *limits,
                               gw_completion_request *r, const char **out_param, moe_err *err)
{
    double max_tokens = limits->max_output_tokens < 256 ? limits->max_output_tokens : 256;
    double seed = 0;
    moe_status st = parse_model(root, limits, out_param, err);
    if (st == MOE_OK) {
        st = refuse_unsupported(root, out_param, err);
    }
    if (st == MOE_OK) {
        st = number_field(root, "max_tokens", 1, limits->max_output_tokens, true, &max_tokens,
                          out_param, err);
    }
    if (st == MOE_OK) {
        st = number_field(root, "temperature", 0, 2, false, &r->temperature, out_param, err);
    }
    if (st == MOE_OK) {
        st = number_field(root, "top_p", 1e-6, 1, false, &r->top_p, out_param, err);
    }
    if (st == MOE_OK) {
        st = number_field(root, "seed", 0, 9007199254740992.0, true, &seed, out_param, err);
    }
    if (st == MOE_OK) {
        st = bool_field(root, "stream", &r->stream, out_param, err);
    }
    if (st == MOE_OK) {
        st = parse_stream_options(root, r, out_param, err);
    }
    if (st == MOE_OK) {
        st = parse_stop(root, r, out_param, err);
    }
    if (st == MOE_OK) {
        *out_param = "prompt";
        st = parse_prompt(root, limits, r, err);
    }
    r->max_tokens = (uint32_t)max_tokens;
    r->seed = (uint64_t)seed;
    return st;
}

moe_status gw_completion_parse(const char *body, size_t bytes, const gw_completion_limits *limits,
                               gw_completion_request *out, const char **out_param, moe_err *err)
{
    cJSON *root = NULL;
    gw_completion_request r = {.top_p = 1};
    *out_param = NULL;
    moe_status st = parse_object(body, bytes, &root, err);
    if (st != MOE_OK) {
        return st;
    }
    st = parse_fields(root, limits, &r, out_param, err);
    cJSON_Delete(root);
    if (st != MOE_OK) {
        gw_completion_request_fini(&r);
        return st;
    }
    *out = r;
    return MOE_OK;
}

void gw_completion_request_fini(gw_completion_request *r)
{
    for (uint32_t i = 0; i < r->n_prompts; i++) {
        free(r->prompt[i].ids);
    }
    r->n_prompts = 0;
}

void gw_completion_write(moe_text *out, const char *id, int64_t created, const char *model,
                         const gw_choice_text *choices, uint32_t n_choices, const gw_usage *usage)
{
    moe_text_printf(out,
                    "{\"id\":\"%s\",\"object\":\"text_completion\",\"created\":%lld,\"model\":", id,
                    (long long)created);
    moe_text_json_string(out, model, strlen(model));
    moe_text_printf(out, ",\"choices\":[");
    for (uint32_t i = 0; i < n_choices; i++) {
        const gw_choice_text *c = &choices[i];
        moe_text_printf(out, "%s{\"text\":", i > 0 ? "," : "");
        moe_text_json_string(out, c->text, c->bytes);
        moe_text_printf(out, ",\"index\":%u,\"logprobs\":null,\"finish_reason\":", c->index);
        moe_text_printf(out, c->finish_reason != NULL ? "\"%s\"}" : "null}",
                        c->finish_reason != NULL ? c->finish_reason : "");
    }
    moe_text_printf(out, "]");
    if (usage != NULL) {
        moe_text_printf(out,
                        ",\"usage\":{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,"
                        "\"total_tokens\":%llu}",
                        (unsigned long long)usage->prompt_tokens,
                        (unsigned long long)usage->completion_tokens,
                        (unsigned long long)(usage->prompt_tokens + usage->completion_tokens));
    }
    moe_text_printf(out, "}");
}

static void write_string_or_null(moe_text *out, const char *key, const char *value)
{
    moe_text_printf(out, ",\"%s\":", key);
    if (value == NULL) {
        moe_text_printf(out, "null");
    } else {
        moe_text_json_string(out, value, strlen(value));
    }
}

void gw_error_write(moe_text *out, const char *message, const char *type, const char *param,
                    const char *code)
{
    moe_text_printf(out, "{\"error\":{\"message\":");
    moe_text_json_string(out, message, strlen(message));
    write_string_or_null(out, "type", type);
    write_string_or_null(out, "param", param);
    write_string_or_null(out, "code", code);
    moe_text_printf(out, "}}\n");
}

size_t gw_stop_find(const gw_completion_request *r, const char *text, size_t bytes)
{
    size_t first = bytes;
    for (uint32_t i = 0; i < r->n_stops; i++) {
        const char *at = memmem(text, bytes, r->stop[i], strlen(r->stop[i]));
        if (at != NULL && (size_t)(at - text) < first) {
            first = (size_t)(at - text);
        }
    }
    return first;
}

size_t gw_stop_holdback(const gw_completion_request *r, const char *text, size_t bytes)
{
    size_t hold = 0;
    for (uint32_t i = 0; i < r->n_stops; i++) {
        size_t longest = strlen(r->stop[i]) - 1;
        for (size_t n = longest < bytes ? longest : bytes; n > hold; n--) {
            if (memcmp(text + bytes - n, r->stop[i], n) == 0) {
                hold = n;
                break;
            }
        }
    }
    /* An unfinished UTF-8 sequence: at most three bytes behind a lead byte that promises more. */
    for (size_t n = 1; n <= 3 && n <= bytes; n++) {
        unsigned char c = (unsigned char)text[bytes - n];
        if ((c & 0xc0) == 0x80) {
            continue;
        }
        size_t promised = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
        if (promised > n && n > hold) {
            hold = n;
        }
        break;
    }
    return hold;
}
