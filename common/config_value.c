/* config_value.c - the six kinds of setting: how each is read, checked, stored and written.
 * Called by config.c and config_help.c at start, on the main thread; no state. */
#include "common/config_value.h"

#include <ctype.h>
#include <errno.h>
#include <float.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/bytes.h"

static const struct {
    const char *name;
    uint64_t bytes;
} units[] = {
    /* binary first and largest first: format_size takes the first that divides */
    {"TiB", 1ull << 40},   {"GiB", 1ull << 30}, {"MiB", 1ull << 20}, {"KiB", 1ull << 10}, {"B", 1},
    {"TB", 1000000000000}, {"GB", 1000000000},  {"MB", 1000000},     {"KB", 1000},
};

enum { N_UNITS = sizeof units / sizeof units[0] };

/* Decimal digits only: strtoull would take signs and blanks. *out_rest is what follows them. */
static bool parse_digits(const char *text, uint64_t *out, const char **out_rest)
{
    if (!isdigit((unsigned char)*text)) {
        return false;
    }
    uint64_t value = 0;
    for (; isdigit((unsigned char)*text); text++) {
        if (!moe_mul_u64(value, 10, &value) ||
            !moe_add_u64(value, (uint64_t)(*text - '0'), &value)) {
            return false;
        }
    }
    *out = value;
    *out_rest = text;
    return true;
}

static bool parse_size(const char *text, uint64_t *out)
{
    uint64_t count = 0;
    const char *unit = NULL;
    if (!parse_digits(text, &count, &unit)) {
        return false;
    }
    while (*unit == ' ') {
        unit++;
    }
    if (*unit == '\0') {
        *out = count;
        return true;
    }
    for (size_t i = 0; i < N_UNITS; i++) {
        if (strcasecmp(unit, units[i].name) == 0) {
            return moe_mul_u64(count, units[i].bytes, out);
        }
    }
    return false;
}

moe_status moe_parse_size(const char *text, uint64_t *out_bytes, moe_err *err)
{
    if (!parse_size(text, out_bytes)) {
        return MOE_FAIL(err, MOE_ERR_INVALID,
                        "\"%s\": expected a size such as 4096, 64KiB, 32MiB or 2GiB", text);
    }
    return MOE_OK;
}

static void format_size(uint64_t bytes, char *out, size_t out_bytes)
{
    size_t i = 0;
    while (bytes == 0 ? units[i].bytes != 1 : bytes % units[i].bytes != 0) {
        i++; /* ends at "B" at the latest */
    }
    snprintf(out, out_bytes, "%llu%s", (unsigned long long)(bytes / units[i].bytes), units[i].name);
}

/* The shortest of the two texts that reads back as v. */
static void format_f64(double v, char *out, size_t out_bytes)
{
    snprintf(out, out_bytes, "%.15g", v);
    if (strtod(out, NULL) != v) {
        snprintf(out, out_bytes, "%.17g", v);
    }
}

/* Length of the i-th of "a|b|c", and its start; false when there are fewer. */
static bool nth_choice(const char *choices, int i, const char **out_start, size_t *out_len)
{
    for (; i > 0; i--) {
        choices = strchr(choices, '|');
        if (choices == NULL) {
            return false;
        }
        choices++;
    }
    *out_start = choices;
    *out_len = strcspn(choices, "|");
    return true;
}

bool moe_config_find_choice(const char *choices, const char *text, size_t len, int *out)
{
    const char *name = NULL;
    size_t name_len = 0;
    for (int i = 0; nth_choice(choices, i, &name, &name_len); i++) {
        if (name_len == len && strncmp(text, name, len) == 0) {
            *out = i;
            return true;
        }
    }
    return false;
}

static bool parse_flag(const char *text, bool *out)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strcasecmp(text, words[i]) == 0) {
            *out = i % 2 == 1;
            return true;
        }
    }
    return false;
}

/* What an INI file can hold: everything accepted anywhere can be printed and loaded back. */
static bool parse_str(const char *text, char *out)
{
    size_t len = strlen(text);
    if (len >= MOE_CFG_STR_BYTES || strstr(text, " ;") != NULL || text[0] == ';' ||
        (len > 0 && (text[0] == ' ' || text[len - 1] == ' '))) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        if (iscntrl((unsigned char)text[i])) {
            return false;
        }
    }
    memcpy(out, text, len + 1);
    return true;
}

static bool parse_f64(const char *text, double *out)
{
    char *end = NULL;
    double v = strtod(text, &end);
    if (end == text || *end != '\0' || isspace((unsigned char)*text)) {
        return false;
    }
    *out = v;
    return true;
}

static bool in_bounds(const moe_config_row *row, double v)
{
    return v >= row->min && v <= row->max;
}

static bool parse_value(const moe_config_row *row, const char *text, moe_config_value *out)
{
    const char *rest = NULL;
    switch (row->type) {
    case MOE_CFG_STR:
        return parse_str(text, out->str);
    case MOE_CFG_U64:
        return parse_digits(text, &out->u64, &rest) && *rest == '\0' &&
               in_bounds(row, (double)out->u64);
    case MOE_CFG_SIZE:
        return parse_size(text, &out->u64) && in_bounds(row, (double)out->u64);
    case MOE_CFG_F64:
        return parse_f64(text, &out->f64) && in_bounds(row, out->f64);
    case MOE_CFG_BOOL:
        return parse_flag(text, &out->flag);
    case MOE_CFG_ENUM:
        return moe_config_find_choice(row->choices, text, strlen(text), &out->choice);
    }
    return false;
}

