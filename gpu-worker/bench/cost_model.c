/* cost_model.c - see cost_model.h. */
#include "gpu-worker/bench/cost_model.h"

#include <math.h>

#include "common/bytes.h"
#include "gpu-worker/engine/workspace.h"
#include "gpu-worker/fetch/plan.h"

enum { CELL_ALIGN = 256, SLOT_ALIGN = 4096 }; /* pipeline.c; pages, for O_DIRECT */

/* ---- bytes ----------------------------------------------------------------------------------- */

static uint64_t attention_params(const moe_model_shape *s)
{
    return 4ull * s->d_model * s->n_heads * s->d_head + s->d_model;
}

static uint64_t gate_params(const moe_model_shape *s, const moe_stack_shape *stack)
{
    uint64_t n_gates = stack->n_blocks; /* each its router; or the first one's, and L-1 pre-gates */
    return n_gates * s->n_experts * s->d_model;
}

static uint64_t stack_params(const moe_model_shape *s, moe_stack which)
{
    const moe_stack_shape *stack = &s->stack[which];
    uint64_t n_attention = which == MOE_DECODER ? 2 : 1;
    uint64_t n_dense = stack->n_layers - stack->n_blocks;
    return stack->n_layers * (n_attention * attention_params(s) + s->d_model) +
           n_dense * 2ull * s->d_ff * s->d_model + gate_params(s, stack) + s->d_model;
}

static uint64_t position_bias_bytes(const moe_model_shape *s)
{
    return s->n_heads * (2ull * s->rel_max_distance + 1) * sizeof(float);
}

void gw_cost_bytes(const moe_model_shape *s, const gw_workload *w, gw_model_bytes *out)
{
    uint64_t each = moe_dtype_bytes(w->dtype);
    uint64_t resident_each = w->dtype == MOE_F16 ? sizeof(float) : each; /* dense_weights.h */
    uint64_t table = (uint64_t)s->vocab * s->d_model;
    uint64_t kv_row = (uint64_t)s->stack[MOE_DECODER].n_layers * s->n_heads * s->d_head * 2 *
                      sizeof(float) * w->batch;
    uint64_t decoder = stack_params(s, MOE_DECODER);
    out->expert = moe_expert_params(s) * each;
    out->cell = moe_align_up(out->expert, CELL_ALIGN);
    out->slot = moe_align_up(out->expert, SLOT_ALIGN);
    out->dense =
        (stack_params(s, MOE_ENCODER) + decoder + table * (s->tied_head ? 1 : 2)) * resident_each +
        2 * position_bias_bytes(s);
    out->decode_dense = (decoder + table) * resident_each;
    out->kv = kv_row * (w->prompt_tokens + w->output_tokens);
    out->kv_read = kv_row * (w->prompt_tokens + w->output_tokens / 2);
    uint32_t rows = w->encode_tokens > w->batch ? w->encode_tokens : w->batch;
    out->workspace = gw_workspace_device_bytes(s, rows, w->batch);
}

double gw_cost_step_bytes(const gw_model_bytes *b, double n_active)
{
    return (double)b->decode_dense + (double)b->kv_read + n_active * (double)b->expert;
}

/* ---- experts --------------------------------------------------------------------------------- */

double gw_cost_active(uint32_t n_experts, double n_pairs)
{
    return n_experts == 0 ? 0 : n_experts * (1 - pow(1 - 1.0 / n_experts, n_pairs));
}

uint32_t gw_cost_eq1_cells(const moe_model_shape *s, uint32_t batch)
{
    uint32_t active = gw_plan_active_max(GW_PREGATED, s->n_experts, s->top_k, batch);
    uint32_t blocks = 0;
    for (int i = 0; i < MOE_N_STACKS; i++) {
        blocks = s->stack[i].n_blocks > blocks ? s->stack[i].n_blocks : blocks;
    }
    uint32_t cells = blocks > 1 ? 2 * active : active;
    return cells > 2 ? cells : 2;
}

/* ---- does it fit ----------------------------------------------------------------------------- */

static uint32_t count_in(uint64_t budget, uint64_t fixed, uint64_t each, uint32_t most)
{
    uint64_t n = budget > fixed ? (budget - fixed) / each : 0;
    return n < most ? (uint32_t)n : most;
}

