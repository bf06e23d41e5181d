/* The two socket ends over a real ipc path in a directory of their own: who gets in, what never
 * blocks, and what foreign peers cannot do. ZeroMQ's own I/O threads make both ends live in one
 * thread; a child process stands for a peer where its identity matters. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include <cmocka.h>

#include "common/clock.h"
#include "proto/messages.h"
#include "proto/socket.h"

void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);

static bool calloc_fails;

void *__wrap_calloc(size_t n, size_t bytes)
{
    return calloc_fails ? NULL : __real_calloc(n, bytes);
}

#define PATIENCE_NS (10 * MOE_NS_PER_S) /* only a broken build waits that long */
#define OTHER_UID 65534

typedef struct place {
    char dir[64];
    char path[96];
    char endpoint[128];
} place;

static int make_place(void **state)
{
    place *p = calloc(1, sizeof *p);
    const char *tmp = P_tmpdir;
    snprintf(p->dir, sizeof p->dir, "%s/wire-test-XXXXXX", tmp);
    if (mkdtemp(p->dir) == NULL) {
        return -1;
    }
    snprintf(p->path, sizeof p->path, "%s/s/store.sock", p->dir);
    snprintf(p->endpoint, sizeof p->endpoint, "ipc://%s", p->path);
    *state = p;
    return 0;
}

static int remove_place(void **state)
{
    place *p = *state;
    char sub[96];
    snprintf(sub, sizeof sub, "%s/s", p->dir);
    unlink(p->path);
    rmdir(sub);
    int rc = rmdir(p->dir); /* fails if a test left something behind */
    free(p);
    return rc;
}

static wire_router *make_router(const place *p, int64_t allow_uid)
{
    wire_router_cfg cfg = {.endpoint = p->endpoint,
                           .allow_uid = allow_uid,
                           .max_message_bytes = WIRE_MAX_REQUEST_BYTES};
    wire_router *r = NULL;
    moe_err err = {0};
    if (wire_router_create(&cfg, &r, &err) != MOE_OK) {
        fail_msg("%s", err.text);
    }
    return r;
}

static wire_dealer *make_dealer(const place *p)
{
    wire_dealer *d = NULL;
    assert_int_equal(MOE_OK, wire_dealer_create(p->endpoint, &d, NULL));
    return d;
}

/* Waits on the fd as an event loop does: poll, then receive until there is nothing. */
static moe_status router_wait(wire_router *r, int64_t wait_ns, wire_peer *peer, const void **data,
                              size_t *bytes)
{
    int64_t deadline_ns = moe_now_ns() + wait_ns;
    for (;;) {
        moe_status st = wire_router_recv(r, peer, data, bytes, NULL);
        int64_t left_ns = deadline_ns - moe_now_ns();
        if (st != MOE_ERR_AGAIN || left_ns <= 0) {
            return st;
        }
        struct pollfd p = {.fd = wire_router_fd(r), .events = POLLIN};
        poll(&p, 1, (int)(left_ns / MOE_NS_PER_MS) + 1);
    }
}

/* A dealer's first sends are refused until its connection stands. */
static moe_status send_patiently(wire_dealer *d, const void *data, size_t bytes, int64_t wait_ns)
{
    int64_t deadline_ns = moe_now_ns() + wait_ns;
    for (;;) {
        moe_status st = wire_dealer_send(d, data, bytes, NULL);
        if (st != MOE_ERR_AGAIN || moe_now_ns() >= deadline_ns) {
            return st;
        }
        moe_sleep_ns(MOE_NS_PER_MS);
    }
}

static void expect_request(wire_router *r, const char *text, wire_peer *peer)
{
    const void *data = NULL;
    size_t bytes = 0;
    assert_int_equal(MOE_OK, router_wait(r, PATIENCE_NS, peer, &data, &bytes));
    assert_int_equal(strlen(text), bytes);
    assert_memory_equal(text, data, bytes);
}

