/* Settings: sources and their order, bounds, error texts, help and printing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/config.h"

typedef struct demo_config {
    char endpoint[MOE_CFG_STR_BYTES];
    uint64_t n_slots;
    uint64_t slot_bytes;
    double rate;
    bool direct_io;
    int policy;
} demo_config;

#define ROW(field, type, min, max, dflt, help)                                                     \
    MOE_ROW(demo_config, field, type, min, max, dflt, help)
static const moe_config_row rows[] = {
    ROW(endpoint, MOE_CFG_STR, 0, 0, "ipc://default", "where the store listens"),
    ROW(n_slots, MOE_CFG_U64, 1, 1000, "8", "slots in the pool"),
    ROW(slot_bytes, MOE_CFG_SIZE, 4096, 4294967296.0, "32MiB", "one pinned slot"),
    ROW(rate, MOE_CFG_F64, -1, 1.5, "0.1", "a rate"),
    ROW(direct_io, MOE_CFG_BOOL, 0, 0, "true", "read with O_DIRECT"),
    MOE_ROW_ENUM(demo_config, policy, "lru|lfu|lifo", "lfu", "eviction policy"),
};
static const moe_config_spec spec = {.program = "demo",
                                     .section = "demo",
                                     .synopsis = "[FILE]",
                                     .about = "Tries settings.",
                                     .rows = rows,
                                     .n_rows = sizeof rows / sizeof rows[0]};

enum { MAX_ARGS = 16, MAX_POSITIONAL = 2 };

typedef struct outcome {
    moe_status status;
    moe_config_action action;
    demo_config config;
    const char *positional[MAX_POSITIONAL];
    uint32_t n_positional;
    moe_err err;
} outcome;

/* Loads with the given arguments; the list ends with NULL. */
static outcome load(const char *const *args)
{
    static char *argv[MAX_ARGS];
    int argc = 0;
    argv[argc++] = (char *)(uintptr_t) "demo";
    for (; *args != NULL; args++) {
        argv[argc++] = (char *)(uintptr_t)*args;
    }
    outcome o = {.config.n_slots = 4711, .action = (moe_config_action)77};
    o.status = moe_config_load(&spec, argc, argv, &o.config, o.positional, MAX_POSITIONAL,
                               &o.n_positional, &o.action, &o.err);
    return o;
}
#define LOAD(...) load((const char *const[]){__VA_ARGS__, NULL})
#define LOAD_NOTHING() load((const char *const[]){NULL})

static void expect_error(const outcome *o, const char *text)
{
    assert_int_equal(MOE_ERR_INVALID, o->status);
    assert_string_equal(text, o->err.text);
    assert_int_equal(4711, o->config.n_slots); /* untouched */
    assert_int_equal(77, o->action);
}

static char config_path[64];

