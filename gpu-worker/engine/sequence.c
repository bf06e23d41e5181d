/* sequence.c - see sequence.h. */
#include "gpu-worker/engine/sequence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"

static moe_status check_ids(const int32_t *ids, uint32_t n, uint32_t vocab, const char *field,
                            moe_err *err)
{
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= vocab) {
            return MOE_FAIL(err, MOE_ERR_INVALID, "%s[%u]=%d is not in [0, %u)", field, i, ids[i],
                            vocab);
        }
    }
    return MOE_OK;
}

static moe_status check_request(const gw_request *r, const gw_sequence_limits *l, moe_err *err)
{
    if (r->input_ids == NULL || r->n_input == 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "input_ids is empty");
    }
    if (r->n_input > l->max_input_tokens) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "input_ids: %u tokens, max_input_tokens is %u",
                        r->n_input, l->max_input_tokens);
    }
    if (r->max_tokens == 0 || r->max_tokens > l->max_output_tokens) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "max_tokens=%u, allowed are 1 to %u", r->max_tokens,
                        l->max_output_tokens);
    }
    if (!(r->temperature >= 0.0f) || isinf(r->temperature)) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "temperature=%g, allowed are 0 (greedy) and more",
                        (double)r->temperature);
    }
    if (!(r->top_p > 0.0f && r->top_p <= 1.0f)) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "top_p=%g, allowed is (0, 1]", (double)r->top_p);
    }
    if (r->n_forced >= r->max_tokens) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "n_forced=%u must be below max_tokens=%u",
                        r->n_forced, r->max_tokens);
    }
    if (r->record != NULL && r->record->want_gates && !l->record_gates) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "record: this engine keeps no gates (record_gates)");
    }
    moe_status st = check_ids(r->input_ids, r->n_input, l->vocab, "input_ids", err);
    if (st == MOE_OK && r->input_ids[r->n_input - 1] != l->eos_id) {
        st = MOE_FAIL(err, MOE_ERR_INVALID, "input_ids must end with the end token %d", l->eos_id);
    }
    return st == MOE_OK ? check_ids(r->forced, r->n_forced, l->vocab, "forced", err) : st;
}

static int32_t *copy_ids(const int32_t *ids, uint32_t n)
{
    int32_t *copy = malloc((n == 0 ? 1 : n) * sizeof *copy);
    if (copy != NULL && n != 0) {
        memcpy(copy, ids, n * sizeof *copy);
    }
    return copy;
}

void gw_record_fini(gw_record *r)
{
    free(r->encoder_experts);
    free(r->decoder_experts);
    free(r->encoder_out);
    free(r->logits);
    free(r->logits_sum);
    free(r->forced_logprob);
    free(r->encoder_gates);
    free(r->decoder_gates);
    memset(r, 0, sizeof *r);
}

static moe_status allocate_record(gw_record *rec, const gw_request *r, const gw_sequence_limits *l,
                                  moe_err *err)
{
    bool want_logits = rec->want_logits;
    bool want_gates = rec->want_gates;
    size_t n_steps = r->max_tokens;
    size_t n_input = r->n_input;
    *rec = (gw_record){.want_logits = want_logits,
                       .want_gates = want_gates,
                       .n_input = r->n_input,
                       .max_steps = r->max_tokens};
    /* calloc of at least one element: a stack without experts still gets an array. */
    rec->encoder_experts = calloc(l->n_blocks[MOE_ENCODER] * n_input + 1, sizeof(int32_t));
    rec->decoder_experts = calloc(l->n_blocks[MOE_DECODER] * n_steps + 1, sizeof(int32_t));
    rec->encoder_out = calloc(n_input * l->d_model, sizeof(float));
    rec->logits_sum = calloc(n_steps, sizeof(double));
    rec->logits = want_logits ? calloc(n_steps * l->vocab, sizeof(float)) : NULL;
    rec->forced_logprob = calloc(n_steps, sizeof(double));
    if (want_gates) {
        rec->encoder_gates =
            calloc(l->n_blocks[MOE_ENCODER] * n_input * l->d_model + 1, sizeof(float));
        rec->decoder_gates =
            calloc(l->n_blocks[MOE_DECODER] * n_steps * l->d_model + 1, sizeof(float));
    }
    if (rec->encoder_experts == NULL || rec->decoder_experts == NULL || rec->encoder_out == NULL ||
        rec->logits_sum == NULL || rec->forced_logprob == NULL ||
        (want_logits && rec->logits == NULL) ||
        (want_gates && (rec->encoder_gates == NULL || rec->decoder_gates == NULL))) {
        gw_record_fini(rec);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "record of %u steps", r->max_tokens);
    }
    return MOE_OK;
}

