/* predictor.h - the predictors of a store, on the device: which weights guess which block.
 *
 * Loaded once, beside the dense weights, from the tensors that prediction.h names; a store without
 * any is fine. Where a block has none of its own, its guess for the next block of its stack is that
 * block's router, untrained. A pre-gated checkpoint needs a guess for a token's first block only.
 * Called by the engine thread (session.c); const after load. Shutdown: unload frees.
 */
#ifndef GW_PREDICTOR_H
#define GW_PREDICTOR_H

#include "gpu-worker/engine/dense_weights.h"
#include "gpu-worker/fetch/prediction.h"

typedef struct gw_predictors {
    const krn_ops *ops; /* borrowed */
    krn_device *device; /* borrowed */
    void *arena;        /* owned, device; NULL: there are none */
    uint32_t n;         /* found in the store */
    gw_weight by[MOE_N_STACKS][MOE_MAX_LAYERS][GW_MAX_LOOKAHEAD]; /* source, lookahead - 1 */
} gw_predictors;

/* Synchronises `stream`. MOE_ERR_FORMAT: a predictor of another shape than the model's. *out is
 * large: the caller keeps it on the heap. On failure *out owns nothing. */
MOE_MUST_CHECK moe_status gw_predictors_load(const krn_ops *ops, krn_device *device,
                                             krn_stream *stream, const gw_store_client *client,
                                             const moe_model_shape *shape, gw_predictors *out,
                                             moe_err *err);
void gw_predictors_unload(gw_predictors *p); /* accepts zeroed */

/* What guesses for p->target, or NULL: nothing does. */
const gw_weight *gw_predictor_for(const gw_predictors *p, const gw_dense_weights *weights,
                                  const moe_model_shape *shape, gw_predict how,
                                  const gw_prediction *what);

#endif
