/* lease_view.c - see lease_view.h. Counter records are plain arrays of 64-bit words here, so that
 * a field added in proto/lease_table.h is summed without a change. */
#include "expert-store/server/lease_view.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

_Static_assert(sizeof(moe_block_counters) % sizeof(uint64_t) == 0, "an array of words");
_Static_assert(sizeof(moe_worker_counters) % sizeof(uint64_t) == 0, "an array of words");

static void add_words(void *sum, const void *more, size_t bytes)
{
    _Atomic uint64_t *to = sum;
    const _Atomic uint64_t *from = more;
    for (size_t i = 0; i < bytes / sizeof(uint64_t); i++) {
        uint64_t v = atomic_load_explicit(&from[i], memory_order_relaxed);
        atomic_fetch_add_explicit(&to[i], v, memory_order_relaxed);
    }
}

static const _Atomic uint64_t *words_of(const xs_lease_entry *e)
{
    return moe_lease_words(e->table);
}

static const moe_use_record *uses_of(const xs_lease_entry *e)
{
    return (const moe_use_record *)(const void *)((const char *)e->table +
                                                  moe_lease_uses_off(e->capacity));
}

moe_status xs_lease_view_init(xs_lease_view *v, uint32_t n_experts, uint32_t n_blocks, moe_err *err)
{
    memset(v, 0, sizeof *v);
    v->n_experts = n_experts;
    v->n_blocks = n_blocks;
    v->gone_uses = calloc(n_experts, sizeof *v->gone_uses);
    v->gone_blocks = calloc(n_blocks, sizeof *v->gone_blocks);
    if (v->gone_uses == NULL || v->gone_blocks == NULL) {
        xs_lease_view_fini(v);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "use counts of %u experts", n_experts);
    }
    return MOE_OK;
}

void xs_lease_view_fini(xs_lease_view *v)
{
    free(v->gone_uses);
    free(v->gone_blocks);
    v->gone_uses = NULL;
    v->gone_blocks = NULL;
}

void xs_lease_table_format(void *table, const xs_lease_geometry *g)
{
    moe_lease_header *h = table;
    memcpy(h->store_uuid, g->store_uuid, sizeof h->store_uuid);
    h->worker_id = g->worker_id;
    h->capacity = g->capacity;
    h->n_experts = g->n_experts;
    h->n_blocks = g->n_blocks;
    h->layout = MOE_LEASE_LAYOUT;
    uint64_t magic = 0;
    memcpy(&magic, MOE_LEASE_MAGIC, sizeof magic);
    /* release: whoever sees the magic sees the fields above. */
    atomic_store_explicit(&h->magic, magic, memory_order_release);
}

moe_status xs_lease_table_check(const void *table, uint64_t bytes, const xs_lease_geometry *g,
                                moe_err *err)
{
    const moe_lease_header *h = table;
    if (bytes < MOE_LEASE_WORDS_OFF) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "lease table %u: too short", g->worker_id);
    }
    uint64_t magic = atomic_load_explicit(&h->magic, memory_order_acquire);
    if (memcmp(&magic, MOE_LEASE_MAGIC, sizeof magic) != 0 || h->layout != MOE_LEASE_LAYOUT) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "lease table %u: wrong magic or layout", g->worker_id);
    }
    if (memcmp(h->store_uuid, g->store_uuid, sizeof h->store_uuid) != 0) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "lease table %u: of another store", g->worker_id);
    }
    if (h->worker_id != g->worker_id || h->n_experts != g->n_experts ||
        h->n_blocks != g->n_blocks || h->capacity != g->capacity || g->capacity == 0 ||
        moe_lease_table_bytes(g->capacity, g->n_experts, g->n_blocks) != bytes) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "lease table %u: wrong geometry", g->worker_id);
    }
    return MOE_OK;
}

void xs_lease_view_add(xs_lease_view *v, uint32_t place, void *table, uint32_t capacity)
{
    MOE_ASSERT(place < MOE_BOARD_MAX_WORKERS && v->at[place].table == NULL);
    v->at[place] = (xs_lease_entry){.table = table, .capacity = capacity};
    if (place >= v->n_places) {
        v->n_places = place + 1;
    }
}

static void fold_worker(xs_lease_view *v, const moe_lease_header *h)
{
    uint64_t seen = atomic_load_explicit(&v->gone.batch_max, memory_order_relaxed);
    uint64_t its = atomic_load_explicit(&h->counters.batch_max, memory_order_relaxed);
    add_words(&v->gone, &h->counters, sizeof v->gone);
    atomic_store_explicit(&v->gone.batch_max, its > seen ? its : seen, memory_order_relaxed);
    atomic_store_explicit(&v->gone.leases_held, 0, memory_order_relaxed);
    atomic_store_explicit(&v->gone.n_cells, 0, memory_order_relaxed);
    atomic_store_explicit(&v->gone.cells_used, 0, memory_order_relaxed);
    atomic_store_explicit(&v->gone.cell_bytes, 0, memory_order_relaxed);
}