static void expect_answer(wire_dealer *d, const char *text)
{
    const void *data = NULL;
    size_t bytes = 0;
    assert_int_equal(MOE_OK, wire_dealer_recv(d, PATIENCE_NS, &data, &bytes, NULL));
    assert_int_equal(strlen(text), bytes);
    assert_memory_equal(text, data, bytes);
}

static void a_round_trip_carries_the_bytes_to_the_right_peer(void **state)
{
    const place *p = *state;
    wire_router *r = make_router(p, -1);
    wire_dealer *a = make_dealer(p), *b = make_dealer(p);
    wire_peer of_a, of_b;
    assert_int_equal(MOE_OK, send_patiently(a, "from a", 6, PATIENCE_NS));
    expect_request(r, "from a", &of_a);
    assert_int_equal(MOE_OK, send_patiently(b, "from b", 6, PATIENCE_NS));
    expect_request(r, "from b", &of_b);
    assert_int_equal(MOE_OK, wire_router_send(r, &of_b, "to b", 4, NULL));
    assert_int_equal(MOE_OK, wire_router_send(r, &of_a, "to a", 4, NULL));
    expect_answer(a, "to a");
    expect_answer(b, "to b");
    assert_int_equal(getpid(), of_a.pid);
    assert_int_equal(geteuid(), of_a.uid);
    wire_dealer_destroy(a);
    wire_dealer_destroy(b);
    wire_router_destroy(r);
}

static void the_dealers_fd_wakes_a_poll(void **state)
{
    const place *p = *state;
    wire_router *r = make_router(p, -1);
    wire_dealer *d = make_dealer(p);
    wire_peer peer;
    const void *data = NULL;
    size_t bytes = 0;
    assert_int_equal(MOE_OK, send_patiently(d, "ping", 4, PATIENCE_NS));
    expect_request(r, "ping", &peer);
    assert_int_equal(MOE_ERR_AGAIN, wire_dealer_recv(d, 0, &data, &bytes, NULL));
    assert_int_equal(MOE_OK, wire_router_send(r, &peer, "pong", 4, NULL));
    moe_status st = MOE_ERR_AGAIN;
    for (int i = 0; i < 100 && st == MOE_ERR_AGAIN; i++) {
        struct pollfd fd = {.fd = wire_dealer_fd(d), .events = POLLIN};
        assert_int_equal(1, poll(&fd, 1, 10000));
        st = wire_dealer_recv(d, 0, &data, &bytes, NULL);
    }
    assert_int_equal(MOE_OK, st);
    assert_memory_equal("pong", data, 4);
    wire_dealer_destroy(d);
    wire_router_destroy(r);
}

static void endpoints_must_be_absolute_ipc_paths_that_fit(void **state)
{
    (void)state;
    char path[128], endpoint[160];
    moe_err err = {0};
    assert_int_equal(MOE_OK, wire_endpoint_path("ipc:///run/a.sock", path, sizeof path, NULL));
    assert_string_equal("/run/a.sock", path);
    static const char *const bad[] = {"",           "tcp://127.0.0.1:1", "ipc://rel/a.sock",
                                      "ipc://@abs", "ipc://*",           "/run/a.sock"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(MOE_ERR_INVALID, wire_endpoint_path(bad[i], path, sizeof path, NULL));
    }
    snprintf(endpoint, sizeof endpoint, "ipc:///%0*d", 106, 0);
    assert_int_equal(MOE_OK, wire_endpoint_path(endpoint, path, sizeof path, NULL));
    assert_int_equal(MOE_ERR_LIMIT, wire_endpoint_path(endpoint, path, 107, NULL));
    snprintf(endpoint, sizeof endpoint, "ipc:///%0*d", 107, 0);
    assert_int_equal(MOE_ERR_LIMIT, wire_endpoint_path(endpoint, path, sizeof path, &err));
    assert_non_null(strstr(err.text, "108 bytes"));
    assert_non_null(strstr(err.text, endpoint));
    wire_dealer *d = NULL;
    wire_router *r = NULL;
    wire_router_cfg cfg = {.endpoint = endpoint, .allow_uid = -1, .max_message_bytes = 1024};
    assert_int_equal(MOE_ERR_LIMIT, wire_dealer_create(endpoint, &d, NULL));
    assert_int_equal(MOE_ERR_LIMIT, wire_router_create(&cfg, &r, NULL));
    assert_null(d);
    assert_null(r);
}

