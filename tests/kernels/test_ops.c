/* Every operation of every backend that answers here, against a naive reference in double
 * precision: random shapes with fixed seeds, poisoned outputs, ties and NaN, and bit-equality of
 * each row computed alone with the same row in a batch. */
#include "tests/support/kernel_rig.h"

#include <stdlib.h>

#include "common/clock.h"

static rig the;

/* Sums of n products of numbers below 1 in f32: about sqrt(n) * 2^-24 is expected, n * 2^-24 the
 * bound; 1e-4 covers n up to 1600 and still sees any missing product. */
static const double SUM_ABS = 1e-4, SUM_REL = 1e-5;

static const uint32_t both_dtypes[] = {MOE_F32, MOE_BF16};

static size_t weight_bytes(uint32_t dtype, size_t n)
{
    return n * moe_dtype_bytes((moe_dtype)dtype);
}

static void *must_alloc(size_t bytes)
{
    void *p = malloc(bytes > 0 ? bytes : 1);
    assert_non_null(p);
    return p;
}

static double activate(uint32_t act, double v)
{
    switch (act) {
    case MOE_ACT_RELU:
        return v > 0 ? v : 0;
    case MOE_ACT_GELU_ERF:
        return 0.5 * v * (1 + erf(v / sqrt(2.0)));
    case MOE_ACT_GELU_TANH:
        return 0.5 * v * (1 + tanh(sqrt(2.0 / acos(-1.0)) * (v + 0.044715 * v * v * v)));
    default:
        return v;
    }
}

static int release(void **state)
{
    (void)state;
    rig_release(&the);
    return 0;
}

/* ---- embed ---- */

static void embed_copies_the_named_rows(void **state)
{
    (void)state;
    enum { N_ROWS = 9, D_MODEL = 21, VOCAB = 13 };
    uint64_t seed = 1;
    for (size_t i = 0; i < 2; i++) {
        const uint32_t dtype = both_dtypes[i];
        float stored[VOCAB * D_MODEL], wide[VOCAB * D_MODEL], got[N_ROWS * D_MODEL];
        int32_t ids[N_ROWS] = {0, VOCAB - 1};
        for (int t = 2; t < N_ROWS; t++) {
            ids[t] = (int32_t)next_in(&seed, 0, VOCAB - 1);
        }
        fill_weights(stored, wide, VOCAB * D_MODEL, dtype, &seed);
        krn_embed_args a = {.n_rows = N_ROWS,
                            .d_model = D_MODEL,
                            .vocab = VOCAB,
                            .w_dtype = dtype,
                            .ids = rig_upload(&the, ids, sizeof ids),
                            .table = rig_upload(&the, stored, weight_bytes(dtype, VOCAB * D_MODEL)),
                            .x = rig_poisoned(&the, sizeof got)};
        rig_ok(&the, the.ops->embed(the.stream, &a, &the.err));
        rig_copy(&the, got, a.x, sizeof got);
        for (int t = 0; t < N_ROWS; t++) {
            assert_memory_equal(got + t * D_MODEL, wide + ids[t] * D_MODEL, D_MODEL * sizeof *got);
        }
    }
}

/* ---- rms_norm ---- */

static void rms_norm_matches_the_reference(void **state)
{
    (void)state;
    static const uint32_t dims[] = {1, 7, 16, 192, 515};
    uint64_t seed = 2;
    for (size_t i = 0; i < sizeof dims / sizeof *dims * 2; i++) {
        const uint32_t d = dims[i / 2], dtype = both_dtypes[i % 2], n_rows = 5;
        float stored[515], wide[515], x[5 * 515], batch[5 * 515], alone[515];
        fill_weights(stored, wide, d, dtype, &seed);
        fill_floats(x, n_rows * d, &seed);
        krn_rms_norm_args a = {.n_rows = n_rows,
                               .d_model = d,
                               .w_dtype = dtype,
                               .eps = 1e-6f,
                               .x = rig_upload(&the, x, n_rows * d * sizeof *x),
                               .w = rig_upload(&the, stored, weight_bytes(dtype, d)),
                               .y = rig_poisoned(&the, n_rows * d * sizeof *x)};
        rig_ok(&the, the.ops->rms_norm(the.stream, &a, &the.err));
        rig_copy(&the, batch, a.y, n_rows * d * sizeof *x);
        for (uint32_t t = 0; t < n_rows; t++) {
            double sum = 0;
            for (uint32_t k = 0; k < d; k++) {
                sum += (double)x[t * d + k] * (double)x[t * d + k];
            }
            for (uint32_t k = 0; k < d; k++) {
                double want = (double)x[t * d + k] / sqrt(sum / d + 1e-6) * (double)wide[k];
                check_close(want, batch[t * d + k], 1e-6, 1e-5, "rms_norm", t * d + k);
            }
            krn_rms_norm_args one = a; /* in place */
            one.n_rows = 1;
            one.x = a.x + t * d;
            one.y = (float *)one.x;
            rig_ok(&the, the.ops->rms_norm(the.stream, &one, &the.err));
            rig_copy(&the, alone, one.y, d * sizeof *alone);
            assert_memory_equal(alone, batch + t * d, d * sizeof *alone);
        }
    }
}

/* ---- linear ---- */

typedef struct linear_case {
    uint32_t n_rows, d_in, d_out, extra_stride, dtype, act;
    float scale;
    bool accumulate, has_norm;
} linear_case;

/* x becomes what rms_norm makes of it, and so does the row that a norm in front leaves in h. */
static void norm_case(const linear_case *c, krn_linear_args *a, float *x, uint64_t *seed)
{
    const size_t n_x = (size_t)c->n_rows * c->d_in;
    float *stored = must_alloc(c->d_in * sizeof(float)),
          *wide = must_alloc(c->d_in * sizeof(float));
    const uint32_t dtype = both_dtypes[next_in(seed, 0, 1)];
    fill_weights(stored, wide, c->d_in, dtype, seed);
    const krn_rms_norm_args norm = {.n_rows = c->n_rows,
                                    .d_model = c->d_in,
                                    .w_dtype = dtype,
                                    .eps = 1e-6f,
                                    .x = a->x,
                                    .w = rig_upload(&the, stored, weight_bytes(dtype, c->d_in)),
                                    .y = rig_poisoned(&the, n_x * sizeof *x)};
    rig_ok(&the, the.ops->rms_norm(the.stream, &norm, &the.err));
    rig_copy(&the, x, norm.y, n_x * sizeof *x);
    a->norm_w = norm.w;
    a->norm_dtype = dtype;
    a->norm_eps = norm.eps;
    a->h = rig_poisoned(&the, n_x * sizeof *x);
    free(stored);
    free(wide);
}

static void check_normed_rows(const linear_case *c, const krn_linear_args *a, const float *x)
{
    const size_t bytes = (size_t)c->n_rows * c->d_in * sizeof *x;
    float *h = must_alloc(bytes);
    rig_copy(&the, h, a->h, bytes);
    assert_memory_equal(x, h, bytes);
    free(h);
}

static void check_linear(const linear_case *c, bool has_scratch, uint64_t *seed)
{
    const size_t n_w = (size_t)c->d_out * c->d_in, n_x = (size_t)c->n_rows * c->d_in;
    const uint32_t stride = c->d_out + c->extra_stride;
    const size_t n_y = (size_t)c->n_rows * stride;
    void *stored = must_alloc(n_w * sizeof(float));
    float *wide = must_alloc(n_w * sizeof(float)), *x = must_alloc(n_x * sizeof(float));
    float *before = must_alloc(n_y * sizeof(float)), *got = must_alloc(n_y * sizeof(float));
    float *alone = must_alloc(stride * sizeof(float));
    fill_weights(stored, wide, n_w, c->dtype, seed);
    fill_floats(x, n_x, seed);
    memset(before, 0xFF, n_y * sizeof *before);
    if (c->accumulate) {
        fill_floats(before, n_y, seed);
    }
    krn_linear_args a = {.n_rows = c->n_rows,
                         .d_in = c->d_in,
                         .d_out = c->d_out,
                         .w_dtype = c->dtype,
                         .y_stride = stride,
                         .act = c->act,
                         .scale = c->scale,
                         .accumulate = c->accumulate,
                         .x = rig_upload(&the, x, n_x * sizeof *x),
                         .w = rig_upload(&the, stored, weight_bytes(c->dtype, n_w)),
                         .y = rig_upload(&the, before, n_y * sizeof *before)};
    if (c->has_norm) {
        norm_case(c, &a, x, seed);
    }
    if (has_scratch) {
        a.scratch = rig_poisoned(&the, krn_linear_scratch_bytes(c->d_in, c->d_out));
    }
    rig_ok(&the, the.ops->linear(the.stream, &a, &the.err));
    rig_copy(&the, got, a.y, n_y * sizeof *got);
    if (c->has_norm) {
        check_normed_rows(c, &a, x);
    }
    for (uint32_t t = 0; t < c->n_rows; t++) {
        for (uint32_t o = 0; o < c->d_out; o++) {
            double sum = 0;
            for (uint32_t i = 0; i < c->d_in; i++) {
                sum += (double)x[(size_t)t * c->d_in + i] * (double)wide[(size_t)o * c->d_in + i];
            }
            size_t at = (size_t)t * stride + o;
            double want = activate(c->act, (double)c->scale * sum);
            want += c->accumulate ? (double)before[at] : 0;
            check_close(want, got[at], SUM_ABS, SUM_REL, "linear", at);
        }
        for (uint32_t o = c->d_out; o < stride; o++) { /* the gap between rows is not ours */
            assert_memory_equal(&got[(size_t)t * stride + o], &before[(size_t)t * stride + o], 4);
        }
        rig_copy(&the, a.y, before + (size_t)t * stride, stride * sizeof *before);
        krn_linear_args one = a;
        one.n_rows = 1;
        one.x = a.x + (size_t)t * c->d_in;
        rig_ok(&the, the.ops->linear(the.stream, &one, &the.err));
        rig_copy(&the, alone, a.y, stride * sizeof *alone);
        assert_memory_equal(alone, got + (size_t)t * stride, c->d_out * sizeof *alone);
    }
    free(stored);
    free(wide);
    free(x);
    free(before);
    free(got);
    free(alone);
    rig_release(&the);
}

