/* store_process.c - see store_process.h. */
#include "tests/support/store_process.h"

#include <dirent.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cJSON.h>

#include "common/dtype.h"
#include "common/file.h"
#include "common/model_shape.h"

enum { MAX_PATH_BYTES = 1024, STOP_TRIES = 1500 /* of 10 ms */ };

static int complain(const char *what, const char *which)
{
    fprintf(stderr, "store_process: %s: %s\n", what, which);
    return -1;
}

static pid_t spawn(const char *const *argv)
{
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execv(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    return pid;
}

static int run(const char *const *argv)
{
    int status = -1;
    pid_t pid = spawn(argv);
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status) ||
        WEXITSTATUS(status) != 0) {
        return complain("failed", argv[0]);
    }
    return 0;
}

static char *read_config(const char *dir, size_t *out_bytes)
{
    char path[MAX_PATH_BYTES];
    char *json = NULL;
    (void)snprintf(path, sizeof path, "%s/config.json", dir);
    if (moe_file_read(path, 1 << 20, &json, out_bytes, NULL) != MOE_OK) {
        (void)complain("cannot read", path);
        return NULL;
    }
    return json;
}

/* DIR/model: links to the checkpoint's files, but config.json with another expert_capacity. */
static int link_patched(const store_process_cfg *cfg, const char *copy)
{
    char from[MAX_PATH_BYTES];
    char to[MAX_PATH_BYTES];
    DIR *d = opendir(cfg->model_dir);
    if (d == NULL || mkdir(copy, 0700) != 0) {
        if (d != NULL) {
            closedir(d);
        }
        return complain("cannot copy", cfg->model_dir);
    }
    const struct dirent *e = NULL;
    while ((e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.' || strcmp(e->d_name, "config.json") == 0) {
            continue;
        }
        (void)snprintf(from, sizeof from, "%s/%s", cfg->model_dir, e->d_name);
        (void)snprintf(to, sizeof to, "%s/%s", copy, e->d_name);
        if (symlink(from, to) != 0) {
            closedir(d);
            return complain("cannot link", from);
        }
    }
    closedir(d);
    size_t bytes = 0;
    char *json = read_config(cfg->model_dir, &bytes);
    cJSON *config = json == NULL ? NULL : cJSON_ParseWithLength(json, bytes);
    free(json);
    cJSON_DeleteItemFromObject(config, "expert_capacity");
    cJSON_AddNumberToObject(config, "expert_capacity", cfg->capacity);
    json = cJSON_PrintUnformatted(config);
    cJSON_Delete(config);
    (void)snprintf(to, sizeof to, "%s/config.json", copy);
    FILE *f = json == NULL ? NULL : fopen(to, "w");
    int written = f != NULL && fputs(json, f) >= 0;
    written = f != NULL && fclose(f) == 0 && written;
    free(json);
    return written ? 0 : complain("cannot write", to);
}

/* "100%" and "25%" of all experts, "min": two slots. bf16 in the demo models, f32 in the fixtures.
 */
static int size_ram(const store_process_cfg *cfg, store_process *p)
{
    size_t bytes = 0;
    char *json = read_config(cfg->model_dir, &bytes);
    moe_model_shape shape;
    if (json == NULL || moe_model_shape_parse(json, bytes, &shape, NULL) != MOE_OK) {
        free(json);
        return complain("cannot parse config.json of", cfg->model_dir);
    }
    int f32 = strstr(json, "\"float32\"") != NULL && strstr(json, "\"bfloat16\"") == NULL;
    free(json);
    uint64_t slot = moe_expert_params(&shape) * (f32 ? 4 : 2);
    slot = (slot + 4095) / 4096 * 4096;
    uint64_t n_slots = shape.n_experts_total;
    if (strcmp(cfg->ram, "25%") == 0) {
        n_slots /= 4;
    } else if (strcmp(cfg->ram, "min") == 0) {
        n_slots = 2;
    } else if (strcmp(cfg->ram, "100%") != 0) {
        return complain("ram is none of 100%, 25%, min", cfg->ram);
    }
    n_slots = n_slots < 2 ? 2 : n_slots;
    (void)snprintf(p->ram_bytes, sizeof p->ram_bytes, "%llu", (unsigned long long)(n_slots * slot));
    return 0;
}

static int pack(const store_process_cfg *cfg, const store_process *p)
{
    char copy[MAX_PATH_BYTES];
    char store[MAX_PATH_BYTES];
    const char *from = cfg->model_dir;
    (void)snprintf(store, sizeof store, "%s/model.store", p->dir);
    if (cfg->capacity > 0) {
        (void)snprintf(copy, sizeof copy, "%s/model", p->dir);
        if (link_patched(cfg, copy) != 0) {
            return -1;
        }
        from = copy;
    }
    const char *const argv[] = {cfg->pack_program, from, "--out", store, NULL};
    return run(argv);
}

static int serve(store_process *p)
{
    char store[MAX_PATH_BYTES];
    (void)snprintf(store, sizeof store, "%s/model.store", p->dir);
    const char *const argv[] = {
        p->store_program, "--store",       store, "--endpoint",  p->endpoint, "--ram-bytes",
        p->ram_bytes,     "--max-workers", "1",   "--log-level", "warn",      NULL};
    p->pid = spawn(argv);
    return p->pid < 0 ? complain("cannot start", p->store_program) : 0;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

int store_process_start(const store_process_cfg *cfg, store_process *out)
{
    store_process p = {.dir = "/tmp/pregate-golden-XXXXXX", .store_program = cfg->store_program};
    if (mkdtemp(p.dir) == NULL) {
        return complain("mkdtemp", p.dir);
    }
    (void)snprintf(p.endpoint, sizeof p.endpoint, "ipc://%s/store.sock", p.dir);
    if (size_ram(cfg, &p) != 0 || pack(cfg, &p) != 0 || serve(&p) != 0) {
        (void)nftw(p.dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
        return -1;
    }
    *out = p;
    return 0;
}

int store_process_restart(store_process *p)
{
    kill(p->pid, SIGKILL);
    (void)waitpid(p->pid, NULL, 0);
    return serve(p);
}

int store_process_stop(store_process *p)
{
    int status = -1;
    pid_t gone = 0;
    kill(p->pid, SIGTERM);
    for (int i = 0; i < STOP_TRIES && gone == 0; i++) {
        const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
        gone = waitpid(p->pid, &status, WNOHANG);
        if (gone == 0) {
            nanosleep(&pause, NULL);
        }
    }
    if (gone == 0) {
        kill(p->pid, SIGKILL);
        (void)waitpid(p->pid, NULL, 0);
    }
    (void)nftw(p->dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    return gone == p->pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
