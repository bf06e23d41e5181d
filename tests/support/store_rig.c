/* store_rig.c - see store_rig.h. */
#include "tests/support/store_rig.h"

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/file.h"
#include "expert-store/server/regions.h"
#include "proto/lease_table.h"

enum { PATIENCE_S = 10 };

/* ---- the process ---- */

void store_rig_init(store_rig *r, const char *program)
{
    *r = (store_rig){.program = program, .dir = "/tmp/pregate-rig-XXXXXX", .memlock = UINT64_MAX};
    assert_non_null(mkdtemp(r->dir));
    snprintf(r->endpoint, sizeof r->endpoint, "ipc://%s/store.sock", r->dir);
    snprintf(r->log, sizeof r->log, "%s/log", r->dir);
}

static const char *socket_path(const store_rig *r)
{
    return r->endpoint + strlen("ipc://");
}

static bool is_of_rig(const store_rig *r, const char *shm_file)
{
    char prefix[XS_REGION_PREFIX_BYTES];
    xs_region_prefix(socket_path(r), prefix);
    return strncmp(shm_file, prefix + 1, strlen(prefix) - 1) == 0;
}

static uint32_t visit_regions(const store_rig *r, bool unlink_them)
{
    uint32_t n = 0;
    DIR *d = opendir("/dev/shm");
    const struct dirent *e = NULL;
    while (d != NULL && (e = readdir(d)) != NULL) {
        if (is_of_rig(r, e->d_name)) {
            n++;
            if (unlink_them) {
                unlinkat(dirfd(d), e->d_name, 0);
            }
        }
    }
    if (d != NULL) {
        closedir(d);
    }
    return n;
}

