/* Predictors on the device: what is found, what is refused, and who guesses for whom. The store's
 * region is a table in this file (--wrap=gw_store_client_dense), the device is the cpu backend's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/dtype.h"
#include "gpu-worker/engine/predictor.h"

enum { EXPERTS = 3, D_MODEL = 4, N = EXPERTS * D_MODEL, MAX_TENSORS = 4 };

static struct tensor {
    moe_dense_entry entry;
    float values[N];
} region[MAX_TENSORS];
static uint32_t n_tensors;

static const krn_ops *ops;
static krn_device *device;
static krn_stream *stream;

const moe_dense_entry *__wrap_gw_store_client_dense(const gw_store_client *c, const char *name,
                                                    moe_dense_kind kind, const void **out_payload);
const moe_dense_entry *__wrap_gw_store_client_dense(const gw_store_client *c, const char *name,
                                                    moe_dense_kind kind, const void **out_payload)
{
    (void)c;
    for (uint32_t i = 0; i < n_tensors && kind == MOE_DENSE_TENSOR; i++) {
        if (strcmp(region[i].entry.name, name) == 0) {
            *out_payload = region[i].values;
            return &region[i].entry;
        }
    }
    return NULL;
}

static struct tensor *add(const char *name, float first)
{
    struct tensor *t = &region[n_tensors++];
    *t = (struct tensor){.entry = {.kind = MOE_DENSE_TENSOR,
                                   .dtype = MOE_F32,
                                   .n_dims = 2,
                                   .dims = {EXPERTS, D_MODEL},
                                   .bytes = N * sizeof(float)}};
    (void)snprintf(t->entry.name, sizeof t->entry.name, "%s", name);
    for (int i = 0; i < N; i++) {
        t->values[i] = first + (float)i;
    }
    return t;
}

static moe_model_shape shape_of_tests(void)
{
    moe_model_shape s = {.d_model = D_MODEL, .n_experts = EXPERTS, .top_k = 1};
    s.stack[MOE_ENCODER].n_blocks = 2;
    s.stack[MOE_DECODER].n_blocks = 2;
    s.stack[MOE_DECODER].layer_of_block[0] = 1;
    s.stack[MOE_DECODER].layer_of_block[1] = 3;
    s.n_blocks_total = 4;
    return s;
}

static moe_status load(const moe_model_shape *s, gw_predictors *out, moe_err *err)
{
    return gw_predictors_load(ops, device, stream, NULL, s, out, err);
}

static void a_store_without_predictors_has_routers_guess(void **state)
{
    (void)state;
    static gw_predictors p;
    static gw_dense_weights weights;
    const moe_model_shape s = shape_of_tests();
    gw_prediction next, far, token;
    n_tensors = 0;
    assert_int_equal(MOE_OK, load(&s, &p, NULL));
    assert_int_equal(0, p.n);
    assert_null(p.arena);
    assert_true(gw_prediction_of(&s, MOE_DECODER, 0, 1, &next));
    assert_true(gw_prediction_of(&s, MOE_DECODER, 1, 1, &token));
    assert_true(gw_prediction_of(&s, MOE_DECODER, 0, 2, &far));
    const gw_weight *router = &weights.stack[MOE_DECODER].layer[3].router;
    assert_ptr_equal(router, gw_predictor_for(&p, &weights, &s, GW_PREDICT_STORE, &next));
    assert_null(gw_predictor_for(&p, &weights, &s, GW_PREDICT_STORE, &token));
    assert_null(gw_predictor_for(&p, &weights, &s, GW_PREDICT_STORE, &far));
    assert_null(gw_predictor_for(&p, &weights, &s, GW_PREDICT_NONE, &next));
    gw_predictors_unload(&p);
}

static void its_own_predictors_come_first(void **state)
{
    (void)state;
    static gw_predictors p;
    static gw_dense_weights weights;
    const moe_model_shape s = shape_of_tests();
    gw_prediction next, token, encoder;
    n_tensors = 0;
    add("predictor.decoder.block.0.lookahead.1.weight", 10);
    struct tensor *narrow = add("predictor.decoder.block.1.lookahead.1.weight", 30);
    narrow->entry.dtype = MOE_BF16;
    narrow->entry.bytes = N * 2;
    add("predictor.decoder.block.7.lookahead.1.weight", 50); /* of no block: never asked for */
    assert_int_equal(MOE_OK, load(&s, &p, NULL));
    assert_int_equal(2, p.n);
    assert_true(gw_prediction_of(&s, MOE_DECODER, 0, 1, &next));
    assert_true(gw_prediction_of(&s, MOE_DECODER, 1, 1, &token));
    assert_true(gw_prediction_of(&s, MOE_ENCODER, 0, 1, &encoder));
    const gw_weight *w = gw_predictor_for(&p, &weights, &s, GW_PREDICT_STORE, &next);
    assert_true(w->dtype == MOE_F32 && w->rows == EXPERTS && w->cols == D_MODEL);
    assert_memory_equal(region[0].values, w->data, N * sizeof(float)); /* cpu: host memory */
    w = gw_predictor_for(&p, &weights, &s, GW_PREDICT_STORE, &token);
    assert_int_equal(MOE_BF16, w->dtype);
    assert_memory_equal(region[1].values, w->data, N * 2);
    assert_ptr_equal(&weights.stack[MOE_DECODER].layer[3].router,
                     gw_predictor_for(&p, &weights, &s, GW_PREDICT_ROUTER, &next));
    assert_ptr_equal(&weights.stack[MOE_ENCODER].layer[0].router,
                     gw_predictor_for(&p, &weights, &s, GW_PREDICT_STORE, &encoder));
    gw_predictors_unload(&p);
}

