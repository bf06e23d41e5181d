/* expert-doctor's parts: reading a machine from files, judging it, what a model runs at, the choice
 * among measured points, the output. Runs in a scratch directory. */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/memory_group.h"
#include "expert-store/doctor/drive.h"
#include "expert-store/doctor/host.h"
#include "expert-store/doctor/outlook.h"

#define GIB (1ull << 30)
#define ASSERT_NEAR(expected, got) assert_true(fabs((expected) - (got)) < 1e-6)

/* ---- a made-up machine ---- */

static char scratch[] = "/tmp/pregate-test-XXXXXX";

static void put(const char *path, const char *text)
{
    char full[256];
    snprintf(full, sizeof full, "%s%s", scratch, path);
    for (char *at = full + strlen(scratch) + 1; *at != '\0'; at++) {
        if (*at == '/') {
            *at = '\0';
            (void)mkdir(full, 0700);
            *at = '/';
        }
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(0, fclose(f));
}

static void drop(const char *path)
{
    char full[256];
    snprintf(full, sizeof full, "%s%s", scratch, path);
    (void)unlink(full);
}

static int clean(void **state)
{
    (void)state;
    static const char *const paths[] = {"/proc/meminfo",
                                        "/proc/self/status",
                                        "/proc/self/cgroup",
                                        "/sys/fs/cgroup/memory.max",
                                        "/sys/fs/cgroup/a/b/memory.max",
                                        "/sys/fs/cgroup/a/b/memory.current",
                                        "/sys/fs/cgroup/a/b/memory.stat",
                                        "/sys/fs/cgroup/memory/c/memory.usage_in_bytes",
                                        "/sys/fs/cgroup/memory/c/memory.limit_in_bytes",
                                        "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
                                        "/sys/kernel/mm/transparent_hugepage/enabled",
                                        "/sys/devices/system/node/has_memory"};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        drop(paths[i]);
    }
    return 0;
}

static xs_host read_it(void)
{
    xs_host h;
    xs_host_read(scratch, &h);
    return h;
}

