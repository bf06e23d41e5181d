/* eval.c - see eval.h. */
#include "gpu-worker/quality/eval.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/text.h"
#include "gpu-worker/names.h"
#include "gpu-worker/quality/jobs.h"

enum { GROUP_PAIRS = 128 }; /* so many pairs' records and answers are in memory at a time */

typedef struct encoded {
    const gw_pair *pair;     /* borrowed */
    int32_t *input, *forced; /* owned; NULL: the pair is skipped */
    uint32_t n_input, n_forced;
} encoded;

typedef struct group {
    encoded pairs[GROUP_PAIRS];
    gw_job jobs[2 * GROUP_PAIRS]; /* of pair i: 2i forced, 2i + 1 greedy */
    gw_record records[GROUP_PAIRS];
    uint32_t n;
} group;

/* MOE_OK also when the pair is too long: then nothing is kept. */
static moe_status encode(const gw_config *cfg, gw_worker *w, const gw_pair *pair, encoded *out,
                         moe_err *err)
{
    *out = (encoded){.pair = pair};
    moe_status st =
        gw_tokenizer_encode(w->tokenizer, pair->input, strlen(pair->input),
                            (uint32_t)cfg->max_input_tokens, &out->input, &out->n_input, err);
    if (st == MOE_OK) {
        /* One less: forcing n tokens takes a request of n + 1. */
        st = gw_tokenizer_encode(w->tokenizer, pair->reference, strlen(pair->reference),
                                 (uint32_t)cfg->max_output_tokens - 1, &out->forced, &out->n_forced,
                                 err);
    }
    if (st != MOE_OK) {
        free(out->input);
        out->input = NULL;
    }
    return st == MOE_ERR_LIMIT ? MOE_OK : st;
}

static uint32_t plan_jobs(const gw_config *cfg, group *g)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < g->n; i++) {
        const encoded *e = &g->pairs[i];
        if (e->input == NULL) {
            continue;
        }
        g->records[i] = (gw_record){.want_logits = false};
        g->jobs[n++] = (gw_job){.input = e->input,
                                .n_input = e->n_input,
                                .forced = e->forced,
                                .n_forced = e->n_forced,
                                .max_tokens = e->n_forced + 1,
                                .record = &g->records[i]};
        g->jobs[n++] = (gw_job){.input = e->input,
                                .n_input = e->n_input,
                                .max_tokens = (uint32_t)cfg->max_output_tokens};
    }
    return n;
}

static moe_status score_answer(gw_worker *w, const gw_job *greedy, const gw_pair *pair,
                               gw_eval *out, moe_err *err)
{
    char *answer = NULL;
    moe_status st = gw_tokenizer_decode(w->tokenizer, greedy->ids, greedy->n_ids, &answer, err);
    if (st == MOE_OK) {
        st = gw_score_add(&out->answers, answer, pair->reference, err);
    }
    if (st == MOE_OK) {
        st = gw_score_add(&out->inputs, pair->input, pair->reference, err);
    }
    free(answer);
    return st;
}

static moe_status score_group(gw_worker *w, const group *g, gw_eval *out, moe_err *err)
{
    moe_status st = MOE_OK;
    uint32_t at = 0;
    for (uint32_t i = 0; i < g->n && st == MOE_OK; i++) {
        if (g->pairs[i].input == NULL) {
            out->n_skipped++;
            continue;
        }
        for (uint32_t k = 0; k < g->pairs[i].n_forced; k++) {
            out->sum_logprob += g->records[i].forced_logprob[k];
        }
        out->n_tokens += g->pairs[i].n_forced;
        st = score_answer(w, &g->jobs[at + 1], g->pairs[i].pair, out, err);
        at += 2;
    }
    return st;
}

static void empty(group *g, uint32_t n_jobs)
{
    gw_jobs_fini(g->jobs, n_jobs);
    for (uint32_t i = 0; i < g->n; i++) {
        gw_record_fini(&g->records[i]);
        free(g->pairs[i].input);
        free(g->pairs[i].forced);
    }
    memset(g, 0, sizeof *g);
}

static moe_status run_group(const gw_config *cfg, gw_worker *w, const gw_pair *pairs, uint32_t n,
                            group *g, gw_eval *out, moe_err *err)
{
    moe_status st = MOE_OK;
    uint32_t n_jobs = 0;
    while (g->n < n && st == MOE_OK) {
        st = encode(cfg, w, &pairs[g->n], &g->pairs[g->n], err);
        g->n++;
    }
    if (st == MOE_OK) {
        n_jobs = plan_jobs(cfg, g);
        st = gw_jobs_run(w->engine, g->jobs, n_jobs, err);
    }
    if (st == MOE_OK) {
        st = score_group(w, g, out, err);
    }
    empty(g, n_jobs);
    return st;
}

