/* reader_pread.c - the engine where io_uring is forbidden: pread on a pool of threads.
 * Owns the pool; called by the extent reader on the event-loop thread, pread runs on the pool's.
 * At shutdown the reader has taken every read back before close. A dying process's threads leave
 * only when their direct reads have landed, so the instance lock protects as with io_uring. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "expert-store/reader/reader_internal.h"

/* More threads than this cost memory and switches without deepening the queue of any drive we
 * measured. */
enum { MAX_PREAD_THREADS = 32 };

struct xs_engine_state {
    const xs_segment_files *files; /* borrowed */
    xs_work_pool *pool;            /* owned */
};

static void run_pread(xs_work *work)
{
    xs_read *read = (xs_read *)work;
    int fd = read->engine->files->fds[read->segment];
    ssize_t got = pread(fd, read->dst, read->bytes, (off_t)read->file_off);
    read->result = got >= 0 ? got : -errno;
}

static void close_pread(xs_engine_state *e)
{
    if (e == NULL) {
        return;
    }
    xs_work_pool_destroy(e->pool);
    free(e);
}

static moe_status open_pread(const xs_engine_cfg *cfg, xs_reader_report *report,
                             xs_engine_state **out, moe_err *err)
{
    uint32_t n_threads = cfg->max_reads < MAX_PREAD_THREADS ? cfg->max_reads : MAX_PREAD_THREADS;
    if (n_threads < cfg->max_reads) {
        xs_reader_note(report, "pread keeps %u reads in flight, not %u", n_threads, cfg->max_reads);
    }
    xs_engine_state *e = calloc(1, sizeof *e);
    if (e == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "the pread engine");
    }
    e->files = cfg->files;
    moe_status st = xs_work_pool_create(n_threads, "xs-pread", cfg->wake_fd, &e->pool, err);
    if (st != MOE_OK) {
        close_pread(e);
        return st;
    }
    *out = e;
    return MOE_OK;
}

static void start_pread(xs_engine_state *e, xs_read *read)
{
    read->engine = e;
    read->work.run = run_pread;
    xs_work_pool_submit(e->pool, &read->work);
}

static void flush_pread(xs_engine_state *e)
{
    (void)e; /* start already did */
}

static xs_read *reap_pread(xs_engine_state *e)
{
    return (xs_read *)xs_work_pool_take_done(e->pool);
}

static void wait_pread(xs_engine_state *e)
{
    xs_work_pool_wait_done(e->pool);
}

const xs_engine_ops xs_engine_pread = {
    .engine = XS_ENGINE_PREAD,
    .open = open_pread,
    .close = close_pread,
    .start = start_pread,
    .flush = flush_pread,
    .reap = reap_pread,
    .wait = wait_pread,
};
