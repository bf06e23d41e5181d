/* routing_choice.h - made-up routing: which experts rows choose when no gate is asked.
 *
 *   uniform       every expert alike
 *   zipf:S        the r-th most popular expert of a block has probability ~ 1 / r^S; who is popular
 *                 is drawn once per block
 *   forced:K      exactly K experts of a block are active (if there are as many rows), drawn anew
 * in every step and block, rows dealt out in turn trace:FILE    a recording (routing_log.h), step
 * after step of the same stack, again from its start at its end; row t takes the recorded row t
 * modulo the recorded rows Synthetic: experts then see rows that their gate did not send, so
 * answers mean nothing; what is moved, planned and computed is real. Deterministic for a seed.
 * Threads: one owner.
 */
#ifndef GW_ROUTING_CHOICE_H
#define GW_ROUTING_CHOICE_H

#include "common/config.h"
#include "gpu-worker/bench/routing_log.h"

typedef enum gw_routing_kind {
    GW_ROUTING_MODEL = 0, /* the gate decides: no chooser */
    GW_ROUTING_UNIFORM,
    GW_ROUTING_ZIPF,
    GW_ROUTING_FORCED,
    GW_ROUTING_TRACE
} gw_routing_kind;

typedef struct gw_routing_spec {
    gw_routing_kind kind;
    double zipf_s;
    uint32_t forced_k;
    char path[MOE_CFG_STR_BYTES];
} gw_routing_spec;
/* MOE_ERR_INVALID says what is allowed. */
MOE_MUST_CHECK moe_status gw_routing_spec_parse(const char *text, gw_routing_spec *out,
                                                moe_err *err);

typedef struct gw_chooser gw_chooser;
/* spec.kind is not MODEL. MOE_ERR_INVALID: the recording is of another shape, or has no step. */
MOE_MUST_CHECK moe_status gw_chooser_create(const gw_routing_spec *spec,
                                            const moe_model_shape *shape, uint64_t seed,
                                            gw_chooser **out, moe_err *err);
void gw_chooser_destroy(gw_chooser *c); /* accepts NULL */
/* A new step of this stack; then once per block, rising. ids: [n_rows, top_k], distinct per row. */
void gw_chooser_begin_step(gw_chooser *c, moe_stack stack);
void gw_chooser_choose(gw_chooser *c, uint32_t block, uint32_t n_rows, int32_t *ids);
/* guesses[i]: ids[i] with probability `recall`, else another expert. */
void gw_chooser_guess(gw_chooser *c, double recall, const int32_t *ids, uint32_t n,
                      int32_t *guesses);

#endif
