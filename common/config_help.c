/* config_help.c - --help and --print-config, made from the same rows that parse.
 * Called by main.c files, on the main thread; no state. */
#include <string.h>

#include "common/config.h"
#include "common/config_value.h"

enum { LABEL_BYTES = 96 };

static const char *value_hint(const moe_config_row *row)
{
    switch (row->type) {
    case MOE_CFG_STR:
        return "TEXT";
    case MOE_CFG_U64:
    case MOE_CFG_F64:
        return "N";
    case MOE_CFG_SIZE:
        return "SIZE";
    case MOE_CFG_ENUM:
        return row->choices;
    case MOE_CFG_BOOL:
        break;
    }
    return "";
}

/* "--slot-bytes SIZE", "--[no-]direct-io". */
static void row_label(const moe_config_row *row, char *out)
{
    char option[64];
    moe_config_option_name(row, option, sizeof option);
    if (row->type == MOE_CFG_BOOL) {
        snprintf(out, LABEL_BYTES, "--[no-]%s", option);
    } else {
        snprintf(out, LABEL_BYTES, "--%s %s", option, value_hint(row));
    }
}

static void print_row(const moe_config_spec *spec, const moe_config_row *row, int width, FILE *out)
{
    char label[LABEL_BYTES];
    char env[96];
    char limits[MOE_CFG_ALLOWED_BYTES] = "";
    row_label(row, label);
    moe_config_env_name(spec, row, env, sizeof env);
    if (row->type == MOE_CFG_U64 || row->type == MOE_CFG_SIZE || row->type == MOE_CFG_F64) {
        moe_config_value_allowed(row, limits);
    }
    fprintf(out, "  %-*s  %s\n", width, label, row->help);
    fprintf(out, "  %-*s  [default %s; %s%s%s]\n", width, "",
            row->value[0] != '\0' ? row->value : "empty", limits, limits[0] != '\0' ? "; " : "",
            env);
}

void moe_config_help(const moe_config_spec *spec, FILE *out)
{
    static const char *const fixed[][2] = {
        {"--config FILE", "read settings from an INI file"},
        {"--print-config", "print the effective settings as such a file and exit"},
        {"--version", "print the version and exit"},
        {"--help", "print this and exit"},
    };
    char label[LABEL_BYTES];
    int width = 0;
    for (size_t i = 0; i < spec->n_rows; i++) {
        row_label(&spec->rows[i], label);
        int len = (int)strlen(label);
        width = len > width ? len : width;
    }
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        int len = (int)strlen(fixed[i][0]);
        width = len > width ? len : width;
    }
    fprintf(out, "Usage: %s [OPTION]...%s%s\n\n%s\n\n", spec->program,
            spec->synopsis[0] != '\0' ? " " : "", spec->synopsis, spec->about);
    fprintf(out,
            "Each setting: default, then [%s] of the --config file, then the environment, "
            "then the command line.\n\n",
            spec->section);
    for (size_t i = 0; i < spec->n_rows; i++) {
        print_row(spec, &spec->rows[i], width, out);
    }
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        fprintf(out, "  %-*s  %s\n", width, fixed[i][0], fixed[i][1]);
    }
}

void moe_config_print(const moe_config_spec *spec, const void *config, FILE *out)
{
    fprintf(out, "# %s %s: effective settings\n[%s]\n", spec->program, moe_build_id, spec->section);
    for (size_t i = 0; i < spec->n_rows; i++) {
        const moe_config_row *row = &spec->rows[i];
        moe_config_value value = {0};
        char text[MOE_CFG_TEXT_BYTES];
        moe_config_value_load(row, config, &value);
        moe_config_value_format(row, &value, text);
        fprintf(out, "\n# %s\n%s = %s\n", row->help, row->name, text);
    }
}
