/* ops_check.h - validates the arguments of each operation; every backend calls these first.
 * MOE_ERR_INVALID names the dim or pointer. n_rows == 0 is valid: the operation does nothing.
 * Threads: no state. */
#ifndef KRN_OPS_CHECK_H
#define KRN_OPS_CHECK_H

#include "common/status.h"
#include "kernels/ops/ops_args.h"

MOE_MUST_CHECK moe_status krn_embed_check(const krn_embed_args *a, moe_err *err);
MOE_MUST_CHECK moe_status krn_rms_norm_check(const krn_rms_norm_args *a, moe_err *err);
MOE_MUST_CHECK moe_status krn_linear_check(const krn_linear_args *a, moe_err *err);
MOE_MUST_CHECK moe_status krn_kv_store_check(const krn_kv_store_args *a, moe_err *err);
MOE_MUST_CHECK moe_status krn_attention_check(const krn_attention_args *a, moe_err *err);
MOE_MUST_CHECK moe_status krn_gate_topk_check(const krn_gate_topk_args *a, moe_err *err);
MOE_MUST_CHECK moe_status krn_dispatch_check(const krn_dispatch_args *a, moe_err *err);
MOE_MUST_CHECK moe_status krn_publish_check(const krn_publish_args *a, moe_err *err);
MOE_MUST_CHECK moe_status krn_route_check(const krn_route_args *a, moe_err *err);
MOE_MUST_CHECK moe_status krn_expert_ffn_check(const krn_expert_ffn_args *a, moe_err *err);
MOE_MUST_CHECK moe_status krn_argmax_check(const krn_argmax_args *a, moe_err *err);

#endif