moe_status gw_sequence_create(const gw_request *r, const gw_sequence_limits *limits,
                              gw_sequence **out, moe_err *err)
{
    moe_status st = check_request(r, limits, err);
    if (st != MOE_OK) {
        return st;
    }
    gw_sequence *s = calloc(1, sizeof *s);
    int32_t *input = copy_ids(r->input_ids, r->n_input);
    int32_t *forced = copy_ids(r->forced, r->n_forced);
    if (s == NULL || input == NULL || forced == NULL) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "sequence of %u input tokens", r->n_input);
    } else if (r->record != NULL) {
        st = allocate_record(r->record, r, limits, err);
    }
    if (st != MOE_OK) {
        free(input);
        free(forced);
        free(s);
        return st;
    }
    s->request = *r;
    s->request.input_ids = input;
    s->request.forced = forced;
    s->feed = limits->start_id;
    s->submitted_ns = moe_now_ns();
    *out = s;
    return MOE_OK;
}

void gw_sequence_destroy(gw_sequence *s)
{
    if (s == NULL) {
        return;
    }
    free((void *)(uintptr_t)s->request.input_ids);
    free((void *)(uintptr_t)s->request.forced);
    free(s);
}

bool gw_sequence_advance(gw_sequence *s, int32_t chosen, int32_t eos_id, int32_t *out_token,
                         gw_finish *out_finish)
{
    const gw_request *r = &s->request;
    int32_t token = s->position < r->n_forced ? r->forced[s->position] : chosen;
    s->feed = token;
    s->position++;
    *out_token = token;
    if (token == eos_id && !r->ignore_eos) {
        *out_finish = GW_FINISH_STOP;
        return true;
    }
    if (s->position >= r->max_tokens) {
        *out_finish = GW_FINISH_LENGTH;
        return true;
    }
    return false;
}

bool gw_sequence_wants_logits(const gw_sequence *s)
{
    return s->request.temperature > 0.0f || s->request.record != NULL;
}

void gw_sequence_record_encode(gw_sequence *s, const gw_sequence_limits *limits,
                               const gw_step_view *v, uint32_t first_row)
{
    gw_record *rec = s->request.record;
    if (rec == NULL) {
        return;
    }
    size_t n = rec->n_input;
    for (size_t b = 0; b < limits->n_blocks[MOE_ENCODER]; b++) {
        memcpy(rec->encoder_experts + b * n, v->experts + b * v->stride + first_row,
               n * sizeof(int32_t));
    }
    memcpy(rec->encoder_out, v->hidden + (size_t)first_row * limits->d_model,
           n * limits->d_model * sizeof(float));
    if (rec->want_gates) {
        for (size_t b = 0; b < limits->n_blocks[MOE_ENCODER]; b++) {
            memcpy(rec->encoder_gates + b * n * limits->d_model,
                   v->gates + (b * v->stride + first_row) * limits->d_model,
                   n * limits->d_model * sizeof(float));
        }
    }
}

/* The five largest logits, ties to the lower id. */
static void take_top5(const float *logits, uint32_t vocab, gw_record *rec)
{
    uint32_t n = 0;
    for (uint32_t id = 0; id < vocab; id++) {
        uint32_t at = n;
        while (at > 0 && logits[id] > rec->top5_logit[at - 1]) {
            at--;
        }
        if (at >= 5) {
            continue;
        }
        n = n < 5 ? n + 1 : 5;
        for (uint32_t i = n - 1; i > at; i--) {
            rec->top5_logit[i] = rec->top5_logit[i - 1];
            rec->top5_id[i] = rec->top5_id[i - 1];
        }
        rec->top5_logit[at] = logits[id];
        rec->top5_id[at] = (int32_t)id;
    }
}

/* ln softmax(logits)[id], in double. */
static double log_probability(const float *logits, uint32_t vocab, int32_t id)
{
    double largest = (double)logits[0];
    double sum = 0.0;
    for (uint32_t i = 1; i < vocab; i++) {
        largest = (double)logits[i] > largest ? (double)logits[i] : largest;
    }
    for (uint32_t i = 0; i < vocab; i++) {
        sum += exp((double)logits[i] - largest);
    }
    return (double)logits[id] - largest - log(sum);
}

void gw_sequence_record_decode(gw_sequence *s, const gw_sequence_limits *limits,
                               const gw_step_view *v, uint32_t row)
{
    gw_record *rec = s->request.record;
    if (rec == NULL) {
        return;
    }
    size_t step = s->position;
    for (size_t b = 0; b < limits->n_blocks[MOE_DECODER]; b++) {
        rec->decoder_experts[b * rec->max_steps + step] = v->experts[b * v->stride + row];
        if (rec->want_gates) {
            memcpy(rec->decoder_gates + (b * rec->max_steps + step) * limits->d_model,
                   v->gates + (b * v->stride + row) * limits->d_model,
                   limits->d_model * sizeof(float));
        }
    }
    const float *logits = v->logits + (size_t)row * limits->vocab;
    double sum = 0.0;
    for (uint32_t i = 0; i < limits->vocab; i++) {
        sum += (double)logits[i];
    }
    rec->logits_sum[step] = sum;
    if (step < s->request.n_forced) {
        rec->forced_logprob[step] = log_probability(logits, limits->vocab, s->request.forced[step]);
    }
    if (step == 0) {
        take_top5(logits, limits->vocab, rec);
    }
    if (rec->want_logits) {
        memcpy(rec->logits + step * limits->vocab, logits, limits->vocab * sizeof(float));
    }
    rec->n_steps = (uint32_t)step + 1;
}