/* Writes an INI file; its path is config_path. */
static void write_ini(const char *text)
{
    snprintf(config_path, sizeof config_path, "/tmp/pregate-test-config-%ld.ini", (long)getpid());
    FILE *f = fopen(config_path, "we");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int clean_up(void **state)
{
    (void)state;
    unsetenv("PREGATE_DEMO_N_SLOTS");
    unsetenv("PREGATE_DEMO_POLICY");
    if (config_path[0] != '\0') {
        unlink(config_path);
    }
    return 0;
}

static void defaults_apply_when_nothing_is_said(void **state)
{
    (void)state;
    outcome o = LOAD_NOTHING();
    assert_int_equal(MOE_OK, o.status);
    assert_int_equal(MOE_CONFIG_RUN, o.action);
    assert_string_equal("ipc://default", o.config.endpoint);
    assert_int_equal(8, o.config.n_slots);
    assert_int_equal(32 << 20, o.config.slot_bytes);
    assert_true(o.config.rate == 0.1);
    assert_true(o.config.direct_io);
    assert_int_equal(1, o.config.policy);
    assert_int_equal(0, o.n_positional);
}

static void later_sources_win(void **state)
{
    (void)state;
    write_ini("[demo]\nn_slots = 10\npolicy = lru\nrate = 1\n");
    outcome o = LOAD("--config", config_path);
    assert_int_equal(10, o.config.n_slots);
    setenv("PREGATE_DEMO_N_SLOTS", "11", 1);
    setenv("PREGATE_DEMO_POLICY", "lifo", 1);
    o = LOAD("--config", config_path);
    assert_int_equal(11, o.config.n_slots);
    assert_int_equal(2, o.config.policy);
    o = LOAD("--n-slots", "12", "--config", config_path);
    assert_int_equal(12, o.config.n_slots); /* also when it stands before --config */
    assert_int_equal(2, o.config.policy);
    assert_true(o.config.rate == 1);
}

static void both_spellings_of_an_option_work(void **state)
{
    (void)state;
    outcome o = LOAD("--slot-bytes=64KiB", "--endpoint", "tcp://x=y", "--rate", "-1");
    assert_int_equal(MOE_OK, o.status);
    assert_int_equal(65536, o.config.slot_bytes);
    assert_string_equal("tcp://x=y", o.config.endpoint);
    assert_true(o.config.rate == -1);
    o = LOAD("--endpoint=");
    assert_int_equal(MOE_OK, o.status);
    assert_string_equal("", o.config.endpoint);
}

static void flags_can_be_switched_off_and_on(void **state)
{
    (void)state;
    assert_false(LOAD("--no-direct-io").config.direct_io);
    assert_true(LOAD("--no-direct-io", "--direct-io").config.direct_io);
    assert_false(LOAD("--direct-io=off").config.direct_io);
    outcome o = LOAD("--direct-io=maybe");
    expect_error(&o, "command line --direct-io: direct_io = \"maybe\": expected true or false");
    o = LOAD("--no-n-slots");
    assert_int_equal(MOE_ERR_INVALID, o.status); /* not a flag */
}

static void positional_arguments_are_collected(void **state)
{
    (void)state;
    outcome o = LOAD("one", "--n-slots", "3", "-");
    assert_int_equal(2, o.n_positional);
    assert_string_equal("one", o.positional[0]);
    assert_string_equal("-", o.positional[1]);
    o = LOAD("--", "--help", "-x");
    assert_int_equal(MOE_CONFIG_RUN, o.action);
    assert_string_equal("--help", o.positional[0]);
    o = LOAD("one", "two", "three");
    expect_error(&o, "unexpected argument \"three\"; --help shows the usage");
}

static void every_bad_value_names_setting_source_value_and_range(void **state)
{
    (void)state;
    outcome o = LOAD("--n-slots", "0");
    expect_error(&o,
                 "command line --n-slots: n_slots = \"0\": expected a whole number from 1 to 1000");
    o = LOAD("--slot-bytes", "3KiB");
    expect_error(&o, "command line --slot-bytes: slot_bytes = \"3KiB\": expected a size from 4KiB "
                     "to 4GiB, such as 64KiB or 2GiB");
    o = LOAD("--rate=2");
    expect_error(&o, "command line --rate: rate = \"2\": expected a number from -1 to 1.5");
    o = LOAD("--policy=fifo");
    expect_error(&o, "command line --policy: policy = \"fifo\": expected one of lru|lfu|lifo");
    setenv("PREGATE_DEMO_N_SLOTS", "many", 1);
    o = LOAD_NOTHING();
    expect_error(&o, "environment PREGATE_DEMO_N_SLOTS: n_slots = \"many\": expected a whole "
                     "number from 1 to 1000");
}

static void sloppy_numbers_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"",   " 5",  "5 ",  "+5",  "-5",
                                      "5x", "0x5", "5.0", "1e2", "99999999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char arg[64];
        snprintf(arg, sizeof arg, "--n-slots=%s", bad[i]);
        assert_int_equal(MOE_ERR_INVALID, LOAD(arg).status);
    }
    static const char *const bad_rates[] = {"", "nan", "inf", "0.5x", " 0.5"};
    for (size_t i = 0; i < sizeof bad_rates / sizeof bad_rates[0]; i++) {
        char arg[64];
        snprintf(arg, sizeof arg, "--rate=%s", bad_rates[i]);
        assert_int_equal(MOE_ERR_INVALID, LOAD(arg).status);
    }
    assert_int_equal(MOE_ERR_INVALID, LOAD("--policy=").status);
    assert_int_equal(MOE_ERR_INVALID, LOAD("--policy=lru|lfu").status);
}

