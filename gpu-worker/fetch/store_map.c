/* store_map.c - see store_map.h. The store is trusted to be a store, not to be of this version or
 * of this model: sizes, offsets and identities are checked before anything is read through them. */
#include "gpu-worker/fetch/store_map.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/dtype.h"

static const int64_t LOCK_PATIENCE_NS = 200 * MOE_NS_PER_MS;
static const int64_t LOCK_PAUSE_NS = 50 * MOE_NS_PER_US;

static const wire_region *find_region(const wire_welcome *w, wire_region_purpose purpose)
{
    for (uint32_t i = 0; i < w->n_regions; i++) {
        if (w->regions[i].purpose == (uint32_t)purpose) {
            return &w->regions[i];
        }
    }
    return NULL;
}

static moe_status open_region(const wire_welcome *w, wire_region_purpose purpose, bool writable,
                              moe_shm_region *out, moe_err *err)
{
    const wire_region *r = find_region(w, purpose);
    if (r == NULL) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "the store announced no region with purpose %d",
                        (int)purpose);
    }
    moe_shm_region map = MOE_SHM_REGION_NONE;
    moe_status st = moe_shm_open(r->name, writable, &map, err);
    if (st != MOE_OK) {
        return st;
    }
    if (map.bytes < r->bytes) {
        st = MOE_FAIL(err, MOE_ERR_FORMAT, "region %s has %llu bytes, %llu were announced", r->name,
                      (unsigned long long)map.bytes, (unsigned long long)r->bytes);
        moe_shm_close(&map);
        return st;
    }
    *out = map;
    return MOE_OK;
}

static bool has_magic(const _Atomic uint64_t *word, const char *magic)
{
    uint64_t want = 0;
    memcpy(&want, magic, sizeof want);
    /* acquire: pairs with the store's release of the magic, the last word it writes */
    return atomic_load_explicit(word, memory_order_acquire) == want;
}

static moe_status fail_header(const moe_shm_region *r, const char *what, moe_err *err)
{
    return MOE_FAIL(err, MOE_ERR_FORMAT,
                    "region %s is not what the store announced (%s): store and worker are of "
                    "different versions, or another store took its place",
                    r->name, what);
}

static moe_status check_board(const gw_store_map *m, const wire_welcome *w, moe_err *err)
{
    const moe_board_header *h = m->board.base;
    if (m->board.bytes < moe_board_bytes(w->n_experts) || !has_magic(&h->magic, MOE_BOARD_MAGIC) ||
        h->layout != MOE_BOARD_LAYOUT) {
        return fail_header(&m->board, "size, magic or layout", err);
    }
    if (memcmp(h->store_uuid, w->store_uuid, sizeof h->store_uuid) != 0 ||
        h->n_experts != w->n_experts || h->n_slots < w->n_slots || h->slot_bytes != w->slot_bytes) {
        return fail_header(&m->board, "store UUID, experts or slots", err);
    }
    return MOE_OK;
}

static moe_status check_slots(gw_store_map *m, const wire_welcome *w, moe_err *err)
{
    m->n_slots = ((const moe_board_header *)m->board.base)->n_slots;
    if (w->n_slots == 0 || m->n_slots > MOE_MAX_SLOTS || w->expert_bytes == 0 ||
        w->expert_bytes > w->slot_bytes || m->slots.bytes / w->slot_bytes < m->n_slots) {
        return fail_header(&m->slots, "slot count or size", err);
    }
    return MOE_OK;
}

static moe_status check_leases(const gw_store_map *m, const wire_welcome *w,
                               const moe_model_shape *shape, moe_err *err)
{
    const moe_lease_header *h = m->leases.base;
    if (m->leases.bytes < MOE_LEASE_WORDS_OFF || !has_magic(&h->magic, MOE_LEASE_MAGIC) ||
        h->layout != MOE_LEASE_LAYOUT) {
        return fail_header(&m->leases, "size, magic or layout", err);
    }
    if (memcmp(h->store_uuid, w->store_uuid, sizeof h->store_uuid) != 0 ||
        h->worker_id != w->worker_id || h->capacity != w->lease_capacity || h->capacity == 0 ||
        h->n_experts != w->n_experts || h->n_blocks != shape->n_blocks_total ||
        m->leases.bytes < moe_lease_table_bytes(h->capacity, h->n_experts, h->n_blocks)) {
        return fail_header(&m->leases, "store UUID, worker or capacities", err);
    }
    return MOE_OK;
}

static moe_status check_dense(const gw_store_map *m, const wire_welcome *w, moe_err *err)
{
    const moe_dense_header *h = m->dense.base;
    if (m->dense.bytes < sizeof *h || !has_magic(&h->magic, MOE_DENSE_MAGIC) ||
        memcmp(h->store_uuid, w->store_uuid, sizeof h->store_uuid) != 0 ||
        h->n_entries > (m->dense.bytes - sizeof *h) / sizeof(moe_dense_entry)) {
        return fail_header(&m->dense, "magic, store UUID or entries", err);
    }
    const moe_dense_entry *e = (const void *)((const char *)m->dense.base + sizeof *h);
    for (uint32_t i = 0; i < h->n_entries; i++) {
        if (memchr(e[i].name, '\0', sizeof e[i].name) == NULL || e[i].off > m->dense.bytes ||
            e[i].bytes > m->dense.bytes - e[i].off) {
            return fail_header(&m->dense, "an entry's name or extent", err);
        }
    }
    return MOE_OK;
}

