/* The program expert-store, from outside: real processes, sockets, shared memory, kill -9.
 * argv: path of expert-store, path of expert-pack. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "expert-store/catalog/synthetic.h"
#include "proto/dense_table.h"
#include "proto/lease_table.h"
#include "tests/support/store_rig.h"

static const char *store_program, *pack_program;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MLOCK_IS_FAKED 1 /* sanitizers make it do nothing */
#else
#define MLOCK_IS_FAKED 0
#endif

enum { N_EXPERTS = 32, SLOT_BYTES = 8192, SEED = 7 };

/* Five slots for 32 experts, two workers. */
static const char *const tight[] = {
    "--synthetic", "switch-tiny",       "--seed", "7", "--ram-bytes", "40960", "--max-workers",
    "2",           "--worker-probe-ms", "20",     NULL};
static const char *const roomy[] = {"--synthetic",       "switch-tiny", "--seed", "7",
                                    "--worker-probe-ms", "20",          NULL};

typedef struct fixture {
    store_rig rig;
    rig_client a, b; /* opened by the tests that need them */
    moe_model_shape shape;
    char *expected; /* [N_EXPERTS][SLOT_BYTES], owned */
} fixture;

static void make_expected(fixture *f)
{
    char config[16384];
    assert_int_equal(MOE_OK,
                     xs_synthetic_config("switch-tiny", MOE_BF16, config, sizeof config, NULL));
    assert_int_equal(MOE_OK, moe_model_shape_parse(config, strlen(config), &f->shape, NULL));
    assert_int_equal(N_EXPERTS, f->shape.n_experts_total);
    assert_int_equal(SLOT_BYTES, moe_expert_params(&f->shape) * 2);
    f->expected = malloc((size_t)N_EXPERTS * SLOT_BYTES);
    assert_non_null(f->expected);
    for (uint32_t x = 0; x < N_EXPERTS; x++) {
        xs_synthetic_expert(&f->shape, MOE_BF16, SEED, x, f->expected + (size_t)x * SLOT_BYTES);
    }
}

static int setup(void **state)
{
    static fixture f;
    memset(&f, 0, sizeof f);
    f.a.slots = f.a.dense = f.a.board = f.a.leases = MOE_SHM_REGION_NONE;
    f.b.slots = f.b.dense = f.b.board = f.b.leases = MOE_SHM_REGION_NONE;
    make_expected(&f);
    store_rig_init(&f.rig, store_program);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    rig_client_close(&f->a);
    rig_client_close(&f->b);
    store_rig_fini(&f->rig);
    free(f->expected);
    return 0;
}

static bool is_expert(const fixture *f, uint32_t expert, const void *bytes)
{
    return memcmp(f->expected + (size_t)expert * SLOT_BYTES, bytes, SLOT_BYTES) == 0;
}

static void lease_and_check(fixture *f, rig_client *c, uint32_t index, uint32_t expert)
{
    assert_true(is_expert(f, expert, rig_client_lease(c, index, expert)));
}

static void touch_all(fixture *f, rig_client *c, uint32_t index)
{
    for (uint32_t i = 0; i < N_EXPERTS; i++) {
        uint32_t x = i * 13 % N_EXPERTS;
        lease_and_check(f, c, index, x);
        rig_client_release(c, index);
    }
}

/* ---- serving ---- */

static void every_expert_of_a_synthetic_model_is_served(void **state)
{
    fixture *f = *state;
    uint32_t all[N_EXPERTS];
    store_rig_start(&f->rig, roomy);
    rig_client_join(&f->a, f->rig.endpoint);
    assert_int_equal(N_EXPERTS, f->a.welcome.n_experts);
    assert_int_equal(N_EXPERTS, f->a.welcome.n_slots);
    assert_int_equal(SLOT_BYTES, f->a.welcome.slot_bytes);
    assert_int_equal(MOE_BF16, f->a.welcome.expert_dtype);
    assert_string_equal("switch-tiny", f->a.welcome.model_name);
    for (uint32_t x = 0; x < N_EXPERTS; x++) {
        all[x] = x;
        assert_int_equal(MOE_BOARD_ABSENT, moe_board_word_state(rig_client_word(&f->a, x)));
    }
    rig_client_want(&f->a, all, N_EXPERTS);
    touch_all(f, &f->a, 0);
    rig_client_want(&f->a, all, N_EXPERTS); /* all there: answered at once */
    assert_int_equal(N_EXPERTS, f->a.in.experts.n);
    assert_true(rig_client_metric(&f->a, "pregate_store_want_hit_total", NULL) == N_EXPERTS);
    assert_true(rig_client_metric(&f->a, "pregate_store_want_miss_total", NULL) == N_EXPERTS);
    assert_int_equal(0, store_rig_stop(&f->rig));
}

static void the_dense_region_holds_files_and_weights(void **state)
{
    fixture *f = *state;
    store_rig_start(&f->rig, roomy);
    rig_client_join(&f->a, f->rig.endpoint);
    const moe_dense_header *h = f->a.dense.base;
    const moe_dense_entry *e =
        (const void *)((const char *)f->a.dense.base + MOE_DENSE_ENTRIES_OFF);
    xs_synthetic_tensor t = {0};
    uint32_t n_tensors = 0;
    assert_int_equal(0, memcmp(&h->magic, MOE_DENSE_MAGIC, 8));
    assert_string_equal("config.json", e[0].name);
    assert_int_equal(MOE_DENSE_FILE, e[0].kind);
    while (xs_synthetic_tensor_at(&f->shape, n_tensors, &t, NULL) == MOE_OK) {
        const moe_dense_entry *d = &e[++n_tensors];
        char *bytes = malloc(d->bytes);
        assert_string_equal(t.name, d->name);
        assert_int_equal(0, d->off % MOE_DENSE_ALIGN);
        assert_true(d->off + d->bytes <= f->a.dense.bytes);
        xs_synthetic_tensor_fill(&t, MOE_BF16, SEED, bytes);
        assert_memory_equal(bytes, (const char *)f->a.dense.base + d->off, d->bytes);
        free(bytes);
    }
    assert_int_equal(n_tensors + 1, h->n_entries);
}

static void more_experts_than_slots_come_and_go(void **state)
{
    fixture *f = *state;
    store_rig_start(&f->rig, tight);
    rig_client_join(&f->a, f->rig.endpoint);
    assert_int_equal(5, f->a.welcome.n_slots);
    for (int round = 0; round < 5; round++) {
        touch_all(f, &f->a, 0);
    }
    assert_true(rig_client_metric(&f->a, "pregate_store_evictions_total", NULL) >= 27 * 5);
    assert_true(rig_client_metric(&f->a, "pregate_store_loads_total", "class=\"demand\"") >= 155);
}

