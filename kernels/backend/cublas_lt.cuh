/* cublas_lt.cuh - matrix products on tensor cores by cuBLASLt, with one order of additions per
 * shape.
 *
 * The library is found at run time: programs start without it, on the CPU too, and where it is
 * missing the caller has products of its own. Searched: what the program's rpath and the loader
 * know, then /usr/local/cuda/lib64. One algorithm is chosen per (d_in, d_out), for REFERENCE_ROWS
 * rows and without workspace, split-K or reduction between blocks, and taken for every number of
 * rows: an output's bits then depend on its own row alone (tested: tests/kernels/test_ops.c).
 * Threads: any; calls lock. Shutdown: close after the streams that it was used on.
 */
#ifndef KRN_CUBLAS_LT_CUH
#define KRN_CUBLAS_LT_CUH

#include "kernels/backend/cuda_common.cuh"

typedef struct krn_cublas_lt krn_cublas_lt;

/* MOE_ERR_UNSUPPORTED: not found, or without what is needed; the text says what was tried. */
MOE_MUST_CHECK moe_status krn_cublas_lt_open(krn_cublas_lt **out, moe_err *err);
void krn_cublas_lt_close(krn_cublas_lt *c);             /* accepts NULL */
uint32_t krn_cublas_lt_version(const krn_cublas_lt *c); /* 130100: 13.1.0 */

/* y = x w^T, f32 sums.  x: [n_rows, d_in] bf16; w: [d_out, d_in] bf16; y: [n_rows, d_out] f32; all
 * dense and 16-byte aligned, d_in a multiple of 8, d_out of 4. The first call of a (d_in, d_out)
 * chooses: milliseconds, and it may load a kernel. */
typedef struct krn_product {
    uint32_t n_rows, d_in, d_out;
    const void *x, *w;
    float *y;
} krn_product;
MOE_MUST_CHECK moe_status krn_cublas_lt_multiply(krn_cublas_lt *c, cudaStream_t stream,
                                                 const krn_product *p, moe_err *err);

#endif
