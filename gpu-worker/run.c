/* run.c - `gpu-worker run`: answers prompts from --prompt, --file or standard input, in order, and
 * exits. Prompts share batches as far as --max-batch goes; an answer does not depend on it.
 * Main thread: reads, submits, waits, prints; engine callbacks only collect. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/lock.h"
#include "common/log.h"
#include "common/text.h"
#include "gpu-worker/worker.h"

enum { MAX_LINE_BYTES = 1 << 20 };

typedef struct answer {
    struct batch *batch; /* borrowed */
    int32_t *ids;        /* [max_tokens] owned */
    uint32_t n_ids, n_input;
    bool done; /* guarded by batch.mu */
    gw_finish finish;
    moe_err error;
} answer;

typedef struct batch {
    const gw_config *cfg; /* borrowed */
    gw_worker *w;         /* borrowed */
    moe_mutex mu;
    moe_cond changed;
} batch;

static void on_token(void *user, int32_t token, uint32_t index)
{
    answer *a = user;
    (void)index;
    if (a->n_ids < a->batch->cfg->max_tokens) {
        a->ids[a->n_ids++] = token;
    }
}

static void on_done(void *user, gw_finish finish, const moe_err *err)
{
    answer *a = user;
    moe_mutex_lock(&a->batch->mu);
    a->finish = finish;
    if (err != NULL) {
        a->error = *err;
    }
    a->done = true;
    moe_cond_broadcast(&a->batch->changed);
    moe_mutex_unlock(&a->batch->mu);
}

static moe_status submit(batch *b, const char *text, size_t bytes, answer *a, moe_err *err)
{
    int32_t *ids = NULL;
    if (b->w->tokenizer == NULL) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "the packed checkpoint has no spiece.model, so text cannot be read");
    }
    moe_status st = gw_tokenizer_encode(b->w->tokenizer, text, bytes,
                                        (uint32_t)b->cfg->max_input_tokens, &ids, &a->n_input, err);
    if (st != MOE_OK) {
        return st;
    }
    a->batch = b;
    a->ids = malloc(b->cfg->max_tokens * sizeof *a->ids);
    if (a->ids == NULL) {
        free(ids);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "an answer");
    }
    gw_request r = {
        .input_ids = ids,
        .n_input = a->n_input,
        .max_tokens =
            (uint32_t)(b->cfg->max_tokens < b->cfg->max_output_tokens ? b->cfg->max_tokens
                                                                      : b->cfg->max_output_tokens),
        .temperature = (float)b->cfg->temperature,
        .top_p = (float)b->cfg->top_p,
        .seed = b->cfg->seed,
        .on_token = on_token,
        .on_done = on_done,
        .user = a,
    };
    uint64_t id = 0;
    st = gw_engine_submit(b->w->engine, &r, &id, err);
    free(ids);
    return st;
}

static moe_status print_answer(batch *b, answer *a, moe_err *err)
{
    moe_mutex_lock(&b->mu);
    while (!a->done) {
        moe_cond_wait(&b->changed, &b->mu);
    }
    moe_mutex_unlock(&b->mu);
    if (a->finish == GW_FINISH_ERROR) {
        return MOE_FAIL(err, a->error.status, "%s", a->error.text);
    }
    char *text = NULL;
    moe_status st = gw_tokenizer_decode(b->w->tokenizer, a->ids, a->n_ids, &text, err);
    if (st != MOE_OK) {
        return st;
    }
    if (b->cfg->json) {
        moe_text line;
        moe_text_init(&line);
        moe_text_printf(&line, "{\"text\":");
        moe_text_json_string(&line, text, strlen(text));
        moe_text_printf(&line, ",\"finish_reason\":\"%s\",\"prompt_tokens\":%u,\"ids\":[",
                        a->finish == GW_FINISH_LENGTH ? "length" : "stop", a->n_input);
        for (uint32_t i = 0; i < a->n_ids; i++) {
            moe_text_printf(&line, "%s%d", i > 0 ? "," : "", a->ids[i]);
        }
        moe_text_printf(&line, "]}");
        st = moe_text_finish(&line, err);
        if (st == MOE_OK) {
            puts(line.data);
        }
        moe_text_fini(&line);
    } else {
        puts(text);
    }
    free(text);
    return st;
}

