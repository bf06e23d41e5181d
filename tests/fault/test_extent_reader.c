/* The extent reader against a small real store: every engine, then everything that can go wrong.
 * Faults come in where the reader leaves our code: pread, liburing's calls, calloc. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checksum.h"
#include "common/clock.h"
#include "common/file.h"
#include "expert-store/catalog/catalog.h"
#include "expert-store/catalog/synthetic.h"
#include "expert-store/reader/extent_reader.h"
#include "tests/support/small_store.h"

enum { N_SLOTS = 4, WAIT_MS = 20000, KIB = 1024 };

/* ---- faults ---- */

/* Counts down at every ended read; at 0 that read's result becomes fault_result. Set while no read
 * is in flight. */
static pthread_mutex_t fault_mu = PTHREAD_MUTEX_INITIALIZER;
static int reads_until_fault = -1;   /* guarded by fault_mu; -1: never */
static int64_t fault_result;         /* -errno, or bytes if fewer than it moved */
static bool fault_stays;             /* all reads from there on */
static int calls_until_failure = -1; /* of calloc and malloc; -1: never */
static _Atomic int n_allocations;
static int queue_init_result;   /* of io_uring_queue_init_params when not 0 ... */
static bool queue_init_any;     /* ... for any flags, or only with some */
static int register_result;     /* of io_uring_register_buffers_update_tag when not 0 */
static int submits_until_fault; /* io_uring_submit answers submit_result when it reaches 0 */
static int submit_result;

static void no_faults(void)
{
    reads_until_fault = -1;
    fault_stays = false;
    calls_until_failure = -1;
    queue_init_result = 0;
    queue_init_any = false;
    register_result = 0;
    submits_until_fault = -1;
}

static int64_t with_fault(int64_t result) /* on the pread threads, too */
{
    pthread_mutex_lock(&fault_mu);
    bool now = reads_until_fault == 0 || (reads_until_fault > 0 && --reads_until_fault == 0);
    int64_t told = now && (result < 0 || fault_result < result) ? fault_result : result;
    if (now && !fault_stays) {
        reads_until_fault = -1;
    }
    pthread_mutex_unlock(&fault_mu);
    return told;
}

ssize_t __real_pread(int fd, void *buf, size_t bytes, off_t off);
ssize_t __wrap_pread(int fd, void *buf, size_t bytes, off_t off);
ssize_t __wrap_pread(int fd, void *buf, size_t bytes, off_t off)
{
    ssize_t got = __real_pread(fd, buf, bytes, off);
    ssize_t told = (ssize_t)with_fault(got >= 0 ? got : -errno);
    if (told < 0) {
        errno = (int)-told;
        return -1;
    }
    return told;
}

unsigned __real_io_uring_peek_batch_cqe(struct io_uring *ring, struct io_uring_cqe **cqes,
                                        unsigned count);
unsigned __wrap_io_uring_peek_batch_cqe(struct io_uring *ring, struct io_uring_cqe **cqes,
                                        unsigned count);
unsigned __wrap_io_uring_peek_batch_cqe(struct io_uring *ring, struct io_uring_cqe **cqes,
                                        unsigned count)
{
    unsigned n = __real_io_uring_peek_batch_cqe(ring, cqes, count);
    for (unsigned i = 0; i < n; i++) {
        cqes[i]->res = (int)with_fault(cqes[i]->res);
    }
    return n;
}

int __real_io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
                                      struct io_uring_params *p);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
                                      struct io_uring_params *p);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
                                      struct io_uring_params *p)
{
    if (queue_init_result != 0 && (queue_init_any || p->flags != 0)) {
        return queue_init_result;
    }
    return __real_io_uring_queue_init_params(entries, ring, p);
}

int __real_io_uring_register_buffers_update_tag(struct io_uring *ring, unsigned off,
                                                const struct iovec *v, const uint64_t *tags,
                                                unsigned n);
int __wrap_io_uring_register_buffers_update_tag(struct io_uring *ring, unsigned off,
                                                const struct iovec *v, const uint64_t *tags,
                                                unsigned n);
int __wrap_io_uring_register_buffers_update_tag(struct io_uring *ring, unsigned off,
                                                const struct iovec *v, const uint64_t *tags,
                                                unsigned n)
{
    return register_result != 0
               ? register_result
               : __real_io_uring_register_buffers_update_tag(ring, off, v, tags, n);
}

int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring)
{
    if (submits_until_fault > 0 && --submits_until_fault == 0) {
        return submit_result;
    }
    return __real_io_uring_submit(ring);
}

static bool allocation_fails(void)
{
    n_allocations++;
    return calls_until_failure > 0 && --calls_until_failure == 0;
}

void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes)
{
    return allocation_fails() ? NULL : __real_calloc(n, bytes);
}

void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes)
{
    return allocation_fails() ? NULL : __real_malloc(bytes);
}

/* ---- fixture ---- */

typedef struct fixture {
    char dir[SMALL_STORE_PATH_BYTES];
    moe_model_shape shape;
    xs_catalog *catalog;
    uint64_t expert_bytes, slot_bytes;
    char *slots;    /* [N_SLOTS][slot_bytes] */
    char *expected; /* [SMALL_STORE_EXPERTS][expert_bytes] from the generator */
    bool io_uring;  /* works here */
    bool direct;    /* O_DIRECT works here */
} fixture;

static fixture fx;