static void a_leased_slot_never_changes(void **state)
{
    fixture *f = *state;
    store_rig_start(&f->rig, tight);
    rig_client_join(&f->a, f->rig.endpoint);
    rig_client_join(&f->b, f->rig.endpoint);
    const void *mine = rig_client_lease(&f->a, 1, 3);
    uint64_t word = rig_client_word(&f->a, 3);
    for (int round = 0; round < 10; round++) {
        touch_all(f, &f->b, 0);
        assert_true(is_expert(f, 3, mine));
        assert_int_equal(word, rig_client_word(&f->a, 3));
    }
    rig_client_release(&f->a, 1);
    touch_all(f, &f->b, 0);
    assert_true(word != rig_client_word(&f->a, 3)); /* and now it has moved */
}

/* All experts at once through five slots: nobody may livelock. */
static void wanting_everything_at_once_through_few_slots_ends(void **state)
{
    fixture *f = *state;
    uint32_t all[N_EXPERTS];
    store_rig_start(&f->rig, tight);
    rig_client_join(&f->a, f->rig.endpoint);
    rig_client_join(&f->b, f->rig.endpoint);
    for (uint32_t x = 0; x < N_EXPERTS; x++) {
        all[x] = x;
    }
    rig_client_send_experts(&f->a, WIRE_WANT, 0, all, N_EXPERTS);
    rig_client_send_experts(&f->b, WIRE_WANT, 0, all, N_EXPERTS);
    for (uint32_t x = 0; x < N_EXPERTS; x++) {
        lease_and_check(f, &f->a, 0, x);
        lease_and_check(f, &f->b, 0, x);
        rig_client_release(&f->a, 0);
        rig_client_release(&f->b, 0);
    }
    assert_true(rig_client_metric(&f->a, "pregate_store_workers_stalled_total", NULL) == 0);
}

static void pack(fixture *f, char *out_store)
{
    char command[512];
    snprintf(out_store, 128, "%s/tiny.store", f->rig.dir);
    snprintf(command, sizeof command, "%s --synthetic switch-tiny --seed 7 --out %s >>%s 2>&1",
             pack_program, out_store, f->rig.log);
    assert_int_equal(0, system(command));
}

static void a_packed_store_serves_the_same_bytes(void **state)
{
    fixture *f = *state;
    char store[128];
    pack(f, store);
    const char *const engines[] = {"auto", "pread"};
    for (int i = 0; i < 2; i++) {
        const char *const args[] = {"--store",  store,           "--ram-bytes", "40960", "--engine",
                                    engines[i], "--max-workers", "2",           NULL};
        store_rig_start(&f->rig, args);
        rig_client_join(&f->a, f->rig.endpoint);
        touch_all(f, &f->a, 0);
        touch_all(f, &f->a, 1);
        assert_true(rig_client_metric(&f->a, "pregate_store_read_bytes_total", NULL) >=
                    59 * SLOT_BYTES);
        rig_client_close(&f->a);
        assert_int_equal(0, store_rig_stop(&f->rig));
    }
}

static void flip_segment_byte(const char *store, off_t off)
{
    char path[160];
    char byte = 0;
    snprintf(path, sizeof path, "%s/segments/000000.seg", store);
    int fd = open(path, O_RDWR);
    assert_int_equal(1, pread(fd, &byte, 1, off));
    byte = (char)(byte ^ 1);
    assert_int_equal(1, pwrite(fd, &byte, 1, off));
    assert_int_equal(0, fsync(fd));
    close(fd);
}

/* Some expert's bytes on the drive are wrong: its WANT fails with a reason, others do not. */
static void a_corrupt_expert_fails_and_is_served_once_repaired(void **state)
{
    fixture *f = *state;
    char store[128];
    uint32_t bad = UINT32_MAX;
    pack(f, store);
    flip_segment_byte(store, 100);
    const char *const args[] = {"--store", store, NULL};
    store_rig_start(&f->rig, args);
    rig_client_join(&f->a, f->rig.endpoint);
    for (uint32_t x = 0; x < N_EXPERTS; x++) {
        rig_client_send_experts(&f->a, WIRE_WANT, 0, &x, 1);
        assert_true(rig_client_recv(&f->a, 5 * MOE_NS_PER_S));
        if (f->a.in.h.kind == WIRE_FAILED) {
            assert_int_equal(UINT32_MAX, bad);
            assert_int_equal(MOE_ERR_CORRUPT, f->a.in.failed.status);
            assert_int_equal(x, f->a.in.failed.experts[0]);
            assert_true(f->a.in.failed.text[0] != '\0');
            bad = x;
        }
    }
    assert_int_not_equal(UINT32_MAX, bad);
    assert_int_equal(MOE_BOARD_FAILED, moe_board_word_state(rig_client_word(&f->a, bad)));
    flip_segment_byte(store, 100);
    rig_client_want(&f->a, &bad, 1);
    lease_and_check(f, &f->a, 0, bad);
    assert_true(rig_client_metric(&f->a, "pregate_store_verify_failures_total", NULL) == 1);
    assert_int_equal(1, store_rig_log_count(&f->rig, "read_failed"));
}

/* ---- start and stop ---- */

static void a_clean_stop_leaves_nothing_behind(void **state)
{
    fixture *f = *state;
    store_rig_start(&f->rig, roomy);
    rig_client_join(&f->a, f->rig.endpoint);
    assert_int_equal(4, store_rig_count_regions(&f->rig));
    assert_int_equal(0, store_rig_stop(&f->rig));
    assert_int_equal(0, store_rig_count_regions(&f->rig));
    assert_false(store_rig_file_exists(&f->rig, "store.sock"));
    assert_false(store_rig_file_exists(&f->rig, "store.sock.admin"));
    const moe_board_header *h = f->a.board.base;
    assert_int_equal(0, h->serving);
    assert_int_equal(0, memcmp(&h->magic, MOE_BOARD_SUPERSEDED, 8)); /* workers let go */
}

