/* backend_cuda.h - the `cuda` backend's functions, as ops.c lists them. Contracts: backend.h.
 * No CUDA header comes in here. */
#ifndef KRN_BACKEND_CUDA_H
#define KRN_BACKEND_CUDA_H

#include "kernels/backend/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

moe_status krn_cuda_probe(moe_err *err);
moe_status krn_cuda_open(const krn_open_cfg *cfg, krn_device **out, moe_err *err);
void krn_cuda_close(krn_device *d);
void krn_cuda_info(krn_device *d, krn_device_info *out);
moe_status krn_cuda_mem_alloc(krn_device *d, size_t bytes, void **out, moe_err *err);
void krn_cuda_mem_free(krn_device *d, void *p);
moe_status krn_cuda_host_alloc(krn_device *d, size_t bytes, void **out, moe_err *err);
void krn_cuda_host_free(krn_device *d, void *p);
moe_status krn_cuda_host_register(krn_device *d, const void *p, size_t bytes, moe_err *err);
void krn_cuda_host_unregister(krn_device *d, const void *p);

moe_status krn_cuda_stream_create(krn_device *d, const char *name, krn_stream **out, moe_err *err);
void krn_cuda_stream_destroy(krn_stream *s);
moe_status krn_cuda_stream_sync(krn_stream *s, moe_err *err);
moe_status krn_cuda_copy_async(krn_stream *s, void *dst, const void *src, size_t bytes,
                               moe_err *err);
moe_status krn_cuda_fill_async(krn_stream *s, void *dst, uint8_t value, size_t bytes, moe_err *err);
moe_status krn_cuda_write32_async(krn_stream *s, uint32_t *flag, uint32_t value, moe_err *err);
moe_status krn_cuda_wait32_async(krn_stream *s, uint32_t *flag, uint32_t value, moe_err *err);

moe_status krn_cuda_event_create(krn_device *d, krn_event **out, moe_err *err);
void krn_cuda_event_destroy(krn_event *e);
moe_status krn_cuda_event_record(krn_event *e, krn_stream *s, moe_err *err);
moe_status krn_cuda_event_query(krn_event *e, moe_err *err);
int64_t krn_cuda_event_ns(krn_event *e);

moe_status krn_cuda_graph_begin(krn_stream *s, moe_err *err);
moe_status krn_cuda_graph_end(krn_stream *s, krn_graph **out, moe_err *err);
moe_status krn_cuda_graph_launch(krn_graph *g, krn_stream *s, moe_err *err);
void krn_cuda_graph_destroy(krn_graph *g);

#ifdef __cplusplus
}
#endif

#endif
