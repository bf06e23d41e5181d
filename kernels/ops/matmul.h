/* matmul.h - the one inner loop of the `cpu` backend: rows times the rows of a weight matrix.
 *
 * Order of additions of one output, on every processor, compiler and for every number of rows:
 * partial sum l (0 <= l < 16) takes the products i = l, l+16, l+32, ... rising, each product
 * rounded before it is added; then l += l+8, l += l+4, l += l+2, l += l+1. Hence bit-equal results
 * however rows are grouped, and however wide the processor's vectors are. Three builds of
 * matmul_body.h (128, 256 and 512-bit vectors); krn_matmul picks at run time. Threads: no state.
 */
#ifndef KRN_MATMUL_H
#define KRN_MATMUL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/backend/team.h"

enum { KRN_MATMUL_PARTIAL_SUMS = 16 };

/* y[r,o] = act(scale * sum_i x[r,i] * w[o,i]) (* y_weights[r]) (+ y[r,o] if accumulate)
 * Row r is row r of x, y and y_weights, or with `rows` row rows[r] of them. */
typedef struct krn_matmul_args {
    uint32_t n_rows, d_in, w_dtype, act;
    float scale;
    bool accumulate;
    const int32_t *rows;    /* [n_rows] or NULL */
    const float *y_weights; /* NULL: none */
    const float *x;
    const void *w;
    float *y;
    size_t x_stride, w_stride, y_stride; /* elements between rows; w_stride >= d_in */
} krn_matmul_args;

/* Output columns [begin, end) of all rows. */
void krn_matmul(const krn_matmul_args *a, uint32_t begin, uint32_t end);
/* All d_out columns, shared out over the team when there is enough work. */
void krn_matmul_team(const krn_matmul_args *a, uint32_t d_out, krn_team *team);
/* Columns that make a piece of work worth handing to another thread. */
uint32_t krn_matmul_grain(uint32_t n_rows, uint32_t d_in);
/* sum_i x[i] * w[i] in the order above. */
float krn_dot_f32(const float *x, const float *w, uint32_t n);

float krn_activate(uint32_t act, float v); /* moe_act */

/* The builds; called through krn_matmul only. */
void krn_matmul_base(const krn_matmul_args *a, uint32_t begin, uint32_t end);
void krn_matmul_avx2(const krn_matmul_args *a, uint32_t begin, uint32_t end);
void krn_matmul_avx512(const krn_matmul_args *a, uint32_t begin, uint32_t end);

#endif