static void the_admin_endpoint_lies_beside_the_other(void **state)
{
    (void)state;
    char admin[160], endpoint[160];
    assert_int_equal(MOE_OK, wire_admin_endpoint("ipc:///run/a.sock", admin, sizeof admin, NULL));
    assert_string_equal("ipc:///run/a.sock.admin", admin);
    assert_int_equal(MOE_ERR_LIMIT, wire_admin_endpoint("ipc:///run/a.sock", admin, 23, NULL));
    assert_int_equal(MOE_ERR_INVALID, wire_admin_endpoint("a.sock", admin, sizeof admin, NULL));
    snprintf(endpoint, sizeof endpoint, "ipc:///%0*d", 100, 0);
    assert_int_equal(MOE_OK, wire_admin_endpoint(endpoint, admin, sizeof admin, NULL));
    snprintf(endpoint, sizeof endpoint, "ipc:///%0*d", 101, 0);
    assert_int_equal(MOE_ERR_LIMIT, wire_admin_endpoint(endpoint, admin, sizeof admin, NULL));
}

static mode_t mode_of(const char *path)
{
    struct stat st;
    assert_int_equal(0, lstat(path, &st));
    return st.st_mode & 07777;
}

static void the_socket_and_its_new_directory_are_private_and_removed(void **state)
{
    const place *p = *state;
    char dir[96];
    snprintf(dir, sizeof dir, "%s/s", p->dir);
    mode_t before = umask(0022);
    wire_router *r = make_router(p, -1);
    assert_int_equal(0022, umask(before)); /* put back */
    assert_int_equal(0700, mode_of(dir));
    assert_int_equal(0700, mode_of(p->path));
    wire_router_destroy(r);
    assert_int_equal(-1, access(p->path, F_OK));
    wire_router_destroy(NULL);
    wire_dealer_destroy(NULL);
}

static void a_directory_that_others_may_change_is_refused(void **state)
{
    const place *p = *state;
    char dir[96];
    snprintf(dir, sizeof dir, "%s/s", p->dir);
    assert_int_equal(0, mkdir(dir, 0700));
    assert_int_equal(0, chmod(dir, 0770));
    wire_router_cfg cfg = {.endpoint = p->endpoint, .allow_uid = -1, .max_message_bytes = 1024};
    wire_router *r = NULL;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_PERMISSION, wire_router_create(&cfg, &r, &err));
    assert_non_null(strstr(err.text, dir));
    assert_null(r);
    assert_int_equal(0, chmod(dir, 01777)); /* as the system's temporary directory: sticky */
    wire_router_destroy(make_router(p, -1));
    assert_int_equal(0, chmod(dir, 0700));
    if (geteuid() == 0) {
        assert_int_equal(0, chown(dir, OTHER_UID, OTHER_UID));
        assert_int_equal(MOE_ERR_PERMISSION, wire_router_create(&cfg, &r, NULL));
    }
}

static void a_missing_parent_or_a_file_as_directory_is_an_error(void **state)
{
    const place *p = *state;
    char endpoint[192], dir[96];
    snprintf(endpoint, sizeof endpoint, "ipc://%s/none/s/store.sock", p->dir);
    wire_router_cfg cfg = {.endpoint = endpoint, .allow_uid = -1, .max_message_bytes = 1024};
    wire_router *r = NULL;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_IO, wire_router_create(&cfg, &r, &err));
    assert_int_equal(ENOENT, err.native);
    snprintf(dir, sizeof dir, "%s/s", p->dir);
    FILE *f = fopen(dir, "w");
    assert_non_null(f);
    fclose(f);
    cfg.endpoint = p->endpoint;
    assert_int_equal(MOE_ERR_INVALID, wire_router_create(&cfg, &r, &err));
    assert_int_equal(0, unlink(dir));
}