static xs_reader_cfg base_cfg(xs_engine engine)
{
    return (xs_reader_cfg){.catalog = fx.catalog,
                           .slots = fx.slots,
                           .slot_bytes = fx.slot_bytes,
                           .n_slots = N_SLOTS,
                           .n_made = N_SLOTS,
                           .engine = engine,
                           .direct = true,
                           .depth = 3,
                           .split_bytes = 256 * KIB,
                           .n_verify_threads = 2,
                           .lock_fd = -1};
}

static xs_reader *make_reader(const xs_reader_cfg *cfg)
{
    xs_reader *r = NULL;
    moe_err err = {0};
    moe_status st = xs_reader_create(cfg, &r, &err);
    if (st != MOE_OK) {
        fail_msg("create: %s: %s", moe_status_name(st), err.text);
    }
    return r;
}

static xs_reader *make_engine(xs_engine engine)
{
    xs_reader_cfg cfg = base_cfg(engine);
    return make_reader(&cfg);
}

/* Blocks in poll until the eventfd is readable: a lost wake-up fails here. */
static void wait_readable(const xs_reader *r)
{
    struct pollfd watched = {.fd = xs_reader_fd(r), .events = POLLIN};
    int rc = 0;
    do {
        rc = poll(&watched, 1, WAIT_MS);
    } while (rc < 0 && errno == EINTR);
    assert_int_equal(1, rc);
}

static xs_completion read_one(xs_reader *r, uint32_t expert, uint32_t slot)
{
    xs_completion done = {0};
    assert_int_equal(MOE_OK, xs_reader_submit(r, expert, slot, 77, NULL));
    while (xs_reader_harvest(r, &done, 1) == 0) {
        wait_readable(r);
    }
    assert_int_equal(expert, done.expert);
    assert_int_equal(slot, done.slot);
    assert_int_equal(77, done.tag);
    return done;
}

static void assert_slot_holds(uint32_t slot, uint32_t expert)
{
    assert_memory_equal(fx.slots + slot * fx.slot_bytes, fx.expected + expert * fx.expert_bytes,
                        fx.expert_bytes);
}

/* Reads `n` experts (0, 1, ... round and round) with as many in flight as the reader takes. */
static void read_many(xs_reader *r, uint32_t n)
{
    bool busy[N_SLOTS] = {false};
    uint32_t next = 0;
    uint32_t n_done = 0;
    memset(fx.slots, 0xee, N_SLOTS * fx.slot_bytes);
    while (n_done < n) {
        for (uint32_t slot = 0; slot < N_SLOTS && next < n; slot++) {
            if (!busy[slot]) {
                moe_status st =
                    xs_reader_submit(r, next % SMALL_STORE_EXPERTS, slot, 1000 + next, NULL);
                if (st == MOE_ERR_AGAIN) {
                    break;
                }
                assert_int_equal(MOE_OK, st);
                busy[slot] = true;
                next++;
            }
        }
        wait_readable(r);
        xs_completion done[N_SLOTS];
        uint32_t n_harvested = xs_reader_harvest(r, done, N_SLOTS);
        for (uint32_t i = 0; i < n_harvested; i++) {
            if (done[i].status != MOE_OK) {
                fail_msg("%s", done[i].text);
            }
            assert_string_equal("", done[i].text);
            assert_int_equal(done[i].expert, (done[i].tag - 1000) % SMALL_STORE_EXPERTS);
            assert_true(busy[done[i].slot]);
            assert_true(done[i].queued_ns >= 0 && done[i].read_ns >= 0 && done[i].verify_ns >= 0);
            assert_slot_holds(done[i].slot, done[i].expert);
            memset(fx.slots + done[i].slot * fx.slot_bytes, 0xee, fx.slot_bytes);
            busy[done[i].slot] = false;
            n_done++;
        }
    }
    assert_int_equal(0, xs_reader_get_counters(r)->experts_in_flight);
    assert_int_equal(0, xs_reader_get_counters(r)->reads_in_flight);
}

static uint32_t count_entries(const char *path)
{
    uint32_t n = 0;
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir) != NULL) {
        n++;
    }
    closedir(dir);
    return n;
}

/* A joined thread stays listed for a moment. */
static uint32_t count_threads_expecting(uint32_t expected)
{
    uint32_t n = 0;
    for (int tries = 0; tries < 200; tries++) {
        n = count_entries("/proc/self/task");
        if (n == expected) {
            break;
        }
        moe_sleep_ns(5 * MOE_NS_PER_MS);
    }
    return n;
}

/* The engines that run here: pread always, io_uring where it is allowed. */
static uint32_t engines_here(xs_engine out[2])
{
    uint32_t n = 0;
    out[n++] = XS_ENGINE_PREAD;
    if (fx.io_uring) {
        out[n++] = XS_ENGINE_IO_URING;
    }
    return n;
}

/* ---- reading ---- */

