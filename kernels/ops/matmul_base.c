/* matmul_base.c - the inner loop in 128-bit vectors, any processor (16 registers). See
 * matmul_body.h. */
#define MATMUL_NAME krn_matmul_base
#define LANES 4
#define MANY_ROWS 2
#define MANY_COLUMNS 1
#define ONE_ROW_COLUMNS 2
#include "kernels/ops/matmul_body.h"
