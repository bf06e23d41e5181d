/* routing_source.c - see routing_source.h. */
#include "gpu-worker/bench/routing_source.h"

#include <stdlib.h>
#include <string.h>

/* Choices of one step: [n_blocks of the stack][n_pairs], packed, so that one small copy brings them
 * to the device; in the decoder a guess of the next step's first block follows, if wanted. Weights
 * are all the same and are copied once. */
struct gw_routing_source {
    const krn_ops *ops;           /* borrowed */
    krn_device *device;           /* borrowed */
    const moe_model_shape *shape; /* borrowed */
    gw_chooser *chooser;          /* borrowed */
    size_t max_pairs, n_pairs;    /* of a step; of the prepared one */
    double guess_recall;          /* 0: no guesses */
    int32_t *next_first;          /* [max_pairs] owned: the next decode step's first block */
    size_t n_next;                /* pairs of it; 0: not drawn */
    int32_t *host_ids;            /* [n_blocks_total + 1][max_pairs] mapped, owned */
    int32_t *ids;                 /* likewise, device */
    float *weights;               /* [max_pairs] device, owned */
};

static moe_status alloc(gw_routing_source *s, moe_err *err)
{
    const krn_backend_fns *b = &s->ops->backend;
    size_t bytes = s->max_pairs * (s->shape->n_blocks_total + 1u) * sizeof(int32_t);
    void *host_ids = NULL, *ids = NULL, *weights = NULL;
    s->next_first = calloc(s->max_pairs, sizeof *s->next_first);
    if (s->next_first == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "routing source");
    }
    moe_status st = b->host_alloc(s->device, bytes, &host_ids, err);
    s->host_ids = host_ids;
    if (st == MOE_OK) {
        st = b->mem_alloc(s->device, bytes, &ids, err);
        s->ids = ids;
    }
    if (st == MOE_OK) {
        st = b->mem_alloc(s->device, s->max_pairs * sizeof *s->weights, &weights, err);
        s->weights = weights;
    }
    return st;
}

static moe_status fill_weights(gw_routing_source *s, krn_stream *stream, moe_err *err)
{
    float *weights = malloc(s->max_pairs * sizeof *weights);
    if (weights == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "routing source");
    }
    for (size_t i = 0; i < s->max_pairs; i++) {
        weights[i] = GW_SOURCE_WEIGHT;
    }
    const krn_backend_fns *b = &s->ops->backend;
    moe_status st = b->copy_async(stream, s->weights, weights, s->max_pairs * sizeof *weights, err);
    moe_status synced = b->stream_sync(stream, st == MOE_OK ? err : NULL);
    free(weights);
    return st == MOE_OK ? synced : st;
}

moe_status gw_routing_source_create(const krn_ops *ops, krn_device *device, krn_stream *stream,
                                    const moe_model_shape *shape, uint32_t max_rows,
                                    gw_chooser *chooser, double guess_recall,
                                    gw_routing_source **out, moe_err *err)
{
    gw_routing_source *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "routing source");
    }
    *s = (gw_routing_source){.ops = ops,
                             .device = device,
                             .shape = shape,
                             .chooser = chooser,
                             .guess_recall = guess_recall,
                             .max_pairs = (size_t)max_rows * shape->top_k};
    moe_status st = alloc(s, err);
    if (st == MOE_OK) {
        st = fill_weights(s, stream, err);
    }
    if (st != MOE_OK) {
        gw_routing_source_destroy(s);
        return st;
    }
    *out = s;
    return MOE_OK;
}

void gw_routing_source_destroy(gw_routing_source *s)
{
    if (s == NULL) {
        return;
    }
    s->ops->backend.host_free(s->device, s->host_ids);
    s->ops->backend.mem_free(s->device, s->ids);
    s->ops->backend.mem_free(s->device, s->weights);
    free(s->next_first);
    free(s);
}

static bool guesses(const gw_routing_source *s, moe_stack stack)
{
    return s->guess_recall > 0 && stack == MOE_DECODER && s->shape->stack[stack].n_blocks > 0;
}

/* Where the guess lies: behind the choices of all blocks. */
static size_t guess_at(const gw_routing_source *s)
{
    return s->shape->stack[MOE_DECODER].n_blocks * s->n_pairs;
}

/* The first block's choice was drawn when it was guessed; the next step's is drawn now. */
static void guess_next(gw_routing_source *s, uint32_t n_rows)
{
    if (s->n_next == s->n_pairs) {
        memcpy(s->host_ids, s->next_first, s->n_pairs * sizeof *s->host_ids);
    }
    gw_chooser_choose(s->chooser, 0, n_rows, s->next_first);
    s->n_next = s->n_pairs;
    gw_chooser_guess(s->chooser, s->guess_recall, s->next_first, (uint32_t)s->n_pairs,
                     s->host_ids + guess_at(s));
}

void gw_routing_source_prepare(gw_routing_source *s, moe_stack stack, uint32_t n_rows)
{
    s->n_pairs = (size_t)n_rows * s->shape->top_k;
    MOE_ASSERT(s->n_pairs <= s->max_pairs);
    gw_chooser_begin_step(s->chooser, stack);
    for (uint32_t b = 0; b < s->shape->stack[stack].n_blocks; b++) {
        gw_chooser_choose(s->chooser, b, n_rows, s->host_ids + b * s->n_pairs);
    }
    if (guesses(s, stack)) {
        guess_next(s, n_rows);
    }
}

moe_status gw_routing_source_submit(const gw_routing_source *s, krn_stream *stream, moe_stack stack,
                                    moe_err *err)
{
    size_t n = (s->shape->stack[stack].n_blocks + (guesses(s, stack) ? 1u : 0u)) * s->n_pairs;
    return n == 0
               ? MOE_OK
               : s->ops->backend.copy_async(stream, s->ids, s->host_ids, n * sizeof *s->ids, err);
}

void gw_routing_source_apply(const gw_routing_source *s, uint32_t block, krn_routing *record)
{
    record->ids = s->ids + block * s->n_pairs;
    record->weights = s->weights;
}

bool gw_routing_source_apply_guess(const gw_routing_source *s, krn_routing *record)
{
    if (!guesses(s, MOE_DECODER)) {
        return false;
    }
    record->ids = s->ids + guess_at(s);
    record->weights = s->weights;
    return true;
}
