/* regions.c - see regions.h. */
#include "expert-store/server/regions.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/checksum.h"
#include "common/clock.h"
#include "common/file.h"
#include "expert-store/server/dense.h"
#include "expert-store/server/machine.h"
#include "expert-store/server/residency.h"
#include "proto/board.h"

/* ---- names ---- */

void xs_region_prefix(const char *endpoint_path, char out[XS_REGION_PREFIX_BYTES])
{
    uint64_t hash = moe_xxh3(endpoint_path, strlen(endpoint_path));
    snprintf(out, XS_REGION_PREFIX_BYTES, "/pregate-%016llx", (unsigned long long)hash);
}

static void region_name(const char *prefix, const char *what, char out[MOE_SHM_NAME_BYTES])
{
    snprintf(out, MOE_SHM_NAME_BYTES, "%s-%s", prefix, what);
}

void xs_lease_region_name(const char *prefix, uint32_t worker_id, char out[MOE_SHM_NAME_BYTES])
{
    snprintf(out, MOE_SHM_NAME_BYTES, "%s-lease-%u", prefix, worker_id);
}

/* ---- the instance lock ---- */

static moe_status make_parents(const char *path, moe_err *err)
{
    char dir[PATH_MAX];
    snprintf(dir, sizeof dir, "%s", path);
    for (char *slash = strchr(dir + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
            int code = errno;
            return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code,
                                   "cannot make the socket's directory %s", dir);
        }
        *slash = '/';
    }
    return MOE_OK;
}

static pid_t read_pid(int fd)
{
    char text[24] = "";
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    return n > 0 ? (pid_t)strtol(text, NULL, 10) : 0;
}

static bool is_gone(pid_t pid)
{
    return pid <= 0 || (kill(pid, 0) != 0 && errno == ESRCH);
}

static moe_status write_pid(int fd, const char *path, moe_err *err)
{
    char text[24];
    int n = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    if (ftruncate(fd, 0) != 0) {
        int code = errno;
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code, "cannot truncate %s", path);
    }
    return moe_pwrite_exact(fd, text, (size_t)n, 0, path, err);
}

static moe_status wait_for_lock(int fd, const char *path, const char *endpoint, moe_err *err)
{
    int64_t deadline_ns = moe_now_ns() + 5 * MOE_NS_PER_S;
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int code = errno;
        if (code != EWOULDBLOCK && code != EINTR) {
            return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code, "cannot lock %s", path);
        }
        pid_t holder = read_pid(fd);
        if (!is_gone(holder)) {
            return MOE_FAIL(err, MOE_ERR_BUSY,
                            "an expert-store is already running on %s (process %ld): stop it, or "
                            "choose another --endpoint",
                            endpoint, (long)holder);
        }
        if (moe_now_ns() > deadline_ns) {
            return MOE_FAIL(err, MOE_ERR_BUSY,
                            "%s is locked, but process %ld is gone: its reads do not end; look "
                            "at the drive",
                            path, (long)holder);
        }
        moe_sleep_ns(5 * MOE_NS_PER_MS); /* reads of a killed store land within about 100 ms */
    }
    return MOE_OK;
}

moe_status xs_instance_lock(const char *endpoint, const char *endpoint_path, int *out_fd,
                            moe_err *err)
{
    char path[PATH_MAX];
    moe_status st = make_parents(endpoint_path, err);
    if (st != MOE_OK) {
        return st;
    }
    snprintf(path, sizeof path, "%s.lock", endpoint_path);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        int code = errno;
        return MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, code, "cannot open %s", path);
    }
    st = wait_for_lock(fd, path, endpoint, err);
    if (st == MOE_OK) {
        st = write_pid(fd, path, err);
    }
    if (st != MOE_OK) {
        close(fd);
        return st;
    }
    *out_fd = fd;
    return MOE_OK;
}

/* ---- how many slots ---- */

static moe_status parse_ram(const xs_sizing *s, uint64_t all_bytes, uint64_t *out_bytes,
                            moe_err *err)
{
    if (strcmp(s->ram_bytes, "all") == 0) {
        *out_bytes = all_bytes;
        return MOE_OK;
    }
    char *end = NULL;
    double share = strtod(s->ram_bytes, &end);
    if (end != s->ram_bytes && strcmp(end, "%") == 0) {
        if (!(share > 0 && share <= 100)) {
            return MOE_FAIL(err, MOE_ERR_INVALID,
                            "--ram-bytes %.40s: a share is over 0%% and at "
                            "most 100%%",
                            s->ram_bytes);
        }
        *out_bytes = (uint64_t)(share / 100 * (double)s->total_ram);
        return MOE_OK;
    }
    if (moe_parse_size(s->ram_bytes, out_bytes, NULL) != MOE_OK) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "--ram-bytes %.40s: expected a size (16GiB), a share (25%%) or all",
                        s->ram_bytes);
    }
    return MOE_OK;
}

