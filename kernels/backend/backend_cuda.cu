/* backend_cuda.cu - the `cuda` device: choosing it, its memory, and host memory it can copy from.
 *
 * Owns: the krn_device. Streams, copies, signals, events and graphs: stream_cuda.cu; the clock that
 * events and mails share with the host: clock_cuda.cu.
 * Threads: as backend.h says; every entry makes its device current for the calling thread.
 * A kernel that loads while a stream waits for the host can hang both (measured: 4 of 8 runs). So
 * open loads every kernel of ours (krn_cuda_note_kernel), and prompts run every product of cuBLASLt
 * once before they serve. CUDA_MODULE_LOADING=EAGER would do it too, for 2 s and 360 MB of device
 * memory: it loads all of cuBLASLt. LAZY is set before the first CUDA call unless the user set it.
 * Streams that share a hardware connection wait for each other, at a flag too:
 * CUDA_DEVICE_MAX_CONNECTIONS=32 (likewise) gives each of ours its own. Shutdown: close after every
 * stream and event is destroyed. A device that failed makes every call here fail; destroying still
 * frees what the host holds.
 */
#include "kernels/backend/cublas_lt.cuh"

#include <stdio.h>
#include <stdlib.h>

enum { MIN_MAJOR = 8 }; /* the oldest machine code in this build is sm_80 */

static moe_status status_of(cudaError_t rc)
{
    switch (rc) {
    case cudaSuccess:
        return MOE_OK;
    case cudaErrorMemoryAllocation:
        return MOE_ERR_NO_MEMORY;
    case cudaErrorNotReady:
        return MOE_ERR_AGAIN;
    case cudaErrorInvalidValue:
    case cudaErrorHostMemoryAlreadyRegistered:
    case cudaErrorHostMemoryNotRegistered:
        return MOE_ERR_INVALID;
    case cudaErrorNotSupported:
    case cudaErrorStreamCaptureUnsupported:
        return MOE_ERR_UNSUPPORTED;
    case cudaErrorNotPermitted:
        return MOE_ERR_PERMISSION;
    default:
        return MOE_ERR_DEVICE;
    }
}

moe_status krn_cuda_status(moe_err *err, cudaError_t rc, const char *what, const char *file,
                           int32_t line)
{
    if (rc == cudaSuccess) {
        return MOE_OK;
    }
    (void)cudaGetLastError();
    return moe_fail(err, status_of(rc), MOE_LAYER_CUDA, (int32_t)rc, file, line, "%s: %s", what,
                    cudaGetErrorString(rc));
}

moe_status krn_cuda_launched(moe_err *err, const char *op)
{
    return KRN_CUDA(err, cudaGetLastError(), op);
}

moe_status krn_cuda_use(krn_device *d, moe_err *err)
{
    return KRN_CUDA(err, cudaSetDevice(d->index), "make the CUDA device current");
}

/* For the driver, which reads them at its first call; what the user set stays. Called while the
 * program starts: setenv is not safe beside another thread's getenv. */
static void set_driver_defaults(void)
{
    setenv("CUDA_MODULE_LOADING", "LAZY", 0);
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
}

static moe_status count_devices(int *out_n, moe_err *err)
{
    set_driver_defaults();
    int n = 0;
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc != cudaSuccess || n == 0) {
        (void)cudaGetLastError();
        return MOE_FAIL_NATIVE(
            err, MOE_ERR_DEVICE, MOE_LAYER_CUDA, (int32_t)rc, "no CUDA device answers: %s",
            rc != cudaSuccess ? cudaGetErrorString(rc) : "the driver lists none");
    }
    *out_n = n;
    return MOE_OK;
}

static moe_status check_capability(int index, moe_err *err)
{
    int major = 0, minor = 0;
    moe_status st =
        KRN_CUDA(err, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index),
                 "read the compute capability");
    if (st == MOE_OK) {
        st = KRN_CUDA(err, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index),
                      "read the compute capability");
    }
    if (st == MOE_OK && major < MIN_MAJOR) {
        st = MOE_FAIL(err, MOE_ERR_DEVICE,
                      "CUDA device %d has compute capability %d.%d; this build needs %d.0 or later",
                      index, major, minor, MIN_MAJOR);
    }
    return st;
}

extern "C" moe_status krn_cuda_probe(moe_err *err)
{
    int n = 0;
    moe_status st = count_devices(&n, err);
    return st == MOE_OK ? check_capability(0, err) : st;
}

/* By entry point, so that nothing links libcuda. 12000: the version whose form of the call we use.
 */
