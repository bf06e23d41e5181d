/* main.c - gpu-worker: settings, then one subcommand. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/config.h"
#include "common/log.h"
#include "gpu-worker/worker.h"

static const struct {
    const char *name;
    int (*run)(const gw_config *cfg);
} commands[] = {{"run", gw_run_main}, {"serve", gw_serve_main}};

int main(int argc, char **argv)
{
    gw_config cfg;
    moe_err err;
    moe_config_action action = MOE_CONFIG_RUN;
    const char *command = NULL;
    uint32_t n_positional = 0;
    if (moe_config_load(&gw_config_spec, argc, argv, &cfg, &command, 1, &n_positional, &action,
                        &err) != MOE_OK) {
        fprintf(stderr, "gpu-worker: %s\n", err.text);
        return 2;
    }
    switch (action) {
    case MOE_CONFIG_HELP:
        moe_config_help(&gw_config_spec, stdout);
        return 0;
    case MOE_CONFIG_VERSION:
        printf("gpu-worker %s\n", moe_build_id);
        return 0;
    case MOE_CONFIG_PRINT_CONFIG:
        moe_config_print(&gw_config_spec, &cfg, stdout);
        return 0;
    case MOE_CONFIG_RUN:
        break;
    }
    moe_log_set_level((moe_log_level)cfg.log_level);
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; n_positional == 1 && i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(command, commands[i].name) == 0) {
            return commands[i].run(&cfg);
        }
    }
    if (n_positional == 0) {
        fprintf(stderr, "gpu-worker: no command; use run or serve (--help shows all settings)\n");
    } else {
        fprintf(stderr, "gpu-worker: unknown command '%s'; use run or serve\n", command);
    }
    return 2;
}