/* Three quarters of what can be had, beyond what there is. */
static uint64_t sensible_bytes(const xs_sizing *s)
{
    uint64_t more = s->available_ram > s->present_bytes ? s->available_ram - s->present_bytes : 0;
    return s->present_bytes + more / 4 * 3;
}

moe_status xs_size_slots(const xs_sizing *s, uint32_t *out_n_slots, moe_err *err)
{
    uint64_t bytes = 0;
    moe_status st = parse_ram(s, s->slot_bytes * s->n_experts, &bytes, err);
    if (st != MOE_OK) {
        return st;
    }
    uint64_t n = bytes / s->slot_bytes;
    uint64_t per_worker = s->leases_per_worker != 0 ? s->leases_per_worker : 1;
    uint64_t least = s->max_workers * per_worker + 1;
    n = n < s->n_experts ? n : s->n_experts;
    n = n < MOE_MAX_SLOTS ? n : MOE_MAX_SLOTS;
    least = least < s->n_experts ? least : s->n_experts;
    if (n < least) {
        return MOE_FAIL(err, MOE_ERR_LIMIT,
                        "--ram-bytes %.40s holds %llu experts of %llu bytes; the minimum for "
                        "--max-workers %u with %llu leases each is %llu bytes (%llu slots)",
                        s->ram_bytes, (unsigned long long)n, (unsigned long long)s->slot_bytes,
                        s->max_workers, (unsigned long long)per_worker,
                        (unsigned long long)(least * s->slot_bytes), (unsigned long long)least);
    }
    if (n * s->slot_bytes > s->available_ram) {
        return MOE_FAIL(err, MOE_ERR_NO_SPACE,
                        "--ram-bytes %.40s needs %llu MiB, but only %llu MiB of memory and "
                        "/dev/shm can be had: give less, e.g. --ram-bytes %lluMiB",
                        s->ram_bytes, (unsigned long long)(n * s->slot_bytes >> 20),
                        (unsigned long long)(s->available_ram >> 20),
                        (unsigned long long)(sensible_bytes(s) >> 20));
    }
    *out_n_slots = (uint32_t)n;
    return MOE_OK;
}

static uint32_t clamp(uint64_t n, uint32_t least, uint32_t most)
{
    return n < least ? least : n > most ? most : (uint32_t)n;
}

static uint32_t speculative_experts(const xs_limits_cfg *c)
{
    uint64_t bytes = c->speculative_bytes;
    if (bytes == 0) {
        bytes = c->slot_bytes > 8u << 20 ? c->slot_bytes : 8u << 20;
    }
    return clamp(bytes / c->slot_bytes, 1, UINT32_MAX);
}

xs_limits xs_size_limits(const xs_limits_cfg *c)
{
    enum { MOST_LEASES = 256 };
    bool all_fit = c->n_slots >= c->n_experts;
    uint64_t fixed = c->leases_per_worker * c->max_workers;
    xs_limits l = {.speculative_in_flight = speculative_experts(c)};
    MOE_ASSERT(all_fit || c->n_slots > fixed); /* xs_size_slots saw to it */
    if (all_fit) {
        l.in_flight = clamp(c->reader_in_flight, 1, c->n_slots);
        l.lease_capacity = clamp(c->n_slots, 1, MOST_LEASES);
    } else {
        uint64_t room = c->n_slots - (fixed != 0 ? fixed : c->max_workers);
        uint64_t reads = fixed != 0 ? room : c->n_slots / 4;
        l.in_flight = clamp(reads, 1, clamp(room, 1, c->reader_in_flight));
        l.lease_capacity = clamp((c->n_slots - l.in_flight) / c->max_workers, 1, MOST_LEASES);
    }
    if (c->leases_per_worker != 0) {
        l.lease_capacity = (uint32_t)c->leases_per_worker;
    }
    return l;
}

