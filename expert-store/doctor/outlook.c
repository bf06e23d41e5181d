/* outlook.c - see outlook.h. */
#include "expert-store/doctor/outlook.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define GB 1e9
#define GIB ((double)(1ull << 30))
#define MIB ((double)(1ull << 20))

static double expert_us(uint64_t slot_bytes, double gb_per_s)
{
    return gb_per_s > 0 ? (double)slot_bytes / (gb_per_s * 1e3) : 0;
}

/* Models without a decoder do one pass over the encoder's blocks. */
static uint32_t blocks_per_token(const moe_model_shape *s)
{
    uint32_t decoder = s->stack[MOE_DECODER].n_blocks;
    return decoder > 0 ? decoder : s->stack[MOE_ENCODER].n_blocks;
}

static xs_budget budget(const xs_outlook_input *in, const xs_outlook *o, double share)
{
    uint32_t n_slots = (uint32_t)ceil(share * in->shape->n_experts_total);
    double had = (double)n_slots / in->shape->n_experts_total;
    double missing_bytes = (1 - had) * (double)o->bytes_per_token;
    xs_budget b = {.share = had, .ram_bytes = n_slots * in->slot_bytes};
    b.fits = b.ram_bytes <= in->usable_bytes;
    b.even_tokens_per_s = missing_bytes > 0 ? in->drive_gb_per_s * GB / missing_bytes : INFINITY;
    return b;
}

void xs_outlook_compute(const xs_outlook_input *in, xs_outlook *out)
{
    static const double shares[XS_N_BUDGETS] = {0.1, 0.25, 0.5, 0.75, 1};
    uint64_t n_experts = in->shape->n_experts_total;
    uint64_t n_fit = in->usable_bytes / in->slot_bytes;
    xs_outlook o = {.experts_per_token = blocks_per_token(in->shape) * in->shape->top_k};
    o.bytes_per_token = o.experts_per_token * in->slot_bytes;
    o.all_bytes = n_experts * in->slot_bytes;
    o.drive_expert_us = expert_us(in->slot_bytes, in->drive_gb_per_s);
    o.dram_expert_us = expert_us(in->slot_bytes, in->dram_gb_per_s);
    o.dram_tokens_per_s =
        o.bytes_per_token > 0 ? in->dram_gb_per_s * GB / (double)o.bytes_per_token : 0;
    for (int i = 0; i < XS_N_BUDGETS; i++) {
        o.budgets[i] = budget(in, &o, shares[i]);
    }
    n_fit = n_fit < n_experts ? n_fit : n_experts;
    o.largest_bytes = n_fit * in->slot_bytes;
    o.largest_share = (double)n_fit / (double)n_experts;
    *out = o;
}

static void rate_text(double per_s, char *out, size_t out_bytes)
{
    if (isinf(per_s)) {
        snprintf(out, out_bytes, "not needed");
    } else if (per_s <= 0) {
        snprintf(out, out_bytes, "-");
    } else {
        snprintf(out, out_bytes, "%.*f/s", per_s < 10 ? 1 : 0, per_s);
    }
}

void xs_outlook_table(const xs_outlook_input *in, const xs_outlook *o, moe_text *out)
{
    moe_text_printf(out,
                    "model %s: %u experts of %.2f MB, %.2f GiB; a decoded token uses %u of them, "
                    "%.1f MB\n",
                    in->model, in->shape->n_experts_total, (double)in->slot_bytes / 1e6,
                    (double)o->all_bytes / GIB, o->experts_per_token,
                    (double)o->bytes_per_token / 1e6);
    moe_text_printf(out, "  one expert: %.0f us from the drive, %.0f us copied in DRAM\n",
                    o->drive_expert_us, o->dram_expert_us);
    moe_text_printf(out, "  %-12s %6s  %-5s %s\n", "--ram-bytes", "share", "fits",
                    "tokens the drive allows, were all experts equally likely");
    for (int i = 0; i < XS_N_BUDGETS; i++) {
        const xs_budget *b = &o->budgets[i];
        char rate[32];
        rate_text(b->even_tokens_per_s, rate, sizeof rate);
        bool small = b->ram_bytes < 1ull << 30;
        moe_text_printf(out, "  %8.*f %s %5.0f %%  %-5s %s\n", small ? 1 : 2,
                        (double)b->ram_bytes / (small ? MIB : GIB), small ? "MiB" : "GiB",
                        100 * b->share, b->fits ? "yes" : "no", rate);
    }
    if (o->largest_share < 1) {
        moe_text_printf(out,
                        "  the most that fits here: --ram-bytes %lluMiB, %.0f %% of the experts\n",
                        (unsigned long long)(o->largest_bytes >> 20), 100 * o->largest_share);
    }
}

void xs_outlook_json(const xs_outlook_input *in, const xs_outlook *o, moe_text *out)
{
    moe_text_printf(out, "{\"name\": ");
    moe_text_json_string(out, in->model, strlen(in->model));
    moe_text_printf(out,
                    ", \"n_experts\": %u, \"slot_bytes\": %llu, \"all_bytes\": %llu, "
                    "\"experts_per_token\": %u, \"bytes_per_token\": %llu, "
                    "\"drive_expert_us\": %.2f, \"dram_expert_us\": %.2f, "
                    "\"dram_tokens_per_s\": %.2f, \"usable_bytes\": %llu, "
                    "\"largest_bytes\": %llu, \"largest_share\": %.4f, \"budgets\": [",
                    in->shape->n_experts_total, (unsigned long long)in->slot_bytes,
                    (unsigned long long)o->all_bytes, o->experts_per_token,
                    (unsigned long long)o->bytes_per_token, o->drive_expert_us, o->dram_expert_us,
                    o->dram_tokens_per_s, (unsigned long long)in->usable_bytes,
                    (unsigned long long)o->largest_bytes, o->largest_share);
    for (int i = 0; i < XS_N_BUDGETS; i++) {
        const xs_budget *b = &o->budgets[i];
        moe_text_printf(out, "%s{\"share\": %.4f, \"ram_bytes\": %llu, \"fits\": %s, ",
                        i > 0 ? ", " : "", b->share, (unsigned long long)b->ram_bytes,
                        b->fits ? "true" : "false");
        if (isinf(b->even_tokens_per_s)) {
            moe_text_printf(out, "\"even_tokens_per_s\": null}");
        } else {
            moe_text_printf(out, "\"even_tokens_per_s\": %.3f}", b->even_tokens_per_s);
        }
    }
    moe_text_printf(out, "]}");
}
