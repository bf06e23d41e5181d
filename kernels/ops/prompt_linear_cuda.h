/* prompt_linear_cuda.h - linear with scratch, on tensor cores: what krn_cuda_linear does with a
 * prompt's rows where cuBLASLt was found.
 */
#ifndef KRN_PROMPT_LINEAR_CUDA_H
#define KRN_PROMPT_LINEAR_CUDA_H

#include <stdbool.h>

#include "kernels/backend/backend.h"
#include "kernels/ops/ops_args.h"

/* Whether these are taken; it depends on the shape, never on the number of rows. */
bool krn_cuda_can_prompt_linear(const krn_stream *s, const krn_linear_args *a);
/* The norm, if any, has been applied. */
MOE_MUST_CHECK moe_status krn_cuda_prompt_linear(krn_stream *s, const krn_linear_args *a,
                                                 moe_err *err);

#endif
