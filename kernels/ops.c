/* ops.c - the table of backends; see ops.h. Threads: no state. */
#include "kernels/ops.h"

#include <stdio.h>
#include <string.h>

#include "kernels/backend/backend_cpu.h"
#include "kernels/ops/ops_cpu.h"
#ifdef PREGATE_WITH_CUDA
#include "kernels/backend/backend_cuda.h"
#include "kernels/ops/ops_cuda.h"
#endif

static const krn_ops all_ops[] = {
    {.name = "cpu",
     .backend = {.probe = krn_cpu_probe,
                 .open = krn_cpu_open,
                 .close = krn_cpu_close,
                 .info = krn_cpu_info,
                 .mem_alloc = krn_cpu_mem_alloc,
                 .mem_free = krn_cpu_mem_free,
                 .host_alloc = krn_cpu_host_alloc,
                 .host_free = krn_cpu_host_free,
                 .host_register = krn_cpu_host_register,
                 .host_unregister = krn_cpu_host_unregister,
                 .stream_create = krn_cpu_stream_create,
                 .stream_destroy = krn_cpu_stream_destroy,
                 .stream_sync = krn_cpu_stream_sync,
                 .copy_async = krn_cpu_copy_async,
                 .fill_async = krn_cpu_fill_async,
                 .write32_async = krn_cpu_write32_async,
                 .wait32_async = krn_cpu_wait32_async,
                 .event_create = krn_cpu_event_create,
                 .event_destroy = krn_cpu_event_destroy,
                 .event_record = krn_cpu_event_record,
                 .event_query = krn_cpu_event_query,
                 .event_ns = krn_cpu_event_ns},
     .embed = krn_cpu_embed,
     .rms_norm = krn_cpu_rms_norm,
     .linear = krn_cpu_linear,
     .kv_store = krn_cpu_kv_store,
     .attention = krn_cpu_attention,
     .gate_topk = krn_cpu_gate_topk,
     .dispatch = krn_cpu_dispatch,
     .publish = krn_cpu_publish,
     .route = krn_cpu_route,
     .expert_ffn = krn_cpu_expert_ffn,
     .argmax = krn_cpu_argmax},
#ifdef PREGATE_WITH_CUDA
    {.name = "cuda",
     .backend = {.probe = krn_cuda_probe,
                 .open = krn_cuda_open,
                 .close = krn_cuda_close,
                 .info = krn_cuda_info,
                 .mem_alloc = krn_cuda_mem_alloc,
                 .mem_free = krn_cuda_mem_free,
                 .host_alloc = krn_cuda_host_alloc,
                 .host_free = krn_cuda_host_free,
                 .host_register = krn_cuda_host_register,
                 .host_unregister = krn_cuda_host_unregister,
                 .stream_create = krn_cuda_stream_create,
                 .stream_destroy = krn_cuda_stream_destroy,
                 .stream_sync = krn_cuda_stream_sync,
                 .copy_async = krn_cuda_copy_async,
                 .fill_async = krn_cuda_fill_async,
                 .write32_async = krn_cuda_write32_async,
                 .wait32_async = krn_cuda_wait32_async,
                 .event_create = krn_cuda_event_create,
                 .event_destroy = krn_cuda_event_destroy,
                 .event_record = krn_cuda_event_record,
                 .event_query = krn_cuda_event_query,
                 .event_ns = krn_cuda_event_ns,
                 .graph_begin = krn_cuda_graph_begin,
                 .graph_end = krn_cuda_graph_end,
                 .graph_launch = krn_cuda_graph_launch,
                 .graph_destroy = krn_cuda_graph_destroy},
     .embed = krn_cuda_embed,
     .rms_norm = krn_cuda_rms_norm,
     .linear = krn_cuda_linear,
     .kv_store = krn_cuda_kv_store,
     .attention = krn_cuda_attention,
     .gate_topk = krn_cuda_gate_topk,
     .dispatch = krn_cuda_dispatch,
     .publish = krn_cuda_publish,
     .route = krn_cuda_route,
     .expert_ffn = krn_cuda_expert_ffn,
     .argmax = krn_cuda_argmax},
#endif
};

enum { N_BACKENDS = sizeof all_ops / sizeof all_ops[0] };

static const krn_ops *find_built_in(const char *name)
{
    for (size_t i = 0; i < N_BACKENDS; i++) {
        if (strcmp(all_ops[i].name, name) == 0) {
            return &all_ops[i];
        }
    }
    return NULL;
}

/* "auto": cuda where it answers, else cpu with the reason. */
static const krn_ops *choose(char *out_note, uint32_t out_note_bytes)
{
    const krn_ops *cuda = find_built_in("cuda"), *chosen = find_built_in("cpu");
    char text[512];
    moe_err why = {0};
    if (cuda == NULL) {
        snprintf(text, sizeof text, "cpu: this build has no cuda backend");
    } else if (cuda->backend.probe(&why) != MOE_OK) {
        snprintf(text, sizeof text, "cpu: %s", why.text);
    } else {
        snprintf(text, sizeof text, "cuda: a device answers");
        chosen = cuda;
    }
    if (out_note != NULL && out_note_bytes > 0) {
        snprintf(out_note, out_note_bytes, "%s", text);
    }
    return chosen;
}

moe_status krn_ops_find(const char *name, const krn_ops **out, char *out_note,
                        uint32_t out_note_bytes, moe_err *err)
{
    const krn_ops *ops = NULL;
    if (strcmp(name, "auto") == 0) {
        ops = choose(out_note, out_note_bytes);
    } else {
        ops = find_built_in(name);
        if (ops == NULL) {
            return MOE_FAIL(err, MOE_ERR_UNSUPPORTED, "backend \"%s\" is not in this build%s", name,
                            strcmp(name, "cuda") == 0 ? ": configure with -DPREGATE_CUDA=ON" : "");
        }
        moe_status st = ops->backend.probe(err);
        if (st != MOE_OK) {
            return st;
        }
        if (out_note != NULL && out_note_bytes > 0) {
            snprintf(out_note, out_note_bytes, "%s", name);
        }
    }
    *out = ops;
    return MOE_OK;
}