static void linear_matches_the_reference_and_ignores_the_row_count(void **state)
{
    (void)state;
    uint64_t seed = 3;
    static const linear_case cases[] = {
        {1, 192, 192, 0, MOE_BF16, MOE_ACT_NONE, 1.0f, false, false},
        {48, 192, 384, 0, MOE_BF16, MOE_ACT_RELU, 1.0f, false, false},
        {7, 384, 192, 0, MOE_F32, MOE_ACT_NONE, 1.0f, true, false},
        {3, 17, 5, 3, MOE_BF16, MOE_ACT_GELU_ERF, 0.5f, false, false},
        {5, 1, 1, 1, MOE_F32, MOE_ACT_GELU_TANH, 2.0f, true, false},
        {33, 100, 67, 0, MOE_F32, MOE_ACT_NONE, 0.072f, false, false},
        {130, 64, 130, 2, MOE_BF16, MOE_ACT_RELU, 1.0f, true, false},
        {2, 1024, 9, 0, MOE_BF16, MOE_ACT_NONE, 1.0f, false, false},
        /* alone and batch take different tiles on a device with some 100 multiprocessors */
        {64, 24, 1500, 0, MOE_BF16, MOE_ACT_NONE, 1.0f, false, false},
        {35, 19, 1501, 0, MOE_F32, MOE_ACT_NONE, 1.0f, true, false},
        {1, 768, 2304, 0, MOE_BF16, MOE_ACT_NONE, 1.0f, false, true},
        {70, 768, 96, 0, MOE_BF16, MOE_ACT_RELU, 1.0f, false, true}, /* normed once for all */
        {3, 8000, 16, 0, MOE_F32, MOE_ACT_NONE, 1.0f, true, true},   /* too long to be shared */
    };
    /* prompts, on tensor cores where there are any: several chunks, shapes of base and large */
    static const linear_case prompts[] = {
        {1100, 192, 96, 2, MOE_BF16, MOE_ACT_RELU, 0.5f, true, true},
        {70, 768, 2304, 0, MOE_BF16, MOE_ACT_NONE, 1.0f, false, true},
        {33, 3072, 768, 0, MOE_BF16, MOE_ACT_NONE, 1.0f, true, false},
        {40, 1024, 4096, 0, MOE_BF16, MOE_ACT_GELU_TANH, 1.0f, false, true},
        {9, 100, 67, 1, MOE_BF16, MOE_ACT_NONE, 1.0f, false, true}, /* not a shape for them */
        {9, 192, 384, 0, MOE_F32, MOE_ACT_NONE, 1.0f, false, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_linear(&cases[i], false, &seed);
    }
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        check_linear(&prompts[i], true, &seed);
    }
    for (int i = 0; i < 40; i++) {
        linear_case c = {.n_rows = next_in(&seed, 1, 40),
                         .d_in = next_in(&seed, 1, 300),
                         .d_out = next_in(&seed, 1, 90),
                         .extra_stride = next_in(&seed, 0, 3),
                         .dtype = both_dtypes[next_in(&seed, 0, 1)],
                         .act = next_in(&seed, MOE_ACT_NONE, MOE_ACT_GELU_TANH),
                         .scale = next_float(&seed),
                         .accumulate = next_in(&seed, 0, 1) == 1,
                         .has_norm = next_in(&seed, 0, 1) == 1};
        check_linear(&c, next_in(&seed, 0, 1) == 1, &seed);
    }
}

/* ---- kv_store ---- */

static void kv_store_writes_only_the_named_rows(void **state)
{
    (void)state;
    enum { N_ROWS = 4, WIDTH = 10, STRIDE = 13, N_SEQS = 3, N_CACHE = 12 };
    uint64_t seed = 4;
    float src[N_ROWS * STRIDE], cache[N_CACHE * WIDTH];
    const int32_t row_seq[N_ROWS] = {0, 2, 2, 1}, row_pos[N_ROWS] = {3, 0, 1, 2};
    const int64_t kv_off[N_SEQS] = {0, 4, 8};
    fill_floats(src, N_ROWS * STRIDE, &seed);
    krn_kv_store_args a = {.n_rows = N_ROWS,
                           .width = WIDTH,
                           .src_stride = STRIDE,
                           .src = rig_upload(&the, src, sizeof src),
                           .dst = rig_poisoned(&the, sizeof cache),
                           .row_seq = rig_upload(&the, row_seq, sizeof row_seq),
                           .row_pos = rig_upload(&the, row_pos, sizeof row_pos),
                           .kv_off = rig_upload(&the, kv_off, sizeof kv_off)};
    rig_ok(&the, the.ops->kv_store(the.stream, &a, &the.err));
    rig_copy(&the, cache, a.dst, sizeof cache);
    uint32_t n_written = 0;
    for (size_t i = 0; i < N_CACHE * WIDTH; i++) {
        n_written += isnan(cache[i]) ? 0 : 1;
    }
    assert_int_equal(N_ROWS * WIDTH, n_written);
    for (int t = 0; t < N_ROWS; t++) {
        int64_t row = kv_off[row_seq[t]] + row_pos[t];
        assert_memory_equal(cache + row * WIDTH, src + t * STRIDE, WIDTH * sizeof *src);
    }
}

/* ---- attention ---- */

enum { MAX_SEQS = 4, MAX_KV = 150, MAX_ATT_ROWS = 24, MAX_WIDTH = 3 * KRN_MAX_D_HEAD };

typedef struct attention_data {
    uint32_t n_rows, n_heads, d_head, bias_half, n_seqs;
    bool causal, has_bias, is_prompt;
    int32_t row_seq[MAX_ATT_ROWS], row_pos[MAX_ATT_ROWS], kv_len[MAX_SEQS];
    int64_t kv_off[MAX_SEQS];
    float q[MAX_ATT_ROWS * MAX_WIDTH];
    float k[MAX_SEQS * MAX_KV * MAX_WIDTH], v[MAX_SEQS * MAX_KV * MAX_WIDTH];
    float bias[3 * 41];
} attention_data;

static void attend_in_double(const attention_data *a, uint32_t t, uint32_t h, double *out)
{
    const uint32_t width = a->n_heads * a->d_head;
    const int32_t s = a->row_seq[t], half = (int32_t)a->bias_half;
    double score[MAX_KV], largest = -INFINITY, sum = 0;
    int32_t n = a->kv_len[s];
    if (a->causal && a->row_pos[t] + 1 < n) {
        n = a->row_pos[t] + 1;
    }
    memset(out, 0, a->d_head * sizeof *out);
    for (int32_t j = 0; j < n; j++) {
        const float *k = a->k + ((size_t)a->kv_off[s] + (size_t)j) * width + h * a->d_head;
        score[j] = 0;
        for (uint32_t d = 0; d < a->d_head; d++) {
            score[j] += (double)a->q[t * width + h * a->d_head + d] * (double)k[d];
        }
        int32_t distance = j - a->row_pos[t];
        distance = distance < -half ? -half : (distance > half ? half : distance);
        score[j] +=
            a->has_bias ? (double)a->bias[(int32_t)h * (2 * half + 1) + distance + half] : 0;
        largest = score[j] > largest ? score[j] : largest;
    }
    for (int32_t j = 0; j < n; j++) {
        sum += exp(score[j] - largest);
    }
    for (int32_t j = 0; j < n; j++) {
        const float *v = a->v + ((size_t)a->kv_off[s] + (size_t)j) * width + h * a->d_head;
        for (uint32_t d = 0; d < a->d_head; d++) {
            out[d] += exp(score[j] - largest) / sum * (double)v[d];
        }
    }
}