static void without_memory_nothing_is_created(void **state)
{
    const place *p = *state;
    wire_router_cfg cfg = {.endpoint = p->endpoint, .allow_uid = -1, .max_message_bytes = 1024};
    wire_router *r = NULL;
    wire_dealer *d = NULL;
    calloc_fails = true;
    moe_status of_router = wire_router_create(&cfg, &r, NULL);
    moe_status of_dealer = wire_dealer_create(p->endpoint, &d, NULL);
    calloc_fails = false;
    assert_int_equal(MOE_ERR_NO_MEMORY, of_router);
    assert_int_equal(MOE_ERR_NO_MEMORY, of_dealer);
    assert_null(r);
    assert_null(d);
    assert_int_equal(-1, access(p->path, F_OK));
}

static void sends_without_a_store_are_refused_at_once(void **state)
{
    const place *p = *state;
    wire_dealer *d = make_dealer(p);
    int64_t start_ns = moe_now_ns();
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(MOE_ERR_AGAIN, wire_dealer_send(d, "x", 1, NULL));
    }
    assert_true(moe_now_ns() - start_ns < MOE_NS_PER_S);
    wire_dealer_destroy(d);
}

static void a_send_to_a_peer_that_left_is_refused_at_once(void **state)
{
    const place *p = *state;
    wire_router *r = make_router(p, -1);
    wire_dealer *d = make_dealer(p);
    wire_peer peer, nobody = {.id = "nobody", .id_bytes = 6};
    assert_int_equal(MOE_OK, send_patiently(d, "x", 1, PATIENCE_NS));
    expect_request(r, "x", &peer);
    wire_dealer_destroy(d);
    int64_t deadline_ns = moe_now_ns() + PATIENCE_NS;
    moe_status st = MOE_OK;
    while (st == MOE_OK && moe_now_ns() < deadline_ns) { /* until the hang-up was noticed */
        st = wire_router_send(r, &peer, "y", 1, NULL);
    }
    assert_int_equal(MOE_ERR_AGAIN, st);
    assert_int_equal(MOE_ERR_AGAIN, wire_router_send(r, &nobody, "y", 1, NULL));
    /* The refused sends left nothing behind: the next peer gets whole messages. */
    d = make_dealer(p);
    assert_int_equal(MOE_OK, send_patiently(d, "z", 1, PATIENCE_NS));
    expect_request(r, "z", &peer);
    assert_int_equal(MOE_OK, wire_router_send(r, &peer, "for z", 5, NULL));
    expect_answer(d, "for z");
    wire_dealer_destroy(d);
    wire_router_destroy(r);
}

/* With 4 KiB messages a peer that does not read fills kernel and queue within a few thousand. */
enum { MANY = 20000, FAT = 4096 };

static void a_peer_that_does_not_read_costs_a_refusal_not_a_wait(void **state)
{
    const place *p = *state;
    static char fat[FAT];
    wire_router *r = make_router(p, -1);
    wire_dealer *d = make_dealer(p);
    wire_peer peer;
    assert_int_equal(MOE_OK, send_patiently(d, "x", 1, PATIENCE_NS));
    expect_request(r, "x", &peer);
    int sent = 0;
    while (sent < MANY && wire_router_send(r, &peer, fat, FAT, NULL) == MOE_OK) {
        sent++;
    }
    assert_in_range(sent, 32, MANY - 1);
    sent = 0;
    while (sent < MANY && wire_dealer_send(d, fat, FAT, NULL) == MOE_OK) {
        sent++;
    }
    assert_in_range(sent, 32, MANY - 1);
    int64_t start_ns = moe_now_ns();
    wire_dealer_destroy(d); /* linger 0: what was queued is not waited for */
    wire_router_destroy(r);
    assert_true(moe_now_ns() - start_ns < PATIENCE_NS);
}

