/* workers.c - see workers.h. */
#include "expert-store/server/workers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

#include "expert-store/server/regions.h"

struct xs_workers {
    xs_workers_cfg cfg;
    xs_residency *residency; /* borrowed; NULL until attach */
    xs_worker at[MOE_BOARD_MAX_WORKERS];
    uint32_t next_id;
    xs_workers_counters counters;
};

static moe_board_registry_entry *registry(const xs_workers *ws, uint32_t place)
{
    moe_board_header *h = ws->cfg.board;
    return &h->registry[place];
}

static uint32_t registered_id(const xs_workers *ws, uint32_t place)
{
    return atomic_load_explicit(&registry(ws, place)->worker_id, memory_order_acquire);
}

static void set_registered_id(const xs_workers *ws, uint32_t place, uint32_t id)
{
    /* release: an adopting store that sees the id finds its capacity and a finished table. */
    atomic_store_explicit(&registry(ws, place)->worker_id, id, memory_order_release);
}

moe_status xs_workers_create(const xs_workers_cfg *cfg, xs_workers **out, moe_err *err)
{
    MOE_ASSERT(cfg->max_workers > 0 && cfg->max_workers <= XS_OPERATOR_PLACE);
    xs_workers *ws = calloc(1, sizeof *ws);
    if (ws == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "table of workers");
    }
    ws->cfg = *cfg;
    ws->next_id = 1;
    *out = ws;
    return MOE_OK;
}

/* Forgets the mapping; the table's name and its registry entry stay. */
static void detach(xs_workers *ws, uint32_t place)
{
    xs_worker *w = &ws->at[place];
    if (ws->cfg.leases->at[place].table != NULL) {
        xs_lease_view_remove(ws->cfg.leases, place);
    }
    moe_shm_close(&w->table);
    free(w->asks);
    free(w->ask_of);
    *w = (xs_worker){.table = MOE_SHM_REGION_NONE};
}

void xs_workers_destroy(xs_workers *ws)
{
    if (ws == NULL) {
        return;
    }
    for (uint32_t p = 0; p < MOE_BOARD_MAX_WORKERS; p++) {
        if (ws->at[p].id != 0) {
            detach(ws, p);
        }
    }
    free(ws);
}

void xs_workers_attach(xs_workers *ws, xs_residency *residency, uint32_t lease_capacity)
{
    ws->residency = residency;
    xs_workers_set_capacity(ws, lease_capacity);
}

void xs_workers_set_capacity(xs_workers *ws, uint32_t lease_capacity)
{
    ws->cfg.lease_capacity = lease_capacity;
}

/* ---- liveness ---- */

static uint32_t table_pid(const xs_worker *w)
{
    const moe_lease_header *h = w->table.base;
    return atomic_load_explicit(&h->pid, memory_order_relaxed);
}

uint64_t xs_workers_probe(xs_workers *ws, int64_t now_ns)
{
    uint64_t gone = 0;
    for (uint32_t p = 0; p < MOE_BOARD_MAX_WORKERS; p++) {
        xs_worker *w = &ws->at[p];
        if (w->id == 0) {
            continue;
        }
        if (xs_lease_table_is_locked(&w->table)) {
            w->locked = true;
        } else if (w->locked || table_pid(w) != 0 || now_ns - w->joined_ns > ws->cfg.grace_ns) {
            gone |= 1ull << p;
        }
    }
    return gone;
}

/* ---- joining ---- */

static xs_lease_geometry geometry_of(const xs_workers *ws, uint32_t id)
{
    xs_lease_geometry g = {.worker_id = id,
                           .capacity = ws->cfg.lease_capacity,
                           .n_experts = ws->cfg.n_experts,
                           .n_blocks = ws->cfg.n_blocks};
    memcpy(g.store_uuid, ws->cfg.store_uuid, sizeof g.store_uuid);
    return g;
}

static moe_status settle_in(xs_workers *ws, uint32_t place, uint32_t id, moe_shm_region *table,
                            uint32_t capacity, moe_err *err)
{
    xs_ask *asks = calloc(ws->cfg.n_experts, sizeof *asks);
    uint32_t *ask_of = calloc(ws->cfg.n_experts, sizeof *ask_of);
    if (asks == NULL || ask_of == NULL) {
        free(asks);
        free(ask_of);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "asks of worker %u", id);
    }
    ws->at[place] = (xs_worker){
        .id = id, .table = *table, .capacity = capacity, .asks = asks, .ask_of = ask_of};
    *table = MOE_SHM_REGION_NONE;
    xs_lease_view_add(ws->cfg.leases, place, ws->at[place].table.base, capacity);
    if (id >= ws->next_id) {
        ws->next_id = id + 1;
    }
    return MOE_OK;
}