static void every_engine_reads_every_expert_right(void **state)
{
    (void)state;
    const uint64_t splits[] = {64 * KIB, 256 * KIB, 1024 * KIB, 300 * 4 * KIB, 4096 * KIB};
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t e = 0; e < n_engines; e++) {
        for (uint32_t s = 0; s < sizeof splits / sizeof splits[0]; s++) {
            for (int direct = 0; direct < 2; direct++) {
                xs_reader_cfg cfg = base_cfg(engines[e]);
                cfg.split_bytes = splits[s];
                cfg.direct = direct != 0;
                xs_reader *r = make_reader(&cfg);
                read_many(r, 2 * SMALL_STORE_EXPERTS);
                const xs_reader_counters *c = xs_reader_get_counters(r);
                uint64_t bytes = 2 * SMALL_STORE_EXPERTS * fx.slot_bytes;
                assert_int_equal(bytes, c->read_bytes);
                assert_int_equal(bytes, xs_reader_get_report(r)->direct ? c->direct_bytes
                                                                        : c->buffered_bytes);
                uint64_t per_expert = (fx.slot_bytes + splits[s] - 1) / splits[s];
                assert_int_equal(2 * SMALL_STORE_EXPERTS * per_expert, c->reads);
                assert_int_equal(0, c->failed + c->corrupt);
                assert_int_equal(2 * SMALL_STORE_EXPERTS, c->read_latency.count);
                assert_int_equal(engines[e], xs_reader_get_report(r)->engine);
                assert_string_equal("", xs_reader_get_report(r)->note);
                xs_reader_destroy(r);
            }
        }
    }
}

static void depth_one_is_enough_and_wakes_are_never_lost(void **state)
{
    (void)state;
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t e = 0; e < n_engines; e++) {
        for (uint32_t depth = 1; depth <= 64; depth *= 8) {
            xs_reader_cfg cfg = base_cfg(engines[e]);
            cfg.depth = depth;
            cfg.split_bytes = 64 * KIB;
            xs_reader *r = make_reader(&cfg);
            read_many(r, 8 * SMALL_STORE_EXPERTS);
            xs_reader_destroy(r);
        }
    }
}

static void the_synthetic_engine_makes_what_the_generator_makes(void **state)
{
    (void)state;
    xs_reader_cfg cfg = base_cfg(XS_ENGINE_SYNTHETIC);
    cfg.catalog = NULL;
    cfg.shape = &fx.shape;
    cfg.synthetic_seed = SMALL_STORE_SEED;
    cfg.synthetic_dtype = SMALL_STORE_DTYPE;
    xs_reader *r = make_reader(&cfg);
    assert_int_equal(XS_ENGINE_SYNTHETIC, xs_reader_get_report(r)->engine);
    read_many(r, SMALL_STORE_EXPERTS);
    assert_int_equal(0, xs_reader_get_counters(r)->direct_bytes);
    assert_int_equal(0, xs_reader_get_counters(r)->buffered_bytes);
    xs_reader_destroy(r);
}

static void one_expert_keeps_several_reads_in_flight(void **state)
{
    (void)state;
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t e = 0; e < n_engines; e++) {
        xs_reader_cfg cfg = base_cfg(engines[e]);
        cfg.depth = 8;
        xs_reader *r = make_reader(&cfg);
        assert_int_equal(MOE_OK, xs_reader_submit(r, 0, 0, 0, NULL));
        assert_int_equal(8, xs_reader_get_counters(r)->reads_in_flight);
        xs_reader_destroy(r);
    }
}

/* Harvests until nothing is in flight; every slot holds the expert of its own number. */
static void drain(xs_reader *r)
{
    while (xs_reader_get_counters(r)->experts_in_flight > 0) {
        xs_completion done = {0};
        wait_readable(r);
        if (xs_reader_harvest(r, &done, 1) == 1) {
            assert_string_equal("", done.text);
            assert_slot_holds(done.slot, done.slot);
        }
    }
}

static void speculation_leaves_the_drive_to_what_is_needed(void **state)
{
    (void)state;
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t e = 0; e < n_engines; e++) {
        xs_reader_cfg cfg = base_cfg(engines[e]);
        cfg.depth = 16; /* an eighth: 2 */
        cfg.split_bytes = 64 * KIB;
        assert_true(fx.slot_bytes / cfg.split_bytes >= 16);
        xs_reader *r = make_reader(&cfg);
        const xs_reader_counters *c = xs_reader_get_counters(r);
        memset(fx.slots, 0xee, N_SLOTS * fx.slot_bytes);
        assert_int_equal(MOE_OK, xs_reader_submit_speculative(r, 0, 0, 0, NULL));
        assert_int_equal(2, c->reads_in_flight);
        assert_int_equal(MOE_OK, xs_reader_submit(r, 1, 1, 1, NULL));
        assert_int_equal(16, c->reads_in_flight);
        drain(r);
        assert_int_equal(MOE_OK, xs_reader_submit_speculative(r, 2, 2, 2, NULL));
        assert_int_equal(2, c->reads_in_flight); /* those before were counted to the end */
        xs_reader_hurry(r, 2);
        assert_int_equal(16, c->reads_in_flight);
        xs_reader_hurry(r, 2);
        xs_reader_hurry(r, N_SLOTS - 1); /* nothing on its way there */
        drain(r);
        assert_int_equal(MOE_OK, xs_reader_submit_speculative(r, 0, 0, 0, NULL));
        assert_int_equal(2, c->reads_in_flight); /* so were the hurried ones */
        xs_reader_destroy(r);
    }
}

static void a_full_reader_says_again_and_a_small_harvest_stays_readable(void **state)
{
    (void)state;
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t e = 0; e < n_engines; e++) {
        xs_reader *r = make_engine(engines[e]);
        uint32_t max = xs_reader_max_in_flight(r);
        assert_in_range(max, 2, N_SLOTS - 1);
        for (uint32_t i = 0; i < max; i++) {
            assert_int_equal(MOE_OK, xs_reader_submit(r, i, i, i, NULL));
        }
        assert_int_equal(MOE_ERR_AGAIN, xs_reader_submit(r, max, max, 0, NULL));
        while (xs_reader_get_counters(r)->read_latency.count < max) { /* all are done ... */
            wait_readable(r);
            assert_int_equal(0, xs_reader_harvest(r, NULL, 0));
        }
        for (uint32_t i = 0; i < max; i++) { /* ... and nothing but the rest itself can wake us */
            xs_completion done = {0};
            wait_readable(r);
            assert_int_equal(1, xs_reader_harvest(r, &done, 1));
            assert_int_equal(MOE_OK, done.status);
        }
        assert_int_equal(0, xs_reader_harvest(r, NULL, 0));
        xs_reader_destroy(r);
    }
}

