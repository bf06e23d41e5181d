/* drive_report.h - measures a drive within a given time and says what was found and what to set.
 * Threads: one caller. */
#ifndef XS_DRIVE_REPORT_H
#define XS_DRIVE_REPORT_H

#include "common/text.h"
#include "expert-store/doctor/drive.h"
#include "expert-store/doctor/findings.h"

enum { XS_N_SIZES = 4, XS_N_DEPTHS = 4, XS_MAX_POINTS = XS_N_SIZES * XS_N_DEPTHS };

typedef struct xs_drive_report {
    bool uring, registered;
    char why_not[400];                  /* "" or why io_uring cannot be had */
    xs_drive_point grid[XS_MAX_POINTS]; /* by size, then depth; gb_per_s 0 where not measured */
    xs_drive_point best;                /* what to run at; measured again */
    xs_drive_point preset;              /* expert-store's defaults, as far as the file allows */
    xs_drive_point threads;             /* what --engine pread would give */
} xs_drive_report;

/* A failed read is an error; io_uring that cannot be had is a result. */
MOE_MUST_CHECK moe_status xs_drive_report_measure(const xs_drive_file *f, double seconds,
                                                  xs_drive_report *out, moe_err *err);
/* The fastest of what a store here would really use. */
double xs_drive_report_speed(const xs_drive_report *r);
/* what: the file's name for people. */
void xs_drive_report_judge(const xs_drive_file *f, const xs_drive_report *r, const char *what,
                           xs_findings *out);
void xs_drive_report_table(const xs_drive_report *r, moe_text *out);
void xs_drive_report_json(const xs_drive_file *f, const xs_drive_report *r, const char *what,
                          moe_text *out);

#endif
