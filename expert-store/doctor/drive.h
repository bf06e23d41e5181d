/* drive.h - how fast a file's drive reads, at several read sizes and depths; and what to set.
 *
 * Reads are at random offsets, multiples of their size, past the page cache where the file system
 * allows it. Errors name the file. Threads: one caller; measure_threads makes and joins its own.
 */
#ifndef XS_DRIVE_H
#define XS_DRIVE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"

typedef struct xs_drive_file {
    int fd;                              /* owned */
    uint64_t bytes;                      /* that may be read */
    bool direct;                         /* opened for O_DIRECT */
    uint32_t offset_align, memory_align; /* O_DIRECT's, 0 where the kernel does not say */
    char file_system[24];                /* "ext4" */
} xs_drive_file;

MOE_MUST_CHECK moe_status xs_drive_open(const char *path, xs_drive_file *out, moe_err *err);
/* A nameless file in directory `dir`, filled with bytes that no drive can compress; it vanishes at
 * close. MOE_ERR_NO_SPACE. */
MOE_MUST_CHECK moe_status xs_drive_make(const char *dir, uint64_t bytes, xs_drive_file *out,
                                        moe_err *err);
void xs_drive_close(xs_drive_file *f); /* accepts fd -1 */

typedef struct xs_drive_point {
    uint32_t read_bytes, depth;
    double gb_per_s; /* 1e9 bytes; 0: not measured */
} xs_drive_point;

/* [liburing] MOE_ERR_UNSUPPORTED from create: io_uring cannot be had; the text says why. */
typedef struct xs_drive_ring xs_drive_ring; /* opaque */
MOE_MUST_CHECK moe_status xs_drive_ring_create(const xs_drive_file *f, uint32_t max_depth,
                                               xs_drive_ring **out, moe_err *err);
void xs_drive_ring_destroy(xs_drive_ring *r);          /* accepts NULL */
bool xs_drive_ring_registered(const xs_drive_ring *r); /* buffers are pinned once, not per read */
/* point->read_bytes and depth are asked for; gb_per_s is the answer. depth <= max_depth. */
MOE_MUST_CHECK moe_status xs_drive_measure(xs_drive_ring *r, double seconds, xs_drive_point *point,
                                           moe_err *err);
/* The same with `depth` threads that call pread. */
MOE_MUST_CHECK moe_status xs_drive_measure_threads(const xs_drive_file *f, double seconds,
                                                   xs_drive_point *point, moe_err *err);

/* The point to run at: of those within 3 % of the fastest the one with the fewest bytes in flight,
 * since what is in flight cannot be overtaken; of equals the larger reads. n > 0. */
uint32_t xs_drive_choose(const xs_drive_point *points, uint32_t n);

#endif