/* Pages of a segment in the page cache, per cent; clean ones can be dropped before. */
static uint32_t cached_percent(uint32_t segment, bool drop_first)
{
    char path[SMALL_STORE_PATH_BYTES + 64];
    xs_catalog_segment_path(fx.catalog, segment, path, sizeof path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat meta;
    assert_int_equal(0, fstat(fd, &meta));
    if (drop_first) {
        assert_int_equal(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
    }
    size_t bytes = (size_t)meta.st_size;
    void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    assert_true(map != MAP_FAILED);
    size_t n_pages = (bytes + 4095) / 4096;
    unsigned char *resident = test_malloc(n_pages);
    assert_int_equal(0, mincore(map, bytes, resident));
    size_t n_resident = 0;
    for (size_t i = 0; i < n_pages; i++) {
        n_resident += resident[i] & 1u;
    }
    test_free(resident);
    munmap(map, bytes);
    close(fd);
    return (uint32_t)((100 * n_resident + n_pages - 1) / n_pages); /* 0 means none */
}

static void direct_reads_leave_nothing_in_the_page_cache(void **state)
{
    (void)state;
    if (!fx.direct) {
        print_message("the file system here has no O_DIRECT: not checked\n");
        return;
    }
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t e = 0; e < n_engines; e++) {
        for (int direct = 0; direct < 2; direct++) {
            assert_int_equal(0, cached_percent(0, true));
            xs_reader_cfg cfg = base_cfg(engines[e]);
            cfg.direct = direct != 0;
            xs_reader *r = make_reader(&cfg);
            assert_int_equal(direct, xs_reader_get_report(r)->direct);
            read_many(r, SMALL_STORE_EXPERTS);
            xs_reader_destroy(r);
            if (direct) {
                assert_int_equal(0, cached_percent(0, false));
            } else { /* so that the check can see something */
                assert_in_range(cached_percent(0, false), 90, 100);
            }
        }
    }
}

/* ---- failures of the store ---- */

static void overwrite(const char *path, off_t off, const void *data, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(bytes, pwrite(fd, data, bytes, off));
    assert_int_equal(0, fsync(fd));
    close(fd);
}

static void one_wrong_byte_is_told_with_expert_segment_and_offset(void **state)
{
    (void)state;
    const xs_extent *x = &xs_catalog_expert(fx.catalog, 5)->extent;
    const uint64_t places[] = {0, MOE_CHUNK_BYTES + 17, x->payload_bytes - 1};
    char path[SMALL_STORE_PATH_BYTES + 64];
    xs_catalog_segment_path(fx.catalog, x->segment, path, sizeof path);
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t e = 0; e < n_engines; e++) {
        for (uint32_t p = 0; p < sizeof places / sizeof places[0]; p++) {
            const char *right = fx.expected + 5 * fx.expert_bytes + places[p];
            char wrong = (char)(*right ^ 0x10);
            overwrite(path, (off_t)(x->off + places[p]), &wrong, 1);
            xs_reader *r = make_engine(engines[e]);
            xs_completion done = read_one(r, 5, 0);
            assert_int_equal(MOE_ERR_CORRUPT, done.status);
            assert_non_null(strstr(done.text, "expert 5 (dec0/1)"));
            char place[64];
            snprintf(place, sizeof place, "segment %u, offset %llu", x->segment,
                     (unsigned long long)(x->off + places[p] / MOE_CHUNK_BYTES * MOE_CHUNK_BYTES));
            assert_non_null(strstr(done.text, place));
            assert_int_equal(1, xs_reader_get_counters(r)->corrupt);
            assert_int_equal(0, xs_reader_get_counters(r)->failed);
            /* The others are well, and so is the same slot. */
            assert_int_equal(MOE_OK, read_one(r, 4, 0).status);
            assert_slot_holds(0, 4);
            overwrite(path, (off_t)(x->off + places[p]), right, 1);
            assert_int_equal(MOE_OK, read_one(r, 5, 0).status);
            xs_reader_destroy(r);
        }
    }
}

static void a_truncated_segment_fails_its_experts_only(void **state)
{
    (void)state;
    char dir[SMALL_STORE_PATH_BYTES];
    small_store_create(dir);
    xs_catalog *catalog = NULL;
    assert_int_equal(MOE_OK, xs_catalog_open(dir, &catalog, NULL));
    uint32_t last = SMALL_STORE_EXPERTS - 1;
    const xs_extent *x = &xs_catalog_expert(catalog, last)->extent;
    char path[SMALL_STORE_PATH_BYTES + 64];
    xs_catalog_segment_path(catalog, x->segment, path, sizeof path);
    const uint64_t cuts[] = {x->off + x->payload_bytes - 1000, x->off + 512 * KIB + 100, x->off};
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t c = 0; c < sizeof cuts / sizeof cuts[0]; c++) {
        assert_int_equal(0, truncate(path, (off_t)cuts[c]));
        for (uint32_t e = 0; e < n_engines; e++) {
            for (int direct = 0; direct < 2; direct++) {
                xs_reader_cfg cfg = base_cfg(engines[e]);
                cfg.catalog = catalog;
                cfg.direct = direct != 0;
                xs_reader *r = make_reader(&cfg);
                xs_completion done = read_one(r, last, 1);
                assert_int_equal(MOE_ERR_IO, done.status);
                assert_non_null(strstr(done.text, "expert 7 (dec0/3)"));
                assert_non_null(strstr(done.text, "unexpected end of file"));
                assert_int_equal(1, xs_reader_get_counters(r)->failed);
                assert_int_equal(MOE_OK, read_one(r, last - 2, 1).status);
                assert_slot_holds(1, last - 2);
                xs_reader_destroy(r);
            }
        }
    }
    xs_catalog_close(catalog);
    small_store_remove(dir);
}

