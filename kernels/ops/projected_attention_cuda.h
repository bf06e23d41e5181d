/* projected_attention_cuda.h - attention with its projection in front, in one kernel: what
 * krn_cuda_attention does with few rows. Bit for bit the results of linear and attention.
 */
#ifndef KRN_PROJECTED_ATTENTION_CUDA_H
#define KRN_PROJECTED_ATTENTION_CUDA_H

#include <stdbool.h>

#include "kernels/backend/backend.h"
#include "kernels/ops/ops_args.h"

/* Whether the kernel takes these; a->project is not NULL, and checked. */
bool krn_cuda_can_project(const krn_stream *s, const krn_attention_args *a);
MOE_MUST_CHECK moe_status krn_cuda_projected_attention(krn_stream *s, const krn_attention_args *a,
                                                       moe_err *err);

#endif
