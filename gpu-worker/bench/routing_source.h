/* routing_source.h - routing records that come from outside instead of from the gates: chosen
 * before a step, copied to the device when it begins, and read by its kernels where the gate's own
 * choice would be.
 *
 * Synthetic (routing_choice.h). Gates still run and their time counts; dispatch, fetches, waves and
 * experts work on these ids and on the fixed weight GW_SOURCE_WEIGHT. Addresses never
 * change, so a recorded step can be replayed. Guesses of the pregated policy on an ordinary
 * checkpoint stay the routers' own: against made-up routing they are wrong. What the last decoder
 * block guesses for the next token's first block can be made up, too, right with a given
 * probability: a predictor of that recall, whose gate runs as well.
 * Threads: create, prepare, destroy from the thread that runs steps, with none under way.
 */
#ifndef GW_ROUTING_SOURCE_H
#define GW_ROUTING_SOURCE_H

#include "gpu-worker/bench/routing_choice.h"
#include "kernels/ops.h"

#define GW_SOURCE_WEIGHT 0.5f

typedef struct gw_routing_source gw_routing_source;
/* chooser: borrowed. guess_recall: 0: no guesses are made up. Synchronises stream. */
MOE_MUST_CHECK moe_status gw_routing_source_create(const krn_ops *ops, krn_device *device,
                                                   krn_stream *stream, const moe_model_shape *shape,
                                                   uint32_t max_rows, gw_chooser *chooser,
                                                   double guess_recall, gw_routing_source **out,
                                                   moe_err *err);
void gw_routing_source_destroy(gw_routing_source *s); /* accepts NULL */
/* Chooses for every block of the next step. */
void gw_routing_source_prepare(gw_routing_source *s, moe_stack stack, uint32_t n_rows);
/* The forward pass, at step start: what was prepared goes to the device. */
MOE_MUST_CHECK moe_status gw_routing_source_submit(const gw_routing_source *s, krn_stream *stream,
                                                   moe_stack stack, moe_err *err);
/* Puts ids and weights of a block of the prepared stack into the record; order and offsets stay as
 * they are. */
void gw_routing_source_apply(const gw_routing_source *s, uint32_t block, krn_routing *record);
/* Likewise of the guess for the next decode step's first block. False: none is made up. */
bool gw_routing_source_apply_guess(const gw_routing_source *s, krn_routing *record);

#endif
