/* ops.h - the backend table: every operation and every backend, in one place.
 *
 * ops.c is the only file that asks whether CUDA was built in. Asking for "cuda" gives
 * MOE_ERR_UNSUPPORTED when it is not built in and MOE_ERR_DEVICE when no device answers.
 * How to add an operation: kernels/README.md.
 */
#ifndef KRN_OPS_H
#define KRN_OPS_H

#include "kernels/backend/backend.h"
#include "kernels/ops/ops_args.h"

typedef struct krn_ops {
    const char *name; /* "cpu", "cuda" */
    krn_backend_fns backend;
    MOE_MUST_CHECK moe_status (*embed)(krn_stream *, const krn_embed_args *, moe_err *);
    MOE_MUST_CHECK moe_status (*rms_norm)(krn_stream *, const krn_rms_norm_args *, moe_err *);
    MOE_MUST_CHECK moe_status (*linear)(krn_stream *, const krn_linear_args *, moe_err *);
    MOE_MUST_CHECK moe_status (*kv_store)(krn_stream *, const krn_kv_store_args *, moe_err *);
    MOE_MUST_CHECK moe_status (*attention)(krn_stream *, const krn_attention_args *, moe_err *);
    MOE_MUST_CHECK moe_status (*gate_topk)(krn_stream *, const krn_gate_topk_args *, moe_err *);
    MOE_MUST_CHECK moe_status (*dispatch)(krn_stream *, const krn_dispatch_args *, moe_err *);
    MOE_MUST_CHECK moe_status (*publish)(krn_stream *, const krn_publish_args *, moe_err *);
    MOE_MUST_CHECK moe_status (*route)(krn_stream *, const krn_route_args *, moe_err *);
    MOE_MUST_CHECK moe_status (*expert_ffn)(krn_stream *, const krn_expert_ffn_args *, moe_err *);
    MOE_MUST_CHECK moe_status (*argmax)(krn_stream *, const krn_argmax_args *, moe_err *);
} krn_ops;

/* name: "cpu", "cuda" or "auto" (cuda when built in and a device answers, else cpu; the reason is
 * put into out_note, which may be NULL, for the one log line that says so). */
MOE_MUST_CHECK moe_status krn_ops_find(const char *name, const krn_ops **out, char *out_note,
                                       uint32_t out_note_bytes, moe_err *err);

#endif
