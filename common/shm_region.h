/* shm_region.h - named shared memory: create, open, map, unlink. Knows no CUDA.
 *
 * Creation checks the free space of /dev/shm first (statvfs). Pages come by posix_fallocate, all at
 * creation or piece by piece into a reserved region, so that later access can never raise SIGBUS. A
 * region is never truncated or replaced while mapped, and pages are released only where nobody may
 * touch them. A created region has its full size only once every page is there (a creator that dies
 * earlier leaves a shorter one); a reserved one has it from the start, and how far its pages go
 * must be said elsewhere (proto/board.h). Large regions get huge pages where there are any, and are
 * mapped at a multiple of one.
 *
 * Names: "/pregate-..." at most 63 bytes. Mode 0600; 0640 or 0660 where a group of workers reads or
 * writes.
 *
 * Threads: a region belongs to its owner; the mapping may be read by any thread. populate and
 * lock_pages may run on another thread, one at a time, while nobody else changes the region.
 */
#ifndef MOE_COMMON_SHM_REGION_H
#define MOE_COMMON_SHM_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

enum { MOE_SHM_NAME_BYTES = 64 };

typedef struct moe_shm_region {
    char name[MOE_SHM_NAME_BYTES];
    int fd;     /* owned; -1 when closed */
    void *base; /* owned mapping; NULL when unmapped */
    uint64_t bytes;
    uint64_t huge_bytes; /* of these, made of huge pages; known to the creator only, 0 else */
    uint32_t n_refused;  /* huge pages there were none for: after some, no more are asked for */
    bool writable;
} moe_shm_region;

#define MOE_SHM_REGION_NONE ((moe_shm_region){.fd = -1})

/* Fails with MOE_ERR_NO_SPACE naming /dev/shm, what is free and what is asked; MOE_ERR_BUSY if
 * the name exists. The content is zero. */
MOE_MUST_CHECK moe_status moe_shm_create(const char *name, uint64_t bytes, uint32_t mode,
                                         moe_shm_region *out, moe_err *err);
/* The same name, size, mapping and errors, but no pages: nobody may touch what was not populated.
 * soon: of these, the bytes that /dev/shm must have free now. */
MOE_MUST_CHECK moe_status moe_shm_reserve(const char *name, uint64_t bytes, uint64_t soon,
                                          uint32_t mode, moe_shm_region *out, moe_err *err);
/* Pages for [from, to) of a writable region, zero where they are new; multiples of
 * MOE_HUGE_PAGE_BYTES lose no huge page. MOE_ERR_NO_SPACE: some may have come. */
MOE_MUST_CHECK moe_status moe_shm_populate(moe_shm_region *r, uint64_t from, uint64_t to,
                                           moe_err *err);
/* Gives back the pages of [from, to), both rounded up to whole ones; nobody may touch them until
 * they are populated again, and no device or ring may have them registered. */
MOE_MUST_CHECK moe_status moe_shm_release(const moe_shm_region *r, uint64_t from, uint64_t to,
                                          moe_err *err);
uint64_t moe_shm_allocated(const moe_shm_region *r); /* bytes it takes of /dev/shm; 0 if closed */
/* Maps an existing region whole; MOE_ERR_NOT_FOUND if absent. bytes is taken from the object. */
MOE_MUST_CHECK moe_status moe_shm_open(const char *name, bool writable, moe_shm_region *out,
                                       moe_err *err);
/* Unmaps and closes; the name stays. Accepts MOE_SHM_REGION_NONE; idempotent. */
void moe_shm_close(moe_shm_region *r);
/* Removes the name; mappings stay valid. Absent is fine. */
void moe_shm_unlink(const char *name);
/* mlock of [from, to), which brings missing pages in. MOE_ERR_PERMISSION names RLIMIT_MEMLOCK, its
 * value and the remedy. */
MOE_MUST_CHECK moe_status moe_shm_lock_pages(const moe_shm_region *r, uint64_t from, uint64_t to,
                                             moe_err *err);

#endif
