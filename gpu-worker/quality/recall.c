/* recall.c - see recall.h. */
#include "gpu-worker/quality/recall.h"

#include <stdlib.h>
#include <string.h>

#include "gpu-worker/quality/fit.h"

typedef struct counting {
    const gw_stack_samples *s;
    const gw_prediction *p;
    uint32_t n_experts;
    int32_t *best; /* [tokens] owned: the best guess; -1: none was made */
    gw_recall *out;
} counting;

double gw_recall_share(uint64_t part, uint64_t whole)
{
    return whole > 0 ? (double)part / (double)whole : 0.0;
}

static int32_t best_of(const double *scores, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t c = 1; c < n; c++) {
        best = scores[c] > scores[best] ? c : best;
    }
    return (int32_t)best;
}

static void count_tokens(counting *c, uint32_t sequence, gw_guess_fn guess, void *user)
{
    double scores[GW_MAX_CLASSES];
    const uint32_t *starts = c->s->sequence_starts;
    for (uint32_t t = starts[sequence]; t < starts[sequence + 1]; t++) {
        c->best[t] = -1;
        if (c->p->next_token && t == starts[sequence]) {
            continue;
        }
        const gw_guess_place at = {
            .first = starts[sequence], .source = c->p->next_token ? t - 1 : t, .target = t};
        guess(user, &at, scores);
        uint32_t rank = gw_rank_of(scores, c->n_experts, c->s->experts[c->p->target][t]);
        c->best[t] = best_of(scores, c->n_experts);
        c->out->n++;
        c->out->n_in_1 += rank < 1;
        c->out->n_in_2 += rank < 2;
        c->out->n_in_4 += rank < 4;
    }
}

typedef struct expert_set {
    bool chosen[GW_MAX_CLASSES], guessed[GW_MAX_CLASSES];
    uint32_t n_rows;
} expert_set;

static void add_row(const counting *c, expert_set *set, uint32_t token)
{
    if (c->best[token] >= 0) {
        set->chosen[c->s->experts[c->p->target][token]] = true;
        set->guessed[c->best[token]] = true;
        set->n_rows++;
    }
}

static void close_set(const counting *c, const expert_set *set)
{
    if (set->n_rows > 0) {
        c->out->n_sets++;
        c->out->n_exact += memcmp(set->chosen, set->guessed, c->n_experts * sizeof(bool)) == 0;
    }
}

static void count_prompt(const counting *c, uint32_t sequence)
{
    expert_set set = {.n_rows = 0};
    for (uint32_t t = c->s->sequence_starts[sequence]; t < c->s->sequence_starts[sequence + 1];
         t++) {
        add_row(c, &set, t);
    }
    close_set(c, &set);
}

static void count_steps(const counting *c, uint32_t first, uint32_t end)
{
    bool any = true;
    for (uint32_t position = 0; any; position++) {
        expert_set set = {.n_rows = 0};
        any = false;
        for (uint32_t i = first; i < end; i++) {
            uint32_t t = c->s->sequence_starts[i] + position;
            if (t < c->s->sequence_starts[i + 1]) {
                any = true;
                add_row(c, &set, t);
            }
        }
        close_set(c, &set);
    }
}

moe_status gw_recall_count(const gw_gate_samples *s, const gw_prediction *p, uint32_t n_experts,
                           uint32_t first, uint32_t end, gw_guess_fn guess, void *user,
                           gw_recall *out, moe_err *err)
{
    MOE_ASSERT(n_experts <= GW_MAX_CLASSES && end <= s->n_sequences);
    counting c = {.s = &s->stack[p->stack], .p = p, .n_experts = n_experts, .out = out};
    c.best = malloc((c.s->n + 1) * sizeof *c.best);
    if (c.best == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "guesses of %u tokens", c.s->n);
    }
    *out = (gw_recall){.n = 0};
    for (uint32_t i = first; i < end; i++) {
        count_tokens(&c, i, guess, user);
    }
    uint32_t rows = p->stack == MOE_ENCODER ? 1 : GW_SET_ROWS;
    for (uint32_t i = first; i < end; i += rows) {
        if (p->stack == MOE_ENCODER) {
            count_prompt(&c, i);
        } else {
            count_steps(&c, i, end - i < rows ? end : i + rows);
        }
    }
    free(c.best);
    return MOE_OK;
}
