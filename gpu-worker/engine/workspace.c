/* workspace.c - see workspace.h. One function names every buffer; it runs once to measure and once
 * to hand out addresses. */
#include "gpu-worker/engine/workspace.h"

#include <string.h>

#include "common/bytes.h"

enum { BUFFER_ALIGN = 256 };

/* Hands out addresses from base; base 0 only measures. */
struct carver {
    uintptr_t base;
    uint64_t used;
};

static void *carve(struct carver *c, uint64_t n, size_t element_bytes)
{
    uintptr_t at = c->base == 0 ? 0 : c->base + (uintptr_t)c->used;
    c->used += moe_align_up(n * element_bytes, BUFFER_ALIGN);
    return (void *)at;
}

static void carve_inputs(struct carver *c, const gw_workspace *w, gw_step_inputs *in)
{
    in->ids = carve(c, w->max_rows, sizeof(int32_t));
    in->row_seq = carve(c, w->max_rows, sizeof(int32_t));
    in->row_pos = carve(c, w->max_rows, sizeof(int32_t));
    in->self_len = carve(c, w->max_batch, sizeof(int32_t));
    in->cross_len = carve(c, w->max_batch, sizeof(int32_t));
    in->self_off = carve(c, w->max_batch, sizeof(int64_t));
    in->cross_off = carve(c, w->max_batch, sizeof(int64_t));
}

static void carve_routing(struct carver *c, uint64_t pairs, uint32_t n_experts, krn_routing *r)
{
    r->ids = carve(c, pairs, sizeof(int32_t));
    r->weights = carve(c, pairs, sizeof(float));
    r->order = carve(c, pairs, sizeof(int32_t));
    r->offsets = carve(c, (uint64_t)n_experts + 1, sizeof(int32_t));
}

/* Of the largest product that an encode step makes. */
static size_t linear_scratch_bytes(const moe_model_shape *s)
{
    const uint32_t width = s->n_heads * s->d_head;
    const size_t of[] = {
        krn_linear_scratch_bytes(s->d_model, 3 * width), /* queries, keys, values */
        krn_linear_scratch_bytes(width, s->d_model),
        krn_linear_scratch_bytes(s->d_model, s->d_ff), /* dense feed-forward */
        krn_linear_scratch_bytes(s->d_ff, s->d_model)};
    size_t largest = 0;
    for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
        largest = of[i] > largest ? of[i] : largest;
    }
    return largest;
}

static void carve_device(struct carver *c, const moe_model_shape *s, gw_workspace *w)
{
    uint64_t rows = w->max_rows;
    uint64_t pairs = rows * s->top_k;
    uint64_t width = (uint64_t)s->n_heads * s->d_head;
    carve_inputs(c, w, &w->dev);
    w->x = carve(c, rows * s->d_model, sizeof(float));
    w->h = carve(c, rows * s->d_model, sizeof(float));
    w->qkv = carve(c, rows * 3 * width, sizeof(float));
    w->attended = carve(c, rows * width, sizeof(float));
    w->ff = carve(c, rows * s->d_ff, sizeof(float));
    w->gate_logits = carve(c, rows * s->n_experts, sizeof(float));
    w->logits = carve(c, (uint64_t)w->max_batch * s->vocab, sizeof(float));
    w->linear_scratch = carve(c, linear_scratch_bytes(s), 1);
    w->capacity = carve(c, (uint64_t)w->max_batch * s->n_experts, sizeof(int32_t));
    carve_routing(c, pairs, s->n_experts, &w->routing[0]);
    carve_routing(c, pairs, s->n_experts, &w->routing[1]);
    uint64_t guess_top = w->guess_top > 0 ? w->guess_top : 1;
    carve_routing(c, rows * guess_top, s->n_experts, &w->guess);
}

static void carve_mapped(struct carver *c, const moe_model_shape *s, gw_workspace *w)
{
    uint64_t rows = w->max_rows;
    uint32_t n_encoder = s->stack[MOE_ENCODER].n_blocks;
    uint32_t n_decoder = s->stack[MOE_DECODER].n_blocks;
    uint32_t n_blocks = n_encoder > n_decoder ? n_encoder : n_decoder;
    carve_inputs(c, w, &w->host);
    w->input_bytes = (size_t)c->used;
    w->out_next = carve(c, w->max_batch, sizeof(int32_t));
    w->row_failed = carve(c, rows, sizeof(int32_t));
    w->out_experts = carve(c, rows * n_blocks, sizeof(int32_t));
    w->out_hidden = carve(c, rows * s->d_model, sizeof(float));
    w->out_logits = carve(c, (uint64_t)w->max_batch * s->vocab, sizeof(float));
    w->out_gates = carve(c, w->record_gates ? rows * n_blocks * s->d_model : 0, sizeof(float));
}

static moe_status no_memory(const gw_workspace *w, uint64_t bytes, const char *where, moe_err *err)
{
    return MOE_FAIL(err, MOE_ERR_NO_MEMORY,
                    "cannot allocate %llu bytes of %s memory for steps of %u rows "
                    "(max_encode_tokens) and %u sequences (max_batch): lower one of these settings",
                    (unsigned long long)bytes, where, w->max_rows, w->max_batch);
}

uint64_t gw_workspace_device_bytes(const moe_model_shape *shape, uint32_t max_rows,
                                   uint32_t max_batch)
{
    gw_workspace w = {.max_rows = max_rows, .max_batch = max_batch};
    struct carver device = {0};
    carve_device(&device, shape, &w);
    return device.used;
}

moe_status gw_workspace_init(const gw_workspace_cfg *cfg, gw_workspace *out, moe_err *err)
{
    const krn_backend_fns *backend = &cfg->ops->backend;
    gw_workspace w = {.ops = cfg->ops,
                      .device = cfg->device,
                      .max_rows = cfg->max_rows,
                      .max_batch = cfg->max_batch,
                      .record_gates = cfg->record_gates,
                      .guess_top = cfg->guess_top};
    struct carver device = {0};
    struct carver mapped = {0};
    carve_device(&device, cfg->shape, &w);
    carve_mapped(&mapped, cfg->shape, &w);
    if (backend->mem_alloc(cfg->device, device.used, &w.device_arena, err) != MOE_OK) {
        return no_memory(&w, device.used, "device", err);
    }
    if (backend->host_alloc(cfg->device, mapped.used, &w.mapped_arena, err) != MOE_OK) {
        gw_workspace_fini(&w);
        return no_memory(&w, mapped.used, "pinned host", err);
    }
    memset(w.mapped_arena, 0, mapped.used);
    device = (struct carver){.base = (uintptr_t)w.device_arena};
    mapped = (struct carver){.base = (uintptr_t)w.mapped_arena};
    carve_device(&device, cfg->shape, &w);
    carve_mapped(&mapped, cfg->shape, &w);
    *out = w;
    return MOE_OK;
}

void gw_workspace_fini(gw_workspace *w)
{
    if (w->ops != NULL) {
        if (w->device_arena != NULL) {
            w->ops->backend.mem_free(w->device, w->device_arena);
        }
        if (w->mapped_arena != NULL) {
            w->ops->backend.host_free(w->device, w->mapped_arena);
        }
    }
    memset(w, 0, sizeof *w);
}
