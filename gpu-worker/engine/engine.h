/* engine.h - runs sequences: one thread, steps of encode and decode, sequences join and leave
 * between steps.
 *
 * A request's answer does not depend on who shares its batch (kernels/ops/ops_args.h). Callbacks
 * run on the engine thread and must be quick; they may call gw_engine_cancel.
 * Threads: submit, cancel, stop and metrics from any thread.
 */
#ifndef GW_ENGINE_H
#define GW_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/metrics.h"
#include "common/model_shape.h"
#include "gpu-worker/bench/routing_log.h"
#include "gpu-worker/fetch/pipeline.h"
#include "gpu-worker/fetch/prediction.h"

typedef struct gw_engine_cfg {
    const krn_ops *ops;
    krn_device *device;
    const char *endpoint; /* of the store; the engine makes (and remakes) its client */
    int64_t connect_timeout_ns;
    gw_policy policy;
    uint32_t n_cells;
    uint64_t cell_bytes;
    gw_cell_policy cell_policy;
    uint32_t max_batch; /* sequences decoded together */
    uint32_t max_queue; /* waiting sequences; more are refused */
    uint32_t max_input_tokens, max_output_tokens;
    uint32_t max_encode_tokens; /* prompt tokens of one encode step; >= max_input_tokens */
    bool checkpoint_capacity;   /* --expert-capacity checkpoint */
    bool sync_host;             /* forward.h */
    gw_predict predict;         /* who guesses, for PREGATED on an ordinary checkpoint */
    uint32_t predict_top;       /* guesses per token; 0: one */
    uint32_t lookahead;         /* blocks ahead that are guessed; 0: one */
    uint64_t predict_bytes;     /* guessed copies of one step; 0: as the cells allow */
    bool record_gates;          /* records may want gates: costs memory for them, mapped */
    int64_t expert_deadline_ns;
    gw_trace *trace;             /* borrowed, may be NULL */
    gw_routing_log *routing_log; /* borrowed, may be NULL: gets every step's choices */
} gw_engine_cfg;

typedef struct gw_engine gw_engine;
MOE_MUST_CHECK moe_status gw_engine_create(const gw_engine_cfg *cfg, gw_engine **out, moe_err *err);
/* Open sequences end with MOE_ERR_CANCELLED; joins the thread; accepts NULL. */
void gw_engine_destroy(gw_engine *e);
const moe_model_shape *gw_engine_shape(const gw_engine *e);
const char *gw_engine_model_name(const gw_engine *e);
/* A file of the checkpoint ("spiece.model"); borrowed until destroy; MOE_ERR_NOT_FOUND. */
MOE_MUST_CHECK moe_status gw_engine_file(const gw_engine *e, const char *name,
                                         const void **out_data, uint64_t *out_bytes, moe_err *err);

typedef enum gw_finish {
    GW_FINISH_STOP = 0 /* eos */,
    GW_FINISH_LENGTH,
    GW_FINISH_ERROR
} gw_finish;

/* What a test or `run --record` wants to see; owned by the caller, filled by the engine before
 * on_done, arrays malloc'ed by the engine, freed by gw_record_fini. */
typedef struct gw_record {
    bool want_logits;          /* keep all logits: [n_steps][vocab]; else only sums and top 5 */
    bool want_gates;           /* keep what gates saw; needs gw_engine_cfg.record_gates */
    uint32_t n_input, n_steps; /* decoder positions computed */
    int32_t *encoder_experts;  /* [encoder blocks][n_input] */
    int32_t *decoder_experts;  /* [decoder blocks][n_steps] (strided by capacity max_steps) */
    uint32_t max_steps;        /* stride of decoder_experts */
    float *encoder_out;        /* [n_input][d_model], after the final norm */
    float *logits;             /* [max_steps][vocab] when want_logits */
    double *logits_sum;        /* [max_steps] */
    double *forced_logprob;    /* [max_steps] ln p of the forced token; 0 where none was forced */
    float *encoder_gates;      /* [encoder blocks][n_input][d_model] when want_gates: h */
    float *decoder_gates;      /* [decoder blocks][max_steps][d_model] when want_gates */
    int32_t top5_id[5];        /* of the first position */
    float top5_logit[5];
} gw_record;
void gw_record_fini(gw_record *r);

typedef struct gw_request {
    const int32_t *input_ids; /* copied; ends with eos; 1..max_input_tokens, each in [0, vocab) */
    uint32_t n_input;
    uint32_t max_tokens; /* 1..max_output_tokens */
    float temperature;   /* 0: greedy */
    float top_p;         /* (0, 1] */
    uint64_t seed;
    bool ignore_eos;
    const int32_t *forced; /* copied; decoder tokens after the start token to feed instead of the
                              chosen ones (teacher forcing); NULL: none */
    uint32_t n_forced;
    gw_record *record; /* borrowed until on_done, may be NULL */
    /* Every token the sequence takes, chosen or forced, the end token too; may be NULL. */
    void (*on_token)(void *user, int32_t token, uint32_t index);
    /* err is NULL unless finish == GW_FINISH_ERROR (status MOE_ERR_CANCELLED after a cancel). */
    void (*on_done)(void *user, gw_finish finish, const moe_err *err);
    void *user;
} gw_request;

/* *out_id (may be NULL) names the sequence for cancel. MOE_ERR_BUSY: the queue is full.
 * MOE_ERR_DISCONNECTED: not ready (gw_engine_get_state says why). MOE_ERR_LIMIT, MOE_ERR_INVALID:
 * names the field. Exactly one on_done follows every MOE_OK, none any other; it may come before
 * submit returns. After a failure the record owns nothing. */
MOE_MUST_CHECK moe_status gw_engine_submit(gw_engine *e, const gw_request *r, uint64_t *out_id,
                                           moe_err *err);
void gw_engine_cancel(gw_engine *e, uint64_t id); /* unknown or finished: nothing */

typedef struct gw_engine_state {
    bool ready; /* connected, weights loaded, thread running */
    uint32_t running, waiting;
    char note[200]; /* why not ready */
} gw_engine_state;
void gw_engine_get_state(gw_engine *e, gw_engine_state *out);
void gw_engine_metrics(gw_engine *e, moe_metrics *m);

#endif
