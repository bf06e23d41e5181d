/* cost_model.h - what a model needs and how fast it can be, as arithmetic.
 *
 * Bytes follow from config.json alone: weights, cells, keys and values, activations. Milliseconds
 * follow from four bandwidths and a resident step. All rates are 1e9 bytes/s.
 * Users: `plan` prints it, `bench` takes its floors from it, tests check it. Pure; any thread.
 *
 * Memory (Pre-gated MoE, Eq. 1):
 *   dense weights + max over N of (active experts of block N + active experts of block N+1)
 * and what the paper leaves out: keys, values, activations, one zeroed cell. With fewer cells than
 * that blocks run in waves, down to two cells.
 *
 * Time of a decode step, L MoE blocks, c = resident step / L, f = one block's fetch:
 *   resident       L c
 *   on-demand      L (c + f)                      select, fetch, execute, in turn
 *   pregated       f + (L - 1) max(c, f) + c      only the first block's fetch is exposed
 *   prefetch-all   the same with f of all experts
 *   link floor     L f                            of the policy's own traffic
 */
#ifndef GW_COST_MODEL_H
#define GW_COST_MODEL_H

#include <stdint.h>

#include "common/dtype.h"
#include "common/model_shape.h"
#include "gpu-worker/fetch/pipeline.h"

typedef struct gw_workload {
    moe_dtype dtype; /* of weights */
    uint32_t batch, prompt_tokens, output_tokens;
    uint32_t encode_tokens; /* of one encode step, at least prompt_tokens */
} gw_workload;

typedef struct gw_model_bytes {
    uint64_t expert, cell, slot; /* one, and one with its alignment */
    uint64_t dense;              /* weights that stay on the device */
    uint64_t decode_dense;       /* the part of them that every decode step reads */
    uint64_t kv;                 /* keys and values */
    uint64_t kv_read;            /* what a decode step reads of them, half through the answer */
    uint64_t workspace;          /* activations */
} gw_model_bytes;
void gw_cost_bytes(const moe_model_shape *s, const gw_workload *w, gw_model_bytes *out);

/* How many of n_experts are expected to be active when n_pairs choices are uniform. */
double gw_cost_active(uint32_t n_experts, double n_pairs);
/* Experts of two neighbouring blocks at most, in a decode step of this batch; at least 2. */
uint32_t gw_cost_eq1_cells(const moe_model_shape *s, uint32_t batch);

typedef enum gw_fit { GW_FIT_NOT = 0, GW_FIT_WAVES, GW_FIT_PREGATED, GW_FIT_RESIDENT } gw_fit;
typedef struct gw_fit_report {
    gw_fit device;                                     /* the best that the device budget allows */
    uint64_t need_waves, need_pregated, need_resident; /* device bytes */
    uint32_t n_cells; /* what the budget gives, at most one per expert */
    uint64_t need_ram_all, need_ram_least;
    uint32_t n_slots; /* what the RAM budget gives, at most one per expert; 0: too little */
} gw_fit_report;
void gw_cost_fit(const moe_model_shape *s, const gw_workload *w, uint64_t device_bytes,
                 uint64_t ram_bytes, gw_fit_report *out);

typedef struct gw_speeds {
    double link_gbps, memory_gbps;
    double drive_gbps;  /* 0: every expert is in RAM */
    double resident_ms; /* a measured resident step; 0: its memory floor is taken */
} gw_speeds;

typedef struct gw_step_cost {
    double memory_floor_ms; /* bytes a step reads / memory bandwidth */
    double fetch_ms;        /* one block's f */
    double link_floor_ms;
    double ms; /* of the step: a token of every sequence */
} gw_step_cost;
/* Uniform routing. n_cells beyond those of Eq. 1 hold experts that need no fetch; n_slots below the
 * number of experts send the rest to the drive, one read after the other. */
void gw_cost_step(const moe_model_shape *s, const gw_workload *w, const gw_speeds *v,
                  gw_policy policy, uint32_t n_cells, uint32_t n_slots, gw_step_cost *out);
const char *gw_cost_formula(gw_policy policy);
/* Bytes that a decode step with n_active experts (over all blocks) reads from device memory. */
double gw_cost_step_bytes(const gw_model_bytes *b, double n_active);
/* Link floor of the first token: every expert that the prompts and one decode step need, once. */
double gw_cost_first_token_link_ms(const moe_model_shape *s, const gw_workload *w,
                                   double link_gbps);

#endif
