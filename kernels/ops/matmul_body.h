/* matmul_body.h - the body of one build of the inner loop; included by matmul_<build>.c, which says
 *   MATMUL_NAME      the function
 *   LANES            floats of one vector register: 4, 8 or 16
 *   MANY_ROWS, MANY_COLUMNS   the register tile while there are MANY_ROWS rows left
 *   ONE_ROW_COLUMNS           the register tile for a single row
 * Vectors are the compilers' own vector types: + and * act on each lane, nothing is reordered.
 * Tile shapes change how often a weight is loaded, never the order of additions (matmul.h).
 */
#include <string.h>

#include "common/dtype.h"
#include "common/model_shape.h"
#include "kernels/ops/matmul.h"

#define PARTS                                                                                      \
    (KRN_MATMUL_PARTIAL_SUMS / LANES) /* registers that hold one output's partial sums             \
                                       */
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef float four __attribute__((vector_size(16)));
#if LANES > 4
typedef float eight __attribute__((vector_size(32)));
#endif
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

INLINE void load_x(floats *out, const float *p)
{
    memcpy(out, p, sizeof *out);
}

INLINE void load_w(floats *out, const void *w, size_t at, bool is_bf16)
{
    if (is_bf16) {
        halves h;
        memcpy(&h, (const uint16_t *)w + at, sizeof h);
        words u = __builtin_convertvector(h, words) << 16;
        memcpy(out, &u, sizeof *out);
    } else {
        memcpy(out, (const float *)w + at, sizeof *out);
    }
}

/* The last d_in % 16 elements, padded with zeros to a whole step. */
INLINE void load_tail(float *x_tail, const float *x, uint32_t n)
{
    memset(x_tail, 0, KRN_MATMUL_PARTIAL_SUMS * sizeof *x_tail);
    memcpy(x_tail, x, n * sizeof *x);
}

INLINE void load_w_tail(float *w_tail, const void *w, size_t at, uint32_t n, bool is_bf16)
{
    memset(w_tail, 0, KRN_MATMUL_PARTIAL_SUMS * sizeof *w_tail);
    for (uint32_t i = 0; i < n; i++) {
        w_tail[i] =
            is_bf16 ? moe_bf16_to_f32(((const uint16_t *)w)[at + i]) : ((const float *)w)[at + i];
    }
}