static void text_that_an_ini_file_cannot_hold_is_refused(void **state)
{
    (void)state;
    char longest[600] = "--endpoint=";
    memset(longest + 11, 'x', 511);
    assert_int_equal(MOE_OK, LOAD(longest).status);
    longest[11 + 511] = 'x';
    assert_int_equal(MOE_ERR_INVALID, LOAD(longest).status);
    assert_int_equal(MOE_ERR_INVALID, LOAD("--endpoint=a\nb").status);
    assert_int_equal(MOE_ERR_INVALID, LOAD("--endpoint=a ;b").status);
    assert_int_equal(MOE_ERR_INVALID, LOAD("--endpoint= a").status);
    assert_int_equal(MOE_OK, LOAD("--endpoint=a b;c").status);
}

static void an_unknown_option_suggests_the_nearest(void **state)
{
    (void)state;
    outcome o = LOAD("--slot-byte", "1");
    expect_error(&o, "unknown option --slot-byte: did you mean --slot-bytes?");
    o = LOAD("--endpiont=x");
    expect_error(&o, "unknown option --endpiont: did you mean --endpoint?");
    o = LOAD("--print-confg");
    expect_error(&o, "unknown option --print-confg: did you mean --print-config?");
    o = LOAD("--frobnicate");
    expect_error(&o, "unknown option --frobnicate; --help lists all options");
    o = LOAD("-n");
    expect_error(&o, "unknown option -n: options are long, as in --help");
}

static void a_missing_value_is_not_taken_from_the_next_option(void **state)
{
    (void)state;
    outcome o = LOAD("--endpoint", "--n-slots");
    expect_error(&o, "option --endpoint needs a value (--endpoint=VALUE if it begins with --)");
    o = LOAD("--n-slots");
    expect_error(&o, "option --n-slots needs a value (--n-slots=VALUE if it begins with --)");
}

static void file_errors_name_the_line(void **state)
{
    (void)state;
    char expected[256];
    write_ini("# comment\n\n[demo]\nn_slots = 0\n");
    outcome o = LOAD("--config", config_path);
    snprintf(expected, sizeof expected,
             "%s:4: n_slots = \"0\": expected a whole number from 1 to 1000", config_path);
    expect_error(&o, expected);
    write_ini("[demo]\nn_slot = 1\n");
    o = LOAD("--config", config_path);
    snprintf(expected, sizeof expected,
             "%s:2: unknown setting \"n_slot\": did you mean \"n_slots\"?", config_path);
    expect_error(&o, expected);
    write_ini("n_slots = 1\n");
    o = LOAD("--config", config_path);
    snprintf(expected, sizeof expected, "%s:1: a setting before any section: put it under [demo]",
             config_path);
    expect_error(&o, expected);
    write_ini("[demo]\nn_slots = 1\n");
    assert_int_equal(MOE_OK, LOAD("--config", config_path).status); /* two edits: another section */
    write_ini("[demos]\nn_slots = 1\n");
    o = LOAD("--config", config_path);
    snprintf(expected, sizeof expected, "%s:2: section [demos]: did you mean [demo]?", config_path);
    expect_error(&o, expected);
}

static void malformed_files_are_refused(void **state)
{
    (void)state;
    char expected[256];
    write_ini("[demo]\nn_slots 5\n");
    outcome o = LOAD("--config", config_path);
    assert_int_equal(MOE_ERR_FORMAT, o.status);
    snprintf(expected, sizeof expected, "%s:2: expected [section] or name = value", config_path);
    assert_string_equal(expected, o.err.text);
    char wide[400] = "[demo]\nendpoint = ";
    memset(wide + strlen(wide), 'x', 300);
    write_ini(wide);
    o = LOAD("--config", config_path);
    assert_int_equal(MOE_ERR_LIMIT, o.status);
    assert_non_null(strstr(o.err.text, ":2: the line has 311 bytes"));
    o = LOAD("--config=/nonexistent/file.ini");
    assert_int_equal(MOE_ERR_NOT_FOUND, o.status);
    assert_non_null(strstr(o.err.text, "/nonexistent/file.ini"));
}

