/* predictor.c - see predictor.h. */
#include "gpu-worker/engine/predictor.h"

#include <string.h>

#include "common/bytes.h"
#include "common/dtype.h"

enum { DEVICE_ALIGN = 256 };

/* One walk over all predictions: without an arena it checks and measures, with one it copies. */
typedef struct walk {
    krn_stream *stream;
    const gw_store_client *client;
    const moe_model_shape *shape;
    gw_predictors *out;
    uint64_t used;
    moe_err *err;
} walk;

static moe_status check(const walk *w, const char *name, const moe_dense_entry *e)
{
    uint64_t n = (uint64_t)w->shape->n_experts * w->shape->d_model;
    bool computes = e->dtype == MOE_F32 || e->dtype == MOE_BF16;
    if (!computes || e->n_dims != 2 || e->dims[0] != w->shape->n_experts ||
        e->dims[1] != w->shape->d_model || e->bytes != n * moe_dtype_bytes((moe_dtype)e->dtype)) {
        return MOE_FAIL(w->err, MOE_ERR_FORMAT,
                        "tensor %s: %s [%u, %u], expected f32 or bf16 [%u, %u]: calibrate this "
                        "model and add its predictors again",
                        name, moe_dtype_name((moe_dtype)e->dtype), e->dims[0], e->dims[1],
                        w->shape->n_experts, w->shape->d_model);
    }
    return MOE_OK;
}

static moe_status take(walk *w, const gw_prediction *p)
{
    char name[GW_PREDICTOR_NAME_BYTES];
    const void *data = NULL;
    gw_predictor_name(p, name);
    const moe_dense_entry *e = gw_store_client_dense(w->client, name, MOE_DENSE_TENSOR, &data);
    if (e == NULL) {
        return MOE_OK;
    }
    moe_status st = check(w, name, e);
    if (st == MOE_OK && w->out->arena != NULL) {
        void *to = (char *)w->out->arena + w->used;
        st = w->out->ops->backend.copy_async(w->stream, to, data, e->bytes, w->err);
        w->out->by[p->stack][p->source][p->lookahead - 1] =
            (gw_weight){.data = to, .dtype = e->dtype, .rows = e->dims[0], .cols = e->dims[1]};
        w->out->n++;
    }
    w->used += moe_align_up(e->bytes, DEVICE_ALIGN);
    return st;
}

static moe_status take_all(walk *w)
{
    moe_status st = MOE_OK;
    w->used = 0;
    for (int stack = 0; stack < MOE_N_STACKS; stack++) {
        for (uint32_t b = 0; b < w->shape->stack[stack].n_blocks; b++) {
            for (uint32_t n = 1; n <= GW_MAX_LOOKAHEAD && st == MOE_OK; n++) {
                gw_prediction p;
                if (gw_prediction_of(w->shape, (moe_stack)stack, b, n, &p)) {
                    st = take(w, &p);
                }
            }
        }
    }
    return st;
}

moe_status gw_predictors_load(const krn_ops *ops, krn_device *device, krn_stream *stream,
                              const gw_store_client *client, const moe_model_shape *shape,
                              gw_predictors *out, moe_err *err)
{
    memset(out, 0, sizeof *out);
    out->ops = ops;
    out->device = device;
    walk w = {.stream = stream, .client = client, .shape = shape, .out = out, .err = err};
    moe_status st = take_all(&w);
    if (st == MOE_OK && w.used > 0) {
        st = ops->backend.mem_alloc(device, w.used, &out->arena, err);
        st = st == MOE_OK ? take_all(&w) : st;
        st = st == MOE_OK ? ops->backend.stream_sync(stream, err) : st;
    }
    if (st != MOE_OK) {
        gw_predictors_unload(out);
    }
    return st;
}

void gw_predictors_unload(gw_predictors *p)
{
    if (p->arena != NULL) {
        p->ops->backend.mem_free(p->device, p->arena);
    }
    memset(p, 0, sizeof *p);
}

const gw_weight *gw_predictor_for(const gw_predictors *p, const gw_dense_weights *weights,
                                  const moe_model_shape *shape, gw_predict how,
                                  const gw_prediction *what)
{
    const gw_weight *own = &p->by[what->stack][what->source][what->lookahead - 1];
    if (how == GW_PREDICT_NONE) {
        return NULL;
    }
    if (how == GW_PREDICT_STORE && own->data != NULL) {
        return own;
    }
    if (what->lookahead > 1 || what->next_token) {
        return NULL;
    }
    uint32_t layer = shape->stack[what->stack].layer_of_block[what->target];
    return &weights->stack[what->stack].layer[layer].router;
}
