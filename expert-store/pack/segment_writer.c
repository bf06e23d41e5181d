/* segment_writer.c - see segment_writer.h. Called by pack.c; owns its threads, buffers and files.
 */
#include "expert-store/pack/segment_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "common/lock.h"
#include "expert-store/catalog/catalog.h"

enum { PATH_BYTES = 1200, MAX_THREADS = 16 };

typedef struct write_job {
    void *buf;
    size_t bytes;
    int fd; /* borrowed from fds[]: stays open until the next flush, which waits for us */
    uint32_t segment;
    uint64_t off;
} write_job;

struct xs_segment_writer {
    xs_segment_writer_cfg cfg;
    char dir[1024];
    void *arena; /* owned; n_buffers * buffer_bytes */
    int *fds;    /* [n_segments], owned, caller's thread only; -1 when closed */

    moe_mutex mu;
    moe_cond work, done;       /* a job or stop; a buffer became free */
    write_job *queue;          /* [n_buffers] ring, owned, guarded by mu */
    uint32_t head, n_queued;   /* guarded by mu */
    void **free_bufs;          /* [n_buffers] stack, owned, guarded by mu */
    uint32_t n_free;           /* guarded by mu */
    uint32_t n_in_flight;      /* submitted and not finished, guarded by mu */
    bool stop, direct, failed; /* guarded by mu */
    moe_err first_err;         /* guarded by mu, set when failed */

    pthread_t threads[MAX_THREADS];
    uint32_t n_threads; /* running */
};

/* ---- the threads ---- */

/* Some filesystems accept O_DIRECT at open and refuse the write: then write through the cache. */
static moe_status write_one(xs_segment_writer *w, const write_job *job, bool direct, moe_err *err)
{
    char what[64];
    snprintf(what, sizeof what, "segments/%06u.seg", job->segment);
    moe_status st = moe_pwrite_exact(job->fd, job->buf, job->bytes, job->off, what, err);
    if (st == MOE_OK || !direct || err->native != EINVAL) {
        return st;
    }
    int flags = fcntl(job->fd, F_GETFL);
    if (flags < 0 || fcntl(job->fd, F_SETFL, flags & ~O_DIRECT) != 0) {
        return st;
    }
    moe_mutex_lock(&w->mu);
    w->direct = false;
    moe_mutex_unlock(&w->mu);
    return moe_pwrite_exact(job->fd, job->buf, job->bytes, job->off, what, err);
}

static void *writer_main(void *arg)
{
    xs_segment_writer *w = arg;
    moe_mutex_lock(&w->mu);
    for (;;) {
        while (w->n_queued == 0 && !w->stop) {
            moe_cond_wait(&w->work, &w->mu);
        }
        if (w->n_queued == 0) {
            break; /* stopped, and nothing is left to write */
        }
        write_job job = w->queue[w->head];
        w->head = (w->head + 1) % w->cfg.n_buffers;
        w->n_queued--;
        bool skip = w->failed, direct = w->direct;
        moe_mutex_unlock(&w->mu);

        moe_err err = {0};
        moe_status st = skip ? MOE_OK : write_one(w, &job, direct, &err);

        moe_mutex_lock(&w->mu);
        if (st != MOE_OK && !w->failed) {
            w->failed = true;
            w->first_err = err;
        }
        w->free_bufs[w->n_free++] = job.buf;
        w->n_in_flight--;
        moe_cond_broadcast(&w->done);
    }
    moe_mutex_unlock(&w->mu);
    return NULL;
}

/* ---- life ---- */

