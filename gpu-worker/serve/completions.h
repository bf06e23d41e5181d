/* completions.h - the JSON of /v1/completions: request in, response and events out.
 *
 * Pure text work: no sockets, no engine. Fields: prompt (string, list of strings, list of ids, list
 * of lists of ids), max_tokens, temperature, top_p, seed, stop (string or up to 4), stream,
 * stream_options.include_usage, model. Known fields with bad values and fields whose meaning we do
 * not provide (n > 1, best_of > 1, echo, logprobs, suffix, logit_bias, penalties) are errors that
 * name the field; unknown fields are ignored. Defaults: max_tokens 256 (or the server's limit, if
 * less), temperature 0, top_p 1, seed 0. Prompt i of a list is sampled with seed + i.
 * Threads: no state.
 */
#ifndef GW_COMPLETIONS_H
#define GW_COMPLETIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"
#include "common/text.h"
#include "gpu-worker/engine/tokenizer.h"

enum { GW_MAX_PROMPTS = 64, GW_MAX_STOPS = 4, GW_STOP_BYTES = 128 };

typedef struct gw_prompt {
    int32_t *ids; /* owned; ends with eos */
    uint32_t n;
} gw_prompt;

typedef struct gw_completion_request {
    gw_prompt prompt[GW_MAX_PROMPTS];
    uint32_t n_prompts;
    uint32_t max_tokens;
    double temperature, top_p;
    uint64_t seed;
    char stop[GW_MAX_STOPS][GW_STOP_BYTES];
    uint32_t n_stops;
    bool stream, include_usage;
} gw_completion_request;

typedef struct gw_completion_limits {
    const gw_tokenizer *tokenizer; /* borrowed; NULL: only prompts as ids */
    const char *model_name;        /* borrowed */
    uint32_t vocab;
    uint32_t max_input_tokens, max_output_tokens;
} gw_completion_limits;

/* On MOE_OK the caller owns *out: gw_completion_request_fini. out_param (a static string) names the
 * field at fault. MOE_ERR_FORMAT, MOE_ERR_INVALID, MOE_ERR_LIMIT, MOE_ERR_UNSUPPORTED: 400;
 * MOE_ERR_NOT_FOUND: unknown model, 404. */
MOE_MUST_CHECK moe_status gw_completion_parse(const char *body, size_t bytes,
                                              const gw_completion_limits *limits,
                                              gw_completion_request *out, const char **out_param,
                                              moe_err *err);
void gw_completion_request_fini(gw_completion_request *r); /* accepts a zeroed struct */

typedef struct gw_choice_text {
    const char *text; /* borrowed */
    size_t bytes;
    const char *finish_reason; /* "stop", "length", or NULL while streaming */
    uint32_t index;
} gw_choice_text;

typedef struct gw_usage {
    uint64_t prompt_tokens, completion_tokens;
} gw_usage;

/* One response object; usage may be NULL (events before the last). */
void gw_completion_write(moe_text *out, const char *id, int64_t created, const char *model,
                         const gw_choice_text *choices, uint32_t n_choices, const gw_usage *usage);
/* {"error": {...}}; param and code may be NULL. */
void gw_error_write(moe_text *out, const char *message, const char *type, const char *param,
                    const char *code);

/* Where text is cut: first stop string in text, or npos = bytes. And how many bytes at the end may
 * be the beginning of a stop string or of a UTF-8 sequence, and must be held back while streaming.
 */
size_t gw_stop_find(const gw_completion_request *r, const char *text, size_t bytes);
size_t gw_stop_holdback(const gw_completion_request *r, const char *text, size_t bytes);

#endif
