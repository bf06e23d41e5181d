/* store_process.h - for tests: a checkpoint packed by expert-pack into a scratch directory and
 * served by a store_rig, as a user would do it.
 * Asserts with cmocka (in a test, or its group's set-up): main thread only. */
#ifndef TESTS_STORE_PROCESS_H
#define TESTS_STORE_PROCESS_H

#include "tests/support/store_rig.h"

typedef struct store_process_cfg {
    const char *pack_program, *store_program; /* paths */
    const char *model_dir;
    const char *ram;                             /* for experts: "100%", "25%", "min": two slots */
    uint32_t capacity;                           /* > 0: the checkpoint's expert_capacity is this */
    void (*before_serve)(const char *store_dir); /* to damage it; may be NULL */
} store_process_cfg;

typedef struct store_process {
    store_rig rig; /* rig.endpoint is for the worker */
    char ram_bytes[32];
} store_process;

/* Does not wait until the store answers. */
void store_process_start(const store_process_cfg *cfg, store_process *out);
/* Again over the same store directory, after SIGKILL (its memory is there to adopt) or SIGTERM (its
 * memory is gone). */
void store_process_restart(store_process *p, int signal_first);
/* Exit status of the store; removes the directory. */
int store_process_stop(store_process *p);

#endif
