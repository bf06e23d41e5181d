/* hostile_client.c - for tests: one bad neighbour of a store, by name.
 *
 *   hostile_client MODE ENDPOINT SECONDS [COUNT]
 *
 * ping      one PING, waiting SECONDS: status 0 when answered, 3 when not (a refused user)
 * regions   joins, then tries to open slots, board and dense weights for writing
 * bytes     random bytes                       flood     messages of every kind, well formed
 * counts    huge declared and real counts      oversized frames above the limit, more than once
 * storm     COUNT connections at once, again and again, half of them speaking rubbish
 * slow      asks for statistics and never reads an answer
 * leases    joins, takes every lease it may, and sleeps
 * crowd     COUNT workers join at once, from as many connections
 *
 * Ends after SECONDS, with what it did as one line of JSON on stdout; `leases` and `crowd` say it
 * as soon as they have done it, and hold on. One thread; a fixed seed; nothing stays behind.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <zmq.h>

#include "common/clock.h"
#include "gpu-worker/fetch/store_client.h"
#include "proto/messages.h"
#include "proto/socket.h"

enum { MAX_PEERS = 1024, MAX_JUNK = 60000, OVERSIZED = 8 << 20 };

typedef struct deed {
    const char *endpoint;
    int64_t end_ns;
    uint32_t count;
    uint64_t sent, refused_by_socket, answers, errors, connections;
} deed;

static uint64_t random_state = 20240607;

/* splitmix64 (Steele, Lea, Flood 2014) */
static uint64_t next_random(void)
{
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void die(const char *what)
{
    fprintf(stderr, "hostile_client: %s\n", what);
    exit(1);
}

static bool time_left(const deed *d)
{
    return moe_now_ns() < d->end_ns;
}

static wire_dealer *connect_to(const deed *d)
{
    wire_dealer *out = NULL;
    moe_err err;
    if (wire_dealer_create(d->endpoint, &out, &err) != MOE_OK) {
        die(err.text);
    }
    return out;
}

/* ---- through the socket ---- */

static void read_answers(deed *d, wire_dealer *to, int64_t wait_ns)
{
    static wire_message in;
    const void *data = NULL;
    size_t bytes = 0;
    while (wire_dealer_recv(to, wait_ns, &data, &bytes, NULL) == MOE_OK) {
        wait_ns = 0;
        d->answers++;
        if (wire_decode(data, bytes, &in, NULL) != MOE_OK) {
            continue;
        }
        d->errors += in.h.kind == WIRE_ERROR;
        if (in.h.kind == WIRE_STATS_REPLY) {
            moe_metrics_fini(&in.stats_reply.metrics);
        }
    }
}

static void send_bytes(deed *d, wire_dealer *to, const void *data, size_t bytes)
{
    moe_status st = wire_dealer_send(to, data, bytes, NULL);
    d->sent += st == MOE_OK;
    d->refused_by_socket += st != MOE_OK;
    read_answers(d, to, st == MOE_OK ? 0 : MOE_NS_PER_MS);
}

static void send_message(deed *d, wire_dealer *to, const wire_message *m)
{
    wire_buffer b = {0};
    if (wire_encode(m, &b, NULL) != MOE_OK) {
        die("encoding");
    }
    send_bytes(d, to, b.data, b.bytes);
    wire_buffer_fini(&b);
}

static void be_random_bytes(deed *d)
{
    static uint64_t junk[MAX_JUNK / 8];
    wire_dealer *to = connect_to(d);
    while (time_left(d)) {
        size_t bytes = next_random() % 4 == 0 ? next_random() % sizeof junk : next_random() % 64;
        for (size_t i = 0; i < bytes / 8 + 1 && i < MAX_JUNK / 8; i++) {
            junk[i] = next_random();
        }
        send_bytes(d, to, junk, bytes);
    }
    wire_dealer_destroy(to);
}

/* Every kind there is, from a peer that never said HELLO, experts right and wrong. */
static void fill_any(wire_message *m)
{
    static const wire_kind kinds[] = {WIRE_PING,   WIRE_STATS,    WIRE_WANT, WIRE_PREDICT,
                                      WIRE_CANCEL, WIRE_PREFETCH, WIRE_PIN,  WIRE_EVICT,
                                      WIRE_DRAIN,  WIRE_READY};
    memset(m, 0, sizeof *m);
    m->h.kind = kinds[next_random() % (sizeof kinds / sizeof kinds[0])];
    m->h.boot = (uint32_t)(next_random() % 3);
    m->h.step = next_random();
    if (m->h.kind == WIRE_PING || m->h.kind == WIRE_STATS || m->h.kind == WIRE_DRAIN) {
        m->plain.flags = (uint32_t)next_random();
        return;
    }
    m->experts.n = (uint32_t)(next_random() % 16);
    for (uint32_t i = 0; i < m->experts.n; i++) {
        m->experts.experts[i] = (uint32_t)(next_random() % 80);
    }
}

static void be_flood(deed *d)
{
    static wire_message m;
    wire_dealer *to = connect_to(d);
    while (time_left(d)) {
        fill_any(&m);
        send_message(d, to, &m);
    }
    wire_dealer_destroy(to);
}

/* {0: WANT, 1: version, 2: 0, 3: 0, 8: array of 2^32 - 1}, and one bomb of nested arrays. */
static void be_huge_counts(deed *d)
{
    static const unsigned char declared[] = {0x85, 0x00, WIRE_WANT, 0x01, WIRE_VERSION,
                                             0x02, 0x00, 0x03,      0x00, 0x08,
                                             0xdd, 0xff, 0xff,      0xff, 0xff};
    static unsigned char nested[MAX_JUNK];
    static wire_message m;
    wire_dealer *to = connect_to(d);
    memset(nested, 0xdd, sizeof nested);
    m.experts = (wire_experts){.h.kind = WIRE_WANT, .n = WIRE_MAX_EXPERTS};
    memset(m.experts.experts, 0xff, sizeof m.experts.experts);
    while (time_left(d)) {
        send_bytes(d, to, declared, sizeof declared);
        send_bytes(d, to, nested, sizeof nested);
        send_message(d, to, &m);
    }
    wire_dealer_destroy(to);
}

/* libzmq itself: wire_dealer sends nothing over the limit, and has no way not to read. */
typedef struct raw_dealer {
    void *context, *socket; /* owned */
} raw_dealer;

static raw_dealer open_raw(const deed *d)
{
    const int one = 1, none = 0;
    raw_dealer r = {.context = zmq_ctx_new()};
    r.socket = zmq_socket(r.context, ZMQ_DEALER);
    if (zmq_setsockopt(r.socket, ZMQ_RCVHWM, &one, sizeof one) != 0 ||
        zmq_setsockopt(r.socket, ZMQ_LINGER, &none, sizeof none) != 0 ||
        zmq_connect(r.socket, d->endpoint) != 0) {
        die(zmq_strerror(zmq_errno()));
    }
    return r;
}

static void close_raw(raw_dealer *r)
{
    zmq_close(r->socket);
    zmq_ctx_term(r->context);
}

static void send_raw(deed *d, raw_dealer *to, const void *data, size_t bytes)
{
    if (zmq_send(to->socket, data, bytes, ZMQ_DONTWAIT) >= 0) {
        d->sent++;
    } else {
        d->refused_by_socket++;
        moe_sleep_ns(MOE_NS_PER_MS);
    }
}

/* Each costs the connection: a new one for each. */
static void be_oversized(deed *d)
{
    char *frame = calloc(1, OVERSIZED);
    if (frame == NULL) {
        die("no memory");
    }
    while (time_left(d)) {
        char answer;
        raw_dealer to = open_raw(d);
        send_raw(d, &to, frame, next_random() % 2 == 0 ? WIRE_MAX_REQUEST_BYTES + 1 : OVERSIZED);
        moe_sleep_ns(2 * MOE_NS_PER_MS); /* for it to leave */
        d->answers += zmq_recv(to.socket, &answer, 1, ZMQ_DONTWAIT) >= 0;
        d->connections++;
        close_raw(&to);
    }
    free(frame);
}

static void be_slow_reader(deed *d)
{
    wire_buffer b = {0};
    const wire_message ask = {.plain = {.h.kind = WIRE_STATS, .flags = 1}};
    raw_dealer to = open_raw(d);
    if (wire_encode(&ask, &b, NULL) != MOE_OK) {
        die("encoding");
    }
    while (time_left(d)) {
        send_raw(d, &to, b.data, b.bytes);
    }
    close_raw(&to);
    wire_buffer_fini(&b);
}

/* ---- below the socket ---- */

static int open_connection(const char *path)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    snprintf(to.sun_path, sizeof to.sun_path, "%s", path);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&to, sizeof to) != 0) {
        close(fd); /* EAGAIN: the backlog is full */
        return -1;
    }
    return fd;
}

