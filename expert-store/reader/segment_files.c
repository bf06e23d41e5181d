/* segment_files.c - opens segments and probes direct reads. Owns the fds; called by the extent
 * reader when it is created and destroyed, on the event-loop thread. */
#include "expert-store/reader/segment_files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Whether the file system refuses a direct read of the first block. Only a refusal counts: a drive
 * that fails this read fails it buffered, too, and tells so when the expert is wanted. */
static bool refuses_direct_read(int fd)
{
    _Alignas(XS_EXTENT_ALIGN) char block[XS_EXTENT_ALIGN];
    return pread(fd, block, sizeof block, 0) < 0 && (errno == EINVAL || errno == EOPNOTSUPP);
}

static moe_status open_all(const xs_catalog *catalog, xs_segment_files *f, moe_err *err)
{
    for (uint32_t i = 0; i < f->n; i++) {
        char path[PATH_MAX];
        xs_catalog_segment_path(catalog, i, path, sizeof path);
        f->fds[i] = open(path, O_RDONLY | O_CLOEXEC);
        if (f->fds[i] < 0) {
            return MOE_FAIL_NATIVE(err, errno == ENOENT ? MOE_ERR_NOT_FOUND : MOE_ERR_IO,
                                   MOE_LAYER_ERRNO, errno, "cannot open segment %s", path);
        }
    }
    return MOE_OK;
}

/* fcntl(F_SETFL) is how O_DIRECT comes and goes, so that a refusal needs no second open. */
static bool set_direct(int fd, bool on)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT) == 0;
}

static bool make_direct(const xs_catalog *catalog, xs_segment_files *f, char *out_why,
                        uint32_t why_bytes)
{
    for (uint32_t i = 0; i < f->n; i++) {
        if (!set_direct(f->fds[i], true) || refuses_direct_read(f->fds[i])) {
            char path[PATH_MAX];
            xs_catalog_segment_path(catalog, i, path, sizeof path);
            snprintf(out_why, why_bytes,
                     "%s does not take O_DIRECT: reads pass the page cache, one more copy and up "
                     "to twice the memory",
                     path);
            for (uint32_t k = 0; k <= i; k++) {
                set_direct(f->fds[k], false);
            }
            return false;
        }
    }
    return true;
}

moe_status xs_segment_files_open(const xs_catalog *catalog, bool want_direct, xs_segment_files *out,
                                 char *out_why, uint32_t why_bytes, moe_err *err)
{
    xs_segment_files f = {.n = xs_catalog_get_info(catalog)->n_segments};
    f.fds = calloc(f.n + 1u, sizeof *f.fds);
    if (f.fds == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%u segment files", f.n);
    }
    for (uint32_t i = 0; i < f.n; i++) {
        f.fds[i] = -1;
    }
    moe_status st = open_all(catalog, &f, err);
    if (st != MOE_OK) {
        xs_segment_files_close(&f);
        return st;
    }
    f.direct = want_direct && make_direct(catalog, &f, out_why, why_bytes);
    *out = f;
    return MOE_OK;
}

void xs_segment_files_close(xs_segment_files *f)
{
    for (uint32_t i = 0; i < f->n && f->fds != NULL; i++) {
        if (f->fds[i] >= 0) {
            close(f->fds[i]);
        }
    }
    free(f->fds);
    *f = (xs_segment_files){0};
}