static void a_missing_segment_is_named(void **state)
{
    (void)state;
    char dir[SMALL_STORE_PATH_BYTES];
    small_store_create(dir);
    xs_catalog *catalog = NULL;
    assert_int_equal(MOE_OK, xs_catalog_open(dir, &catalog, NULL));
    char path[SMALL_STORE_PATH_BYTES + 64];
    xs_catalog_segment_path(catalog, 1, path, sizeof path);
    assert_int_equal(0, unlink(path));
    xs_reader_cfg cfg = base_cfg(XS_ENGINE_AUTO);
    cfg.catalog = catalog;
    xs_reader *r = NULL;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_NOT_FOUND, xs_reader_create(&cfg, &r, &err));
    assert_null(r);
    assert_non_null(strstr(err.text, path));
    xs_catalog_close(catalog);
    small_store_remove(dir);
}

/* ---- failures of reads ---- */

static void the_nth_read_failing_fails_one_expert_and_frees_its_slot(void **state)
{
    (void)state;
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    uint32_t n_reads = (uint32_t)((fx.slot_bytes + 256 * KIB - 1) / (256 * KIB));
    for (uint32_t e = 0; e < n_engines; e++) {
        for (uint32_t n = 1; n <= n_reads + 1; n++) {
            xs_reader *r = make_engine(engines[e]);
            fault_result = -EIO;
            reads_until_fault = (int)n;
            xs_completion done = read_one(r, 6, 2);
            bool injected = reads_until_fault < 0;
            no_faults();
            assert_int_equal(n <= n_reads, injected);
            assert_int_equal(injected ? MOE_ERR_IO : MOE_OK, done.status);
            if (injected) {
                assert_non_null(strstr(done.text, "expert 6 (dec0/2)"));
                assert_non_null(strstr(done.text, "Input/output error"));
            }
            assert_int_equal(0, xs_reader_get_counters(r)->reads_in_flight);
            assert_int_equal(MOE_OK, read_one(r, 3, 2).status); /* nothing else lands there */
            moe_sleep_ns(n == 1 ? 20 * MOE_NS_PER_MS : 0);
            assert_slot_holds(2, 3);
            xs_reader_destroy(r);
        }
    }
}

static void short_and_interrupted_reads_go_on(void **state)
{
    (void)state;
    const int64_t results[] = {-EINTR, -EAGAIN, 4096, 5000, 200 * KIB + 512};
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t e = 0; e < n_engines; e++) {
        for (uint32_t i = 0; i < sizeof results / sizeof results[0]; i++) {
            for (int direct = 0; direct < 2; direct++) {
                for (int n = 1; n <= 3; n++) {
                    xs_reader_cfg cfg = base_cfg(engines[e]);
                    cfg.direct = direct != 0;
                    xs_reader *r = make_reader(&cfg);
                    fault_result = results[i];
                    reads_until_fault = n;
                    memset(fx.slots, 0xee, N_SLOTS * fx.slot_bytes);
                    xs_completion done = read_one(r, 6, 2);
                    assert_int_equal(-1, reads_until_fault);
                    no_faults();
                    assert_int_equal(MOE_OK, done.status);
                    assert_slot_holds(2, 6);
                    xs_reader_destroy(r);
                }
            }
        }
    }
}

static void reads_always_cut_short_still_arrive(void **state)
{
    (void)state;
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t e = 0; e < n_engines; e++) {
        xs_reader *r = make_engine(engines[e]);
        fault_result = 96 * KIB;
        fault_stays = true;
        reads_until_fault = 1;
        read_many(r, SMALL_STORE_EXPERTS);
        no_faults();
        xs_reader_destroy(r);
    }
}

static void endless_interruption_is_an_error_in_the_end(void **state)
{
    (void)state;
    const int64_t results[] = {-EINTR, -EAGAIN, 0};
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t e = 0; e < n_engines; e++) {
        for (uint32_t i = 0; i < sizeof results / sizeof results[0]; i++) {
            xs_reader *r = make_engine(engines[e]);
            fault_result = results[i];
            fault_stays = true;
            reads_until_fault = 1;
            assert_int_equal(MOE_ERR_IO, read_one(r, 1, 0).status);
            no_faults();
            assert_int_equal(MOE_OK, read_one(r, 1, 0).status);
            xs_reader_destroy(r);
        }
    }
}