/* l += l+8, l += l+4, l += l+2, l += l+1: whole registers first, then halves of one. */
INLINE float reduce(const floats *parts)
{
#if LANES == 4
    four sum = (parts[0] + parts[2]) + (parts[1] + parts[3]);
#else
#if LANES == 8
    eight sums = parts[0] + parts[1];
#else
    eight sums = __builtin_shufflevector(parts[0], parts[0], 0, 1, 2, 3, 4, 5, 6, 7) +
                 __builtin_shufflevector(parts[0], parts[0], 8, 9, 10, 11, 12, 13, 14, 15);
#endif
    four sum = __builtin_shufflevector(sums, sums, 0, 1, 2, 3) +
               __builtin_shufflevector(sums, sums, 4, 5, 6, 7);
#endif
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

INLINE void finish(const krn_matmul_args *a, size_t row, float *y, float sum)
{
    float v = a->scale * sum;
    if (a->act != MOE_ACT_NONE) {
        v = krn_activate(a->act, v);
    }
    if (a->y_weights != NULL) {
        v *= a->y_weights[row];
    }
    *y = a->accumulate ? *y + v : v;
}

INLINE size_t row_at(const krn_matmul_args *a, uint32_t r)
{
    return a->rows != NULL ? (size_t)a->rows[r] : r;
}

/* A register tile: n_r rows from row0, n_c columns from column0. n_r, n_c and is_bf16 are constants
 * to the compiler wherever they are passed, so the arrays below live in registers. */
typedef struct tile {
    const float *x[MANY_ROWS];
    size_t w0; /* element of weight row column0 */
    floats sum[MANY_ROWS][ONE_ROW_COLUMNS][PARTS];
} tile;

INLINE void begin_tile(tile *t, const krn_matmul_args *a, uint32_t row0, uint32_t column0,
                       const uint32_t n_r, const uint32_t n_c)
{
    t->w0 = (size_t)column0 * a->w_stride;
    for (uint32_t r = 0; r < n_r; r++) {
        t->x[r] = a->x + row_at(a, row0 + r) * a->x_stride;
        for (uint32_t c = 0; c < n_c; c++) {
            for (uint32_t p = 0; p < PARTS; p++) {
                t->sum[r][c][p] = (floats){0};
            }
        }
    }
}

/* Inputs i .. i+16, one register's worth at a time. i is 32 bits wide on purpose: with 64, gcc 12
 * keeps a pointer per row and column instead of one index, and f32 tiles run 30 % slower. */
INLINE void add_step(tile *t, const krn_matmul_args *a, uint32_t i, const uint32_t n_r,
                     const uint32_t n_c, const bool is_bf16)
{
    for (size_t p = 0; p < PARTS; p++) {
        floats x[MANY_ROWS];
        for (uint32_t r = 0; r < n_r; r++) {
            load_x(&x[r], t->x[r] + i + p * LANES);
        }
        for (uint32_t c = 0; c < n_c; c++) {
            floats w;
            load_w(&w, a->w, t->w0 + c * a->w_stride + i + p * LANES, is_bf16);
            for (uint32_t r = 0; r < n_r; r++) {
                t->sum[r][c][p] += x[r] * w;
            }
        }
    }
}

/* The last n < 16 inputs from i, padded with zeros. */
INLINE void add_tail(tile *t, const krn_matmul_args *a, size_t i, uint32_t n, const uint32_t n_r,
                     const uint32_t n_c, const bool is_bf16)
{
    float x_tail[KRN_MATMUL_PARTIAL_SUMS], w_tail[KRN_MATMUL_PARTIAL_SUMS];
    for (uint32_t r = 0; r < n_r; r++) {
        load_tail(x_tail, t->x[r] + i, n);
        for (uint32_t c = 0; c < n_c; c++) {
            load_w_tail(w_tail, a->w, t->w0 + c * a->w_stride + i, n, is_bf16);
            for (size_t p = 0; p < PARTS; p++) {
                floats x, w;
                load_x(&x, x_tail + p * LANES);
                load_x(&w, w_tail + p * LANES);
                t->sum[r][c][p] += x * w;
            }
        }
    }
}

INLINE void run_tile(const krn_matmul_args *a, uint32_t row0, uint32_t column0, const uint32_t n_r,
                     const uint32_t n_c, const bool is_bf16)
{
    tile t;
    begin_tile(&t, a, row0, column0, n_r, n_c);
    const uint32_t n_tail = a->d_in % KRN_MATMUL_PARTIAL_SUMS;
    const uint32_t n_whole = a->d_in - n_tail;
    for (uint32_t i = 0; i < n_whole; i += KRN_MATMUL_PARTIAL_SUMS) {
        add_step(&t, a, i, n_r, n_c, is_bf16);
    }
    if (n_tail > 0) {
        add_tail(&t, a, n_whole, n_tail, n_r, n_c, is_bf16);
    }
    for (uint32_t r = 0; r < n_r; r++) {
        const size_t row = row_at(a, row0 + r);
        float *y = a->y + row * a->y_stride + column0;
        for (uint32_t c = 0; c < n_c; c++) {
            finish(a, row, y + c, reduce(t.sum[r][c]));
        }
    }
}

INLINE void tiles(const krn_matmul_args *a, uint32_t begin, uint32_t end, const bool is_bf16)
{
    uint32_t row = 0;
    for (; a->n_rows - row >= MANY_ROWS; row += MANY_ROWS) {
        uint32_t c = begin;
        for (; end - c >= MANY_COLUMNS; c += MANY_COLUMNS) {
            run_tile(a, row, c, MANY_ROWS, MANY_COLUMNS, is_bf16);
        }
        for (; c < end; c++) {
            run_tile(a, row, c, MANY_ROWS, 1, is_bf16);
        }
    }
    for (; row < a->n_rows; row++) {
        uint32_t c = begin;
        for (; end - c >= ONE_ROW_COLUMNS; c += ONE_ROW_COLUMNS) {
            run_tile(a, row, c, 1, ONE_ROW_COLUMNS, is_bf16);
        }
        for (; c < end; c++) {
            run_tile(a, row, c, 1, 1, is_bf16);
        }
    }
}

enum { BLOCK_COLUMNS = 32 }; /* 32 rows of weights are reused by every row while in cache */

void MATMUL_NAME(const krn_matmul_args *a, uint32_t begin, uint32_t end)
{
    for (uint32_t c = begin; c < end;) {
        uint32_t stop = end - c > BLOCK_COLUMNS ? c + BLOCK_COLUMNS : end;
        if (a->w_dtype == MOE_BF16) {
            tiles(a, c, stop, true);
        } else {
            tiles(a, c, stop, false);
        }
        c = stop;
    }
}
