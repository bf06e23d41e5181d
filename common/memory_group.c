/* memory_group.c - see memory_group.h. Documentation: cgroups(7), the kernel's cgroup-v2.rst. */
#include "common/memory_group.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"

typedef struct version {
    const char *middle; /* of the group's line in /proc/self/cgroup: "N:controllers:" */
    const char *mount, *limit, *used, *inactive;
} version;

static const version versions[] = {
    {"::", "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "},
    {":memory:", "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
     "total_inactive_file "}};

/* The path in the line of /proc/self/cgroup with that middle. */
static bool group_path(const char *groups, const char *middle, char *out, size_t out_bytes)
{
    for (const char *line = groups; *line != '\0';) {
        const char *first = strchr(line, ':');
        size_t length = strcspn(line, "\n");
        if (first != NULL && first < line + length && strncmp(first, middle, strlen(middle)) == 0) {
            const char *path = first + strlen(middle);
            snprintf(out, out_bytes, "%.*s", (int)(line + length - path), path);
            return true;
        }
        line += length + (line[length] == '\n');
    }
    return false;
}

/* A number; "max", or one near 2^63 in version 1, says none. */
static uint64_t read_number(const char *dir, const char *file)
{
    char path[600], text[64];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    if (!moe_read_pseudo_file(path, text, sizeof text) || strncmp(text, "max", 3) == 0) {
        return UINT64_MAX;
    }
    uint64_t v = strtoull(text, NULL, 10);
    return v >= 1ull << 62 ? UINT64_MAX : v;
}

static uint64_t read_inactive(const char *dir, const char *key)
{
    char path[600], text[8192];
    snprintf(path, sizeof path, "%s/memory.stat", dir);
    const char *at = moe_read_pseudo_file(path, text, sizeof text) ? strstr(text, key) : NULL;
    return at != NULL ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static void take_group(const version *v, const char *dir, moe_memory_group *out)
{
    uint64_t limit = read_number(dir, v->limit);
    if (limit == UINT64_MAX) {
        return;
    }
    uint64_t used = read_number(dir, v->used);
    uint64_t inactive = read_inactive(dir, v->inactive);
    used = used == UINT64_MAX || used < inactive ? 0 : used - inactive;
    uint64_t left = used < limit ? limit - used : 0;
    out->limit_bytes = limit < out->limit_bytes ? limit : out->limit_bytes;
    out->free_bytes = left < out->free_bytes ? left : out->free_bytes;
}

/* Inside a container the group is often mounted as the root, so both places are asked. */
void moe_memory_group_read(const char *root, moe_memory_group *out)
{
    char path[400], groups[4096], group[256];
    *out = (moe_memory_group){.limit_bytes = UINT64_MAX, .free_bytes = UINT64_MAX};
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    (void)moe_read_pseudo_file(path, groups, sizeof groups);
    for (size_t i = 0; i < sizeof versions / sizeof versions[0]; i++) {
        const version *v = &versions[i];
        if (group_path(groups, v->middle, group, sizeof group) && strcmp(group, "/") != 0) {
            snprintf(path, sizeof path, "%s%s%s", root, v->mount, group);
            take_group(v, path, out);
        }
        snprintf(path, sizeof path, "%s%s", root, v->mount);
        take_group(v, path, out);
    }
}
