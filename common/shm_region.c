/* shm_region.c - POSIX shared memory whose pages are there before anybody needs them.
 * Called by the store (creates, and populates while it serves) and by workers (open). Names outlive
 * the process on purpose: a restarted store adopts them; moe_shm_unlink removes them. */
#include "common/shm_region.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/shm_pages.h"

enum { MIN_COLLAPSED_BYTES = 16 << 20 }; /* smaller regions are no reads' destinations */

static const char name_prefix[] = "/pregate-";

static moe_status check_name(const char *name, moe_err *err)
{
    size_t len = strnlen(name, MOE_SHM_NAME_BYTES);
    if (len >= MOE_SHM_NAME_BYTES || strncmp(name, name_prefix, sizeof name_prefix - 1) != 0 ||
        len == sizeof name_prefix - 1 || strchr(name + 1, '/') != NULL) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "shared memory name \"%.*s\": expected %sNAME, at most %d bytes, no "
                        "further slash",
                        MOE_SHM_NAME_BYTES, name, name_prefix, MOE_SHM_NAME_BYTES - 1);
    }
    return MOE_OK;
}

/* Free bytes of the file system behind fd, so that a region that cannot fit is refused before it
 * takes everybody else's memory. Racy by nature: posix_fallocate has the last word. */
static moe_status check_free_space(int fd, const char *name, uint64_t bytes, moe_err *err)
{
    struct statvfs fs = {0};
    if (fstatvfs(fd, &fs) != 0) {
        int code = errno;
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code, "cannot statvfs /dev/shm");
    }
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (fs.f_blocks != 0 && bytes > free_bytes) { /* 0 blocks: tmpfs without a limit */
        return MOE_FAIL(err, MOE_ERR_NO_SPACE,
                        "/dev/shm has %llu MiB free, %s needs %llu MiB: use fewer bytes, remove "
                        "stale /dev/shm/pregate-* or remount it larger (mount -o "
                        "remount,size=...)",
                        (unsigned long long)(free_bytes >> 20), name,
                        (unsigned long long)((bytes + (1u << 20) - 1) >> 20));
    }
    return MOE_OK;
}

static moe_status allocate(int fd, const char *name, uint64_t from, uint64_t to, moe_err *err)
{
    int code = 0;
    do {
        code = posix_fallocate(fd, (off_t)from, (off_t)(to - from));
    } while (code == EINTR);
    if (code != 0) {
        return MOE_FAIL_NATIVE(err, code == ENOSPC ? MOE_ERR_NO_SPACE : MOE_ERR_IO, MOE_LAYER_ERRNO,
                               code, "cannot allocate %llu bytes of /dev/shm for %s",
                               (unsigned long long)(to - from), name);
    }
    return MOE_OK;
}

/* Where a mapping of bytes may go: large ones at a multiple of a huge page, which they need to be
 * mapped by huge pages. NULL: anywhere. MAP_FAILED with errno. */
static char *reserve_addresses(uint64_t bytes)
{
    if (bytes < MOE_HUGE_PAGE_BYTES) {
        return NULL;
    }
    char *all = mmap(NULL, bytes + MOE_HUGE_PAGE_BYTES, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) {
        return all;
    }
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t used = (bytes + page_bytes - 1) / page_bytes * page_bytes;
    uint64_t before = -(uintptr_t)all % MOE_HUGE_PAGE_BYTES;
    if (before > 0) {
        munmap(all, before);
    }
    munmap(all + before + used, bytes + MOE_HUGE_PAGE_BYTES - before - used);
    return all + before;
}

static moe_status map(int fd, const char *name, uint64_t bytes, bool writable, void **out_base,
                      moe_err *err)
{
    int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    char *at = reserve_addresses(bytes);
    void *base = at;
    if (at != MAP_FAILED) {
        base = mmap(at, bytes, protection, MAP_SHARED | (at != NULL ? MAP_FIXED : 0), fd, 0);
    }
    if (base == MAP_FAILED) {
        int code = errno;
        if (at != NULL && at != MAP_FAILED) {
            munmap(at, bytes);
        }
        return MOE_FAIL_NATIVE(err, code == ENOMEM ? MOE_ERR_NO_MEMORY : MOE_ERR_IO,
                               MOE_LAYER_ERRNO, code, "cannot map %llu bytes of %s",
                               (unsigned long long)bytes, name);
    }
    *out_base = base;
    return MOE_OK;
}

