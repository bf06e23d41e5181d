/* store_rig.h - for tests: an expert-store in a child process, and a worker played by hand.
 *
 * The rig runs the real program in a scratch directory (mkdtemp) and keeps its log. The client
 * speaks the protocol message by message, so that a test decides what a worker does and when.
 * Everything asserts with cmocka: main thread only. The child dies with its parent.
 */
#ifndef TESTS_STORE_RIG_H
#define TESTS_STORE_RIG_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/model_shape.h"
#include "common/shm_region.h"
#include "proto/messages.h"
#include "proto/socket.h"

enum { RIG_MAX_ARGS = 24 };

typedef struct store_rig {
    const char *program; /* borrowed */
    char dir[64];
    char endpoint[128];
    char log[96];
    pid_t pid;        /* 0: not running */
    uid_t run_as;     /* 0: as the test; else the child's user */
    uint64_t memlock; /* bytes; UINT64_MAX: as the test's */
} store_rig;

/* Makes the directory only. */
void store_rig_init(store_rig *r, const char *program);
/* Kills what runs, removes directory and regions. */
void store_rig_fini(store_rig *r);
/* Runs the program with --endpoint and these arguments (NULL ends them), does not wait. */
void store_rig_spawn(store_rig *r, const char *const *args);
/* ... and waits until it answers PING. */
void store_rig_start(store_rig *r, const char *const *args);
/* Waits for its end: the exit status, or -signal. */
int store_rig_wait(store_rig *r);
int store_rig_stop(store_rig *r); /* SIGTERM, then wait */
/* All it logged since store_rig_init; valid until the next call. */
const char *store_rig_log(const store_rig *r);
uint32_t store_rig_log_count(const store_rig *r, const char *text);
/* Names in /dev/shm that belong to this rig's endpoint. */
uint32_t store_rig_count_regions(const store_rig *r);
bool store_rig_file_exists(const store_rig *r, const char *name);

typedef struct rig_client {
    wire_dealer *dealer; /* owned */
    wire_welcome welcome;
    moe_shm_region slots, dense, board, leases; /* owned */
    uint64_t step;
    wire_message in, out;
} rig_client;

void rig_client_open(rig_client *c, const char *endpoint);
void rig_client_close(rig_client *c); /* lets go of the lease table's lock, too */
void rig_client_send(rig_client *c);  /* c->out, again until it is taken */
void rig_client_send_bytes(rig_client *c, const void *data, size_t bytes);
/* The next message into c->in; false after the timeout. */
bool rig_client_recv(rig_client *c, int64_t timeout_ns);
/* The next one must be of this kind and come within 5 s. */
void rig_client_expect(rig_client *c, wire_kind kind);
void rig_client_expect_error(rig_client *c, moe_status status, const char *text);

void rig_client_hello(rig_client *c, uint32_t worker_id); /* sends, expects WELCOME */
/* Opens the regions of the welcome and locks the lease table. */
void rig_client_map(rig_client *c);
void rig_client_join(rig_client *c, const char *endpoint); /* open, hello, map */
void rig_client_send_experts(rig_client *c, wire_kind kind, uint32_t distance,
                             const uint32_t *experts, uint32_t n);
/* WANT, then READY for all of them, in whatever pieces. */
void rig_client_want(rig_client *c, const uint32_t *experts, uint32_t n);
uint64_t rig_client_word(const rig_client *c, uint32_t expert);
/* Takes a lease, waiting for READY and wanting again as workers do; returns the slot's bytes. */
const void *rig_client_lease(rig_client *c, uint32_t index, uint32_t expert);
void rig_client_release(rig_client *c, uint32_t index);
void rig_client_ping(rig_client *c);
/* The value of a metric (labels NULL: any); NaN when absent. */
double rig_client_metric(rig_client *c, const char *name, const char *labels);
/* Waits up to 5 s until the metric has that value. */
void rig_client_await_metric(rig_client *c, const char *name, const char *labels, double value);

#endif