static void random_attention(attention_data *a, uint64_t *seed)
{
    static const uint32_t d_heads[] = {1, 5, 32, 40, 64, 128, KRN_MAX_D_HEAD};
    memset(a, 0, sizeof *a);
    a->n_rows = next_in(seed, 1, MAX_ATT_ROWS);
    a->n_heads = next_in(seed, 1, 3);
    a->d_head = d_heads[next_in(seed, 0, 6)];
    a->bias_half = next_in(seed, 0, 20);
    a->is_prompt = next_in(seed, 0, 1) == 1;
    a->causal = !a->is_prompt && next_in(seed, 0, 1) == 1;
    a->has_bias = next_in(seed, 0, 1) == 1;
    a->n_seqs = next_in(seed, 1, MAX_SEQS);
    for (uint32_t s = 0; s < a->n_seqs; s++) {
        a->kv_off[s] = (int64_t)(a->n_seqs - 1 - s) * MAX_KV;
        a->kv_len[s] = (int32_t)next_in(seed, s == 1 ? 0 : 1, s == 1 ? 0 : MAX_KV);
    }
    for (uint32_t t = 0; t < a->n_rows; t++) { /* a prompt's rows lie side by side */
        a->row_seq[t] =
            (int32_t)(a->is_prompt ? t * a->n_seqs / a->n_rows : next_in(seed, 0, a->n_seqs - 1));
        a->row_pos[t] = (int32_t)next_in(seed, 0, MAX_KV + 10);
        if (t % 2 == 0) { /* around the last cached position */
            a->row_pos[t] = a->kv_len[a->row_seq[t]] + (int32_t)next_in(seed, 0, 4);
            a->row_pos[t] -= a->row_pos[t] >= 4 ? 4 : 0;
        }
    }
    fill_floats(a->q, MAX_ATT_ROWS * MAX_WIDTH, seed);
    fill_floats(a->k, MAX_SEQS * MAX_KV * MAX_WIDTH, seed);
    fill_floats(a->v, MAX_SEQS * MAX_KV * MAX_WIDTH, seed);
    for (size_t i = 0; i < sizeof a->bias / sizeof *a->bias; i++) {
        a->bias[i] = 8 * next_float(seed); /* large: the running maximum has to move */
    }
}

static krn_attention_args upload_attention(const attention_data *a)
{
    const size_t row_bytes = a->n_heads * a->d_head * sizeof(float);
    const size_t cache_bytes = a->n_seqs * MAX_KV * row_bytes;
    const uint32_t width = a->n_heads * a->d_head;
    return (krn_attention_args){.n_rows = a->n_rows,
                                .n_heads = a->n_heads,
                                .d_head = a->d_head,
                                .bias_half = a->bias_half,
                                .max_kv_len = MAX_KV,
                                .q_stride = width,
                                .kv_stride = width,
                                .causal = a->causal,
                                .rows_share_kv = a->is_prompt,
                                .q = rig_upload(&the, a->q, a->n_rows * row_bytes),
                                .k = rig_upload(&the, a->k, cache_bytes),
                                .v = rig_upload(&the, a->v, cache_bytes),
                                .rel_bias =
                                    a->has_bias ? rig_upload(&the, a->bias, sizeof a->bias) : NULL,
                                .out = rig_poisoned(&the, a->n_rows * row_bytes),
                                .row_seq = rig_upload(&the, a->row_seq, sizeof a->row_seq),
                                .row_pos = rig_upload(&the, a->row_pos, sizeof a->row_pos),
                                .kv_off = rig_upload(&the, a->kv_off, sizeof a->kv_off),
                                .kv_len = rig_upload(&the, a->kv_len, sizeof a->kv_len)};
}

static void attention_matches_the_reference_and_ignores_the_row_count(void **state)
{
    (void)state;
    attention_data *data = must_alloc(sizeof *data);
    uint64_t seed = 5;
    for (int i = 0; i < 60; i++) {
        random_attention(data, &seed);
        const uint32_t width = data->n_heads * data->d_head;
        krn_attention_args a = upload_attention(data);
        float got[MAX_ATT_ROWS * MAX_WIDTH], alone[MAX_WIDTH];
        rig_ok(&the, the.ops->attention(the.stream, &a, &the.err));
        rig_copy(&the, got, a.out, data->n_rows * width * sizeof *got);
        for (uint32_t t = 0; t < data->n_rows; t++) {
            for (uint32_t h = 0; h < data->n_heads; h++) {
                double want[KRN_MAX_D_HEAD];
                attend_in_double(data, t, h, want);
                for (uint32_t d = 0; d < data->d_head; d++) {
                    size_t at = t * width + h * data->d_head + d;
                    check_close(want[d], got[at], 2e-5, 2e-5, "attention", at);
                }
            }
            krn_attention_args one = a;
            one.n_rows = 1;
            one.rows_share_kv = false; /* nor does the kernel that takes it matter */
            one.q = a.q + t * width;
            one.row_seq = a.row_seq + t;
            one.row_pos = a.row_pos + t;
            rig_ok(&the, the.ops->attention(the.stream, &one, &the.err));
            rig_copy(&the, alone, one.out, width * sizeof *alone);
            assert_memory_equal(alone, got + t * width, width * sizeof *alone);
        }
        rig_release(&the);
    }
    free(data);
}

/* Rows of queries, keys and values side by side, as one product leaves them; a decode step's rows
 * join the cache, an encode step's are the cache. Both equal dense rows and kv_store. */
static void attention_takes_rows_apart_and_keeps_new_ones(void **state)
{
    (void)state;
    enum { N_ROWS = 3, N_HEADS = 2, D_HEAD = 32, WIDTH = N_HEADS * D_HEAD, N_CACHE = N_ROWS * 16 };
    uint64_t seed = 55;
    float qkv[N_ROWS * 3 * WIDTH], q[N_ROWS * WIDTH], cache[2][N_CACHE * WIDTH];
    float want[N_ROWS * WIDTH], got[N_ROWS * WIDTH], kept[N_CACHE * WIDTH];
    const int32_t row_seq[N_ROWS] = {2, 0, 1}, row_pos[N_ROWS] = {15, 0, 7}, kv_len[] = {1, 8, 16};
    const int64_t kv_off[N_ROWS] = {0, 16, 32};
    fill_floats(qkv, N_ROWS * 3 * WIDTH, &seed);
    fill_floats(cache[0], N_CACHE * WIDTH, &seed);
    fill_floats(cache[1], N_CACHE * WIDTH, &seed);
    krn_attention_args a = {.n_rows = N_ROWS,
                            .n_heads = N_HEADS,
                            .d_head = D_HEAD,
                            .max_kv_len = 16,
                            .q_stride = 3 * WIDTH,
                            .kv_stride = WIDTH,
                            .causal = true,
                            .q = rig_upload(&the, qkv, sizeof qkv),
                            .k = rig_upload(&the, cache[0], sizeof cache[0]),
                            .v = rig_upload(&the, cache[1], sizeof cache[1]),
                            .out = rig_poisoned(&the, sizeof got),
                            .row_seq = rig_upload(&the, row_seq, sizeof row_seq),
                            .row_pos = rig_upload(&the, row_pos, sizeof row_pos),
                            .kv_off = rig_upload(&the, kv_off, sizeof kv_off),
                            .kv_len = rig_upload(&the, kv_len, sizeof kv_len)};
    a.new_k = a.q + WIDTH;
    a.new_v = a.q + 2 * WIDTH;
    rig_ok(&the, the.ops->attention(the.stream, &a, &the.err));
    rig_copy(&the, got, a.out, sizeof got);
    for (int t = 0; t < N_ROWS; t++) {
        const size_t row = (size_t)(kv_off[row_seq[t]] + row_pos[t]) * WIDTH;
        memcpy(q + t * WIDTH, qkv + t * 3 * WIDTH, WIDTH * sizeof *q);
        memcpy(cache[0] + row, qkv + t * 3 * WIDTH + WIDTH, WIDTH * sizeof *q);
        memcpy(cache[1] + row, qkv + t * 3 * WIDTH + 2 * WIDTH, WIDTH * sizeof *q);
    }
    rig_copy(&the, kept, a.k, sizeof kept);
    assert_memory_equal(cache[0], kept, sizeof kept);
    rig_copy(&the, kept, a.v, sizeof kept);
    assert_memory_equal(cache[1], kept, sizeof kept);

    krn_attention_args dense = a; /* the same over the cache as it should be now */
    dense.new_k = dense.new_v = NULL;
    dense.q_stride = WIDTH;
    dense.q = rig_upload(&the, q, sizeof q);
    rig_ok(&the, the.ops->attention(the.stream, &dense, &the.err));
    rig_copy(&the, want, dense.out, sizeof want);
    assert_memory_equal(want, got, sizeof want);
}

