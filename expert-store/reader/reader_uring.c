/* reader_uring.c - [liburing] the engine for drives: one ring, registered files and slots.
 *
 *   start: SQE --> staged --flush: io_uring_submit--> kernel --CQE, eventfd--> reap: ended
 *
 * Owns the ring. Called by the extent reader; every call, open and close included, comes from the
 * event-loop thread, because the ring admits a single issuer. The ring also holds the instance
 * lock's file, so the kernel releases that lock only when the last read of a dying process has
 * landed; an orderly close drops it at once.
 *
 * With DEFER_TASKRUN completions appear only when this thread asks for them. The kernel signals
 * the eventfd when it queues the first one and raises IORING_SQ_TASKRUN until all have run;
 * io_uring_peek_batch_cqe looks at that flag and asks. So "clear the eventfd, then peek until
 * nothing comes" leaves nothing behind without a signal.
 */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/clock.h"
#include "expert-store/reader/reader_internal.h"

enum {
    MAX_BUFFER_BYTES = 1 << 30, /* one registered buffer: kernel limit */
    MAX_BUFFERS = 1 << 14,      /* all of them: kernel limit */
    SLICE_BYTES = 64 << 20,     /* takes a few ms to register, while messages wait */
    REAP_BATCH = 32,
    PROBE_TIMEOUT_MS = 200,
};

typedef struct read_list {
    xs_read *head, *tail; /* linked by work.next */
} read_list;

struct xs_engine_state {
    struct io_uring ring;
    bool ring_open, files_registered;
    char *slots; /* borrowed */
    uint64_t slot_bytes;
    uint32_t n_slots;
    bool has_slices;          /* the ring has a table of them; else no more are registered */
    uint32_t slots_per_slice; /* registered buffer of a slot = slot / slots_per_slice */
    uint32_t n_registered;    /* slots, the first ones */
    int wake_fd;              /* borrowed */
    read_list staged;         /* have an SQE the kernel has not consumed, in ring order */
    read_list ended;
    uint32_t n_in_kernel;
    int broken; /* errno of a submit that will never work; the SQ is not touched any more */
};

static void append(read_list *list, xs_read *read)
{
    read->work.next = NULL;
    if (list->tail == NULL) {
        list->head = read;
    } else {
        list->tail->work.next = &read->work;
    }
    list->tail = read;
}

static xs_read *pop(read_list *list)
{
    xs_read *read = list->head;
    if (read != NULL) {
        list->head = (xs_read *)read->work.next;
        list->tail = list->head == NULL ? NULL : list->tail;
    }
    return read;
}

/* ---- creation ---- */

/* Whether a completion whose work is deferred signals the eventfd while nobody enters the kernel:
 * polls an eventfd of its own, fires it, and watches wake_fd. */
static bool deferred_completion_wakes(struct io_uring *ring, int wake_fd)
{
    int trigger = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (trigger < 0) {
        return false;
    }
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    io_uring_prep_poll_add(sqe, trigger, POLLIN);
    io_uring_sqe_set_data(sqe, NULL);
    bool woke = false;
    if (io_uring_submit(ring) == 1) {
        xs_wake(trigger);
        struct pollfd watched = {.fd = wake_fd, .events = POLLIN};
        struct io_uring_cqe *cqe = NULL;
        woke = poll(&watched, 1, PROBE_TIMEOUT_MS) == 1 && io_uring_peek_cqe(ring, &cqe) == 0;
        if (woke) {
            uint64_t count = 0;
            io_uring_cqe_seen(ring, cqe);
            woke = read(wake_fd, &count, sizeof count) == (ssize_t)sizeof count;
        }
    }
    close(trigger);
    return woke;
}

/* 0 or -errno. On success the ring is open and signals wake_fd. */
static int open_ring(struct io_uring *ring, uint32_t entries, unsigned flags, int wake_fd)
{
    struct io_uring_params params = {.flags = flags};
    int rc = io_uring_queue_init_params(entries, ring, &params);
    if (rc != 0) {
        return rc;
    }
    rc = io_uring_register_eventfd(ring, wake_fd);
    if (rc == 0 && (flags & IORING_SETUP_DEFER_TASKRUN) != 0 &&
        !deferred_completion_wakes(ring, wake_fd)) {
        rc = -EOPNOTSUPP;
    }
    if (rc != 0) {
        io_uring_queue_exit(ring);
    }
    return rc;
}

