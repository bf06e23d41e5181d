/* reader_synthetic.c - the engine without a drive: computes each expert from the seed.
 * Owns a pool of threads; called by the extent reader on the event-loop thread. At shutdown the
 * reader has taken every read back before close. */
#include <stdlib.h>

#include "expert-store/catalog/synthetic.h"
#include "expert-store/reader/reader_internal.h"

struct xs_engine_state {
    const moe_model_shape *shape; /* borrowed */
    moe_dtype dtype;
    uint64_t seed;
    xs_work_pool *pool; /* owned */
};

static void run_synthetic(xs_work *work)
{
    xs_read *read = (xs_read *)work;
    const xs_engine_state *e = read->engine;
    xs_synthetic_expert(e->shape, e->dtype, e->seed, read->expert, read->dst);
    read->result = (int64_t)read->bytes;
}

static void close_synthetic(xs_engine_state *e)
{
    if (e == NULL) {
        return;
    }
    xs_work_pool_destroy(e->pool);
    free(e);
}

static moe_status open_synthetic(const xs_engine_cfg *cfg, xs_reader_report *report,
                                 xs_engine_state **out, moe_err *err)
{
    (void)report; /* computing has nothing to fall short of */
    xs_engine_state *e = calloc(1, sizeof *e);
    if (e == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "the synthetic engine");
    }
    e->shape = cfg->reader->shape;
    e->dtype = (moe_dtype)cfg->reader->synthetic_dtype;
    e->seed = cfg->reader->synthetic_seed;
    moe_status st = xs_work_pool_create(cfg->reader->n_verify_threads, "xs-synthetic", cfg->wake_fd,
                                        &e->pool, err);
    if (st != MOE_OK) {
        close_synthetic(e);
        return st;
    }
    *out = e;
    return MOE_OK;
}

static void start_synthetic(xs_engine_state *e, xs_read *read)
{
    read->engine = e;
    read->work.run = run_synthetic;
    xs_work_pool_submit(e->pool, &read->work);
}

static void flush_synthetic(xs_engine_state *e)
{
    (void)e; /* start already did */
}

static xs_read *reap_synthetic(xs_engine_state *e)
{
    return (xs_read *)xs_work_pool_take_done(e->pool);
}

static void wait_synthetic(xs_engine_state *e)
{
    xs_work_pool_wait_done(e->pool);
}

const xs_engine_ops xs_engine_synthetic = {
    .engine = XS_ENGINE_SYNTHETIC,
    .open = open_synthetic,
    .close = close_synthetic,
    .start = start_synthetic,
    .flush = flush_synthetic,
    .reap = reap_synthetic,
    .wait = wait_synthetic,
};