static void be_storm(deed *d)
{
    static int fds[MAX_PEERS];
    char path[sizeof((struct sockaddr_un *)NULL)->sun_path];
    if (wire_endpoint_path(d->endpoint, path, sizeof path, NULL) != MOE_OK) {
        die("endpoint");
    }
    while (time_left(d)) {
        uint32_t n = 0;
        for (uint32_t tries = 0; n < d->count && tries < 50 * d->count; tries++) {
            fds[n] = open_connection(path);
            if (fds[n] < 0) {
                d->refused_by_socket++;
                moe_sleep_ns(MOE_NS_PER_MS / 4);
                continue;
            }
            uint64_t rubbish[4] = {next_random(), next_random(), next_random(), next_random()};
            d->sent += n % 2 == 0 && send(fds[n], rubbish, sizeof rubbish, MSG_NOSIGNAL) > 0;
            n++;
        }
        d->connections += n;
        while (n > 0) {
            close(fds[--n]);
        }
    }
}

/* ---- as a worker ---- */

static gw_store_client *join(const deed *d)
{
    gw_store_client *c = NULL;
    moe_err err;
    const gw_store_client_cfg cfg = {
        .endpoint = d->endpoint, .name = "hostile", .connect_timeout_ns = 10 * MOE_NS_PER_S};
    if (gw_store_client_create(&cfg, &c, &err) != MOE_OK) {
        die(err.text);
    }
    return c;
}

