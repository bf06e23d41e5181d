/* predictor_file.h - predictors as a safetensors file, which `expert-pack add` puts into a store.
 *
 * 8 bytes little-endian header length, a JSON header, then f32 data: the format of checkpoints, so
 * that predictors trained elsewhere come the same way. Main thread; no state. */
#ifndef GW_PREDICTOR_FILE_H
#define GW_PREDICTOR_FILE_H

#include <stdint.h>

#include "common/status.h"
#include "gpu-worker/fetch/prediction.h"

typedef struct gw_fitted {
    gw_prediction what;
    float *weight; /* [n_experts][d_model] owned */
} gw_fitted;

/* Written beside path and renamed, so path is complete or as it was. note: kept in the header. */
MOE_MUST_CHECK moe_status gw_predictor_file_write(const char *path, const gw_fitted *fitted,
                                                  uint32_t n, uint32_t n_experts, uint32_t d_model,
                                                  const char *note, moe_err *err);

#endif
