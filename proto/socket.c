/* socket.c - [ZeroMQ] the ROUTER and DEALER ends of socket.h.
 *
 * Each end owns a ZeroMQ context with one I/O thread, which ends in *_destroy; linger is 0, so
 * that never waits for a peer. A socket and everything borrowed from it belong to the thread that
 * created it, and to the process: after fork() only the parent may use them.
 */
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#include "common/clock.h"
#include "proto/messages.h"
#include "proto/socket.h"

enum {
    ROUTER_HWM = 1000, /* messages per peer and direction: a burst of predictions of many steps */
    DEALER_HWM = 64,   /* a client that far ahead of the store had better drop its guesses */
    ROUTER_BACKLOG = 64,
    RECONNECT_MS = 20, /* doubling to RECONNECT_MAX_MS while the store is away */
    RECONNECT_MAX_MS = 1000,
    HANDSHAKE_MS = 2000 /* a peer that connects and says nothing is dropped */
};

/* What both ends are. */
typedef struct end {
    void *context;  /* owned */
    void *socket;   /* owned */
    int fd;         /* borrowed from socket */
    zmq_msg_t last; /* owned; what recv lent */
} end;

struct wire_router {
    end e;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    bool bound; /* the file at path is ours to remove */
};

struct wire_dealer {
    end e;
};

static moe_status fail_zmq(moe_err *err, moe_status st, const char *what, const char *object)
{
    int native = zmq_errno();
    return MOE_FAIL_NATIVE(err, st, MOE_LAYER_ZMQ, native, "%s %s: %s", what, object,
                           zmq_strerror(native));
}

static moe_status set_int(end *e, int option, int value, const char *name, moe_err *err)
{
    if (zmq_setsockopt(e->socket, option, &value, sizeof value) != 0) {
        return fail_zmq(err, MOE_ERR_INTERNAL, "set", name);
    }
    return MOE_OK;
}

static moe_status set_max_message(end *e, uint32_t bytes, moe_err *err)
{
    int64_t value = bytes;
    if (zmq_setsockopt(e->socket, ZMQ_MAXMSGSIZE, &value, sizeof value) != 0) {
        return fail_zmq(err, MOE_ERR_INTERNAL, "set", "ZMQ_MAXMSGSIZE");
    }
    return MOE_OK;
}

static moe_status set_common(end *e, int hwm, uint32_t max_message_bytes, moe_err *err)
{
    const struct {
        int option, value;
        const char *name;
    } options[] = {{ZMQ_LINGER, 0, "ZMQ_LINGER"},
                   {ZMQ_SNDHWM, hwm, "ZMQ_SNDHWM"},
                   {ZMQ_RCVHWM, hwm, "ZMQ_RCVHWM"},
                   {ZMQ_IMMEDIATE, 1, "ZMQ_IMMEDIATE"},
                   {ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS, "ZMQ_HANDSHAKE_IVL"}};
    moe_status st = MOE_OK;
    for (size_t i = 0; i < sizeof options / sizeof options[0] && st == MOE_OK; i++) {
        st = set_int(e, options[i].option, options[i].value, options[i].name, err);
    }
    return st == MOE_OK ? set_max_message(e, max_message_bytes, err) : st;
}

static moe_status end_open(end *e, int type, moe_err *err)
{
    zmq_msg_init(&e->last); /* cannot fail */
    e->context = zmq_ctx_new();
    if (e->context == NULL) {
        return fail_zmq(err, MOE_ERR_NO_MEMORY, "create", "ZeroMQ context");
    }
    zmq_ctx_set(e->context, ZMQ_MAX_SOCKETS, 1);
    e->socket = zmq_socket(e->context, type);
    if (e->socket == NULL) {
        return fail_zmq(err, MOE_ERR_NO_MEMORY, "create", "ZeroMQ socket");
    }
    size_t n = sizeof e->fd;
    if (zmq_getsockopt(e->socket, ZMQ_FD, &e->fd, &n) != 0) {
        return fail_zmq(err, MOE_ERR_INTERNAL, "get", "ZMQ_FD");
    }
    return MOE_OK;
}

static void end_close(end *e)
{
    zmq_msg_close(&e->last);
    if (e->socket != NULL) {
        zmq_close(e->socket);
    }
    if (e->context != NULL) {
        while (zmq_ctx_term(e->context) != 0 && zmq_errno() == EINTR) {
        }
    }
}

/* One frame, not waiting. MOE_ERR_AGAIN if there is none. */
static moe_status recv_frame(end *e, zmq_msg_t *frame, moe_err *err)
{
    while (zmq_msg_recv(frame, e->socket, ZMQ_DONTWAIT) < 0) {
        if (zmq_errno() == EAGAIN) {
            return MOE_FAIL(err, MOE_ERR_AGAIN, "no message");
        }
        if (zmq_errno() != EINTR) {
            return fail_zmq(err, MOE_ERR_IO, "receive", "message");
        }
    }
    return MOE_OK;
}

