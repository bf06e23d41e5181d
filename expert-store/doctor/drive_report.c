/* drive_report.c - see drive_report.h. Half of the time goes to the grid, each point once; then the
 * fastest few and the store's defaults are measured again in turns, since a shared drive is noisy;
 * a tenth goes to pread. */
#include "expert-store/doctor/drive_report.h"

#include <stdio.h>
#include <string.h>

enum {
    KIB = 1024,
    MIB = 1024 * 1024,
    MAX_DEPTH = 64,
    MAX_IN_FLIGHT_BYTES = 128 * MIB, /* more only takes longer to drain */
    N_FINALISTS = 4,
    N_ROUNDS = 3,
    PRESET_READ_BYTES = MIB, /* store_config.c */
    PRESET_DEPTH = 64,
    PREAD_THREADS = 32 /* reader_pread.c */
};

static const uint32_t sizes[XS_N_SIZES] = {128 * KIB, 512 * KIB, MIB, 4 * MIB};
static const uint32_t depths[XS_N_DEPTHS] = {1, 4, 16, MAX_DEPTH};

static bool worth_trying(const xs_drive_file *f, const xs_drive_point *p)
{
    return p->read_bytes <= f->bytes && (uint64_t)p->read_bytes * p->depth <= MAX_IN_FLIGHT_BYTES;
}

static moe_status measure_grid(const xs_drive_file *f, xs_drive_ring *ring, double seconds,
                               xs_drive_report *r, moe_err *err)
{
    moe_status st = MOE_OK;
    for (int i = 0; i < XS_MAX_POINTS && st == MOE_OK; i++) {
        r->grid[i] = (xs_drive_point){.read_bytes = sizes[i / XS_N_DEPTHS],
                                      .depth = depths[i % XS_N_DEPTHS]};
        if (worth_trying(f, &r->grid[i])) {
            st = xs_drive_measure(ring, seconds / XS_MAX_POINTS, &r->grid[i], err);
        }
    }
    return st;
}

/* Moves the fastest points of the grid into out; returns how many. */
static uint32_t pick_finalists(const xs_drive_report *r, xs_drive_point *out)
{
    bool taken[XS_MAX_POINTS] = {false};
    uint32_t n = 0;
    while (n < N_FINALISTS) {
        int best = -1;
        for (int i = 0; i < XS_MAX_POINTS; i++) {
            if (!taken[i] && r->grid[i].gb_per_s > 0 &&
                (best < 0 || r->grid[i].gb_per_s > r->grid[best].gb_per_s)) {
                best = i;
            }
        }
        if (best < 0) {
            break;
        }
        taken[best] = true;
        out[n++] = r->grid[best];
    }
    return n;
}

/* The best of the rounds: what disturbs a round only makes it slower. */
static moe_status measure_again(xs_drive_ring *ring, double seconds, xs_drive_point *points,
                                uint32_t n, moe_err *err)
{
    moe_status st = MOE_OK;
    for (uint32_t i = 0; i < N_ROUNDS * n && st == MOE_OK; i++) {
        xs_drive_point again = points[i % n];
        st = xs_drive_measure(ring, seconds / (N_ROUNDS * n), &again, err);
        if (i < n || again.gb_per_s > points[i % n].gb_per_s) {
            points[i % n] = again;
        }
    }
    return st;
}

static moe_status measure_ring(const xs_drive_file *f, xs_drive_ring *ring, double seconds,
                               xs_drive_report *r, moe_err *err)
{
    xs_drive_point finalists[N_FINALISTS + 1];
    moe_status st = measure_grid(f, ring, seconds * 0.55, r, err);
    if (st != MOE_OK) {
        return st;
    }
    uint32_t n = pick_finalists(r, finalists);
    xs_drive_point preset = {.read_bytes = PRESET_READ_BYTES, .depth = PRESET_DEPTH};
    bool has_preset = worth_trying(f, &preset);
    if (has_preset) {
        finalists[n++] = preset;
    }
    st = measure_again(ring, seconds * 0.45, finalists, n, err);
    if (st == MOE_OK && n > 0) {
        r->best = finalists[xs_drive_choose(finalists, n)];
        r->preset = has_preset ? finalists[n - 1] : r->best;
    }
    return st;
}