/* A projection in front changes no bit, whichever kernel takes it: of one row, of a few, of many;
 * with new keys and values, and over kept ones. */
enum { P_HEADS = 3, P_MAX_ROWS = 6, P_MAX_D_IN = 1088, P_MAX_KV = 700 };

typedef struct projection_case {
    uint32_t n_rows, d_head, d_in, dtype;
    bool has_new;
} projection_case;

/* The rows of one sequence each, at positions of every part, and beyond its first 32. */
static krn_attention_args projection_attention(const projection_case *c, uint64_t *seed)
{
    const uint32_t width = P_HEADS * c->d_head, n_cache = P_MAX_ROWS * P_MAX_KV;
    const size_t cache_bytes = (size_t)n_cache * width * sizeof(float);
    float *cache = must_alloc(cache_bytes), bias[P_HEADS * 41];
    int32_t row_seq[P_MAX_ROWS], row_pos[P_MAX_ROWS], kv_len[P_MAX_ROWS];
    int64_t kv_off[P_MAX_ROWS];
    for (uint32_t t = 0; t < P_MAX_ROWS; t++) {
        row_seq[t] = (int32_t)(P_MAX_ROWS - 1 - t);
        row_pos[t] = (int32_t)next_in(seed, 0, t % 2 == 0 ? 40 : P_MAX_KV - 1);
    }
    for (uint32_t t = 0; t < P_MAX_ROWS; t++) {
        kv_off[t] = (int64_t)t * P_MAX_KV;
        kv_len[row_seq[t]] = c->has_new ? row_pos[t] + 1 : (int32_t)next_in(seed, 0, P_MAX_KV);
    }
    for (size_t i = 0; i < sizeof bias / sizeof *bias; i++) {
        bias[i] = 8 * next_float(seed);
    }
    fill_floats(cache, cache_bytes / sizeof *cache, seed);
    krn_attention_args a = {.n_rows = c->n_rows,
                            .n_heads = P_HEADS,
                            .d_head = c->d_head,
                            .bias_half = 20,
                            .max_kv_len = P_MAX_KV,
                            .q_stride = 3 * width,
                            .kv_stride = width,
                            .causal = c->has_new,
                            .q = rig_poisoned(&the, P_MAX_ROWS * 3 * width * sizeof(float)),
                            .k = rig_upload(&the, cache, cache_bytes),
                            .rel_bias = c->has_new ? rig_upload(&the, bias, sizeof bias) : NULL,
                            .out = rig_poisoned(&the, P_MAX_ROWS * width * sizeof(float)),
                            .row_seq = rig_upload(&the, row_seq, sizeof row_seq),
                            .row_pos = rig_upload(&the, row_pos, sizeof row_pos),
                            .kv_off = rig_upload(&the, kv_off, sizeof kv_off),
                            .kv_len = rig_upload(&the, kv_len, sizeof kv_len)};
    fill_floats(cache, cache_bytes / sizeof *cache, seed);
    a.v = rig_upload(&the, cache, cache_bytes);
    if (c->has_new) {
        a.new_k = a.q + width;
        a.new_v = a.q + 2 * (size_t)width;
    }
    free(cache);
    return a;
}

static krn_linear_args projection_of(const projection_case *c, const krn_attention_args *a,
                                     uint64_t *seed)
{
    const uint32_t d_out = (c->has_new ? 3u : 1u) * (uint32_t)P_HEADS * c->d_head;
    const size_t n_weights = (size_t)d_out * c->d_in;
    float *stored = must_alloc(n_weights * sizeof *stored), *wide = must_alloc(n_weights * 4);
    float x[P_MAX_ROWS * P_MAX_D_IN], norm_w[P_MAX_D_IN];
    fill_weights(stored, wide, n_weights, c->dtype, seed);
    fill_floats(x, P_MAX_ROWS * P_MAX_D_IN, seed);
    fill_floats(norm_w, P_MAX_D_IN, seed);
    krn_linear_args l = {.n_rows = c->n_rows,
                         .d_in = c->d_in,
                         .d_out = d_out,
                         .w_dtype = c->dtype,
                         .y_stride = a->q_stride,
                         .scale = 1.0f,
                         .norm_dtype = MOE_F32,
                         .norm_eps = 1e-6f,
                         .x = rig_upload(&the, x, sizeof x),
                         .w = rig_upload(&the, stored, weight_bytes(c->dtype, n_weights)),
                         .norm_w = rig_upload(&the, norm_w, sizeof norm_w),
                         .h = rig_poisoned(&the, sizeof x),
                         .y = (float *)a->q};
    free(stored);
    free(wide);
    return l;
}

static void a_projection_in_front_of_attention_changes_no_bit(void **state)
{
    (void)state;
    static const projection_case cases[] = {
        {1, 64, 768, MOE_BF16, true}, {1, 64, 768, MOE_BF16, false}, {2, 32, 192, MOE_F32, true},
        {2, 32, 192, MOE_F32, false}, {4, 8, 1024, MOE_BF16, true},  {4, 48, 264, MOE_F32, false},
        {3, 64, 1024, MOE_F32, true}, {6, 64, 768, MOE_BF16, true},  {1, 64, 1088, MOE_BF16, true},
        {1, 20, 96, MOE_BF16, false}, {2, 24, 100, MOE_F32, true},   {1, 64, 8, MOE_BF16, false},
    };
    uint64_t seed = 56;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const projection_case *c = &cases[i];
        krn_attention_args a = projection_attention(c, &seed);
        const krn_linear_args l = projection_of(c, &a, &seed);
        const size_t bytes = c->n_rows * P_HEADS * c->d_head * sizeof(float);
        const size_t cache_bytes = (size_t)P_MAX_ROWS * P_MAX_KV * P_HEADS * c->d_head * 4;
        float want[P_MAX_ROWS * P_HEADS * 64], got[P_MAX_ROWS * P_HEADS * 64];
        float *cache[4];
        krn_attention_args apart = a; /* with a cache of its own */
        for (int k = 0; k < 4; k++) {
            cache[k] = must_alloc(cache_bytes);
        }
        rig_copy(&the, cache[0], a.k, cache_bytes);
        rig_copy(&the, cache[1], a.v, cache_bytes);
        apart.k = rig_upload(&the, cache[0], cache_bytes);
        apart.v = rig_upload(&the, cache[1], cache_bytes);
        rig_ok(&the, the.ops->linear(the.stream, &l, &the.err));
        rig_ok(&the, the.ops->attention(the.stream, &apart, &the.err));
        rig_copy(&the, want, apart.out, bytes);
        rig_ok(&the, the.ops->backend.fill_async(the.stream, a.out, 0xFF, bytes, &the.err));
        rig_ok(&the, the.ops->backend.fill_async(the.stream, l.y, 0xFF, /* not used */
                                                 c->n_rows * l.y_stride * sizeof(float), &the.err));
        a.project = &l;
        rig_ok(&the, the.ops->attention(the.stream, &a, &the.err));
        rig_copy(&the, got, a.out, bytes);
        assert_memory_equal(want, got, bytes);
        rig_copy(&the, cache[0], apart.k, cache_bytes);
        rig_copy(&the, cache[1], apart.v, cache_bytes);
        rig_copy(&the, cache[2], a.k, cache_bytes);
        rig_copy(&the, cache[3], a.v, cache_bytes);
        assert_memory_equal(cache[0], cache[2], cache_bytes);
        assert_memory_equal(cache[1], cache[3], cache_bytes);
        for (int k = 0; k < 4; k++) {
            free(cache[k]);
        }
        rig_release(&the);
    }
}

/* ---- gate_topk ---- */

typedef struct gate_result {
    int32_t ids[64];
    float weights[64];
} gate_result;

static void run_gate(krn_gate_topk_args *a, gate_result *out)
{
    const size_t n = (size_t)a->n_rows * a->top_k;
    assert_true(n <= 64);
    a->out.ids = rig_poisoned(&the, n * sizeof *out->ids);
    a->out.weights = rig_poisoned(&the, n * sizeof *out->weights);
    rig_ok(&the, the.ops->gate_topk(the.stream, a, &the.err));
    rig_copy(&the, out->ids, a->out.ids, n * sizeof *out->ids);
    rig_copy(&the, out->weights, a->out.weights, n * sizeof *out->weights);
}