static void another_shape_is_refused_by_name(void **state)
{
    (void)state;
    static gw_predictors p;
    const moe_model_shape s = shape_of_tests();
    moe_err err = {0};
    n_tensors = 0;
    add("predictor.decoder.block.0.lookahead.1.weight", 0);
    struct tensor *t = add("predictor.encoder.block.0.lookahead.1.weight", 0);
    t->entry.dims[1] = D_MODEL + 1;
    assert_int_equal(MOE_ERR_FORMAT, load(&s, &p, &err));
    assert_non_null(strstr(err.text, "predictor.encoder.block.0.lookahead.1.weight"));
    assert_non_null(strstr(err.text, "[3, 5], expected f32 or bf16 [3, 4]"));
    assert_null(p.arena);
    t->entry.dims[1] = D_MODEL;
    t->entry.dtype = MOE_F16;
    assert_int_equal(MOE_ERR_FORMAT, load(&s, &p, NULL));
    t->entry.dtype = MOE_F32;
    t->entry.bytes -= 4;
    assert_int_equal(MOE_ERR_FORMAT, load(&s, &p, NULL));
}

static void a_pregated_checkpoint_needs_none(void **state)
{
    (void)state;
    static gw_predictors p;
    moe_model_shape s = shape_of_tests();
    s.pregate_lookahead = 1;
    n_tensors = 0;
    add("predictor.decoder.block.0.lookahead.1.weight", 0);
    assert_int_equal(MOE_OK, load(&s, &p, NULL));
    assert_int_equal(0, p.n);
    gw_predictors_unload(&p);
}

int main(void)
{
    const krn_open_cfg cfg = {.n_threads = 1};
    if (krn_ops_find("cpu", &ops, NULL, 0, NULL) != MOE_OK ||
        ops->backend.open(&cfg, &device, NULL) != MOE_OK ||
        ops->backend.stream_create(device, "test", &stream, NULL) != MOE_OK) {
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_store_without_predictors_has_routers_guess),
        cmocka_unit_test(its_own_predictors_come_first),
        cmocka_unit_test(another_shape_is_refused_by_name),
        cmocka_unit_test(a_pregated_checkpoint_needs_none),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    ops->backend.stream_destroy(stream);
    ops->backend.close(device);
    return failed != 0;
}
