/* config.c - collects settings from their four sources, in order, and only then fills the struct.
 * Called by main.c files at start, on the main thread; the only reader of the environment. Holds
 * nothing between calls. */
#include "common/config.h"

#include <ini.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/config_value.h"
#include "common/file.h"

enum {
    ORIGIN_BYTES = 160,      /* "environment PREGATE_STORE_SLOT_BYTES" */
    MAX_FILE_BYTES = 1 << 20 /* of an INI file */
};

typedef struct loader {
    const moe_config_spec *spec; /* borrowed */
    moe_config_value *values;    /* [n_rows] owned: what the sources said so far */
    const char **positional;     /* [max_positional] borrowed from the caller */
    uint32_t max_positional, n_positional;
    const char *config_path; /* borrowed from argv; NULL without --config */
    moe_config_action action;
    moe_err *err;
} loader;

/* Options that are not settings. */
static const char *const fixed_options[] = {"help", "version", "print-config", "config"};
enum { N_FIXED = sizeof fixed_options / sizeof fixed_options[0] };

/* Names are equal when they differ in hyphens and underscores only; name has len bytes. */
static bool same_name(const char *name, size_t len, const char *known)
{
    if (strlen(known) != len) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        char a = name[i] == '-' ? '_' : name[i];
        char b = known[i] == '-' ? '_' : known[i];
        if (a != b) {
            return false;
        }
    }
    return true;
}

static const moe_config_row *find_row(const moe_config_spec *spec, const char *name, size_t len,
                                      size_t *out_index)
{
    for (size_t i = 0; i < spec->n_rows; i++) {
        if (same_name(name, len, spec->rows[i].name)) {
            *out_index = i;
            return &spec->rows[i];
        }
    }
    return NULL;
}

/* Levenshtein distance of two short names; hyphens and underscores are alike. */
static size_t edit_distance(const char *a, size_t a_len, const char *b)
{
    enum { MAX_NAME = 63 };
    size_t b_len = strlen(b);
    if (a_len > MAX_NAME || b_len > MAX_NAME) {
        return SIZE_MAX;
    }
    size_t row[MAX_NAME + 1];
    for (size_t j = 0; j <= b_len; j++) {
        row[j] = j;
    }
    for (size_t i = 1; i <= a_len; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_len; j++) {
            size_t above = row[j];
            size_t best = diagonal + (same_name(a + i - 1, 1, (char[2]){b[j - 1], '\0'}) ? 0 : 1);
            best = above + 1 < best ? above + 1 : best;
            best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            row[j] = best;
            diagonal = above;
        }
    }
    return row[b_len];
}

static void consider(const char *name, size_t len, const char *known, size_t *best_distance,
                     const char **best)
{
    size_t distance = edit_distance(name, len, known);
    if (distance < *best_distance) {
        *best_distance = distance;
        *best = known;
    }
}

/* The known name closest to a mistyped one; NULL when nothing is close (a third of its length). */
static const char *nearest(const loader *l, const char *name, size_t len, bool with_fixed)
{
    const char *best = NULL;
    size_t best_distance = len / 3 + 2;
    for (size_t i = 0; i < l->spec->n_rows; i++) {
        consider(name, len, l->spec->rows[i].name, &best_distance, &best);
    }
    for (size_t i = 0; with_fixed && i < N_FIXED; i++) {
        consider(name, len, fixed_options[i], &best_distance, &best);
    }
    return best;
}

static moe_status set(loader *l, size_t row, const char *text, const char *origin)
{
    return moe_config_value_parse(&l->spec->rows[row], text, origin, &l->values[row], l->err);
}

static void load_defaults(loader *l)
{
    for (size_t i = 0; i < l->spec->n_rows; i++) {
        moe_status st = set(l, i, l->spec->rows[i].value, "default");
        MOE_ASSERT(st == MOE_OK); /* a table row that refuses its own default is our bug */
    }
}

/* ---- file ---- */

/* inih calls the reader once per line and the handler while that line is current. Reading lines
 * ourselves gives errors their line number, refuses what inih would silently cut, and drops
 * indentation, which inih would take for the continuation of the line above. */
