/* file.c - reads and writes that are complete or an error; the one place for EINTR and short
 * transfers of plain files. Called by the packer and at start, on any thread; no state. */
#include "common/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static moe_status status_of_errno(int code)
{
    switch (code) {
    case ENOENT:
    case ENOTDIR:
        return MOE_ERR_NOT_FOUND;
    case EACCES:
    case EPERM:
        return MOE_ERR_PERMISSION;
    case ENOSPC:
    case EDQUOT:
        return MOE_ERR_NO_SPACE;
    case ENOMEM:
        return MOE_ERR_NO_MEMORY;
    default:
        return MOE_ERR_IO;
    }
}

static bool offset_fits(uint64_t off, size_t bytes)
{
    return off <= (uint64_t)INT64_MAX && bytes <= (uint64_t)INT64_MAX - off;
}

/* The kernel moves at most about 2 GiB a call; ask for less than that. */
static size_t one_transfer(size_t left)
{
    return left < (1u << 30) ? left : (1u << 30);
}

moe_status moe_pread_exact(int fd, void *buf, size_t bytes, uint64_t off, const char *what,
                           moe_err *err)
{
    if (!offset_fits(off, bytes)) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "read of %s at offset %llu", what,
                        (unsigned long long)off);
    }
    char *at = buf;
    size_t done = 0;
    while (done < bytes) {
        ssize_t n = pread(fd, at + done, one_transfer(bytes - done), (off_t)(off + done));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            int code = errno;
            return MOE_FAIL_NATIVE(err, status_of_errno(code), MOE_LAYER_ERRNO, code,
                                   "cannot read %s at offset %llu", what,
                                   (unsigned long long)(off + done));
        }
        if (n == 0) {
            return MOE_FAIL(err, MOE_ERR_IO,
                            "%s: unexpected end of file at %llu, %zu more bytes expected", what,
                            (unsigned long long)(off + done), bytes - done);
        }
        done += (size_t)n;
    }
    return MOE_OK;
}

moe_status moe_pwrite_exact(int fd, const void *buf, size_t bytes, uint64_t off, const char *what,
                            moe_err *err)
{
    if (!offset_fits(off, bytes)) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "write of %s at offset %llu", what,
                        (unsigned long long)off);
    }
    const char *at = buf;
    size_t done = 0;
    while (done < bytes) {
        ssize_t n = pwrite(fd, at + done, one_transfer(bytes - done), (off_t)(off + done));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            int code = n < 0 ? errno : EIO;
            return MOE_FAIL_NATIVE(err, status_of_errno(code), MOE_LAYER_ERRNO, code,
                                   "cannot write %s at offset %llu", what,
                                   (unsigned long long)(off + done));
        }
        done += (size_t)n;
    }
    return MOE_OK;
}

/* Size of an open regular file within the limit. */
static moe_status checked_size(int fd, const char *path, uint64_t max_bytes, size_t *out_bytes,
                               moe_err *err)
{
    struct stat info = {0};
    if (fstat(fd, &info) != 0) {
        int code = errno;
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code, "cannot stat %s", path);
    }
    if (!S_ISREG(info.st_mode)) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "%s is not a regular file", path);
    }
    if ((uint64_t)info.st_size > max_bytes) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "%s has %llu bytes, at most %llu are accepted", path,
                        (unsigned long long)info.st_size, (unsigned long long)max_bytes);
    }
    *out_bytes = (size_t)info.st_size;
    return MOE_OK;
}

moe_status moe_file_read(const char *path, uint64_t max_bytes, char **out_data, size_t *out_bytes,
                         moe_err *err)
{
    char *data = NULL;
    size_t bytes = 0;
    /* O_NONBLOCK: opening a FIFO by mistake must not hang; it changes nothing for files. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        int code = errno;
        return MOE_FAIL_NATIVE(err, status_of_errno(code), MOE_LAYER_ERRNO, code, "cannot open %s",
                               path);
    }
    moe_status st = checked_size(fd, path, max_bytes, &bytes, err);
    if (st != MOE_OK) {
        goto out;
    }
    data = malloc(bytes + 1);
    if (data == NULL) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%zu bytes for %s", bytes, path);
        goto out;
    }
    st = moe_pread_exact(fd, data, bytes, 0, path, err);
    if (st != MOE_OK) {
        goto out;
    }
    data[bytes] = '\0';
    *out_data = data;
    *out_bytes = bytes;
    data = NULL;
out:
    free(data);
    close(fd);
    return st;
}

bool moe_read_pseudo_file(const char *path, char *out, size_t out_bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, out, out_bytes - 1) : -1;
    if (fd >= 0) {
        close(fd);
    }
    out[n > 0 ? n : 0] = '\0';
    return n > 0;
}
