/* main.c - program expert-doctor: is this machine ready for a store, and what will a model run at?
 * Looks at limits and memory, measures drive and DRAM (some ten seconds), writes nothing but a
 * nameless file where the segments are too small to measure with. Results on stdout.
 * Exit status: 0 it will work, perhaps slowly; 3 something will not work; 1 it could not look; 2
 * for wrong settings. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/config.h"
#include "expert-store/catalog/catalog.h"
#include "expert-store/doctor/dram.h"
#include "expert-store/doctor/drive_report.h"
#include "expert-store/doctor/host.h"
#include "expert-store/doctor/outlook.h"

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_BAD = 3 };

typedef struct doctor_config {
    char store[MOE_CFG_STR_BYTES], dir[MOE_CFG_STR_BYTES];
    double seconds;
    uint64_t file_bytes;
    bool json;
} doctor_config;

#define ROW(field, type, min, max, dflt, help)                                                     \
    MOE_ROW(doctor_config, field, type, min, max, dflt, help)
static const moe_config_row rows[] = {
    ROW(store, MOE_CFG_STR, 0, 0, "", "store directory of the model that is to run here"),
    ROW(dir, MOE_CFG_STR, 0, 0, "",
        "without --store: directory on the drive to measure; default ."),
    ROW(seconds, MOE_CFG_F64, 0.05, 600, "8", "for measuring the drive; DRAM takes a tenth of it"),
    ROW(file_bytes, MOE_CFG_SIZE, 4 << 20, 1099511627776.0, "1GiB",
        "segments smaller than this are replaced by a nameless file of this size, for measuring"),
    ROW(json, MOE_CFG_BOOL, 0, 0, "false", "print one JSON object"),
};

static const moe_config_spec spec = {
    .program = "expert-doctor",
    .section = "doctor",
    .synopsis = "[--store NAME.store] [--json]",
    .about = "Says what of this machine suits expert-store and what to change, how fast its drive "
             "and memory are, and what a model can run at.",
    .rows = rows,
    .n_rows = sizeof rows / sizeof rows[0],
};

static int fail(const moe_err *err, int code)
{
    char text[600];
    moe_err_format(err, text, sizeof text);
    fprintf(stderr, "expert-doctor: %s\n", text);
    return code;
}

typedef struct examination {
    xs_host host;
    xs_catalog *catalog;      /* owned; NULL: no model in view */
    xs_drive_file file;       /* owned */
    char what[PATH_MAX + 64]; /* was measured, for people */
    xs_drive_report drive;
    double dram_one, dram_all; /* GB/s */
    uint32_t dram_threads;
    xs_findings findings;
    xs_outlook_input in;
    xs_outlook outlook;
} examination;

/* ---- looking ---- */

/* The largest segment; its size. */
static uint64_t find_segment(const xs_catalog *c, char *out, size_t out_bytes)
{
    uint64_t largest = 0;
    for (uint32_t i = 0; i < xs_catalog_get_info(c)->n_segments; i++) {
        char path[PATH_MAX];
        struct stat st;
        xs_catalog_segment_path(c, i, path, sizeof path);
        if (stat(path, &st) == 0 && (uint64_t)st.st_size > largest) {
            largest = (uint64_t)st.st_size;
            snprintf(out, out_bytes, "%s", path);
        }
    }
    return largest;
}

static moe_status make_file(const doctor_config *cfg, const char *dir, examination *x, moe_err *err)
{
    moe_status st = xs_drive_make(dir, cfg->file_bytes, &x->file, err);
    if (st == MOE_OK) {
        snprintf(x->what, sizeof x->what, "a file of %llu MiB made in %s",
                 (unsigned long long)(cfg->file_bytes >> 20), dir);
    }
    return st;
}

static moe_status open_segment(const char *path, bool small, examination *x, moe_err *err)
{
    snprintf(x->what, sizeof x->what, "%s%s", path,
             small ? ", so small that a cache may have answered" : "");
    return xs_drive_open(path, &x->file, err);
}

/* Segments that a cache could hold tell little: a made file is better, where one can be made. */
static moe_status open_file(const doctor_config *cfg, examination *x, moe_err *err)
{
    char path[PATH_MAX] = "";
    if (x->catalog == NULL) {
        return make_file(cfg, cfg->dir[0] != '\0' ? cfg->dir : ".", x, err);
    }
    bool small = find_segment(x->catalog, path, sizeof path) < cfg->file_bytes;
    if (small && make_file(cfg, cfg->store, x, NULL) == MOE_OK) {
        return MOE_OK;
    }
    return open_segment(path, small, x, err);
}

static moe_status measure_dram(const doctor_config *cfg, examination *x, moe_err *err)
{
    enum { ENOUGH_THREADS = 16 }; /* fill the memory channels of any machine we know */
    x->dram_threads = x->host.n_cpus < ENOUGH_THREADS ? x->host.n_cpus : ENOUGH_THREADS;
    moe_status st = xs_dram_measure(1, cfg->seconds / 20, &x->dram_one, err);
    if (st == MOE_OK) {
        st = xs_dram_measure(x->dram_threads, cfg->seconds / 20, &x->dram_all, err);
    }
    return st;
}

