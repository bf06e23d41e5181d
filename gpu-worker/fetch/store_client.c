/* store_client.c - see store_client.h; the life of a worker: proto/README.md, section 5.
 *
 * Owns the socket, the mappings and the table of what is wanted. The owner's thread creates and
 * destroys it; in between one thread calls everything that is not const. Messages are the only
 * allocations after create (libzmq and msgpack); a resident expert causes none.
 * At shutdown the lease table's lock goes with the mapping: the store sees that and frees all.
 */
#include "gpu-worker/fetch/store_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "gpu-worker/fetch/store_map.h"
#include "proto/socket.h"

enum {
    MAX_FAILURES = 64, /* FAILED texts kept; the oldest gives way */
    MAX_DRAIN = 64,    /* messages handled per look */
};

static const int64_t look_every_ns = 20 * MOE_NS_PER_US;   /* at the socket */
static const int64_t greet_every_ns = 100 * MOE_NS_PER_MS; /* HELLO, until answered */
static const int64_t retry_send_ns = 2 * MOE_NS_PER_MS;    /* after a full or absent socket */
static const int64_t want_again_ns = 250 * MOE_NS_PER_MS;  /* unanswered WANTs */
static const int64_t ping_after_ns = 500 * MOE_NS_PER_MS;  /* of silence */
static const int64_t silent_after_ns = 2 * MOE_NS_PER_S;   /* of silence: greet again */
static const int64_t place_wait_ns =
    2 * MOE_NS_PER_S; /* create: for a place just left to be free */
static const int64_t say_waiting_ns = 300 * MOE_NS_PER_MS; /* create: call on_waiting */

typedef enum want_state { WANT_NONE = 0, WANT_SENT, WANT_FAILED } want_state;

typedef struct failure {
    uint32_t expert;
    moe_status status;
    char text[200];
} failure;

struct gw_store_client {
    gw_store_client_cfg cfg;
    char name[WIRE_NAME_BYTES];
    wire_dealer *dealer; /* owned */
    gw_store_map map;    /* owned */
    moe_model_shape shape;
    wire_welcome welcome; /* the first one; boot follows the latest */
    bool served;          /* WELCOME came from the store that now serves the board */
    bool lost;
    char lost_text[200];
    _Atomic int64_t heard_ns; /* any message; relaxed: only a recent value is wanted */
    int64_t next_look_ns, next_greet_ns, next_ping_ns, next_want_ns;

    uint32_t *free_leases; /* [lease_capacity] owned; the first n_free are free lease words */
    uint32_t n_free;
    uint8_t *want;    /* [n_experts] want_state, owned */
    uint32_t *wanted; /* [n_experts] owned; the first n_wanted are WANT_SENT */
    uint32_t n_wanted;
    uint64_t want_step;
    failure failures[MAX_FAILURES];
    uint32_t n_failures; /* ever; the next one goes to n_failures % MAX_FAILURES */

    wire_message in, out; /* large: kept off the stack */
};

/* ---- sending --------------------------------------------------------------------------------- */

/* MOE_ERR_AGAIN: the store is slow or away; the caller's timer tries again. */
static moe_status send_out(gw_store_client *c, moe_err *err)
{
    wire_buffer b = {.data = NULL};
    moe_status st = wire_encode(&c->out, &b, err);
    if (st == MOE_OK) {
        st = wire_dealer_send(c->dealer, b.data, b.bytes, err);
    }
    wire_buffer_fini(&b);
    return st;
}

static wire_header header(const gw_store_client *c, wire_kind kind, uint64_t step)
{
    return (wire_header){
        .kind = kind, .version = WIRE_VERSION, .boot = c->welcome.h.boot, .step = step};
}

static moe_status send_hello(gw_store_client *c, moe_err *err)
{
    wire_hello *m = &c->out.hello;
    *m = (wire_hello){.h = header(c, WIRE_HELLO, 0),
                      .pid = (uint32_t)getpid(),
                      .worker_id = c->welcome.worker_id};
    memcpy(m->name, c->name, sizeof m->name);
    return send_out(c, err);
}