static moe_status find_batch_mem_op(krn_device *d, moe_err *err)
{
    void *fn = NULL;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    moe_status st = KRN_CUDA(err,
                             cudaGetDriverEntryPointByVersion("cuStreamBatchMemOp", &fn, 12000,
                                                              cudaEnableDefault, &found),
                             "find cuStreamBatchMemOp");
    if (st == MOE_OK && (found != cudaDriverEntryPointSuccess || fn == NULL)) {
        st = MOE_FAIL(err, MOE_ERR_DEVICE,
                      "the CUDA driver has no stream memory operations: update the driver");
    }
    if (st == MOE_OK) {
        d->batch_mem_op = (krn_batch_mem_op)fn;
    }
    return st;
}

/* ---- kernels, and the library that multiplies ---- */

enum { MAX_KERNELS = 256 };
static const void *kernels[MAX_KERNELS]; /* written before main */
static int n_kernels;

int krn_cuda_note_kernel(const void *kernel)
{
    MOE_ASSERT(n_kernels < MAX_KERNELS);
    kernels[n_kernels] = kernel;
    return n_kernels++;
}

static moe_status load_kernels(moe_err *err)
{
    moe_status st = MOE_OK;
    for (int i = 0; i < n_kernels && st == MOE_OK; i++) {
        cudaFuncAttributes loaded;
        st = KRN_CUDA(err, cudaFuncGetAttributes(&loaded, kernels[i]), "load a kernel");
    }
    return st;
}

static void open_cublas_lt(krn_device *d, bool own_products)
{
    moe_err why;
    if (own_products) {
        return;
    }
    if (krn_cublas_lt_open(&d->cublas_lt, &why) == MOE_OK) {
        const uint32_t version = krn_cublas_lt_version(d->cublas_lt);
        snprintf(d->products, sizeof d->products, "cuBLASLt %u.%u.%u", version / 10000,
                 version / 100 % 100, version % 100);
    } else {
        snprintf(d->products, sizeof d->products, "%.150s", why.text);
    }
}

static moe_status open_device(krn_device *d, bool own_products, moe_err *err)
{
    int n_sms = 0, major = 0;
    moe_status st = check_capability(d->index, err);
    if (st == MOE_OK) {
        st = krn_cuda_use(d, err);
    }
    if (st == MOE_OK) { /* creates the context */
        st = KRN_CUDA(err, cudaFree(NULL), "start the CUDA device");
    }
    if (st == MOE_OK) {
        st = load_kernels(err);
    }
    if (st == MOE_OK) {
        st = KRN_CUDA(err, cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, d->index),
                      "count multiprocessors");
    }
    if (st == MOE_OK) {
        st = KRN_CUDA(err,
                      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, d->index),
                      "read the compute capability");
    }
    d->n_sms = (uint32_t)n_sms;
    d->overlaps_kernels = major >= 9;
    if (st == MOE_OK) {
        st = find_batch_mem_op(d, err);
    }
    if (st == MOE_OK) {
        st = krn_cuda_clock_init(&d->clock, err);
    }
    if (st == MOE_OK) {
        open_cublas_lt(d, own_products);
    }
    return st;
}

extern "C" moe_status krn_cuda_open(const krn_open_cfg *cfg, krn_device **out, moe_err *err)
{
    int n = 0;
    moe_status st = count_devices(&n, err);
    if (st != MOE_OK) {
        return st;
    }
    if (cfg->device_index >= (uint32_t)n) {
        return MOE_FAIL(err, MOE_ERR_DEVICE, "CUDA device %u of %d", cfg->device_index, n);
    }
    krn_device *d = (krn_device *)calloc(1, sizeof *d);
    if (d == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "CUDA device");
    }
    d->index = (int)cfg->device_index;
    st = open_device(d, cfg->own_products, err);
    if (st != MOE_OK) {
        krn_cuda_close(d);
        return st;
    }
    *out = d;
    return MOE_OK;
}

extern "C" void krn_cuda_close(krn_device *d)
{
    if (d == NULL) {
        return;
    }
    (void)krn_cuda_use(d, NULL);
    krn_cuda_clock_fini(&d->clock);
    krn_cublas_lt_close(d->cublas_lt);
    for (int i = 0; i < KRN_CUDA_MAX_REGISTRATIONS; i++) {
        if (d->registrations[i].base != NULL) {
            krn_cuda_host_unregister(d, d->registrations[i].base);
        }
    }
    free(d);
}

extern "C" void krn_cuda_info(krn_device *d, krn_device_info *out)
{
    memset(out, 0, sizeof *out);
    cudaDeviceProp prop;
    size_t free_bytes = 0, all_bytes = 0;
    (void)krn_cuda_use(d, NULL);
    if (cudaGetDeviceProperties(&prop, d->index) == cudaSuccess) {
        snprintf(out->name, sizeof out->name, "cuda: %.80s", prop.name);
    }
    if (cudaMemGetInfo(&free_bytes, &all_bytes) == cudaSuccess) {
        out->memory_bytes = all_bytes;
        out->memory_free_bytes = free_bytes;
    }
    memcpy(out->products, d->products, sizeof out->products);
    out->on_tensor_cores = d->cublas_lt != NULL;
    (void)cudaGetLastError();
}

