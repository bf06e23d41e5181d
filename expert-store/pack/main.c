/* main.c - the program expert-pack: parse, pick the command, run it, say how it went.
 *
 * Results go to stdout (--json: as JSON), everything else to stderr. Exit: 0 done, 1 failed,
 * 2 wrong usage, 130 stopped by SIGINT or SIGTERM.
 * Threads: the main one; xs_pack and xs_verify start their own. Signals only set a flag, which the
 * two look at between items.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/checksum.h"
#include "common/clock.h"
#include "common/text.h"
#include "expert-store/catalog/catalog.h"
#include "expert-store/pack/add.h"
#include "expert-store/pack/checkpoint.h"
#include "expert-store/pack/inspect.h"
#include "expert-store/pack/pack.h"
#include "expert-store/pack/pack_config.h"
#include "expert-store/pack/synthetic_source.h"
#include "expert-store/pack/verify.h"

enum { EXIT_USAGE = 2, EXIT_STOPPED = 130 };
#define PROGRESS_EVERY_NS (200 * MOE_NS_PER_MS)

static volatile sig_atomic_t stop_signal;

static void on_signal(int sig)
{
    stop_signal = sig;
}

static void catch_signals(void)
{
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
}

/* ---- what the user sees meanwhile ---- */

typedef struct meter {
    bool terminal, drawn;
    int64_t start_ns, last_ns;
    uint64_t start_bytes; /* done when the first call came: an earlier run's */
} meter;

static void clear_line(meter *m)
{
    if (m->drawn) {
        fprintf(stderr, "\r\033[K");
        m->drawn = false;
    }
}

static void show_progress(void *user, uint64_t done, uint64_t total)
{
    meter *m = user;
    int64_t now = moe_now_ns();
    if (!m->terminal || (now - m->last_ns < PROGRESS_EVERY_NS && done < total)) {
        return;
    }
    if (m->last_ns == 0) {
        m->start_ns = now;
        m->start_bytes = done;
    }
    m->last_ns = now;
    double s = (double)(now - m->start_ns) / 1e9;
    double rate = s > 0 ? (double)(done - m->start_bytes) / 1e9 / s : 0;
    fprintf(stderr, "\r\033[K%.2f of %.2f GB, %.2f GB/s", (double)done / 1e9, (double)total / 1e9,
            rate);
    if (rate > 0) {
        fprintf(stderr, ", %.0f s left", (double)(total - done) / 1e9 / rate);
    }
    m->drawn = true;
}

static void show_note(void *user, const char *text)
{
    clear_line(user);
    fprintf(stderr, "expert-pack: %s\n", text);
}

static xs_pack_watch watch_with(meter *m)
{
    *m = (meter){.terminal = isatty(STDERR_FILENO) == 1};
    return (xs_pack_watch){
        .progress = show_progress, .note = show_note, .user = m, .stop = &stop_signal};
}

static int fail(const moe_err *err)
{
    char line[1024];
    moe_err_format(err, line, sizeof line);
    fprintf(stderr, "expert-pack: %s\n", line);
    return err->status == MOE_ERR_CANCELLED ? EXIT_STOPPED : EXIT_FAILURE;
}

static int usage(const char *what)
{
    fprintf(stderr, "expert-pack: %s\nusage: expert-pack %s\n", what, xs_pack_config_spec.synopsis);
    return EXIT_USAGE;
}

/* Prints and frees. */
static int print_text(moe_text *t)
{
    moe_err err = {0};
    moe_status st = moe_text_finish(t, &err);
    if (st == MOE_OK) {
        fputs(t->data, stdout);
    }
    moe_text_fini(t);
    return st == MOE_OK ? EXIT_SUCCESS : fail(&err);
}

/* ---- commands ---- */

static uint64_t max_rss_bytes(void)
{
    struct rusage used = {0};
    (void)getrusage(RUSAGE_SELF, &used);
    return (uint64_t)used.ru_maxrss * 1024;
}

static double gb_per_s(uint64_t bytes, int64_t ns)
{
    return ns > 0 ? (double)bytes / (double)ns : 0;
}

