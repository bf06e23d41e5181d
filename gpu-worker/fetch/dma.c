/* dma.c - see dma.h. */
#include "gpu-worker/fetch/dma.h"

#include <stdlib.h>

#include "common/clock.h"

enum { SPECULATIVE_PIECES = 2, NO_TRANSFER = -1, MAX_TRANSFERS = 1024 };

typedef struct transfer {
    bool in_use;
    bool speculative, abandoned;
    bool pinned; /* its slot is registered with the device */
    uint32_t expert, cell;
    gw_lease lease;
    char *dst;
    uint64_t queued_bytes;
    uint32_t n_flying; /* records that have not landed */
    int64_t begin_ns;  /* of its first byte on the link */
} transfer;

/* Something queued on the copy stream: all, the rest or one piece of a transfer. */
typedef struct record {
    krn_event *event; /* owned */
    uint32_t transfer;
    int64_t queued_ns;
    uint64_t bytes;
    bool piece; /* counts against SPECULATIVE_PIECES */
} record;

struct gw_dma {
    gw_dma_cfg cfg;
    krn_stream *stream;   /* owned */
    transfer *transfers;  /* [n_transfers] owned */
    int32_t *transfer_of; /* [n_cells] owned; NO_TRANSFER: the cell is not being copied to */
    uint32_t *free_stack; /* [n_transfers] owned */
    record *records;      /* [n_records] owned; a ring from n_landed to n_queued */
    uint32_t n_transfers, n_free, n_records;
    uint64_t n_queued, n_landed;
    uint32_t n_open;     /* speculative transfers with bytes not queued yet */
    uint32_t n_pieces;   /* speculative pieces that fly */
    int64_t last_end_ns; /* the link is in order: a copy begins after its predecessor's end */
};

static moe_status alloc(gw_dma *d, moe_err *err)
{
    const krn_backend_fns *b = &d->cfg.ops->backend;
    uint32_t capacity = gw_store_client_welcome(d->cfg.client)->lease_capacity;
    d->n_transfers = capacity < MAX_TRANSFERS ? capacity : MAX_TRANSFERS;
    d->n_records = d->n_transfers + SPECULATIVE_PIECES;
    d->transfers = calloc(d->n_transfers, sizeof *d->transfers);
    d->transfer_of = calloc(d->cfg.n_cells, sizeof *d->transfer_of);
    d->free_stack = calloc(d->n_transfers, sizeof *d->free_stack);
    d->records = calloc(d->n_records, sizeof *d->records);
    if (d->transfers == NULL || d->transfer_of == NULL || d->free_stack == NULL ||
        d->records == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "tables of %u copies", d->n_transfers);
    }
    for (uint32_t i = 0; i < d->cfg.n_cells; i++) {
        d->transfer_of[i] = NO_TRANSFER;
    }
    for (uint32_t i = 0; i < d->n_transfers; i++) {
        d->free_stack[i] = i;
    }
    d->n_free = d->n_transfers;
    moe_status st = b->stream_create(d->cfg.device, "copy", &d->stream, err);
    for (uint32_t i = 0; i < d->n_records && st == MOE_OK; i++) {
        st = b->event_create(d->cfg.device, &d->records[i].event, err);
    }
    return st;
}

moe_status gw_dma_create(const gw_dma_cfg *cfg, gw_dma **out, moe_err *err)
{
    gw_dma *d = calloc(1, sizeof *d);
    if (d == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "copy engine");
    }
    d->cfg = *cfg;
    moe_status st = alloc(d, err);
    if (st != MOE_OK) {
        gw_dma_destroy(d);
        return st;
    }
    *out = d;
    return MOE_OK;
}

void gw_dma_destroy(gw_dma *d)
{
    if (d == NULL) {
        return;
    }
    const krn_backend_fns *b = &d->cfg.ops->backend;
    b->stream_destroy(d->stream); /* finishes what is queued: the leases are over then */
    for (uint32_t i = 0; i < d->n_transfers && d->transfers != NULL; i++) {
        if (d->transfers[i].in_use) {
            gw_store_client_release(d->cfg.client, &d->transfers[i].lease);
        }
    }
    for (uint32_t i = 0; i < d->n_records && d->records != NULL; i++) {
        if (d->records[i].event != NULL) {
            b->event_destroy(d->records[i].event);
        }
    }
    free(d->transfers);
    free(d->transfer_of);
    free(d->free_stack);
    free(d->records);
    free(d);
}