static moe_status allocate(xs_segment_writer *w, moe_err *err)
{
    const xs_segment_writer_cfg *c = &w->cfg;
    w->arena = aligned_alloc(c->align, c->n_buffers * c->buffer_bytes);
    w->fds = malloc(c->n_segments * sizeof *w->fds);
    w->queue = calloc(c->n_buffers, sizeof *w->queue);
    w->free_bufs = calloc(c->n_buffers, sizeof *w->free_bufs);
    if (w->arena == NULL || w->fds == NULL || w->queue == NULL || w->free_bufs == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%u write buffers of %" PRIu64 " bytes",
                        c->n_buffers, c->buffer_bytes);
    }
    for (uint32_t i = 0; i < c->n_segments; i++) {
        w->fds[i] = -1;
    }
    for (uint32_t i = 0; i < c->n_buffers; i++) {
        w->free_bufs[w->n_free++] = (char *)w->arena + i * c->buffer_bytes;
    }
    return MOE_OK;
}

static moe_status start_threads(xs_segment_writer *w, moe_err *err)
{
    while (w->n_threads < w->cfg.n_threads) {
        int rc = pthread_create(&w->threads[w->n_threads], NULL, writer_main, w);
        if (rc != 0) {
            return MOE_FAIL_NATIVE(err, MOE_ERR_NO_MEMORY, MOE_LAYER_ERRNO, rc, "writer thread");
        }
        w->n_threads++;
    }
    return MOE_OK;
}

moe_status xs_segment_writer_create(const xs_segment_writer_cfg *cfg, xs_segment_writer **out,
                                    moe_err *err)
{
    MOE_ASSERT(cfg->n_buffers > 0 && cfg->n_threads > 0 && cfg->n_threads <= MAX_THREADS);
    MOE_ASSERT(cfg->buffer_bytes % cfg->align == 0);
    xs_segment_writer *w = calloc(1, sizeof *w);
    if (w == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "segment writer");
    }
    w->cfg = *cfg;
    w->direct = cfg->direct;
    moe_mutex_init(&w->mu);
    moe_cond_init(&w->work);
    moe_cond_init(&w->done);
    snprintf(w->dir, sizeof w->dir, "%s", cfg->dir);
    moe_status st = allocate(w, err);
    st = st != MOE_OK ? st : start_threads(w, err);
    if (st != MOE_OK) {
        xs_segment_writer_destroy(w);
        return st;
    }
    *out = w;
    return MOE_OK;
}

static void close_files(xs_segment_writer *w)
{
    for (uint32_t i = 0; w->fds != NULL && i < w->cfg.n_segments; i++) {
        if (w->fds[i] >= 0) {
            close(w->fds[i]);
            w->fds[i] = -1;
        }
    }
}

void xs_segment_writer_destroy(xs_segment_writer *w)
{
    if (w == NULL) {
        return;
    }
    moe_mutex_lock(&w->mu);
    w->stop = true;
    moe_cond_broadcast(&w->work);
    moe_mutex_unlock(&w->mu);
    for (uint32_t i = 0; i < w->n_threads; i++) {
        pthread_join(w->threads[i], NULL);
    }
    close_files(w);
    moe_cond_fini(&w->done);
    moe_cond_fini(&w->work);
    moe_mutex_fini(&w->mu);
    free(w->free_bufs);
    free(w->queue);
    free(w->fds);
    free(w->arena);
    free(w);
}

/* ---- the caller ---- */

/* Reports the first failure to the caller. */
static moe_status failure_locked(const xs_segment_writer *w, moe_err *err) MOE_REQUIRES(w->mu);
static moe_status failure_locked(const xs_segment_writer *w, moe_err *err)
{
    if (!w->failed) {
        return MOE_OK;
    }
    if (err != NULL) {
        *err = w->first_err;
    }
    return w->first_err.status;
}

moe_status xs_segment_writer_acquire(xs_segment_writer *w, void **out_buf, moe_err *err)
{
    moe_mutex_lock(&w->mu);
    while (w->n_free == 0) {
        moe_cond_wait(&w->done, &w->mu);
    }
    moe_status st = failure_locked(w, err);
    if (st == MOE_OK) {
        *out_buf = w->free_bufs[--w->n_free];
    }
    moe_mutex_unlock(&w->mu);
    return st;
}