static void a_client_outlives_a_restart_of_the_store(void **state)
{
    const place *p = *state;
    wire_dealer *d = make_dealer(p); /* before there is a store */
    for (int life = 0; life < 3; life++) {
        wire_router *r = make_router(p, -1);
        wire_peer peer;
        const void *data = NULL;
        size_t bytes = 0;
        moe_status st = MOE_ERR_AGAIN;
        /* A send may still be taken for the connection that just broke: then it is lost, which is
         * why requests are repeated. */
        for (int64_t end = moe_now_ns() + PATIENCE_NS; st == MOE_ERR_AGAIN && moe_now_ns() < end;) {
            (void)!wire_dealer_send(d, "hello", 5, NULL);
            st = router_wait(r, 20 * MOE_NS_PER_MS, &peer, &data, &bytes);
        }
        assert_int_equal(MOE_OK, st);
        assert_int_equal(MOE_OK, wire_router_send(r, &peer, "welcome", 7, NULL));
        expect_answer(d, "welcome");
        wire_router_destroy(r);
    }
    wire_dealer_destroy(d);
}

static void a_stale_socket_file_does_not_stop_a_new_store(void **state)
{
    const place *p = *state;
    pid_t child = fork();
    if (child == 0) {
        make_router(p, -1);
        raise(SIGKILL); /* leaves the file behind */
    }
    assert_int_equal(child, waitpid(child, NULL, 0));
    assert_int_equal(0, access(p->path, F_OK));
    wire_router *r = make_router(p, -1);
    wire_dealer *d = make_dealer(p);
    wire_peer peer;
    assert_int_equal(MOE_OK, send_patiently(d, "x", 1, PATIENCE_NS));
    expect_request(r, "x", &peer);
    wire_dealer_destroy(d);
    wire_router_destroy(r);
}

static void waiting_for_an_answer_ends_in_time(void **state)
{
    const place *p = *state;
    wire_dealer *d = make_dealer(p);
    const void *data = &data;
    size_t bytes = 7;
    int64_t start_ns = moe_now_ns();
    assert_int_equal(MOE_ERR_TIMEOUT, wire_dealer_recv(d, 30 * MOE_NS_PER_MS, &data, &bytes, NULL));
    assert_in_range(moe_now_ns() - start_ns, 30 * MOE_NS_PER_MS, PATIENCE_NS);
    assert_int_equal(MOE_ERR_AGAIN, wire_dealer_recv(d, 0, &data, &bytes, NULL));
    assert_ptr_equal(&data, data); /* out-parameters are left alone */
    assert_int_equal(7, bytes);
    wire_dealer_destroy(d);
}

static void oversized_messages_are_refused_by_both_ends(void **state)
{
    const place *p = *state;
    static char big[WIRE_MAX_MESSAGE_BYTES + 1];
    wire_router *r = make_router(p, -1);
    wire_dealer *d = make_dealer(p);
    wire_peer peer;
    const void *data = NULL;
    size_t bytes = 0;
    assert_int_equal(MOE_ERR_LIMIT, wire_dealer_send(d, big, WIRE_MAX_REQUEST_BYTES + 1, NULL));
    assert_int_equal(MOE_OK, send_patiently(d, big, WIRE_MAX_REQUEST_BYTES, PATIENCE_NS));
    assert_int_equal(MOE_OK, router_wait(r, PATIENCE_NS, &peer, &data, &bytes));
    assert_int_equal(WIRE_MAX_REQUEST_BYTES, bytes);
    assert_int_equal(MOE_ERR_LIMIT,
                     wire_router_send(r, &peer, big, WIRE_MAX_MESSAGE_BYTES + 1, NULL));
    assert_int_equal(MOE_OK, wire_router_send(r, &peer, big, WIRE_MAX_MESSAGE_BYTES, NULL));
    assert_int_equal(MOE_OK, wire_dealer_recv(d, PATIENCE_NS, &data, &bytes, NULL));
    assert_int_equal(WIRE_MAX_MESSAGE_BYTES, bytes);
    wire_dealer_destroy(d);
    wire_router_destroy(r);
}

