/* routing_source.c - see routing_source.h. */
#include "gpu-worker/bench/routing_source.h"

#include <stdlib.h>

struct gw_routing_source {
    const krn_ops *ops;           /* borrowed */
    krn_device *device;           /* borrowed */
    const moe_model_shape *shape; /* borrowed */
    gw_chooser *chooser;          /* borrowed */
    size_t max_pairs;
    int32_t *ids;   /* [n_blocks_total][max_pairs] mapped, owned */
    float *weights; /* likewise */
};

moe_status gw_routing_source_create(const krn_ops *ops, krn_device *device,
                                    const moe_model_shape *shape, uint32_t max_rows,
                                    gw_chooser *chooser, gw_routing_source **out, moe_err *err)
{
    gw_routing_source *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "routing source");
    }
    *s = (gw_routing_source){.ops = ops,
                             .device = device,
                             .shape = shape,
                             .chooser = chooser,
                             .max_pairs = (size_t)max_rows * shape->top_k};
    size_t n = s->max_pairs * shape->n_blocks_total + 1;
    void *ids = NULL, *weights = NULL;
    moe_status st = ops->backend.host_alloc(device, n * sizeof *s->ids, &ids, err);
    s->ids = ids;
    if (st == MOE_OK) {
        st = ops->backend.host_alloc(device, n * sizeof *s->weights, &weights, err);
        s->weights = weights;
    }
    if (st != MOE_OK) {
        gw_routing_source_destroy(s);
        return st;
    }
    for (size_t i = 0; i < n; i++) {
        s->weights[i] = GW_SOURCE_WEIGHT;
    }
    *out = s;
    return MOE_OK;
}

void gw_routing_source_destroy(gw_routing_source *s)
{
    if (s == NULL) {
        return;
    }
    if (s->ids != NULL) {
        s->ops->backend.host_free(s->device, s->ids);
    }
    if (s->weights != NULL) {
        s->ops->backend.host_free(s->device, s->weights);
    }
    free(s);
}

static size_t place_of(const gw_routing_source *s, moe_stack stack, uint32_t block)
{
    return moe_flat_block(s->shape, stack, block) * s->max_pairs;
}

void gw_routing_source_prepare(gw_routing_source *s, moe_stack stack, uint32_t n_rows)
{
    MOE_ASSERT((size_t)n_rows * s->shape->top_k <= s->max_pairs);
    gw_chooser_begin_step(s->chooser, stack);
    for (uint32_t b = 0; b < s->shape->stack[stack].n_blocks; b++) {
        gw_chooser_choose(s->chooser, b, n_rows, s->ids + place_of(s, stack, b));
    }
}

void gw_routing_source_apply(const gw_routing_source *s, moe_stack stack, uint32_t block,
                             krn_routing *record)
{
    record->ids = s->ids + place_of(s, stack, block);
    record->weights = s->weights + place_of(s, stack, block);
}
