/* session.h - everything that lives as long as one connection to one store: client, dense weights,
 * kv cache, pipeline, forward pass, and the compute stream they share.
 *
 *   create: connect -> load dense weights -> kv cache -> pipeline -> forward pass
 *   destroy: the reverse; waits on the compute stream are released by the pipeline's destroy
 * When the store comes back with other memory, the engine destroys its session and makes another.
 * Threads: the engine thread; gw_store_client_dense and the metrics functions also under the
 * engine's mutex, which guards the pointer to the session.
 */
#ifndef GW_SESSION_H
#define GW_SESSION_H

#include "gpu-worker/engine/dense_weights.h"
#include "gpu-worker/engine/engine.h"
#include "gpu-worker/engine/forward.h"
#include "gpu-worker/engine/kv_cache.h"
#include "gpu-worker/fetch/store_client.h"

typedef struct gw_session {
    const krn_ops *ops;   /* borrowed */
    bool on_tensor_cores; /* the products of prompts: krn_device_info */
    krn_stream *compute;  /* owned, like all below */
    gw_store_client *client;
    gw_dense_weights weights;
    gw_predictors predictors;
    gw_kv_cache *kv;
    gw_pipeline *pipeline;
    gw_forward *forward;
} gw_session;

/* Waits up to connect_timeout_ns for the store. The first time `expected` is NULL, and waiting is
 * logged; later the client's shape must equal it: MOE_ERR_VERSION "serves another model". */
MOE_MUST_CHECK moe_status gw_session_create(const gw_engine_cfg *cfg, int64_t connect_timeout_ns,
                                            const moe_model_shape *expected, gw_session **out,
                                            moe_err *err);
void gw_session_destroy(gw_session *s); /* accepts NULL and half-built sessions */

#endif
