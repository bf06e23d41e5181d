/* config_help.c - --help and --print-config, made from the same rows that parse.
 * Called by main.c files, on the main thread; no state. */
#include <stdbool.h>
#include <string.h>

#include "common/config.h"
#include "common/config_value.h"

enum { LABEL_BYTES = 96, LINE_BYTES = 96, INDENT = 6 };
static const double NO_LIMIT = 1e15; /* a bound from here on is not worth a reader's time */

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

/* Prints text in lines of at most LINE_BYTES, each indented by INDENT. */
static void print_wrapped(const char *text, FILE *out)
{
    size_t room = LINE_BYTES - INDENT;
    while (*text != '\0') {
        size_t n = strlen(text);
        if (n > room) {
            n = room;
            while (n > 0 && text[n] != ' ') {
                n--;
            }
            n = n > 0 ? n : room; /* one word longer than a line */
        }
        fprintf(out, "%*s%.*s\n", INDENT, "", (int)n, text);
        text += n;
        text += strspn(text, " ");
    }
}

static bool has_limits(const moe_config_row *row)
{
    bool number = row->type == MOE_CFG_U64 || row->type == MOE_CFG_SIZE || row->type == MOE_CFG_F64;
    return number && row->max < NO_LIMIT;
}

static void print_row(const moe_config_spec *spec, const moe_config_row *row, FILE *out)
{
    char label[LABEL_BYTES];
    char env[96];
    char limits[MOE_CFG_ALLOWED_BYTES] = "";
    char facts[LABEL_BYTES + sizeof env + sizeof limits + MOE_CFG_STR_BYTES];
    row_label(row, label);
    moe_config_env_name(spec, row, env, sizeof env);
    if (has_limits(row)) {
        moe_config_value_allowed(row, limits);
    }
    snprintf(facts, sizeof facts, "[default %s; %s%s%s]",
             row->value[0] != '\0' ? row->value : "empty", limits, limits[0] != '\0' ? "; " : "",
             env);
    fprintf(out, "  %s\n", label);
    print_wrapped(row->help, out);
    print_wrapped(facts, out);
}

/* ---- rows of subcommands ---- */

/* Whether text begins "name, name: ", all of them commands; *out_names_it: one is spec->command. */
static bool names_commands(const moe_config_spec *spec, const char *text, bool *out_names_it)
{
    *out_names_it = false;
    while (true) {
        size_t len = strcspn(text, ",: ");
        int which = 0;
        if (!moe_config_find_choice(spec->commands, text, len, &which)) {
            return false;
        }
        *out_names_it |= strlen(spec->command) == len && strncmp(spec->command, text, len) == 0;
        text += len;
        if (strncmp(text, ": ", 2) == 0) {
            return true;
        }
        if (strncmp(text, ", ", 2) != 0) {
            return false;
        }
        text += 2;
    }
}

static bool concerns_command(const moe_config_spec *spec, const moe_config_row *row)
{
    bool names_it = false;
    if (spec->command == NULL || !names_commands(spec, row->help, &names_it)) {
        return true;
    }
    const char *part = row->help;
    while (!names_it && (part = strstr(part, "; ")) != NULL) {
        part += 2;
        names_it = names_commands(spec, part, &names_it) && names_it;
    }
    return names_it;
}

void moe_config_help(const moe_config_spec *spec, FILE *out)
{
    static const char *const fixed[][2] = {
        {"--config FILE", "read settings from an INI file"},
        {"--print-config", "print the effective settings as such a file and exit"},
        {"--version", "print the version and exit"},
        {"--help", "print this and exit"},
    };
    fprintf(out, "Usage: %s [OPTION]...%s%s\n\n%s\n\n", spec->program,
            spec->synopsis[0] != '\0' ? " " : "", spec->synopsis, spec->about);
    if (spec->command != NULL) {
        fprintf(out, "Settings of `%s`; %s --help shows those of the other commands, too.\n",
                spec->command, spec->program);
    }
    fprintf(out,
            "Each setting: default, then [%s] of the --config file, then the environment,\n"
            "then the command line.\n\n",
            spec->section);
    for (size_t i = 0; i < spec->n_rows; i++) {
        if (concerns_command(spec, &spec->rows[i])) {
            print_row(spec, &spec->rows[i], out);
        }
    }
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        fprintf(out, "  %s\n", fixed[i][0]);
        print_wrapped(fixed[i][1], out);
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

bool moe_config_answer(const moe_config_spec *spec, moe_config_action action, const void *config,
                       FILE *out)
{
    switch (action) {
    case MOE_CONFIG_HELP:
        moe_config_help(spec, out);
        return true;
    case MOE_CONFIG_VERSION:
        fprintf(out, "%s %s\n", spec->program, moe_build_id);
        return true;
    case MOE_CONFIG_PRINT_CONFIG:
        moe_config_print(spec, config, out);
        return true;
    case MOE_CONFIG_RUN:
        break;
    }
    return false;
}
