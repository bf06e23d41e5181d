/* store_dir.c - see store_dir.h. Called by pack.c on expert-pack's main thread; no state. */
#include "expert-store/pack/store_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "expert-store/catalog/catalog.h"

enum { PATH_BYTES = 1400 };

static moe_status fail_errno(moe_err *err, const char *what, const char *path)
{
    int e = errno;
    moe_status st = e == ENOSPC || e == EDQUOT                ? MOE_ERR_NO_SPACE
                    : e == EACCES || e == EPERM || e == EROFS ? MOE_ERR_PERMISSION
                    : e == ENOENT                             ? MOE_ERR_NOT_FOUND
                                                              : MOE_ERR_IO;
    return MOE_FAIL_NATIVE(err, st, MOE_LAYER_ERRNO, e, "cannot %s %s", what, path);
}

static void join(const char *dir, const char *name, char out[PATH_BYTES])
{
    snprintf(out, PATH_BYTES, "%s/%s", dir, name);
}

moe_status xs_store_dir_make(const char *path, moe_err *err)
{
    char segments[PATH_BYTES];
    join(path, "segments", segments);
    if (mkdir(path, 0777) != 0 && errno != EEXIST) {
        return fail_errno(err, "create", path);
    }
    if (mkdir(segments, 0777) != 0 && errno != EEXIST) {
        return fail_errno(err, "create", segments);
    }
    return MOE_OK;
}

bool xs_store_dir_is_store(const char *path)
{
    char data[PATH_BYTES];
    join(path, "catalog/data.mdb", data);
    return access(data, F_OK) == 0;
}

static bool is_ours(const char *name)
{
    size_t n = strlen(name);
    return strcmp(name, "data.mdb") == 0 || strcmp(name, "lock.mdb") == 0 ||
           strcmp(name, "data.xxh3") == 0 || (n > 4 && strcmp(name + n - 4, ".seg") == 0);
}

/* Removes our files in dir and dir itself. */
static moe_status remove_flat(const char *dir, moe_err *err)
{
    DIR *d = opendir(dir);
    if (d == NULL) {
        return errno == ENOENT ? MOE_OK : fail_errno(err, "open", dir);
    }
    moe_status st = MOE_OK;
    for (struct dirent *e = readdir(d); e != NULL && st == MOE_OK; e = readdir(d)) {
        if (is_ours(e->d_name) && unlinkat(dirfd(d), e->d_name, 0) != 0) {
            st = fail_errno(err, "remove files in", dir);
        }
    }
    closedir(d);
    if (st == MOE_OK && rmdir(dir) != 0) {
        st = fail_errno(err, "remove", dir);
    }
    return st;
}

moe_status xs_store_dir_remove(const char *path, moe_err *err)
{
    char sub[PATH_BYTES];
    join(path, "segments", sub);
    moe_status st = remove_flat(sub, err);
    join(path, "catalog", sub);
    st = st != MOE_OK ? st : remove_flat(sub, err);
    join(path, "add.partial/catalog", sub); /* of a killed run of add.c */
    st = st != MOE_OK ? st : remove_flat(sub, err);
    join(path, "add.partial", sub);
    st = st != MOE_OK ? st : remove_flat(sub, err);
    if (st == MOE_OK && rmdir(path) != 0 && errno != ENOENT) {
        st = fail_errno(err, "remove", path);
    }
    return st;
}

static moe_status sync_dir(const char *path, moe_err *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return fail_errno(err, "open", path);
    }
    moe_status st = fsync(fd) == 0 ? MOE_OK : fail_errno(err, "sync", path);
    close(fd);
    return st;
}

static void parent_of(const char *path, char out[PATH_BYTES])
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL) {
        snprintf(out, PATH_BYTES, ".");
    } else {
        snprintf(out, PATH_BYTES, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    }
}