static moe_status send_ping(gw_store_client *c)
{
    c->out.plain = (wire_plain){.h = header(c, WIRE_PING, 0)};
    return send_out(c, NULL);
}

/* At most WIRE_MAX_EXPERTS. */
static moe_status send_experts(gw_store_client *c, wire_kind kind, uint64_t step, uint32_t distance,
                               const uint32_t *experts, uint32_t n)
{
    wire_experts *m = &c->out.experts;
    m->h = header(c, kind, step);
    m->distance = distance;
    m->n = n;
    if (n > 0) {
        memcpy(m->experts, experts, n * sizeof *experts);
    }
    return send_out(c, NULL);
}

static uint32_t next_piece(uint32_t left)
{
    return left < WIRE_MAX_EXPERTS ? left : WIRE_MAX_EXPERTS;
}

/* ---- what is wanted -------------------------------------------------------------------------- */

static void forget_want(gw_store_client *c, uint32_t expert)
{
    for (uint32_t i = 0; i < c->n_wanted; i++) {
        if (c->wanted[i] == expert) {
            c->wanted[i] = c->wanted[--c->n_wanted];
            break;
        }
    }
    c->want[expert] = WANT_NONE;
}

static void send_wants(gw_store_client *c, const uint32_t *experts, uint32_t n, int64_t now_ns)
{
    c->next_want_ns = now_ns + want_again_ns;
    for (uint32_t at = 0; at < n; at += next_piece(n - at)) {
        if (!c->served || send_experts(c, WIRE_WANT, c->want_step, 0, experts + at,
                                       next_piece(n - at)) != MOE_OK) {
            c->next_want_ns = now_ns + retry_send_ns;
            return;
        }
    }
}

void gw_store_client_want(gw_store_client *c, uint64_t step, const uint32_t *experts, uint32_t n)
{
    uint32_t first_new = c->n_wanted;
    for (uint32_t i = 0; i < n; i++) {
        MOE_ASSERT(experts[i] < c->welcome.n_experts);
        if (c->want[experts[i]] != WANT_SENT) {
            c->want[experts[i]] = WANT_SENT;
            c->wanted[c->n_wanted++] = experts[i];
        }
    }
    uint32_t n_new = c->n_wanted - first_new;
    if (n_new == 0 || c->lost) {
        return;
    }
    c->want_step = step;
    atomic_fetch_add_explicit(&gw_store_client_counters(c)->wants_sent, n_new,
                              memory_order_relaxed);
    send_wants(c, c->wanted + first_new, n_new, moe_now_ns());
}

void gw_store_client_predict(gw_store_client *c, uint64_t step, uint32_t distance,
                             const uint32_t *experts, uint32_t n)
{
    for (uint32_t at = 0; at < n && c->served && !c->lost; at += next_piece(n - at)) {
        uint32_t piece = next_piece(n - at);
        if (send_experts(c, WIRE_PREDICT, step, distance, experts + at, piece) != MOE_OK) {
            return; /* a guess that cannot go now is not worth sending later */
        }
        atomic_fetch_add_explicit(&gw_store_client_counters(c)->predictions_sent, piece,
                                  memory_order_relaxed);
    }
}

void gw_store_client_cancel(gw_store_client *c, uint64_t step)
{
    for (uint32_t i = 0; i < c->n_wanted; i++) {
        c->want[c->wanted[i]] = WANT_NONE;
    }
    c->n_wanted = 0;
    if (c->served && !c->lost && send_experts(c, WIRE_CANCEL, step, 0, NULL, 0) != MOE_OK) {
        return; /* the store's own deadlines do the same, later */
    }
}

/* ---- receiving ------------------------------------------------------------------------------- */

static moe_status fail_lost(const gw_store_client *c, moe_err *err)
{
    return MOE_FAIL(err, MOE_ERR_DISCONNECTED, "%s", c->lost_text);
}

