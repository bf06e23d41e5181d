/* checksum.h - [xxHash] XXH3-64 of extent chunks. One chunk = MOE_CHUNK_BYTES of payload, the last
 * shorter; verification of an extent can run chunk by chunk beside the read. Threads: no state. */
#ifndef MOE_COMMON_CHECKSUM_H
#define MOE_COMMON_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

#define MOE_CHUNK_BYTES (1u << 20)

uint64_t moe_xxh3(const void *data, size_t bytes);
static inline uint32_t moe_n_chunks(uint64_t payload_bytes)
{
    return (uint32_t)((payload_bytes + MOE_CHUNK_BYTES - 1) / MOE_CHUNK_BYTES);
}

#endif