/* As long as it lives the client answers the store: only its leases are a burden. */
static void hold_on(const deed *d, gw_store_client *c)
{
    while (time_left(d) && gw_store_client_poll(c, moe_now_ns(), NULL) == MOE_OK) {
        moe_sleep_ns(10 * MOE_NS_PER_MS);
    }
    gw_store_client_destroy(c);
}

static void be_lease_hog(deed *d)
{
    gw_store_client *c = join(d);
    const wire_welcome *w = gw_store_client_welcome(c);
    gw_lease lease;
    uint32_t n = 0;
    bool more = true;
    for (uint32_t expert = 0; more && expert < w->n_experts;) {
        gw_store_client_want(c, 1, &expert, 1);
        if (gw_store_client_poll(c, moe_now_ns(), NULL) != MOE_OK || !time_left(d)) {
            break;
        }
        moe_status st = gw_store_client_lease(c, expert, &lease, NULL);
        if (st == MOE_ERR_AGAIN) {
            moe_sleep_ns(MOE_NS_PER_MS / 10);
            continue;
        }
        n += st == MOE_OK;
        more = st == MOE_OK;
        expert++;
    }
    printf("{\"leases\": %u, \"capacity\": %u, \"one_more\": %s}\n", n, w->lease_capacity,
           more ? "true" : "false");
    fflush(stdout);
    hold_on(d, c);
}

