/* matmul_avx512.c - the inner loop in 512-bit vectors (32 registers). See matmul_body.h. */
#define MATMUL_NAME krn_matmul_avx512
#define LANES 16
#define MANY_ROWS 4
#define MANY_COLUMNS 4
#define ONE_ROW_COLUMNS 8
#include "kernels/ops/matmul_body.h"