static moe_status setup_ring(xs_engine_state *e, uint32_t entries, moe_err *err)
{
    const unsigned modern = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN |
                            IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_DEFER_TASKRUN;
    int rc = open_ring(&e->ring, entries, modern, e->wake_fd);
    if (rc != 0) {
        rc = open_ring(&e->ring, entries, 0, e->wake_fd); /* kernels before 6.1; as fast for us */
    }
    if (rc != 0) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_UNSUPPORTED, MOE_LAYER_ERRNO, -rc,
                               "cannot set up io_uring (sysctl kernel.io_uring_disabled, or a "
                               "container's seccomp profile)");
    }
    e->ring_open = true;
    struct io_uring_probe *probe = io_uring_get_probe_ring(&e->ring);
    bool supported = probe != NULL && io_uring_opcode_supported(probe, IORING_OP_READ) &&
                     io_uring_opcode_supported(probe, IORING_OP_READ_FIXED);
    io_uring_free_probe(probe);
    if (!supported) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED,
                        "this kernel's io_uring has no READ (before 5.6)");
    }
    return MOE_OK;
}

/* Segments keep their index; the instance lock comes last. */
static moe_status register_files(xs_engine_state *e, const xs_segment_files *files, int lock_fd,
                                 moe_err *err)
{
    uint32_t n = files->n + (lock_fd >= 0 ? 1u : 0u);
    int *fds = calloc(n + 1u, sizeof *fds);
    if (fds == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a table of %u files", n);
    }
    for (uint32_t i = 0; i < files->n; i++) {
        fds[i] = files->fds[i];
    }
    if (lock_fd >= 0) {
        fds[files->n] = lock_fd;
    }
    int rc = io_uring_register_files(&e->ring, fds, n);
    free(fds);
    if (rc != 0) {
        return MOE_FAIL_NATIVE(err, MOE_ERR_UNSUPPORTED, MOE_LAYER_ERRNO, -rc,
                               "cannot register %u files with io_uring (RLIMIT_NOFILE?)", n);
    }
    e->files_registered = true;
    return MOE_OK;
}

/* An empty table of slices, to be filled as slots get their pages. 0 or an errno. */
static int open_slices(xs_engine_state *e)
{
    uint64_t n_bytes = e->n_slots * e->slot_bytes;
    uint64_t slice_bytes = n_bytes / (MAX_BUFFERS / 2);
    slice_bytes = slice_bytes > SLICE_BYTES ? slice_bytes : SLICE_BYTES;
    slice_bytes = slice_bytes > e->slot_bytes ? slice_bytes : e->slot_bytes;
    if (slice_bytes > MAX_BUFFER_BYTES) {
        return E2BIG;
    }
    e->slots_per_slice = (uint32_t)(slice_bytes / e->slot_bytes);
    uint32_t n_slices = (e->n_slots + e->slots_per_slice - 1) / e->slots_per_slice;
    int rc = io_uring_register_buffers_sparse(&e->ring, n_slices);
    e->has_slices = rc == 0;
    return -rc;
}

/* Slices whose slots all have pages, and the rest where no more come for now; that one is
 * registered again, longer, when they do: reads in flight keep what they began with. 0 or the errno
 * why the next one is not registered. */
static int register_slices(xs_engine_state *e, uint32_t n_made, bool more_come)
{
    while (e->n_registered < n_made) {
        uint32_t index = e->n_registered / e->slots_per_slice;
        uint32_t first = index * e->slots_per_slice;
        uint32_t n = n_made - first < e->slots_per_slice ? n_made - first : e->slots_per_slice;
        if (n < e->slots_per_slice && more_come) {
            break;
        }
        const struct iovec slice = {.iov_base = e->slots + first * e->slot_bytes,
                                    .iov_len = n * e->slot_bytes};
        int rc = io_uring_register_buffers_update_tag(&e->ring, index, &slice, NULL, 1);
        if (rc != 1) {
            return rc < 0 ? -rc : EIO;
        }
        e->n_registered = first + n;
    }
    return 0;
}

/* The cost: bench_reader with and without registered slots, 1 MiB reads, 4 KiB pages. */
static void note_unregistered_slots(xs_reader_report *report, int failure)
{
    struct rlimit limit = {0};
    char reason[64];
    snprintf(reason, sizeof reason, "%s", moe_native_text(MOE_LAYER_ERRNO, failure));
    if (failure == ENOMEM && getrlimit(RLIMIT_MEMLOCK, &limit) == 0) {
        snprintf(reason, sizeof reason, "memlock limit %llu KiB, raise LimitMEMLOCK",
                 (unsigned long long)limit.rlim_cur / 1024);
    }
    xs_reader_note(report,
                   "slots not registered with io_uring (%s): every read pins its pages anew, about "
                   "30 us of CPU per MiB",
                   reason);
}

