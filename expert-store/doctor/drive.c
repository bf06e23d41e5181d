/* drive.c - see drive.h. */
#include "expert-store/doctor/drive.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/file.h"

enum {
    ALIGN = 4096,
    POOL_BYTES = 64 << 20, /* reads land here, over each other: nobody looks at them */
    FILL_BYTES = 4 << 20,
    MAX_THREADS = 64
};

/* ---- files ---- */

static const char *file_system_name(unsigned long magic)
{
    static const struct {
        unsigned long magic;
        const char *name;
    } known[] = {{EXT4_SUPER_MAGIC, "ext4"},   {XFS_SUPER_MAGIC, "xfs"},
                 {BTRFS_SUPER_MAGIC, "btrfs"}, {TMPFS_MAGIC, "tmpfs"},
                 {NFS_SUPER_MAGIC, "nfs"},     {OVERLAYFS_SUPER_MAGIC, "overlayfs"},
                 {F2FS_SUPER_MAGIC, "f2fs"},   {0x2fc12fc1, "zfs"}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (known[i].magic == magic) {
            return known[i].name;
        }
    }
    return NULL;
}

static void describe(xs_drive_file *f)
{
    struct statfs fs;
    struct statx st = {0};
    if (fstatfs(f->fd, &fs) == 0) {
        const char *name = file_system_name((unsigned long)fs.f_type);
        snprintf(f->file_system, sizeof f->file_system, "%s", name != NULL ? name : "");
        if (name == NULL) {
            snprintf(f->file_system, sizeof f->file_system, "type %#lx", (unsigned long)fs.f_type);
        }
    }
#ifdef STATX_DIOALIGN
    if (statx(f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 &&
        (st.stx_mask & STATX_DIOALIGN) != 0) {
        f->offset_align = st.stx_dio_offset_align;
        f->memory_align = st.stx_dio_mem_align;
    }
#else
    (void)st;
#endif
}

/* As segment_files.c does: a refusal shows at the flag or at the first read. */
static bool make_direct(int fd)
{
    _Alignas(ALIGN) char block[ALIGN];
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_DIRECT) != 0) {
        return false;
    }
    if (pread(fd, block, sizeof block, 0) < 0) {
        (void)fcntl(fd, F_SETFL, flags);
        return false;
    }
    return true;
}

moe_status xs_drive_open(const char *path, xs_drive_file *out, moe_err *err)
{
    struct stat st;
    xs_drive_file f = {.fd = open(path, O_RDONLY | O_CLOEXEC)};
    if (f.fd < 0 || fstat(f.fd, &st) != 0) {
        moe_status failed = MOE_FAIL_NATIVE(err, errno == ENOENT ? MOE_ERR_NOT_FOUND : MOE_ERR_IO,
                                            MOE_LAYER_ERRNO, errno, "cannot open %.200s", path);
        xs_drive_close(&f);
        return failed;
    }
    f.bytes = (uint64_t)st.st_size;
    describe(&f);
    f.direct = make_direct(f.fd);
    *out = f;
    return MOE_OK;
}

/* xorshift64*: as good as random to a drive, and faster than any */
static uint64_t next_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dull;
}

static int open_nameless(const char *dir)
{
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) { /* file systems without O_TMPFILE */
        char path[512];
        snprintf(path, sizeof path, "%.480s/.pregate-doctor-XXXXXX", dir);
        fd = mkostemp(path, O_CLOEXEC);
        if (fd >= 0) {
            unlink(path);
        }
    }
    return fd;
}

static moe_status fill(int fd, uint64_t bytes, const char *dir, moe_err *err)
{
    uint64_t random = 1;
    moe_status st = MOE_OK;
    uint64_t *block = aligned_alloc(ALIGN, FILL_BYTES);
    if (block == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a block to write");
    }
    for (size_t i = 0; i < FILL_BYTES / sizeof *block; i++) {
        block[i] = next_random(&random);
    }
    for (uint64_t at = 0; at < bytes && st == MOE_OK; at += FILL_BYTES) {
        block[0] = at; /* so that no two are the same */
        uint64_t left = bytes - at;
        st = moe_pwrite_exact(fd, block, left < FILL_BYTES ? left : FILL_BYTES, at, dir, err);
    }
    free(block);
    if (st == MOE_OK && fsync(fd) != 0) {
        st =
            MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "cannot write in %.200s", dir);
    }
    return st;
}

moe_status xs_drive_make(const char *dir, uint64_t bytes, xs_drive_file *out, moe_err *err)
{
    xs_drive_file f = {.fd = open_nameless(dir), .bytes = bytes};
    if (f.fd < 0) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno,
                               "cannot make a file in %.200s to measure with", dir);
    }
    describe(&f);
    moe_status st = fill(f.fd, bytes, dir, err);
    if (st != MOE_OK) {
        xs_drive_close(&f);
        return st;
    }
    (void)posix_fadvise(f.fd, 0, 0, POSIX_FADV_DONTNEED);
    f.direct = make_direct(f.fd);
    *out = f;
    return MOE_OK;
}

