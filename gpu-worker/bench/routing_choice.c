/* routing_choice.c - see routing_choice.h. */
#include "gpu-worker/bench/routing_choice.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct gw_chooser {
    gw_routing_spec spec;
    uint32_t n_experts, top_k, n_blocks_total;
    uint32_t first_block[MOE_N_STACKS]; /* flat */
    uint64_t state;                     /* of the generator */
    double *cumulative;                 /* [n_experts] zipf, owned */
    uint32_t *ranked;                   /* [n_blocks_total][n_experts] owned: expert of each rank */
    gw_recording recording;             /* trace */
    uint32_t next_step[MOE_N_STACKS];   /* index into steps of the recording */
    moe_stack stack;
    const gw_recorded_step *step; /* trace: the current one, borrowed */
};

/* ---- settings -------------------------------------------------------------------------------- */

static bool parse_number(const char *text, double min, double max, double *out)
{
    char *end = NULL;
    double v = strtod(text, &end);
    if (end == text || *end != '\0' || !(v >= min && v <= max)) {
        return false;
    }
    *out = v;
    return true;
}

moe_status gw_routing_spec_parse(const char *text, gw_routing_spec *out, moe_err *err)
{
    gw_routing_spec spec = {.kind = GW_ROUTING_MODEL};
    double k = 0;
    bool good = true;
    if (strcmp(text, "uniform") == 0) {
        spec.kind = GW_ROUTING_UNIFORM;
    } else if (strncmp(text, "zipf:", 5) == 0) {
        spec.kind = GW_ROUTING_ZIPF;
        good = parse_number(text + 5, 0, 16, &spec.zipf_s);
    } else if (strncmp(text, "forced:", 7) == 0) {
        spec.kind = GW_ROUTING_FORCED;
        good = parse_number(text + 7, 1, 65536, &k) && k == floor(k);
        spec.forced_k = (uint32_t)k;
    } else if (strncmp(text, "trace:", 6) == 0) {
        spec.kind = GW_ROUTING_TRACE;
        good = text[6] != '\0';
        snprintf(spec.path, sizeof spec.path, "%s", text + 6);
    } else {
        good = strcmp(text, "model") == 0;
    }
    if (!good) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "--routing: '%.100s' is none of model, uniform, zipf:S (0 to 16), forced:K "
                        "(1 or more), trace:FILE",
                        text);
    }
    *out = spec;
    return MOE_OK;
}

/* ---- random numbers -------------------------------------------------------------------------- */

static uint64_t next_random(gw_chooser *c) /* SplitMix64 */
{
    uint64_t x = c->state += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static double next_unit(gw_chooser *c) /* [0, 1) */
{
    return (double)(next_random(c) >> 11) / 9007199254740992.0;
}

static uint32_t next_below(gw_chooser *c, uint32_t n)
{
    return (uint32_t)(next_unit(c) * n);
}

/* The first k places of a shuffle. */
static void shuffle(gw_chooser *c, uint32_t *items, uint32_t n, uint32_t k)
{
    for (uint32_t i = 0; i < k; i++) {
        uint32_t j = i + next_below(c, n - i), t = items[i];
        items[i] = items[j];
        items[j] = t;
    }
}

/* ---- create ---------------------------------------------------------------------------------- */

static moe_status create_tables(gw_chooser *c, moe_err *err)
{
    c->cumulative = calloc(c->n_experts, sizeof *c->cumulative);
    c->ranked = calloc((size_t)c->n_blocks_total * c->n_experts + 1, sizeof *c->ranked);
    if (c->cumulative == NULL || c->ranked == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "routing over %u experts", c->n_experts);
    }
    double sum = 0;
    for (uint32_t r = 0; r < c->n_experts; r++) {
        sum += pow(r + 1, -c->spec.zipf_s); /* S = 0 otherwise: uniform */
        c->cumulative[r] = sum;
    }
    for (uint32_t r = 0; r < c->n_experts; r++) {
        c->cumulative[r] /= sum;
    }
    for (uint32_t b = 0; b < c->n_blocks_total; b++) {
        uint32_t *ranked = c->ranked + (size_t)b * c->n_experts;
        for (uint32_t e = 0; e < c->n_experts; e++) {
            ranked[e] = e;
        }
        shuffle(c, ranked, c->n_experts, c->n_experts);
    }
    return MOE_OK;
}

static moe_status check_recording(const gw_chooser *c, const moe_model_shape *shape, moe_err *err)
{
    const gw_recording *r = &c->recording;
    uint32_t n_steps[MOE_N_STACKS] = {0};
    bool dropped = false;
    for (uint32_t i = 0; i < r->n_steps; i++) {
        const gw_recorded_step *s = &r->steps[i];
        n_steps[s->stack] += s->n_rows > 0;
        for (size_t k = 0; k < (size_t)r->n_blocks[s->stack] * s->n_rows; k++) {
            dropped = dropped || s->experts[k] < 0;
        }
    }
    if (r->n_experts != shape->n_experts ||
        r->n_blocks[MOE_ENCODER] != shape->stack[MOE_ENCODER].n_blocks ||
        r->n_blocks[MOE_DECODER] != shape->stack[MOE_DECODER].n_blocks) {
        return MOE_FAIL(
            err, MOE_ERR_INVALID,
            "recording of %s: %u + %u blocks of %u experts, the model has %u + %u of %u", r->model,
            r->n_blocks[0], r->n_blocks[1], r->n_experts, shape->stack[0].n_blocks,
            shape->stack[1].n_blocks, shape->n_experts);
    }
    if (n_steps[MOE_ENCODER] == 0 || n_steps[MOE_DECODER] == 0 || dropped || c->top_k != 1) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "recording of %s cannot be followed: it needs steps of both stacks, no "
                        "dropped tokens, and a model with top_k=1",
                        r->model);
    }
    return MOE_OK;
}