static void other_sections_indentation_and_line_ends_are_fine(void **state)
{
    (void)state;
    write_ini("[worker]\r\nanything = 1\r\n\r\n[demo]\r\nn_slots = 7 ; a comment\r\n"
              "  slot-bytes = 1MiB\r\n[other]\nn_slots = 9");
    outcome o = LOAD("--config", config_path);
    assert_int_equal(MOE_OK, o.status);
    assert_int_equal(7, o.config.n_slots);
    assert_int_equal(1 << 20, o.config.slot_bytes);
}

static void help_and_version_win_over_mistakes(void **state)
{
    (void)state;
    outcome o = LOAD("--frobnicate", "--help");
    assert_int_equal(MOE_OK, o.status);
    assert_int_equal(MOE_CONFIG_HELP, o.action);
    o = LOAD("--version");
    assert_int_equal(MOE_CONFIG_VERSION, o.action);
    o = LOAD("--print-config", "--n-slots=3");
    assert_int_equal(MOE_CONFIG_PRINT_CONFIG, o.action);
    assert_int_equal(3, o.config.n_slots);
}

static char *help_text(const moe_config_spec *of) /* the caller's to free */
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    assert_non_null(f);
    moe_config_help(of, f);
    fclose(f);
    return text;
}

static void help_shows_default_range_and_environment_in_short_lines(void **state)
{
    (void)state;
    char *text = help_text(&spec);
    assert_memory_equal("Usage: demo [OPTION]... [FILE]\n\nTries settings.\n\n", text, 49);
    assert_non_null(strstr(text, "  --slot-bytes SIZE\n"
                                 "      one pinned slot\n"
                                 "      [default 32MiB; a size from 4KiB to 4GiB, such as 64KiB or "
                                 "2GiB; PREGATE_DEMO_SLOT_BYTES]\n"));
    assert_non_null(strstr(text, "  --[no-]direct-io\n      read with O_DIRECT\n"));
    assert_non_null(strstr(text, "  --policy lru|lfu|lifo\n      eviction policy\n"));
    assert_non_null(strstr(text, "  --help\n      print this and exit\n"));
    for (const char *line = text; *line != '\0'; line += strcspn(line, "\n") + 1) {
        assert_true(strcspn(line, "\n") <= 96);
    }
    free(text);
}

static void help_of_a_command_leaves_out_the_rows_of_others(void **state)
{
    (void)state;
    static const moe_config_row command_rows[] = {
        ROW(n_slots, MOE_CFG_U64, 0, 9, "0", "for all: even so"),
        ROW(rate, MOE_CFG_F64, 0, 9, "0", "walk, run: how fast"),
        ROW(direct_io, MOE_CFG_BOOL, 0, 0, "false", "walk: the short way; swim: under water"),
        ROW(slot_bytes, MOE_CFG_SIZE, 0, 9, "0B", "walk, fly: not all of these are commands"),
    };
    static const struct {
        const char *command, *shown;
    } cases[] = {{NULL, "nrds"}, {"walk", "nrds"}, {"run", "nrs"}, {"swim", "nds"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        moe_config_spec some = {.program = "demo",
                                .section = "demo",
                                .synopsis = "",
                                .about = "",
                                .rows = command_rows,
                                .n_rows = 4,
                                .commands = "walk|run|swim",
                                .command = cases[i].command};
        char *text = help_text(&some);
        assert_int_equal(strchr(cases[i].shown, 'n') != NULL, strstr(text, "--n-slots") != NULL);
        assert_int_equal(strchr(cases[i].shown, 'r') != NULL, strstr(text, "--rate") != NULL);
        assert_int_equal(strchr(cases[i].shown, 'd') != NULL, strstr(text, "direct-io") != NULL);
        assert_int_equal(strchr(cases[i].shown, 's') != NULL, strstr(text, "slot-bytes") != NULL);
        assert_int_equal(cases[i].command != NULL, strstr(text, "Settings of `") != NULL);
        free(text);
    }
}

static void printed_settings_load_back(void **state)
{
    (void)state;
    outcome o = LOAD("--endpoint=a b;c#d=e:f", "--n-slots=1000", "--slot-bytes=12345", "--rate",
                     "0.30000000000000004", "--no-direct-io", "--policy=lifo");
    assert_int_equal(MOE_OK, o.status);
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    assert_non_null(f);
    moe_config_print(&spec, &o.config, f);
    fclose(f);
    assert_non_null(strstr(text, moe_build_id));
    assert_non_null(strstr(text, "\n[demo]\n\n# where the store listens\nendpoint = "));
    write_ini(text);
    free(text);
    outcome again = LOAD("--config", config_path);
    assert_int_equal(MOE_OK, again.status);
    assert_string_equal(o.config.endpoint, again.config.endpoint);
    assert_int_equal(1000, again.config.n_slots);
    assert_int_equal(12345, again.config.slot_bytes);
    assert_true(o.config.rate == again.config.rate);
    assert_false(again.config.direct_io);
    assert_int_equal(2, again.config.policy);
}

static void sizes_have_units(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        {"0", 0},
        {"17B", 17},
        {"64KiB", 65536},
        {"2 GiB", 1ull << 31},
        {"1TiB", 1ull << 40},
        {"5KB", 5000},
        {"3MB", 3000000},
        {"4GB", 4000000000},
        {"32mib", 32 << 20},
        {"18446744073709551615", UINT64_MAX},
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        uint64_t bytes = 1;
        assert_int_equal(MOE_OK, moe_parse_size(good[i].text, &bytes, NULL));
        assert_int_equal(good[i].bytes, bytes);
    }
    static const char *const bad[] = {
        "", "B", "-1", "1.5GiB", "1K", "1G", "18446744073709551616", "16777216TiB", "1 KiB x"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        uint64_t bytes = 4711;
        moe_err err = {0};
        assert_int_equal(MOE_ERR_INVALID, moe_parse_size(bad[i], &bytes, &err));
        assert_int_equal(4711, bytes);
        assert_non_null(strstr(err.text, bad[i]));
    }
}