static void kept_memory_is_adopted_by_the_next_start(void **state)
{
    fixture *f = *state;
    const char *const keep[] = {"--synthetic", "switch-tiny", "--seed", "7", "--keep-memory", NULL};
    store_rig_start(&f->rig, keep);
    rig_client_join(&f->a, f->rig.endpoint);
    touch_all(f, &f->a, 0);
    const moe_board_header *h = f->a.board.base;
    assert_int_equal(1, h->serving);
    assert_int_equal(0, store_rig_stop(&f->rig));
    assert_int_equal(0, h->serving);
    assert_int_equal(4, store_rig_count_regions(&f->rig));
    store_rig_start(&f->rig, keep);
    assert_int_equal(1, h->serving);
    rig_client_hello(&f->a, f->a.welcome.worker_id);
    assert_int_equal(2, f->a.welcome.h.boot);
    assert_true(rig_client_metric(&f->a, "pregate_store_adopted_slots", NULL) == N_EXPERTS);
    assert_true(rig_client_metric(&f->a, "pregate_store_reads_total", NULL) == 0);
    lease_and_check(f, &f->a, 0, 5);
}

static void a_second_store_on_the_same_endpoint_is_refused_by_name(void **state)
{
    fixture *f = *state;
    char pid[32];
    store_rig_start(&f->rig, roomy);
    snprintf(pid, sizeof pid, "process %d", (int)f->rig.pid);
    pid_t first = f->rig.pid;
    f->rig.pid = 0;
    store_rig_spawn(&f->rig, roomy);
    assert_int_equal(1, store_rig_wait(&f->rig));
    f->rig.pid = first;
    assert_int_equal(1, store_rig_log_count(&f->rig, "already running"));
    assert_int_equal(1, store_rig_log_count(&f->rig, pid));
    rig_client_join(&f->a, f->rig.endpoint); /* and the first one did not notice */
    touch_all(f, &f->a, 0);
    assert_int_equal(0, store_rig_stop(&f->rig));
}

static void refuses_to_start(fixture *f, const char *const *args, int code, const char *words)
{
    store_rig_spawn(&f->rig, args);
    assert_int_equal(code, store_rig_wait(&f->rig));
    if (store_rig_log_count(&f->rig, words) != 1) {
        fail_msg("\"%s\" is not (once) in: %s", words, store_rig_log(&f->rig));
    }
    assert_int_equal(0, store_rig_count_regions(&f->rig));
    assert_false(store_rig_file_exists(&f->rig, "store.sock"));
}

static void wrong_settings_end_in_one_clear_error(void **state)
{
    fixture *f = *state;
    const char *const none[] = {NULL};
    const char *const both[] = {"--synthetic", "switch-tiny", "--store", "x.store", NULL};
    const char *const unknown[] = {"--synthetic", "switch-tiny", "--sed", "7", NULL};
    const char *const model[] = {"--synthetic", "switch-huge", NULL};
    const char *const missing[] = {"--store", "/nonexistent.store", NULL};
    const char *const few[] = {"--synthetic", "switch-tiny", "--ram-bytes", "64KiB", NULL};
    const char *const huge[] = {"--synthetic", "switch-base-256", "--ram-bytes", "900TiB", NULL};
    refuses_to_start(f, none, 2, "nothing to serve");
    refuses_to_start(f, both, 2, "exclude each other");
    refuses_to_start(f, unknown, 2, "did you mean --seed");
    refuses_to_start(f, model, 1, "known: switch-tiny");
    refuses_to_start(f, missing, 1, "/nonexistent.store");
    refuses_to_start(f, few, 1, "73728 bytes (9 slots)");
    refuses_to_start(f, huge, 1, "can be had: give less");
    const char *const uid[] = {"--synthetic", "switch-tiny", "--allow-uid", "me", NULL};
    refuses_to_start(f, uid, 2, "numeric user id");
}

/* It fails late, with its memory made already: nothing of it stays. */
static void a_socket_that_cannot_be_bound_leaves_no_memory_behind(void **state)
{
    fixture *f = *state;
    char path[160];
    snprintf(path, sizeof path, "%s/store.sock.admin", f->rig.dir);
    assert_int_equal(0, mkdir(path, 0700));
    refuses_to_start(f, roomy, 1, "store.sock.admin");
}

static void a_socket_path_that_is_too_long_is_refused(void **state)
{
    fixture *f = *state;
    memset(f->rig.endpoint + strlen(f->rig.endpoint), 'x',
           sizeof f->rig.endpoint - 1 - strlen(f->rig.endpoint));
    refuses_to_start(f, roomy, 1, "107");
}

static void without_memlock_it_warns_once_and_serves(void **state)
{
    fixture *f = *state;
    const char *const args[] = {"--synthetic", "switch-tiny", "--seed", "7",
                                "--allow-uid", "0",           NULL};
    if (getuid() != 0 || MLOCK_IS_FAKED) {
        return; /* only root can become another user, whom the limit binds */
    }
    f->rig.run_as = 65534;
    f->rig.memlock = 0;
    store_rig_start(&f->rig, args);
    rig_client_join(&f->a, f->rig.endpoint);
    assert_int_equal(0, f->a.welcome.pinned);
    touch_all(f, &f->a, 0);
    assert_true(rig_client_metric(&f->a, "pregate_store_pinned", NULL) == 0);
    assert_int_equal(1, store_rig_log_count(&f->rig, "not_pinned"));
    assert_int_equal(1, store_rig_log_count(&f->rig, "RLIMIT_MEMLOCK is 0 KiB"));
    assert_int_equal(1, store_rig_log_count(&f->rig, "slower"));
    assert_int_equal(0, store_rig_stop(&f->rig));
}

/* ---- workers ---- */

static void hello_again_gives_the_same_place(void **state)
{
    fixture *f = *state;
    store_rig_start(&f->rig, tight);
    rig_client_join(&f->a, f->rig.endpoint);
    uint32_t id = f->a.welcome.worker_id;
    rig_client_hello(&f->a, 0); /* the same peer */
    assert_int_equal(id, f->a.welcome.worker_id);
    rig_client_open(&f->b, f->rig.endpoint);
    rig_client_hello(&f->b, id); /* another connection of the same process */
    assert_int_equal(id, f->b.welcome.worker_id);
    rig_client_hello(&f->b, 999); /* never given out: but this peer is known */
    assert_int_equal(id, f->b.welcome.worker_id);
    rig_client_await_metric(&f->b, "pregate_store_workers", NULL, 1);
}

static void one_worker_too_many_is_told_so(void **state)
{
    fixture *f = *state;
    static rig_client third;
    const char *const args[] = {
        "--synthetic", "switch-tiny", "--max-workers", "2", "--worker-probe-ms", "10000", NULL};
    store_rig_start(&f->rig, args);
    rig_client_join(&f->a, f->rig.endpoint);
    rig_client_join(&f->b, f->rig.endpoint);
    assert_int_not_equal(f->a.welcome.worker_id, f->b.welcome.worker_id);
    rig_client_open(&third, f->rig.endpoint);
    third.out.hello = (wire_hello){.h.kind = WIRE_HELLO, .name = "third"};
    rig_client_send(&third);
    rig_client_expect_error(&third, MOE_ERR_LIMIT, "--max-workers");
    rig_client_close(&f->b); /* its lock goes, and HELLO looks for places of the dead */
    rig_client_hello(&third, 0);
    rig_client_close(&third);
}