static double sum_of(const moe_metrics *m, const char *name)
{
    double sum = 0;
    for (uint32_t i = 0; i < m->n; i++) {
        sum += strcmp(m->items[i].name, name) == 0 ? m->items[i].value : 0;
    }
    return sum;
}

static gw_eval_traffic read_traffic(gw_engine *engine)
{
    moe_metrics m;
    moe_metrics_init(&m);
    gw_engine_metrics(engine, &m);
    const gw_eval_traffic t = {
        .cell_hits = sum_of(&m, "pregate_worker_cell_hit_total"),
        .cell_late = sum_of(&m, "pregate_worker_cell_late_total"),
        .cell_misses = sum_of(&m, "pregate_worker_cell_miss_total"),
        .copy_bytes = sum_of(&m, "pregate_worker_copy_bytes_total"),
        .copy_seconds = sum_of(&m, "pregate_worker_copy_seconds_total"),
        .copy_hidden_seconds = sum_of(&m, "pregate_worker_copy_hidden_seconds_total"),
        .guesses_used = sum_of(&m, "pregate_worker_guess_used_total"),
        .guesses_wasted = sum_of(&m, "pregate_worker_guess_wasted_total"),
        .guessed_bytes_wasted = sum_of(&m, "pregate_worker_guess_wasted_bytes_total"),
    };
    moe_metrics_fini(&m);
    return t;
}

moe_status gw_eval_run(const gw_config *cfg, gw_worker *w, const gw_pairs *pairs, gw_eval *out,
                       moe_err *err)
{
    *out = (gw_eval){.n_tokens = 0};
    if (w->tokenizer == NULL) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "the packed checkpoint has no spiece.model, so text cannot be read");
    }
    group *g = calloc(1, sizeof *g);
    if (g == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a group of pairs");
    }
    int64_t begin_ns = moe_now_ns();
    moe_status st = MOE_OK;
    for (uint32_t at = 0; at < pairs->n && st == MOE_OK; at += GROUP_PAIRS) {
        uint32_t left = pairs->n - at;
        st = run_group(cfg, w, pairs->items + at, left < GROUP_PAIRS ? left : GROUP_PAIRS, g, out,
                       err);
    }
    out->seconds = (double)(moe_now_ns() - begin_ns) / 1e9;
    out->traffic = read_traffic(w->engine);
    free(g);
    return st;
}

/* ---- output ---------------------------------------------------------------------------------- */

static double loss_of(const gw_eval *e)
{
    return e->n_tokens > 0 ? -e->sum_logprob / (double)e->n_tokens : 0;
}

static double exact_share(const gw_score *s)
{
    return s->n_pairs > 0 ? (double)s->n_exact / (double)s->n_pairs : 0;
}

static void json_f1(moe_text *t, const char *name, const gw_f1 *f)
{
    moe_text_printf(t, ",\"%s\":{\"f1\":%.6f,\"precision\":%.6f,\"recall\":%.6f}", name,
                    gw_f1_value(f), gw_f1_precision(f), gw_f1_recall(f));
}

static void json_score(moe_text *t, const gw_score *s)
{
    moe_text_printf(t, "\"exact_match\":%.6f,\"character_error_rate\":%.6f", exact_share(s),
                    gw_score_error_rate(s));
    json_f1(t, "punctuation", &s->punctuation);
    json_f1(t, "capitals", &s->capitals);
}

static void write_json(const gw_config *cfg, const gw_worker *w, const gw_eval *e, moe_text *t)
{
    const char *model = gw_engine_model_name(w->engine);
    const gw_eval_traffic *x = &e->traffic;
    moe_text_printf(t, "{\"model\":");
    moe_text_json_string(t, model, strlen(model));
    moe_text_printf(t, ",\"pairs_file\":");
    moe_text_json_string(t, cfg->pairs, strlen(cfg->pairs));
    moe_text_printf(t,
                    ",\"backend\":\"%s\",\"fetch_policy\":\"%s\",\"n_pairs\":%llu,"
                    "\"n_skipped\":%llu,\"n_tokens\":%llu,\"loss\":%.6f,",
                    w->ops->name, gw_policy_name((gw_policy)cfg->fetch_policy),
                    (unsigned long long)e->answers.n_pairs, (unsigned long long)e->n_skipped,
                    (unsigned long long)e->n_tokens, loss_of(e));
    json_score(t, &e->answers);
    moe_text_printf(t, ",\"inputs\":{");
    json_score(t, &e->inputs);
    moe_text_printf(t,
                    "},\"cell_hits\":%.0f,\"cell_late\":%.0f,\"cell_misses\":%.0f,"
                    "\"copy_bytes\":%.0f,\"copy_seconds\":%.3f,\"copy_hidden_seconds\":%.3f,"
                    "\"guesses_used\":%.0f,\"guesses_wasted\":%.0f,"
                    "\"guessed_bytes_wasted\":%.0f,\"seconds\":%.3f}\n",
                    x->cell_hits, x->cell_late, x->cell_misses, x->copy_bytes, x->copy_seconds,
                    x->copy_hidden_seconds, x->guesses_used, x->guesses_wasted,
                    x->guessed_bytes_wasted, e->seconds);
}

