/* checkpoint_check.h - does a checkpoint's list of tensors fit its config.json? Pure functions.
 * Threads: no state. */
#ifndef XS_CHECKPOINT_CHECK_H
#define XS_CHECKPOINT_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model_shape.h"
#include "common/status.h"
#include "expert-store/pack/safetensors.h"

/* One tensor of the checkpoint and the file it lies in. */
typedef struct xs_ck_tensor {
    const xs_st_tensor *t; /* borrowed */
    uint32_t shard;
    bool used; /* xs_ck_check: stored as an expert's matrix or a dense tensor */
} xs_ck_tensor;

/* All tensors, ordered by name, unique. */
typedef struct xs_ck_list {
    xs_ck_tensor *items; /* [n] */
    uint32_t n;
} xs_ck_list;

/* NULL when absent. */
xs_ck_tensor *xs_ck_find(const xs_ck_list *list, const char *name);

/* Dense tensors a checkpoint may name differently: "shared.weight" of a tied model is also looked
 * for under its tied names. NULL when absent. */
xs_ck_tensor *xs_ck_find_dense(const xs_ck_list *list, const moe_model_shape *s, const char *name);

/* Checks names against the sparse layers and the gates (ordinary or pre-gated), completeness,
 * shapes and dtypes; marks what is used. *out_n_ignored counts tied copies and known leftovers. */
MOE_MUST_CHECK moe_status xs_ck_check(const xs_ck_list *list, const moe_model_shape *s,
                                      uint32_t *out_n_ignored, moe_err *err);

#endif