void xs_drive_close(xs_drive_file *f)
{
    if (f->fd >= 0) {
        close(f->fd);
    }
    f->fd = -1;
}

/* ---- io_uring ---- */

struct xs_drive_ring {
    const xs_drive_file *file; /* borrowed */
    struct io_uring ring;
    bool open, registered;
    char *pool; /* [POOL_BYTES] owned mapping */
    uint64_t random;
};

static long read_number(const char *path)
{
    char text[16] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0) {
        close(fd);
    }
    return n > 0 ? strtol(text, NULL, 10) : 0;
}

static moe_status explain(int code, moe_err *err)
{
    long disabled = read_number("/proc/sys/kernel/io_uring_disabled");
    const char *why = "the kernel refuses";
    if (code == ENOSYS) {
        why = "this kernel is built without it, or a container's seccomp profile hides it";
    } else if (disabled != 0) {
        why = disabled == 1 ? "sysctl kernel.io_uring_disabled is 1: only for privileged processes"
                            : "sysctl kernel.io_uring_disabled is 2: for nobody";
    } else if (code == EPERM || code == EACCES) {
        why = "a container's seccomp profile or a security module forbids it";
    }
    return MOE_FAIL_NATIVE(err, MOE_ERR_UNSUPPORTED, MOE_LAYER_ERRNO, code, "%s", why);
}

moe_status xs_drive_ring_create(const xs_drive_file *f, uint32_t max_depth, xs_drive_ring **out,
                                moe_err *err)
{
    struct io_uring_params params = {0};
    xs_drive_ring *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a ring");
    }
    r->file = f;
    r->random = 1;
    void *pool = mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (pool == MAP_FAILED) {
        free(r);
        return MOE_FAIL_NATIVE(err, MOE_ERR_NO_MEMORY, MOE_LAYER_ERRNO, errno,
                               "memory to read into");
    }
    r->pool = pool;
    int rc = io_uring_queue_init_params(max_depth, &r->ring, &params);
    if (rc != 0) {
        xs_drive_ring_destroy(r);
        return explain(-rc, err);
    }
    r->open = true;
    const struct iovec iov = {.iov_base = r->pool, .iov_len = POOL_BYTES};
    r->registered = io_uring_register_buffers(&r->ring, &iov, 1) == 0;
    *out = r;
    return MOE_OK;
}

void xs_drive_ring_destroy(xs_drive_ring *r)
{
    if (r == NULL) {
        return;
    }
    if (r->open) {
        io_uring_queue_exit(&r->ring);
    }
    munmap(r->pool, POOL_BYTES);
    free(r);
}

bool xs_drive_ring_registered(const xs_drive_ring *r)
{
    return r->registered;
}

static uint64_t random_offset(uint64_t *random, uint64_t file_bytes, uint32_t read_bytes)
{
    return next_random(random) % (file_bytes / read_bytes) * read_bytes;
}

static void queue_read(xs_drive_ring *r, const xs_drive_point *p, uint32_t place)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
    MOE_ASSERT(sqe != NULL); /* never more than max_depth */
    uint64_t offset = random_offset(&r->random, r->file->bytes, p->read_bytes);
    char *to = r->pool + (size_t)place * p->read_bytes % POOL_BYTES;
    if (r->registered) {
        io_uring_prep_read_fixed(sqe, r->file->fd, to, p->read_bytes, offset, 0);
    } else {
        io_uring_prep_read(sqe, r->file->fd, to, p->read_bytes, offset);
    }
    io_uring_sqe_set_data64(sqe, place);
}

/* Ends one read, and begins another in its place while there is time. */
static moe_status take_one(xs_drive_ring *r, const xs_drive_point *p, int64_t until_ns,
                           uint32_t *n_open, uint64_t *bytes, moe_err *err)
{
    struct io_uring_cqe *cqe = NULL;
    int rc = io_uring_submit_and_wait(&r->ring, 1);
    if (rc == -EINTR) {
        return MOE_OK;
    }
    if (rc >= 0) {
        rc = io_uring_peek_cqe(&r->ring, &cqe);
    }
    while (rc >= 0 && cqe != NULL) {
        uint32_t place = (uint32_t)io_uring_cqe_get_data64(cqe);
        int result = cqe->res;
        io_uring_cqe_seen(&r->ring, cqe);
        cqe = NULL;
        *n_open -= 1;
        if (result != (int)p->read_bytes) {
            return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, result < 0 ? -result : EIO,
                                   "a read of %u bytes failed", p->read_bytes);
        }
        *bytes += p->read_bytes;
        if (moe_now_ns() < until_ns) {
            queue_read(r, p, place);
            *n_open += 1;
        }
        (void)io_uring_peek_cqe(&r->ring, &cqe);
    }
    return rc >= 0 || rc == -EAGAIN
               ? MOE_OK
               : MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, -rc, "the ring fails");
}