moe_status xs_drive_report_measure(const xs_drive_file *f, double seconds, xs_drive_report *out,
                                   moe_err *err)
{
    xs_drive_report r = {.uring = true};
    moe_err why = {0};
    xs_drive_ring *ring = NULL;
    moe_status st = xs_drive_ring_create(f, MAX_DEPTH, &ring, &why);
    if (st == MOE_ERR_UNSUPPORTED) {
        r.uring = false;
        moe_err_format(&why, r.why_not, sizeof r.why_not);
        st = MOE_OK;
    } else if (st == MOE_OK) {
        r.registered = xs_drive_ring_registered(ring);
        st = measure_ring(f, ring, seconds * 0.9, &r, err);
    } else if (err != NULL) {
        *err = why;
    }
    xs_drive_ring_destroy(ring);
    r.threads = (xs_drive_point){.read_bytes = r.uring ? r.best.read_bytes : PRESET_READ_BYTES,
                                 .depth = PREAD_THREADS};
    if (st == MOE_OK && r.threads.read_bytes > f->bytes) {
        r.threads.read_bytes = (uint32_t)f->bytes & ~4095u;
    }
    if (st == MOE_OK) {
        st = xs_drive_measure_threads(f, seconds * 0.1, &r.threads, err);
    }
    if (st == MOE_OK) {
        *out = r;
    }
    return st;
}

double xs_drive_report_speed(const xs_drive_report *r)
{
    return r->uring ? r->best.gb_per_s : r->threads.gb_per_s;
}

/* ---- judging ---- */

static void size_text(uint32_t bytes, char *out, size_t out_bytes)
{
    if (bytes % MIB == 0) {
        snprintf(out, out_bytes, "%uMiB", bytes / MIB);
    } else {
        snprintf(out, out_bytes, "%uKiB", bytes / KIB);
    }
}

static void judge_uring(const xs_drive_report *r, xs_findings *out)
{
    if (!r->uring) {
        xs_finding *f = xs_findings_add(out, "io_uring", XS_SLOW, "not available: %s", r->why_not);
        xs_finding_cost(f, "reads go through a pool of threads: %.2f GB/s here, and more CPU",
                        r->threads.gb_per_s);
        xs_finding_change(f, "sysctl kernel.io_uring_disabled=0; for a container a seccomp profile "
                             "that allows io_uring_setup, io_uring_enter and io_uring_register");
        return;
    }
    xs_finding *f = xs_findings_add(out, "io_uring", r->registered ? XS_GOOD : XS_SLOW,
                                    r->registered ? "available, buffers can be registered"
                                                  : "available, but buffers cannot be registered");
    if (!r->registered) {
        xs_finding_cost(f, "pages are pinned anew for each read: about 30 us of CPU per MiB");
        xs_finding_change(f, "raise the memlock limit (above)");
    }
}

static void judge_direct(const xs_drive_file *file, xs_findings *out)
{
    if (!file->direct) {
        xs_finding *f =
            xs_findings_add(out, "O_DIRECT", XS_SLOW, "%s does not take it", file->file_system);
        xs_finding_cost(f, "reads pass the page cache: one more copy, up to twice the memory; the "
                           "speeds below may be the cache's");
        xs_finding_change(f, "put the store on ext4 or xfs on a local drive");
    } else if (file->offset_align > 4096) {
        xs_finding *f = xs_findings_add(out, "O_DIRECT", XS_BAD, "%s asks for alignment to %u",
                                        file->file_system, file->offset_align);
        xs_finding_cost(f, "extents packed for another drive may not be aligned here");
        xs_finding_change(f, "pack the store again on this drive");
    } else if (file->offset_align > 0) {
        xs_findings_add(out, "O_DIRECT", XS_GOOD, "%s takes it, aligned to %u bytes (memory to %u)",
                        file->file_system, file->offset_align, file->memory_align);
    } else {
        xs_findings_add(out, "O_DIRECT", XS_GOOD,
                        "%s takes it at 4096 bytes; this kernel does not say less",
                        file->file_system);
    }
}