/* This program again, as a worker that joins, leases an expert and waits to be killed. A fresh
 * image: the sockets' threads do not survive a fork. */
static int be_worker(const char *endpoint, uint32_t expert, int tell_fd)
{
    static rig_client c;
    rig_client_join(&c, endpoint);
    (void)rig_client_lease(&c, 0, expert);
    moe_lease_header *h = c.leases.base;
    atomic_fetch_add(&h->counters.decode_steps, 42);
    atomic_fetch_add(&moe_lease_blocks(c.leases.base)[0].slot_miss, 3);
    if (write(tell_fd, &c.welcome.worker_id, sizeof c.welcome.worker_id) < 0) {
        return 1;
    }
    for (;;) {
        pause();
    }
}

static pid_t fork_worker(const char *endpoint, uint32_t expert, int tell_fd)
{
    char expert_text[16];
    char fd_text[16];
    snprintf(expert_text, sizeof expert_text, "%u", expert);
    snprintf(fd_text, sizeof fd_text, "%d", tell_fd);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl("/proc/self/exe", "test_store", "worker", endpoint, expert_text, fd_text, NULL);
        _exit(127);
    }
    return pid;
}

static void a_killed_worker_gives_its_slots_back_and_its_counters_stay(void **state)
{
    fixture *f = *state;
    int pipe_fds[2];
    uint32_t id = 0;
    char name[MOE_SHM_NAME_BYTES];
    moe_shm_region gone = MOE_SHM_REGION_NONE;
    const char *const args[] = {"--synthetic",
                                "switch-tiny",
                                "--seed",
                                "7",
                                "--ram-bytes",
                                "40960",
                                "--max-workers",
                                "2",
                                "--worker-probe-ms",
                                "20",
                                "--worker-grace-ms",
                                "500",
                                NULL};
    store_rig_start(&f->rig, args);
    rig_client_join(&f->a, f->rig.endpoint);
    assert_int_equal(0, pipe(pipe_fds));
    pid_t pid = fork_worker(f->rig.endpoint, 9, pipe_fds[1]);
    assert_int_equal(sizeof id, read(pipe_fds[0], &id, sizeof id));
    uint64_t word = rig_client_word(&f->a, 9);
    for (int i = 0; i < 3; i++) {
        touch_all(f, &f->a, 0);
    }
    assert_int_equal(word, rig_client_word(&f->a, 9));
    rig_client_await_metric(&f->a, "pregate_store_workers", NULL, 2);
    kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
    rig_client_await_metric(&f->a, "pregate_store_workers_gone_total", NULL, 1);
    rig_client_await_metric(&f->a, "pregate_worker_decode_steps_total", "worker=\"gone\"", 42);
    rig_client_await_metric(&f->a, "pregate_slot_miss_total", NULL, 3);
    snprintf(name, sizeof name, "%s", f->a.leases.name);
    *(strrchr(name, '-') + 1) = '\0';
    snprintf(name + strlen(name), 12, "%u", id);
    assert_int_equal(MOE_ERR_NOT_FOUND, moe_shm_open(name, false, &gone, NULL));
    touch_all(f, &f->a, 0);
    assert_true(word != rig_client_word(&f->a, 9));
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

static void a_worker_that_never_locks_its_table_is_forgotten(void **state)
{
    fixture *f = *state;
    const char *const args[] = {
        "--synthetic", "switch-tiny", "--worker-grace-ms", "100", "--worker-probe-ms", "20", NULL};
    store_rig_start(&f->rig, args);
    rig_client_open(&f->a, f->rig.endpoint);
    rig_client_hello(&f->a, 0);
    rig_client_await_metric(&f->a, "pregate_store_workers_gone_total", NULL, 1);
    uint32_t x = 1;
    rig_client_send_experts(&f->a, WIRE_WANT, 0, &x, 1);
    rig_client_expect_error(&f->a, MOE_ERR_INVALID, "HELLO");
}

/* ---- bad messages ---- */

static void what_cannot_be_served_is_answered_by_error(void **state)
{
    fixture *f = *state;
    uint32_t x = 3;
    uint32_t beyond[] = {1, N_EXPERTS};
    store_rig_start(&f->rig, tight);
    rig_client_open(&f->b, f->rig.endpoint);
    rig_client_send_experts(&f->b, WIRE_WANT, 0, &x, 1);
    rig_client_expect_error(&f->b, MOE_ERR_INVALID, "HELLO");
    rig_client_join(&f->a, f->rig.endpoint);
    f->a.step = 17;
    rig_client_send_experts(&f->a, WIRE_WANT, 0, beyond, 2);
    rig_client_expect_error(&f->a, MOE_ERR_INVALID, "expert 32");
    assert_int_equal(17, f->a.in.h.step);
    assert_int_equal(MOE_BOARD_ABSENT, moe_board_word_state(rig_client_word(&f->a, 1)));
    rig_client_send_experts(&f->a, WIRE_PREFETCH, 0, &x, 1);
    rig_client_expect_error(&f->a, MOE_ERR_UNSUPPORTED, ".admin");
    rig_client_send_experts(&f->a, WIRE_READY, 0, &x, 1);
    rig_client_expect_error(&f->a, MOE_ERR_UNSUPPORTED, "READY");
    rig_client_send_bytes(&f->a, "\x84\x00\x63\x01\x01\x02\x00\x03\x00", 9); /* kind 99 */
    rig_client_expect_error(&f->a, MOE_ERR_UNSUPPORTED, "");
    rig_client_send_bytes(&f->a, "\x84\x00\x08\x01\x02\x02\x00\x03\x00", 9); /* version 2 */
    rig_client_expect_error(&f->a, MOE_ERR_VERSION, "");
    rig_client_send_bytes(&f->a, "", 0);
    rig_client_expect_error(&f->a, MOE_ERR_FORMAT, "");
    rig_client_ping(&f->a);
}

static uint64_t next_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
    return *seed >> 33;
}

