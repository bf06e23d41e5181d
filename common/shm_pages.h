/* shm_pages.h - puts huge pages behind a new shared-memory object, by several threads at a time.
 *
 * Why: a direct read into 4 KiB pages carries one address per page, and a drive may take half as
 * many bytes a second of those (deploy/bench.md); mappings need fewer TLB entries, and pages are
 * made faster. MADV_COLLAPSE (Linux 6.1) needs neither a mount option nor a privilege.
 * Threads: the object is the caller's alone until this returns. Signals stay with the caller.
 */
#ifndef MOE_COMMON_SHM_PAGES_H
#define MOE_COMMON_SHM_PAGES_H

#include <stdint.h>

enum { MOE_HUGE_PAGE_BYTES = 2 << 20 }; /* of x86-64, and of arm64 with 4 KiB pages */

/* base: a shared writable mapping of fd from offset 0, [bytes], aligned to MOE_HUGE_PAGE_BYTES, as
 * bytes is. Grows the empty object to bytes and returns how many of them have huge pages. What
 * lacks them (none free, an older kernel) may have no pages at all: the caller allocates. */
uint64_t moe_shm_collapse(int fd, char *base, uint64_t bytes);

#endif
