/* kernel_rig.h - one opened backend for a test, with memory that is freed at the end of each test,
 * and the seeded numbers that tests are made of. Header only; main thread only. */
#ifndef TEST_KERNEL_RIG_H
#define TEST_KERNEL_RIG_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/dtype.h"
#include "kernels/ops.h"

enum { RIG_MAX_BLOCKS = 512 };

typedef struct rig {
    const krn_ops *ops;
    krn_device *device;
    krn_stream *stream;
    void *device_blocks[RIG_MAX_BLOCKS]; /* owned until rig_release */
    void *host_blocks[RIG_MAX_BLOCKS];
    uint32_t n_device, n_host;
    moe_err err;
} rig;

static inline void rig_ok(rig *r, moe_status st)
{
    if (st != MOE_OK) {
        fail_msg("%s: %s", moe_status_name(st), r->err.text);
    }
}

static inline int rig_open(rig *r, const char *backend, const krn_open_cfg *cfg)
{
    memset(r, 0, sizeof *r);
    if (krn_ops_find(backend, &r->ops, NULL, 0, &r->err) != MOE_OK ||
        r->ops->backend.open(cfg, &r->device, &r->err) != MOE_OK ||
        r->ops->backend.stream_create(r->device, "test", &r->stream, &r->err) != MOE_OK) {
        fprintf(stderr, "%s: %s\n", backend, r->err.text);
        return -1;
    }
    return 0;
}

static inline void rig_release(rig *r)
{
    for (uint32_t i = 0; i < r->n_device; i++) {
        r->ops->backend.mem_free(r->device, r->device_blocks[i]);
    }
    for (uint32_t i = 0; i < r->n_host; i++) {
        r->ops->backend.host_free(r->device, r->host_blocks[i]);
    }
    r->n_device = r->n_host = 0;
}

static inline void rig_close(rig *r)
{
    r->ops->backend.stream_destroy(r->stream);
    rig_release(r);
    r->ops->backend.close(r->device);
}

static inline void rig_sync(rig *r)
{
    rig_ok(r, r->ops->backend.stream_sync(r->stream, &r->err));
}

static inline void rig_copy(rig *r, void *dst, const void *src, size_t bytes)
{
    rig_ok(r, r->ops->backend.copy_async(r->stream, dst, src, bytes, &r->err));
    rig_sync(r);
}

static inline void *rig_device(rig *r, size_t bytes)
{
    assert_true(r->n_device < RIG_MAX_BLOCKS);
    void *p = NULL;
    rig_ok(r, r->ops->backend.mem_alloc(r->device, bytes, &p, &r->err));
    r->device_blocks[r->n_device++] = p;
    return p;
}

/* Device memory full of 0xFF bytes: NaN as f32, -1 as i32. What an op leaves out stays visible. */
static inline void *rig_poisoned(rig *r, size_t bytes)
{
    void *p = rig_device(r, bytes);
    rig_ok(r, r->ops->backend.fill_async(r->stream, p, 0xFF, bytes, &r->err));
    rig_sync(r);
    return p;
}

static inline void *rig_upload(rig *r, const void *src, size_t bytes)
{
    void *p = rig_device(r, bytes);
    rig_copy(r, p, src, bytes);
    return p;
}

static inline void *rig_mapped(rig *r, size_t bytes)
{
    assert_true(r->n_host < RIG_MAX_BLOCKS);
    void *p = NULL;
    rig_ok(r, r->ops->backend.host_alloc(r->device, bytes, &p, &r->err));
    r->host_blocks[r->n_host++] = p;
    return p;
}

/* ---- numbers ---- */

static inline uint32_t next_u32(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*seed >> 33);
}

static inline float next_float(uint64_t *seed) /* in [-1, 1) */
{
    return (float)next_u32(seed) / 1073741824.0f - 1.0f;
}

static inline uint32_t next_in(uint64_t *seed, uint32_t low, uint32_t high) /* inclusive */
{
    return low + next_u32(seed) % (high - low + 1);
}

static inline void fill_floats(float *out, size_t n, uint64_t *seed)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = next_float(seed);
    }
}

/* n weights of dtype into stored (n * 4 bytes are enough), and what they widen to into wide. */
static inline void fill_weights(void *stored, float *wide, size_t n, uint32_t dtype, uint64_t *seed)
{
    for (size_t i = 0; i < n; i++) {
        float w = next_float(seed);
        if (dtype == MOE_BF16) {
            ((uint16_t *)stored)[i] = moe_f32_to_bf16(w);
            wide[i] = moe_bf16_to_f32(((uint16_t *)stored)[i]);
        } else {
            ((float *)stored)[i] = w;
            wide[i] = w;
        }
    }
}

static inline void check_close(double want, float got, double abs_tol, double rel_tol,
                               const char *what, size_t at)
{
    if (!(fabs(want - (double)got) <= abs_tol + rel_tol * fabs(want))) {
        fail_msg("%s[%zu]: want %.9g, got %.9g", what, at, want, (double)got);
    }
}

#endif