void gw_cost_fit(const moe_model_shape *s, const gw_workload *w, uint64_t device_bytes,
                 uint64_t ram_bytes, gw_fit_report *out)
{
    gw_model_bytes b;
    gw_cost_bytes(s, w, &b);
    uint64_t fixed = b.dense + b.kv + b.workspace + b.cell; /* and the zeroed cell */
    uint32_t all = s->n_experts_total > 2 ? s->n_experts_total : 2;
    uint32_t eq1 = gw_cost_eq1_cells(s, w->batch);
    eq1 = eq1 < all ? eq1 : all;
    out->need_waves = fixed + 2 * b.cell;
    out->need_pregated = fixed + eq1 * b.cell;
    out->need_resident = fixed + all * b.cell;
    out->n_cells = count_in(device_bytes, fixed, b.cell, all);
    out->device = device_bytes >= out->need_resident   ? GW_FIT_RESIDENT
                  : device_bytes >= out->need_pregated ? GW_FIT_PREGATED
                  : device_bytes >= out->need_waves    ? GW_FIT_WAVES
                                                       : GW_FIT_NOT;
    out->need_ram_all = b.dense + s->n_experts_total * b.slot;
    out->need_ram_least = b.dense + 2 * b.slot;
    out->n_slots = count_in(ram_bytes, b.dense, b.slot, s->n_experts_total);
    if (out->n_slots < 2) {
        out->n_slots = 0;
    }
}

/* ---- time ------------------------------------------------------------------------------------ */

static double ms_of(double bytes, double gbps)
{
    return gbps > 0 ? bytes / gbps / 1e6 : 0;
}

/* Share of the decoder's experts that lie in cells for good. */
static double cached_share(const moe_model_shape *s, uint32_t batch, uint32_t n_cells)
{
    uint32_t working = gw_cost_eq1_cells(s, batch);
    double n = (double)s->stack[MOE_DECODER].n_blocks * s->n_experts;
    double share = n_cells > working && n > 0 ? (n_cells - working) / n : 0;
    return share < 1 ? share : 1;
}

void gw_cost_step(const moe_model_shape *s, const gw_workload *w, const gw_speeds *v,
                  gw_policy policy, uint32_t n_cells, uint32_t n_slots, gw_step_cost *out)
{
    gw_model_bytes b;
    gw_cost_bytes(s, w, &b);
    double n_blocks = s->stack[MOE_DECODER].n_blocks;
    double active = gw_cost_active(s->n_experts, (double)w->batch * s->top_k);
    out->memory_floor_ms = ms_of(gw_cost_step_bytes(&b, n_blocks * active), v->memory_gbps);
    double all_ms = v->resident_ms > 0 ? v->resident_ms : out->memory_floor_ms;
    double c = n_blocks > 0 ? all_ms / n_blocks : 0;
    double fetched = policy == GW_RESIDENT ? 0 : policy == GW_PREFETCH_ALL ? s->n_experts : active;
    double moved = fetched * (1 - cached_share(s, w->batch, n_cells)) * (double)b.expert;
    double absent = n_slots < s->n_experts_total && s->n_experts_total > 0
                        ? 1 - (double)n_slots / s->n_experts_total
                        : 0;
    double f = ms_of(moved, v->link_gbps);
    out->link_floor_ms = n_blocks * f;
    f += ms_of(moved * absent, v->drive_gbps);
    out->fetch_ms = f;
    if (n_blocks < 1 || policy == GW_RESIDENT) {
        out->ms = all_ms;
    } else if (policy == GW_ON_DEMAND) {
        out->ms = n_blocks * (c + f);
    } else {
        out->ms = f + (n_blocks - 1) * fmax(c, f) + c;
    }
}

const char *gw_cost_formula(gw_policy policy)
{
    switch (policy) {
    case GW_RESIDENT:
        return "L c";
    case GW_ON_DEMAND:
        return "L (c + f)";
    case GW_PREFETCH_ALL:
        return "f + (L-1) max(c, f) + c, f of all experts";
    case GW_PREGATED:
        return "f + (L-1) max(c, f) + c";
    }
    return "?";
}

double gw_cost_first_token_link_ms(const moe_model_shape *s, const gw_workload *w, double link_gbps)
{
    gw_model_bytes b;
    gw_cost_bytes(s, w, &b);
    double prompts = (double)w->batch * w->prompt_tokens * s->top_k;
    double n =
        s->stack[MOE_ENCODER].n_blocks * gw_cost_active(s->n_experts, prompts) +
        s->stack[MOE_DECODER].n_blocks * gw_cost_active(s->n_experts, (double)w->batch * s->top_k);
    return ms_of(n * (double)b.expert, link_gbps);
}