static void fill(moe_shm_region *out, const char *name, int fd, void *base, uint64_t bytes,
                 bool writable)
{
    *out = (moe_shm_region){.fd = fd, .base = base, .bytes = bytes, .writable = writable};
    memcpy(out->name, name, strlen(name) + 1);
}

/* The name with a mapping of all its addresses, and nothing behind them yet. */
static moe_status begin(const char *name, uint64_t bytes, uint64_t soon, uint32_t mode,
                        moe_shm_region *out, moe_err *err)
{
    moe_status st = check_name(name, err);
    if (st != MOE_OK) {
        return st;
    }
    if (bytes == 0 || bytes > (uint64_t)INT64_MAX || (mode & ~0660u) != 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "%s: %llu bytes with mode %04o", name,
                        (unsigned long long)bytes, mode);
    }
    void *base = NULL;
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0) {
        int code = errno;
        return MOE_FAIL_NATIVE(err, code == EEXIST ? MOE_ERR_BUSY : MOE_ERR_IO, MOE_LAYER_ERRNO,
                               code, "cannot create shared memory %s", name);
    }
    st = check_free_space(fd, name, soon, err);
    if (st == MOE_OK) {
        st = map(fd, name, bytes, true, &base, err);
    }
    if (st != MOE_OK) {
        close(fd);
        shm_unlink(name);
        return st;
    }
    fill(out, name, fd, base, bytes, true);
    return MOE_OK;
}

/* Past the umask, and only once the content is there. */
static moe_status set_mode(const moe_shm_region *r, uint32_t mode, moe_err *err)
{
    if (fchmod(r->fd, mode) != 0) {
        int code = errno;
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code, "cannot set the mode of %s",
                               r->name);
    }
    return MOE_OK;
}

static moe_status end_or_remove(moe_shm_region *r, moe_status st, moe_shm_region *out)
{
    if (st == MOE_OK) {
        *out = *r;
        return MOE_OK;
    }
    shm_unlink(r->name);
    moe_shm_close(r);
    return st;
}

moe_status moe_shm_create(const char *name, uint64_t bytes, uint32_t mode, moe_shm_region *out,
                          moe_err *err)
{
    moe_shm_region r = MOE_SHM_REGION_NONE;
    moe_status st = begin(name, bytes, bytes, mode, &r, err);
    if (st != MOE_OK) {
        return st;
    }
    st = moe_shm_populate(&r, 0, bytes, err);
    if (st == MOE_OK) {
        st = set_mode(&r, mode, err);
    }
    return end_or_remove(&r, st, out);
}

moe_status moe_shm_reserve(const char *name, uint64_t bytes, uint64_t soon, uint32_t mode,
                           moe_shm_region *out, moe_err *err)
{
    moe_shm_region r = MOE_SHM_REGION_NONE;
    moe_status st = begin(name, bytes, soon, mode, &r, err);
    if (st != MOE_OK) {
        return st;
    }
    if (ftruncate(r.fd, (off_t)bytes) != 0) {
        int code = errno;
        st = MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code, "cannot size %s", name);
    }
    if (st == MOE_OK) {
        st = set_mode(&r, mode, err);
    }
    return end_or_remove(&r, st, out);
}

/* Of [from, to), what may be made of huge pages. While the object is shorter than `to`, not its
 * last page: an object has its full size only once every page is there. */
static moe_status make_huge_pages(moe_shm_region *r, uint64_t from, uint64_t to, moe_err *err)
{
    struct stat info = {0};
    if (fstat(r->fd, &info) != 0) {
        int code = errno;
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code, "cannot stat %s", r->name);
    }
    uint64_t size = (uint64_t)info.st_size;
    uint64_t begin_at = (from + MOE_HUGE_PAGE_BYTES - 1) / MOE_HUGE_PAGE_BYTES;
    uint64_t end_at = (size < to ? to - 1 : to) / MOE_HUGE_PAGE_BYTES;
    if (r->bytes < MIN_COLLAPSED_BYTES || begin_at >= end_at ||
        (size < end_at * MOE_HUGE_PAGE_BYTES &&
         ftruncate(r->fd, (off_t)(end_at * MOE_HUGE_PAGE_BYTES)) != 0)) {
        return MOE_OK; /* ordinary pages do */
    }
    r->huge_bytes += moe_shm_collapse(r->fd, r->base, begin_at, end_at, &r->n_refused);
    return MOE_OK;
}