static void be_crowd(deed *d)
{
    static wire_dealer *to[MAX_PEERS];
    static wire_message in;
    static const wire_message hello = {.hello = {.h.kind = WIRE_HELLO, .name = "crowd"}};
    uint32_t n_welcome = 0, n_refused = 0;
    for (uint32_t i = 0; i < d->count; i++) {
        const void *data = NULL;
        size_t bytes = 0;
        wire_buffer b = {0};
        to[i] = connect_to(d);
        if (wire_encode(&hello, &b, NULL) != MOE_OK) {
            die("encoding");
        }
        while (wire_dealer_send(to[i], b.data, b.bytes, NULL) != MOE_OK && time_left(d)) {
            moe_sleep_ns(MOE_NS_PER_MS);
        }
        wire_buffer_fini(&b);
        if (wire_dealer_recv(to[i], 2 * MOE_NS_PER_S, &data, &bytes, NULL) == MOE_OK &&
            wire_decode(data, bytes, &in, NULL) == MOE_OK) {
            n_welcome += in.h.kind == WIRE_WELCOME;
            n_refused += in.h.kind == WIRE_ERROR && in.outcome.status == MOE_ERR_LIMIT;
        }
    }
    printf("{\"asked\": %u, \"welcome\": %u, \"refused\": %u}\n", d->count, n_welcome, n_refused);
    fflush(stdout);
    while (time_left(d)) {
        moe_sleep_ns(10 * MOE_NS_PER_MS);
    }
    for (uint32_t i = 0; i < d->count; i++) {
        wire_dealer_destroy(to[i]);
    }
}

static void be_region_writer(deed *d)
{
    static const char *const names[] = {
        [WIRE_REGION_SLOTS] = "slots",
        [WIRE_REGION_DENSE] = "dense",
        [WIRE_REGION_BOARD] = "board",
        [WIRE_REGION_LEASES] = "leases",
    };
    gw_store_client *c = join(d);
    const wire_welcome *w = gw_store_client_welcome(c);
    const char *comma = "";
    printf("{");
    for (uint32_t i = 0; i < w->n_regions; i++) {
        int fd = shm_open(w->regions[i].name, O_RDWR, 0);
        printf("%s\"%s\": \"%s\"", comma, names[w->regions[i].purpose],
               fd >= 0           ? "writable"
               : errno == EACCES ? "refused"
                                 : strerror(errno));
        comma = ", ";
        if (fd >= 0) {
            close(fd);
        }
    }
    printf("}\n");
    gw_store_client_destroy(c);
}

static void ping(deed *d)
{
    static const wire_message m = {.plain = {.h.kind = WIRE_PING}};
    wire_dealer *to = connect_to(d);
    while (time_left(d) && d->answers == 0) {
        send_message(d, to, &m);
        read_answers(d, to, 10 * MOE_NS_PER_MS);
    }
    wire_dealer_destroy(to);
    exit(d->answers > 0 ? 0 : 3);
}

static const struct {
    const char *name;
    void (*run)(deed *d);
    bool tells; /* run says what it did */
} modes[] = {
    {"ping", ping, true},      {"regions", be_region_writer, true}, {"bytes", be_random_bytes, 0},
    {"flood", be_flood, 0},    {"counts", be_huge_counts, 0},       {"oversized", be_oversized, 0},
    {"storm", be_storm, 0},    {"slow", be_slow_reader, 0},         {"leases", be_lease_hog, true},
    {"crowd", be_crowd, true},
};

int main(int argc, char **argv)
{
    if (argc < 4) {
        die("usage: hostile_client MODE ENDPOINT SECONDS [COUNT]");
    }
    deed d = {.endpoint = argv[2],
              .end_ns = moe_now_ns() + (int64_t)(strtod(argv[3], NULL) * 1e9),
              .count = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 1};
    if (d.count > MAX_PEERS) {
        die("COUNT is too large");
    }
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        if (strcmp(modes[i].name, argv[1]) != 0) {
            continue;
        }
        modes[i].run(&d);
        if (!modes[i].tells) {
            printf("{\"sent\": %" PRIu64 ", \"not_taken\": %" PRIu64 ", \"answers\": %" PRIu64
                   ", \"errors\": %" PRIu64 ", \"connections\": %" PRIu64 "}\n",
                   d.sent, d.refused_by_socket, d.answers, d.errors, d.connections);
        }
        return 0;
    }
    die("unknown mode");
}
