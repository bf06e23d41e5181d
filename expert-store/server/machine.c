/* machine.c - see machine.h. */
#include "expert-store/server/machine.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "common/file.h"
#include "common/memory_group.h"

uint64_t xs_total_ram(void)
{
    struct sysinfo info = {0};
    return sysinfo(&info) == 0 ? (uint64_t)info.totalram * info.mem_unit : UINT64_MAX;
}

uint64_t xs_available_ram(void)
{
    static const char key[] = "MemAvailable:";
    char text[4096];
    const char *at =
        moe_read_pseudo_file("/proc/meminfo", text, sizeof text) ? strstr(text, key) : NULL;
    uint64_t available = at != NULL ? strtoull(at + sizeof key - 1, NULL, 10) << 10 : UINT64_MAX;
    moe_memory_group group;
    moe_memory_group_read("", &group);
    return available < group.free_bytes ? available : group.free_bytes;
}

uint64_t xs_free_shm(void)
{
    struct statvfs fs = {0};
    if (statvfs("/dev/shm", &fs) != 0 || fs.f_blocks == 0) {
        return UINT64_MAX;
    }
    return (uint64_t)fs.f_bavail * fs.f_frsize;
}

uint64_t xs_resident_bytes(void)
{
    char text[256];
    const char *second =
        moe_read_pseudo_file("/proc/self/statm", text, sizeof text) ? strchr(text, ' ') : NULL;
    uint64_t pages = second != NULL ? strtoull(second, NULL, 10) : 0;
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}
