/* config_value.h - one value of one settings row: from text, into the struct, back to text.
 * Private to common/config*.c. Threads: no state. */
#ifndef MOE_COMMON_CONFIG_VALUE_H
#define MOE_COMMON_CONFIG_VALUE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/config.h"

typedef union moe_config_value {
    char str[MOE_CFG_STR_BYTES];
    uint64_t u64; /* MOE_CFG_U64 and MOE_CFG_SIZE */
    double f64;
    bool flag;
    int choice;
} moe_config_value;

enum { MOE_CFG_ALLOWED_BYTES = 256, MOE_CFG_TEXT_BYTES = MOE_CFG_STR_BYTES };

/* MOE_ERR_INVALID: `origin: name = "text": expected ...`. *out is untouched on failure. */
MOE_MUST_CHECK moe_status moe_config_value_parse(const moe_config_row *row, const char *text,
                                                 const char *origin, moe_config_value *out,
                                                 moe_err *err);
/* Copies value to, or from, the row's field of a config struct. */
void moe_config_value_store(const moe_config_row *row, const moe_config_value *value, void *config);
void moe_config_value_load(const moe_config_row *row, const void *config, moe_config_value *out);
/* The text that parses back to the same value; out has MOE_CFG_TEXT_BYTES. */
void moe_config_value_format(const moe_config_row *row, const moe_config_value *value, char *out);
/* "a size from 4KiB to 4GiB", "one of lru, lfu"; out has MOE_CFG_ALLOWED_BYTES. */
void moe_config_value_allowed(const moe_config_row *row, char *out);

/* Which of "a|b|c" the first len characters of text are; false: none. */
bool moe_config_find_choice(const char *choices, const char *text, size_t len, int *out);

/* "slot_bytes" -> "slot-bytes" and "PREGATE_STORE_SLOT_BYTES". */
void moe_config_option_name(const moe_config_row *row, char *out, size_t out_bytes);
void moe_config_env_name(const moe_config_spec *spec, const moe_config_row *row, char *out,
                         size_t out_bytes);

#endif
