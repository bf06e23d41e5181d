/* synthetic_source.c - see synthetic_source.h. Called by expert-pack's main thread; nothing is read
 * from anywhere and nothing larger than the list of tensors is kept. */
#include "expert-store/pack/synthetic_source.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expert-store/catalog/synthetic.h"

enum { CONFIG_BYTES = 4096, JOB_BYTES = 160 };

struct xs_synthetic_source {
    moe_dtype dtype;
    uint64_t seed;
    xs_source_tensor *tensors; /* owned */
    char config[CONFIG_BYTES];
    char job[JOB_BYTES];
    xs_source_file file;
    xs_source source;
};

static xs_synthetic_tensor synthetic_tensor(const xs_source_tensor *t)
{
    xs_synthetic_tensor out = {.n_dims = t->n_dims};
    memcpy(out.name, t->name, sizeof out.name);
    memcpy(out.dims, t->dims, sizeof out.dims);
    return out;
}

static moe_status read_piece(void *self, const xs_piece *piece, void *dst, moe_err *err)
{
    (void)err;
    const xs_synthetic_source *s = self;
    size_t each = moe_dtype_bytes(s->dtype);
    uint32_t n_experts = s->source.shape.n_experts_total;
    uint64_t first = piece->off / each;
    size_t n = piece->bytes / each;
    if (piece->item < n_experts) {
        xs_synthetic_expert_part(&s->source.shape, s->dtype, s->seed, piece->item, first, n, dst);
    } else {
        xs_synthetic_tensor t = synthetic_tensor(&s->tensors[piece->item - n_experts]);
        xs_synthetic_tensor_part(&t, s->dtype, s->seed, first, n, dst);
    }
    return MOE_OK;
}

static moe_status list_tensors(xs_synthetic_source *s, moe_err *err)
{
    xs_synthetic_tensor t;
    uint32_t n = 0;
    while (xs_synthetic_tensor_at(&s->source.shape, n, &t, NULL) == MOE_OK) {
        n++;
    }
    s->tensors = calloc(n + 1u, sizeof *s->tensors);
    if (s->tensors == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "list of %u tensors", n);
    }
    for (uint32_t i = 0; i < n; i++) {
        moe_status st = xs_synthetic_tensor_at(&s->source.shape, i, &t, err);
        if (st != MOE_OK) {
            return st;
        }
        s->tensors[i] = (xs_source_tensor){.dtype = s->dtype, .n_dims = t.n_dims};
        memcpy(s->tensors[i].name, t.name, sizeof t.name);
        memcpy(s->tensors[i].dims, t.dims, sizeof t.dims);
    }
    s->source.tensors = s->tensors;
    s->source.n_tensors = n;
    return MOE_OK;
}

moe_status xs_synthetic_source_open(const char *name, moe_dtype dtype, uint64_t seed,
                                    xs_synthetic_source **out, moe_err *err)
{
    xs_synthetic_source *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "synthetic model");
    }
    s->dtype = dtype;
    s->seed = seed;
    moe_status st = xs_synthetic_config(name, dtype, s->config, sizeof s->config, err);
    if (st == MOE_OK) {
        st = moe_model_shape_parse(s->config, strlen(s->config), &s->source.shape, err);
    }
    st = st != MOE_OK ? st : list_tensors(s, err);
    if (st != MOE_OK) {
        xs_synthetic_source_close(s);
        return st;
    }
    snprintf(s->job, sizeof s->job, "synthetic %s seed=%" PRIu64 " dtype=%s\n", name, seed,
             moe_dtype_name(dtype));
    snprintf(s->source.model_name, sizeof s->source.model_name, "%s", name);
    s->file =
        (xs_source_file){.name = "config.json", .data = s->config, .bytes = strlen(s->config)};
    s->source.expert_dtype = dtype;
    s->source.files = &s->file;
    s->source.n_files = 1;
    s->source.job = s->job;
    s->source.note = "";
    s->source.self = s;
    s->source.read = read_piece;
    *out = s;
    return MOE_OK;
}

void xs_synthetic_source_close(xs_synthetic_source *s)
{
    if (s == NULL) {
        return;
    }
    free(s->tensors);
    free(s);
}

const xs_source *xs_synthetic_source_get(const xs_synthetic_source *s)
{
    return &s->source;
}
