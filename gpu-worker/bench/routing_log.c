/* routing_log.c - see routing_log.h. */
#include "gpu-worker/bench/routing_log.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const stack_names[MOE_N_STACKS] = {"encoder", "decoder"};
enum { MAX_EXPERTS = 1 << 16, MAX_BLOCKS = MOE_MAX_LAYERS, MAX_LINE_BYTES = 64 << 20 };

/* ---- writing --------------------------------------------------------------------------------- */

struct gw_routing_log {
    FILE *f; /* owned */
    char *path;
    bool described;
    uint32_t n_blocks[MOE_N_STACKS];
};

moe_status gw_routing_log_create(const char *path, gw_routing_log **out, moe_err *err)
{
    gw_routing_log *log = calloc(1, sizeof *log);
    char *copy = strdup(path);
    if (log == NULL || copy == NULL) {
        free(log);
        free(copy);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "recording %.200s", path);
    }
    log->path = copy;
    log->f = fopen(path, "we");
    if (log->f == NULL) {
        moe_status st = MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno,
                                        "create recording %.200s", path);
        free(log->path);
        free(log);
        return st;
    }
    *out = log;
    return MOE_OK;
}

void gw_routing_log_describe(gw_routing_log *log, const char *model, const moe_model_shape *shape)
{
    if (log == NULL || log->described) {
        return;
    }
    log->described = true;
    for (int s = 0; s < MOE_N_STACKS; s++) {
        log->n_blocks[s] = shape->stack[s].n_blocks;
    }
    fputs("{\"pregate_routing\":1,\"model\":\"", log->f);
    for (const char *c = model; *c != '\0'; c++) { /* a name; what JSON would escape is left out */
        if (*c != '"' && *c != '\\' && (unsigned char)*c >= ' ') {
            fputc(*c, log->f);
        }
    }
    fprintf(log->f, "\",\"n_experts\":%u,\"encoder_blocks\":%u,\"decoder_blocks\":%u}\n",
            shape->n_experts, log->n_blocks[MOE_ENCODER], log->n_blocks[MOE_DECODER]);
}

void gw_routing_log_add(gw_routing_log *log, moe_stack stack, const int32_t *experts,
                        uint32_t stride, uint32_t n_rows)
{
    if (log == NULL) {
        return;
    }
    fprintf(log->f, "[\"%s\",[", stack_names[stack]);
    for (uint32_t b = 0; b < log->n_blocks[stack]; b++) {
        fputs(b > 0 ? ",[" : "[", log->f);
        for (uint32_t t = 0; t < n_rows; t++) {
            fprintf(log->f, "%s%d", t > 0 ? "," : "", experts[(size_t)b * stride + t]);
        }
        fputc(']', log->f);
    }
    fputs("]]\n", log->f);
}

moe_status gw_routing_log_close(gw_routing_log *log, moe_err *err)
{
    moe_status st = MOE_OK;
    if (log == NULL) {
        return MOE_OK;
    }
    bool bad = ferror(log->f) != 0;
    if (fclose(log->f) != 0 || bad) {
        st = MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "write recording %.200s",
                             log->path);
    }
    free(log->path);
    free(log);
    return st;
}

/* ---- reading --------------------------------------------------------------------------------- */

moe_status gw_recording_add(gw_recording *r, moe_stack stack, const int32_t *experts,
                            uint32_t stride, uint32_t n_rows, moe_err *err)
{
    size_t n = (size_t)r->n_blocks[stack] * n_rows;
    int32_t *copy = malloc((n + 1) * sizeof *copy);
    gw_recorded_step *steps = r->steps;
    if ((r->n_steps & (r->n_steps - 1)) == 0) { /* full at every power of two */
        steps = realloc(r->steps, (r->n_steps == 0 ? 1 : 2 * (size_t)r->n_steps) * sizeof *steps);
    }
    if (steps != NULL) {
        r->steps = steps;
    }
    if (steps == NULL || copy == NULL) {
        free(copy);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "step %u of a recording", r->n_steps);
    }
    for (uint32_t b = 0; b < r->n_blocks[stack]; b++) {
        memcpy(copy + (size_t)b * n_rows, experts + (size_t)b * stride, n_rows * sizeof *copy);
    }
    r->steps[r->n_steps++] = (gw_recorded_step){.stack = stack, .n_rows = n_rows, .experts = copy};
    return MOE_OK;
}

void gw_recording_fini(gw_recording *r)
{
    for (uint32_t i = 0; i < r->n_steps; i++) {
        free(r->steps[i].experts);
    }
    free(r->steps);
    *r = (gw_recording){0};
}