static void lose(gw_store_client *c, const char *why)
{
    c->lost = true;
    snprintf(c->lost_text, sizeof c->lost_text,
             "the store at %.100s stopped or serves other memory now: %s", c->cfg.endpoint, why);
}

static void on_welcome_again(gw_store_client *c, const wire_welcome *w, int64_t now_ns)
{
    const wire_welcome *mine = &c->welcome;
    if (memcmp(w->store_uuid, mine->store_uuid, sizeof w->store_uuid) != 0) {
        lose(c, "another packing");
    } else if (w->worker_id != mine->worker_id || w->lease_capacity != mine->lease_capacity ||
               w->slot_bytes != mine->slot_bytes || w->n_experts != mine->n_experts ||
               w->expert_bytes != mine->expert_bytes) {
        lose(c, "another worker place or geometry");
    } else if (!gw_store_map_is_current(&c->map, w)) {
        lose(c, "its regions were made anew");
    } else {
        c->welcome.h.boot = w->h.boot;
        c->served = true;
        c->next_want_ns = now_ns; /* the new store knows nothing of them */
    }
}

static void on_failed(gw_store_client *c, const wire_failed *m)
{
    for (uint32_t i = 0; i < m->n; i++) {
        uint32_t expert = m->experts[i];
        if (expert >= c->welcome.n_experts || c->want[expert] != WANT_SENT) {
            continue; /* of an earlier step, or cancelled */
        }
        forget_want(c, expert);
        c->want[expert] = WANT_FAILED;
        failure *f = &c->failures[c->n_failures++ % MAX_FAILURES];
        f->expert = expert;
        f->status = (moe_status)m->status;
        snprintf(f->text, sizeof f->text, "%.199s", m->text);
    }
}

/* An expert that has left again by now stays wanted, and is asked for again. */
static void on_ready(gw_store_client *c, const wire_experts *m)
{
    for (uint32_t i = 0; i < m->n; i++) {
        uint32_t expert = m->experts[i];
        if (expert < c->welcome.n_experts && c->want[expert] == WANT_SENT &&
            gw_store_client_is_resident(c, expert)) {
            forget_want(c, expert);
        }
    }
}

static void on_message(gw_store_client *c, int64_t now_ns)
{
    const wire_message *m = &c->in;
    atomic_store_explicit(&c->heard_ns, now_ns, memory_order_relaxed);
    switch (m->h.kind) {
    case WIRE_WELCOME:
        on_welcome_again(c, &m->welcome, now_ns);
        break;
    case WIRE_READY:
        on_ready(c, &m->experts);
        break;
    case WIRE_FAILED:
        on_failed(c, &m->failed);
        break;
    case WIRE_ERROR:
        c->served = false; /* whatever it was: a store that knows us does not send it */
        break;
    default:
        break; /* PONG; kinds of later versions */
    }
}

static void drain(gw_store_client *c, int64_t now_ns)
{
    const void *data = NULL;
    size_t bytes = 0;
    for (int i = 0; i < MAX_DRAIN && !c->lost; i++) {
        if (wire_dealer_recv(c->dealer, 0, &data, &bytes, NULL) != MOE_OK) {
            return;
        }
        if (wire_decode(data, bytes, &c->in, NULL) == MOE_OK) {
            on_message(c, now_ns);
        }
    }
}

/* ---- keeping in touch ------------------------------------------------------------------------ */

static void look_at_board(gw_store_client *c)
{
    const moe_board_header *h = c->map.board.base;
    uint64_t superseded = 0;
    memcpy(&superseded, MOE_BOARD_SUPERSEDED, sizeof superseded);
    if (atomic_load_explicit(&h->magic, memory_order_relaxed) == superseded) {
        lose(c, "the board is superseded");
    }
    if (atomic_load_explicit(&h->boot, memory_order_relaxed) != c->welcome.h.boot) {
        c->served = false;
    }
}

