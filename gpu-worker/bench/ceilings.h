/* ceilings.h - what the machine could do at best, measured in the run that is compared with it.
 *
 *   link    blocks of one expert's size, queued one behind the other on a copy stream of their own,
 *           from host memory the backend can copy from directly: bytes / time between two events
 *   memory  the better of two: a copy from device memory to device memory (bytes read + bytes
 *           written), and a product of one row with a large matrix (bytes of the matrix). On
 *           `cpu` the product alone: there every copy passes the imagined link
 * Median of several rounds. Rates in 1e9 bytes/s.
 * Users: `bench` and `plan --measure`. Threads: the caller's, with no step under way. Allocates and
 * frees all it uses; needs about 520 MiB of device memory on `cuda`.
 */
#ifndef GW_CEILINGS_H
#define GW_CEILINGS_H

#include <stdint.h>

#include "kernels/ops.h"

typedef struct gw_ceilings {
    double link_gbps;   /* host memory -> device memory */
    double memory_gbps; /* device memory */
} gw_ceilings;

/* src: [n_blocks][stride_bytes] registered or mapped host memory, borrowed, only read; NULL: mapped
 * memory is allocated for it. block_bytes <= stride_bytes; n_blocks > 0. */
typedef struct gw_link_source {
    const void *src;
    uint64_t stride_bytes, block_bytes;
    uint32_t n_blocks;
} gw_link_source;

MOE_MUST_CHECK moe_status gw_ceilings_measure(const krn_ops *ops, krn_device *device,
                                              const gw_link_source *link, gw_ceilings *out,
                                              moe_err *err);

#endif
