/* backend_cpu.h - the `cpu` backend's functions, and how its operations reach a stream's thread.
 *
 *   caller ── krn_cpu_submit(closure) ──▶ bounded queue ──▶ stream thread ── loops ──▶ team
 *
 * A stream is one thread that runs its closures in order. An operation is a function and its
 * arguments, copied by value at submission. A full queue blocks the submitter until the stream has
 * moved on, as a full launch queue does on a GPU.
 * Used by: ops.c (the table), ops/<op>_cpu.c (krn_cpu_submit), tests.
 */
#ifndef KRN_BACKEND_CPU_H
#define KRN_BACKEND_CPU_H

#include "kernels/backend/backend.h"
#include "kernels/backend/team.h"

enum { KRN_CPU_QUEUE_DEPTH = 1024, KRN_CPU_ARGS_BYTES = 192 };

/* Runs on the stream's thread. args: the copy made at submission, gone afterwards. */
typedef void (*krn_cpu_fn)(const void *args, krn_team *team);
/* args_bytes <= KRN_CPU_ARGS_BYTES. */
MOE_MUST_CHECK moe_status krn_cpu_submit(krn_stream *s, krn_cpu_fn fn, const void *args,
                                         size_t args_bytes, moe_err *err);

/* The device, as its streams see it. */
krn_team *krn_cpu_device_team(krn_device *d);
/* Sleeps until `bytes` more could have crossed the device's link; returns at once without one.
 * `is_last` says that the copy ends here, so that a short debt is slept off too. */
void krn_cpu_device_cross_link(krn_device *d, size_t bytes, bool is_last);

/* Contracts: backend.h. */
moe_status krn_cpu_probe(moe_err *err);
moe_status krn_cpu_open(const krn_open_cfg *cfg, krn_device **out, moe_err *err);
void krn_cpu_close(krn_device *d);
void krn_cpu_info(krn_device *d, krn_device_info *out);
moe_status krn_cpu_mem_alloc(krn_device *d, size_t bytes, void **out, moe_err *err);
void krn_cpu_mem_free(krn_device *d, void *p);
moe_status krn_cpu_host_alloc(krn_device *d, size_t bytes, void **out, moe_err *err);
void krn_cpu_host_free(krn_device *d, void *p);
moe_status krn_cpu_host_register(krn_device *d, const void *p, size_t bytes, moe_err *err);
void krn_cpu_host_unregister(krn_device *d, const void *p);
moe_status krn_cpu_stream_create(krn_device *d, const char *name, krn_stream **out, moe_err *err);
void krn_cpu_stream_destroy(krn_stream *s);
moe_status krn_cpu_stream_sync(krn_stream *s, moe_err *err);
moe_status krn_cpu_copy_async(krn_stream *s, void *dst, const void *src, size_t bytes,
                              moe_err *err);
moe_status krn_cpu_fill_async(krn_stream *s, void *dst, uint8_t value, size_t bytes, moe_err *err);
moe_status krn_cpu_write32_async(krn_stream *s, uint32_t *flag, uint32_t value, moe_err *err);
moe_status krn_cpu_wait32_async(krn_stream *s, uint32_t *flag, uint32_t value, moe_err *err);
moe_status krn_cpu_event_create(krn_device *d, krn_event **out, moe_err *err);
void krn_cpu_event_destroy(krn_event *e);
moe_status krn_cpu_event_record(krn_event *e, krn_stream *s, moe_err *err);
moe_status krn_cpu_event_query(krn_event *e, moe_err *err);
int64_t krn_cpu_event_ns(krn_event *e);

#endif
