/* prompt_attention_cuda.h - attention of a prompt's rows, several at a time: what
 * krn_cuda_attention does where rows of one sequence lie side by side. Bit for bit the results of
 * one row at a time.
 */
#ifndef KRN_PROMPT_ATTENTION_CUDA_H
#define KRN_PROMPT_ATTENTION_CUDA_H

#include "kernels/backend/backend.h"
#include "kernels/ops/ops_args.h"

/* rows_share_kv, not causal, nothing new to keep; rows of keys are aligned to 16 bytes and the
 * projection, if any, has been made: attention_cuda.cu sees to it. */
MOE_MUST_CHECK moe_status krn_cuda_prompt_attention(krn_stream *s, const krn_attention_args *a,
                                                    moe_err *err);

#endif