/* Lines are answered in groups that the queue can hold. */
static moe_status answer_group(batch *b, char **lines, uint32_t n, moe_err *err)
{
    answer *answers = calloc(n, sizeof *answers);
    if (answers == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%u answers", n);
    }
    moe_status st = MOE_OK;
    uint32_t submitted = 0;
    while (submitted < n && st == MOE_OK) {
        st = submit(b, lines[submitted], strlen(lines[submitted]), &answers[submitted], err);
        submitted += st == MOE_OK ? 1 : 0;
    }
    moe_status first = st;
    for (uint32_t i = 0; i < submitted; i++) {
        moe_err late;
        st = print_answer(b, &answers[i], &late);
        if (st != MOE_OK && first == MOE_OK) {
            first = st;
            if (err != NULL) {
                *err = late;
            }
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        free(answers[i].ids);
    }
    free(answers);
    return first;
}

static moe_status answer_stream(batch *b, FILE *in, moe_err *err)
{
    bool typed = isatty(fileno(in)) == 1; /* then each line is answered at once */
    uint32_t group = typed ? 1 : (uint32_t)b->cfg->max_queue, n = 0;
    char **lines = calloc(group, sizeof *lines);
    if (lines == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%u prompts", group);
    }
    moe_status st = MOE_OK;
    bool more = true;
    while (more && st == MOE_OK) {
        size_t capacity = 0;
        ssize_t got = getline(&lines[n], &capacity, in);
        more = got >= 0;
        if (more && got > MAX_LINE_BYTES) {
            st = MOE_FAIL(err, MOE_ERR_LIMIT, "a prompt of %zd bytes; at most %d", got,
                          MAX_LINE_BYTES);
        }
        if (more) {
            lines[n][strcspn(lines[n], "\r\n")] = '\0';
            n++;
        }
        if (st == MOE_OK && n > 0 && (n == group || !more)) {
            st = answer_group(b, lines, n, err);
            for (uint32_t i = 0; i < n; i++) {
                free(lines[i]);
                lines[i] = NULL;
            }
            n = 0;
        }
    }
    for (uint32_t i = 0; i < group; i++) {
        free(lines[i]);
    }
    free(lines);
    return st;
}

static moe_status run(const gw_config *cfg, gw_worker *w, moe_err *err)
{
    batch b = {.cfg = cfg, .w = w};
    moe_mutex_init(&b.mu);
    moe_cond_init(&b.changed);
    moe_status st = MOE_OK;
    if (cfg->prompt[0] != '\0') {
        char *line = (char *)cfg->prompt; /* read only */
        st = answer_group(&b, &line, 1, err);
    } else if (cfg->file[0] != '\0') {
        FILE *in = fopen(cfg->file, "r");
        if (in == NULL) {
            st = MOE_FAIL_NATIVE(err, MOE_ERR_NOT_FOUND, MOE_LAYER_ERRNO, errno,
                                 "cannot open %.200s", cfg->file);
        } else {
            st = answer_stream(&b, in, err);
            fclose(in);
        }
    } else {
        st = answer_stream(&b, stdin, err);
    }
    moe_cond_fini(&b.changed);
    moe_mutex_fini(&b.mu);
    return st;
}

int gw_run_main(const gw_config *cfg)
{
    gw_worker w;
    moe_err err;
    moe_status st = gw_worker_open(cfg, &w, &err);
    if (st == MOE_OK) {
        st = run(cfg, &w, &err);
    }
    if (st != MOE_OK) {
        moe_log_err("worker", "failed", &err);
    }
    gw_worker_close(cfg, &w);
    return st == MOE_OK ? 0 : 1;
}