/* Frames arrive all or none, so these are there. True if there were any behind `frame`. */
static bool drop_rest(end *e, zmq_msg_t *frame)
{
    bool any = false;
    while (zmq_msg_more(frame) && recv_frame(e, frame, NULL) == MOE_OK) {
        any = true;
    }
    return any;
}

static moe_status send_frame(end *e, const void *data, size_t bytes, int flags, moe_err *err)
{
    while (zmq_send(e->socket, data, bytes, flags | ZMQ_DONTWAIT) < 0) {
        int native = zmq_errno();
        if (native == EAGAIN || native == EHOSTUNREACH) {
            return MOE_FAIL_NATIVE(err, MOE_ERR_AGAIN, MOE_LAYER_ZMQ, native,
                                   native == EAGAIN ? "the peer does not keep up or is away"
                                                    : "the peer has disconnected");
        }
        if (native != EINTR) {
            return fail_zmq(err, MOE_ERR_IO, "send", "message");
        }
    }
    return MOE_OK;
}

/* ---- endpoints ------------------------------------------------------------------------------- */

moe_status wire_endpoint_path(const char *endpoint, char *out, size_t out_bytes, moe_err *err)
{
    static const char scheme[] = "ipc://";
    const size_t longest = sizeof(((struct sockaddr_un *)0)->sun_path) - 1;
    if (strncmp(endpoint, scheme, sizeof scheme - 1) != 0 || endpoint[sizeof scheme - 1] != '/') {
        return MOE_FAIL(err, MOE_ERR_INVALID, "endpoint '%s' is not ipc:///absolute/path",
                        endpoint);
    }
    const char *path = endpoint + sizeof scheme - 1;
    size_t n = strlen(path);
    if (n > longest || n >= out_bytes) {
        return MOE_FAIL(err, MOE_ERR_LIMIT,
                        "the path of endpoint '%s' has %zu bytes, a socket path at most %zu: "
                        "choose a shorter directory",
                        endpoint, n, n > longest ? longest : out_bytes - 1);
    }
    memcpy(out, path, n + 1);
    return MOE_OK;
}

moe_status wire_admin_endpoint(const char *endpoint, char *out, size_t out_bytes, moe_err *err)
{
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    char admin[sizeof path + sizeof "ipc://.admin"];
    moe_status st = wire_endpoint_path(endpoint, path, sizeof path, err);
    if (st != MOE_OK) {
        return st;
    }
    snprintf(admin, sizeof admin, "ipc://%s.admin", path);
    st = wire_endpoint_path(admin, path, sizeof path, err);
    if (st != MOE_OK) {
        return st;
    }
    size_t n = strlen(admin);
    if (n >= out_bytes) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "no room for the endpoint '%s'", admin);
    }
    memcpy(out, admin, n + 1);
    return MOE_OK;
}

/* Whoever may rename in the directory could put his own socket there. */
static moe_status check_directory(const char *dir, moe_err *err)
{
    struct stat link, st;
    if (lstat(dir, &link) != 0 || stat(dir, &st) != 0) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "look at %s", dir);
    }
    if (!S_ISDIR(st.st_mode)) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "%s, for the socket, is not a directory", dir);
    }
    bool owners = (st.st_uid == geteuid() || st.st_uid == 0) &&
                  (link.st_uid == geteuid() || link.st_uid == 0);
    bool open_to_others = (st.st_mode & (S_IWGRP | S_IWOTH)) != 0 && (st.st_mode & S_ISVTX) == 0;
    if (!owners || open_to_others) {
        return MOE_FAIL(err, MOE_ERR_PERMISSION,
                        "%s, for the socket, can be changed by other users: chown it to this one, "
                        "chmod go-w, or choose another endpoint",
                        dir);
    }
    return MOE_OK;
}

static moe_status prepare_directory(const char *path, mode_t mode, moe_err *err)
{
    char dir[PATH_MAX];
    size_t n = (size_t)(strrchr(path, '/') - path);
    if (n == 0) {
        return check_directory("/", err);
    }
    memcpy(dir, path, n);
    dir[n] = '\0';
    if (mkdir(dir, mode) != 0 && errno != EEXIST) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno, "create %s, for the socket",
                               dir);
    }
    return check_directory(dir, err);
}

/* ---- ROUTER ---------------------------------------------------------------------------------- */

/* Connections of other users are closed while they are accepted, before a byte is read. */
static moe_status admit_uid(end *e, uid_t uid, moe_err *err)
{
    if (zmq_setsockopt(e->socket, ZMQ_IPC_FILTER_UID, &uid, sizeof uid) != 0) {
        return fail_zmq(err, MOE_ERR_UNSUPPORTED, "set", "ZMQ_IPC_FILTER_UID");
    }
    return MOE_OK;
}

