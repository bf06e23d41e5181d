/* store_process.h - for tests: packs a checkpoint into a scratch directory and serves it from a
 * child process, as a user would.
 *
 *   start: mkdtemp, expert-pack DIR --out scratch/model.store, fork expert-store
 *   stop:  SIGTERM, wait, remove the scratch directory
 * The child dies with its parent. Threads: the test's main thread. */
#ifndef TEST_STORE_PROCESS_H
#define TEST_STORE_PROCESS_H

#include <stdint.h>
#include <sys/types.h>

typedef struct store_process_cfg {
    const char *pack_program, *store_program; /* paths */
    const char *model_dir;
    const char *ram;   /* of the experts: "100%", "25%", "min" (two slots) */
    uint32_t capacity; /* > 0: pack a copy whose config.json has this expert_capacity */
} store_process_cfg;

typedef struct store_process {
    char dir[64];      /* scratch, mkdtemp */
    char endpoint[96]; /* ipc://DIR/store.sock */
    pid_t pid;
    const char *store_program; /* borrowed */
    char ram_bytes[32];
} store_process;

/* 0, or -1 after saying why on stderr (nothing is left behind). */
int store_process_start(const store_process_cfg *cfg, store_process *out);
/* kill -9 and start again over the same store directory. */
int store_process_restart(store_process *p);
/* The child's exit status (0: a clean stop); -1 if it had to be killed. */
int store_process_stop(store_process *p);

#endif