static uint64_t needed_bytes(const examination *x)
{
    if (x->catalog == NULL) {
        return 0;
    }
    const xs_catalog_info *info = xs_catalog_get_info(x->catalog);
    return info->slot_bytes * info->shape.n_experts_total;
}

static void look_ahead(examination *x)
{
    if (x->catalog == NULL) {
        return;
    }
    const xs_catalog_info *info = xs_catalog_get_info(x->catalog);
    x->in = (xs_outlook_input){.model = info->model_name,
                               .shape = &info->shape,
                               .slot_bytes = info->slot_bytes,
                               .usable_bytes = xs_host_usable_bytes(&x->host),
                               .drive_gb_per_s = xs_drive_report_speed(&x->drive),
                               .dram_gb_per_s = x->dram_all};
    xs_outlook_compute(&x->in, &x->outlook);
}

static moe_status examine(const doctor_config *cfg, examination *x, moe_err *err)
{
    moe_status st = cfg->store[0] != '\0' ? xs_catalog_open(cfg->store, &x->catalog, err) : MOE_OK;
    if (st == MOE_OK) {
        st = open_file(cfg, x, err);
    }
    if (st == MOE_OK) {
        st = xs_drive_report_measure(&x->file, cfg->seconds, &x->drive, err);
    }
    xs_host_read("", &x->host);
    if (st == MOE_OK) {
        st = measure_dram(cfg, x, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    xs_host_judge(&x->host, needed_bytes(x), &x->findings);
    xs_drive_report_judge(&x->file, &x->drive, x->what, &x->findings);
    xs_findings_add(&x->findings, "DRAM", XS_NOTE, "one thread copies %.1f GB/s, %u copy %.1f",
                    x->dram_one, x->dram_threads, x->dram_all);
    look_ahead(x);
    return MOE_OK;
}

/* ---- showing ---- */

static void print_table(const examination *x, moe_text *out)
{
    xs_findings_table(&x->findings, out);
    moe_text_printf(out, "\n");
    xs_drive_report_table(&x->drive, out);
    if (x->catalog != NULL) {
        moe_text_printf(out, "\n");
        xs_outlook_table(&x->in, &x->outlook, out);
    }
}

static void print_json(const examination *x, moe_text *out)
{
    moe_text_printf(out, "{\"build\": ");
    moe_text_json_string(out, moe_build_id, strlen(moe_build_id));
    moe_text_printf(out, ", \"kernel\": ");
    moe_text_json_string(out, x->host.kernel, strlen(x->host.kernel));
    moe_text_printf(out, ", \"verdict\": \"%s\", \"findings\": ",
                    xs_verdict_name(xs_findings_worst(&x->findings)));
    xs_findings_json(&x->findings, out);
    moe_text_printf(out, ", \"drive\": ");
    xs_drive_report_json(&x->file, &x->drive, x->what, out);
    moe_text_printf(out,
                    ", \"dram\": {\"one_thread_gb_per_s\": %.3f, \"threads\": %u, "
                    "\"all_threads_gb_per_s\": %.3f}, \"model\": ",
                    x->dram_one, x->dram_threads, x->dram_all);
    if (x->catalog != NULL) {
        xs_outlook_json(&x->in, &x->outlook, out);
    } else {
        moe_text_printf(out, "null");
    }
    moe_text_printf(out, "}\n");
}

static int run(const doctor_config *cfg)
{
    static examination x; /* large */
    moe_err err = {0};
    moe_text text;
    x.file.fd = -1;
    moe_text_init(&text);
    moe_status st = examine(cfg, &x, &err);
    if (st == MOE_OK) {
        if (cfg->json) {
            print_json(&x, &text);
        } else {
            print_table(&x, &text);
        }
        st = moe_text_finish(&text, &err);
    }
    if (st == MOE_OK) {
        fwrite(text.data, 1, text.len, stdout);
    }
    moe_text_fini(&text);
    xs_drive_close(&x.file);
    xs_catalog_close(x.catalog);
    if (st != MOE_OK) {
        return fail(&err, EXIT_FAILED);
    }
    return xs_findings_worst(&x.findings) == XS_BAD ? EXIT_BAD : 0;
}

int main(int argc, char **argv)
{
    static doctor_config cfg;
    moe_err err = {0};
    moe_config_action action = MOE_CONFIG_RUN;
    moe_status st = moe_config_load(&spec, argc, argv, &cfg, NULL, 0, NULL, &action, &err);
    if (st != MOE_OK) {
        return fail(&err, EXIT_USAGE);
    }
    if (moe_config_answer(&spec, action, &cfg, stdout)) {
        return 0;
    }
    return run(&cfg);
}