/* A peer that does not use socket.h. */
typedef struct stranger {
    void *context, *socket;
} stranger;

static stranger meet_stranger(const place *p, const char *routing_id)
{
    stranger s = {.context = zmq_ctx_new()};
    s.socket = zmq_socket(s.context, ZMQ_DEALER);
    int zero = 0, wait_ms = 10000;
    zmq_setsockopt(s.socket, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(s.socket, ZMQ_RCVTIMEO, &wait_ms, sizeof wait_ms);
    if (routing_id != NULL) {
        zmq_setsockopt(s.socket, ZMQ_ROUTING_ID, routing_id, strlen(routing_id));
    }
    assert_int_equal(0, zmq_connect(s.socket, p->endpoint));
    return s;
}

static void part_from(stranger s)
{
    zmq_close(s.socket);
    zmq_ctx_term(s.context);
}

static void a_message_of_several_frames_is_refused_and_can_be_answered(void **state)
{
    const place *p = *state;
    wire_router *r = make_router(p, -1);
    stranger s = meet_stranger(p, NULL);
    zmq_send(s.socket, "one", 3, ZMQ_SNDMORE);
    zmq_send(s.socket, "two", 3, ZMQ_SNDMORE);
    zmq_send(s.socket, "three", 5, 0);
    zmq_send(s.socket, "whole", 5, 0);
    wire_peer peer;
    const void *data = NULL;
    size_t bytes = 0;
    assert_int_equal(MOE_ERR_FORMAT, router_wait(r, PATIENCE_NS, &peer, &data, &bytes));
    assert_int_equal(getpid(), peer.pid);
    assert_int_equal(MOE_OK, wire_router_send(r, &peer, "no", 2, NULL));
    expect_request(r, "whole", &peer);
    char answer[8];
    assert_int_equal(2, zmq_recv(s.socket, answer, sizeof answer, 0));
    part_from(s);
    wire_router_destroy(r);
}

static void strangers_cannot_harm_the_clients_beside_them(void **state)
{
    const place *p = *state;
    static char big[WIRE_MAX_REQUEST_BYTES + 1];
    wire_router *r = make_router(p, -1);
    stranger fat = meet_stranger(p, NULL);
    stranger named = meet_stranger(p, "a routing id of more than 32 bytes");
    wire_dealer *d = make_dealer(p);
    zmq_send(fat.socket, big, sizeof big, 0);
    zmq_send(named.socket, "x", 1, 0);
    wire_peer peer;
    const void *data = NULL;
    size_t bytes = 0;
    assert_int_equal(MOE_ERR_AGAIN, router_wait(r, 50 * MOE_NS_PER_MS, &peer, &data, &bytes));
    assert_int_equal(MOE_OK, send_patiently(d, "mine", 4, PATIENCE_NS));
    expect_request(r, "mine", &peer);
    part_from(fat);
    part_from(named);
    wire_dealer_destroy(d);
    wire_router_destroy(r);
}

/* A child process that sends "child" and exits 0 once it was answered, 1 if not within wait_ns. */
static pid_t start_child(const place *p, uid_t uid, int64_t wait_ns)
{
    pid_t child = fork();
    if (child != 0) {
        return child;
    }
    wire_dealer *d = NULL;
    const void *data = NULL;
    size_t bytes = 0;
    bool fine = (uid == geteuid() || (setgid(uid) == 0 && setuid(uid) == 0)) &&
                wire_dealer_create(p->endpoint, &d, NULL) == MOE_OK &&
                send_patiently(d, "child", 5, wait_ns) == MOE_OK &&
                wire_dealer_recv(d, wait_ns, &data, &bytes, NULL) == MOE_OK;
    _exit(fine ? 0 : 1);
}

static int exit_code(pid_t child)
{
    int status = 0;
    assert_int_equal(child, waitpid(child, &status, 0));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void a_peer_is_known_by_the_pid_and_uid_the_kernel_reports(void **state)
{
    const place *p = *state;
    pid_t child = start_child(p, geteuid(), PATIENCE_NS); /* before this process has I/O threads */
    wire_router *r = make_router(p, -1);
    wire_peer peer;
    expect_request(r, "child", &peer);
    assert_int_equal(child, peer.pid);
    assert_int_equal(geteuid(), peer.uid);
    assert_int_equal(MOE_OK, wire_router_send(r, &peer, "ok", 2, NULL));
    assert_int_equal(0, exit_code(child));
    wire_router_destroy(r);
}

static void open_to_everybody(const place *p)
{
    char dir[96];
    snprintf(dir, sizeof dir, "%s/s", p->dir);
    assert_int_equal(0, chmod(p->dir, 0755));
    assert_int_equal(0, chmod(dir, 0755));
    assert_int_equal(0, chmod(p->path, 0777));
}

/* Needs root to become another user; otherwise there is nobody to refuse. */
static void another_user_is_refused_even_where_the_file_lets_him_in(void **state)
{
    const place *p = *state;
    if (geteuid() != 0) {
        print_message("not root: cannot become another user\n");
        return;
    }
    pid_t child = start_child(p, OTHER_UID, MOE_NS_PER_S);
    wire_router *r = make_router(p, -1);
    open_to_everybody(p);
    wire_peer peer;
    const void *data = NULL;
    size_t bytes = 0;
    assert_int_equal(MOE_ERR_AGAIN, router_wait(r, MOE_NS_PER_S, &peer, &data, &bytes));
    assert_int_equal(1, exit_code(child));
    wire_router_destroy(r);
}

static void the_allowed_second_user_is_served(void **state)
{
    const place *p = *state;
    if (geteuid() != 0) {
        print_message("not root: cannot become another user\n");
        return;
    }
    char dir[96];
    snprintf(dir, sizeof dir, "%s/s", p->dir);
    pid_t child = start_child(p, OTHER_UID, PATIENCE_NS);
    wire_router *r = make_router(p, OTHER_UID);
    assert_int_equal(0750, mode_of(dir));
    assert_int_equal(0770, mode_of(p->path));
    open_to_everybody(p);
    wire_peer peer;
    expect_request(r, "child", &peer);
    assert_int_equal(OTHER_UID, peer.uid);
    assert_int_equal(child, peer.pid);
    assert_int_equal(MOE_OK, wire_router_send(r, &peer, "ok", 2, NULL));
    assert_int_equal(0, exit_code(child));
    wire_router_destroy(r);
}

#define PLACED(test) cmocka_unit_test_setup_teardown(test, make_place, remove_place)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLACED(a_peer_is_known_by_the_pid_and_uid_the_kernel_reports),
        PLACED(another_user_is_refused_even_where_the_file_lets_him_in),
        PLACED(the_allowed_second_user_is_served),
        PLACED(a_stale_socket_file_does_not_stop_a_new_store),
        PLACED(a_round_trip_carries_the_bytes_to_the_right_peer),
        PLACED(the_dealers_fd_wakes_a_poll),
        cmocka_unit_test(endpoints_must_be_absolute_ipc_paths_that_fit),
        cmocka_unit_test(the_admin_endpoint_lies_beside_the_other),
        PLACED(the_socket_and_its_new_directory_are_private_and_removed),
        PLACED(a_directory_that_others_may_change_is_refused),
        PLACED(a_missing_parent_or_a_file_as_directory_is_an_error),
        PLACED(without_memory_nothing_is_created),
        PLACED(sends_without_a_store_are_refused_at_once),
        PLACED(a_send_to_a_peer_that_left_is_refused_at_once),
        PLACED(a_peer_that_does_not_read_costs_a_refusal_not_a_wait),
        PLACED(a_client_outlives_a_restart_of_the_store),
        PLACED(waiting_for_an_answer_ends_in_time),
        PLACED(oversized_messages_are_refused_by_both_ends),
        PLACED(a_message_of_several_frames_is_refused_and_can_be_answered),
        PLACED(strangers_cannot_harm_the_clients_beside_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
