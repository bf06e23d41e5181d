/* machine.c - see machine.h. */
#include "expert-store/server/machine.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

/* Files of /proc have no size; one read gives what is needed of them. */
static bool read_proc(const char *path, char *out, size_t out_bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, out, out_bytes - 1) : -1;
    if (fd >= 0) {
        close(fd);
    }
    out[n > 0 ? n : 0] = '\0';
    return n > 0;
}

uint64_t xs_total_ram(void)
{
    struct sysinfo info = {0};
    return sysinfo(&info) == 0 ? (uint64_t)info.totalram * info.mem_unit : UINT64_MAX;
}

uint64_t xs_available_ram(void)
{
    static const char key[] = "MemAvailable:";
    char text[4096];
    const char *at = read_proc("/proc/meminfo", text, sizeof text) ? strstr(text, key) : NULL;
    return at != NULL ? strtoull(at + sizeof key - 1, NULL, 10) << 10 : UINT64_MAX;
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
        read_proc("/proc/self/statm", text, sizeof text) ? strchr(text, ' ') : NULL;
    uint64_t pages = second != NULL ? strtoull(second, NULL, 10) : 0;
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}
