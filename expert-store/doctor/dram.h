/* dram.h - how fast this machine copies memory. Threads: makes and joins its own. */
#ifndef XS_DRAM_H
#define XS_DRAM_H

#include <stdint.h>

#include "common/status.h"

/* Bytes copied (each read once and written once) per second, in 1e9, by n_threads that each copy
 * between two large buffers of their own for that long. */
MOE_MUST_CHECK moe_status xs_dram_measure(uint32_t n_threads, double seconds, double *out_gb_per_s,
                                          moe_err *err);

#endif
