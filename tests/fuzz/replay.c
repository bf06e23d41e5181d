/* The main of a fuzz target in builds without libFuzzer: runs every file of the directories given,
 * in any order, and options (-x) are ignored. So a corpus is a regression test everywhere. */
#include <dirent.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { MAX_INPUT_BYTES = 8 << 20 };

/* A buffer of exactly the input's size, so that a sanitizer sees a read past it. */
static int run_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL || fseek(f, 0, SEEK_END) != 0) {
        perror(path);
        return 1;
    }
    long bytes = ftell(f);
    uint8_t *data = bytes < 0 || bytes > MAX_INPUT_BYTES ? NULL : malloc((size_t)bytes);
    rewind(f);
    if (bytes > 0 && (data == NULL || fread(data, 1, (size_t)bytes, f) != (size_t)bytes)) {
        fprintf(stderr, "%s: cannot be read\n", path);
        return 1;
    }
    fclose(f);
    printf("%s\n", path);
    fflush(stdout); /* names the input if it aborts */
    (void)LLVMFuzzerTestOneInput(data, (size_t)bytes);
    free(data);
    return 0;
}

static int run_directory(const char *dir, int *n_files)
{
    DIR *d = opendir(dir);
    if (d == NULL) {
        perror(dir);
        return 1;
    }
    int failed = 0;
    for (struct dirent *e = readdir(d); e != NULL && !failed; e = readdir(d)) {
        char path[PATH_MAX];
        if (e->d_name[0] == '.') {
            continue;
        }
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        failed = run_file(path);
        *n_files += 1;
    }
    closedir(d);
    return failed;
}

int main(int argc, char **argv)
{
    int n_files = 0, failed = 0;
    for (int i = 1; i < argc && !failed; i++) {
        failed = argv[i][0] == '-' ? 0 : run_directory(argv[i], &n_files);
    }
    printf("%d inputs\n", n_files);
    return failed || n_files == 0;
}
