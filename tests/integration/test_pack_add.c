/* `expert-pack add`, run as a user runs it: predictors enter a finished store all or not at all,
 * and leave it when others come. Arguments: the program. Works in a directory of its own. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "expert-store/catalog/catalog.h"
#include "gpu-worker/quality/predictor_file.h"

enum { EXPERTS = 8, D_MODEL = 64, PATH = 256 };

static const char *program;
static char dir[PATH], store[PATH + 16], file[PATH + 16], log_path[PATH + 16];

/* Exit code, or minus the signal; what it said is in log_path. */
static int pack(const char *const *args)
{
    const char *argv[16] = {program};
    for (int i = 0; args[i] != NULL; i++) {
        argv[i + 1] = args[i];
    }
    pid_t pid = fork();
    if (pid == 0) {
        int fd = open(log_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
        execv(program, (char **)(uintptr_t)argv);
        _exit(127);
    }
    int status = 0;
    assert_int_equal(pid, waitpid(pid, &status, 0));
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static int add(const char *kill_at)
{
    return pack((const char *const[]){"add", store, file, "--test-kill-at", kill_at, NULL});
}

static void assert_says(const char *text)
{
    char said[2048] = "";
    FILE *f = fopen(log_path, "r");
    assert_non_null(f);
    size_t n = fread(said, 1, sizeof said - 1, f);
    said[n] = '\0';
    fclose(f);
    if (strstr(said, text) == NULL) {
        fail_msg("expected \"%s\" in: %s", text, said);
    }
}

/* n predictors of decoder block 0, lookahead 1 to n; every weight of the i-th is value + i. */
static void write_file(uint32_t n, float value)
{
    static float weights[4][EXPERTS * D_MODEL];
    gw_fitted fitted[4];
    for (uint32_t i = 0; i < n; i++) {
        for (int k = 0; k < EXPERTS * D_MODEL; k++) {
            weights[i][k] = value + (float)i;
        }
        fitted[i] =
            (gw_fitted){.what = {.stack = MOE_DECODER, .lookahead = i + 1}, .weight = weights[i]};
    }
    assert_int_equal(MOE_OK,
                     gw_predictor_file_write(file, fitted, n, EXPERTS, D_MODEL, "test", NULL));
}

static float first_value(const xs_catalog *c, const xs_tensor_record *t)
{
    char path[2 * PATH];
    float value = 0;
    xs_catalog_segment_path(c, t->extent.segment, path, sizeof path);
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(sizeof value, pread(fd, &value, sizeof value, (off_t)t->extent.off));
    close(fd);
    return value;
}

/* The store holds exactly n predictors, whose values begin at `value`, and verifies. */
static void assert_predictors(uint32_t n, float value, uint8_t out_uuid[16])
{
    xs_catalog *c = NULL;
    moe_err err = {0};
    if (xs_catalog_open(store, &c, &err) != MOE_OK) {
        fail_msg("%s", err.text);
    }
    const xs_catalog_info *info = xs_catalog_get_info(c);
    uint32_t found = 0;
    for (uint32_t i = 0; i < info->n_tensors; i++) {
        const xs_tensor_record *t = xs_catalog_tensor(c, i);
        if (strncmp(t->name, "predictor.", 10) == 0) {
            assert_int_equal(MOE_F32, t->dtype);
            assert_true(t->n_dims == 2 && t->dims[0] == EXPERTS && t->dims[1] == D_MODEL);
            assert_true(first_value(c, t) == value + (float)found);
            found++;
        }
    }
    assert_int_equal(n, found);
    memcpy(out_uuid, info->uuid, 16);
    xs_catalog_close(c);
    assert_int_equal(0, pack((const char *const[]){"verify", store, NULL}));
}

static bool exists(const char *name)
{
    char path[2 * PATH];
    (void)snprintf(path, sizeof path, "%s/%s", store, name);
    return access(path, F_OK) == 0;
}

static int64_t segment_bytes(uint32_t segment)
{
    char path[2 * PATH];
    struct stat sb;
    xs_segment_path(store, segment, path, sizeof path);
    return stat(path, &sb) == 0 ? (int64_t)sb.st_size : -1;
}

static int make_store(void **state)
{
    (void)state;
    (void)snprintf(dir, sizeof dir, "pack-add-XXXXXX"); /* below the build's directory */
    if (mkdtemp(dir) == NULL) {
        return -1;
    }
    (void)snprintf(store, sizeof store, "%s/m.store", dir);
    (void)snprintf(file, sizeof file, "%s/p.safetensors", dir);
    (void)snprintf(log_path, sizeof log_path, "%s/log", dir);
    return pack((const char *const[]){"--synthetic", "switch-tiny", "--out", store, NULL});
}

static int remove_store(void **state)
{
    (void)state;
    char command[PATH + 16];
    (void)snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

static void predictors_come_and_go_as_a_whole(void **state)
{
    (void)state;
    uint8_t packed[16], first[16], second[16];
    assert_predictors(0, 0, packed);
    write_file(3, 10);
    assert_int_equal(0, add(""));
    assert_says("3 predictors added, 0 older ones dropped");
    assert_predictors(3, 10, first);
    assert_true(memcmp(packed, first, 16) != 0); /* memory of the old one is not adopted */
    assert_int_equal(3 * 4096, segment_bytes(1));
    write_file(2, 20);
    assert_int_equal(0, add(""));
    assert_predictors(2, 20, second);
    assert_true(memcmp(first, second, 16) != 0);
    assert_int_equal(0, segment_bytes(1)); /* its bytes were given back */
    assert_int_equal(2 * 4096, segment_bytes(2));
    write_file(1, 30);
    assert_int_equal(0, add(""));
    assert_predictors(1, 30, second);
    assert_int_equal(4096, segment_bytes(1));
    assert_int_equal(0, segment_bytes(2));
    assert_int_equal(-1, segment_bytes(3));
    assert_false(exists("add.partial"));
}

static void a_killed_add_is_all_or_nothing(void **state)
{
    (void)state;
    uint8_t before[16], after[16];
    write_file(2, 1);
    assert_int_equal(0, add(""));
    assert_predictors(2, 1, before);
    write_file(3, 5);
    assert_int_equal(-SIGKILL, add("before-exchange"));
    assert_true(exists("add.partial"));
    assert_predictors(2, 1, after);
    assert_memory_equal(before, after, 16);
    assert_int_equal(-SIGKILL, add("after-exchange"));
    assert_predictors(3, 5, after);
    write_file(1, 7);
    assert_int_equal(0, add(""));
    assert_predictors(1, 7, after);
    assert_false(exists("add.partial"));
    /* what is left of a kill does not stand in the way of packing anew */
    assert_int_equal(-SIGKILL, add("before-exchange"));
    assert_int_equal(0, pack((const char *const[]){"--synthetic", "switch-tiny", "--out", store,
                                                   "--force", NULL}));
    assert_predictors(0, 0, after);
}

static void refusals_leave_the_store_alone(void **state)
{
    (void)state;
    uint8_t before[16], after[16];
    assert_predictors(0, 0, before);
    assert_int_equal(1, add("")); /* no such file */
    assert_says("p.safetensors");
    FILE *f = fopen(file, "w"); /* a tensor of the checkpoint's own */
    assert_non_null(f);
    const char header[] = "{\"shared.weight\":{\"dtype\":\"F32\",\"shape\":[1],"
                          "\"data_offsets\":[0,4]}}    ";
    const unsigned char length[8] = {sizeof header - 1};
    assert_int_equal(1, fwrite(length, 8, 1, f));
    assert_int_equal(1, fwrite(header, sizeof header - 1, 1, f));
    assert_int_equal(1, fwrite("\0\0\0\0", 4, 1, f));
    fclose(f);
    assert_int_equal(1, add(""));
    assert_says("shared.weight is no predictor");
    write_file(1, 1);
    int fd = open(store, O_RDONLY | O_DIRECTORY);
    assert_int_equal(0, flock(fd, LOCK_EX));
    assert_int_equal(1, add(""));
    assert_says("another expert-pack is adding");
    close(fd);
    assert_int_equal(2, pack((const char *const[]){"add", store, NULL}));
    assert_predictors(0, 0, after);
    assert_memory_equal(before, after, 16);
    assert_int_equal(-1, segment_bytes(1));
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s EXPERT_PACK\n", argv[0]);
        return 1;
    }
    program = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(predictors_come_and_go_as_a_whole, make_store,
                                        remove_store),
        cmocka_unit_test_setup_teardown(a_killed_add_is_all_or_nothing, make_store, remove_store),
        cmocka_unit_test_setup_teardown(refusals_leave_the_store_alone, make_store, remove_store),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