moe_status moe_config_value_parse(const moe_config_row *row, const char *text, const char *origin,
                                  moe_config_value *out, moe_err *err)
{
    moe_config_value value = {0};
    if (!parse_value(row, text, &value)) {
        char allowed[MOE_CFG_ALLOWED_BYTES];
        moe_config_value_allowed(row, allowed);
        return MOE_FAIL(err, MOE_ERR_INVALID, "%s: %s = \"%.80s\": expected %s", origin, row->name,
                        text, allowed);
    }
    *out = value;
    return MOE_OK;
}

/* Where a value of this kind lives inside the union, and its size in the struct. */
static void *value_bytes(const moe_config_row *row, moe_config_value *value, size_t *out_bytes)
{
    switch (row->type) {
    case MOE_CFG_STR:
        break;
    case MOE_CFG_U64:
    case MOE_CFG_SIZE:
        *out_bytes = sizeof value->u64;
        return &value->u64;
    case MOE_CFG_F64:
        *out_bytes = sizeof value->f64;
        return &value->f64;
    case MOE_CFG_BOOL:
        *out_bytes = sizeof value->flag;
        return &value->flag;
    case MOE_CFG_ENUM:
        *out_bytes = sizeof value->choice;
        return &value->choice;
    }
    *out_bytes = sizeof value->str;
    return value->str;
}

void moe_config_value_store(const moe_config_row *row, const moe_config_value *value, void *config)
{
    moe_config_value copy = *value;
    size_t bytes = 0;
    const void *from = value_bytes(row, &copy, &bytes);
    memcpy((char *)config + row->offset, from, bytes);
}

void moe_config_value_load(const moe_config_row *row, const void *config, moe_config_value *out)
{
    size_t bytes = 0;
    *out = (moe_config_value){0};
    void *to = value_bytes(row, out, &bytes);
    memcpy(to, (const char *)config + row->offset, bytes);
}

void moe_config_value_format(const moe_config_row *row, const moe_config_value *value, char *out)
{
    const char *name = "?";
    size_t len = 1;
    switch (row->type) {
    case MOE_CFG_STR:
        memcpy(out, value->str, sizeof value->str);
        break;
    case MOE_CFG_U64:
        snprintf(out, MOE_CFG_TEXT_BYTES, "%llu", (unsigned long long)value->u64);
        break;
    case MOE_CFG_SIZE:
        format_size(value->u64, out, MOE_CFG_TEXT_BYTES);
        break;
    case MOE_CFG_F64:
        format_f64(value->f64, out, MOE_CFG_TEXT_BYTES);
        break;
    case MOE_CFG_BOOL:
        snprintf(out, MOE_CFG_TEXT_BYTES, "%s", value->flag ? "true" : "false");
        break;
    case MOE_CFG_ENUM:
        nth_choice(row->choices, value->choice, &name, &len);
        snprintf(out, MOE_CFG_TEXT_BYTES, "%.*s", (int)len, name);
        break;
    }
}

/* A bound of a whole-number setting; a double may round 2^64 - 1 up to 2^64. */
static uint64_t bound_u64(double v)
{
    return v >= 0x1p64 ? UINT64_MAX : v <= 0 ? 0 : (uint64_t)v;
}

void moe_config_value_allowed(const moe_config_row *row, char *out)
{
    char low[40];
    char high[40];
    switch (row->type) {
    case MOE_CFG_STR:
        snprintf(
            out, MOE_CFG_ALLOWED_BYTES,
            "text of at most %d bytes without control characters, \" ;\" or blanks at its ends",
            MOE_CFG_STR_BYTES - 1);
        break;
    case MOE_CFG_U64:
        snprintf(out, MOE_CFG_ALLOWED_BYTES, "a whole number from %llu to %llu",
                 (unsigned long long)bound_u64(row->min), (unsigned long long)bound_u64(row->max));
        break;
    case MOE_CFG_SIZE:
        format_size(bound_u64(row->min), low, sizeof low);
        format_size(bound_u64(row->max), high, sizeof high);
        snprintf(out, MOE_CFG_ALLOWED_BYTES, "a size from %s to %s, such as 64KiB or 2GiB", low,
                 high);
        break;
    case MOE_CFG_F64:
        format_f64(row->min, low, sizeof low);
        format_f64(row->max, high, sizeof high);
        snprintf(out, MOE_CFG_ALLOWED_BYTES, "a number from %s to %s", low, high);
        break;
    case MOE_CFG_BOOL:
        snprintf(out, MOE_CFG_ALLOWED_BYTES, "true or false");
        break;
    case MOE_CFG_ENUM:
        snprintf(out, MOE_CFG_ALLOWED_BYTES, "one of %s", row->choices);
        break;
    }
}

void moe_config_option_name(const moe_config_row *row, char *out, size_t out_bytes)
{
    snprintf(out, out_bytes, "%s", row->name);
    for (char *c = out; *c != '\0'; c++) {
        *c = *c == '_' ? '-' : *c;
    }
}

void moe_config_env_name(const moe_config_spec *spec, const moe_config_row *row, char *out,
                         size_t out_bytes)
{
    snprintf(out, out_bytes, "PREGATE_%s_%s", spec->section, row->name);
    for (char *c = out; *c != '\0'; c++) {
        *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
    }
}