static void judge_speed(const xs_drive_report *r, const char *what, xs_findings *out)
{
    const double enough = 0.95;
    char best[16];
    char defaults[64];
    if (!r->uring) {
        return;
    }
    bool good = r->preset.gb_per_s >= enough * r->best.gb_per_s;
    size_text(r->best.read_bytes, best, sizeof best);
    snprintf(defaults, sizeof defaults, "expert-store's defaults, %u of 1MiB, give %.2f",
             (uint32_t)PRESET_DEPTH, r->preset.gb_per_s);
    xs_finding *f = xs_findings_add(
        out, "drive", good ? XS_GOOD : XS_SLOW, "%.2f GB/s with %u reads of %s in flight%s%s (%s)",
        r->best.gb_per_s, r->best.depth, best, good ? "; " : "", good ? defaults : "", what);
    if (!good) {
        xs_finding_cost(f, "%s", defaults);
        xs_finding_change(f, "expert-store --depth %u --read-split %s", r->best.depth, best);
    }
}

void xs_drive_report_judge(const xs_drive_file *f, const xs_drive_report *r, const char *what,
                           xs_findings *out)
{
    judge_uring(r, out);
    judge_direct(f, out);
    judge_speed(r, what, out);
    xs_findings_add(out, "pread", XS_NOTE, "%.2f GB/s with %u threads: what --engine pread gives",
                    r->threads.gb_per_s, r->threads.depth);
}

/* ---- showing ---- */

void xs_drive_report_table(const xs_drive_report *r, moe_text *out)
{
    if (!r->uring) {
        return;
    }
    moe_text_printf(out, "GB/s        ");
    for (int d = 0; d < XS_N_DEPTHS; d++) {
        moe_text_printf(out, "  depth %-3u", depths[d]);
    }
    moe_text_printf(out, "\n");
    for (int s = 0; s < XS_N_SIZES; s++) {
        char size[16];
        size_text(sizes[s], size, sizeof size);
        moe_text_printf(out, "  %-10s", size);
        for (int d = 0; d < XS_N_DEPTHS; d++) {
            double v = r->grid[s * XS_N_DEPTHS + d].gb_per_s;
            if (v > 0) {
                moe_text_printf(out, "%10.2f ", v);
            } else {
                moe_text_printf(out, "%10s ", "-");
            }
        }
        moe_text_printf(out, "\n");
    }
}

static void point_json(const char *name, const xs_drive_point *p, moe_text *out)
{
    if (name != NULL) {
        moe_text_printf(out, ", \"%s\": ", name);
    }
    moe_text_printf(out, "{\"read_bytes\": %u, \"depth\": %u, \"gb_per_s\": %.4f}", p->read_bytes,
                    p->depth, p->gb_per_s);
}

void xs_drive_report_json(const xs_drive_file *f, const xs_drive_report *r, const char *what,
                          moe_text *out)
{
    moe_text_printf(out, "{\"file\": ");
    moe_text_json_string(out, what, strlen(what));
    moe_text_printf(out, ", \"file_bytes\": %llu, \"file_system\": ", (unsigned long long)f->bytes);
    moe_text_json_string(out, f->file_system, strlen(f->file_system));
    moe_text_printf(out,
                    ", \"direct\": %s, \"offset_align\": %u, \"memory_align\": %u, \"io_uring\": "
                    "%s, \"registered_buffers\": %s",
                    f->direct ? "true" : "false", f->offset_align, f->memory_align,
                    r->uring ? "true" : "false", r->registered ? "true" : "false");
    if (r->uring) {
        point_json("best", &r->best, out);
        point_json("preset", &r->preset, out);
        moe_text_printf(out, ", \"grid\": [");
        bool first = true;
        for (int i = 0; i < XS_MAX_POINTS; i++) {
            if (r->grid[i].gb_per_s > 0) {
                moe_text_printf(out, "%s", first ? "" : ", ");
                point_json(NULL, &r->grid[i], out);
                first = false;
            }
        }
        moe_text_printf(out, "]");
    }
    point_json("pread", &r->threads, out);
    moe_text_printf(out, "}");
}