typedef struct ini_source {
    loader *l;
    const char *at; /* borrowed: the rest of the file */
    int line;
    moe_status status; /* of the first error */
} ini_source;

static char *next_line(char *out, int out_bytes, void *user)
{
    ini_source *src = user;
    if (*src->at == '\0' || src->status != MOE_OK) {
        return NULL;
    }
    src->line++;
    const char *start = src->at + strspn(src->at, " \t");
    size_t len = strcspn(start, "\r\n");
    src->at = start + len;
    src->at += *src->at == '\r' ? 1 : 0;
    src->at += *src->at == '\n' ? 1 : 0;
    if (len + 1 >= (size_t)out_bytes) {
        src->status = MOE_FAIL(src->l->err, MOE_ERR_LIMIT,
                               "%s:%d: the line has %zu bytes, at most %d are read",
                               src->l->config_path, src->line, len, out_bytes - 2);
        return NULL;
    }
    memcpy(out, start, len);
    out[len] = '\n';
    out[len + 1] = '\0';
    return out;
}

/* Sections of other programs may share the file; a near miss of our own is a typing error. */
static moe_status check_section(loader *l, const char *section, const char *origin, bool *out_ours)
{
    *out_ours = strcmp(section, l->spec->section) == 0;
    if (*out_ours) {
        return MOE_OK;
    }
    if (section[0] == '\0') {
        return MOE_FAIL(l->err, MOE_ERR_INVALID,
                        "%s: a setting before any section: put it under "
                        "[%s]",
                        origin, l->spec->section);
    }
    if (edit_distance(section, strlen(section), l->spec->section) <= 1) {
        return MOE_FAIL(l->err, MOE_ERR_INVALID, "%s: section [%s]: did you mean [%s]?", origin,
                        section, l->spec->section);
    }
    return MOE_OK;
}

static int on_ini_pair(void *user, const char *section, const char *name, const char *value)
{
    ini_source *src = user;
    loader *l = src->l;
    char origin[ORIGIN_BYTES];
    bool ours = false;
    size_t row = 0;
    snprintf(origin, sizeof origin, "%s:%d", l->config_path, src->line);
    src->status = check_section(l, section, origin, &ours);
    if (src->status != MOE_OK || !ours) {
        return src->status == MOE_OK;
    }
    if (find_row(l->spec, name, strlen(name), &row) == NULL) {
        const char *close = nearest(l, name, strlen(name), false);
        src->status = MOE_FAIL(l->err, MOE_ERR_INVALID, "%s: unknown setting \"%.60s\"%s%s%s",
                               origin, name, close != NULL ? ": did you mean \"" : "",
                               close != NULL ? close : "", close != NULL ? "\"?" : "");
        return 0;
    }
    src->status = set(l, row, value, origin);
    return src->status == MOE_OK;
}

static moe_status load_file(loader *l)
{
    if (l->config_path == NULL) {
        return MOE_OK;
    }
    char *text = NULL;
    size_t bytes = 0;
    moe_status st = moe_file_read(l->config_path, MAX_FILE_BYTES, &text, &bytes, l->err);
    if (st != MOE_OK) {
        return st;
    }
    ini_source src = {.l = l, .at = text};
    int bad_line = ini_parse_stream(next_line, &src, on_ini_pair, &src);
    st = src.status;
    if (st == MOE_OK && strlen(text) != bytes) {
        st = MOE_FAIL(l->err, MOE_ERR_FORMAT, "%s: not a text file", l->config_path);
    } else if (st == MOE_OK && bad_line != 0) {
        st = MOE_FAIL(l->err, MOE_ERR_FORMAT, "%s:%d: expected [section] or name = value",
                      l->config_path, bad_line);
    }
    free(text);
    return st;
}

/* ---- environment ---- */

static moe_status load_environment(loader *l)
{
    for (size_t i = 0; i < l->spec->n_rows; i++) {
        char name[96];
        char origin[ORIGIN_BYTES];
        moe_config_env_name(l->spec, &l->spec->rows[i], name, sizeof name);
        const char *text = getenv(name);
        if (text == NULL) {
            continue;
        }
        snprintf(origin, sizeof origin, "environment %s", name);
        moe_status st = set(l, i, text, origin);
        if (st != MOE_OK) {
            return st;
        }
    }
    return MOE_OK;
}

