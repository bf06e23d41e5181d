/* ops_cpu.h - the operations of the `cpu` backend: plain loops, the definition of correct.
 *
 * Each function checks its arguments and enqueues; the loops run on the stream's thread, shared out
 * over the device's team where that pays. Contracts: ops_args.h.
 */
#ifndef KRN_OPS_CPU_H
#define KRN_OPS_CPU_H

#include "kernels/backend/backend.h"
#include "kernels/ops/ops_args.h"

moe_status krn_cpu_embed(krn_stream *s, const krn_embed_args *a, moe_err *err);
moe_status krn_cpu_rms_norm(krn_stream *s, const krn_rms_norm_args *a, moe_err *err);
moe_status krn_cpu_linear(krn_stream *s, const krn_linear_args *a, moe_err *err);
moe_status krn_cpu_kv_store(krn_stream *s, const krn_kv_store_args *a, moe_err *err);
moe_status krn_cpu_attention(krn_stream *s, const krn_attention_args *a, moe_err *err);
moe_status krn_cpu_gate_topk(krn_stream *s, const krn_gate_topk_args *a, moe_err *err);
moe_status krn_cpu_dispatch(krn_stream *s, const krn_dispatch_args *a, moe_err *err);
moe_status krn_cpu_publish(krn_stream *s, const krn_publish_args *a, moe_err *err);
moe_status krn_cpu_route(krn_stream *s, const krn_route_args *a, moe_err *err);
moe_status krn_cpu_expert_ffn(krn_stream *s, const krn_expert_ffn_args *a, moe_err *err);
moe_status krn_cpu_argmax(krn_stream *s, const krn_argmax_args *a, moe_err *err);

#endif
