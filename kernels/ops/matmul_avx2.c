/* matmul_avx2.c - the inner loop in 256-bit vectors (16 registers). See matmul_body.h. */
#define MATMUL_NAME krn_matmul_avx2
#define LANES 8
#define MANY_ROWS 2
#define MANY_COLUMNS 2
#define ONE_ROW_COLUMNS 4
#include "kernels/ops/matmul_body.h"