static void gate_matches_the_reference_and_ignores_the_row_count(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_rows, d_model, n_experts, top_k;
    } cases[] = {{1, 192, 8, 1},  {31, 192, 8, 2}, {5, 33, 128, 4},
                 {3, 16, 512, 3}, {4, 5, 3, 3},    {2, 64, 1, 1}};
    uint64_t seed = 6;
    for (size_t i = 0; i < sizeof cases / sizeof *cases * 2; i++) {
        const uint32_t n_rows = cases[i / 2].n_rows, d = cases[i / 2].d_model;
        const uint32_t n_experts = cases[i / 2].n_experts, top_k = cases[i / 2].top_k;
        const uint32_t dtype = both_dtypes[i % 2];
        float *stored = must_alloc((size_t)n_experts * d * 4);
        float *wide = must_alloc((size_t)n_experts * d * 4), h[31 * 192];
        fill_weights(stored, wide, (size_t)n_experts * d, dtype, &seed);
        fill_floats(h, n_rows * d, &seed);
        krn_gate_topk_args a = {
            .n_rows = n_rows,
            .d_model = d,
            .n_experts = n_experts,
            .top_k = top_k,
            .w_dtype = dtype,
            .h = rig_upload(&the, h, n_rows * d * sizeof *h),
            .w = rig_upload(&the, stored, weight_bytes(dtype, (size_t)n_experts * d))};
        gate_result got;
        run_gate(&a, &got);
        for (uint32_t t = 0; t < n_rows; t++) {
            double p[512], largest = -INFINITY, sum = 0;
            for (uint32_t e = 0; e < n_experts; e++) {
                p[e] = 0;
                for (uint32_t k = 0; k < d; k++) {
                    p[e] += (double)h[t * d + k] * (double)wide[e * d + k];
                }
                largest = p[e] > largest ? p[e] : largest;
            }
            for (uint32_t e = 0; e < n_experts; e++) {
                p[e] = exp(p[e] - largest);
                sum += p[e];
            }
            for (uint32_t k = 0; k < top_k; k++) {
                uint32_t best = 0;
                for (uint32_t e = 1; e < n_experts; e++) {
                    best = p[e] > p[best] ? e : best;
                }
                assert_int_equal(best, got.ids[t * top_k + k]);
                check_close(p[best] / sum, got.weights[t * top_k + k], 1e-6, 2e-5, "gate", t);
                p[best] = -1;
            }
        }
        for (uint32_t t = 0; t < n_rows; t++) {
            gate_result alone;
            krn_gate_topk_args one = a;
            one.n_rows = 1;
            one.h = a.h + t * d;
            run_gate(&one, &alone);
            assert_memory_equal(alone.ids, got.ids + t * top_k, top_k * sizeof *alone.ids);
            assert_memory_equal(alone.weights, got.weights + t * top_k,
                                top_k * sizeof *alone.weights);
        }
        free(stored);
        free(wide);
        rig_release(&the);
    }
}

static void gate_ties_go_to_the_lower_expert(void **state)
{
    (void)state;
    enum { N_EXPERTS = 70, D = 3 };
    float w[N_EXPERTS * D], h[D] = {1, 1, 1};
    for (int e = 0; e < N_EXPERTS; e++) { /* logits: 40 and 65 tie at the top, 3 and 33 follow */
        float logit = (e == 40 || e == 65) ? 2.0f : ((e == 3 || e == 33) ? 1.0f : 0.0f);
        w[e * D] = logit;
        w[e * D + 1] = w[e * D + 2] = 0;
    }
    krn_gate_topk_args a = {.n_rows = 1,
                            .d_model = D,
                            .n_experts = N_EXPERTS,
                            .top_k = 6,
                            .w_dtype = MOE_F32,
                            .h = rig_upload(&the, h, sizeof h),
                            .w = rig_upload(&the, w, sizeof w)};
    gate_result got;
    run_gate(&a, &got);
    const int32_t want[] = {40, 65, 3, 33, 0, 1};
    assert_memory_equal(want, got.ids, sizeof want);
}

static void gate_rows_that_are_not_numbers_choose_the_first_experts(void **state)
{
    (void)state;
    enum { N_ROWS = 4, N_EXPERTS = 40, D = 2 };
    float w[N_EXPERTS * D], h[N_ROWS * D] = {NAN, 0, 1, 0, INFINITY, 1, -INFINITY, 0};
    for (int i = 0; i < N_EXPERTS * D; i++) {
        w[i] = (float)(i % 7) + 1.0f;
    }
    krn_gate_topk_args a = {.n_rows = N_ROWS,
                            .d_model = D,
                            .n_experts = N_EXPERTS,
                            .top_k = 2,
                            .w_dtype = MOE_F32,
                            .h = rig_upload(&the, h, sizeof h),
                            .w = rig_upload(&the, w, sizeof w)};
    gate_result got;
    run_gate(&a, &got);
    for (int t = 0; t < N_ROWS; t++) {
        if (t == 1) {
            assert_true(got.weights[2] > 0.0f);
            continue;
        }
        assert_int_equal(0, got.ids[t * 2]);
        assert_int_equal(1, got.ids[t * 2 + 1]);
        assert_true(isnan(got.weights[t * 2]) && isnan(got.weights[t * 2 + 1]));
    }
}

/* ---- dispatch ---- */

enum { MAX_DISPATCH_PAIRS = 3000 };

static void check_dispatch(uint32_t n_rows, uint32_t n_experts, uint32_t top_k, uint32_t capacity,
                           uint64_t *seed)
{
    enum { N_SEQS = 3 };
    static int32_t ids[MAX_DISPATCH_PAIRS], got_ids[MAX_DISPATCH_PAIRS];
    static int32_t order[MAX_DISPATCH_PAIRS], row_seq[MAX_DISPATCH_PAIRS];
    int32_t offsets[KRN_MAX_EXPERTS + 1], taken[N_SEQS * KRN_MAX_EXPERTS] = {0};
    const uint32_t n_pairs = n_rows * top_k;
    assert_true(n_pairs <= MAX_DISPATCH_PAIRS);
    for (uint32_t p = 0; p < n_pairs; p++) {
        ids[p] = (int32_t)next_in(seed, 0, n_experts - 1);
        row_seq[p / top_k] = (int32_t)next_in(seed, 0, N_SEQS - 1);
    }
    krn_dispatch_args a = {.n_rows = n_rows,
                           .n_experts = n_experts,
                           .top_k = top_k,
                           .capacity = capacity,
                           .n_seqs = N_SEQS,
                           .routing = {.ids = rig_upload(&the, ids, sizeof ids),
                                       .order = rig_poisoned(&the, sizeof order),
                                       .offsets = rig_poisoned(&the, sizeof offsets)},
                           .row_seq =
                               capacity > 0 ? rig_upload(&the, row_seq, sizeof row_seq) : NULL,
                           .scratch = capacity > 0 ? rig_poisoned(&the, sizeof taken) : NULL};
    rig_ok(&the, the.ops->dispatch(the.stream, &a, &the.err));
    rig_copy(&the, got_ids, a.routing.ids, sizeof got_ids);
    rig_copy(&the, order, a.routing.order, sizeof order);
    rig_copy(&the, offsets, a.routing.offsets, sizeof offsets);
    for (uint32_t p = 0; p < n_pairs; p++) {
        int32_t *n = &taken[(uint32_t)row_seq[p / top_k] * n_experts + (uint32_t)ids[p]];
        if (capacity > 0 && (uint32_t)(*n)++ >= capacity) {
            ids[p] = -1;
        }
    }
    assert_memory_equal(ids, got_ids, n_pairs * sizeof *ids);
    int32_t at = 0;
    for (uint32_t e = 0; e < n_experts; e++) {
        assert_int_equal(at, offsets[e]);
        for (uint32_t p = 0; p < n_pairs; p++) {
            if (ids[p] == (int32_t)e) {
                assert_int_equal(p, order[at++]);
            }
        }
    }
    assert_int_equal(at, offsets[n_experts]);
    rig_release(&the);
}

static void dispatch_sorts_pairs_by_expert_and_keeps_row_order(void **state)
{
    (void)state;
    uint64_t seed = 7;
    check_dispatch(1, 8, 1, 0, &seed);
    check_dispatch(0, 8, 1, 0, &seed);
    check_dispatch(1500, 128, 2, 0, &seed);
    check_dispatch(1000, 512, 3, 0, &seed);
    check_dispatch(2999, 1, 1, 0, &seed);
}