extern "C" moe_status krn_cuda_mem_alloc(krn_device *d, size_t bytes, void **out, moe_err *err)
{
    char what[64];
    void *p = NULL;
    if (bytes == 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "device memory: 0 bytes");
    }
    moe_status st = krn_cuda_use(d, err);
    if (st == MOE_OK) {
        snprintf(what, sizeof what, "device memory: %zu bytes", bytes);
        st = KRN_CUDA(err, cudaMalloc(&p, bytes), what);
    }
    if (st == MOE_OK) {
        *out = p;
    }
    return st;
}

extern "C" void krn_cuda_mem_free(krn_device *d, void *p)
{
    (void)krn_cuda_use(d, NULL);
    (void)cudaFree(p);
}

extern "C" moe_status krn_cuda_host_alloc(krn_device *d, size_t bytes, void **out, moe_err *err)
{
    char what[64];
    void *p = NULL;
    if (bytes == 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "mapped memory: 0 bytes");
    }
    moe_status st = krn_cuda_use(d, err);
    if (st == MOE_OK) { /* under unified addressing the device uses the same address */
        snprintf(what, sizeof what, "mapped memory: %zu bytes", bytes);
        st = KRN_CUDA(err, cudaHostAlloc(&p, bytes, cudaHostAllocPortable | cudaHostAllocMapped),
                      what);
    }
    if (st == MOE_OK) {
        memset(p, 0, bytes);
        *out = p;
    }
    return st;
}

extern "C" void krn_cuda_host_free(krn_device *d, void *p)
{
    (void)krn_cuda_use(d, NULL);
    (void)cudaFreeHost(p);
}

/* ---- registered memory ---- */

static cudaError_t register_piece(void *p, size_t bytes)
{
    /* Read-only first: half the time (measured 0.24 against 0.53 s for 4 GiB), and the only way for
     * a read-only mapping. Devices that cannot do it get the plain form. */
    cudaError_t rc =
        cudaHostRegister(p, bytes, cudaHostRegisterPortable | cudaHostRegisterReadOnly);
    if (rc == cudaErrorNotSupported || rc == cudaErrorInvalidValue) {
        (void)cudaGetLastError();
        rc = cudaHostRegister(p, bytes, cudaHostRegisterPortable);
    }
    return rc;
}

static void unregister_pieces(const char *base, size_t bytes)
{
    for (size_t off = 0; off < bytes; off += KRN_CUDA_PIECE_BYTES) {
        (void)cudaHostUnregister((void *)(base + off));
    }
    (void)cudaGetLastError();
}

static krn_cuda_registration *find_registration(krn_device *d, const char *base)
{
    for (int i = 0; i < KRN_CUDA_MAX_REGISTRATIONS; i++) {
        if (d->registrations[i].base == base) {
            return &d->registrations[i];
        }
    }
    return NULL;
}

extern "C" moe_status krn_cuda_host_register(krn_device *d, const void *p, size_t bytes,
                                             moe_err *err)
{
    const char *base = (const char *)p;
    if (p == NULL || bytes == 0) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "register %zu bytes of host memory", bytes);
    }
    krn_cuda_registration *place = find_registration(d, NULL);
    if (place == NULL) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "register host memory: %d regions already",
                        KRN_CUDA_MAX_REGISTRATIONS);
    }
    moe_status st = krn_cuda_use(d, err);
    for (size_t off = 0; off < bytes && st == MOE_OK; off += KRN_CUDA_PIECE_BYTES) {
        char what[96];
        size_t left = bytes - off;
        size_t piece = left < KRN_CUDA_PIECE_BYTES ? left : KRN_CUDA_PIECE_BYTES;
        snprintf(what, sizeof what, "register host memory: %zu bytes at offset %zu of %zu", piece,
                 off, bytes);
        st = KRN_CUDA(err, register_piece((void *)(base + off), piece), what);
        if (st != MOE_OK) {
            unregister_pieces(base, off);
        }
    }
    if (st == MOE_OK) {
        place->bytes = bytes;
        __atomic_store_n(&place->base, base, __ATOMIC_RELEASE); /* copies of other threads look */
    }
    return st;
}

extern "C" void krn_cuda_host_unregister(krn_device *d, const void *p)
{
    krn_cuda_registration *r = p != NULL ? find_registration(d, (const char *)p) : NULL;
    if (r != NULL) {
        (void)krn_cuda_use(d, NULL);
        unregister_pieces(r->base, r->bytes);
        __atomic_store_n(&r->base, (const char *)NULL, __ATOMIC_RELEASE);
    }
}
