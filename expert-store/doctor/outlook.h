/* outlook.h - what a model will run at on this machine, from its sizes and the speeds measured.
 *
 * Bounds, not forecasts: a token cannot be faster than its experts arrive. "even" takes every
 * expert of a block as equally likely, which is the worst routing for any memory; a real one is
 * kinder (expert-replay tells by how much).
 * Pure. Threads: any.
 */
#ifndef XS_OUTLOOK_H
#define XS_OUTLOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model_shape.h"
#include "common/text.h"

typedef struct xs_outlook_input {
    const char *model; /* borrowed */
    const moe_model_shape *shape;
    uint64_t slot_bytes;
    uint64_t usable_bytes;                /* that slots may have */
    double drive_gb_per_s, dram_gb_per_s; /* 1e9; 0: not measured */
} xs_outlook_input;

enum { XS_N_BUDGETS = 5 };
typedef struct xs_budget {
    double share; /* of all experts that have a slot */
    uint64_t ram_bytes;
    bool fits;
    double
        even_tokens_per_s; /* what the drive allows with one sequence; INFINITY: it is not needed */
} xs_budget;

typedef struct xs_outlook {
    uint32_t experts_per_token; /* of one decoded token */
    uint64_t bytes_per_token;
    uint64_t all_bytes;                     /* --ram-bytes all */
    double drive_expert_us, dram_expert_us; /* for one expert; 0: not measured */
    double dram_tokens_per_s;               /* every expert copied from a slot */
    xs_budget budgets[XS_N_BUDGETS];        /* rising */
    uint64_t largest_bytes;                 /* the most that fits, in whole slots */
    double largest_share;
} xs_outlook;

void xs_outlook_compute(const xs_outlook_input *in, xs_outlook *out);
void xs_outlook_table(const xs_outlook_input *in, const xs_outlook *o, moe_text *out);
void xs_outlook_json(const xs_outlook_input *in, const xs_outlook *o, moe_text *out);

#endif