static void dispatch_drops_what_is_over_capacity_per_sequence(void **state)
{
    (void)state;
    uint64_t seed = 8;
    check_dispatch(48, 8, 1, 2, &seed);
    check_dispatch(1500, 16, 2, 9, &seed);
    check_dispatch(700, 512, 4, 1, &seed);
    check_dispatch(5, 4, 2, 100, &seed);
}

/* ---- publish ---- */

static uint32_t mail_seq(krn_mail *ring, uint32_t i)
{
    return atomic_load_explicit(&ring[i].seq, memory_order_acquire);
}

static void publish_names_active_experts_in_rising_order(void **state)
{
    (void)state;
    enum { N_EXPERTS = 200, DEPTH = 4 };
    int32_t offsets[N_EXPERTS + 1] = {0};
    uint32_t counter = 0;
    for (int e = 0; e < N_EXPERTS; e++) { /* active: 0, 3, 6, ... */
        offsets[e + 1] = offsets[e] + (e % 3 == 0 ? 1 + e % 2 : 0);
    }
    krn_mail *ring = rig_mapped(&the, DEPTH * sizeof *ring);
    krn_publish_args a = {.kind = KRN_MAIL_ROUTED,
                          .block = 5,
                          .n_experts = N_EXPERTS,
                          .offsets = rig_upload(&the, offsets, sizeof offsets),
                          .counter = rig_upload(&the, &counter, sizeof counter),
                          .ring = ring,
                          .depth = DEPTH};
    rig_ok(&the, the.ops->publish(the.stream, &a, &the.err));
    rig_sync(&the);
    assert_int_equal(1, mail_seq(ring, 1));
    assert_int_equal(KRN_MAIL_ROUTED, ring[1].kind);
    assert_int_equal(5, ring[1].block);
    assert_int_equal((N_EXPERTS + 2) / 3, ring[1].n);
    for (uint32_t i = 0; i < ring[1].n; i++) {
        assert_int_equal(3 * i, ring[1].expert[i]);
    }
}

static void publish_counts_on_around_the_ring(void **state)
{
    (void)state;
    enum { N_EXPERTS = 9, DEPTH = 4, N_MAILS = 11 };
    uint32_t counter = 0;
    krn_mail *ring = rig_mapped(&the, DEPTH * sizeof *ring);
    krn_publish_args a = {.kind = KRN_MAIL_DONE,
                          .block = 2,
                          .n_experts = N_EXPERTS,
                          .counter = rig_upload(&the, &counter, sizeof counter),
                          .ring = ring,
                          .depth = DEPTH};
    int64_t before = moe_now_ns();
    for (uint32_t i = 1; i <= N_MAILS; i++) {
        a.wave = i;
        rig_ok(&the, the.ops->publish(the.stream, &a, &the.err));
        rig_sync(&the);
        assert_int_equal(i, mail_seq(ring, i % DEPTH));
        assert_int_equal(i, ring[i % DEPTH].wave);
        assert_int_equal(0, ring[i % DEPTH].n);
        /* "as near as the backend can": a second would be another clock altogether */
        assert_true(ring[i % DEPTH].time_ns > before - MOE_NS_PER_S);
        assert_true(ring[i % DEPTH].time_ns < moe_now_ns() + MOE_NS_PER_S);
    }
    rig_copy(&the, &counter, a.counter, sizeof counter);
    assert_int_equal(N_MAILS, counter);

    a.kind = KRN_MAIL_GUESSED;
    a.all_experts = true;
    rig_ok(&the, the.ops->publish(the.stream, &a, &the.err));
    rig_sync(&the);
    assert_int_equal(N_EXPERTS, ring[(N_MAILS + 1) % DEPTH].n);
    for (uint32_t e = 0; e < N_EXPERTS; e++) {
        assert_int_equal(e, ring[(N_MAILS + 1) % DEPTH].expert[e]);
    }
}

/* ---- route ---- */

enum { ROUTE_DEPTH = 8 };

typedef struct route_result {
    float h[66 * 96];
    int32_t ids[132], order[132], offsets[KRN_MAX_EXPERTS + 1];
    float weights[132];
    krn_mail mails[2];
} route_result;

/* The record's memory and a mailbox, fresh. */
static void give_outputs(krn_route_args *a, krn_mail **out_ring)
{
    const size_t pairs = (size_t)a->gate.n_rows * a->gate.top_k + 1; /* room for n_rows 0 */
    const uint32_t zero = 0;
    krn_routing r = {.ids = rig_poisoned(&the, pairs * 4),
                     .weights = rig_poisoned(&the, pairs * 4),
                     .order = rig_poisoned(&the, pairs * 4),
                     .offsets = rig_poisoned(&the, (a->gate.n_experts + 1) * 4)};
    *out_ring = rig_mapped(&the, ROUTE_DEPTH * sizeof(krn_mail));
    uint32_t *counter = rig_upload(&the, &zero, sizeof zero);
    a->gate.out = a->dispatch.routing = r;
    a->n_mails = 2;
    for (uint32_t i = 0; i < 2; i++) {
        a->mail[i] = (krn_publish_args){.kind = i == 0 ? KRN_MAIL_ROUTED : KRN_MAIL_REACHED,
                                        .block = 3 + i,
                                        .n_experts = a->gate.n_experts,
                                        .offsets = i == 0 ? r.offsets : NULL,
                                        .counter = counter,
                                        .ring = *out_ring,
                                        .depth = ROUTE_DEPTH};
    }
}

static void read_outputs(const krn_route_args *a, const krn_mail *ring, route_result *out)
{
    const size_t pairs = (size_t)a->gate.n_rows * a->gate.top_k;
    memset(out, 0, sizeof *out);
    rig_copy(&the, out->h, a->gate.h, (size_t)a->gate.n_rows * a->gate.d_model * 4);
    rig_copy(&the, out->ids, a->gate.out.ids, pairs * 4);
    rig_copy(&the, out->weights, a->gate.out.weights, pairs * 4);
    rig_copy(&the, out->order, a->gate.out.order, pairs * 4);
    rig_copy(&the, out->offsets, a->gate.out.offsets, (a->gate.n_experts + 1) * 4);
    for (uint32_t i = 0; i < 2; i++) {
        memcpy(&out->mails[i], &ring[1 + i], sizeof out->mails[i]);
        out->mails[i].time_ns = 0;
    }
}

static void route_equals_its_parts_one_by_one(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_rows, d_model, n_experts, top_k;
        bool has_norm;
    } cases[] = {{1, 96, 128, 1, true}, {1, 96, 8, 2, false},  {5, 33, 512, 2, true},
                 {64, 96, 70, 1, true}, {66, 96, 70, 2, true}, {17, 40, 3, 1, false}};
    uint64_t seed = 77;
    route_result *one = must_alloc(sizeof *one), *parts = must_alloc(sizeof *parts);
    float *stored = must_alloc(512 * 96 * 4), *wide = must_alloc(512 * 96 * 4);
    float x[66 * 96], norm_w[96];
    for (size_t i = 0; i < sizeof cases / sizeof *cases * 2; i++) {
        const uint32_t n_rows = cases[i / 2].n_rows, d = cases[i / 2].d_model;
        const uint32_t n_experts = cases[i / 2].n_experts, top_k = cases[i / 2].top_k;
        const uint32_t dtype = both_dtypes[i % 2];
        fill_weights(stored, wide, (size_t)n_experts * d, dtype, &seed);
        fill_floats(x, n_rows * d, &seed);
        fill_floats(norm_w, d, &seed);
        krn_route_args a = {
            .gate = {.n_rows = n_rows,
                     .d_model = d,
                     .n_experts = n_experts,
                     .top_k = top_k,
                     .w_dtype = dtype,
                     .h = rig_upload(&the, x, n_rows * d * 4),
                     .w = rig_upload(&the, stored, weight_bytes(dtype, (size_t)n_experts * d))},
            .dispatch = {.n_rows = n_rows, .n_experts = n_experts, .top_k = top_k},
            .scratch = rig_poisoned(&the, n_rows * n_experts * 4)};
        if (cases[i / 2].has_norm) {
            float *h = rig_poisoned(&the, n_rows * d * 4);
            a.norm = (krn_rms_norm_args){.n_rows = n_rows,
                                         .d_model = d,
                                         .w_dtype = MOE_F32,
                                         .eps = 1e-6f,
                                         .x = a.gate.h,
                                         .w = rig_upload(&the, norm_w, d * 4),
                                         .y = h};
            a.gate.h = h;
        }
        krn_mail *ring = NULL;
        give_outputs(&a, &ring);
        rig_ok(&the, the.ops->route(the.stream, &a, &the.err));
        rig_sync(&the);
        read_outputs(&a, ring, one);
        assert_int_equal(2, mail_seq(ring, 2));
        assert_true(one->mails[0].n > 0);

        give_outputs(&a, &ring);
        if (a.norm.x != NULL) {
            rig_ok(&the, the.ops->rms_norm(the.stream, &a.norm, &the.err));
        }
        rig_ok(&the, the.ops->gate_topk(the.stream, &a.gate, &the.err));
        rig_ok(&the, the.ops->dispatch(the.stream, &a.dispatch, &the.err));
        rig_ok(&the, the.ops->publish(the.stream, &a.mail[0], &the.err));
        rig_ok(&the, the.ops->publish(the.stream, &a.mail[1], &the.err));
        rig_sync(&the);
        read_outputs(&a, ring, parts);
        assert_memory_equal(parts, one, sizeof *one);
        rig_release(&the);
    }
    free(one);
    free(parts);
    free(stored);
    free(wide);
}