static void a_machine_is_read_from_proc_and_sys(void **state)
{
    (void)state;
    put("/proc/meminfo", "MemTotal:       65536 kB\nMemFree: 1 kB\nMemAvailable:   32768 kB\n"
                         "HugePages_Total:       3\nHugepagesize:       2048 kB\n");
    put("/proc/self/status", "Name:\tx\nCapPrm:\t0\nCapEff:\t0000000000004001\n");
    put("/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "always within_size [advise] never deny force\n");
    put("/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
    put("/sys/devices/system/node/has_memory", "0-2,5\n");
    const xs_host h = read_it();
    assert_int_equal(64 << 20, h.ram_bytes);
    assert_int_equal(32 << 20, h.ram_available_bytes);
    assert_int_equal(6 << 20, h.huge_page_pool_bytes);
    assert_true(h.may_lock_anyway);
    assert_string_equal("advise", h.shm_huge);
    assert_string_equal("never", h.anonymous_huge);
    assert_int_equal(4, h.n_nodes);
    assert_int_equal(UINT64_MAX, h.cgroup_bytes);
    assert_true(h.n_cpus >= 1 && h.kernel[0] != '\0');
}

static void what_is_not_there_stays_unknown(void **state)
{
    (void)state;
    const xs_host h = read_it();
    assert_int_equal(0, h.ram_bytes);
    assert_false(h.may_lock_anyway);
    assert_string_equal("", h.shm_huge);
    assert_int_equal(1, h.n_nodes);
    assert_int_equal(UINT64_MAX, h.cgroup_bytes);
}

static void the_least_limit_of_the_control_groups_counts(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "4:memory:/c\n3:cpu:/z\n0::/a/b\n");
    put("/sys/fs/cgroup/a/b/memory.max", "max\n");
    assert_int_equal(UINT64_MAX, read_it().cgroup_bytes);
    put("/sys/fs/cgroup/memory/c/memory.limit_in_bytes", "9223372036854771712\n"); /* "none" */
    assert_int_equal(UINT64_MAX, read_it().cgroup_bytes);
    put("/sys/fs/cgroup/memory/c/memory.limit_in_bytes", "3000000\n");
    assert_int_equal(3000000, read_it().cgroup_bytes);
    put("/sys/fs/cgroup/a/b/memory.max", "2000000\n");
    assert_int_equal(2000000, read_it().cgroup_bytes);
    put("/sys/fs/cgroup/memory.max", "1000000\n"); /* a container sees its group as the root */
    assert_int_equal(1000000, read_it().cgroup_bytes);
    drop("/sys/fs/cgroup/memory.max");

    moe_memory_group g;
    put("/sys/fs/cgroup/a/b/memory.current", "1500000\n");
    moe_memory_group_read(scratch, &g);
    assert_int_equal(500000, g.free_bytes);
    put("/sys/fs/cgroup/a/b/memory.stat", "anon 5\ninactive_file 400000\nactive_file 7\n");
    moe_memory_group_read(scratch, &g);
    assert_int_equal(900000, g.free_bytes);
    put("/sys/fs/cgroup/memory/c/memory.usage_in_bytes", "2900000\n"); /* of 3000000 */
    moe_memory_group_read(scratch, &g);
    assert_int_equal(2000000, g.limit_bytes);
    assert_int_equal(100000, g.free_bytes); /* whichever ends first */
    put("/sys/fs/cgroup/memory/c/memory.usage_in_bytes", "3100000\n");
    moe_memory_group_read(scratch, &g);
    assert_int_equal(0, g.free_bytes);
}

static void this_machine_can_be_read(void **state)
{
    (void)state;
    xs_host h;
    xs_host_read("", &h);
    assert_true(h.ram_bytes > 64 << 20);
    assert_true(h.ram_available_bytes <= h.ram_bytes && h.ram_available_bytes > 0);
    assert_true(h.shm_free_bytes <= h.shm_bytes);
    assert_true(xs_host_usable_bytes(&h) <= h.ram_available_bytes);
}

/* ---- judging ---- */

static const xs_host good_host = {.kernel = "6.1",
                                  .n_cpus = 8,
                                  .memlock_bytes = UINT64_MAX,
                                  .ram_bytes = 64 * GIB,
                                  .ram_available_bytes = 60 * GIB,
                                  .cgroup_bytes = UINT64_MAX,
                                  .shm_bytes = 32 * GIB,
                                  .shm_free_bytes = 32 * GIB,
                                  .shm_huge = "never",
                                  .n_nodes = 1};

static xs_finding judged(const xs_host *h, uint64_t needed_bytes, const char *name)
{
    xs_findings f = {.n = 0};
    xs_host_judge(h, needed_bytes, &f);
    for (uint32_t i = 0; i < f.n; i++) {
        if (strcmp(f.items[i].name, name) == 0) {
            return f.items[i];
        }
    }
    fail_msg("no finding %s", name);
    return f.items[0];
}

static void has(const char *text, const char *part)
{
    if (strstr(text, part) == NULL) {
        fail_msg("no \"%s\" in \"%s\"", part, text);
    }
}

static void a_good_machine_has_nothing_to_change(void **state)
{
    (void)state;
    xs_findings f = {.n = 0};
    xs_host_judge(&good_host, 15 * GIB, &f);
    assert_int_equal(XS_NOTE, xs_findings_worst(&f)); /* huge pages */
    for (uint32_t i = 0; i < f.n; i++) {
        assert_string_equal("", f.items[i].cost);
        assert_string_equal("", f.items[i].change);
    }
}

static void a_memlock_limit_matters_unless_it_is_large_or_does_not_bind(void **state)
{
    (void)state;
    xs_host h = good_host;
    h.memlock_bytes = 8 << 20;
    xs_finding f = judged(&h, 15 * GIB, "memlock");
    assert_int_equal(XS_SLOW, f.verdict);
    has(f.cost, "30 us");
    has(f.change, "LimitMEMLOCK=infinity");
    assert_int_equal(XS_SLOW, judged(&h, 0, "memlock").verdict);
    h.may_lock_anyway = true;
    assert_int_equal(XS_GOOD, judged(&h, 15 * GIB, "memlock").verdict);
    h.may_lock_anyway = false;
    h.memlock_bytes = 16 * GIB;
    assert_int_equal(XS_GOOD, judged(&h, 15 * GIB, "memlock").verdict);
    assert_int_equal(XS_SLOW, judged(&h, 17 * GIB, "memlock").verdict);
}

static void shared_memory_must_be_there_and_should_hold_the_slots(void **state)
{
    (void)state;
    xs_host h = good_host;
    h.shm_free_bytes = 64 << 20; /* a container's default */
    xs_finding f = judged(&h, 15 * GIB, "/dev/shm");
    assert_int_equal(XS_SLOW, f.verdict);
    has(f.cost, "at most 0.06 GiB");
    has(f.change, "--shm-size");
    assert_int_equal(XS_SLOW, judged(&h, 0, "/dev/shm").verdict);
    h.shm_bytes = h.shm_free_bytes = 0;
    assert_int_equal(XS_BAD, judged(&h, 0, "/dev/shm").verdict);
}

static void a_control_group_bounds_memory_and_is_named(void **state)
{
    (void)state;
    xs_host h = good_host;
    h.cgroup_bytes = 4 * GIB;
    xs_finding f = judged(&h, 15 * GIB, "RAM");
    assert_int_equal(XS_NOTE, f.verdict);
    has(f.found, "control group may have 4.0");
    has(f.cost, "not every expert has a slot");
    assert_int_equal(XS_GOOD, judged(&h, 3 * GIB, "RAM").verdict);
    assert_int_equal(4 * GIB, xs_host_usable_bytes(&h));
    h.shm_free_bytes = 2 * GIB;
    assert_int_equal(2 * GIB, xs_host_usable_bytes(&h));
    h.ram_available_bytes = GIB;
    assert_int_equal(GIB, xs_host_usable_bytes(&h));
}

static void several_memory_nodes_are_worth_a_word(void **state)
{
    (void)state;
    xs_host h = good_host;
    h.n_nodes = 2;
    xs_finding f = judged(&h, 0, "NUMA");
    assert_int_equal(XS_SLOW, f.verdict);
    has(f.change, "numactl");
}

/* ---- output ---- */

static void findings_are_shown_as_lines_and_as_json(void **state)
{
    (void)state;
    xs_findings f = {.n = 0};
    moe_text text;
    (void)xs_findings_add(&f, "one", XS_GOOD, "all is %s", "well");
    xs_finding *two = xs_findings_add(&f, "two", XS_SLOW, "a \"quoted\" word");
    xs_finding_cost(two, "%d us", 30);
    xs_finding_change(two, "this");
    assert_int_equal(XS_SLOW, xs_findings_worst(&f));
    moe_text_init(&text);
    xs_findings_table(&f, &text);
    assert_string_equal("good  one         all is well\n"
                        "slow  two         a \"quoted\" word\n"
                        "                  costs:  30 us\n"
                        "                  change: this\n",
                        text.data);
    moe_text_fini(&text);
    moe_text_init(&text);
    xs_findings_json(&f, &text);
    assert_string_equal("[{\"name\": \"one\", \"verdict\": \"good\", \"found\": \"all is well\", "
                        "\"cost\": \"\", \"change\": \"\"}, {\"name\": \"two\", \"verdict\": "
                        "\"slow\", \"found\": \"a \\\"quoted\\\" word\", \"cost\": \"30 us\", "
                        "\"change\": \"this\"}]",
                        text.data);
    moe_text_fini(&text);
}

/* ---- what a model runs at ---- */

/* 4 decoder blocks of 10 experts and 2 encoder blocks: 60 experts. */
static moe_model_shape toy_shape(void)
{
    moe_model_shape s = {.n_experts = 10, .top_k = 2, .n_blocks_total = 6, .n_experts_total = 60};
    s.stack[MOE_ENCODER].n_blocks = 2;
    s.stack[MOE_DECODER].n_blocks = 4;
    return s;
}

static void budgets_hold_shares_and_bound_tokens_by_the_drive(void **state)
{
    (void)state;
    const moe_model_shape shape = toy_shape();
    const xs_outlook_input in = {.model = "toy",
                                 .shape = &shape,
                                 .slot_bytes = 1000000,
                                 .usable_bytes = 31500000,
                                 .drive_gb_per_s = 2,
                                 .dram_gb_per_s = 10};
    xs_outlook o;
    xs_outlook_compute(&in, &o);
    assert_int_equal(8, o.experts_per_token); /* 4 blocks, two each */
    assert_int_equal(8000000, o.bytes_per_token);
    assert_int_equal(60000000, o.all_bytes);
    ASSERT_NEAR(500, o.drive_expert_us);
    ASSERT_NEAR(100, o.dram_expert_us);
    ASSERT_NEAR(1250, o.dram_tokens_per_s);
    const double shares[] = {0.1, 0.25, 0.5, 0.75, 1};
    const bool fits[] = {true, true, true, false, false};
    for (int i = 0; i < XS_N_BUDGETS; i++) {
        ASSERT_NEAR(shares[i], o.budgets[i].share);
        assert_int_equal(60e6 * shares[i], o.budgets[i].ram_bytes);
        assert_int_equal(fits[i], o.budgets[i].fits);
    }
    ASSERT_NEAR(250 / 0.9, o.budgets[0].even_tokens_per_s);
    ASSERT_NEAR(500, o.budgets[2].even_tokens_per_s);
    assert_true(isinf(o.budgets[4].even_tokens_per_s));
    assert_int_equal(31000000, o.largest_bytes);
    ASSERT_NEAR(31 / 60.0, o.largest_share);
}

static void a_model_without_a_decoder_counts_its_encoder(void **state)
{
    (void)state;
    moe_model_shape shape = toy_shape();
    shape.stack[MOE_DECODER].n_blocks = 0;
    shape.n_blocks_total = 2;
    shape.n_experts_total = 20;
    const xs_outlook_input in = {
        .model = "toy", .shape = &shape, .slot_bytes = 4096, .usable_bytes = GIB};
    xs_outlook o;
    moe_text text;
    xs_outlook_compute(&in, &o);
    assert_int_equal(4, o.experts_per_token);
    ASSERT_NEAR(1, o.largest_share);
    moe_text_init(&text);
    xs_outlook_json(&in, &o, &text); /* nothing was measured: numbers all the same */
    has(text.data, "\"drive_expert_us\": 0.00");
    has(text.data, "{\"share\": 1.0000, \"ram_bytes\": 81920, \"fits\": true, "
                   "\"even_tokens_per_s\": null}]}");
    moe_text_fini(&text);
}

/* ---- the drive ---- */

static void the_choice_is_the_least_in_flight_that_is_fast_enough(void **state)
{
    (void)state;
    enum { K = 1024, M = 1024 * 1024 };
    const xs_drive_point points[] = {
        {128 * K, 1, 0.5}, {M, 64, 2.00}, {M, 16, 1.95},
        {4 * M, 4, 1.95},  {M, 4, 1.93},  {4 * M, 64, 0} /* not measured */
    };
    assert_int_equal(3, xs_drive_choose(points, 6)); /* as much as 2, in fewer reads */
    assert_int_equal(2, xs_drive_choose(points, 3));
    assert_int_equal(0, xs_drive_choose(points, 1));
}

int main(void)
{
    if (mkdtemp(scratch) == NULL) {
        return 1;
    }
#define ON_FILES(name) cmocka_unit_test_setup_teardown(name, clean, clean)
    const struct CMUnitTest tests[] = {
        ON_FILES(a_machine_is_read_from_proc_and_sys),
        ON_FILES(what_is_not_there_stays_unknown),
        ON_FILES(the_least_limit_of_the_control_groups_counts),
        cmocka_unit_test(this_machine_can_be_read),
        cmocka_unit_test(a_good_machine_has_nothing_to_change),
        cmocka_unit_test(a_memlock_limit_matters_unless_it_is_large_or_does_not_bind),
        cmocka_unit_test(shared_memory_must_be_there_and_should_hold_the_slots),
        cmocka_unit_test(a_control_group_bounds_memory_and_is_named),
        cmocka_unit_test(several_memory_nodes_are_worth_a_word),
        cmocka_unit_test(findings_are_shown_as_lines_and_as_json),
        cmocka_unit_test(budgets_hold_shares_and_bound_tokens_by_the_drive),
        cmocka_unit_test(a_model_without_a_decoder_counts_its_encoder),
        cmocka_unit_test(the_choice_is_the_least_in_flight_that_is_fast_enough),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", scratch);
    return system(command) != 0 || failed != 0;
}