/* Queues `bytes` more of a transfer, in pieces, with one event behind them. */
static moe_status queue_bytes(gw_dma *d, uint32_t index, uint64_t bytes, bool piece, moe_err *err)
{
    const krn_backend_fns *b = &d->cfg.ops->backend;
    transfer *t = &d->transfers[index];
    MOE_ASSERT(d->n_queued - d->n_landed < d->n_records);
    record *r = &d->records[d->n_queued % d->n_records];
    moe_status st = MOE_OK;
    *r = (record){.event = r->event,
                  .transfer = index,
                  .queued_ns = moe_now_ns(),
                  .bytes = bytes,
                  .piece = piece};
    for (uint64_t at = 0; at < bytes && st == MOE_OK; at += d->cfg.piece_bytes) {
        uint64_t n = bytes - at < d->cfg.piece_bytes ? bytes - at : d->cfg.piece_bytes;
        uint64_t off = t->queued_bytes + at;
        st = b->copy_async(d->stream, t->dst + off, (const char *)t->lease.data + off, n, err);
    }
    if (st == MOE_OK) {
        st = b->event_record(r->event, d->stream, err);
    }
    if (st != MOE_OK) {
        return st; /* the transfer stays in use: some of its bytes may fly for ever */
    }
    t->queued_bytes += bytes;
    t->n_flying++;
    d->n_queued++;
    d->n_pieces += piece;
    d->n_open -= t->speculative && t->queued_bytes == d->cfg.expert_bytes;
    return MOE_OK;
}

static uint64_t bytes_left(const gw_dma *d, const transfer *t)
{
    return d->cfg.expert_bytes - t->queued_bytes;
}

static moe_status queue_piece(gw_dma *d, uint32_t index, moe_err *err)
{
    uint64_t left = bytes_left(d, &d->transfers[index]);
    uint64_t n = left < d->cfg.piece_bytes ? left : d->cfg.piece_bytes;
    return queue_bytes(d, index, n, true, err);
}

bool gw_dma_has_room(const gw_dma *d, bool speculative)
{
    return d->n_free > 0 && !(speculative && d->n_pieces >= SPECULATIVE_PIECES);
}

moe_status gw_dma_start(gw_dma *d, const gw_dma_copy *copy, moe_err *err)
{
    MOE_ASSERT(d->transfer_of[copy->cell] == NO_TRANSFER);
    if (!gw_dma_has_room(d, copy->speculative)) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "%u copies are under way", d->n_transfers - d->n_free);
    }
    gw_lease lease = {.index = 0};
    moe_status st = gw_store_client_lease(d->cfg.client, copy->expert, &lease, err);
    if (st != MOE_OK) {
        return st;
    }
    uint32_t index = d->free_stack[--d->n_free];
    d->transfers[index] = (transfer){.in_use = true,
                                     .speculative = copy->speculative,
                                     .expert = copy->expert,
                                     .cell = copy->cell,
                                     .lease = lease,
                                     .pinned = gw_slot_pins_cover(d->cfg.pins, lease.slot),
                                     .dst = copy->dst};
    d->transfer_of[copy->cell] = (int32_t)index;
    d->n_open += copy->speculative;
    return copy->speculative ? queue_piece(d, index, err)
                             : queue_bytes(d, index, d->cfg.expert_bytes, false, err);
}

moe_status gw_dma_hurry(gw_dma *d, uint32_t cell, moe_err *err)
{
    int32_t index = d->transfer_of[cell];
    if (index == NO_TRANSFER) {
        return MOE_OK;
    }
    uint64_t left = bytes_left(d, &d->transfers[index]);
    return left > 0 ? queue_bytes(d, (uint32_t)index, left, false, err) : MOE_OK;
}

void gw_dma_abandon(gw_dma *d, uint32_t cell)
{
    int32_t index = d->transfer_of[cell];
    if (index != NO_TRANSFER && bytes_left(d, &d->transfers[index]) > 0) {
        d->transfers[index].abandoned = true;
    }
}

void gw_dma_keep(gw_dma *d, uint32_t cell)
{
    int32_t index = d->transfer_of[cell];
    if (index != NO_TRANSFER) {
        d->transfers[index].abandoned = false;
    }
}