static void failures_in_one_expert_leave_the_others_alone(void **state)
{
    (void)state;
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t e = 0; e < n_engines; e++) {
        xs_reader_cfg cfg = base_cfg(engines[e]);
        cfg.depth = 30; /* three experts' reads at the drive at once */
        cfg.split_bytes = 256 * KIB;
        xs_reader *r = make_reader(&cfg);
        fault_result = -EIO;
        reads_until_fault = 5;
        for (uint32_t i = 0; i < 3; i++) {
            assert_int_equal(MOE_OK, xs_reader_submit(r, i, i, i, NULL));
        }
        uint32_t n_failed = 0;
        for (uint32_t n_done = 0; n_done < 3;) {
            xs_completion done[4];
            wait_readable(r);
            uint32_t n = xs_reader_harvest(r, done, 4);
            for (uint32_t i = 0; i < n; i++) {
                n_failed += done[i].status != MOE_OK;
                if (done[i].status == MOE_OK) {
                    assert_slot_holds(done[i].slot, done[i].expert);
                }
            }
            n_done += n;
        }
        no_faults();
        assert_int_equal(1, n_failed);
        xs_reader_destroy(r);
    }
}

/* ---- what the machine refuses ---- */

static void io_uring_forbidden_means_pread_and_a_note(void **state)
{
    (void)state;
    queue_init_result = -EPERM;
    queue_init_any = true;
    xs_reader *r = make_engine(XS_ENGINE_AUTO);
    assert_int_equal(XS_ENGINE_PREAD, xs_reader_get_report(r)->engine);
    assert_non_null(strstr(xs_reader_get_report(r)->note, "io_uring"));
    assert_non_null(strstr(xs_reader_get_report(r)->note, "pread"));
    read_many(r, SMALL_STORE_EXPERTS);
    xs_reader_destroy(r);

    xs_reader_cfg cfg = base_cfg(XS_ENGINE_IO_URING); /* asked for by name: an error */
    moe_err err = {0};
    r = NULL;
    assert_int_equal(MOE_ERR_UNSUPPORTED, xs_reader_create(&cfg, &r, &err));
    assert_null(r);
    assert_int_equal(EPERM, err.native);
    no_faults();
}

static void an_older_ring_without_flags_works_silently(void **state)
{
    (void)state;
    if (!fx.io_uring) {
        return;
    }
    queue_init_result = -EINVAL;
    xs_reader *r = make_engine(XS_ENGINE_AUTO);
    no_faults();
    assert_int_equal(XS_ENGINE_IO_URING, xs_reader_get_report(r)->engine);
    assert_string_equal("", xs_reader_get_report(r)->note);
    read_many(r, 4 * SMALL_STORE_EXPERTS);
    xs_reader_destroy(r);
}

static void unregistered_slots_work_with_a_note(void **state)
{
    (void)state;
    if (!fx.io_uring) {
        return;
    }
    xs_reader *r = make_engine(XS_ENGINE_IO_URING);
    assert_true(xs_reader_get_report(r)->registered_buffers);
    xs_reader_destroy(r);
    register_result = -ENOMEM;
    r = make_engine(XS_ENGINE_IO_URING);
    no_faults();
    assert_false(xs_reader_get_report(r)->registered_buffers);
    assert_non_null(strstr(xs_reader_get_report(r)->note, "LimitMEMLOCK"));
    read_many(r, 2 * SMALL_STORE_EXPERTS);
    xs_reader_destroy(r);
}

static void a_file_system_without_direct_reads_means_buffered_and_a_note(void **state)
{
    (void)state;
    (void)cached_percent(0, true);
    fault_result = -EINVAL;
    reads_until_fault = 2; /* the probe of the second segment */
    xs_reader *r = make_engine(XS_ENGINE_PREAD);
    no_faults();
    assert_false(xs_reader_get_report(r)->direct);
    assert_non_null(strstr(xs_reader_get_report(r)->note, "000001.seg does not take O_DIRECT"));
    read_many(r, SMALL_STORE_EXPERTS);
    assert_int_equal(0, xs_reader_get_counters(r)->direct_bytes);
    assert_in_range(cached_percent(0, false), 90, 100); /* the segments before it, too */
    xs_reader_destroy(r);
}

static void a_submit_refused_for_now_is_tried_again(void **state)
{
    (void)state;
    if (!fx.io_uring) {
        return;
    }
    const int results[] = {-EAGAIN, -EBUSY, -EINTR};
    for (int i = 0; i < 3; i++) {
        xs_reader *r = make_engine(XS_ENGINE_IO_URING);
        submit_result = results[i];
        submits_until_fault = 1;
        assert_int_equal(MOE_OK, xs_reader_submit(r, 0, 0, 0, NULL));
        wait_readable(r); /* -EAGAIN: nothing is in flight that would wake the loop */
        xs_completion done = {0};
        while (xs_reader_harvest(r, &done, 1) == 0) {
            wait_readable(r);
        }
        assert_int_equal(MOE_OK, done.status);
        assert_slot_holds(0, 0);
        no_faults();
        xs_reader_destroy(r);
    }
}

static void a_submit_refused_for_good_fails_every_expert(void **state)
{
    (void)state;
    if (!fx.io_uring) {
        return;
    }
    xs_reader *r = make_engine(XS_ENGINE_IO_URING);
    submit_result = -EBADF;
    submits_until_fault = 2;
    assert_int_equal(MOE_OK, xs_reader_submit(r, 0, 0, 0, NULL)); /* in flight, will land */
    xs_completion done = {0};
    for (uint32_t n = 0; n == 0;) {
        wait_readable(r);
        n = xs_reader_harvest(r, &done, 1);
    }
    assert_int_equal(MOE_ERR_IO, done.status);
    no_faults();
    assert_int_equal(MOE_ERR_IO, read_one(r, 1, 1).status);
    xs_reader_destroy(r);
}

