/* cublas_lt.cu - see cublas_lt.cuh. cuBLASLt counts columns first: a row-major matrix is its own
 * transpose there, so y^T [d_out, n_rows] = (w^T)^T x^T with w^T [d_in, d_out], x^T [d_in, n_rows].
 */
#include "kernels/backend/cublas_lt.cuh"

#include <cublasLt.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

enum { REFERENCE_ROWS = 768, MAX_SHAPES = 32 };

#define TEXT_OF(x) #x
#define SONAME(major) "libcublasLt.so." TEXT_OF(major)

/* The algorithm of one (d_in, d_out). */
typedef struct shape_plan {
    uint32_t d_in, d_out;
    cublasLtMatmulAlgo_t algo;
} shape_plan;

struct krn_cublas_lt {
    void *library; /* owned */
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtGetVersion) version;
    decltype(&cublasLtGetStatusString) status_text;
    decltype(&cublasLtMatmulDescCreate) desc_create;
    decltype(&cublasLtMatmulDescDestroy) desc_destroy;
    decltype(&cublasLtMatmulDescSetAttribute) desc_set;
    decltype(&cublasLtMatrixLayoutCreate) layout_create;
    decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
    decltype(&cublasLtMatmulPreferenceCreate) preference_create;
    decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
    decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
    decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
    decltype(&cublasLtMatmul) matmul;
    cublasLtHandle_t handle;   /* owned */
    cublasLtMatmulDesc_t desc; /* owned: x w^T with f32 sums, of every product */
    pthread_mutex_t mu;
    shape_plan plans[MAX_SHAPES]; /* guarded by mu; unused ones are zero */
    uint32_t n_plans;             /* chosen so far, likewise */
};

static moe_status lt_status(const krn_cublas_lt *c, cublasStatus_t rc, const char *what,
                            moe_err *err)
{
    if (rc == CUBLAS_STATUS_SUCCESS) {
        return MOE_OK;
    }
    return MOE_FAIL_NATIVE(err, MOE_ERR_DEVICE, MOE_LAYER_CUBLAS, (int32_t)rc, "cuBLASLt: %s: %s",
                           what, c->status_text(rc));
}

/* ---- the library ---- */

static void *open_library(char *why, size_t why_bytes)
{
    static const char *const names[] = {SONAME(CUBLAS_VER_MAJOR),
                                        "/usr/local/cuda/lib64/" SONAME(CUBLAS_VER_MAJOR)};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (library != NULL) {
            return library;
        }
        if (i == 0) {
            const char *text = dlerror();
            snprintf(why, why_bytes, "%s", text != NULL ? text : "cannot be loaded");
        }
    }
    return NULL;
}

template <typename fn> static bool find(krn_cublas_lt *c, fn *out, const char *name)
{
    *out = (fn)dlsym(c->library, name);
    return *out != NULL;
}

static bool find_all(krn_cublas_lt *c)
{
    return find(c, &c->create, "cublasLtCreate") && find(c, &c->destroy, "cublasLtDestroy") &&
           find(c, &c->version, "cublasLtGetVersion") &&
           find(c, &c->status_text, "cublasLtGetStatusString") &&
           find(c, &c->desc_create, "cublasLtMatmulDescCreate") &&
           find(c, &c->desc_destroy, "cublasLtMatmulDescDestroy") &&
           find(c, &c->desc_set, "cublasLtMatmulDescSetAttribute") &&
           find(c, &c->layout_create, "cublasLtMatrixLayoutCreate") &&
           find(c, &c->layout_destroy, "cublasLtMatrixLayoutDestroy") &&
           find(c, &c->preference_create, "cublasLtMatmulPreferenceCreate") &&
           find(c, &c->preference_destroy, "cublasLtMatmulPreferenceDestroy") &&
           find(c, &c->preference_set, "cublasLtMatmulPreferenceSetAttribute") &&
           find(c, &c->heuristic, "cublasLtMatmulAlgoGetHeuristic") &&
           find(c, &c->matmul, "cublasLtMatmul");
}

