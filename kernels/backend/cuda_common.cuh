/* cuda_common.cuh - what the .cu files share on the host side: C headers for C++, the structs
 * behind the opaque names, and one way to turn a CUDA result into a status.
 *
 * Owned by backend_cuda.cu (krn_device) and stream_cuda.cu (krn_stream, krn_event, krn_graph).
 * Included by .cu files only.
 */
#ifndef KRN_CUDA_COMMON_CUH
#define KRN_CUDA_COMMON_CUH

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cuda.h> /* types of the stream memory operations; nothing is linked from libcuda */
#include <cuda_runtime.h>

#ifndef _Noreturn
#define _Noreturn [[noreturn]] /* a C keyword in common/status.h */
#endif
extern "C" {
#include "common/clock.h"
#include "common/dtype.h"
#include "common/status.h"
#include "kernels/ops/ops_check.h"
}
#include "kernels/backend/backend_cuda.h"
#include "kernels/ops/ops_cuda.h"

typedef CUresult (*krn_batch_mem_op)(CUstream, unsigned int, CUstreamBatchMemOpParams *,
                                     unsigned int);

/* Pins a CUDA event to the host's clock; see clock_cuda.cu. */
enum { KRN_CUDA_ANCHORS = 16 };
typedef struct krn_cuda_anchor {
    cudaEvent_t event; /* owned */
    int64_t host_ns;   /* when it passed; 0: never recorded */
} krn_cuda_anchor;

typedef struct krn_cuda_clock {
    cudaStream_t stream;      /* owned; idle but for this clock's own work */
    volatile uint64_t *timer; /* mapped, owned: one reading of the device's global timer */
    int64_t *offset_ns;       /* device, owned: host clock minus global timer */
    pthread_mutex_t mu;
    krn_cuda_anchor anchor[KRN_CUDA_ANCHORS]; /* guarded by mu */
    uint32_t current;                         /* index of the newest, guarded by mu */
} krn_cuda_clock;

/* One host_register call; pieces start every KRN_CUDA_PIECE_BYTES. */
enum { KRN_CUDA_MAX_REGISTRATIONS = 64 };
static const size_t KRN_CUDA_PIECE_BYTES = (size_t)64 << 30;
typedef struct krn_cuda_registration {
    const char *base; /* borrowed until host_unregister; NULL: unused */
    size_t bytes;
} krn_cuda_registration;

struct krn_device {
    int index;
    uint32_t n_sms;
    bool overlaps_kernels; /* compute capability 9.0: see krn_cuda_launch */
    krn_batch_mem_op batch_mem_op;
    struct krn_cublas_lt *cublas_lt; /* owned; NULL: not to be had, see products */
    char products[160];              /* who multiplies the rows of prompts, and why */
    krn_cuda_clock clock;
    krn_cuda_registration registrations[KRN_CUDA_MAX_REGISTRATIONS]; /* one thread at a time */
};

/* The part of a wave that has work, compacted on the device: see expert_ffn_cuda.cu. */
typedef struct krn_cuda_wave_entry {
    const void *weights;
    uint32_t first, n; /* pairs order[first .. first+n) */
} krn_cuda_wave_entry;
typedef struct krn_cuda_wave {
    uint32_t n;
    krn_cuda_wave_entry entry[KRN_MAX_WAVE_EXPERTS];
} krn_cuda_wave;

/* Work space of the operations on one stream; they run one after another. Tickets are 0 between. */
enum { KRN_CUDA_SPLIT_ROWS = 32, KRN_CUDA_SPLITS = 32 };
typedef struct krn_cuda_candidate {
    float value;
    uint32_t index;
} krn_cuda_candidate;
typedef struct krn_cuda_scratch {
    krn_cuda_wave wave;                         /* expert_ffn */
    uint32_t ticket;                            /* route */
    uint32_t split_ticket[KRN_CUDA_SPLIT_ROWS]; /* argmax */
    krn_cuda_candidate split[KRN_CUDA_SPLIT_ROWS][KRN_CUDA_SPLITS];
} krn_cuda_scratch;

struct krn_stream {
    krn_device *device; /* borrowed, outlives the stream */
    cudaStream_t handle;
    krn_cuda_scratch *scratch; /* device memory, owned */
};

/* MOE_OK for cudaSuccess; else fills *err with the CUDA code, its text and `what`, and clears the
 * runtime's remembered error so that the next launch is not blamed for it. */
moe_status krn_cuda_status(moe_err *err, cudaError_t rc, const char *what, const char *file,
                           int32_t line);
#define KRN_CUDA(err, rc, what) krn_cuda_status((err), (rc), (what), __FILE__, __LINE__)

moe_status krn_cuda_use(krn_device *d, moe_err *err); /* makes it the calling thread's device */
/* After a kernel launch: the launch's own error, named after the operation. */
moe_status krn_cuda_launched(moe_err *err, const char *op);

/* Modules load lazily, for cuBLASLt would load hundreds of megabytes (backend_cuda.cu). But a
 * kernel that loads while a stream waits for the host can hang both, so every kernel that
 * krn_cuda_launch may launch is noted here before main, and loaded when a device opens. */
int krn_cuda_note_kernel(const void *kernel);
template <auto kernel> struct krn_cuda_noted {
    static const int number;
};
template <auto kernel>
const int krn_cuda_noted<kernel>::number = krn_cuda_note_kernel((const void *)kernel);

/* Launches so that the kernel may begin before the stream's previous kernel has ended; it waits for
 * it by itself (device_math.cuh, begin_kernel). Its launch's error: krn_cuda_launched. */
template <auto kernel, typename... Args>
static void krn_cuda_launch(const krn_stream *s, dim3 grid, dim3 block, size_t shared_bytes,
                            const Args &...args)
{
    (void)&krn_cuda_noted<kernel>::number;
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t cfg = {};
    cfg.gridDim = grid;
    cfg.blockDim = block;
    cfg.dynamicSmemBytes = shared_bytes;
    cfg.stream = s->handle;
    cfg.attrs = &overlap;
    cfg.numAttrs = s->device->overlaps_kernels ? 1 : 0;
    (void)cudaLaunchKernelEx(&cfg, kernel, args...); /* remembered: krn_cuda_launched */
}

moe_status krn_cuda_clock_init(krn_cuda_clock *c, moe_err *err);
void krn_cuda_clock_fini(krn_cuda_clock *c); /* accepts a zeroed clock */
/* The newest anchor, renewed when old; call before recording an event, and keep the number. */
moe_status krn_cuda_clock_anchor(krn_cuda_clock *c, uint32_t *out_anchor, moe_err *err);
/* When `event`, recorded after that anchor, passed, on moe_now_ns()'s clock. */
int64_t krn_cuda_clock_ns(krn_cuda_clock *c, uint32_t anchor, cudaEvent_t event);

#endif