/* ---- life and death ---- */

static void destroy_waits_for_what_is_in_flight(void **state)
{
    (void)state;
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t e = 0; e < n_engines; e++) {
        for (int round = 0; round < 20; round++) {
            xs_reader_cfg cfg = base_cfg(engines[e]);
            cfg.depth = 16;
            cfg.split_bytes = 64 * KIB;
            xs_reader *r = make_reader(&cfg);
            for (uint32_t i = 0; i < xs_reader_max_in_flight(r); i++) {
                assert_int_equal(MOE_OK, xs_reader_submit(r, i, i, i, NULL));
            }
            if (round % 2 == 1) { /* some landed, some hashed, none harvested */
                moe_sleep_ns(round * MOE_NS_PER_MS / 4);
                assert_int_equal(0, xs_reader_harvest(r, NULL, 0));
            }
            xs_reader_destroy(r);
            memset(fx.slots, 0xee, N_SLOTS * fx.slot_bytes);
            moe_sleep_ns(5 * MOE_NS_PER_MS);
            for (size_t i = 0; i < N_SLOTS * fx.slot_bytes; i += 512) {
                assert_int_equal(0xee, (unsigned char)fx.slots[i]); /* nothing landed late */
            }
        }
    }
    xs_reader_destroy(NULL);
}

static void the_ring_holds_the_instance_lock_until_destroy(void **state)
{
    (void)state;
    if (!fx.io_uring) {
        return;
    }
    char path[SMALL_STORE_PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/lock", fx.dir);
    int lock_fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    int other_fd = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(0, flock(lock_fd, LOCK_EX | LOCK_NB));
    xs_reader_cfg cfg = base_cfg(XS_ENGINE_IO_URING);
    cfg.lock_fd = lock_fd;
    xs_reader *r = make_reader(&cfg);
    close(lock_fd);
    assert_int_equal(-1, flock(other_fd, LOCK_EX | LOCK_NB));
    read_many(r, SMALL_STORE_EXPERTS);
    assert_int_equal(-1, flock(other_fd, LOCK_EX | LOCK_NB));
    xs_reader_destroy(r);
    assert_int_equal(0, flock(other_fd, LOCK_EX | LOCK_NB)); /* at once, not some time later */
    close(other_fd);
}

static void no_fd_and_no_thread_is_left_behind(void **state)
{
    (void)state;
    uint32_t n_fds = count_entries("/proc/self/fd");
    moe_sleep_ns(20 * MOE_NS_PER_MS); /* threads of the test before have left */
    uint32_t n_threads = count_entries("/proc/self/task");
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t e = 0; e < n_engines; e++) {
        xs_reader *r = make_engine(engines[e]);
        read_many(r, SMALL_STORE_EXPERTS);
        assert_true(count_entries("/proc/self/fd") > n_fds);
        assert_true(count_entries("/proc/self/task") > n_threads);
        xs_reader_destroy(r);
        assert_int_equal(n_fds, count_entries("/proc/self/fd"));
        assert_int_equal(n_threads, count_threads_expecting(n_threads));
    }
}

static void nothing_is_allocated_after_creation(void **state)
{
    (void)state;
    xs_engine engines[2];
    uint32_t n_engines = engines_here(engines);
    for (uint32_t e = 0; e < n_engines; e++) {
        xs_reader *r = make_engine(engines[e]);
        int before = n_allocations;
        read_many(r, 2 * SMALL_STORE_EXPERTS);
        assert_int_equal(before, n_allocations);
        xs_reader_destroy(r);
    }
}

static void create_survives_every_failing_allocation(void **state)
{
    (void)state;
    const xs_engine engines[] = {XS_ENGINE_AUTO, XS_ENGINE_PREAD, XS_ENGINE_IO_URING,
                                 XS_ENGINE_SYNTHETIC};
    uint32_t n_fds = count_entries("/proc/self/fd");
    moe_sleep_ns(20 * MOE_NS_PER_MS); /* threads of the test before have left */
    uint32_t n_threads = count_entries("/proc/self/task");
    for (int e = 0; e < 4; e++) {
        if (engines[e] == XS_ENGINE_IO_URING && !fx.io_uring) {
            continue;
        }
        xs_reader_cfg cfg = base_cfg(engines[e]);
        if (engines[e] == XS_ENGINE_SYNTHETIC) {
            cfg.catalog = NULL;
            cfg.shape = &fx.shape;
            cfg.synthetic_dtype = SMALL_STORE_DTYPE;
        }
        bool injected = true;
        for (int n = 1; injected; n++) {
            xs_reader *r = NULL;
            calls_until_failure = n;
            moe_status st = xs_reader_create(&cfg, &r, NULL);
            injected = calls_until_failure == 0;
            calls_until_failure = -1;
            /* Registering the slots may fail: that is reported, not an error. */
            bool went_on = st == MOE_OK && !xs_reader_get_report(r)->registered_buffers;
            if (injected && !went_on) {
                assert_int_equal(MOE_ERR_NO_MEMORY, st);
                assert_null(r);
            } else {
                assert_int_equal(MOE_OK, st);
                xs_reader_destroy(r);
            }
            assert_int_equal(n_fds, count_entries("/proc/self/fd"));
            assert_int_equal(n_threads, count_threads_expecting(n_threads));
        }
    }
}

