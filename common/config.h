/* config.h - settings as tables: one row gives parsing, bounds, --help, --print-config and docs.
 *
 * Order: default < file (--config FILE, INI, section = spec->section) < environment
 * (PREGATE_<SECTION>_<NAME>) < command line (--name value, --name=value; bools: --name, --no-name).
 * Names in the table use underscores; on the command line they use hyphens.
 * This is the only file that reads the environment. A loaded struct is const from then on.
 * Sizes accept B, KiB, MiB, GiB, TiB (and KB, MB, GB, TB as powers of ten).
 * A file may hold sections of other programs, which are skipped; its lines have at most 198 bytes.
 * Every error names the setting, where it came from, the value and what is allowed.
 */
#ifndef MOE_COMMON_CONFIG_H
#define MOE_COMMON_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/status.h"

typedef enum moe_config_type {
    MOE_CFG_STR,  /* char[MOE_CFG_STR_BYTES] */
    MOE_CFG_U64,  /* uint64_t */
    MOE_CFG_SIZE, /* uint64_t bytes */
    MOE_CFG_F64,  /* double */
    MOE_CFG_BOOL, /* bool */
    MOE_CFG_ENUM  /* int: index into choices "a|b|c" */
} moe_config_type;

enum { MOE_CFG_STR_BYTES = 512 };

typedef struct moe_config_row {
    const char *name;
    moe_config_type type;
    size_t offset;       /* offsetof(config struct, name) */
    double min, max;     /* inclusive, for numbers */
    const char *value;   /* default, as text */
    const char *choices; /* enums only */
    const char *help;
} moe_config_row;

/* Inside a file: #define ROW(field, type, min, max, dflt, help) MOE_ROW(xs_config, field, ...) */
#define MOE_ROW(struct_type, field, type, min, max, dflt, help)                                    \
    {                                                                                              \
#field, type, offsetof(struct_type, field), min, max, dflt, NULL, help                     \
    }
#define MOE_ROW_ENUM(struct_type, field, choices, dflt, help)                                      \
    {                                                                                              \
#field, MOE_CFG_ENUM, offsetof(struct_type, field), 0, 0, dflt, choices, help              \
    }

typedef struct moe_config_spec {
    const char *program;  /* "expert-store" */
    const char *section;  /* "store": INI section, and PREGATE_STORE_* */
    const char *synopsis; /* shown by --help after the program name */
    const char *about;    /* one or two sentences */
    const moe_config_row *rows;
    size_t n_rows;
    /* Subcommands, "run|serve"; NULL: none. A row whose help begins "run, serve: " concerns these
     * alone; after "; " other words may follow for others: "run: a prompt; serve: an address". */
    const char *commands;
    const char *command; /* --help leaves out what does not concern it; NULL: shows everything */
} moe_config_spec;

typedef enum moe_config_action {
    MOE_CONFIG_RUN = 0,
    MOE_CONFIG_HELP,        /* --help was given: print and exit 0 */
    MOE_CONFIG_VERSION,     /* --version */
    MOE_CONFIG_PRINT_CONFIG /* --print-config: the effective settings as an INI file */
} moe_config_action;

/* Positional arguments are moved to positional[0..*n_positional), at most max_positional (more is
 * an error that names the first unexpected one). Unknown options are an error that names the
 * nearest known one when there is a close match. */
MOE_MUST_CHECK moe_status moe_config_load(const moe_config_spec *spec, int argc, char **argv,
                                          void *out_config, const char **positional,
                                          uint32_t max_positional, uint32_t *out_n_positional,
                                          moe_config_action *out_action, moe_err *err);
void moe_config_help(const moe_config_spec *spec, FILE *out);
void moe_config_print(const moe_config_spec *spec, const void *config, FILE *out);
/* Prints what an action other than MOE_CONFIG_RUN asks for: true, and the program is done (exit 0).
 * False for MOE_CONFIG_RUN. */
bool moe_config_answer(const moe_config_spec *spec, moe_config_action action, const void *config,
                       FILE *out);
MOE_MUST_CHECK moe_status moe_parse_size(const char *text, uint64_t *out_bytes, moe_err *err);

/* Default endpoint: ipc://$XDG_RUNTIME_DIR/pregate/store.sock, else
 * ipc:///tmp/pregate-<uid>/store.sock. Writes at most out_bytes. */
MOE_MUST_CHECK moe_status moe_default_endpoint(char *out, size_t out_bytes, moe_err *err);

/* Build identity, set by CMake: "0.1.0 (commit)". */
extern const char moe_build_id[];

#endif