static void keep_in_touch(gw_store_client *c, int64_t now_ns)
{
    int64_t silent_ns = now_ns - atomic_load_explicit(&c->heard_ns, memory_order_relaxed);
    if (silent_ns > silent_after_ns) {
        c->served = false;
    }
    if (!c->served) {
        if (now_ns >= c->next_greet_ns) {
            c->next_greet_ns =
                now_ns + (send_hello(c, NULL) == MOE_OK ? greet_every_ns : retry_send_ns);
        }
        return;
    }
    if (silent_ns > ping_after_ns && now_ns >= c->next_ping_ns) {
        c->next_ping_ns = now_ns + (send_ping(c) == MOE_OK ? ping_after_ns : retry_send_ns);
    }
    if (c->n_wanted > 0 && now_ns >= c->next_want_ns) {
        send_wants(c, c->wanted, c->n_wanted, now_ns);
    }
}

moe_status gw_store_client_poll(gw_store_client *c, int64_t now_ns, moe_err *err)
{
    if (!c->lost && now_ns >= c->next_look_ns) {
        c->next_look_ns = now_ns + look_every_ns;
        look_at_board(c);
        drain(c, now_ns);
        keep_in_touch(c, now_ns);
    }
    return c->lost ? fail_lost(c, err) : MOE_OK;
}

bool gw_store_client_store_alive(const gw_store_client *c)
{
    int64_t heard_ns = atomic_load_explicit(&c->heard_ns, memory_order_relaxed);
    return moe_now_ns() - heard_ns <= silent_after_ns;
}

/* ---- leases ---------------------------------------------------------------------------------- */

static void count_leases(gw_store_client *c, uint64_t taken, uint64_t retries)
{
    moe_worker_counters *n = gw_store_client_counters(c);
    atomic_fetch_add_explicit(&n->leases_taken, taken, memory_order_relaxed);
    atomic_fetch_add_explicit(&n->lease_retries, retries, memory_order_relaxed);
    atomic_store_explicit(&n->leases_held, c->welcome.lease_capacity - c->n_free,
                          memory_order_relaxed);
}

static void record_use(gw_store_client *c, uint32_t expert)
{
    moe_use_record *use = &moe_lease_uses(c->map.leases.base)[expert];
    atomic_fetch_add_explicit(&use->count, 1, memory_order_relaxed);
    atomic_store_explicit(&use->last_use_ns, (uint64_t)moe_now_ns(), memory_order_relaxed);
}

static moe_status fail_expert(const gw_store_client *c, uint32_t expert, moe_err *err)
{
    uint32_t oldest = c->n_failures > MAX_FAILURES ? c->n_failures - MAX_FAILURES : 0;
    for (uint32_t i = c->n_failures; i > oldest; i--) {
        const failure *f = &c->failures[(i - 1) % MAX_FAILURES];
        if (f->expert == expert) {
            return MOE_FAIL(err, MOE_ERR_IO, "%s (%s)", f->text, moe_status_name(f->status));
        }
    }
    return MOE_FAIL(err, MOE_ERR_IO, "the store could not load expert %u", expert);
}

moe_status gw_store_client_lease(gw_store_client *c, uint32_t expert, gw_lease *out, moe_err *err)
{
    MOE_ASSERT(expert < c->welcome.n_experts);
    if (c->lost) {
        return fail_lost(c, err);
    }
    if (c->n_free == 0) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "all %u leases are held", c->welcome.lease_capacity);
    }
    uint32_t index = c->free_leases[c->n_free - 1];
    _Atomic uint64_t *lease = &moe_lease_words(c->map.leases.base)[index];
    uint64_t word = 0, retries = 0;
    moe_lease_take_result r =
        moe_lease_take(lease, &moe_board_words(c->map.board.base)[expert], &word, &retries);
    if (r != MOE_LEASE_TAKEN) {
        count_leases(c, 0, retries);
        return c->want[expert] == WANT_FAILED
                   ? fail_expert(c, expert, err)
                   : MOE_FAIL(err, MOE_ERR_AGAIN, "expert %u is not resident", expert);
    }
    uint32_t slot = moe_board_word_slot(word);
    if (slot >= c->map.n_slots) {
        moe_lease_release(lease);
        return MOE_FAIL(err, MOE_ERR_CORRUPT, "the board puts expert %u into slot %u of %u", expert,
                        slot, c->map.n_slots);
    }
    c->n_free--;
    if (c->want[expert] != WANT_NONE) {
        forget_want(c, expert);
    }
    record_use(c, expert);
    count_leases(c, 1, retries);
    *out = (gw_lease){.index = index,
                      .slot = slot,
                      .data = (const char *)c->map.slots.base +
                              (size_t)slot * (size_t)c->welcome.slot_bytes};
    return MOE_OK;
}