static void wrong_settings_are_refused(void **state)
{
    (void)state;
    const xs_reader_cfg good = base_cfg(XS_ENGINE_PREAD);
    for (int wrong = 0; wrong < 9; wrong++) {
        xs_reader_cfg cfg = good;
        cfg.depth = wrong == 0 ? 0 : cfg.depth;
        cfg.split_bytes = wrong == 1 ? 0 : (wrong == 2 ? 5000 : cfg.split_bytes);
        cfg.n_verify_threads = wrong == 3 ? 0 : cfg.n_verify_threads;
        cfg.slots = wrong == 4 ? fx.slots + 512 : cfg.slots;
        cfg.n_slots = wrong == 5 ? 0 : cfg.n_slots;
        cfg.slot_bytes = wrong == 6 ? cfg.slot_bytes - 4096 : cfg.slot_bytes;
        cfg.catalog = wrong == 7 ? NULL : cfg.catalog;
        cfg.engine = wrong == 8 ? XS_ENGINE_SYNTHETIC : cfg.engine; /* without a shape */
        xs_reader *r = NULL;
        moe_err err = {0};
        assert_int_equal(MOE_ERR_INVALID, xs_reader_create(&cfg, &r, &err));
        assert_null(r);
        assert_true(err.text[0] != '\0');
    }
    xs_reader *r = make_engine(XS_ENGINE_PREAD);
    assert_int_equal(MOE_ERR_INVALID, xs_reader_submit(r, SMALL_STORE_EXPERTS, 0, 0, NULL));
    assert_int_equal(MOE_ERR_INVALID, xs_reader_submit(r, 0, N_SLOTS, 0, NULL));
    xs_reader_destroy(r);
}

/* ---- set-up ---- */

static int open_fixture(void **state)
{
    (void)state;
    no_faults();
    small_store_create(fx.dir);
    small_store_shape(&fx.shape);
    assert_int_equal(MOE_OK, xs_catalog_open(fx.dir, &fx.catalog, NULL));
    fx.expert_bytes = xs_catalog_get_info(fx.catalog)->expert_bytes;
    fx.slot_bytes = xs_catalog_get_info(fx.catalog)->slot_bytes;
    assert_true(fx.expert_bytes > 2 * MOE_CHUNK_BYTES && fx.expert_bytes < fx.slot_bytes);
    fx.slots = mmap(NULL, N_SLOTS * fx.slot_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(fx.slots != MAP_FAILED);
    fx.expected = malloc(SMALL_STORE_EXPERTS * fx.expert_bytes);
    assert_non_null(fx.expected);
    for (uint32_t i = 0; i < SMALL_STORE_EXPERTS; i++) {
        xs_synthetic_expert(&fx.shape, SMALL_STORE_DTYPE, SMALL_STORE_SEED, i,
                            fx.expected + i * fx.expert_bytes);
    }
    xs_reader *r = make_engine(XS_ENGINE_AUTO);
    fx.io_uring = xs_reader_get_report(r)->engine == XS_ENGINE_IO_URING;
    fx.direct = xs_reader_get_report(r)->direct;
    if (xs_reader_get_report(r)->note[0] != '\0') {
        print_message("not all is tested here: %s\n", xs_reader_get_report(r)->note);
    }
    xs_reader_destroy(r);
    return 0;
}

static int close_fixture(void **state)
{
    (void)state;
    xs_catalog_close(fx.catalog);
    munmap(fx.slots, N_SLOTS * fx.slot_bytes);
    free(fx.expected);
    small_store_remove(fx.dir);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_engine_reads_every_expert_right),
        cmocka_unit_test(depth_one_is_enough_and_wakes_are_never_lost),
        cmocka_unit_test(the_synthetic_engine_makes_what_the_generator_makes),
        cmocka_unit_test(one_expert_keeps_several_reads_in_flight),
        cmocka_unit_test(speculation_leaves_the_drive_to_what_is_needed),
        cmocka_unit_test(a_full_reader_says_again_and_a_small_harvest_stays_readable),
        cmocka_unit_test(direct_reads_leave_nothing_in_the_page_cache),
        cmocka_unit_test(one_wrong_byte_is_told_with_expert_segment_and_offset),
        cmocka_unit_test(a_truncated_segment_fails_its_experts_only),
        cmocka_unit_test(a_missing_segment_is_named),
        cmocka_unit_test(the_nth_read_failing_fails_one_expert_and_frees_its_slot),
        cmocka_unit_test(short_and_interrupted_reads_go_on),
        cmocka_unit_test(reads_always_cut_short_still_arrive),
        cmocka_unit_test(endless_interruption_is_an_error_in_the_end),
        cmocka_unit_test(failures_in_one_expert_leave_the_others_alone),
        cmocka_unit_test(io_uring_forbidden_means_pread_and_a_note),
        cmocka_unit_test(an_older_ring_without_flags_works_silently),
        cmocka_unit_test(unregistered_slots_work_with_a_note),
        cmocka_unit_test(a_file_system_without_direct_reads_means_buffered_and_a_note),
        cmocka_unit_test(a_submit_refused_for_now_is_tried_again),
        cmocka_unit_test(a_submit_refused_for_good_fails_every_expert),
        cmocka_unit_test(destroy_waits_for_what_is_in_flight),
        cmocka_unit_test(the_ring_holds_the_instance_lock_until_destroy),
        cmocka_unit_test(no_fd_and_no_thread_is_left_behind),
        cmocka_unit_test(nothing_is_allocated_after_creation),
        cmocka_unit_test(create_survives_every_failing_allocation),
        cmocka_unit_test(wrong_settings_are_refused),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture) != 0;
}
