/* workspace.h - every buffer that a step reads or writes, allocated once.
 *
 *   host inputs (mapped) --one copy at step start--> device inputs
 *   device activations, routing records
 *   device results --copies at step end--> host results (mapped), read after the stream was synced
 * The addresses never change and a step's values lie in memory, not in arguments: a decode step of
 * a given number of rows can be recorded once and replayed. Called by forward.c and filled by it;
 * the engine thread only. Shutdown: fini, after the compute stream was synchronised.
 */
#ifndef GW_WORKSPACE_H
#define GW_WORKSPACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/model_shape.h"
#include "kernels/ops.h"

/* One step's description; the same layout on the host and on the device. Encode: rows are prompt
 * tokens, sequence after sequence, and self attention reads the rows themselves. Decode: one row
 * per sequence, and it reads the kv cache. */
typedef struct gw_step_inputs {
    int32_t *ids;       /* [max_rows] token */
    int32_t *row_seq;   /* [max_rows] sequence of the batch */
    int32_t *row_pos;   /* [max_rows] position in its sequence */
    int32_t *self_len;  /* [max_batch] keys of self attention */
    int32_t *cross_len; /* [max_batch] keys of cross attention */
    int64_t *self_off;  /* [max_batch] first row of the sequence's self keys */
    int64_t *cross_off; /* [max_batch] first row of its cross keys in the kv cache */
} gw_step_inputs;

typedef struct gw_workspace_cfg {
    const krn_ops *ops;           /* borrowed */
    krn_device *device;           /* borrowed */
    const moe_model_shape *shape; /* borrowed during init */
    uint32_t max_rows;            /* rows of the largest step */
    uint32_t max_batch;           /* sequences of the largest step; <= max_rows */
    bool record_gates;            /* give out_gates room */
    uint32_t guess_top;           /* guesses per row; 0: one */
} gw_workspace_cfg;

typedef struct gw_workspace {
    const krn_ops *ops;
    krn_device *device;
    uint32_t max_rows, max_batch;
    bool record_gates;
    uint32_t guess_top;
    void *device_arena, *mapped_arena; /* owned */
    size_t input_bytes;                /* of one gw_step_inputs, from ids */
    gw_step_inputs host, dev;
    /* device */
    float *x, *h;           /* [max_rows, d_model] residual stream; normed input */
    float *qkv;             /* [max_rows, 3 * n_heads * d_head] queries, keys, values of a row */
    float *attended;        /* [max_rows, n_heads * d_head] */
    float *ff;              /* [max_rows, d_ff] */
    float *gate_logits;     /* [max_rows, n_experts] route's scratch */
    float *logits;          /* [max_batch, vocab] */
    void *linear_scratch;   /* of the products of prompts: ops_args.h */
    int32_t *capacity;      /* [max_batch * n_experts] dispatch's scratch */
    krn_routing routing[2]; /* by block parity: a block's own record, and its successor's */
    krn_routing guess;      /* of a block ahead: [max_rows, guess_top] pairs */
    /* mapped results */
    int32_t *out_next;    /* [max_batch] */
    int32_t *row_failed;  /* [max_rows] cleared by the host before a step, set by the device */
    int32_t *out_experts; /* [blocks of the larger stack][max_rows], a row's first choice */
    float *out_hidden;    /* [max_rows, d_model] */
    float *out_logits;    /* [max_batch, vocab] */
    float *out_gates;     /* [blocks of the larger stack][max_rows, d_model] h; if record_gates */
} gw_workspace;

/* On failure *out owns nothing; the error says how many bytes and which settings to lower. */
MOE_MUST_CHECK moe_status gw_workspace_init(const gw_workspace_cfg *cfg, gw_workspace *out,
                                            moe_err *err);
void gw_workspace_fini(gw_workspace *w); /* accepts zeroed */
/* Device memory that init would allocate. */
uint64_t gw_workspace_device_bytes(const moe_model_shape *shape, uint32_t max_rows,
                                   uint32_t max_batch);

#endif