moe_status xs_regions_size(const xs_regions_cfg *cfg, const xs_model *m, uint64_t reusable,
                           uint32_t *out_n_budget, moe_err *err)
{
    uint64_t shm = xs_free_shm();
    uint64_t ram = xs_available_ram();
    xs_sizing s = {.ram_bytes = cfg->ram_bytes,
                   .slot_bytes = m->slot_bytes,
                   .n_experts = m->shape.n_experts_total,
                   .max_workers = cfg->max_workers,
                   .leases_per_worker = cfg->leases_per_worker,
                   .total_ram = xs_total_ram(),
                   .present_bytes = cfg->present_bytes,
                   .available_ram = shm < ram ? shm : ram};
    if (!moe_add_u64(s.available_ram, reusable, &s.available_ram)) {
        s.available_ram = UINT64_MAX;
    }
    return xs_size_slots(&s, out_n_budget, err);
}

/* ---- adopting ---- */

static moe_status open_existing(xs_regions *r, moe_err *err)
{
    char name[MOE_SHM_NAME_BYTES];
    region_name(r->prefix, "board", name);
    moe_status st = moe_shm_open(name, true, &r->board, err);
    if (st != MOE_OK) {
        return st;
    }
    region_name(r->prefix, "slots", name);
    return moe_shm_open(name, true, &r->slots, err);
}

static xs_board_geometry geometry_of(const xs_model *m, uint32_t n_slots)
{
    xs_board_geometry g = {
        .n_experts = m->shape.n_experts_total, .n_slots = n_slots, .slot_bytes = m->slot_bytes};
    memcpy(g.store_uuid, m->uuid, sizeof g.store_uuid);
    return g;
}

static moe_status check_existing(const xs_regions *r, const xs_model *m, moe_err *err)
{
    const xs_board_geometry g = geometry_of(m, r->n_slots);
    moe_status st = xs_board_check(r->board.base, r->board.bytes, &g, err);
    if (st == MOE_OK && r->slots.bytes != m->slot_bytes * r->n_slots) {
        st = MOE_FAIL(err, MOE_ERR_FORMAT, "slots of %llu bytes, %llu expected",
                      (unsigned long long)r->slots.bytes,
                      (unsigned long long)(m->slot_bytes * r->n_slots));
    }
    return st;
}

/* What cannot be looked at counts as alive. */
static bool worker_lives(const char *prefix, uint32_t worker_id)
{
    char name[MOE_SHM_NAME_BYTES];
    moe_shm_region table = MOE_SHM_REGION_NONE;
    xs_lease_region_name(prefix, worker_id, name);
    moe_status st = moe_shm_open(name, true, &table, NULL);
    bool lives = st == MOE_OK ? xs_lease_table_is_locked(&table) : st != MOE_ERR_NOT_FOUND;
    moe_shm_close(&table);
    return lives;
}

static bool has_living_worker(const xs_regions *r)
{
    const moe_board_header *h = r->board.base;
    for (uint32_t p = 0; p < MOE_BOARD_MAX_WORKERS; p++) {
        uint32_t id = atomic_load_explicit(&h->registry[p].worker_id, memory_order_acquire);
        if (id != 0 && worker_lives(r->prefix, id)) {
            return true;
        }
    }
    return false;
}

/* Pages that a smaller budget has no use for, and those of an unfinished piece, are given back. */
static moe_status fit_to_budget(xs_regions *r, const xs_model *m, moe_err *err)
{
    const moe_board_header *h = r->board.base;
    uint32_t n_made = atomic_load_explicit(&h->n_made, memory_order_acquire);
    if (n_made > r->n_budget && has_living_worker(r)) {
        r->n_over_budget = n_made - r->n_budget;
        r->n_budget = n_made;
    } else if (n_made > r->n_budget) {
        xs_board_shrink(r->board.base, r->n_budget);
        n_made = r->n_budget;
    }
    return moe_shm_release(&r->slots, n_made * m->slot_bytes, r->slots.bytes, err);
}

/* Unlinks what begins with our prefix; how many there were. */
static uint32_t unlink_all(const xs_regions *r)
{
    uint32_t n = 0;
    DIR *dir = opendir("/dev/shm");
    if (dir == NULL) {
        return 0;
    }
    for (const struct dirent *e = readdir(dir); e != NULL; e = readdir(dir)) {
        char name[MOE_SHM_NAME_BYTES];
        size_t prefix_len = strlen(r->prefix);
        int len = snprintf(name, sizeof name, "/%s", e->d_name);
        if (len < (int)sizeof name && strncmp(name, r->prefix, prefix_len) == 0 &&
            name[prefix_len] == '-') {
            moe_shm_unlink(name);
            n++;
        }
    }
    closedir(dir);
    return n;
}