static moe_status create_table(xs_workers *ws, uint32_t place, moe_err *err)
{
    char name[MOE_SHM_NAME_BYTES];
    moe_shm_region table = MOE_SHM_REGION_NONE;
    const xs_lease_geometry g = geometry_of(ws, ws->next_id);
    xs_lease_region_name(ws->cfg.prefix, g.worker_id, name);
    moe_shm_unlink(name); /* of a store that died before it was registered */
    moe_status st = moe_shm_create(name, moe_lease_table_bytes(g.capacity, g.n_experts, g.n_blocks),
                                   ws->cfg.mode, &table, err);
    if (st != MOE_OK) {
        return st;
    }
    xs_lease_table_format(table.base, &g);
    st = settle_in(ws, place, g.worker_id, &table, g.capacity, err);
    if (st != MOE_OK) {
        moe_shm_close(&table);
        moe_shm_unlink(name);
        return st;
    }
    registry(ws, place)->lease_capacity = g.capacity;
    set_registered_id(ws, place, g.worker_id);
    ws->counters.joined++;
    return MOE_OK;
}

static bool same_peer(const wire_peer *a, const wire_peer *b)
{
    return a->id_bytes != 0 && a->id_bytes == b->id_bytes && memcmp(a->id, b->id, a->id_bytes) == 0;
}

int xs_workers_find(const xs_workers *ws, const wire_peer *peer)
{
    for (uint32_t p = 0; p < ws->cfg.max_workers; p++) {
        if (ws->at[p].id != 0 && same_peer(&ws->at[p].peer, peer)) {
            return (int)p;
        }
    }
    return -1;
}

/* The place of the worker that `hello` says it is; *out_place -1: no such worker any more.
 * MOE_ERR_BUSY: it lives, and is another process. */
static moe_status claimed_place(const xs_workers *ws, const wire_hello *hello,
                                const wire_peer *peer, int *out_place, moe_err *err)
{
    uint32_t pid = peer->pid != 0 ? peer->pid : hello->pid;
    for (uint32_t p = 0; p < ws->cfg.max_workers && hello->worker_id != 0; p++) {
        const xs_worker *w = &ws->at[p];
        if (w->id != hello->worker_id) {
            continue;
        }
        bool its_own = pid != 0 && (w->pid == pid || table_pid(w) == pid);
        if (!its_own && xs_lease_table_is_locked(&w->table)) {
            return MOE_FAIL(err, MOE_ERR_BUSY, "worker %u is process %u, not %u", w->id,
                            table_pid(w), pid);
        }
        *out_place = (int)p;
        return MOE_OK;
    }
    *out_place = -1;
    return MOE_OK;
}

/* A table nobody locks belongs to no process: what it leased is over. */
static void clear_stale_leases(const xs_worker *w)
{
    if (xs_lease_table_is_locked(&w->table)) {
        return;
    }
    _Atomic uint64_t *words = moe_lease_words(w->table.base);
    for (uint32_t i = 0; i < w->capacity; i++) {
        atomic_store_explicit(&words[i], 0, memory_order_release);
    }
}

static int free_place(const xs_workers *ws)
{
    for (uint32_t p = 0; p < ws->cfg.max_workers; p++) {
        if (ws->at[p].id == 0) {
            return (int)p;
        }
    }
    return -1;
}

static moe_status new_place(xs_workers *ws, int *out_place, moe_err *err)
{
    int place = free_place(ws);
    if (place < 0) {
        return MOE_FAIL(err, MOE_ERR_LIMIT,
                        "%u workers are served already: stop one, or start the store with a "
                        "larger --max-workers",
                        ws->cfg.max_workers);
    }
    moe_status st = create_table(ws, (uint32_t)place, err);
    if (st == MOE_OK) {
        *out_place = place;
    }
    return st;
}