static moe_status begin_library(krn_cublas_lt *c, moe_err *err)
{
    char why[200];
    c->library = open_library(why, sizeof why);
    if (c->library == NULL) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED, "cuBLASLt was not found: %s", why);
    }
    if (!find_all(c)) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED, "cuBLASLt is not the one it should be: %s",
                        dlerror());
    }
    const cublasOperation_t transposed = CUBLAS_OP_T;
    moe_status st = lt_status(c, c->create(&c->handle), "start", err);
    if (st == MOE_OK) {
        st =
            lt_status(c, c->desc_create(&c->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describe", err);
    }
    if (st == MOE_OK) {
        st = lt_status(
            c, c->desc_set(c->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
            "describe", err);
    }
    return st;
}

moe_status krn_cublas_lt_open(krn_cublas_lt **out, moe_err *err)
{
    krn_cublas_lt *c = (krn_cublas_lt *)calloc(1, sizeof *c);
    if (c == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "cuBLASLt");
    }
    pthread_mutex_init(&c->mu, NULL);
    moe_status st = begin_library(c, err);
    if (st != MOE_OK) {
        krn_cublas_lt_close(c);
        return st;
    }
    *out = c;
    return MOE_OK;
}

void krn_cublas_lt_close(krn_cublas_lt *c)
{
    if (c == NULL) {
        return;
    }
    if (c->desc != NULL) {
        c->desc_destroy(c->desc);
    }
    if (c->handle != NULL) {
        c->destroy(c->handle);
    }
    if (c->library != NULL) {
        dlclose(c->library);
    }
    pthread_mutex_destroy(&c->mu);
    free(c);
}

uint32_t krn_cublas_lt_version(const krn_cublas_lt *c)
{
    return (uint32_t)c->version();
}

/* ---- products ---- */

/* The three matrices of a product, as cuBLASLt describes them. */
struct layouts {
    cublasLtMatrixLayout_t w, x, y;
};

static void forget_layouts(const krn_cublas_lt *c, layouts *l)
{
    const cublasLtMatrixLayout_t all[] = {l->w, l->x, l->y};
    for (cublasLtMatrixLayout_t one : all) {
        if (one != NULL) {
            c->layout_destroy(one);
        }
    }
}

static moe_status describe(const krn_cublas_lt *c, uint32_t n_rows, uint32_t d_in, uint32_t d_out,
                           layouts *out, moe_err *err)
{
    *out = {};
    cublasStatus_t rc = c->layout_create(&out->w, CUDA_R_16BF, d_in, d_out, d_in);
    if (rc == CUBLAS_STATUS_SUCCESS) {
        rc = c->layout_create(&out->x, CUDA_R_16BF, d_in, n_rows, d_in);
    }
    if (rc == CUBLAS_STATUS_SUCCESS) {
        rc = c->layout_create(&out->y, CUDA_R_32F, d_out, n_rows, d_out);
    }
    if (rc != CUBLAS_STATUS_SUCCESS) {
        forget_layouts(c, out);
    }
    return lt_status(c, rc, "describe a matrix", err);
}

/* No workspace, and sums that no other block adds to. */
static cublasStatus_t prefer(const krn_cublas_lt *c, cublasLtMatmulPreference_t preference)
{
    const uint64_t no_bytes = 0;
    const uint32_t no_reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
    cublasStatus_t rc = c->preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                          &no_bytes, sizeof no_bytes);
    if (rc == CUBLAS_STATUS_SUCCESS) {
        rc = c->preference_set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                               &no_reduction, sizeof no_reduction);
    }
    return rc;
}

static moe_status choose(const krn_cublas_lt *c, shape_plan *plan, moe_err *err)
{
    layouts l;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t result;
    int n_found = 0;
    moe_status st = describe(c, REFERENCE_ROWS, plan->d_in, plan->d_out, &l, err);
    if (st != MOE_OK) {
        return st;
    }
    cublasStatus_t rc = c->preference_create(&preference);
    if (rc == CUBLAS_STATUS_SUCCESS) {
        rc = prefer(c, preference);
    }
    if (rc == CUBLAS_STATUS_SUCCESS) {
        rc = c->heuristic(c->handle, c->desc, l.w, l.x, l.y, l.y, preference, 1, &result, &n_found);
    }
    if (rc == CUBLAS_STATUS_SUCCESS && n_found == 0) {
        rc = CUBLAS_STATUS_NOT_SUPPORTED;
    }
    plan->algo = result.algo;
    if (preference != NULL) {
        c->preference_destroy(preference);
    }
    forget_layouts(c, &l);
    return lt_status(c, rc, "choose an algorithm", err);
}

/* When all places are taken the oldest is chosen anew should it be asked for again. */
static moe_status plan_of_locked(krn_cublas_lt *c, uint32_t d_in, uint32_t d_out, shape_plan *out,
                                 moe_err *err)
{
    for (const shape_plan &plan : c->plans) {
        if (plan.d_in == d_in && plan.d_out == d_out) {
            *out = plan;
            return MOE_OK;
        }
    }
    out->d_in = d_in;
    out->d_out = d_out;
    moe_status st = choose(c, out, err);
    if (st == MOE_OK) {
        c->plans[c->n_plans++ % MAX_SHAPES] = *out;
    }
    return st;
}

moe_status krn_cublas_lt_multiply(krn_cublas_lt *c, cudaStream_t stream, const krn_product *p,
                                  moe_err *err)
{
    const float one = 1.0f, zero = 0.0f;
    shape_plan plan;
    layouts l;
    pthread_mutex_lock(&c->mu);
    moe_status st = plan_of_locked(c, p->d_in, p->d_out, &plan, err);
    pthread_mutex_unlock(&c->mu);
    if (st == MOE_OK) {
        st = describe(c, p->n_rows, p->d_in, p->d_out, &l, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    cublasStatus_t rc = c->matmul(c->handle, c->desc, &one, p->w, l.w, p->x, l.x, &zero, p->y, l.y,
                                  p->y, l.y, &plan.algo, NULL, 0, stream);
    forget_layouts(c, &l);
    return lt_status(c, rc, "multiply", err);
}