/* Valid messages with bytes changed, cut off or added: never a crash, and others are served on. */
static void a_flood_of_broken_bytes_stops_nobody(void **state)
{
    fixture *f = *state;
    uint64_t seed = 99;
    store_rig_start(&f->rig, tight);
    rig_client_join(&f->a, f->rig.endpoint);
    rig_client_join(&f->b, f->rig.endpoint);
    const wire_kind kinds[] = {WIRE_HELLO, WIRE_WANT, WIRE_PREDICT, WIRE_CANCEL, WIRE_STATS};
    for (int i = 0; i < 5000; i++) {
        unsigned char bytes[512];
        wire_buffer b = {0};
        memset(&f->b.out, 0, sizeof f->b.out);
        f->b.out.experts.n = 4;
        f->b.out.h.kind = (uint32_t)kinds[next_random(&seed) % 5];
        assert_int_equal(MOE_OK, wire_encode(&f->b.out, &b, NULL));
        size_t n = b.bytes < 500 ? b.bytes : 500;
        memcpy(bytes, b.data, n);
        wire_buffer_fini(&b);
        for (uint64_t k = next_random(&seed) % 4; k > 0; k--) {
            bytes[next_random(&seed) % n] = (unsigned char)next_random(&seed);
        }
        n = next_random(&seed) % 3 == 0 ? next_random(&seed) % (n + 8) : n;
        rig_client_send_bytes(&f->b, bytes, n);
        while (rig_client_recv(&f->b, 0)) { /* let answers not pile up */
            if (f->b.in.h.kind == WIRE_STATS_REPLY) {
                moe_metrics_fini(&f->b.in.stats_reply.metrics);
            }
        }
    }
    touch_all(f, &f->a, 0);
    rig_client_ping(&f->a);
    assert_true(rig_client_metric(&f->a, "pregate_store_malformed_total", NULL) > 100);
    assert_true(store_rig_log_count(&f->rig, "message_refused") < 20); /* rate-limited */
    assert_int_equal(0, store_rig_stop(&f->rig));
}

/* ---- crash and adoption ---- */

static void restart_after_kill(fixture *f, const char *const *args)
{
    kill(f->rig.pid, SIGKILL);
    assert_int_equal(-SIGKILL, store_rig_wait(&f->rig));
    store_rig_start(&f->rig, args);
}

static void a_killed_store_is_adopted_with_the_leases_of_its_workers(void **state)
{
    fixture *f = *state;
    store_rig_start(&f->rig, tight);
    rig_client_join(&f->a, f->rig.endpoint);
    const void *mine = rig_client_lease(&f->a, 0, 21);
    uint64_t word = rig_client_word(&f->a, 21);
    restart_after_kill(f, tight);
    rig_client_join(&f->b, f->rig.endpoint); /* another worker, before the first one is back */
    for (int i = 0; i < 5; i++) {
        touch_all(f, &f->b, 0);
        assert_true(is_expert(f, 21, mine));
    }
    assert_int_equal(word, rig_client_word(&f->a, 21));
    uint32_t id = f->a.welcome.worker_id;
    assert_int_not_equal(id, f->b.welcome.worker_id);
    rig_client_hello(&f->a, id);
    assert_int_equal(id, f->a.welcome.worker_id);
    assert_int_equal(2, f->a.welcome.h.boot);
    assert_int_equal(word, rig_client_word(&f->a, 21)); /* the same memory */
    touch_all(f, &f->a, 1);
    assert_true(is_expert(f, 21, mine));
    rig_client_await_metric(&f->a, "pregate_store_workers_adopted_total", NULL, 1);
    rig_client_await_metric(&f->a, "pregate_store_reverify_failures_total", NULL, 0);
}

static void killed_at(fixture *f, const char *point, const char *after)
{
    const char *const args[] = {"--synthetic",
                                "switch-tiny",
                                "--seed",
                                "7",
                                "--ram-bytes",
                                "40960",
                                "--max-workers",
                                "2",
                                "--test-kill-at",
                                point,
                                "--test-kill-after",
                                after,
                                "--worker-probe-ms",
                                "20",
                                NULL};
    store_rig_start(&f->rig, args);
    rig_client_open(&f->a, f->rig.endpoint);
    f->a.out.hello = (wire_hello){.h.kind = WIRE_HELLO, .name = "rig"};
    rig_client_send(&f->a);
    if (strcmp(point, "welcome") != 0) {
        rig_client_expect(&f->a, WIRE_WELCOME);
        f->a.welcome = f->a.in.welcome;
        rig_client_map(&f->a);
        const void *mine = rig_client_lease(&f->a, 0, 0);
        for (uint32_t x = 1; x < 12; x++) { /* one of these kills it */
            rig_client_send_experts(&f->a, WIRE_WANT, 0, &x, 1);
        }
        assert_int_equal(-SIGKILL, store_rig_wait(&f->rig));
        assert_true(is_expert(f, 0, mine));
    } else {
        assert_int_equal(-SIGKILL, store_rig_wait(&f->rig));
    }
}

static void a_store_killed_anywhere_is_adopted_and_serves(void **state)
{
    fixture *f = *state;
    static const char *const points[][2] = {{"mid_read", "4"},
                                            {"mid_read", "9"},
                                            {"evicting", "1"},
                                            {"evicting", "3"},
                                            {"welcome", "1"}};
    for (size_t i = 0; i < sizeof points / sizeof points[0]; i++) {
        killed_at(f, points[i][0], points[i][1]);
        store_rig_start(&f->rig, tight);
        rig_client_join(&f->b, f->rig.endpoint);
        touch_all(f, &f->b, 0);
        if (f->a.leases.base != NULL) {
            uint32_t slot = moe_board_word_slot(moe_lease_words(f->a.leases.base)[0]);
            assert_true(is_expert(f, 0, (const char *)f->a.slots.base + slot * SLOT_BYTES));
            rig_client_hello(&f->a, f->a.welcome.worker_id);
            touch_all(f, &f->a, 1);
        }
        assert_true(rig_client_metric(&f->b, "pregate_store_boot", NULL) == 2);
        rig_client_close(&f->a);
        rig_client_close(&f->b);
        assert_int_equal(0, store_rig_stop(&f->rig));
        assert_int_equal(0, store_rig_count_regions(&f->rig));
    }
}

