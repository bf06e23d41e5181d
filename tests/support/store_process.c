/* store_process.c - see store_process.h. */
#include "tests/support/store_process.h"

#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cJSON.h>
#include <cmocka.h>

#include "common/file.h"

enum { PATH_BYTES = 2048 };

static char *read_config(const char *dir, size_t *out_bytes)
{
    char path[PATH_BYTES];
    char *json = NULL;
    snprintf(path, sizeof path, "%s/config.json", dir);
    assert_int_equal(MOE_OK, moe_file_read(path, 1 << 20, &json, out_bytes, NULL));
    return json;
}

/* "float32" in the fixtures, "bfloat16" in the demo models. */
static uint64_t slot_bytes(const char *config, const moe_model_shape *shape)
{
    uint64_t element_bytes = strstr(config, "\"bfloat16\"") != NULL ? 2 : 4;
    return (moe_expert_params(shape) * element_bytes + 4095) / 4096 * 4096;
}

static void size_ram(const store_process_cfg *cfg, store_process *p)
{
    size_t bytes = 0;
    char *config = read_config(cfg->model_dir, &bytes);
    moe_model_shape shape;
    assert_int_equal(MOE_OK, moe_model_shape_parse(config, bytes, &shape, NULL));
    uint64_t n_slots = shape.n_experts_total;
    if (strcmp(cfg->ram, "25%") == 0) {
        n_slots /= 4;
    } else if (strcmp(cfg->ram, "min") == 0) {
        n_slots = 2;
    } else {
        assert_string_equal("100%", cfg->ram);
    }
    snprintf(p->ram_bytes, sizeof p->ram_bytes, "%llu",
             (unsigned long long)(n_slots * slot_bytes(config, &shape)));
    free(config);
}

static void write_config(const char *from_dir, const char *to_dir, uint32_t capacity)
{
    char path[PATH_BYTES];
    size_t bytes = 0;
    char *text = read_config(from_dir, &bytes);
    cJSON *config = cJSON_ParseWithLength(text, bytes);
    free(text);
    cJSON_DeleteItemFromObject(config, "expert_capacity");
    assert_non_null(cJSON_AddNumberToObject(config, "expert_capacity", capacity));
    text = cJSON_PrintUnformatted(config);
    cJSON_Delete(config);
    snprintf(path, sizeof path, "%s/config.json", to_dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(0, fclose(f));
    free(text);
}

/* A directory of links to the checkpoint's files, but with a config.json of its own. */
static void copy_with_capacity(const store_process_cfg *cfg, const char *copy)
{
    char from[PATH_BYTES];
    char to[PATH_BYTES];
    assert_int_equal(0, mkdir(copy, 0700));
    DIR *d = opendir(cfg->model_dir);
    assert_non_null(d);
    const struct dirent *e = NULL;
    while ((e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.' || strcmp(e->d_name, "config.json") == 0) {
            continue;
        }
        snprintf(from, sizeof from, "%s/%s", cfg->model_dir, e->d_name);
        snprintf(to, sizeof to, "%s/%s", copy, e->d_name);
        assert_int_equal(0, symlink(from, to));
    }
    closedir(d);
    write_config(cfg->model_dir, copy, cfg->capacity);
}

static void run(const char *const *argv)
{
    int status = -1;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    assert_int_equal(pid, waitpid(pid, &status, 0));
    assert_true(WIFEXITED(status));
    assert_int_equal(0, WEXITSTATUS(status));
}

static void store_path(const store_process *p, char out[96])
{
    snprintf(out, 96, "%s/model.store", p->rig.dir);
}

static void pack(const store_process_cfg *cfg, const store_process *p)
{
    char copy[96];
    char store[96];
    const char *from = cfg->model_dir;
    store_path(p, store);
    if (cfg->capacity > 0) {
        snprintf(copy, sizeof copy, "%s/model", p->rig.dir);
        copy_with_capacity(cfg, copy);
        from = copy;
    }
    const char *const argv[] = {cfg->pack_program, from, "--out", store, NULL};
    run(argv);
    if (cfg->before_serve != NULL) {
        cfg->before_serve(store);
    }
}

static void serve(store_process *p)
{
    char store[96];
    store_path(p, store);
    const char *const args[] = {"--store",       store, "--ram-bytes", p->ram_bytes,
                                "--max-workers", "1",   NULL};
    store_rig_spawn(&p->rig, args);
}

void store_process_start(const store_process_cfg *cfg, store_process *out)
{
    store_rig_init(&out->rig, cfg->store_program);
    size_ram(cfg, out);
    pack(cfg, out);
    serve(out);
}

void store_process_restart(store_process *p, int signal_first)
{
    kill(p->rig.pid, signal_first);
    (void)store_rig_wait(&p->rig);
    serve(p);
}

int store_process_stop(store_process *p)
{
    int status = store_rig_stop(&p->rig);
    if (status != 0) {
        fprintf(stderr, "the store ended with %d; its log:\n%s", status, store_rig_log(&p->rig));
    }
    store_rig_fini(&p->rig);
    return status;
}