void gw_store_client_release(gw_store_client *c, const gw_lease *lease)
{
    moe_lease_release(&moe_lease_words(c->map.leases.base)[lease->index]);
    c->free_leases[c->n_free++] = lease->index;
    count_leases(c, 0, 0);
}

bool gw_store_client_is_resident(const gw_store_client *c, uint32_t expert)
{
    uint64_t word =
        atomic_load_explicit(&moe_board_words(c->map.board.base)[expert], memory_order_relaxed);
    return moe_board_word_state(word) == MOE_BOARD_READY;
}

bool gw_store_client_refuses(const gw_store_client *c, uint32_t expert)
{
    return c->lost || c->want[expert] == WANT_FAILED;
}

/* ---- connecting ------------------------------------------------------------------------------ */

/* Errors of a store that may welcome us later are MOE_ERR_AGAIN. */
static moe_status read_greeting(gw_store_client *c, const void *data, size_t bytes, moe_err *err)
{
    moe_status st = wire_decode(data, bytes, &c->in, err);
    if (st != MOE_OK) {
        return st;
    }
    if (c->in.h.kind == WIRE_WELCOME) {
        c->welcome = c->in.welcome;
        return MOE_OK;
    }
    if (c->in.h.kind == WIRE_ERROR && c->in.outcome.status != MOE_ERR_CANCELLED) {
        return MOE_FAIL(err, (moe_status)c->in.outcome.status, "the store at %s refuses: %.250s",
                        c->cfg.endpoint, c->in.outcome.text);
    }
    return MOE_FAIL(err, MOE_ERR_AGAIN, "draining: its successor will answer");
}

static void tell_waiting(gw_store_client *c, int64_t since_ns, bool *told)
{
    if (!*told && c->cfg.on_waiting != NULL && moe_now_ns() - since_ns > say_waiting_ns) {
        *told = true;
        c->cfg.on_waiting(c->cfg.user, c->cfg.endpoint);
    }
}

static moe_status greet(gw_store_client *c, moe_err *err)
{
    const int64_t begin_ns = moe_now_ns();
    bool told = false;
    for (int64_t now = begin_ns; now - begin_ns <= c->cfg.connect_timeout_ns; now = moe_now_ns()) {
        const void *data = NULL;
        size_t bytes = 0;
        if (now >= c->next_greet_ns) {
            c->next_greet_ns = now + (send_hello(c, NULL) == MOE_OK ? greet_every_ns : 0);
        }
        if (wire_dealer_recv(c->dealer, 5 * MOE_NS_PER_MS, &data, &bytes, NULL) == MOE_OK) {
            moe_status st = read_greeting(c, data, bytes, err);
            bool no_place = (st == MOE_ERR_LIMIT || st == MOE_ERR_BUSY) &&
                            moe_now_ns() - begin_ns < place_wait_ns;
            if (st != MOE_ERR_AGAIN && !no_place) {
                return st;
            }
        }
        tell_waiting(c, begin_ns, &told);
    }
    return MOE_FAIL(err, MOE_ERR_TIMEOUT,
                    "no store answered at %s in %.1f s: start expert-store with this --endpoint",
                    c->cfg.endpoint, (double)c->cfg.connect_timeout_ns / 1e9);
}