/* With real reads at the drive: they may land after the death, and the lock waits for them. */
static void a_store_killed_while_reading_the_drive_is_adopted(void **state)
{
    fixture *f = *state;
    char store[128];
    pack(f, store);
    for (char after = '2'; after <= '8'; after += 2) {
        const char after_text[] = {after, '\0'};
        const char *args[] = {"--store",
                              store,
                              "--ram-bytes",
                              "81920",
                              "--max-workers",
                              "2",
                              "--test-kill-at",
                              "mid_read",
                              "--test-kill-after",
                              after_text,
                              NULL};
        store_rig_start(&f->rig, args);
        rig_client_join(&f->a, f->rig.endpoint);
        const void *mine = rig_client_lease(&f->a, 0, 0);
        for (uint32_t x = 1; x < 8; x++) {
            rig_client_send_experts(&f->a, WIRE_WANT, 0, &x, 1);
        }
        assert_int_equal(-SIGKILL, store_rig_wait(&f->rig));
        args[7] = "none";
        store_rig_start(&f->rig, args);
        rig_client_join(&f->b, f->rig.endpoint);
        touch_all(f, &f->b, 0);
        assert_true(is_expert(f, 0, mine));
        assert_int_equal(2, f->b.welcome.h.boot);
        rig_client_await_metric(&f->b, "pregate_store_reverify_failures_total", NULL, 0);
        rig_client_close(&f->a);
        rig_client_close(&f->b);
        assert_int_equal(0, store_rig_stop(&f->rig));
    }
}

static void adopted_bytes_are_hashed_again_and_bad_ones_thrown_out(void **state)
{
    fixture *f = *state;
    moe_shm_region slots = MOE_SHM_REGION_NONE;
    store_rig_start(&f->rig, roomy);
    rig_client_join(&f->a, f->rig.endpoint);
    touch_all(f, &f->a, 0);
    assert_int_equal(MOE_OK, moe_shm_open(f->a.slots.name, true, &slots, NULL));
    kill(f->rig.pid, SIGKILL);
    assert_int_equal(-SIGKILL, store_rig_wait(&f->rig));
    uint32_t slot = moe_board_word_slot(rig_client_word(&f->a, 4));
    ((char *)slots.base)[slot * SLOT_BYTES + 77] ^= 1;
    moe_shm_close(&slots);
    store_rig_start(&f->rig, roomy);
    rig_client_hello(&f->a, f->a.welcome.worker_id);
    rig_client_await_metric(&f->a, "pregate_store_reverified_total", NULL, N_EXPERTS);
    rig_client_await_metric(&f->a, "pregate_store_reverify_failures_total", NULL, 1);
    assert_int_equal(1, store_rig_log_count(&f->rig, "adopted_slot_corrupt"));
    assert_int_equal(MOE_BOARD_ABSENT, moe_board_word_state(rig_client_word(&f->a, 4)));
    lease_and_check(f, &f->a, 0, 4); /* read again, and right */
    touch_all(f, &f->a, 1);
}

/* A larger budget adds pages to what is there, whoever reads it. */
static void adopted_memory_grows_with_a_larger_budget(void **state)
{
    fixture *f = *state;
    store_rig_start(&f->rig, tight);
    rig_client_join(&f->a, f->rig.endpoint);
    const void *mine = rig_client_lease(&f->a, 0, 3);
    restart_after_kill(f, roomy);
    assert_int_equal(0, store_rig_log_count(&f->rig, "memory_not_adopted"));
    rig_client_hello(&f->a, f->a.welcome.worker_id);
    assert_int_equal(2, f->a.welcome.h.boot);
    assert_int_equal(N_EXPERTS, f->a.welcome.n_slots);
    touch_all(f, &f->a, 1);
    assert_true(is_expert(f, 3, mine));
    rig_client_await_metric(&f->a, "pregate_store_slots", "state=\"ready\"", N_EXPERTS);
    assert_true(rig_client_metric(&f->a, "pregate_store_evictions_total", NULL) == 0);
    assert_true(rig_client_metric(&f->a, "pregate_store_loads_total", "class=\"demand\"") ==
                N_EXPERTS - 1);
}

static void adopted_memory_shrinks_to_a_smaller_budget_once_no_worker_is_left(void **state)
{
    fixture *f = *state;
    store_rig_start(&f->rig, roomy);
    rig_client_join(&f->a, f->rig.endpoint);
    touch_all(f, &f->a, 0);
    rig_client_close(&f->a);
    restart_after_kill(f, tight);
    assert_int_equal(0, store_rig_log_count(&f->rig, "memory_not_adopted"));
    rig_client_join(&f->a, f->rig.endpoint);
    assert_int_equal(2, f->a.welcome.h.boot);
    assert_int_equal(5, f->a.welcome.n_slots);
    assert_int_equal(5 * SLOT_BYTES, moe_shm_allocated(&f->a.slots));
    assert_true(rig_client_metric(&f->a, "pregate_store_adopted_slots", NULL) == 5);
    touch_all(f, &f->a, 0);
    rig_client_await_metric(&f->a, "pregate_store_reverify_failures_total", NULL, 0);
}

static void more_memory_comes_while_the_store_serves(void **state)
{
    fixture *f = *state;
    char admin[160];
    static rig_client op;
    static const struct {
        const char *text;
        moe_status status;
        const char *says;
    } refused[] = {{"16384", MOE_ERR_LIMIT, "the minimum for"},
                   {"plenty", MOE_ERR_INVALID, "expected a size"},
                   {"40960", MOE_ERR_LIMIT, "stop the workers, then the store"}};
    store_rig_start(&f->rig, tight);
    rig_client_join(&f->a, f->rig.endpoint);
    snprintf(admin, sizeof admin, "%s.admin", f->rig.endpoint);
    rig_client_open(&op, admin);
    rig_client_ping(&op);
    const void *mine = rig_client_lease(&f->a, 0, 3);
    op.out.resize = (wire_resize){.h.kind = WIRE_RESIZE, .text = "65536"};
    rig_client_send(&op);
    rig_client_expect(&op, WIRE_DONE);
    assert_non_null(strstr(op.in.outcome.text, "8 slots"));
    rig_client_await_metric(&f->a, "pregate_store_slots_max", NULL, 8);
    rig_client_await_metric(&f->a, "pregate_store_slots", "state=\"unmade\"", 0);
    touch_all(f, &f->a, 1);
    rig_client_await_metric(&f->a, "pregate_store_slots", "state=\"ready\"", 8);
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        snprintf(op.out.resize.text, sizeof op.out.resize.text, "%s", refused[i].text);
        rig_client_send(&op);
        rig_client_expect_error(&op, refused[i].status, refused[i].says);
    }
    snprintf(op.out.resize.text, sizeof op.out.resize.text, "all");
    rig_client_send(&op);
    rig_client_expect(&op, WIRE_DONE);
    touch_all(f, &f->a, 1);
    rig_client_await_metric(&f->a, "pregate_store_slots", "state=\"ready\"", N_EXPERTS);
    assert_true(is_expert(f, 3, mine));
    rig_client_join(&f->b,
                    f->rig.endpoint); /* the second worker of two gets what larger memory allows */
    assert_true(f->b.welcome.lease_capacity > f->a.welcome.lease_capacity);
    assert_int_equal(N_EXPERTS, f->b.welcome.n_slots);
    rig_client_close(&op);
}