void xs_lease_view_remove(xs_lease_view *v, uint32_t place)
{
    MOE_ASSERT(place < MOE_BOARD_MAX_WORKERS && v->at[place].table != NULL);
    const xs_lease_entry e = v->at[place];
    for (uint32_t x = 0; x < v->n_experts; x++) {
        v->gone_uses[x] += xs_lease_entry_uses(&e, x);
    }
    for (uint32_t b = 0; b < v->n_blocks; b++) {
        xs_lease_entry_blocks_add(&e, v->n_experts, b, &v->gone_blocks[b]);
    }
    fold_worker(v, e.table);
    v->at[place] = (xs_lease_entry){0};
    while (v->n_places > 0 && v->at[v->n_places - 1].table == NULL) {
        v->n_places--;
    }
}

bool xs_lease_entry_names_slot(const xs_lease_entry *e, uint32_t slot)
{
    const _Atomic uint64_t *words = words_of(e);
    for (uint32_t i = 0; i < e->capacity; i++) {
        /* seq_cst: pairs with step 2 of moe_lease_take; see proto/lease_table.h. */
        uint64_t w = atomic_load_explicit(&words[i], memory_order_seq_cst);
        if (w != 0 && moe_board_word_slot(w) == slot) {
            return true;
        }
    }
    return false;
}

bool xs_lease_view_names_slot(const xs_lease_view *v, uint32_t slot)
{
    for (uint32_t p = 0; p < v->n_places; p++) {
        if (v->at[p].table != NULL && xs_lease_entry_names_slot(&v->at[p], slot)) {
            return true;
        }
    }
    return false;
}

uint32_t xs_lease_view_mark(const xs_lease_view *v, bool *leased, uint32_t n_slots)
{
    uint32_t n = 0;
    for (uint32_t p = 0; p < v->n_places; p++) {
        if (v->at[p].table == NULL) {
            continue;
        }
        const _Atomic uint64_t *words = words_of(&v->at[p]);
        for (uint32_t i = 0; i < v->at[p].capacity; i++) {
            uint64_t w = atomic_load_explicit(&words[i], memory_order_seq_cst);
            if (w != 0 && moe_board_word_slot(w) < n_slots) {
                leased[moe_board_word_slot(w)] = true;
                n++;
            }
        }
    }
    return n;
}

uint32_t xs_lease_entry_count(const xs_lease_entry *e)
{
    const _Atomic uint64_t *words = words_of(e);
    uint32_t n = 0;
    for (uint32_t i = 0; i < e->capacity; i++) {
        n += atomic_load_explicit(&words[i], memory_order_relaxed) != 0;
    }
    return n;
}

uint64_t xs_lease_entry_uses(const xs_lease_entry *e, uint32_t expert)
{
    return atomic_load_explicit(&uses_of(e)[expert].count, memory_order_relaxed);
}

uint64_t xs_lease_view_uses(const xs_lease_view *v, uint32_t expert, int64_t *out_last_ns)
{
    uint64_t n = v->gone_uses[expert];
    for (uint32_t p = 0; p < v->n_places; p++) {
        if (v->at[p].table == NULL) {
            continue;
        }
        const moe_use_record *use = &uses_of(&v->at[p])[expert];
        n += atomic_load_explicit(&use->count, memory_order_relaxed);
        int64_t last = (int64_t)atomic_load_explicit(&use->last_use_ns, memory_order_relaxed);
        if (last > *out_last_ns) {
            *out_last_ns = last;
        }
    }
    return n;
}

void xs_lease_entry_blocks_add(const xs_lease_entry *e, uint32_t n_experts, uint32_t block,
                               moe_block_counters *sum)
{
    const char *blocks = (const char *)e->table + moe_lease_blocks_off(e->capacity, n_experts);
    add_words(sum, blocks + block * sizeof(moe_block_counters), sizeof *sum);
}

void xs_lease_view_block(const xs_lease_view *v, uint32_t block, moe_block_counters *out)
{
    memset(out, 0, sizeof *out);
    add_words(out, &v->gone_blocks[block], sizeof *out);
    for (uint32_t p = 0; p < v->n_places; p++) {
        if (v->at[p].table != NULL) {
            xs_lease_entry_blocks_add(&v->at[p], v->n_experts, block, out);
        }
    }
}

bool xs_lease_table_is_locked(const moe_shm_region *table)
{
    int rc = 0;
    do {
        rc = flock(table->fd, LOCK_SH | LOCK_NB);
    } while (rc != 0 && errno == EINTR);
    if (rc == 0) {
        flock(table->fd, LOCK_UN);
        return false;
    }
    return errno == EWOULDBLOCK;
}