static double rate(uint64_t bytes, int64_t ns)
{
    return ns > 0 ? (double)bytes / (double)ns : 0;
}

static moe_status check_point(const xs_drive_file *f, const xs_drive_point *p, moe_err *err)
{
    return p->read_bytes >= ALIGN && p->read_bytes <= POOL_BYTES && f->bytes >= p->read_bytes
               ? MOE_OK
               : MOE_FAIL(err, MOE_ERR_INVALID, "reads of %u bytes from a file of %llu",
                          p->read_bytes, (unsigned long long)f->bytes);
}

moe_status xs_drive_measure(xs_drive_ring *r, double seconds, xs_drive_point *point, moe_err *err)
{
    uint64_t bytes = 0;
    uint32_t n_open = 0;
    moe_status st = check_point(r->file, point, err);
    if (st != MOE_OK) {
        return st;
    }
    int64_t from_ns = moe_now_ns();
    int64_t until_ns = from_ns + (int64_t)(seconds * 1e9);
    for (; n_open < point->depth; n_open++) {
        queue_read(r, point, n_open);
    }
    while (n_open > 0 && st == MOE_OK) {
        st = take_one(r, point, until_ns, &n_open, &bytes, err);
    }
    if (st == MOE_OK) {
        point->gb_per_s = rate(bytes, moe_now_ns() - from_ns);
    }
    return st;
}

/* ---- threads ---- */

typedef struct thread_reader {
    pthread_t thread;
    const xs_drive_file *file; /* borrowed */
    char *buffer;              /* [read_bytes] owned */
    uint32_t read_bytes;
    int64_t until_ns;
    uint64_t random, bytes;
    int failure; /* errno, 0: none */
} thread_reader;

static void *read_until(void *arg)
{
    thread_reader *t = arg;
    while (moe_now_ns() < t->until_ns && t->failure == 0) {
        uint64_t offset = random_offset(&t->random, t->file->bytes, t->read_bytes);
        ssize_t got = pread(t->file->fd, t->buffer, t->read_bytes, (off_t)offset);
        if (got == (ssize_t)t->read_bytes) {
            t->bytes += t->read_bytes;
        } else if (got >= 0 || errno != EINTR) {
            t->failure = got < 0 ? errno : EIO;
        }
    }
    return NULL;
}

static uint32_t start_threads(thread_reader *threads, uint32_t n, const xs_drive_file *f,
                              uint32_t read_bytes, int64_t until_ns)
{
    for (uint32_t i = 0; i < n; i++) {
        thread_reader *t = &threads[i];
        *t = (thread_reader){
            .file = f, .read_bytes = read_bytes, .until_ns = until_ns, .random = i + 1u};
        t->buffer = aligned_alloc(ALIGN, read_bytes);
        if (t->buffer == NULL || pthread_create(&t->thread, NULL, read_until, t) != 0) {
            free(t->buffer);
            return i;
        }
    }
    return n;
}

moe_status xs_drive_measure_threads(const xs_drive_file *f, double seconds, xs_drive_point *point,
                                    moe_err *err)
{
    thread_reader threads[MAX_THREADS];
    uint64_t bytes = 0;
    int failure = 0;
    uint32_t wanted = point->depth < MAX_THREADS ? point->depth : MAX_THREADS;
    moe_status st = check_point(f, point, err);
    if (st != MOE_OK) {
        return st;
    }
    int64_t from_ns = moe_now_ns();
    uint32_t n =
        start_threads(threads, wanted, f, point->read_bytes, from_ns + (int64_t)(seconds * 1e9));
    for (uint32_t i = 0; i < n; i++) {
        (void)pthread_join(threads[i].thread, NULL);
        free(threads[i].buffer);
        bytes += threads[i].bytes;
        failure = threads[i].failure != 0 ? threads[i].failure : failure;
    }
    if (n < wanted) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "only %u of %u threads start", n, wanted);
    }
    if (failure != 0) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, failure,
                               "a read of %u bytes failed", point->read_bytes);
    }
    point->gb_per_s = rate(bytes, moe_now_ns() - from_ns);
    return MOE_OK;
}

/* ---- choosing ---- */

static uint64_t in_flight(const xs_drive_point *p)
{
    return (uint64_t)p->read_bytes * p->depth;
}

uint32_t xs_drive_choose(const xs_drive_point *points, uint32_t n)
{
    const double near_enough = 0.97;
    double fastest = 0;
    uint32_t best = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (points[i].gb_per_s > fastest) {
            fastest = points[i].gb_per_s;
            best = i;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        const xs_drive_point *p = &points[i];
        if (p->gb_per_s >= near_enough * fastest && (in_flight(p) < in_flight(&points[best]) ||
                                                     (in_flight(p) == in_flight(&points[best]) &&
                                                      p->read_bytes > points[best].read_bytes))) {
            best = i;
        }
    }
    return best;
}