static int print_packed(const xs_pack_config *cfg, const xs_source *src, const xs_pack_result *r)
{
    moe_text t;
    moe_text_init(&t);
    if (cfg->json) {
        moe_text_printf(&t, "{\"store\": ");
        moe_text_json_string(&t, cfg->out, strlen(cfg->out));
        moe_text_printf(&t,
                        ", \"n_experts\": %u, \"n_tensors\": %u, \"n_segments\": %u, "
                        "\"total_bytes\": %" PRIu64 ", \"written_bytes\": %" PRIu64
                        ", \"n_resumed\": %u, \"direct\": %s, \"max_rss_bytes\": %" PRIu64
                        ", \"seconds\": %.6f, \"gb_per_s\": %.4f}\n",
                        r->n_experts, r->n_tensors, r->n_segments, r->total_bytes, r->written_bytes,
                        r->n_resumed, r->direct ? "true" : "false", max_rss_bytes(),
                        (double)r->ns / 1e9, gb_per_s(r->written_bytes, r->ns));
    } else {
        moe_text_printf(&t,
                        "%s: %s, %u experts of %s and %u dense tensors, %.3f GB; wrote %.3f GB in "
                        "%.2f s, %.2f GB/s\n",
                        cfg->out, src->model_name, r->n_experts, moe_dtype_name(src->expert_dtype),
                        r->n_tensors, (double)r->total_bytes / 1e9, (double)r->written_bytes / 1e9,
                        (double)r->ns / 1e9, gb_per_s(r->written_bytes, r->ns));
    }
    return print_text(&t);
}

static int pack_source(const xs_pack_config *cfg, const xs_source *src)
{
    meter m;
    moe_err err = {0};
    xs_pack_result result;
    xs_pack_options opt = {.out = cfg->out,
                           .force = cfg->force,
                           .direct = cfg->direct,
                           .segment_bytes = cfg->segment_bytes,
                           .buffer_bytes = cfg->buffer_bytes,
                           .n_buffers = (uint32_t)cfg->buffers,
                           .n_writers = (uint32_t)cfg->writers,
                           .commit_every = (uint32_t)cfg->commit_every,
                           .test_kill_at = cfg->test_kill_at,
                           .watch = watch_with(&m)};
    if (*src->note != '\0') {
        show_note(&m, src->note);
    }
    moe_status st = xs_pack(src, &opt, &result, &err);
    clear_line(&m);
    return st == MOE_OK ? print_packed(cfg, src, &result) : fail(&err);
}

static moe_dtype wanted_dtype(const xs_pack_config *cfg, moe_dtype keep)
{
    return cfg->dtype == XS_PACK_DTYPE_BF16  ? MOE_BF16
           : cfg->dtype == XS_PACK_DTYPE_F32 ? MOE_F32
                                             : keep;
}

static int pack_synthetic(const xs_pack_config *cfg)
{
    moe_err err = {0};
    xs_synthetic_source *s = NULL;
    moe_status st =
        xs_synthetic_source_open(cfg->synthetic, wanted_dtype(cfg, MOE_BF16), cfg->seed, &s, &err);
    int rc = st == MOE_OK ? pack_source(cfg, xs_synthetic_source_get(s)) : fail(&err);
    xs_synthetic_source_close(s);
    return rc;
}

static int pack_checkpoint(const xs_pack_config *cfg, const char *dir)
{
    moe_err err = {0};
    xs_checkpoint *c = NULL;
    moe_status st = xs_checkpoint_open(dir, wanted_dtype(cfg, 0), cfg->direct, &c, &err);
    int rc = st == MOE_OK ? pack_source(cfg, xs_checkpoint_source(c)) : fail(&err);
    xs_checkpoint_close(c);
    return rc;
}

static int print_verified(const xs_pack_config *cfg, const char *store, const xs_verify_result *r)
{
    moe_text t;
    moe_text_init(&t);
    if (cfg->json) {
        moe_text_printf(&t, "{\"store\": ");
        moe_text_json_string(&t, store, strlen(store));
        moe_text_printf(&t,
                        ", \"n_extents\": %u, \"n_bad\": %u, \"bytes\": %" PRIu64
                        ", \"direct\": %s, \"seconds\": %.6f, \"gb_per_s\": %.4f}\n",
                        r->n_extents, r->n_bad, r->bytes, r->direct ? "true" : "false",
                        (double)r->ns / 1e9, gb_per_s(r->bytes, r->ns));
    } else {
        moe_text_printf(&t, "%s: %u extents read, %u bad; %.3f GB in %.2f s, %.2f GB/s\n", store,
                        r->n_extents, r->n_bad, (double)r->bytes / 1e9, (double)r->ns / 1e9,
                        gb_per_s(r->bytes, r->ns));
    }
    return print_text(&t);
}