/* Swaps the two where the filesystem can; elsewhere the old store steps aside for a moment. */
static moe_status swap_dirs(const char *path, const char *target, moe_err *err)
{
    if (renameat2(AT_FDCWD, path, AT_FDCWD, target, RENAME_EXCHANGE) == 0) {
        return MOE_OK;
    }
    if (errno != EINVAL && errno != ENOSYS) {
        return fail_errno(err, "replace", target);
    }
    char aside[PATH_BYTES];
    snprintf(aside, sizeof aside, "%s.old", target);
    if (rename(target, aside) != 0) {
        return fail_errno(err, "move aside", target);
    }
    if (rename(path, target) != 0) {
        moe_status st = fail_errno(err, "rename to", target);
        (void)rename(aside, target);
        return st;
    }
    return rename(aside, path) == 0 ? MOE_OK : fail_errno(err, "rename", aside);
}

moe_status xs_store_dir_publish(const char *path, const char *target, bool replace,
                                bool *out_replaced, moe_err *err)
{
    char sub[PATH_BYTES];
    join(path, "segments", sub);
    moe_status st = sync_dir(sub, err);
    join(path, "catalog", sub);
    st = st != MOE_OK ? st : sync_dir(sub, err);
    st = st != MOE_OK ? st : sync_dir(path, err);
    if (st != MOE_OK) {
        return st;
    }
    bool replaced = false;
    if (renameat2(AT_FDCWD, path, AT_FDCWD, target, RENAME_NOREPLACE) != 0) {
        bool unsupported = errno == EINVAL || errno == ENOSYS;
        if (errno != EEXIST && !unsupported) {
            return fail_errno(err, "rename to", target);
        }
        if (errno == EEXIST && !replace) {
            return fail_errno(err, "rename to", target);
        }
        replaced = xs_store_dir_is_store(target);
        st = replaced ? swap_dirs(path, target, err)
                      : (rename(path, target) == 0 ? MOE_OK : fail_errno(err, "rename to", target));
    }
    if (st != MOE_OK) {
        return st;
    }
    *out_replaced = replaced;
    parent_of(target, sub);
    return sync_dir(sub, err);
}

uint64_t xs_store_dir_allocated(const char *path)
{
    char segments[PATH_BYTES];
    join(path, "segments", segments);
    DIR *d = opendir(segments);
    uint64_t bytes = 0;
    for (struct dirent *e = d != NULL ? readdir(d) : NULL; e != NULL; e = readdir(d)) {
        struct stat sb;
        if (is_ours(e->d_name) && fstatat(dirfd(d), e->d_name, &sb, AT_SYMLINK_NOFOLLOW) == 0) {
            bytes += (uint64_t)sb.st_blocks * 512;
        }
    }
    if (d != NULL) {
        closedir(d);
    }
    return bytes;
}

moe_status xs_store_dir_free_bytes(const char *path, uint64_t *out, moe_err *err)
{
    struct statvfs vfs;
    if (statvfs(path, &vfs) != 0) {
        return fail_errno(err, "ask for the free space of", path);
    }
    *out = (uint64_t)vfs.f_bavail * vfs.f_frsize;
    return MOE_OK;
}

moe_status xs_store_dir_align(const char *path, uint64_t *out, moe_err *err)
{
    uint64_t align = XS_EXTENT_ALIGN;
#ifdef STATX_DIOALIGN
    char file[PATH_BYTES];
    xs_segment_path(path, 0, file, sizeof file);
    int fd = open(file, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) {
        return fail_errno(err, "create", file);
    }
    struct statx sx;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 &&
        (sx.stx_mask & STATX_DIOALIGN) != 0) {
        align = sx.stx_dio_offset_align > align ? sx.stx_dio_offset_align : align;
        align = sx.stx_dio_mem_align > align ? sx.stx_dio_mem_align : align;
    }
    close(fd);
#else
    (void)path;
    (void)err;
#endif
    *out = align;
    return MOE_OK;
}