uint32_t store_rig_count_regions(const store_rig *r)
{
    return visit_regions(r, false);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void store_rig_fini(store_rig *r)
{
    if (r->pid != 0) {
        kill(r->pid, SIGKILL);
        (void)waitpid(r->pid, NULL, 0);
        r->pid = 0;
    }
    while (visit_regions(r, true) > 0) { /* reading a directory while unlinking may skip names */
    }
    (void)nftw(r->dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void become(const store_rig *r)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int log = open(r->log, O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (log < 0 || dup2(log, STDERR_FILENO) < 0 || dup2(log, STDOUT_FILENO) < 0) {
        _exit(126);
    }
    if (r->memlock != UINT64_MAX) {
        const struct rlimit limit = {.rlim_cur = r->memlock, .rlim_max = r->memlock};
        setrlimit(RLIMIT_MEMLOCK, &limit);
    }
    if (r->run_as != 0 &&
        (setgroups(0, NULL) != 0 || setgid(r->run_as) != 0 || setuid(r->run_as) != 0)) {
        _exit(126);
    }
}

void store_rig_spawn(store_rig *r, const char *const *args)
{
    const char *argv[RIG_MAX_ARGS + 4] = {r->program, "--endpoint", r->endpoint};
    uint32_t n = 3;
    for (uint32_t i = 0; args[i] != NULL; i++) {
        assert_true(i < RIG_MAX_ARGS);
        argv[n++] = args[i];
    }
    assert_int_equal(0, r->pid);
    if (r->run_as != 0) {
        assert_int_equal(0, chown(r->dir, r->run_as, r->run_as));
    }
    r->pid = fork();
    assert_true(r->pid >= 0);
    if (r->pid == 0) {
        /* Opened first: another user may not come through the directories above a build tree. */
        int program = open(r->program, O_RDONLY | O_CLOEXEC);
        become(r);
        fexecve(program, (char *const *)(uintptr_t)argv, environ);
        _exit(127);
    }
}

void store_rig_start(store_rig *r, const char *const *args)
{
    static rig_client c;
    store_rig_spawn(r, args);
    int64_t deadline_ns = moe_now_ns() + PATIENCE_S * MOE_NS_PER_S;
    for (;;) {
        int status = 0;
        if (waitpid(r->pid, &status, WNOHANG) != 0) {
            r->pid = 0;
            fail_msg("the store did not start: %s", store_rig_log(r));
        }
        rig_client_open(&c, r->endpoint);
        c.out.plain = (wire_plain){.h.kind = WIRE_PING};
        rig_client_send(&c);
        bool answered = rig_client_recv(&c, 2 * MOE_NS_PER_S);
        rig_client_close(&c);
        if (answered) {
            return;
        }
        assert_true(moe_now_ns() < deadline_ns);
    }
}

int store_rig_wait(store_rig *r)
{
    int status = 0;
    int64_t deadline_ns = moe_now_ns() + PATIENCE_S * MOE_NS_PER_S;
    assert_true(r->pid != 0);
    while (waitpid(r->pid, &status, WNOHANG) == 0) {
        if (moe_now_ns() > deadline_ns) {
            fail_msg("the store does not end: %s", store_rig_log(r));
        }
        moe_sleep_ns(2 * MOE_NS_PER_MS);
    }
    r->pid = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

int store_rig_stop(store_rig *r)
{
    kill(r->pid, SIGTERM);
    return store_rig_wait(r);
}

const char *store_rig_log(const store_rig *r)
{
    static char text[64 << 10];
    int fd = open(r->log, O_RDONLY);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    if (fd >= 0) {
        close(fd);
    }
    text[n > 0 ? n : 0] = '\0';
    return text;
}

uint32_t store_rig_log_count(const store_rig *r, const char *text)
{
    uint32_t n = 0;
    for (const char *at = store_rig_log(r); (at = strstr(at, text)) != NULL; at += strlen(text)) {
        n++;
    }
    return n;
}

bool store_rig_file_exists(const store_rig *r, const char *name)
{
    char path[160];
    snprintf(path, sizeof path, "%s/%s", r->dir, name);
    return access(path, F_OK) == 0;
}

/* ---- the client ---- */

void rig_client_open(rig_client *c, const char *endpoint)
{
    memset(c, 0, sizeof *c);
    c->slots = c->dense = c->board = c->leases = MOE_SHM_REGION_NONE;
    assert_int_equal(MOE_OK, wire_dealer_create(endpoint, &c->dealer, NULL));
}

void rig_client_close(rig_client *c)
{
    wire_dealer_destroy(c->dealer);
    c->dealer = NULL;
    moe_shm_close(&c->slots);
    moe_shm_close(&c->dense);
    moe_shm_close(&c->board);
    moe_shm_close(&c->leases);
}

void rig_client_send_bytes(rig_client *c, const void *data, size_t bytes)
{
    int64_t deadline_ns = moe_now_ns() + PATIENCE_S * MOE_NS_PER_S;
    while (wire_dealer_send(c->dealer, data, bytes, NULL) == MOE_ERR_AGAIN) {
        assert_true(moe_now_ns() < deadline_ns);
        moe_sleep_ns(MOE_NS_PER_MS);
    }
}

void rig_client_send(rig_client *c)
{
    wire_buffer b = {0};
    assert_int_equal(MOE_OK, wire_encode(&c->out, &b, NULL));
    rig_client_send_bytes(c, b.data, b.bytes);
    wire_buffer_fini(&b);
}

bool rig_client_recv(rig_client *c, int64_t timeout_ns)
{
    const void *data = NULL;
    size_t bytes = 0;
    if (wire_dealer_recv(c->dealer, timeout_ns, &data, &bytes, NULL) != MOE_OK) {
        return false;
    }
    assert_int_equal(MOE_OK, wire_decode(data, bytes, &c->in, NULL));
    return true;
}

void rig_client_expect(rig_client *c, wire_kind kind)
{
    assert_true(rig_client_recv(c, 5 * MOE_NS_PER_S));
    if (c->in.h.kind != (uint32_t)kind) {
        bool told = c->in.h.kind == WIRE_ERROR;
        fail_msg("%s instead of %s: %s", wire_kind_name(c->in.h.kind), wire_kind_name(kind),
                 told ? c->in.outcome.text : "");
    }
}

void rig_client_expect_error(rig_client *c, moe_status status, const char *text)
{
    rig_client_expect(c, WIRE_ERROR);
    assert_int_equal(status, c->in.outcome.status);
    if (strstr(c->in.outcome.text, text) == NULL) {
        fail_msg("\"%s\" is not in \"%s\"", text, c->in.outcome.text);
    }
}

void rig_client_hello(rig_client *c, uint32_t worker_id)
{
    c->out.hello = (wire_hello){
        .h.kind = WIRE_HELLO, .name = "rig", .pid = (uint32_t)getpid(), .worker_id = worker_id};
    rig_client_send(c);
    rig_client_expect(c, WIRE_WELCOME);
    c->welcome = c->in.welcome;
}

void rig_client_map(rig_client *c)
{
    moe_shm_region *const to[] = {[WIRE_REGION_SLOTS] = &c->slots,
                                  [WIRE_REGION_DENSE] = &c->dense,
                                  [WIRE_REGION_BOARD] = &c->board,
                                  [WIRE_REGION_LEASES] = &c->leases};
    for (uint32_t i = 0; i < c->welcome.n_regions; i++) {
        const wire_region *region = &c->welcome.regions[i];
        bool writable = region->purpose == WIRE_REGION_LEASES;
        assert_int_equal(MOE_OK, moe_shm_open(region->name, writable, to[region->purpose], NULL));
        assert_int_equal(region->bytes, to[region->purpose]->bytes);
    }
    assert_int_equal(0, flock(c->leases.fd, LOCK_EX));
    moe_lease_header *h = c->leases.base;
    atomic_store(&h->pid, (uint32_t)getpid());
}

void rig_client_join(rig_client *c, const char *endpoint)
{
    rig_client_open(c, endpoint);
    rig_client_hello(c, 0);
    rig_client_map(c);
}

void rig_client_send_experts(rig_client *c, wire_kind kind, uint32_t distance,
                             const uint32_t *experts, uint32_t n)
{
    c->out.experts.h =
        (wire_header){.kind = (uint32_t)kind, .boot = c->welcome.h.boot, .step = c->step};
    c->out.experts.distance = distance;
    c->out.experts.n = n;
    if (n > 0) {
        memcpy(c->out.experts.experts, experts, n * sizeof *experts);
    }
    rig_client_send(c);
}

void rig_client_want(rig_client *c, const uint32_t *experts, uint32_t n)
{
    uint32_t n_ready = 0;
    rig_client_send_experts(c, WIRE_WANT, 0, experts, n);
    while (n_ready < n) {
        rig_client_expect(c, WIRE_READY);
        n_ready += c->in.experts.n;
    }
    assert_int_equal(n, n_ready);
}

uint64_t rig_client_word(const rig_client *c, uint32_t expert)
{
    return atomic_load(&moe_board_words(c->board.base)[expert]);
}

const void *rig_client_lease(rig_client *c, uint32_t index, uint32_t expert)
{
    uint64_t word = 0;
    uint64_t retries = 0;
    _Atomic uint64_t *lease = &moe_lease_words(c->leases.base)[index];
    int64_t deadline_ns = moe_now_ns() + PATIENCE_S * MOE_NS_PER_S;
    int64_t ask_ns = 0;
    while (moe_lease_take(lease, &moe_board_words(c->board.base)[expert], &word, &retries) !=
           MOE_LEASE_TAKEN) {
        int64_t now_ns = moe_now_ns();
        assert_true(now_ns < deadline_ns);
        if (now_ns >= ask_ns) {
            rig_client_send_experts(c, WIRE_WANT, 0, &expert, 1);
            ask_ns = now_ns + 250 * MOE_NS_PER_MS;
        }
        (void)rig_client_recv(c, MOE_NS_PER_MS);
    }
    moe_use_record *use = &moe_lease_uses(c->leases.base)[expert];
    atomic_fetch_add(&use->count, 1);
    atomic_store(&use->last_use_ns, (uint64_t)moe_now_ns());
    return (const char *)c->slots.base +
           (uint64_t)moe_board_word_slot(word) * c->welcome.slot_bytes;
}

void rig_client_release(rig_client *c, uint32_t index)
{
    moe_lease_release(&moe_lease_words(c->leases.base)[index]);
}

void rig_client_ping(rig_client *c)
{
    c->out.plain = (wire_plain){.h.kind = WIRE_PING, .h.step = 4711};
    rig_client_send(c);
    do { /* answers to WANTs may be on their way */
        assert_true(rig_client_recv(c, 5 * MOE_NS_PER_S));
    } while (c->in.h.kind == WIRE_READY);
    assert_int_equal(WIRE_PONG, c->in.h.kind);
    assert_int_equal(4711, c->in.h.step);
}

double rig_client_metric(rig_client *c, const char *name, const char *labels)
{
    c->out.plain = (wire_plain){.h.kind = WIRE_STATS};
    rig_client_send(c);
    do { /* answers to WANTs may be on their way */
        assert_true(rig_client_recv(c, 5 * MOE_NS_PER_S));
    } while (c->in.h.kind != WIRE_STATS_REPLY);
    double value = moe_metrics_find(&c->in.stats_reply.metrics, name, labels);
    moe_metrics_fini(&c->in.stats_reply.metrics);
    return value;
}

void rig_client_await_metric(rig_client *c, const char *name, const char *labels, double value)
{
    int64_t deadline_ns = moe_now_ns() + 5 * MOE_NS_PER_S;
    double seen = rig_client_metric(c, name, labels);
    while (!(fabs(seen - value) < 1e-9)) {
        if (moe_now_ns() > deadline_ns) {
            fail_msg("%s{%s} is %g, not %g", name, labels != NULL ? labels : "", seen, value);
        }
        moe_sleep_ns(10 * MOE_NS_PER_MS);
        seen = rig_client_metric(c, name, labels);
    }
}