static bool get_count(const cJSON *root, const char *key, uint32_t max, uint32_t *out)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(root, key);
    if (!cJSON_IsNumber(item) || item->valuedouble < 0 || item->valuedouble > max) {
        return false;
    }
    *out = (uint32_t)item->valuedouble;
    return true;
}

static bool parse_head(const cJSON *root, gw_recording *r)
{
    uint32_t version = 0;
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(root, "model");
    if (cJSON_IsString(model)) {
        snprintf(r->model, sizeof r->model, "%s", model->valuestring);
    }
    return get_count(root, "pregate_routing", 1, &version) && version == 1 &&
           get_count(root, "n_experts", MAX_EXPERTS, &r->n_experts) && r->n_experts > 0 &&
           get_count(root, "encoder_blocks", MAX_BLOCKS, &r->n_blocks[MOE_ENCODER]) &&
           get_count(root, "decoder_blocks", MAX_BLOCKS, &r->n_blocks[MOE_DECODER]);
}

/* One block's rows into experts[0..n_rows). */
static bool parse_rows(const cJSON *rows, uint32_t n_rows, uint32_t n_experts, int32_t *experts)
{
    const cJSON *item = NULL;
    uint32_t t = 0;
    cJSON_ArrayForEach(item, rows)
    {
        if (t == n_rows || !cJSON_IsNumber(item) || item->valueint < -1 ||
            item->valueint >= (int)n_experts) {
            return false;
        }
        experts[t++] = item->valueint;
    }
    return t == n_rows;
}

static bool parse_stack(const cJSON *name, moe_stack *out)
{
    for (int s = 0; cJSON_IsString(name) && s < MOE_N_STACKS; s++) {
        if (strcmp(name->valuestring, stack_names[s]) == 0) {
            *out = (moe_stack)s;
            return true;
        }
    }
    return false;
}

/* MOE_ERR_FORMAT without a text: the caller knows the line. */
static moe_status parse_step(const cJSON *root, gw_recording *r, moe_err *err)
{
    moe_stack stack = MOE_ENCODER;
    const cJSON *blocks = cJSON_GetArrayItem(root, 1);
    if (!cJSON_IsArray(root) || !parse_stack(cJSON_GetArrayItem(root, 0), &stack) ||
        !cJSON_IsArray(blocks) || cJSON_GetArraySize(blocks) != (int)r->n_blocks[stack]) {
        return MOE_ERR_FORMAT;
    }
    const cJSON *block = cJSON_GetArrayItem(blocks, 0);
    uint32_t n_rows = (uint32_t)cJSON_GetArraySize(block), b = 0;
    int32_t *experts = malloc(((size_t)n_rows * r->n_blocks[stack] + 1) * sizeof *experts);
    if (experts == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a step of %u rows", n_rows);
    }
    bool good = true;
    cJSON_ArrayForEach(block, blocks)
    {
        good = good && cJSON_IsArray(block) &&
               parse_rows(block, n_rows, r->n_experts, experts + (size_t)b * n_rows);
        b++;
    }
    moe_status st =
        good ? gw_recording_add(r, stack, experts, n_rows, n_rows, err) : MOE_ERR_FORMAT;
    free(experts);
    return st;
}

static moe_status parse_line(const char *text, size_t bytes, uint32_t line, gw_recording *r,
                             moe_err *err)
{
    cJSON *root = bytes <= MAX_LINE_BYTES ? cJSON_ParseWithLength(text, bytes) : NULL;
    moe_status st = MOE_ERR_FORMAT;
    if (root != NULL && line == 1) {
        st = parse_head(root, r) ? MOE_OK : MOE_ERR_FORMAT;
    } else if (root != NULL) {
        st = parse_step(root, r, err);
    }
    cJSON_Delete(root);
    return st;
}

moe_status gw_recording_load(const char *path, gw_recording *out, moe_err *err)
{
    gw_recording r = {.n_steps = 0};
    char *text = NULL;
    size_t capacity = 0;
    ssize_t bytes = 0;
    moe_status st = MOE_OK;
    FILE *f = fopen(path, "re");
    if (f == NULL) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_NOT_FOUND, MOE_LAYER_ERRNO, errno,
                               "cannot open recording %.200s", path);
    }
    uint32_t line = 0;
    while (st == MOE_OK && (bytes = getline(&text, &capacity, f)) >= 0) {
        line++;
        st = parse_line(text, (size_t)bytes, line, &r, err);
    }
    if (st == MOE_ERR_FORMAT || (st == MOE_OK && line == 0)) {
        st = MOE_FAIL(err, MOE_ERR_FORMAT,
                      "recording %.150s, line %u: not what --record-routing writes", path,
                      line == 0 ? 1 : line);
    }
    free(text);
    fclose(f);
    if (st != MOE_OK) {
        gw_recording_fini(&r);
        return st;
    }
    *out = r;
    return MOE_OK;
}
