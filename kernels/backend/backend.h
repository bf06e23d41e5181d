/* backend.h - where tensors live and work runs: devices, memory, streams, events, signals.
 *
 * A backend is one function table (kernels/ops.h adds the operations to it). `cpu` is a full
 * backend: a stream is a thread with a queue, copies are really asynchronous and can be throttled
 * to a given link speed, so planning, leasing, waves and failure run unchanged without a GPU.
 *
 * Memory spaces: "device" is mem_alloc'ed; "mapped" is host_alloc'ed: pinned host memory that host
 * and device read and write at the same address; "registered" is the caller's host memory that
 * copies can read directly.
 * Order: work on one stream runs in submission order. Streams meet through signals only:
 *   write32_async(copy, flag, 1) ... wait32_async(compute, flag, 1): waits until *flag == 1, then
 *   writes 0, so that a recorded graph can be replayed.
 * Host and device meet through mapped memory: mails (ops/publish.h) one way; the other way rows
 * written by the host before the signal that announces them.
 * Threads: open/close, alloc/free and create/destroy from one thread at a time; *_async on one
 * stream from one thread at a time; events may be queried from any thread.
 * A submission may block while the stream's queue is full (about 1000 operations).
 * Never allocate, register or synchronise while a stream may be waiting for this thread.
 */
#ifndef KRN_BACKEND_H
#define KRN_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

typedef struct krn_device krn_device; /* opaque, per backend */
typedef struct krn_stream krn_stream;
typedef struct krn_event krn_event;
typedef struct krn_graph krn_graph;

typedef struct krn_open_cfg {
    uint32_t device_index; /* cuda */
    uint32_t n_threads;    /* cpu: threads of one compute stream; 0 = cores - 1, at least 1 */
    double link_gbps;      /* cpu: copies no faster than this (1e9 bytes/s); 0 = unthrottled */
    bool own_products;     /* cuda: no library multiplies, kernels of our own do */
} krn_open_cfg;

typedef struct krn_device_info {
    char name[96];
    uint64_t memory_bytes, memory_free_bytes;
    /* Who multiplies the rows of prompts, or why tensor cores do not; "": nothing to be said. */
    char products[160];
    bool on_tensor_cores;
} krn_device_info;

typedef struct krn_backend_fns {
    /* A usable device, now? MOE_ERR_DEVICE with the reason. */
    MOE_MUST_CHECK moe_status (*probe)(moe_err *err);
    MOE_MUST_CHECK moe_status (*open)(const krn_open_cfg *cfg, krn_device **out, moe_err *err);
    void (*close)(krn_device *d); /* accepts NULL */
    void (*info)(krn_device *d, krn_device_info *out);

    MOE_MUST_CHECK moe_status (*mem_alloc)(krn_device *d, size_t bytes, void **out, moe_err *err);
    void (*mem_free)(krn_device *d, void *p);
    /* Zeroed. */
    MOE_MUST_CHECK moe_status (*host_alloc)(krn_device *d, size_t bytes, void **out, moe_err *err);
    void (*host_free)(krn_device *d, void *p);
    /* Registers [p, p+bytes) (read-only is enough) in pieces of at most 64 GiB. On failure copies
     * still work, pageable and several times slower: the caller says so and counts it. One thread
     * at a time, others may copy meanwhile; no copy may reach from one region into another. */
    MOE_MUST_CHECK moe_status (*host_register)(krn_device *d, const void *p, size_t bytes,
                                               moe_err *err);
    void (*host_unregister)(krn_device *d, const void *p);

    MOE_MUST_CHECK moe_status (*stream_create)(krn_device *d, const char *name, krn_stream **out,
                                               moe_err *err);
    void (*stream_destroy)(krn_stream *s); /* finishes queued work first; accepts NULL */
    MOE_MUST_CHECK moe_status (*stream_sync)(krn_stream *s, moe_err *err);
    /* Any direction between the spaces; src and dst stay valid until the copy has run. */
    MOE_MUST_CHECK moe_status (*copy_async)(krn_stream *s, void *dst, const void *src, size_t bytes,
                                            moe_err *err);
    MOE_MUST_CHECK moe_status (*fill_async)(krn_stream *s, void *dst, uint8_t value, size_t bytes,
                                            moe_err *err);
    /* flag: device or mapped memory, 4-byte aligned. */
    MOE_MUST_CHECK moe_status (*write32_async)(krn_stream *s, uint32_t *flag, uint32_t value,
                                               moe_err *err);
    MOE_MUST_CHECK moe_status (*wait32_async)(krn_stream *s, uint32_t *flag, uint32_t value,
                                              moe_err *err);

    MOE_MUST_CHECK moe_status (*event_create)(krn_device *d, krn_event **out, moe_err *err);
    void (*event_destroy)(krn_event *e); /* after it has passed, or its stream was synchronised */
    MOE_MUST_CHECK moe_status (*event_record)(krn_event *e, krn_stream *s, moe_err *err);
    /* MOE_OK: passed; MOE_ERR_AGAIN: not yet; else the device failed. */
    MOE_MUST_CHECK moe_status (*event_query)(krn_event *e, moe_err *err);
    int64_t (*event_ns)(krn_event *e); /* when it passed, on moe_now_ns()'s clock; after MOE_OK */

    /* Records what is submitted to s between begin and end and replays it whole. NULL where the
     * backend has no graphs (cpu): the caller then submits each time. */
    MOE_MUST_CHECK moe_status (*graph_begin)(krn_stream *s, moe_err *err);
    MOE_MUST_CHECK moe_status (*graph_end)(krn_stream *s, krn_graph **out, moe_err *err);
    MOE_MUST_CHECK moe_status (*graph_launch)(krn_graph *g, krn_stream *s, moe_err *err);
    void (*graph_destroy)(krn_graph *g);
} krn_backend_fns;

#endif
