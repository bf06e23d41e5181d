/* expert-stat --watch over a running store: on a terminal a picture that shows where experts are,
 * on a pipe plain lines. argv: paths of expert-store, expert-stat. */
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/expert_map.h"
#include "tests/support/store_rig.h"

static const char *store_program, *stat_program;

typedef struct fixture {
    store_rig rig;
    rig_client a;
} fixture;

static const char *const four_slots[] = {"--synthetic",   "switch-tiny", "--ram-bytes", "32768",
                                         "--max-workers", "1",           NULL};

/* Expert 1 was used thrice, 2 twice, 3 once and is leased now; 0 was never asked for. */
static int setup(void **state)
{
    static fixture f;
    const uint32_t used[] = {1, 1, 1, 2, 2, 3};
    memset(&f, 0, sizeof f);
    f.a.slots = f.a.dense = f.a.board = f.a.leases = MOE_SHM_REGION_NONE;
    store_rig_init(&f.rig, store_program);
    store_rig_start(&f.rig, four_slots);
    rig_client_join(&f.a, f.rig.endpoint);
    for (uint32_t i = 0; i < 6; i++) {
        rig_client_want(&f.a, &used[i], 1);
        (void)rig_client_lease(&f.a, 0, used[i]);
        if (i < 5) {
            rig_client_release(&f.a, 0);
        }
    }
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    rig_client_close(&f->a);
    store_rig_fini(&f->rig);
    return 0;
}

static void shows(const char *text, const char *part)
{
    if (strstr(text, part) == NULL) {
        fail_msg("no \"%s\" in: %s", part, text);
    }
}

static void a_store_sends_maps_when_they_are_asked_for(void **state)
{
    fixture *f = *state;
    uint32_t n_maps = 0;
    for (uint32_t flags = 0; flags <= WIRE_STATS_MAPS; flags += WIRE_STATS_MAPS) {
        f->a.out.plain = (wire_plain){.h.kind = WIRE_STATS, .flags = flags};
        rig_client_send(&f->a);
        rig_client_expect(&f->a, WIRE_STATS_REPLY);
        moe_metrics *m = &f->a.in.stats_reply.metrics;
        for (uint32_t i = 0; i < m->n; i++) {
            if (strcmp(m->items[i].name, WIRE_MAP_METRIC) == 0) {
                if (n_maps++ == 0) {
                    shows(m->items[i].labels, "block=\"enc0\",from=\"0\",map=\"aCB1aaaa\"");
                }
            }
        }
        assert_int_equal(flags == 0 ? 0 : 4, n_maps); /* one a block: eight experts each */
        moe_metrics_fini(m);
    }
}

/* Everything a command writes until it has been watching for a second. */
static const char *watch_on_terminal(const fixture *f, const char *option)
{
    static char text[64 << 10];
    const struct winsize size = {.ws_row = 24, .ws_col = 90};
    size_t n = 0;
    int terminal = -1;
    pid_t pid = forkpty(&terminal, NULL, NULL, &size);
    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(20);
        execl(stat_program, stat_program, "--endpoint", f->rig.endpoint, "--watch", "0.2", option,
              (char *)NULL);
        _exit(127);
    }
    for (uint32_t pictures = 0; pictures < 3 && n + 1 < sizeof text;) {
        ssize_t got = read(terminal, text + n, sizeof text - 1 - n);
        assert_true(got > 0);
        text[n + (size_t)got] = '\0';
        pictures = 0;
        for (const char *at = text; (at = strstr(at, "\033[J")) != NULL; at++) {
            pictures++;
        }
        n += (size_t)got;
    }
    assert_int_equal(0, kill(pid, SIGINT));
    int status = 0;
    while (read(terminal, (char[256]){0}, 256) > 0) { /* else it could not write its last lines */
    }
    assert_int_equal(pid, waitpid(pid, &status, 0));
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(terminal);
    return text;
}

static void a_terminal_gets_a_picture_again_and_again(void **state)
{
    fixture *f = *state;
    const char *text = watch_on_terminal(f, "--no-color");
    shows(text, "\033[Hswitch-tiny  up ");
    shows(text, "/8  a C B 1 a a a a \033[K");
    text = watch_on_terminal(f, "--color");
    shows(text, "\033[38;5;28m");  /* a warm slot */
    shows(text, "\033[38;5;234m"); /* the drive */
    shows(text, "\033[0m");
}

static void a_pipe_gets_plain_lines(void **state)
{
    fixture *f = *state;
    char command[400];
    char text[32 << 10];
    snprintf(command, sizeof command, "timeout 1 %s --endpoint %s --watch 0.2", stat_program,
             f->rig.endpoint);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    size_t n = fread(text, 1, sizeof text - 1, p);
    text[n] = '\0';
    (void)pclose(p);
    assert_null(strchr(text, '\033'));
    shows(text, "want to ready");
    shows(strstr(text, "want to ready") + 1, "want to ready"); /* more than once */
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        return 1;
    }
    store_program = argv[1];
    stat_program = argv[2];
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_store_sends_maps_when_they_are_asked_for),
        TEST(a_terminal_gets_a_picture_again_and_again),
        TEST(a_pipe_gets_plain_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
