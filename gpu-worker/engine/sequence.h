/* sequence.h - one request while it is open: its tokens, its position, its stop rules, its record.
 *
 *   WAITING --admit--> encode step --> RUNNING --advance, once per decode step--> finished
 *       \------------- cancel, failure -------/
 * The decoder input starts with the start token; the token chosen (or forced) at position i is the
 * input of position i + 1.
 * Threads: created by the submitting thread, then owned by the engine thread; only `cancelled` is
 * set from outside. Memory: owns copies of everything in the request but the record, which the
 * caller lends until on_done.
 */
#ifndef GW_SEQUENCE_H
#define GW_SEQUENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu-worker/engine/engine.h"

typedef struct gw_sequence {
    struct gw_sequence *next; /* in the engine's waiting list */
    uint64_t id;              /* given by the engine */
    gw_request request;       /* input_ids and forced are owned here */
    bool cancelled;           /* guarded by the engine's mutex */
    uint32_t place;           /* in the kv cache, while running */
    uint32_t position;        /* decoder position of the next step = tokens produced so far */
    int32_t feed;             /* decoder input at that position */
    int64_t submitted_ns;
} gw_sequence;

typedef struct gw_sequence_limits {
    uint32_t max_input_tokens, max_output_tokens, vocab;
    int32_t eos_id, start_id;
    uint32_t d_model, n_blocks[2]; /* of the record's arrays */
    bool record_gates;             /* steps bring them to the host */
} gw_sequence_limits;

/* MOE_ERR_LIMIT, MOE_ERR_INVALID name the field and what is allowed. Allocates the request's
 * record, if there is one. */
MOE_MUST_CHECK moe_status gw_sequence_create(const gw_request *r, const gw_sequence_limits *limits,
                                             gw_sequence **out, moe_err *err);
void gw_sequence_destroy(gw_sequence *s); /* accepts NULL; leaves the record to its owner */

/* Takes the token chosen at s->position (a forced one replaces it) and moves on. True when the
 * sequence has ended, with the reason in *out_finish; *out_token is the token it took. */
bool gw_sequence_advance(gw_sequence *s, int32_t chosen, int32_t eos_id, int32_t *out_token,
                         gw_finish *out_finish);
/* Does a step have to bring this sequence's logits to the host? */
bool gw_sequence_wants_logits(const gw_sequence *s);

/* What one step computed, as host arrays of the whole batch (see forward.h). */
typedef struct gw_step_view {
    const int32_t *experts; /* [n_blocks][stride], row t at [b * stride + t] */
    uint32_t stride;
    const float *hidden; /* encode: [n_rows][d_model], after the final norm */
    const float *logits; /* decode: [n_rows][vocab] */
    const float *gates;  /* [n_blocks][stride][d_model] what gates saw; NULL: not recorded */
} gw_step_view;
/* Copy this sequence's rows into its record (none: nothing). Decode: before advance. */
void gw_sequence_record_encode(gw_sequence *s, const gw_sequence_limits *limits,
                               const gw_step_view *v, uint32_t first_row);
void gw_sequence_record_decode(gw_sequence *s, const gw_sequence_limits *limits,
                               const gw_step_view *v, uint32_t row);

#endif