static void count_copy(const gw_dma *d, const record *r, int64_t begin_ns, int64_t end_ns)
{
    moe_worker_counters *n = gw_store_client_counters(d->cfg.client);
    atomic_fetch_add_explicit(&n->copy_bytes, r->bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&n->copy_ns, (uint64_t)(end_ns - begin_ns), memory_order_relaxed);
    const transfer *t = &d->transfers[r->transfer];
    gw_trace_add(d->cfg.trace, GW_LANE_COPY, t->speculative ? "guessed copy" : "copy", begin_ns,
                 end_ns, -1, (int32_t)t->expert, r->bytes);
}

static void finish(gw_dma *d, uint32_t index, int64_t end_ns, gw_landing *out)
{
    transfer *t = &d->transfers[index];
    moe_worker_counters *n = gw_store_client_counters(d->cfg.client);
    bool complete = bytes_left(d, t) == 0;
    *out = (gw_landing){.cell = t->cell,
                        .complete = complete,
                        .begin_ns = t->begin_ns,
                        .end_ns = end_ns,
                        .bytes = t->queued_bytes};
    atomic_fetch_add_explicit(&n->copies, complete, memory_order_relaxed);
    atomic_fetch_add_explicit(&n->copies_pageable, complete && !t->pinned, memory_order_relaxed);
    d->n_open -= !complete;
    d->transfer_of[t->cell] = NO_TRANSFER;
    gw_store_client_release(d->cfg.client, &t->lease);
    t->in_use = false;
    d->free_stack[d->n_free++] = index;
}

/* The record at the ring's head has landed. True, with *out, if its transfer ends with it. */
static bool land(gw_dma *d, record *r, gw_landing *out)
{
    transfer *t = &d->transfers[r->transfer];
    int64_t end_ns = d->cfg.ops->backend.event_ns(r->event);
    int64_t begin_ns = r->queued_ns > d->last_end_ns ? r->queued_ns : d->last_end_ns;
    begin_ns = begin_ns < end_ns ? begin_ns : end_ns;
    count_copy(d, r, begin_ns, end_ns);
    t->begin_ns = t->begin_ns == 0 ? begin_ns : t->begin_ns;
    d->last_end_ns = end_ns;
    d->n_landed++;
    d->n_pieces -= r->piece;
    t->n_flying--;
    if (t->n_flying > 0 || (bytes_left(d, t) > 0 && !t->abandoned)) {
        return false;
    }
    finish(d, r->transfer, end_ns, out);
    return true;
}

/* Speculative transfers that are not queued whole: their next pieces, or their end. */
static moe_status tend_open(gw_dma *d, void (*landed)(void *user, const gw_landing *l), void *user,
                            moe_err *err)
{
    moe_status st = MOE_OK;
    gw_landing l = {.cell = 0};
    for (uint32_t i = 0; i < d->n_transfers && st == MOE_OK && d->n_open > 0; i++) {
        const transfer *t = &d->transfers[i];
        if (!t->in_use || bytes_left(d, t) == 0) {
            continue;
        }
        if (t->abandoned && t->n_flying == 0) {
            finish(d, i, d->last_end_ns, &l);
            landed(user, &l);
        } else if (!t->abandoned && d->n_pieces < SPECULATIVE_PIECES) {
            st = queue_piece(d, i, err);
        }
    }
    return st;
}

moe_status gw_dma_poll(gw_dma *d, void (*landed)(void *user, const gw_landing *l), void *user,
                       bool *out_any, moe_err *err)
{
    moe_status st = MOE_OK;
    bool any = false;
    gw_landing l = {.cell = 0};
    while (d->n_landed < d->n_queued) {
        record *r = &d->records[d->n_landed % d->n_records];
        st = d->cfg.ops->backend.event_query(r->event, NULL);
        if (st != MOE_OK && st != MOE_ERR_AGAIN) { /* once more, for the text */
            st = d->cfg.ops->backend.event_query(r->event, err);
        }
        if (st == MOE_ERR_AGAIN) {
            break;
        }
        if (st != MOE_OK) {
            return st;
        }
        any = true;
        if (land(d, r, &l)) {
            landed(user, &l);
        }
    }
    st = tend_open(d, landed, user, err);
    *out_any = any;
    return st;
}

moe_status gw_dma_signal(gw_dma *d, uint32_t *flag, moe_err *err)
{
    return d->cfg.ops->backend.write32_async(d->stream, flag, 1, err);
}

moe_status gw_dma_sync(gw_dma *d, moe_err *err)
{
    return d->cfg.ops->backend.stream_sync(d->stream, err);
}

bool gw_dma_is_idle(const gw_dma *d)
{
    return d->n_free == d->n_transfers;
}