/* It may have registered any slot with its device. So, too, after a raise that the settings do not
 * know of: the store that follows a crash has the old budget. */
static void adopted_memory_stays_whatever_the_budget_while_a_worker_lives(void **state)
{
    fixture *f = *state;
    store_rig_start(&f->rig, roomy);
    rig_client_join(&f->a, f->rig.endpoint);
    touch_all(f, &f->a, 0);
    restart_after_kill(f, tight);
    assert_int_equal(0, store_rig_log_count(&f->rig, "memory_not_adopted"));
    assert_int_equal(1, store_rig_log_count(&f->rig, "memory_over_budget"));
    rig_client_hello(&f->a, f->a.welcome.worker_id);
    assert_int_equal(2, f->a.welcome.h.boot);
    assert_int_equal(N_EXPERTS, f->a.welcome.n_slots);
    touch_all(f, &f->a, 0);
    assert_true(rig_client_metric(&f->a, "pregate_store_adopted_slots", NULL) == N_EXPERTS);
    assert_true(rig_client_metric(&f->a, "pregate_store_loads_total", "class=\"demand\"") == 0);
    rig_client_close(&f->a);
    restart_after_kill(f, tight);
    rig_client_join(&f->a, f->rig.endpoint);
    assert_int_equal(5, f->a.welcome.n_slots);
    assert_int_equal(3, f->a.welcome.h.boot);
}

static void memory_of_another_model_is_superseded(void **state)
{
    fixture *f = *state;
    const char *const other_seed[] = {"--synthetic", "switch-tiny", "--seed", "8", NULL};
    store_rig_start(&f->rig, tight);
    rig_client_join(&f->a, f->rig.endpoint);
    restart_after_kill(f, other_seed);
    const moe_board_header *h = f->a.board.base;
    assert_int_equal(0, memcmp(&h->magic, MOE_BOARD_SUPERSEDED, 8));
    assert_int_equal(1, store_rig_log_count(&f->rig, "memory_not_adopted"));
    assert_int_equal(3, store_rig_count_regions(&f->rig)); /* the old ones are gone */
    assert_int_equal(1, store_rig_log_count(&f->rig, "experts of another store"));
    rig_client_join(&f->b, f->rig.endpoint);
    assert_int_equal(1, f->b.welcome.h.boot);
    assert_false(is_expert(f, 3, rig_client_lease(&f->b, 0, 3)));
}

/* A lease table that a live worker has, but that the new store cannot read, may hide leases. */
static void an_unreadable_table_of_a_live_worker_spoils_the_adoption(void **state)
{
    fixture *f = *state;
    store_rig_start(&f->rig, tight);
    rig_client_join(&f->a, f->rig.endpoint);
    ((moe_lease_header *)f->a.leases.base)->layout = 77;
    restart_after_kill(f, tight);
    const moe_board_header *h = f->a.board.base;
    assert_int_equal(0, memcmp(&h->magic, MOE_BOARD_SUPERSEDED, 8));
    assert_int_equal(1, store_rig_log_count(&f->rig, "lease table 1"));
    rig_client_join(&f->b, f->rig.endpoint);
    touch_all(f, &f->b, 0);
    ((moe_lease_header *)f->b.leases.base)->layout = 77;
    rig_client_close(&f->b); /* not locked: its leases are over */
    restart_after_kill(f, tight);
    assert_int_equal(1, store_rig_log_count(&f->rig, "memory_not_adopted"));
    rig_client_join(&f->b, f->rig.endpoint);
    touch_all(f, &f->b, 0);
    assert_int_equal(2, f->b.welcome.h.boot);
}

/* ---- stopping under load, operators ---- */

static void a_stop_serves_what_was_wanted_before(void **state)
{
    fixture *f = *state;
    uint32_t all[N_EXPERTS];
    uint32_t n_ready = 0;
    store_rig_start(&f->rig, tight);
    rig_client_join(&f->a, f->rig.endpoint);
    for (uint32_t x = 0; x < N_EXPERTS; x++) {
        all[x] = x;
    }
    rig_client_send_experts(&f->a, WIRE_WANT, 0, all, N_EXPERTS);
    while (n_ready < N_EXPERTS) {
        rig_client_expect(&f->a, WIRE_READY);
        for (uint32_t i = 0; i < f->a.in.experts.n; i++) {
            lease_and_check(f, &f->a, 0, f->a.in.experts.experts[i]);
            rig_client_release(&f->a, 0);
        }
        n_ready += f->a.in.experts.n;
        kill(f->rig.pid, n_ready == 1 ? SIGTERM : 0);
    }
    assert_int_equal(0, store_rig_wait(&f->rig));
    assert_int_equal(1, store_rig_log_count(&f->rig, "stopping"));
}

/* Three slots: two leased, one pinned; so the WANT of expert 3 waits. */
static void start_and_block(fixture *f, const char *drain_ms)
{
    char admin[160];
    const char *const args[] = {
        "--synthetic", "switch-tiny",         "--ram-bytes", "24576",      "--max-workers",
        "1",           "--leases-per-worker", "2",           "--drain-ms", drain_ms,
        NULL};
    store_rig_start(&f->rig, args);
    rig_client_join(&f->a, f->rig.endpoint);
    (void)rig_client_lease(&f->a, 0, 0);
    (void)rig_client_lease(&f->a, 1, 1);
    uint32_t x = 2;
    rig_client_want(&f->a, &x, 1);
    snprintf(admin, sizeof admin, "%s.admin", f->rig.endpoint);
    rig_client_open(&f->b, admin);
    rig_client_send_experts(&f->b, WIRE_PIN, 1, &x, 1);
    rig_client_expect(&f->b, WIRE_DONE);
    x = 3;
    rig_client_send_experts(&f->a, WIRE_WANT, 0, &x, 1);
    rig_client_ping(&f->a); /* it has the WANT */
}

static void expect_cancelled(fixture *f, uint32_t expert)
{
    rig_client_expect(&f->a, WIRE_FAILED);
    assert_int_equal(MOE_ERR_CANCELLED, f->a.in.failed.status);
    assert_int_equal(expert, f->a.in.failed.experts[0]);
}

static void a_stop_gives_up_on_what_finds_no_slot(void **state)
{
    fixture *f = *state;
    start_and_block(f, "200");
    kill(f->rig.pid, SIGTERM);
    expect_cancelled(f, 3);
    assert_int_equal(0, store_rig_wait(&f->rig));
}

