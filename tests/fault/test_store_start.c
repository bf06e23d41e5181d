/* A store that finds no room while it starts: whichever of its regions it is, the start fails with
 * a status and a text that name it, and leaves nothing in shared memory or at its address, so that
 * the next start works. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/log.h"
#include "expert-store/server/server.h"
#include "tests/support/store_rig.h"

static int calls_until_failure = -1; /* -1: never */
static int failure_code;

int __real_posix_fallocate(int fd, off_t off, off_t bytes);
int __wrap_posix_fallocate(int fd, off_t off, off_t bytes);
int __wrap_posix_fallocate(int fd, off_t off, off_t bytes)
{
    if (calls_until_failure > 0) {
        calls_until_failure--;
        if (calls_until_failure == 0) {
            return failure_code;
        }
    }
    return __real_posix_fallocate(fd, off, bytes);
}

static store_rig rig;

static int setup(void **state)
{
    (void)state;
    store_rig_init(&rig, NULL);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    store_rig_fini(&rig);
    return 0;
}

static void load_config(xs_config *cfg)
{
    char program[] = "expert-store", synthetic[] = "--synthetic", model[] = "switch-tiny",
         endpoint[] = "--endpoint", level[] = "--log-level", error[] = "error";
    char *argv[] = {program, synthetic, model, endpoint, rig.endpoint, level, error, NULL};
    moe_config_action action = MOE_CONFIG_RUN;
    assert_int_equal(MOE_OK,
                     moe_config_load(&xs_config_spec, 7, argv, cfg, NULL, 0, NULL, &action, NULL));
    assert_int_equal(MOE_OK, xs_config_check(cfg, NULL));
}

static void fails_at_every_region(int code, moe_status status)
{
    static xs_config cfg;
    load_config(&cfg);
    bool failed = true;
    int n = 0;
    while (failed) {
        xs_server *server = NULL;
        moe_err err = {0};
        n++;
        failure_code = code;
        calls_until_failure = n;
        moe_status st = xs_server_create(&cfg, &server, &err);
        failed = calls_until_failure == 0;
        calls_until_failure = -1;
        if (failed) {
            assert_int_equal(status, st);
            assert_int_equal(code, err.native);
            assert_non_null(strstr(err.text, "/pregate-"));
            assert_null(server);
            assert_int_equal(0, store_rig_count_regions(&rig));
            assert_false(store_rig_file_exists(&rig, "store.sock"));
        } else {
            assert_int_equal(MOE_OK, st);
            assert_true(store_rig_count_regions(&rig) > 0);
            xs_server_destroy(server);
        }
    }
    assert_true(n > 3); /* slots, dense weights, board */
    assert_int_equal(0, store_rig_count_regions(&rig));
}

static void no_space_fails_the_start_and_leaves_nothing(void **state)
{
    (void)state;
    fails_at_every_region(ENOSPC, MOE_ERR_NO_SPACE);
}

static void a_broken_file_system_too(void **state)
{
    (void)state;
    fails_at_every_region(EIO, MOE_ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(no_space_fails_the_start_and_leaves_nothing, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_broken_file_system_too, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