/* A table from an earlier life of ours (or of nobody) may hold words. */
static void clear_leases(gw_store_client *c)
{
    moe_lease_header *h = c->map.leases.base;
    atomic_store_explicit(&h->pid, (uint32_t)getpid(), memory_order_relaxed);
    for (uint32_t i = 0; i < h->capacity; i++) {
        moe_lease_release(&moe_lease_words(h)[i]);
        c->free_leases[i] = h->capacity - 1 - i;
    }
    c->n_free = h->capacity;
    count_leases(c, 0, 0);
}

static moe_status alloc_tables(gw_store_client *c, moe_err *err)
{
    c->free_leases = calloc(c->welcome.lease_capacity, sizeof *c->free_leases);
    c->want = calloc(c->welcome.n_experts, sizeof *c->want);
    c->wanted = calloc(c->welcome.n_experts, sizeof *c->wanted);
    if (c->free_leases == NULL || c->want == NULL || c->wanted == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "tables for %u experts", c->welcome.n_experts);
    }
    return MOE_OK;
}

moe_status gw_store_client_create(const gw_store_client_cfg *cfg, gw_store_client **out,
                                  moe_err *err)
{
    gw_store_client *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "store client");
    }
    c->cfg = *cfg;
    c->map = GW_STORE_MAP_NONE;
    snprintf(c->name, sizeof c->name, "%.63s", cfg->name);
    moe_status st = wire_dealer_create(cfg->endpoint, &c->dealer, err);
    if (st == MOE_OK) {
        st = greet(c, err);
    }
    if (st == MOE_OK) {
        st = gw_store_map_open(&c->welcome, &c->map, &c->shape, err);
    }
    if (st == MOE_OK) {
        st = alloc_tables(c, err);
    }
    if (st != MOE_OK) {
        gw_store_client_destroy(c);
        return st;
    }
    clear_leases(c);
    c->served = true;
    atomic_store_explicit(&c->heard_ns, moe_now_ns(), memory_order_relaxed);
    *out = c;
    return MOE_OK;
}

void gw_store_client_destroy(gw_store_client *c)
{
    if (c == NULL) {
        return;
    }
    if (c->map.leases.base != NULL && c->free_leases != NULL) {
        clear_leases(c);
    }
    gw_store_map_close(&c->map);
    wire_dealer_destroy(c->dealer);
    free(c->free_leases);
    free(c->want);
    free(c->wanted);
    free(c);
}

/* ---- getters --------------------------------------------------------------------------------- */

const wire_welcome *gw_store_client_welcome(const gw_store_client *c)
{
    return &c->welcome;
}

const moe_model_shape *gw_store_client_shape(const gw_store_client *c)
{
    return &c->shape;
}

const moe_dense_entry *gw_store_client_dense(const gw_store_client *c, const char *name,
                                             moe_dense_kind kind, const void **out_payload)
{
    const moe_dense_entry *e = gw_store_map_dense(&c->map, name, kind);
    if (e != NULL && out_payload != NULL) {
        *out_payload = (const char *)c->map.dense.base + e->off;
    }
    return e;
}

const void *gw_store_client_slots(const gw_store_client *c)
{
    return c->map.slots.base;
}

uint32_t gw_store_client_n_made(const gw_store_client *c)
{
    const moe_board_header *h = c->map.board.base;
    /* acquire: pairs with the store's release, after the pages. The bound: whatever a board says */
    uint32_t n = atomic_load_explicit(&h->n_made, memory_order_acquire);
    return n < c->map.n_slots ? n : c->map.n_slots;
}

bool gw_store_client_is_made(const gw_store_client *c)
{
    const moe_board_header *h = c->map.board.base;
    return gw_store_client_n_made(c) >=
           atomic_load_explicit(&h->n_budget, memory_order_relaxed); /* after n_made */
}

moe_worker_counters *gw_store_client_counters(const gw_store_client *c)
{
    return &((moe_lease_header *)c->map.leases.base)->counters;
}

moe_block_counters *gw_store_client_block_counters(const gw_store_client *c, uint32_t flat_block)
{
    MOE_ASSERT(flat_block < c->shape.n_blocks_total);
    return &moe_lease_blocks(c->map.leases.base)[flat_block];
}