static moe_status find_place(xs_workers *ws, const wire_hello *hello, const wire_peer *peer,
                             int *out_place, moe_err *err)
{
    int place = xs_workers_find(ws, peer);
    if (place >= 0) {
        *out_place = place;
        return MOE_OK;
    }
    moe_status st = claimed_place(ws, hello, peer, &place, err);
    if (st != MOE_OK) {
        return st;
    }
    if (place < 0) {
        return new_place(ws, out_place, err);
    }
    clear_stale_leases(&ws->at[place]);
    ws->counters.rejoined++;
    *out_place = place;
    return MOE_OK;
}

moe_status xs_workers_join(xs_workers *ws, const wire_hello *hello, const wire_peer *peer,
                           int64_t now_ns, uint32_t *out_place, moe_err *err)
{
    int place = -1;
    moe_status st = find_place(ws, hello, peer, &place, err);
    if (st != MOE_OK) {
        return st;
    }
    xs_worker *w = &ws->at[place];
    w->peer = *peer;
    w->pid = peer->pid != 0 ? peer->pid : hello->pid;
    memcpy(w->name, hello->name, sizeof w->name);
    w->joined_ns = now_ns;
    w->locked = false; /* seen again by the next probe */
    *out_place = (uint32_t)place;
    return MOE_OK;
}

xs_worker *xs_workers_at(xs_workers *ws, uint32_t place)
{
    MOE_ASSERT(place < MOE_BOARD_MAX_WORKERS);
    return ws->at[place].id != 0 ? &ws->at[place] : NULL;
}

uint32_t xs_workers_count(const xs_workers *ws)
{
    uint32_t n = 0;
    for (uint32_t p = 0; p < MOE_BOARD_MAX_WORKERS; p++) {
        n += ws->at[p].id != 0;
    }
    return n;
}

void xs_workers_remove(xs_workers *ws, uint32_t place)
{
    char name[MOE_SHM_NAME_BYTES];
    xs_worker *w = &ws->at[place];
    MOE_ASSERT(w->id != 0);
    xs_workers_cancel(ws, place, UINT64_MAX);
    memcpy(name, w->table.name, sizeof name);
    set_registered_id(ws, place, 0);
    detach(ws, place);
    moe_shm_unlink(name);
    ws->counters.gone++;
}

/* ---- adoption ---- */

static moe_status adopt_table(xs_workers *ws, uint32_t place, uint32_t id, int64_t now_ns,
                              moe_err *err)
{
    char name[MOE_SHM_NAME_BYTES];
    moe_shm_region table = MOE_SHM_REGION_NONE;
    xs_lease_geometry g = geometry_of(ws, id);
    g.capacity = registry(ws, place)->lease_capacity;
    xs_lease_region_name(ws->cfg.prefix, id, name);
    moe_status st = moe_shm_open(name, true, &table, err);
    if (st == MOE_OK) {
        st = xs_lease_table_check(table.base, table.bytes, &g, err);
    }
    if (st == MOE_OK) {
        st = settle_in(ws, place, id, &table, g.capacity, err);
    }
    if (st == MOE_OK) {
        ws->at[place].joined_ns = now_ns;
        ws->counters.adopted++;
        return MOE_OK;
    }
    if (table.base != NULL && xs_lease_table_is_locked(&table)) {
        moe_shm_close(&table);
        return st;
    }
    moe_shm_close(&table);
    moe_shm_unlink(name);
    set_registered_id(ws, place, 0);
    return MOE_OK;
}

moe_status xs_workers_adopt(xs_workers *ws, int64_t now_ns, moe_err *err)
{
    for (uint32_t p = 0; p < MOE_BOARD_MAX_WORKERS; p++) {
        uint32_t id = registered_id(ws, p);
        if (id == 0) {
            continue;
        }
        moe_status st = adopt_table(ws, p, id, now_ns, err);
        if (st != MOE_OK) {
            return st;
        }
    }
    return MOE_OK;
}

/* ---- asks ---- */

xs_ask *xs_workers_find_ask(xs_workers *ws, uint32_t place, uint32_t expert)
{
    const xs_worker *w = &ws->at[place];
    return w->ask_of[expert] != 0 ? &w->asks[w->ask_of[expert] - 1] : NULL;
}

void xs_workers_hold(xs_workers *ws, uint32_t place, xs_ask *ask, uint32_t slot, int64_t now_ns)
{
    xs_worker *w = &ws->at[place];
    if (ask->held && ask->slot != slot) { /* it was condemned and loaded again elsewhere */
        xs_residency_release_hold(ws->residency, ask->slot);
        ask->held = false;
        w->n_held--;
    }
    ask->held_ns = now_ns;
    if (ask->held) {
        return;
    }
    ask->held = true;
    ask->slot = slot;
    w->n_held++;
    xs_residency_hold(ws->residency, slot);
}