static void add_slots_uring(xs_engine_state *e, uint32_t n_made, bool more_come,
                            xs_reader_report *report)
{
    int failure = e->has_slices ? register_slices(e, n_made, more_come) : 0;
    if (failure != 0) {
        note_unregistered_slots(report, failure);
        e->has_slices = false; /* what is registered stays */
    }
    report->registered_buffers = e->has_slices;
}

static void close_uring(xs_engine_state *e)
{
    if (e == NULL) {
        return;
    }
    if (e->files_registered) {
        /* Here and not in queue_exit, which lets go of files and pages some time later. */
        io_uring_unregister_files(&e->ring);
    }
    if (e->n_registered > 0) {
        io_uring_unregister_buffers(&e->ring);
    }
    if (e->ring_open) {
        io_uring_queue_exit(&e->ring);
    }
    free(e);
}

static moe_status open_uring(const xs_engine_cfg *cfg, xs_reader_report *report,
                             xs_engine_state **out, moe_err *err)
{
    const xs_reader_cfg *reader = cfg->reader;
    xs_engine_state *e = calloc(1, sizeof *e);
    if (e == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "the io_uring engine");
    }
    e->slots = reader->slots;
    e->slot_bytes = reader->slot_bytes;
    e->n_slots = reader->n_slots;
    e->wake_fd = cfg->wake_fd;
    moe_status st = setup_ring(e, cfg->max_reads, err);
    if (st == MOE_OK) {
        st = register_files(e, cfg->files, reader->lock_fd, err);
    }
    if (st != MOE_OK) {
        close_uring(e);
        return st;
    }
    int failure = open_slices(e);
    if (failure != 0) {
        note_unregistered_slots(report, failure);
    }
    *out = e;
    return MOE_OK;
}

/* ---- reading ---- */

static void end_with(xs_engine_state *e, xs_read *read, int64_t result)
{
    read->result = result;
    append(&e->ended, read);
    xs_wake(e->wake_fd);
}

static void start_uring(xs_engine_state *e, xs_read *read)
{
    if (e->broken != 0) {
        end_with(e, read, -e->broken);
        return;
    }
    struct io_uring_sqe *sqe = io_uring_get_sqe(&e->ring);
    MOE_ASSERT(sqe != NULL); /* the ring has room for max_reads */
    if (read->slot < e->n_registered) {
        io_uring_prep_read_fixed(sqe, (int)read->segment, read->dst, (unsigned)read->bytes,
                                 read->file_off, (int)(read->slot / e->slots_per_slice));
    } else {
        io_uring_prep_read(sqe, (int)read->segment, read->dst, (unsigned)read->bytes,
                           read->file_off);
    }
    sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(sqe, read);
    append(&e->staged, read);
}

static void flush_uring(xs_engine_state *e)
{
    while (e->staged.head != NULL && e->broken == 0) {
        int n = io_uring_submit(&e->ring);
        for (int i = 0; i < n; i++) {
            pop(&e->staged);
            e->n_in_kernel++;
        }
        if (n > 0 || n == -EINTR) {
            continue;
        }
        if (n == 0 || n == -EAGAIN || n == -EBUSY) {
            xs_wake(e->wake_fd); /* the kernel is short of memory: again at the next harvest */
            return;
        }
        e->broken = -n;
    }
    while (e->broken != 0 && e->staged.head != NULL) {
        end_with(e, pop(&e->staged), -e->broken);
    }
}

static xs_read *reap_uring(xs_engine_state *e)
{
    struct io_uring_cqe *cqes[REAP_BATCH];
    unsigned n = 0;
    while ((n = io_uring_peek_batch_cqe(&e->ring, cqes, REAP_BATCH)) > 0) {
        for (unsigned i = 0; i < n; i++) {
            xs_read *read = io_uring_cqe_get_data(cqes[i]);
            read->result = cqes[i]->res;
            append(&e->ended, read);
        }
        io_uring_cq_advance(&e->ring, n);
        e->n_in_kernel -= n;
    }
    xs_read *ended = e->ended.head;
    e->ended = (read_list){0};
    return ended;
}

static void wait_uring(xs_engine_state *e)
{
    if (e->ended.head != NULL) {
        return;
    }
    if (e->n_in_kernel == 0) {
        moe_sleep_ns(MOE_NS_PER_MS); /* staged only, and flush could not submit: see there */
        return;
    }
    struct io_uring_cqe *cqe = NULL;
    int rc = io_uring_wait_cqe(&e->ring, &cqe); /* EINTR: the caller looks and waits again */
    (void)rc;
}

const xs_engine_ops xs_engine_uring = {
    .engine = XS_ENGINE_IO_URING,
    .open = open_uring,
    .add_slots = add_slots_uring,
    .close = close_uring,
    .start = start_uring,
    .flush = flush_uring,
    .reap = reap_uring,
    .wait = wait_uring,
};
