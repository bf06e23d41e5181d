/* pack_config.c - the table behind --help, --print-config and parsing. */
#include "expert-store/pack/pack_config.h"

#define ROW(field, type, min, max, dflt, help)                                                     \
    MOE_ROW(xs_pack_config, field, type, min, max, dflt, help)
#define ROW_ENUM(field, choices, dflt, help)                                                       \
    MOE_ROW_ENUM(xs_pack_config, field, choices, dflt, help)

static const moe_config_row rows[] = {
    ROW(out, MOE_CFG_STR, 0, 0, "", "the store to make, e.g. NAME.store"),
    ROW_ENUM(dtype, "keep|bf16|f32", "keep",
             "element type of the stored weights; converting rounds to nearest even"),
    ROW(force, MOE_CFG_BOOL, 0, 0, "false",
        "replace an existing store; start over where another job left off"),
    ROW(synthetic, MOE_CFG_STR, 0, 0, "",
        "invent this model instead of reading one, e.g. switch-base-128"),
    ROW(seed, MOE_CFG_U64, 0, 9007199254740992.0, "1", "of the synthetic weights"),
    ROW(json, MOE_CFG_BOOL, 0, 0, "false", "print results as JSON"),
    ROW(direct, MOE_CFG_BOOL, 0, 0, "true", "use O_DIRECT where the filesystem has it"),
    ROW(segment_bytes, MOE_CFG_SIZE, 4096, 1099511627776.0, "4GiB",
        "begin a new segment file when one would grow past this"),
    ROW(buffer_bytes, MOE_CFG_SIZE, 1048576, 67108864, "8MiB", "one write; a multiple of 1 MiB"),
    ROW(buffers, MOE_CFG_U64, 2, 64, "4", "write buffers"),
    ROW(writers, MOE_CFG_U64, 1, 16, "2", "threads that write"),
    ROW(commit_every, MOE_CFG_U64, 1, 1000000, "64",
        "experts or tensors between two points where a rerun can go on"),
    ROW(verify_threads, MOE_CFG_U64, 1, 64, "4", "threads that verify reads with"),
    ROW(test_kill_at, MOE_CFG_STR, 0, 0, "",
        "for tests: die by SIGKILL at before-rename, after-rename, after-item:N, after-commit:N"),
};

const moe_config_spec xs_pack_config_spec = {
    .program = "expert-pack",
    .section = "pack",
    .synopsis = "DIR --out NAME.store | --synthetic MODEL --out NAME.store | verify NAME.store | "
                "inspect NAME.store | add NAME.store PREDICTORS.safetensors",
    .about =
        "Turns a Hugging Face checkpoint directory into a store that expert-store serves from; "
        "verifies and describes stores. An interrupted run goes on when it is run again.",
    .rows = rows,
    .n_rows = sizeof rows / sizeof rows[0],
};
