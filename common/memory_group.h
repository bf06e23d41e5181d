/* memory_group.h - what the control group of this process may have of memory, and has left (Linux,
 * versions 1 and 2). Threads: any; no state. */
#ifndef MOE_COMMON_MEMORY_GROUP_H
#define MOE_COMMON_MEMORY_GROUP_H

#include <stdint.h>

typedef struct moe_memory_group {
    uint64_t limit_bytes; /* UINT64_MAX: none */
    uint64_t free_bytes;  /* of it; cached file pages, which make way, count as free */
} moe_memory_group;

/* root: "" for this machine; tests put files of /proc and /sys below a directory of theirs. */
void moe_memory_group_read(const char *root, moe_memory_group *out);

#endif