void xs_workers_end_ask(xs_workers *ws, uint32_t place, xs_ask *ask)
{
    xs_worker *w = &ws->at[place];
    if (ask->held) {
        w->n_held--;
        xs_residency_release_hold(ws->residency, ask->slot);
    }
    w->ask_of[ask->expert] = 0;
    xs_ask *last = &w->asks[--w->n_asks];
    if (ask != last) {
        *ask = *last;
        w->ask_of[ask->expert] = (uint32_t)(ask - w->asks) + 1;
    }
}

void xs_workers_cancel(xs_workers *ws, uint32_t place, uint64_t step)
{
    xs_worker *w = &ws->at[place];
    for (uint32_t i = w->n_asks; i > 0; i--) {
        xs_ask *ask = &w->asks[i - 1];
        if (ask->step <= step) {
            xs_workers_end_ask(ws, place, ask);
        }
    }
}

/* Leased now, or used since: the lease may have come and gone between two looks. */
static bool was_leased(const xs_workers *ws, uint32_t place, const xs_ask *ask)
{
    const xs_lease_entry *e = &ws->cfg.leases->at[place];
    return xs_lease_entry_uses(e, ask->expert) != ask->uses_before ||
           xs_lease_entry_names_slot(e, ask->slot);
}

xs_ask *xs_workers_ask(xs_workers *ws, uint32_t place, uint32_t expert, uint64_t step,
                       int64_t now_ns, bool *out_new)
{
    xs_worker *w = &ws->at[place];
    xs_ask *ask = xs_workers_find_ask(ws, place, expert);
    if (ask != NULL && ask->held && was_leased(ws, place, ask)) { /* wanted, had, wanted again */
        xs_workers_end_ask(ws, place, ask);
        ask = NULL;
    }
    *out_new = ask == NULL;
    if (ask == NULL) {
        ask = &w->asks[w->n_asks++];
        *ask = (xs_ask){.expert = expert,
                        .asked_ns = now_ns,
                        .uses_before = xs_lease_entry_uses(&ws->cfg.leases->at[place], expert)};
        w->ask_of[expert] = w->n_asks;
    }
    ask->step = step > ask->step ? step : ask->step;
    return ask;
}

/* False: the worker is stalled. */
static bool settle_one(xs_workers *ws, uint32_t place, int64_t now_ns)
{
    xs_worker *w = &ws->at[place];
    for (uint32_t i = w->n_asks; i > 0 && w->n_held > 0; i--) {
        xs_ask *ask = &w->asks[i - 1];
        if (!ask->held) {
            continue;
        }
        if (was_leased(ws, place, ask)) {
            w->leased_ns = now_ns;
            xs_workers_end_ask(ws, place, ask);
        } else if (now_ns - ask->held_ns >= ws->cfg.hold_ns &&
                   now_ns - w->leased_ns >= ws->cfg.hold_ns) {
            ws->counters.stalled++;
            xs_workers_cancel(ws, place, UINT64_MAX);
            return false;
        }
    }
    return true;
}

uint64_t xs_workers_settle(xs_workers *ws, int64_t now_ns)
{
    uint64_t stalled = 0;
    for (uint32_t p = 0; p < ws->cfg.max_workers; p++) {
        if (ws->at[p].id != 0 && !settle_one(ws, p, now_ns)) {
            stalled |= 1ull << p;
        }
    }
    return stalled;
}

bool xs_workers_break_hold(xs_workers *ws, int64_t now_ns, int64_t age_ns)
{
    xs_ask *oldest = NULL;
    uint32_t place = 0;
    for (uint32_t p = 0; p < ws->cfg.max_workers; p++) {
        for (uint32_t i = 0; i < ws->at[p].n_asks && ws->at[p].n_held > 0; i++) {
            xs_ask *ask = &ws->at[p].asks[i];
            if (ask->held && (oldest == NULL || ask->held_ns < oldest->held_ns)) {
                oldest = ask;
                place = p;
            }
        }
    }
    if (oldest == NULL || now_ns - oldest->held_ns < age_ns) {
        return false;
    }
    ws->counters.holds_broken++;
    xs_workers_end_ask(ws, place, oldest);
    return true;
}

const xs_workers_counters *xs_workers_get_counters(const xs_workers *ws)
{
    return &ws->counters;
}