static moe_status router_options(wire_router *r, const wire_router_cfg *cfg, moe_err *err)
{
    moe_status st = set_common(&r->e, ROUTER_HWM, cfg->max_message_bytes, err);
    if (st == MOE_OK) {
        st = set_int(&r->e, ZMQ_BACKLOG, ROUTER_BACKLOG, "ZMQ_BACKLOG", err);
    }
    if (st == MOE_OK) {
        st = set_int(&r->e, ZMQ_ROUTER_MANDATORY, 1, "ZMQ_ROUTER_MANDATORY", err);
    }
    if (st == MOE_OK) {
        st = admit_uid(&r->e, geteuid(), err);
    }
    if (st == MOE_OK && cfg->allow_uid >= 0) {
        st = admit_uid(&r->e, (uid_t)cfg->allow_uid, err);
    }
    return st;
}

/* zmq_bind creates the file in this thread, so its umask decides. It is the process's, though:
 * call before other threads create files. */
static moe_status router_bind(wire_router *r, const char *endpoint, mode_t mask, moe_err *err)
{
    mode_t before = umask(mask);
    int rc = zmq_bind(r->e.socket, endpoint);
    int native = zmq_errno();
    umask(before);
    if (rc != 0) {
        return MOE_FAIL_NATIVE(err, native == EADDRINUSE ? MOE_ERR_BUSY : MOE_ERR_IO, MOE_LAYER_ZMQ,
                               native, "listen at %s: %s", endpoint, zmq_strerror(native));
    }
    r->bound = true;
    return MOE_OK;
}

moe_status wire_router_create(const wire_router_cfg *cfg, wire_router **out, moe_err *err)
{
    bool shared = cfg->allow_uid >= 0 && (uid_t)cfg->allow_uid != geteuid();
    wire_router *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "router for %s", cfg->endpoint);
    }
    moe_status st = end_open(&r->e, ZMQ_ROUTER, err);
    if (st == MOE_OK) {
        st = wire_endpoint_path(cfg->endpoint, r->path, sizeof r->path, err);
    }
    if (st == MOE_OK) {
        st = prepare_directory(r->path, shared ? 0750 : 0700, err);
    }
    if (st == MOE_OK) {
        st = router_options(r, cfg, err);
    }
    if (st == MOE_OK) {
        st = router_bind(r, cfg->endpoint, shared ? 0007 : 0077, err);
    }
    if (st != MOE_OK) {
        wire_router_destroy(r);
        return st;
    }
    *out = r;
    return MOE_OK;
}

void wire_router_destroy(wire_router *r)
{
    if (r == NULL) {
        return;
    }
    end_close(&r->e);
    if (r->bound) {
        unlink(r->path); /* libzmq does it too, but only in some versions */
    }
    free(r);
}

int wire_router_fd(const wire_router *r)
{
    return r->e.fd;
}

/* libzmq asks SO_PEERCRED when it accepts and adds the answer to "Peer-Address" as
 * address:uid:gid:pid. */
static void read_credentials(zmq_msg_t *frame, wire_peer *peer)
{
    const char *text = zmq_msg_gets(frame, "Peer-Address");
    unsigned long number[3] = {0, 0, 0}; /* uid, gid, pid */
    const char *at = text == NULL ? NULL : strchr(text, ':');
    for (int i = 0; i < 3; i++) {
        if (at == NULL || *at != ':' || !isdigit((unsigned char)at[1])) {
            return;
        }
        char *after = NULL;
        number[i] = strtoul(at + 1, &after, 10);
        at = after;
    }
    peer->uid = (uint32_t)number[0];
    peer->pid = (uint32_t)number[2];
}

moe_status wire_router_recv(wire_router *r, wire_peer *out_peer, const void **out_data,
                            size_t *out_bytes, moe_err *err)
{
    zmq_msg_t *frame = &r->e.last;
    wire_peer peer = {.id_bytes = 0};
    for (;;) {
        moe_status st = recv_frame(&r->e, frame, err);
        if (st != MOE_OK) {
            return st;
        }
        size_t id_bytes = zmq_msg_size(frame);
        if (id_bytes <= sizeof peer.id && zmq_msg_more(frame)) {
            peer.id_bytes = (uint32_t)id_bytes;
            memcpy(peer.id, zmq_msg_data(frame), id_bytes);
            break;
        }
        drop_rest(&r->e, frame); /* a chosen routing id of that length is not one of our clients */
    }
    moe_status st = recv_frame(&r->e, frame, err);
    if (st != MOE_OK) {
        return st;
    }
    read_credentials(frame, &peer);
    *out_peer = peer;
    if (drop_rest(&r->e, frame)) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "message has more than one frame");
    }
    *out_data = zmq_msg_data(frame);
    *out_bytes = zmq_msg_size(frame);
    return MOE_OK;
}