static moe_status file_failure(moe_err *err, int e, const char *what, const char *path)
{
    moe_status st = e == ENOSPC || e == EDQUOT ? MOE_ERR_NO_SPACE : MOE_ERR_IO;
    return MOE_FAIL_NATIVE(err, st, MOE_LAYER_ERRNO, e, "cannot %s %s", what, path);
}

/* Allocates the file to its final size where the filesystem can. */
static moe_status size_file(int fd, uint64_t bytes, const char *path, moe_err *err)
{
    struct stat sb;
    if (fstat(fd, &sb) != 0) {
        return file_failure(err, errno, "stat", path);
    }
    if ((uint64_t)sb.st_size >= bytes) {
        return MOE_OK;
    }
    int rc = 0;
    do {
        rc = fallocate(fd, 0, 0, (off_t)bytes);
    } while (rc != 0 && errno == EINTR);
    if (rc != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
        return file_failure(err, errno, "allocate", path);
    }
    return MOE_OK;
}

static moe_status open_segment(xs_segment_writer *w, uint32_t segment, moe_err *err)
{
    if (w->fds[segment] >= 0) {
        return MOE_OK;
    }
    char path[PATH_BYTES];
    xs_segment_path(w->dir, segment, path, sizeof path);
    const int flags = O_WRONLY | O_CREAT | O_CLOEXEC;
    bool direct = xs_segment_writer_is_direct(w);
    int fd = open(path, flags | (direct ? O_DIRECT : 0), 0666);
    if (fd < 0 && direct && errno == EINVAL) {
        moe_mutex_lock(&w->mu);
        w->direct = false;
        moe_mutex_unlock(&w->mu);
        fd = open(path, flags, 0666);
    }
    if (fd < 0) {
        return file_failure(err, errno, "create", path);
    }
    moe_status st = size_file(fd, w->cfg.segment_bytes[segment], path, err);
    if (st != MOE_OK) {
        close(fd);
        return st;
    }
    w->fds[segment] = fd;
    return MOE_OK;
}

moe_status xs_segment_writer_submit(xs_segment_writer *w, void *buf, size_t bytes, uint32_t segment,
                                    uint64_t off, moe_err *err)
{
    MOE_ASSERT(segment < w->cfg.n_segments && bytes <= w->cfg.buffer_bytes);
    MOE_ASSERT(bytes % w->cfg.align == 0 && off % w->cfg.align == 0);
    moe_status st = open_segment(w, segment, err);
    moe_mutex_lock(&w->mu);
    if (st != MOE_OK) {
        w->free_bufs[w->n_free++] = buf;
    } else {
        w->queue[(w->head + w->n_queued) % w->cfg.n_buffers] = (write_job){
            .buf = buf, .bytes = bytes, .fd = w->fds[segment], .segment = segment, .off = off};
        w->n_queued++;
        w->n_in_flight++;
        moe_cond_signal(&w->work);
    }
    moe_mutex_unlock(&w->mu);
    return st;
}

moe_status xs_segment_writer_flush(xs_segment_writer *w, moe_err *err)
{
    moe_mutex_lock(&w->mu);
    while (w->n_in_flight > 0) {
        moe_cond_wait(&w->done, &w->mu);
    }
    moe_status st = failure_locked(w, err);
    moe_mutex_unlock(&w->mu);
    for (uint32_t i = 0; st == MOE_OK && i < w->cfg.n_segments; i++) {
        if (w->fds[i] >= 0 && fsync(w->fds[i]) != 0) {
            char path[PATH_BYTES];
            int e = errno;
            xs_segment_path(w->dir, i, path, sizeof path);
            st = file_failure(err, e, "sync", path);
        }
    }
    close_files(w);
    return st;
}

bool xs_segment_writer_is_direct(xs_segment_writer *w)
{
    moe_mutex_lock(&w->mu);
    bool direct = w->direct;
    moe_mutex_unlock(&w->mu);
    return direct;
}
