/* main.c - gpu-worker: settings, then one subcommand. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/config.h"
#include "common/log.h"
#include "gpu-worker/worker.h"

typedef struct command {
    const char *name;
    int (*run)(const gw_config *cfg);
} command;

static const command commands[] = {{"run", gw_run_main},
                                   {"serve", gw_serve_main},
                                   {"bench", gw_bench_main},
                                   {"plan", gw_plan_main},
                                   {"replay", gw_replay_main},
                                   {"eval", gw_eval_main},
                                   {"calibrate", gw_calibrate_main}};

static const command *find_command(const char *word)
{
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(word, commands[i].name) == 0) {
            return &commands[i];
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    moe_config_spec spec = gw_config_spec;
    gw_config cfg;
    moe_err err;
    moe_config_action action = MOE_CONFIG_RUN;
    const char *words[2] = {NULL, NULL}; /* the command; replay: its file */
    uint32_t n_words = 0;
    const command *chosen = argc > 1 ? find_command(argv[1]) : NULL;
    spec.command = chosen != NULL ? chosen->name : NULL; /* for --help */
    if (moe_config_load(&spec, argc, argv, &cfg, words, 2, &n_words, &action, &err) != MOE_OK) {
        fprintf(stderr, "gpu-worker: %s\n", err.text);
        return 2;
    }
    if (moe_config_answer(&spec, action, &cfg, stdout)) {
        return 0;
    }
    moe_log_set_level((moe_log_level)cfg.log_level);
    signal(SIGPIPE, SIG_IGN);
    if (n_words == 0) {
        fprintf(stderr,
                "gpu-worker: no command; use run, serve, bench, plan, replay, eval or calibrate "
                "(--help shows all settings, COMMAND --help its own)\n");
        return 2;
    }
    if (n_words == 2) {
        if (strcmp(words[0], "replay") != 0) {
            fprintf(stderr, "gpu-worker: unexpected argument '%s' after '%s'\n", words[1],
                    words[0]);
            return 2;
        }
        snprintf(cfg.file, sizeof cfg.file, "%s", words[1]);
    }
    chosen = find_command(words[0]);
    if (chosen != NULL) {
        return chosen->run(&cfg);
    }
    fprintf(stderr,
            "gpu-worker: unknown command '%s'; use run, serve, bench, plan, replay, eval or "
            "calibrate\n",
            words[0]);
    return 2;
}
