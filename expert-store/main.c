/* main.c - program expert-store: settings, then the server. Exit status: 0 after a stop that was
 * asked for, 1 when it could not start, 2 for wrong settings. */
#include <signal.h>
#include <stdio.h>

#include "common/log.h"
#include "expert-store/server/server.h"
#include "expert-store/store_config.h"

enum { EXIT_FAILED = 1, EXIT_USAGE = 2 };

static int fail(const moe_err *err, int code)
{
    char text[600];
    moe_err_format(err, text, sizeof text);
    fprintf(stderr, "expert-store: %s\n", text);
    return code;
}

static int serve(const xs_config *cfg)
{
    moe_err err = {0};
    xs_server *server = NULL;
    moe_log_set_level((moe_log_level)cfg->log_level);
    moe_log(MOE_LOG_INFO, "store", "starting", "build=\"%s\" endpoint=%s ram_bytes=%s",
            moe_build_id, cfg->endpoint, cfg->ram_bytes);
    moe_status st = xs_server_create(cfg, &server, &err);
    if (st == MOE_OK) {
        st = xs_server_run(server, &err);
    }
    xs_server_destroy(server);
    return st == MOE_OK ? 0 : fail(&err, EXIT_FAILED);
}

int main(int argc, char **argv)
{
    static xs_config cfg; /* many strings: off the stack */
    moe_err err = {0};
    (void)signal(SIGPIPE,
                 SIG_IGN); /* nobody reads the log any more: no reason to leave memory behind */
    moe_config_action action = MOE_CONFIG_RUN;
    moe_status st =
        moe_config_load(&xs_config_spec, argc, argv, &cfg, NULL, 0, NULL, &action, &err);
    if (st != MOE_OK) {
        return fail(&err, EXIT_USAGE);
    }
    if (moe_config_answer(&xs_config_spec, action, &cfg, stdout)) {
        return 0;
    }
    st = xs_config_check(&cfg, &err);
    return st == MOE_OK ? serve(&cfg) : fail(&err, EXIT_USAGE);
}