/* ---- command line ---- */

typedef struct option {
    const char *name; /* borrowed from argv: after the two hyphens, name_len long */
    size_t name_len;
    const char *value; /* borrowed: after '=', or NULL */
} option;

static option split_option(const char *arg)
{
    const char *name = arg + 2;
    size_t len = strcspn(name, "=");
    return (option){
        .name = name, .name_len = len, .value = name[len] == '=' ? name + len + 1 : NULL};
}

static moe_status unknown_option(const loader *l, const option *opt)
{
    const char *close = nearest(l, opt->name, opt->name_len, true);
    char dashed[64] = "";
    if (close != NULL) {
        snprintf(dashed, sizeof dashed, ": did you mean --%s?", close);
    }
    for (char *c = dashed; *c != '\0'; c++) {
        *c = *c == '_' ? '-' : *c;
    }
    return MOE_FAIL(l->err, MOE_ERR_INVALID, "unknown option --%.*s%s", (int)opt->name_len,
                    opt->name, dashed[0] != '\0' ? dashed : "; --help lists all options");
}

/* The value of an option: after '=', else the next argument, which *at then points to. */
static moe_status option_value(const loader *l, const option *opt, int argc, char **argv, int *at,
                               const char **out_value)
{
    if (opt->value != NULL) {
        *out_value = opt->value;
        return MOE_OK;
    }
    if (*at + 1 >= argc || strncmp(argv[*at + 1], "--", 2) == 0) {
        return MOE_FAIL(l->err, MOE_ERR_INVALID,
                        "option --%.*s needs a value (--%.*s=VALUE if it begins with --)",
                        (int)opt->name_len, opt->name, (int)opt->name_len, opt->name);
    }
    *out_value = argv[++*at];
    return MOE_OK;
}

static moe_status set_from_option(loader *l, size_t row, const char *text)
{
    char name[64];
    char origin[ORIGIN_BYTES];
    moe_config_option_name(&l->spec->rows[row], name, sizeof name);
    snprintf(origin, sizeof origin, "command line --%s", name);
    return set(l, row, text, origin);
}

/* Actions and --config; false when opt is not one of them. */
static bool fixed_option(loader *l, const option *opt, int argc, char **argv, int *at,
                         moe_status *out_status)
{
    *out_status = MOE_OK;
    if (same_name(opt->name, opt->name_len, "print-config") && opt->value == NULL) {
        l->action = MOE_CONFIG_PRINT_CONFIG;
        return true;
    }
    if (same_name(opt->name, opt->name_len, "config")) {
        *out_status = option_value(l, opt, argc, argv, at, &l->config_path);
        return true;
    }
    return false;
}

static moe_status load_option(loader *l, int argc, char **argv, int *at, bool only_config)
{
    option opt = split_option(argv[*at]);
    const char *text = NULL;
    size_t row = 0;
    moe_status st = MOE_OK;
    if (fixed_option(l, &opt, argc, argv, at, &st)) {
        return st;
    }
    const moe_config_row *known = find_row(l->spec, opt.name, opt.name_len, &row);
    if (known != NULL && known->type == MOE_CFG_BOOL) {
        text = opt.value != NULL ? opt.value : "true";
    } else if (known != NULL) {
        st = option_value(l, &opt, argc, argv, at, &text);
    } else if (opt.name_len > 3 && strncmp(opt.name, "no-", 3) == 0 && opt.value == NULL) {
        known = find_row(l->spec, opt.name + 3, opt.name_len - 3, &row);
        known = known != NULL && known->type == MOE_CFG_BOOL ? known : NULL;
        text = "false";
    }
    if (known == NULL) {
        return unknown_option(l, &opt);
    }
    if (st != MOE_OK || only_config) {
        return st;
    }
    return set_from_option(l, row, text);
}