/* ---- expert_ffn ---- */

enum { FFN_ROWS = 40, FFN_D = 50, FFN_FF = 70, FFN_EXPERTS = 6, FFN_PARAMS = 2 * FFN_D * FFN_FF };

typedef struct ffn {
    float stored[FFN_EXPERTS][FFN_PARAMS], wide[FFN_EXPERTS][FFN_PARAMS];
    float h[FFN_ROWS * FFN_D], x[FFN_ROWS * FFN_D], weights[FFN_ROWS];
    int32_t ids[FFN_ROWS];
    krn_expert_ffn_args args;
    krn_wave *wave;
    const void *cells[FFN_EXPERTS];
    const void *const *weights_of; /* device */
} ffn;

static void make_ffn(ffn *f, uint32_t dtype, uint32_t act, uint64_t *seed)
{
    for (int e = 0; e < FFN_EXPERTS; e++) {
        fill_weights(f->stored[e], f->wide[e], FFN_PARAMS, dtype, seed);
        f->cells[e] = rig_upload(&the, f->stored[e], weight_bytes(dtype, FFN_PARAMS));
    }
    f->weights_of = rig_upload(&the, f->cells, sizeof f->cells);
    fill_floats(f->h, FFN_ROWS * FFN_D, seed);
    fill_floats(f->x, FFN_ROWS * FFN_D, seed);
    fill_floats(f->weights, FFN_ROWS, seed);
    for (int t = 0; t < FFN_ROWS; t++) { /* expert 4 gets no rows; -1: over capacity */
        int32_t e = (int32_t)next_in(seed, 0, FFN_EXPERTS - 2);
        f->ids[t] = t % 13 == 7 ? -1 : e == 4 ? 5 : e;
    }
    f->wave = rig_mapped(&the, sizeof *f->wave);
    f->args = (krn_expert_ffn_args){
        .n_rows = FFN_ROWS,
        .d_model = FFN_D,
        .d_ff = FFN_FF,
        .n_experts = FFN_EXPERTS,
        .w_dtype = dtype,
        .act = act,
        .h = rig_upload(&the, f->h, sizeof f->h),
        .wave = f->wave,
        .routing = {.ids = rig_upload(&the, f->ids, sizeof f->ids),
                    .weights = rig_upload(&the, f->weights, sizeof f->weights),
                    .order = rig_poisoned(&the, sizeof f->ids),
                    .offsets = rig_poisoned(&the, 4 * (FFN_EXPERTS + 1))},
        .x = rig_upload(&the, f->x, sizeof f->x),
        .scratch = rig_poisoned(&the, FFN_ROWS * FFN_FF * 4),
        .row_failed = rig_device(&the, FFN_ROWS * 4)};
    const int32_t none_failed[FFN_ROWS] = {0};
    rig_copy(&the, f->args.row_failed, none_failed, sizeof none_failed);
    int32_t ids[FFN_ROWS], order[FFN_ROWS], offsets[FFN_EXPERTS + 1] = {0}, n = 0;
    memcpy(ids, f->ids, sizeof ids);
    for (int32_t e = 0; e < FFN_EXPERTS; e++) { /* as dispatch leaves them */
        for (int32_t t = 0; t < FFN_ROWS; t++) {
            if (ids[t] == e) {
                order[n++] = t;
            }
        }
        offsets[e + 1] = n;
    }
    rig_copy(&the, f->args.routing.order, order, (size_t)n * sizeof *order);
    rig_copy(&the, f->args.routing.offsets, offsets, sizeof offsets);
}

static void add_to_wave(ffn *f, int32_t expert, bool failed)
{
    f->wave->entry[f->wave->n++] =
        (krn_wave_entry){.weights = f->cells[expert], .expert = expert, .failed = failed ? 1 : 0};
}

/* x after the call; the wave is empty then. */
static void run_wave(ffn *f, float *x)
{
    rig_ok(&the, the.ops->expert_ffn(the.stream, &f->args, &the.err));
    rig_copy(&the, x, f->args.x, (size_t)f->args.n_rows * FFN_D * sizeof *x);
    f->wave->n = 0;
}

static void check_row(const ffn *f, uint32_t t, const float *x)
{
    double hidden[FFN_FF] = {0};
    const float *w = f->ids[t] >= 0 ? f->wide[f->ids[t]] : NULL, *h = f->h + t * FFN_D;
    for (int o = 0; o < FFN_FF && w != NULL; o++) {
        double sum = 0;
        for (int i = 0; i < FFN_D; i++) {
            sum += (double)w[o * FFN_D + i] * (double)h[i];
        }
        hidden[o] = activate(f->args.act, sum);
    }
    for (int o = 0; o < FFN_D; o++) {
        double sum = 0;
        for (int i = 0; i < FFN_FF && w != NULL; i++) {
            sum += (double)w[FFN_FF * FFN_D + o * FFN_FF + i] * hidden[i];
        }
        const size_t at = t * FFN_D + (uint32_t)o;
        check_close((double)f->x[at] + (double)f->weights[t] * sum, x[at], SUM_ABS, SUM_REL,
                    "expert_ffn", t);
    }
}

static void expert_ffn_matches_the_reference_in_one_wave_or_many(void **state)
{
    (void)state;
    ffn *f = must_alloc(sizeof *f);
    float *one = must_alloc(sizeof f->x), *many = must_alloc(sizeof f->x);
    uint64_t seed = 9;
    for (uint32_t i = 0; i < 6; i++) {
        static const uint32_t acts[] = {MOE_ACT_RELU, MOE_ACT_GELU_ERF, MOE_ACT_GELU_TANH};
        make_ffn(f, both_dtypes[i % 2], acts[i / 2], &seed);
        for (int32_t e = 0; e < FFN_EXPERTS; e++) {
            add_to_wave(f, e, false);
        }
        run_wave(f, one);
        for (uint32_t t = 0; t < FFN_ROWS; t++) {
            check_row(f, t, one);
        }
        rig_copy(&the, f->args.x, f->x, sizeof f->x);
        run_wave(f, many); /* an empty wave */
        assert_memory_equal(f->x, many, sizeof f->x);
        for (int32_t e = 0; e < FFN_EXPERTS; e++) {
            add_to_wave(f, e, false);
            run_wave(f, many);
        }
        assert_memory_equal(one, many, sizeof f->x);

        rig_copy(&the, f->args.x, f->x, sizeof f->x);
        f->args.wave = NULL;
        f->args.weights_of = f->weights_of;
        run_wave(f, many); /* all at hand */
        assert_memory_equal(one, many, sizeof f->x);
        rig_release(&the);
    }
    free(f);
    free(one);
    free(many);
}

static void expert_ffn_does_not_depend_on_who_shares_the_call(void **state)
{
    (void)state;
    ffn *f = must_alloc(sizeof *f);
    float *batch = must_alloc(sizeof f->x), alone[FFN_D];
    uint64_t seed = 10;
    make_ffn(f, MOE_BF16, MOE_ACT_RELU, &seed);
    for (int32_t e = 0; e < FFN_EXPERTS; e++) {
        add_to_wave(f, e, false);
    }
    run_wave(f, batch);
    const krn_expert_ffn_args all = f->args;
    rig_copy(&the, f->args.x, f->x, sizeof f->x);
    f->args.n_rows = 1; /* as a decode step of one sequence calls it */
    for (int32_t t = 0; t < FFN_ROWS; t++) {
        int32_t offsets[FFN_EXPERTS + 1] = {0}, first = 0;
        for (int32_t e = 0; e < FFN_EXPERTS; e++) {
            offsets[e + 1] = f->ids[t] >= 0 && f->ids[t] <= e;
            add_to_wave(f, e, false);
        }
        f->args.h = all.h + t * FFN_D;
        f->args.x = all.x + t * FFN_D;
        f->args.routing.ids = all.routing.ids + t;
        f->args.routing.weights = all.routing.weights + t;
        rig_copy(&the, f->args.routing.order, &first, sizeof first);
        rig_copy(&the, f->args.routing.offsets, offsets, sizeof offsets);
        run_wave(f, alone);
        assert_memory_equal(batch + t * FFN_D, alone, sizeof alone);
    }
    free(f);
    free(batch);
}