void xs_regions_remove(xs_regions *r)
{
    char board[MOE_SHM_NAME_BYTES];
    if (r->board.base != NULL && r->board.bytes >= MOE_BOARD_WORDS_OFF) {
        xs_board_supersede(r->board.base);
    }
    region_name(r->prefix, "board", board);
    moe_shm_unlink(board); /* first: without it nobody looks for the others */
    uint32_t n = 0;
    do { /* again: reading a directory while it changes may skip names */
        n = unlink_all(r);
    } while (n > 0);
}

void xs_regions_close(xs_regions *r)
{
    moe_shm_close(&r->slots);
    moe_shm_close(&r->dense);
    moe_shm_close(&r->board);
}

/* ---- creating ---- */

/* The slots' pages come later: slot_memory.h. */
static moe_status create_board_and_slots(xs_regions *r, const xs_model *m, moe_err *err)
{
    char name[MOE_SHM_NAME_BYTES];
    region_name(r->prefix, "slots", name);
    moe_status st = moe_shm_reserve(name, m->slot_bytes * r->n_slots, m->slot_bytes * r->n_budget,
                                    r->mode, &r->slots, err);
    if (st != MOE_OK) {
        return st;
    }
    region_name(r->prefix, "board", name);
    st = moe_shm_create(name, moe_board_bytes(m->shape.n_experts_total), r->mode, &r->board, err);
    if (st != MOE_OK) {
        return st;
    }
    const xs_board_geometry g = geometry_of(m, r->n_slots);
    xs_board_format(r->board.base, &g);
    return MOE_OK;
}

static moe_status open_dense(xs_regions *r, const xs_model *m, moe_err *err)
{
    char name[MOE_SHM_NAME_BYTES];
    uint64_t bytes = 0;
    moe_status st = xs_dense_bytes(m, &bytes, err);
    if (st != MOE_OK) {
        return st;
    }
    region_name(r->prefix, "dense", name);
    if (moe_shm_open(name, true, &r->dense, NULL) == MOE_OK &&
        xs_dense_matches(m, r->dense.base, r->dense.bytes, bytes)) {
        return MOE_OK;
    }
    moe_shm_close(&r->dense);
    moe_shm_unlink(name);
    st = moe_shm_create(name, bytes, r->mode, &r->dense, err);
    return st == MOE_OK ? xs_dense_load(m, r->dense.base, bytes, err) : st;
}

/* Looks at what an earlier store left; sizes the slots either way. */
static moe_status adopt(const xs_regions_cfg *cfg, const xs_model *m, xs_regions *r, moe_err *err)
{
    moe_err why = {0};
    moe_status found = open_existing(r, &why);
    moe_status st = xs_regions_size(cfg, m, moe_shm_allocated(&r->slots), &r->n_budget, err);
    if (st != MOE_OK) {
        return st;
    }
    r->n_slots =
        m->shape.n_experts_total < MOE_MAX_SLOTS ? m->shape.n_experts_total : MOE_MAX_SLOTS;
    if (found == MOE_OK) {
        found = check_existing(r, m, &why);
    }
    if (found == MOE_OK) {
        found = fit_to_budget(r, m, &why);
    }
    r->adopted = found == MOE_OK;
    if (r->adopted) {
        return MOE_OK;
    }
    if (r->board.base != NULL || r->slots.base != NULL) {
        snprintf(r->refused, sizeof r->refused, "%s", why.text);
    }
    xs_regions_remove(r); /* half-made ones, too */
    xs_regions_close(r);
    return MOE_OK;
}

moe_status xs_regions_open(const xs_regions_cfg *cfg, const xs_model *m, xs_regions *out,
                           moe_err *err)
{
    xs_regions r = XS_REGIONS_NONE;
    r.mode = cfg->mode;
    xs_region_prefix(cfg->endpoint_path, r.prefix);
    moe_status st = adopt(cfg, m, &r, err);
    if (st != MOE_OK) {
        xs_regions_close(&r); /* what is there stays for a start with better settings */
        return st;
    }
    if (!r.adopted) {
        st = create_board_and_slots(&r, m, err);
    }
    if (st == MOE_OK) {
        st = open_dense(&r, m, err);
    }
    if (st != MOE_OK) {
        if (!r.adopted) {
            xs_regions_remove(&r);
        }
        xs_regions_close(&r);
        return st;
    }
    *out = r;
    return MOE_OK;
}
