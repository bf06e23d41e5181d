/* serve.c - `gpu-worker serve`: the HTTP server until SIGTERM or SIGINT, then a drain.
 * Main thread: waits for the signal; everything else has threads of its own. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "gpu-worker/serve/http.h"
#include "gpu-worker/worker.h"

enum { KEY_FILE_BYTES = 4096 };

/* First line of the key file; *out is owned by the caller. */
static moe_status read_key(const char *path, char **out, moe_err *err)
{
    size_t bytes = 0;
    moe_status st = moe_file_read(path, KEY_FILE_BYTES, out, &bytes, err);
    if (st != MOE_OK) {
        return st;
    }
    (*out)[strcspn(*out, "\r\n")] = '\0';
    if ((*out)[0] == '\0') {
        free(*out);
        *out = NULL;
        return MOE_FAIL(err, MOE_ERR_INVALID, "--api-key-file %.200s has an empty first line",
                        path);
    }
    return MOE_OK;
}

static bool is_loopback(const char *listen)
{
    return strncmp(listen, "127.", 4) == 0 || strncmp(listen, "localhost:", 10) == 0 ||
           strncmp(listen, "[::1]", 5) == 0;
}

static moe_status serve(const gw_config *cfg, gw_worker *w, const sigset_t *stop_signals,
                        moe_err *err)
{
    char *key = NULL;
    gw_http *http = NULL;
    moe_status st = MOE_OK;
    if (cfg->api_key_file[0] != '\0') {
        st = read_key(cfg->api_key_file, &key, err);
    }
    gw_http_cfg h = {
        .listen = cfg->http,
        .api_key = key,
        .allow_host = cfg->allow_host[0] != '\0' ? cfg->allow_host : NULL,
        .max_connections = (uint32_t)cfg->max_connections,
        .max_body_bytes = cfg->max_body_bytes,
        .max_input_tokens = (uint32_t)cfg->max_input_tokens,
        .max_output_tokens = (uint32_t)cfg->max_output_tokens,
        .engine = w->engine,
        .tokenizer = w->tokenizer,
    };
    if (st == MOE_OK) {
        st = gw_http_create(&h, &http, err);
    }
    if (st == MOE_OK && key == NULL && !is_loopback(cfg->http)) {
        moe_log(MOE_LOG_WARN, "worker", "open_to_the_network",
                "http=%s remedy=\"--api-key-file FILE, or listen on 127.0.0.1 behind a proxy\"",
                cfg->http);
    }
    if (st == MOE_OK) {
        moe_log(MOE_LOG_INFO, "worker", "serving", "model=%s http=%s port=%u backend=%s",
                gw_engine_model_name(w->engine), cfg->http, gw_http_port(http), w->ops->name);
        int signal_number = 0;
        sigwait(stop_signals, &signal_number);
        moe_log(MOE_LOG_INFO, "worker", "stopping", "signal=%d", signal_number);
        gw_http_drain(http, (int64_t)cfg->drain_s * MOE_NS_PER_S);
    }
    gw_http_destroy(http);
    free(key);
    return st;
}

int gw_serve_main(const gw_config *cfg)
{
    sigset_t stop_signals;
    sigemptyset(&stop_signals);
    sigaddset(&stop_signals, SIGTERM);
    sigaddset(&stop_signals, SIGINT);

    /* While the store is still awaited, a signal simply ends the process. */
    gw_worker w;
    moe_err err;
    moe_status st = gw_worker_open(cfg, &w, &err);
    if (st == MOE_OK) {
        pthread_sigmask(SIG_BLOCK, &stop_signals, NULL);
        st = serve(cfg, &w, &stop_signals, &err);
    }
    if (st != MOE_OK) {
        moe_log_err("worker", "failed", &err);
    }
    gw_worker_close(cfg, &w);
    return st == MOE_OK ? 0 : 1;
}