static int verify_store(const xs_pack_config *cfg, const char *store)
{
    meter m;
    moe_err err = {0};
    xs_catalog *c = NULL;
    if (xs_catalog_open(store, &c, &err) != MOE_OK) {
        return fail(&err);
    }
    xs_verify_result result = {0};
    xs_verify_options opt = {
        .n_threads = (uint32_t)cfg->verify_threads, .direct = cfg->direct, .watch = watch_with(&m)};
    moe_status st = xs_verify(store, c, &opt, &result, &err);
    clear_line(&m);
    int rc = result.n_extents > 0 ? print_verified(cfg, store, &result) : EXIT_SUCCESS;
    xs_catalog_close(c);
    return st == MOE_OK ? rc : fail(&err);
}

static int inspect_store(const xs_pack_config *cfg, const char *store)
{
    moe_err err = {0};
    xs_catalog *c = NULL;
    if (xs_catalog_open(store, &c, &err) != MOE_OK) {
        return fail(&err);
    }
    moe_text t;
    moe_text_init(&t);
    (cfg->json ? xs_inspect_json : xs_inspect_text)(c, &t);
    xs_catalog_close(c);
    return print_text(&t);
}

static int add_predictors(const xs_pack_config *cfg, const char *store, const char *file)
{
    moe_err err = {0};
    moe_text t;
    xs_add_result r = {0};
    if (xs_add(store, file, cfg->test_kill_at, &r, &err) != MOE_OK) {
        return fail(&err);
    }
    moe_text_init(&t);
    if (cfg->json) {
        moe_text_printf(&t, "{\"store\": ");
        moe_text_json_string(&t, store, strlen(store));
        moe_text_printf(&t, ", \"n_added\": %u, \"n_dropped\": %u, \"bytes\": %" PRIu64 "}\n",
                        r.n_added, r.n_dropped, r.bytes);
    } else {
        moe_text_printf(&t,
                        "%s: %u predictors added, %u older ones dropped; an expert-store that runs "
                        "serves them once it is started again\n",
                        store, r.n_added, r.n_dropped);
    }
    return print_text(&t);
}

static int run(const xs_pack_config *cfg, const char **args, uint32_t n_args)
{
    if (n_args > 0 && strcmp(args[0], "add") == 0) {
        return n_args == 3 ? add_predictors(cfg, args[1], args[2])
                           : usage("add takes a store and a safetensors file");
    }
    bool verify = n_args > 0 && strcmp(args[0], "verify") == 0;
    if (verify || (n_args > 0 && strcmp(args[0], "inspect") == 0)) {
        if (n_args != 2) {
            return usage("verify and inspect take one store");
        }
        return verify ? verify_store(cfg, args[1]) : inspect_store(cfg, args[1]);
    }
    if ((*cfg->synthetic != '\0') == (n_args == 1) || n_args > 1) {
        return usage("give either one checkpoint directory or --synthetic MODEL");
    }
    if (*cfg->out == '\0') {
        return usage("--out NAME.store is missing");
    }
    if (cfg->buffer_bytes % MOE_CHUNK_BYTES != 0) {
        return usage("--buffer-bytes is not a multiple of 1 MiB");
    }
    return n_args == 1 ? pack_checkpoint(cfg, args[0]) : pack_synthetic(cfg);
}

int main(int argc, char **argv)
{
    xs_pack_config cfg = {0};
    const char *args[3] = {NULL, NULL, NULL};
    uint32_t n_args = 0;
    moe_config_action action = MOE_CONFIG_RUN;
    moe_err err = {0};
    moe_status st =
        moe_config_load(&xs_pack_config_spec, argc, argv, &cfg, args, 3, &n_args, &action, &err);
    if (st != MOE_OK) {
        (void)fail(&err);
        return EXIT_USAGE;
    }
    if (moe_config_answer(&xs_pack_config_spec, action, &cfg, stdout)) {
        return 0;
    }
    catch_signals();
    return run(&cfg, args, n_args);
}
