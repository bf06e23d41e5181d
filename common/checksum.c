/* checksum.c - the only file that includes xxHash, compiled in so that no library is linked.
 * Called by the packer and by the store's verification, on any thread; no state. */
#include "common/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t moe_xxh3(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}