static moe_status check_shape(const gw_store_map *m, const wire_welcome *w, moe_model_shape *out,
                              moe_err *err)
{
    const moe_dense_entry *config = gw_store_map_dense(m, "config.json", MOE_DENSE_FILE);
    if (config == NULL) {
        return fail_header(&m->dense, "no config.json", err);
    }
    moe_status st =
        moe_model_shape_parse((const char *)m->dense.base + config->off, config->bytes, out, err);
    if (st != MOE_OK) {
        return st;
    }
    uint64_t bytes = moe_expert_params(out) * moe_dtype_bytes((moe_dtype)w->expert_dtype);
    if (out->n_experts_total != w->n_experts || bytes != w->expert_bytes) {
        return MOE_FAIL(err, MOE_ERR_FORMAT,
                        "config.json describes %u experts of %llu bytes, the store serves %u of "
                        "%llu",
                        out->n_experts_total, (unsigned long long)bytes, w->n_experts,
                        (unsigned long long)w->expert_bytes);
    }
    return MOE_OK;
}

/* The store asks for a shared lock in passing, to see whether we live: a refusal may be that
 * moment, so only one that lasts is another worker. */
static moe_status lock_leases(const gw_store_map *m, moe_err *err)
{
    int64_t deadline_ns = moe_now_ns() + LOCK_PATIENCE_NS;
    while (flock(m->leases.fd, LOCK_EX | LOCK_NB) != 0) {
        int code = errno;
        if ((code != EWOULDBLOCK && code != EINTR) || moe_now_ns() > deadline_ns) {
            return MOE_FAIL_NATIVE(err, code == EWOULDBLOCK ? MOE_ERR_BUSY : MOE_ERR_IO,
                                   MOE_LAYER_ERRNO, code, "cannot lock lease table %s",
                                   m->leases.name);
        }
        moe_sleep_ns(LOCK_PAUSE_NS);
    }
    return MOE_OK;
}

moe_status gw_store_map_open(const wire_welcome *w, gw_store_map *out_map,
                             moe_model_shape *out_shape, moe_err *err)
{
    gw_store_map m = GW_STORE_MAP_NONE;
    moe_model_shape shape = {.n_experts = 0};
    moe_status st = open_region(w, WIRE_REGION_BOARD, false, &m.board, err);
    if (st == MOE_OK) {
        st = check_board(&m, w, err);
    }
    if (st == MOE_OK) {
        st = open_region(w, WIRE_REGION_SLOTS, false, &m.slots, err);
    }
    if (st == MOE_OK) {
        st = check_slots(&m, w, err);
    }
    if (st == MOE_OK) {
        st = open_region(w, WIRE_REGION_DENSE, false, &m.dense, err);
    }
    if (st == MOE_OK) {
        st = check_dense(&m, w, err);
    }
    if (st == MOE_OK) {
        st = check_shape(&m, w, &shape, err);
    }
    if (st == MOE_OK) {
        st = open_region(w, WIRE_REGION_LEASES, true, &m.leases, err);
    }
    if (st == MOE_OK) {
        st = check_leases(&m, w, &shape, err);
    }
    if (st == MOE_OK) {
        st = lock_leases(&m, err);
    }
    if (st != MOE_OK) {
        gw_store_map_close(&m);
        return st;
    }
    *out_map = m;
    *out_shape = shape;
    return MOE_OK;
}

void gw_store_map_close(gw_store_map *m)
{
    moe_shm_close(&m->leases);
    moe_shm_close(&m->dense);
    moe_shm_close(&m->slots);
    moe_shm_close(&m->board);
}

/* A region that was replaced keeps its name and gets another inode. */
static bool is_same_object(const moe_shm_region *mine, const wire_welcome *w,
                           wire_region_purpose purpose)
{
    const wire_region *r = find_region(w, purpose);
    if (r == NULL || strcmp(r->name, mine->name) != 0) {
        return false;
    }
    int fd = shm_open(r->name, O_RDONLY, 0);
    if (fd < 0) {
        return false;
    }
    struct stat theirs, ours;
    bool same = fstat(fd, &theirs) == 0 && fstat(mine->fd, &ours) == 0 &&
                theirs.st_dev == ours.st_dev && theirs.st_ino == ours.st_ino;
    close(fd);
    return same;
}

bool gw_store_map_is_current(const gw_store_map *m, const wire_welcome *w)
{
    return is_same_object(&m->board, w, WIRE_REGION_BOARD) &&
           is_same_object(&m->slots, w, WIRE_REGION_SLOTS) &&
           is_same_object(&m->dense, w, WIRE_REGION_DENSE) &&
           is_same_object(&m->leases, w, WIRE_REGION_LEASES);
}

const moe_dense_entry *gw_store_map_dense(const gw_store_map *m, const char *name,
                                          moe_dense_kind kind)
{
    const moe_dense_header *h = m->dense.base;
    const moe_dense_entry *e = (const void *)((const char *)m->dense.base + MOE_DENSE_ENTRIES_OFF);
    for (uint32_t i = 0; i < h->n_entries; i++) {
        if (e[i].kind == (uint32_t)kind && strcmp(e[i].name, name) == 0) {
            return &e[i];
        }
    }
    return NULL;
}