static void expert_ffn_marks_the_rows_of_a_failed_expert(void **state)
{
    (void)state;
    ffn *f = must_alloc(sizeof *f);
    float *x = must_alloc(sizeof f->x);
    uint64_t seed = 11;
    make_ffn(f, MOE_BF16, MOE_ACT_RELU, &seed);
    for (int32_t e = 0; e < FFN_EXPERTS; e++) {
        add_to_wave(f, e, e == 2);
    }
    run_wave(f, x);
    int32_t row_failed[FFN_ROWS], want_failed[FFN_ROWS] = {0};
    rig_copy(&the, row_failed, f->args.row_failed, sizeof row_failed);
    for (uint32_t t = 0; t < FFN_ROWS; t++) {
        if (f->ids[t] != 2) {
            check_row(f, t, x);
            continue;
        }
        want_failed[t] = 1;
        assert_memory_equal(f->x + t * FFN_D, x + t * FFN_D, FFN_D * sizeof *x);
    }
    assert_memory_equal(want_failed, row_failed, sizeof row_failed);
    free(f);
    free(x);
}

/* ---- argmax ---- */

static void argmax_takes_the_lowest_of_equals_and_never_nan(void **state)
{
    (void)state;
    enum { N_ROWS = 8, VOCAB = 5001 };
    uint64_t seed = 13;
    float *logits = must_alloc(N_ROWS * VOCAB * sizeof *logits);
    int32_t got[N_ROWS];
    fill_floats(logits, N_ROWS * VOCAB, &seed);
    int32_t want[N_ROWS] = {4097, 1234, 0, 5000, 17, 0, 2500, 42};
    logits[0 * VOCAB + 4097] = 2;
    logits[1 * VOCAB + 1234] = logits[1 * VOCAB + 1235] = logits[1 * VOCAB + 4999] = 2;
    logits[2 * VOCAB + 0] = logits[2 * VOCAB + 5000] = 2;
    logits[3 * VOCAB + 5000] = 2;
    logits[4 * VOCAB + 0] = logits[4 * VOCAB + 16] = logits[4 * VOCAB + 18] = NAN;
    logits[4 * VOCAB + 17] = 2;
    for (int i = 0; i < VOCAB; i++) {
        logits[5 * VOCAB + i] = NAN;
        logits[6 * VOCAB + i] = i == 2500 ? -INFINITY : NAN;
        logits[7 * VOCAB + i] = i < 42 ? NAN : -INFINITY;
    }
    krn_argmax_args a = {.n_rows = N_ROWS,
                         .vocab = VOCAB,
                         .logits = rig_upload(&the, logits, N_ROWS * VOCAB * sizeof *logits),
                         .out = rig_poisoned(&the, sizeof got)};
    rig_ok(&the, the.ops->argmax(the.stream, &a, &the.err));
    rig_copy(&the, got, a.out, sizeof got);
    assert_memory_equal(want, got, sizeof got);
    free(logits);
}

static void argmax_writes_into_mapped_memory_too(void **state)
{
    (void)state;
    float logits[3] = {0, 3, 1};
    krn_argmax_args a = {.n_rows = 1,
                         .vocab = 3,
                         .logits = rig_upload(&the, logits, sizeof logits),
                         .out = rig_mapped(&the, sizeof(int32_t))};
    rig_ok(&the, the.ops->argmax(the.stream, &a, &the.err));
    rig_sync(&the);
    assert_int_equal(1, *a.out);
}

/* ---- checks ---- */

static void an_operation_names_the_argument_it_refuses(void **state)
{
    (void)state;
    void *some = rig_device(&the, 64);
    moe_err err = {0};
    krn_linear_args linear = {.n_rows = 1,
                              .d_in = 4,
                              .d_out = 4,
                              .y_stride = 3,
                              .w_dtype = MOE_F32,
                              .x = some,
                              .w = some,
                              .y = (float *)some + 8};
    assert_int_equal(MOE_ERR_INVALID, the.ops->linear(the.stream, &linear, &err));
    assert_non_null(strstr(err.text, "linear: y_stride"));
    krn_gate_topk_args gate = {.n_rows = 1, .d_model = 1, .n_experts = 513, .top_k = 1};
    assert_int_equal(MOE_ERR_INVALID, the.ops->gate_topk(the.stream, &gate, &err));
    assert_non_null(strstr(err.text, "gate_topk: n_experts"));
    krn_publish_args publish = {.kind = KRN_MAIL_DONE, .counter = some, .ring = some, .depth = 3};
    assert_int_equal(MOE_ERR_INVALID, the.ops->publish(the.stream, &publish, &err));
    assert_non_null(strstr(err.text, "publish: depth"));
    krn_embed_args embed = {.n_rows = 1, .d_model = 1, .vocab = 1, .w_dtype = MOE_F16};
    assert_int_equal(MOE_ERR_INVALID, the.ops->embed(the.stream, &embed, &err));
    assert_non_null(strstr(err.text, "embed: w_dtype"));
}

static void no_rows_is_nothing_to_do(void **state)
{
    (void)state;
    float *y = rig_poisoned(&the, 64), got[16];
    krn_linear_args a = {.n_rows = 0,
                         .d_in = 4,
                         .d_out = 4,
                         .y_stride = 4,
                         .w_dtype = MOE_F32,
                         .x = rig_device(&the, 64),
                         .w = rig_device(&the, 64),
                         .y = y};
    rig_ok(&the, the.ops->linear(the.stream, &a, &the.err));
    rig_copy(&the, got, y, sizeof got);
    for (int i = 0; i < 16; i++) {
        assert_true(isnan(got[i]));
    }
}

#define OP_TEST(name) cmocka_unit_test_teardown(name, release)

static int run_backend(const char *name, bool own_products)
{
    const krn_ops *ops = NULL;
    moe_err err = {0};
    if (krn_ops_find(name, &ops, NULL, 0, &err) != MOE_OK) {
        printf("%s: not tested: %s\n", name, err.text);
        return 0;
    }
    const krn_open_cfg cfg = {.n_threads = 3, .own_products = own_products};
    const struct CMUnitTest tests[] = {
        OP_TEST(embed_copies_the_named_rows),
        OP_TEST(rms_norm_matches_the_reference),
        OP_TEST(linear_matches_the_reference_and_ignores_the_row_count),
        OP_TEST(kv_store_writes_only_the_named_rows),
        OP_TEST(attention_matches_the_reference_and_ignores_the_row_count),
        OP_TEST(attention_takes_rows_apart_and_keeps_new_ones),
        OP_TEST(a_projection_in_front_of_attention_changes_no_bit),
        OP_TEST(gate_matches_the_reference_and_ignores_the_row_count),
        OP_TEST(gate_ties_go_to_the_lower_expert),
        OP_TEST(gate_rows_that_are_not_numbers_choose_the_first_experts),
        OP_TEST(dispatch_sorts_pairs_by_expert_and_keeps_row_order),
        OP_TEST(dispatch_drops_what_is_over_capacity_per_sequence),
        OP_TEST(publish_names_active_experts_in_rising_order),
        OP_TEST(publish_counts_on_around_the_ring),
        OP_TEST(route_equals_its_parts_one_by_one),
        OP_TEST(expert_ffn_matches_the_reference_in_one_wave_or_many),
        OP_TEST(expert_ffn_does_not_depend_on_who_shares_the_call),
        OP_TEST(expert_ffn_marks_the_rows_of_a_failed_expert),
        OP_TEST(argmax_takes_the_lowest_of_equals_and_never_nan),
        OP_TEST(argmax_writes_into_mapped_memory_too),
        OP_TEST(an_operation_names_the_argument_it_refuses),
        OP_TEST(no_rows_is_nothing_to_do),
    };
    if (rig_open(&the, name, &cfg) != 0) {
        return 1;
    }
    int failed = cmocka_run_group_tests_name(name, tests, NULL, NULL);
    rig_close(&the);
    return failed;
}

/* test_kernels_ops [own]    own: without cuBLASLt */
int main(int argc, char **argv)
{
    bool own = argc == 2 && strcmp(argv[1], "own") == 0;
    return (run_backend("cpu", own) + run_backend("cuda", own)) != 0;
}
