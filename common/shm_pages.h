/* shm_pages.h - puts huge pages behind a new shared-memory object, by several threads at a time.
 *
 * Why: a direct read into 4 KiB pages carries one address per page, and a drive may take half as
 * many bytes a second of those (deploy/bench.md); mappings need fewer TLB entries, and pages are
 * made faster. MADV_COLLAPSE (Linux 6.1) needs neither a mount option nor a privilege.
 * Threads: those pages are the caller's alone until this returns. Signals stay with the caller.
 */
#ifndef MOE_COMMON_SHM_PAGES_H
#define MOE_COMMON_SHM_PAGES_H

#include <stdint.h>

enum { MOE_HUGE_PAGE_BYTES = 2 << 20 }; /* of x86-64, and of arm64 with 4 KiB pages */

/* base: a shared writable mapping of fd from offset 0, aligned to MOE_HUGE_PAGE_BYTES; the object
 * reaches to huge page `end` at least. Makes the huge pages [begin, end) and returns how many bytes
 * of them there are. What lacks them (none free, an older kernel) may have no pages at all: the
 * caller allocates. *refused counts those over all calls for one object: after MAX_FAILURES memory
 * is known to be fragmented, and no more are tried, as each try costs milliseconds. */
uint64_t moe_shm_collapse(int fd, char *base, uint64_t begin, uint64_t end, uint32_t *refused);

#endif
