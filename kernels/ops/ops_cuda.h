/* ops_cuda.h - the operations of the `cuda` backend: launchers. Contracts: ops_args.h.
 *
 * A launcher checks its arguments, makes the stream's device current, launches and asks for the
 * launch's own error. It never allocates or synchronises. Errors of the kernel itself appear at the
 * next synchronisation or event query.
 */
#ifndef KRN_OPS_CUDA_H
#define KRN_OPS_CUDA_H

#include "kernels/backend/backend.h"
#include "kernels/ops/ops_args.h"

#ifdef __cplusplus
extern "C" {
#endif

moe_status krn_cuda_embed(krn_stream *s, const krn_embed_args *a, moe_err *err);
moe_status krn_cuda_rms_norm(krn_stream *s, const krn_rms_norm_args *a, moe_err *err);
moe_status krn_cuda_linear(krn_stream *s, const krn_linear_args *a, moe_err *err);
moe_status krn_cuda_kv_store(krn_stream *s, const krn_kv_store_args *a, moe_err *err);
moe_status krn_cuda_attention(krn_stream *s, const krn_attention_args *a, moe_err *err);
moe_status krn_cuda_gate_topk(krn_stream *s, const krn_gate_topk_args *a, moe_err *err);
moe_status krn_cuda_dispatch(krn_stream *s, const krn_dispatch_args *a, moe_err *err);
moe_status krn_cuda_publish(krn_stream *s, const krn_publish_args *a, moe_err *err);
moe_status krn_cuda_route(krn_stream *s, const krn_route_args *a, moe_err *err);
moe_status krn_cuda_expert_ffn(krn_stream *s, const krn_expert_ffn_args *a, moe_err *err);
moe_status krn_cuda_argmax(krn_stream *s, const krn_argmax_args *a, moe_err *err);

#ifdef __cplusplus
}
#endif

#endif