static void a_store_that_stops_takes_nothing_new_and_a_second_signal_ends_it(void **state)
{
    fixture *f = *state;
    uint32_t x = 4;
    start_and_block(f, "600000");
    kill(f->rig.pid, SIGINT);
    rig_client_await_metric(&f->a, "pregate_store_stopping", NULL, 1);
    rig_client_send_experts(&f->a, WIRE_WANT, 0, &x, 1);
    expect_cancelled(f, 4);
    rig_client_send_experts(&f->a, WIRE_PREDICT, 1, &x, 1);
    rig_client_await_metric(&f->a, "pregate_store_predictions_stale_total", NULL, 1);
    f->a.out.hello = (wire_hello){.h.kind = WIRE_HELLO, .name = "late"};
    rig_client_send(&f->a);
    rig_client_expect_error(&f->a, MOE_ERR_CANCELLED, "stopping");
    rig_client_send_experts(&f->b, WIRE_PREFETCH, 0, &x, 1);
    rig_client_expect_error(&f->b, MOE_ERR_CANCELLED, "stopping");
    int64_t begin_ns = moe_now_ns();
    kill(f->rig.pid, SIGHUP);
    expect_cancelled(f, 3);
    assert_int_equal(0, store_rig_wait(&f->rig));
    assert_true(moe_now_ns() - begin_ns < 5 * MOE_NS_PER_S);
}

static void operators_prefetch_pin_evict_and_drain(void **state)
{
    fixture *f = *state;
    char admin[160];
    uint32_t some[] = {4, 5, 6};
    static rig_client op;
    store_rig_start(&f->rig, roomy);
    rig_client_join(&f->a, f->rig.endpoint);
    snprintf(admin, sizeof admin, "%s.admin", f->rig.endpoint);
    rig_client_open(&op, admin);
    rig_client_ping(&op);
    rig_client_send_experts(&op, WIRE_PREFETCH, 0, some, 3);
    rig_client_expect(&op, WIRE_DONE);
    assert_int_equal(MOE_OK, op.in.outcome.status);
    rig_client_await_metric(&f->a, "pregate_store_slots", "state=\"ready\"", 3);
    rig_client_send_experts(&op, WIRE_PIN, 1, some, 1);
    rig_client_expect(&op, WIRE_DONE);
    rig_client_await_metric(&f->a, "pregate_store_experts_pinned", NULL, 1);
    lease_and_check(f, &f->a, 0, 5);
    rig_client_send_experts(&op, WIRE_EVICT, 0, some, 3);
    rig_client_expect(&op, WIRE_DONE);
    assert_int_equal(MOE_ERR_BUSY, op.in.outcome.status);
    assert_non_null(strstr(op.in.outcome.text, "1 evicted, 2 in use"));
    rig_client_release(&f->a, 0);
    rig_client_send_experts(&op, WIRE_PIN, 0, some, 3);
    rig_client_expect(&op, WIRE_DONE);
    rig_client_send_experts(&op, WIRE_EVICT, 0, some, 3);
    rig_client_expect(&op, WIRE_DONE);
    assert_int_equal(MOE_OK, op.in.outcome.status);
    rig_client_send_experts(&op, WIRE_WANT, 0, some, 1);
    rig_client_expect_error(&op, MOE_ERR_UNSUPPORTED, "admin socket");
    op.out.plain = (wire_plain){.h.kind = WIRE_DRAIN};
    rig_client_send(&op);
    rig_client_expect(&op, WIRE_DONE);
    assert_int_equal(0, store_rig_wait(&f->rig));
    rig_client_close(&op);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TEST(every_expert_of_a_synthetic_model_is_served),
        TEST(the_dense_region_holds_files_and_weights),
        TEST(more_experts_than_slots_come_and_go),
        TEST(a_leased_slot_never_changes),
        TEST(wanting_everything_at_once_through_few_slots_ends),
        TEST(a_packed_store_serves_the_same_bytes),
        TEST(a_corrupt_expert_fails_and_is_served_once_repaired),
        TEST(a_clean_stop_leaves_nothing_behind),
        TEST(kept_memory_is_adopted_by_the_next_start),
        TEST(a_second_store_on_the_same_endpoint_is_refused_by_name),
        TEST(wrong_settings_end_in_one_clear_error),
        TEST(a_socket_that_cannot_be_bound_leaves_no_memory_behind),
        TEST(a_socket_path_that_is_too_long_is_refused),
        TEST(without_memlock_it_warns_once_and_serves),
        TEST(hello_again_gives_the_same_place),
        TEST(one_worker_too_many_is_told_so),
        TEST(a_killed_worker_gives_its_slots_back_and_its_counters_stay),
        TEST(a_worker_that_never_locks_its_table_is_forgotten),
        TEST(what_cannot_be_served_is_answered_by_error),
        TEST(a_flood_of_broken_bytes_stops_nobody),
        TEST(a_killed_store_is_adopted_with_the_leases_of_its_workers),
        TEST(a_store_killed_anywhere_is_adopted_and_serves),
        TEST(a_store_killed_while_reading_the_drive_is_adopted),
        TEST(adopted_bytes_are_hashed_again_and_bad_ones_thrown_out),
        TEST(adopted_memory_grows_with_a_larger_budget),
        TEST(adopted_memory_shrinks_to_a_smaller_budget_once_no_worker_is_left),
        TEST(more_memory_comes_while_the_store_serves),
        TEST(adopted_memory_stays_whatever_the_budget_while_a_worker_lives),
        TEST(memory_of_another_model_is_superseded),
        TEST(an_unreadable_table_of_a_live_worker_spoils_the_adoption),
        TEST(a_stop_serves_what_was_wanted_before),
        TEST(a_stop_gives_up_on_what_finds_no_slot),
        TEST(a_store_that_stops_takes_nothing_new_and_a_second_signal_ends_it),
        TEST(operators_prefetch_pin_evict_and_drain),
    };
    if (argc == 5 && strcmp(argv[1], "worker") == 0) {
        return be_worker(argv[2], (uint32_t)strtoul(argv[3], NULL, 10),
                         (int)strtol(argv[4], NULL, 10));
    }
    if (argc < 3) {
        fprintf(stderr, "usage: %s EXPERT-STORE EXPERT-PACK [FILTER]\n", argv[0]);
        return 2;
    }
    store_program = argv[1];
    pack_program = argv[2];
    if (argc > 3) {
        cmocka_set_test_filter(argv[3]);
    }
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