moe_status moe_shm_populate(moe_shm_region *r, uint64_t from, uint64_t to, moe_err *err)
{
    MOE_ASSERT(r->writable && from < to && to <= r->bytes);
    moe_status st = make_huge_pages(r, from, to, err);
    return st == MOE_OK ? allocate(r->fd, r->name, from, to, err) : st;
}

moe_status moe_shm_release(const moe_shm_region *r, uint64_t from, uint64_t to, moe_err *err)
{
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    from = (from + page_bytes - 1) / page_bytes * page_bytes;
    to = (to + page_bytes - 1) / page_bytes * page_bytes;
    MOE_ASSERT(r->writable);
    if (from < to && fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from,
                               (off_t)(to - from)) != 0) {
        int code = errno;
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code,
                               "cannot give pages of %s back", r->name);
    }
    return MOE_OK;
}

uint64_t moe_shm_allocated(const moe_shm_region *r)
{
    struct stat info = {0};
    return r->fd >= 0 && fstat(r->fd, &info) == 0 ? (uint64_t)info.st_blocks * 512 : 0;
}

static moe_status open_status(int code)
{
    return code == ENOENT ? MOE_ERR_NOT_FOUND : code == EACCES ? MOE_ERR_PERMISSION : MOE_ERR_IO;
}

moe_status moe_shm_open(const char *name, bool writable, moe_shm_region *out, moe_err *err)
{
    moe_status st = check_name(name, err);
    if (st != MOE_OK) {
        return st;
    }
    int fd = shm_open(name, writable ? O_RDWR : O_RDONLY, 0);
    if (fd < 0) {
        int code = errno;
        return MOE_FAIL_NATIVE(err, open_status(code), MOE_LAYER_ERRNO, code,
                               "cannot open shared memory %s", name);
    }
    struct stat info = {0};
    void *base = NULL;
    if (fstat(fd, &info) != 0) {
        int code = errno;
        st = MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code, "cannot stat %s", name);
        goto fail;
    }
    if (info.st_size <= 0) {
        st = MOE_FAIL(err, MOE_ERR_FORMAT, "shared memory %s is empty: its creator died early",
                      name);
        goto fail;
    }
    st = map(fd, name, (uint64_t)info.st_size, writable, &base, err);
    if (st != MOE_OK) {
        goto fail;
    }
    fill(out, name, fd, base, (uint64_t)info.st_size, writable);
    return MOE_OK;
fail:
    close(fd);
    return st;
}

void moe_shm_close(moe_shm_region *r)
{
    if (r->base != NULL) {
        munmap(r->base, r->bytes);
    }
    if (r->fd >= 0) {
        close(r->fd);
    }
    *r = MOE_SHM_REGION_NONE;
}

void moe_shm_unlink(const char *name)
{
    if (check_name(name, NULL) == MOE_OK) { /* never anybody else's object */
        shm_unlink(name);
    }
}

moe_status moe_shm_lock_pages(const moe_shm_region *r, uint64_t from, uint64_t to, moe_err *err)
{
    MOE_ASSERT(from < to && to <= r->bytes);
    if (mlock((const char *)r->base + from, to - from) == 0) {
        return MOE_OK;
    }
    int code = errno;
    struct rlimit limit = {0};
    getrlimit(RLIMIT_MEMLOCK, &limit);
    if (code != EPERM && code != ENOMEM && code != EAGAIN) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code, "cannot lock %s", r->name);
    }
    return MOE_FAIL_NATIVE(
        err, MOE_ERR_PERMISSION, MOE_LAYER_ERRNO, code,
        "cannot lock more than %llu MiB of %s: RLIMIT_MEMLOCK is %llu KiB; raise "
        "it (ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit)",
        (unsigned long long)(from >> 20), r->name, (unsigned long long)(limit.rlim_cur >> 10));
}
