/* pack.h - writes a source (source.h) out as a store directory.
 *
 * Works in OUT.partial: segments and an unfinished catalogue, committed every commit_every items
 * after the segments were synced. A run that is killed, stopped or out of space leaves it; a later
 * run with the same job goes on from the last commit. At the end everything is synced and the
 * directory renamed, so OUT is either absent, the old one, or complete.
 * Peak memory: n_buffers * buffer_bytes, the source's tables, and one commit's records.
 * Threads: xs_pack runs on the caller's thread and starts n_writers for the writes.
 */
#ifndef XS_PACK_H
#define XS_PACK_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "expert-store/pack/source.h"

/* What a long operation tells its caller, on the caller's thread; members may be NULL. */
typedef struct xs_pack_watch {
    void (*progress)(void *user, uint64_t done_bytes, uint64_t total_bytes);
    void (*note)(void *user, const char *text); /* something the user should know, once */
    void *user;
    const volatile sig_atomic_t *stop; /* nonzero: stop soon, resumable (MOE_ERR_CANCELLED) */
} xs_pack_watch;

typedef struct xs_pack_options {
    const char *out; /* "NAME.store" */
    bool force;      /* replace an older store, and drop another job's OUT.partial */
    bool direct;     /* O_DIRECT where the filesystem has it */
    uint64_t segment_bytes, buffer_bytes; /* buffer_bytes: multiple of 1 MiB */
    uint32_t n_buffers, n_writers;
    uint32_t commit_every;    /* items */
    const char *test_kill_at; /* "" or where to SIGKILL itself: see kill_point() in pack.c */
    xs_pack_watch watch;
} xs_pack_options;

typedef struct xs_pack_result {
    uint32_t n_experts, n_tensors, n_segments;
    uint64_t total_bytes;   /* payloads and padding, of the whole store */
    uint64_t written_bytes; /* by this run */
    uint32_t n_resumed;     /* items an earlier run had done */
    bool direct;
    int64_t ns;
} xs_pack_result;

MOE_MUST_CHECK moe_status xs_pack(const xs_source *src, const xs_pack_options *opt,
                                  xs_pack_result *out, moe_err *err);

#endif