static void table_f1(moe_text *t, const char *name, const gw_f1 *answers, const gw_f1 *inputs)
{
    moe_text_printf(t, "%-22s %8.4f  %8.4f   precision %.4f, recall %.4f\n", name,
                    gw_f1_value(answers), gw_f1_value(inputs), gw_f1_precision(answers),
                    gw_f1_recall(answers));
}

static void write_table(const gw_config *cfg, const gw_worker *w, const gw_eval *e, moe_text *t)
{
    const gw_eval_traffic *x = &e->traffic;
    moe_text_printf(t, "%s, %s, %s: %llu pairs of %s (%llu too long), %.1f s\n",
                    gw_engine_model_name(w->engine), w->ops->name,
                    gw_policy_name((gw_policy)cfg->fetch_policy),
                    (unsigned long long)e->answers.n_pairs, cfg->pairs,
                    (unsigned long long)e->n_skipped, e->seconds);
    moe_text_printf(t, "%-22s %8s  %8s\n", "", "answers", "inputs");
    moe_text_printf(t, "%-22s %8.4f  %8s   of %llu tokens\n", "loss per token", loss_of(e), "",
                    (unsigned long long)e->n_tokens);
    moe_text_printf(t, "%-22s %8.4f  %8.4f\n", "exact match", exact_share(&e->answers),
                    exact_share(&e->inputs));
    moe_text_printf(t, "%-22s %8.4f  %8.4f\n", "character error rate",
                    gw_score_error_rate(&e->answers), gw_score_error_rate(&e->inputs));
    table_f1(t, "punctuation F1", &e->answers.punctuation, &e->inputs.punctuation);
    table_f1(t, "capitals F1", &e->answers.capitals, &e->inputs.capitals);
    double hidden = x->copy_seconds > 0 ? x->copy_hidden_seconds / x->copy_seconds : 0;
    moe_text_printf(t,
                    "experts: %.0f hits, %.0f late, %.0f misses; %.1f MB copied, %.0f %% of that "
                    "time hidden; %.0f guesses used, %.0f wasted (%.1f MB)\n",
                    x->cell_hits, x->cell_late, x->cell_misses, x->copy_bytes / 1e6, 100 * hidden,
                    x->guesses_used, x->guesses_wasted, x->guessed_bytes_wasted / 1e6);
}

static moe_status eval(const gw_config *cfg, gw_worker *w, moe_err *err)
{
    gw_pairs pairs = {0};
    gw_eval result;
    moe_text t;
    moe_text_init(&t);
    moe_status st = gw_pairs_load(cfg->pairs, cfg->limit, &pairs, err);
    if (st == MOE_OK) {
        st = gw_worker_open(cfg, w, err);
    }
    if (st == MOE_OK) {
        st = gw_eval_run(cfg, w, &pairs, &result, err);
    }
    if (st == MOE_OK) {
        (cfg->json ? write_json : write_table)(cfg, w, &result, &t);
        st = moe_text_finish(&t, err);
    }
    if (st == MOE_OK) {
        fputs(t.data, stdout);
    }
    moe_text_fini(&t);
    gw_pairs_fini(&pairs);
    return st;
}

int gw_eval_main(const gw_config *cfg)
{
    gw_worker w = {0};
    moe_err err;
    moe_status st = MOE_OK;
    if (cfg->pairs[0] == '\0') {
        st = MOE_FAIL(&err, MOE_ERR_INVALID, "eval needs --pairs FILE");
    } else {
        st = eval(cfg, &w, &err);
    }
    if (st != MOE_OK) {
        moe_log_err("worker", "failed", &err);
    }
    gw_worker_close(cfg, &w);
    return st == MOE_OK ? 0 : 1;
}