moe_status wire_router_send(wire_router *r, const wire_peer *peer, const void *data, size_t bytes,
                            moe_err *err)
{
    if (bytes > WIRE_MAX_MESSAGE_BYTES) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "message of %zu bytes, at most %d", bytes,
                        WIRE_MAX_MESSAGE_BYTES);
    }
    zmq_msg_t body;
    if (zmq_msg_init_size(&body, bytes) != 0) { /* first: half a message cannot be taken back */
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "message of %zu bytes", bytes);
    }
    memcpy(zmq_msg_data(&body), data, bytes);
    moe_status st = send_frame(&r->e, peer->id, peer->id_bytes, ZMQ_SNDMORE, err);
    while (st == MOE_OK && zmq_msg_send(&body, r->e.socket, ZMQ_DONTWAIT) < 0) {
        if (zmq_errno() != EINTR) {
            st = fail_zmq(err, MOE_ERR_IO, "send", "message");
        }
    }
    zmq_msg_close(&body);
    return st;
}

/* ---- DEALER ---------------------------------------------------------------------------------- */

static moe_status dealer_options(wire_dealer *d, moe_err *err)
{
    moe_status st = set_common(&d->e, DEALER_HWM, WIRE_MAX_MESSAGE_BYTES, err);
    if (st == MOE_OK) {
        st = set_int(&d->e, ZMQ_RECONNECT_IVL, RECONNECT_MS, "ZMQ_RECONNECT_IVL", err);
    }
    if (st == MOE_OK) {
        st = set_int(&d->e, ZMQ_RECONNECT_IVL_MAX, RECONNECT_MAX_MS, "ZMQ_RECONNECT_IVL_MAX", err);
    }
    return st;
}

moe_status wire_dealer_create(const char *endpoint, wire_dealer **out, moe_err *err)
{
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    wire_dealer *d = calloc(1, sizeof *d);
    if (d == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "dealer for %s", endpoint);
    }
    moe_status st = end_open(&d->e, ZMQ_DEALER, err);
    if (st == MOE_OK) {
        st = wire_endpoint_path(endpoint, path, sizeof path, err);
    }
    if (st == MOE_OK) {
        st = dealer_options(d, err);
    }
    if (st == MOE_OK && zmq_connect(d->e.socket, endpoint) != 0) {
        st = fail_zmq(err, MOE_ERR_IO, "connect to", endpoint);
    }
    if (st != MOE_OK) {
        wire_dealer_destroy(d);
        return st;
    }
    *out = d;
    return MOE_OK;
}

void wire_dealer_destroy(wire_dealer *d)
{
    if (d == NULL) {
        return;
    }
    end_close(&d->e);
    free(d);
}

int wire_dealer_fd(const wire_dealer *d)
{
    return d->e.fd;
}

moe_status wire_dealer_send(wire_dealer *d, const void *data, size_t bytes, moe_err *err)
{
    if (bytes > WIRE_MAX_REQUEST_BYTES) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "request of %zu bytes, at most %d", bytes,
                        WIRE_MAX_REQUEST_BYTES);
    }
    return send_frame(&d->e, data, bytes, 0, err);
}

/* Returns when something may be there, or MOE_ERR_TIMEOUT. */
static moe_status wait_readable(end *e, int64_t deadline_ns, moe_err *err)
{
    zmq_pollitem_t item = {.socket = e->socket, .events = ZMQ_POLLIN};
    for (;;) {
        int64_t left_ns = deadline_ns - moe_now_ns();
        long left_ms = left_ns <= 0 ? 0 : (long)((left_ns + MOE_NS_PER_MS - 1) / MOE_NS_PER_MS);
        int n = zmq_poll(&item, 1, left_ms > INT_MAX ? INT_MAX : left_ms);
        if (n > 0) {
            return MOE_OK;
        }
        if (n == 0) {
            return MOE_FAIL(err, MOE_ERR_TIMEOUT, "no answer in time");
        }
        if (zmq_errno() != EINTR) {
            return fail_zmq(err, MOE_ERR_IO, "wait for", "answer");
        }
    }
}

moe_status wire_dealer_recv(wire_dealer *d, int64_t timeout_ns, const void **out_data,
                            size_t *out_bytes, moe_err *err)
{
    moe_status st = MOE_OK;
    if (timeout_ns > 0) {
        st = wait_readable(&d->e, moe_now_ns() + timeout_ns, err);
    }
    if (st == MOE_OK) {
        st = recv_frame(&d->e, &d->e.last, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    if (drop_rest(&d->e, &d->e.last)) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "answer has more than one frame");
    }
    *out_data = zmq_msg_data(&d->e.last);
    *out_bytes = zmq_msg_size(&d->e.last);
    return MOE_OK;
}