static void the_default_endpoint_is_per_user(void **state)
{
    (void)state;
    char out[200];
    char expected[200];
    setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
    assert_int_equal(MOE_OK, moe_default_endpoint(out, sizeof out, NULL));
    assert_string_equal("ipc:///run/user/7/pregate/store.sock", out);
    assert_int_equal(MOE_ERR_LIMIT, moe_default_endpoint(out, 36, NULL));
    assert_int_equal(MOE_OK, moe_default_endpoint(out, 37, NULL));
    unsetenv("XDG_RUNTIME_DIR");
    assert_int_equal(MOE_OK, moe_default_endpoint(out, sizeof out, NULL));
    snprintf(expected, sizeof expected, "ipc:///tmp/pregate-%u/store.sock", (unsigned)getuid());
    assert_string_equal(expected, out);
    char longer[150] = "/";
    memset(longer + 1, 'x', 120);
    setenv("XDG_RUNTIME_DIR", longer, 1);
    assert_int_equal(MOE_ERR_LIMIT, moe_default_endpoint(out, sizeof out, NULL));
    unsetenv("XDG_RUNTIME_DIR");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_apply_when_nothing_is_said),
        cmocka_unit_test_teardown(later_sources_win, clean_up),
        cmocka_unit_test(both_spellings_of_an_option_work),
        cmocka_unit_test(flags_can_be_switched_off_and_on),
        cmocka_unit_test(positional_arguments_are_collected),
        cmocka_unit_test_teardown(every_bad_value_names_setting_source_value_and_range, clean_up),
        cmocka_unit_test(sloppy_numbers_are_refused),
        cmocka_unit_test(text_that_an_ini_file_cannot_hold_is_refused),
        cmocka_unit_test(an_unknown_option_suggests_the_nearest),
        cmocka_unit_test(a_missing_value_is_not_taken_from_the_next_option),
        cmocka_unit_test_teardown(file_errors_name_the_line, clean_up),
        cmocka_unit_test_teardown(malformed_files_are_refused, clean_up),
        cmocka_unit_test_teardown(other_sections_indentation_and_line_ends_are_fine, clean_up),
        cmocka_unit_test(help_and_version_win_over_mistakes),
        cmocka_unit_test(help_shows_default_range_and_environment_in_short_lines),
        cmocka_unit_test(help_of_a_command_leaves_out_the_rows_of_others),
        cmocka_unit_test_teardown(printed_settings_load_back, clean_up),
        cmocka_unit_test(sizes_have_units),
        cmocka_unit_test(the_default_endpoint_is_per_user),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