static moe_status add_positional(loader *l, const char *arg)
{
    if (l->n_positional == l->max_positional) {
        return MOE_FAIL(l->err, MOE_ERR_INVALID,
                        "unexpected argument \"%.100s\"; --help shows the "
                        "usage",
                        arg);
    }
    l->positional[l->n_positional++] = arg;
    return MOE_OK;
}

/* Walks argv twice: the first time (only_config) to find --config before the file and the
 * environment are read, the second time to set values over theirs. */
static moe_status walk_arguments(loader *l, int argc, char **argv, bool only_config)
{
    bool options_ended = false;
    l->n_positional = 0;
    for (int at = 1; at < argc; at++) {
        const char *arg = argv[at];
        moe_status st = MOE_OK;
        if (!options_ended && strcmp(arg, "--") == 0) {
            options_ended = true;
        } else if (!options_ended && strncmp(arg, "--", 2) == 0) {
            st = load_option(l, argc, argv, &at, only_config);
        } else if (!options_ended && arg[0] == '-' && arg[1] != '\0') {
            st = MOE_FAIL(l->err, MOE_ERR_INVALID,
                          "unknown option %.60s: options are long, as in "
                          "--help",
                          arg);
        } else {
            st = add_positional(l, arg);
        }
        if (st != MOE_OK) {
            return st;
        }
    }
    return MOE_OK;
}

/* --help and --version win over everything, even over a setting that is wrong. */
static bool asks_for_help(int argc, char **argv, moe_config_action *out_action)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "--version") == 0) {
            *out_action = argv[i][2] == 'h' ? MOE_CONFIG_HELP : MOE_CONFIG_VERSION;
            return true;
        }
    }
    return false;
}

static moe_status load_all(loader *l, int argc, char **argv)
{
    load_defaults(l);
    moe_status st = walk_arguments(l, argc, argv, true);
    if (st == MOE_OK) {
        st = load_file(l);
    }
    if (st == MOE_OK) {
        st = load_environment(l);
    }
    if (st == MOE_OK) {
        st = walk_arguments(l, argc, argv, false);
    }
    return st;
}

moe_status moe_config_load(const moe_config_spec *spec, int argc, char **argv, void *out_config,
                           const char **positional, uint32_t max_positional,
                           uint32_t *out_n_positional, moe_config_action *out_action, moe_err *err)
{
    if (asks_for_help(argc, argv, out_action)) {
        return MOE_OK;
    }
    loader l = {.spec = spec,
                .positional = positional,
                .max_positional = max_positional,
                .action = MOE_CONFIG_RUN,
                .err = err};
    l.values = calloc(spec->n_rows > 0 ? spec->n_rows : 1, sizeof *l.values);
    if (l.values == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%zu settings", spec->n_rows);
    }
    moe_status st = load_all(&l, argc, argv);
    if (st == MOE_OK) {
        for (size_t i = 0; i < spec->n_rows; i++) {
            moe_config_value_store(&spec->rows[i], &l.values[i], out_config);
        }
        if (out_n_positional != NULL) {
            *out_n_positional = l.n_positional;
        }
        *out_action = l.action;
    }
    free(l.values);
    return st;
}

moe_status moe_default_endpoint(char *out, size_t out_bytes, moe_err *err)
{
    char endpoint[512];
    size_t limit = sizeof((struct sockaddr_un *)NULL)->sun_path - 1;
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    int len = 0;
    if (runtime != NULL && runtime[0] == '/') {
        len = snprintf(endpoint, sizeof endpoint, "ipc://%s/pregate/store.sock", runtime);
    } else {
        len = snprintf(endpoint, sizeof endpoint, "ipc:///tmp/pregate-%u/store.sock",
                       (unsigned)getuid());
    }
    if ((size_t)len > limit + strlen("ipc://")) {
        return MOE_FAIL(err, MOE_ERR_LIMIT,
                        "XDG_RUNTIME_DIR is too long: a socket path has at most %zu bytes", limit);
    }
    if ((size_t)len >= out_bytes) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "the endpoint %s needs %d bytes, %zu are there",
                        endpoint, len + 1, out_bytes);
    }
    memcpy(out, endpoint, (size_t)len + 1);
    return MOE_OK;
}
