/* inspect.c - see inspect.h. Called by main.c; no state. */
#include "expert-store/pack/inspect.h"

#include <inttypes.h>
#include <string.h>

static void append_uuid(const xs_catalog_info *info, moe_text *out)
{
    for (int i = 0; i < 16; i++) {
        moe_text_printf(out, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
                        info->uuid[i]);
    }
}

static double gb(uint64_t bytes)
{
    return (double)bytes / 1e9;
}

void xs_inspect_text(const xs_catalog *c, moe_text *out)
{
    const xs_catalog_info *info = xs_catalog_get_info(c);
    const moe_model_shape *s = &info->shape;
    moe_text_printf(out, "model     %s (%s, %s)\nuuid      ", info->model_name, s->model_type,
                    s->pregate_lookahead > 0 ? "pre-gated" : "ordinary");
    append_uuid(info, out);
    moe_text_printf(
        out, "\nshape     d_model %u, d_ff %u, %u heads of %u, vocabulary %u, layers %u + %u\n",
        s->d_model, s->d_ff, s->n_heads, s->d_head, s->vocab, s->stack[MOE_ENCODER].n_layers,
        s->stack[MOE_DECODER].n_layers);
    moe_text_printf(out,
                    "experts   %u (%u blocks of %u), %s, %.3f MB each, %.3f GB in %u segments\n",
                    s->n_experts_total, s->n_blocks_total, s->n_experts,
                    moe_dtype_name((moe_dtype)info->expert_dtype), (double)info->expert_bytes / 1e6,
                    gb(info->slot_bytes * s->n_experts_total), info->n_segments);
    moe_text_printf(out, "dense     %u tensors, %.3f GB\nfiles    ", info->n_tensors,
                    gb(info->dense_bytes));
    for (uint32_t i = 0; i < info->n_files; i++) {
        const char *name = NULL;
        const void *data = NULL;
        size_t bytes = 0;
        xs_catalog_file(c, i, &name, &data, &bytes);
        moe_text_printf(out, " %s (%zu bytes)%s", name, bytes, i + 1 < info->n_files ? "," : "\n");
    }
}

static void append_tensors(const xs_catalog *c, moe_text *out)
{
    moe_text_printf(out, "  \"tensors\": [");
    for (uint32_t i = 0; i < xs_catalog_get_info(c)->n_tensors; i++) {
        const xs_tensor_record *t = xs_catalog_tensor(c, i);
        moe_text_printf(out, "%s\n    {\"name\": ", i > 0 ? "," : "");
        moe_text_json_string(out, t->name, strlen(t->name));
        moe_text_printf(out, ", \"dtype\": \"%s\", \"shape\": [",
                        moe_dtype_name((moe_dtype)t->dtype));
        for (uint32_t d = 0; d < t->n_dims; d++) {
            moe_text_printf(out, "%s%u", d > 0 ? ", " : "", t->dims[d]);
        }
        moe_text_printf(out, "]}");
    }
    moe_text_printf(out, "\n  ],\n");
}

static void append_files(const xs_catalog *c, moe_text *out)
{
    moe_text_printf(out, "  \"files\": {");
    for (uint32_t i = 0; i < xs_catalog_get_info(c)->n_files; i++) {
        const char *name = NULL;
        const void *data = NULL;
        size_t bytes = 0;
        xs_catalog_file(c, i, &name, &data, &bytes);
        moe_text_printf(out, "%s", i > 0 ? ", " : "");
        moe_text_json_string(out, name, strlen(name));
        moe_text_printf(out, ": %zu", bytes);
    }
    moe_text_printf(out, "}\n");
}

void xs_inspect_json(const xs_catalog *c, moe_text *out)
{
    const xs_catalog_info *info = xs_catalog_get_info(c);
    const moe_model_shape *s = &info->shape;
    moe_text_printf(out, "{\n  \"model\": ");
    moe_text_json_string(out, info->model_name, strlen(info->model_name));
    moe_text_printf(out, ",\n  \"uuid\": \"");
    append_uuid(info, out);
    moe_text_printf(out,
                    "\",\n  \"model_type\": \"%s\",\n  \"pregated\": %s,\n  \"d_model\": %u,\n"
                    "  \"d_ff\": %u,\n  \"n_heads\": %u,\n  \"d_head\": %u,\n  \"vocab\": %u,\n"
                    "  \"encoder_layers\": %u,\n  \"decoder_layers\": %u,\n",
                    s->model_type, s->pregate_lookahead > 0 ? "true" : "false", s->d_model, s->d_ff,
                    s->n_heads, s->d_head, s->vocab, s->stack[MOE_ENCODER].n_layers,
                    s->stack[MOE_DECODER].n_layers);
    moe_text_printf(out,
                    "  \"encoder_blocks\": %u,\n  \"decoder_blocks\": %u,\n"
                    "  \"experts_per_block\": %u,\n  \"n_experts\": %u,\n"
                    "  \"expert_dtype\": \"%s\",\n  \"expert_bytes\": %" PRIu64 ",\n"
                    "  \"slot_bytes\": %" PRIu64 ",\n  \"dense_bytes\": %" PRIu64 ",\n"
                    "  \"n_segments\": %u,\n",
                    s->stack[MOE_ENCODER].n_blocks, s->stack[MOE_DECODER].n_blocks, s->n_experts,
                    s->n_experts_total, moe_dtype_name((moe_dtype)info->expert_dtype),
                    info->expert_bytes, info->slot_bytes, info->dense_bytes, info->n_segments);
    append_tensors(c, out);
    append_files(c, out);
    moe_text_printf(out, "}\n");
}