moe_status gw_chooser_create(const gw_routing_spec *spec, const moe_model_shape *shape,
                             uint64_t seed, gw_chooser **out, moe_err *err)
{
    MOE_ASSERT(spec->kind != GW_ROUTING_MODEL);
    gw_chooser *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "routing");
    }
    c->spec = *spec;
    c->n_experts = shape->n_experts;
    c->top_k = shape->top_k;
    c->n_blocks_total = shape->n_blocks_total;
    c->first_block[MOE_DECODER] = shape->stack[MOE_ENCODER].n_blocks;
    c->state = seed;
    moe_status st = create_tables(c, err);
    if (st == MOE_OK && spec->kind == GW_ROUTING_FORCED && spec->forced_k > c->n_experts) {
        st = MOE_FAIL(err, MOE_ERR_INVALID, "--routing forced:%u: a block has %u experts",
                      spec->forced_k, c->n_experts);
    }
    if (st == MOE_OK && spec->kind == GW_ROUTING_TRACE) {
        st = gw_recording_load(spec->path, &c->recording, err);
        if (st == MOE_OK) {
            st = check_recording(c, shape, err);
        }
    }
    if (st != MOE_OK) {
        gw_chooser_destroy(c);
        return st;
    }
    *out = c;
    return MOE_OK;
}

void gw_chooser_destroy(gw_chooser *c)
{
    if (c == NULL) {
        return;
    }
    gw_recording_fini(&c->recording);
    free(c->cumulative);
    free(c->ranked);
    free(c);
}

/* ---- choosing -------------------------------------------------------------------------------- */

void gw_chooser_begin_step(gw_chooser *c, moe_stack stack)
{
    c->stack = stack;
    while (c->spec.kind == GW_ROUTING_TRACE) { /* there is one: check_recording */
        c->step = &c->recording.steps[c->next_step[stack]];
        c->next_step[stack] = (c->next_step[stack] + 1) % c->recording.n_steps;
        if (c->step->stack == stack && c->step->n_rows > 0) {
            return;
        }
    }
}

static uint32_t draw_rank(gw_chooser *c)
{
    double u = next_unit(c);
    uint32_t low = 0, high = c->n_experts - 1;
    while (low < high) { /* the first rank whose cumulative probability exceeds u */
        uint32_t mid = (low + high) / 2;
        if (c->cumulative[mid] > u) {
            high = mid;
        } else {
            low = mid + 1;
        }
    }
    return low;
}

static bool is_taken(const int32_t *ids, uint32_t n, int32_t id)
{
    for (uint32_t k = 0; k < n; k++) {
        if (ids[k] == id) {
            return true;
        }
    }
    return false;
}

static void draw_rows(gw_chooser *c, const uint32_t *ranked, uint32_t n_rows, int32_t *ids)
{
    for (uint32_t t = 0; t < n_rows; t++, ids += c->top_k) {
        for (uint32_t k = 0; k < c->top_k; k++) {
            do {
                ids[k] = (int32_t)ranked[draw_rank(c)];
            } while (is_taken(ids, k, ids[k]));
        }
    }
}

void gw_chooser_choose(gw_chooser *c, uint32_t block, uint32_t n_rows, int32_t *ids)
{
    uint32_t *ranked = c->ranked + (size_t)(c->first_block[c->stack] + block) * c->n_experts;
    uint32_t n_pairs = n_rows * c->top_k;
    if (c->spec.kind == GW_ROUTING_FORCED) {
        shuffle(c, ranked, c->n_experts, c->spec.forced_k);
        for (uint32_t p = 0; p < n_pairs; p++) {
            ids[p] = (int32_t)ranked[p % c->spec.forced_k];
        }
    } else if (c->spec.kind == GW_ROUTING_TRACE) {
        const int32_t *recorded = c->step->experts + (size_t)block * c->step->n_rows;
        for (uint32_t t = 0; t < n_rows; t++) {
            ids[t] = recorded[t % c->step->n_rows];
        }
    } else {
        draw_rows(c, ranked, n_rows, ids);
    }
}

void gw_chooser_guess(gw_chooser *c, double recall, const int32_t *ids, uint32_t n,
                      int32_t *guesses)
{
    for (uint32_t i = 0; i < n; i++) {
        bool right = next_unit(c) < recall || c->n_experts == 1;
        uint32_t away = right ? 0 : 1 + next_below(c, c->n_experts - 1);
        guesses[i] = (int32_t)(((uint32_t)ids[i] + away) % c->n_experts);
    }
}
