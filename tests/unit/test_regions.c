/* regions: how much memory a setting buys, and how it is shared between leases and reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "expert-store/server/regions.h"

enum { SLOT = 1 << 20 };

static const xs_sizing hundred = {.ram_bytes = "all",
                                  .slot_bytes = SLOT,
                                  .n_experts = 100,
                                  .max_workers = 8,
                                  .total_ram = 1000ull * SLOT,
                                  .available_ram = 500ull * SLOT};

static moe_status size(const xs_sizing *base, const char *text, uint32_t *out_n, moe_err *err)
{
    xs_sizing s = *base;
    s.ram_bytes = text;
    return xs_size_slots(&s, out_n, err);
}

static void all_is_a_slot_for_every_expert_and_more_is_not_taken(void **state)
{
    (void)state;
    uint32_t n = 0;
    assert_int_equal(MOE_OK, size(&hundred, "all", &n, NULL));
    assert_int_equal(100, n);
    assert_int_equal(MOE_OK, size(&hundred, "1TiB", &n, NULL));
    assert_int_equal(100, n);
}

static void sizes_and_shares_are_rounded_down_to_slots(void **state)
{
    (void)state;
    uint32_t n = 0;
    assert_int_equal(MOE_OK, size(&hundred, "20MiB", &n, NULL));
    assert_int_equal(20, n);
    assert_int_equal(MOE_OK, size(&hundred, "21495807", &n, NULL)); /* 20.5 MiB - 1 */
    assert_int_equal(20, n);
    assert_int_equal(MOE_OK, size(&hundred, "2.5%", &n, NULL)); /* of 1000 slots' worth */
    assert_int_equal(25, n);
}

static void too_little_names_the_minimum_in_bytes(void **state)
{
    (void)state;
    uint32_t n = 77;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_LIMIT, size(&hundred, "8MiB", &n, &err));
    assert_non_null(strstr(err.text, "9437184")); /* 8 leases and one read */
    assert_int_equal(77, n);
    assert_int_equal(MOE_OK, size(&hundred, "9437184", &n, NULL));
    assert_int_equal(9, n);
    xs_sizing s = hundred;
    s.leases_per_worker = 3;
    assert_int_equal(MOE_ERR_LIMIT, size(&s, "24MiB", &n, &err));
    assert_non_null(strstr(err.text, "26214400")); /* 25 slots */
    s.n_experts = 4; /* all of them are enough, whatever the workers do */
    assert_int_equal(MOE_OK, size(&s, "4MiB", &n, NULL));
    assert_int_equal(4, n);
}

static void more_than_the_machine_has_is_refused(void **state)
{
    (void)state;
    uint32_t n = 0;
    moe_err err = {0};
    xs_sizing s = hundred;
    s.available_ram = 50ull * SLOT;
    assert_int_equal(MOE_ERR_NO_SPACE, size(&s, "all", &n, &err));
    assert_non_null(strstr(err.text, "50 MiB"));
    assert_int_equal(MOE_ERR_NO_SPACE, size(&s, "60MiB", &n, NULL));
    assert_int_equal(MOE_OK, size(&s, "50MiB", &n, NULL));
}

static void nonsense_is_refused_with_what_is_expected(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "lots", "-1", "0%", "101%", "5%%", "nan%", "16Gib ", "%"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        uint32_t n = 0;
        moe_err err = {0};
        assert_int_equal(MOE_ERR_INVALID, size(&hundred, bad[i], &n, &err));
        assert_non_null(strstr(err.text, "--ram-bytes"));
    }
}

static xs_limits limits(uint32_t n_slots, uint32_t n_experts, uint32_t workers, uint64_t leases)
{
    const xs_limits_cfg cfg = {.n_slots = n_slots,
                               .n_experts = n_experts,
                               .max_workers = workers,
                               .slot_bytes = SLOT,
                               .leases_per_worker = leases,
                               .reader_in_flight = 64};
    return xs_size_limits(&cfg);
}

/* n_slots >= workers x capacity + reads: whatever the workers hold, a read finds a slot. */
static void the_ram_minimum_holds_for_every_size(void **state)
{
    (void)state;
    for (uint32_t workers = 1; workers <= 63; workers++) {
        for (uint32_t n = workers + 1; n < 600; n++) {
            xs_limits l = limits(n, 10000, workers, 0);
            assert_true(l.in_flight >= 1 && l.in_flight <= 64);
            assert_true(l.lease_capacity >= 1 && l.lease_capacity <= 256);
            assert_true(n >= workers * l.lease_capacity + l.in_flight);
        }
    }
}

static void fixed_leases_leave_the_rest_to_reads(void **state)
{
    (void)state;
    xs_limits l = limits(25, 1000, 8, 3);
    assert_int_equal(3, l.lease_capacity);
    assert_int_equal(1, l.in_flight);
    l = limits(40, 1000, 8, 3);
    assert_int_equal(16, l.in_flight);
    l = limits(900, 1000, 8, 3);
    assert_int_equal(64, l.in_flight);
}

static void when_every_expert_has_a_slot_nothing_is_scarce(void **state)
{
    (void)state;
    xs_limits l = limits(32, 32, 8, 0);
    assert_int_equal(32, l.lease_capacity);
    assert_int_equal(32, l.in_flight);
    l = limits(4, 4, 8, 100);
    assert_int_equal(100, l.lease_capacity);
    assert_int_equal(4, l.in_flight);
}

static void speculation_is_one_expert_or_eight_mebibytes(void **state)
{
    (void)state;
    assert_int_equal(8, limits(100, 100, 1, 0).speculative_in_flight);
    xs_limits_cfg cfg = {.n_slots = 50,
                         .n_experts = 100,
                         .max_workers = 1,
                         .slot_bytes = 10 << 20,
                         .reader_in_flight = 64};
    assert_int_equal(1, xs_size_limits(&cfg).speculative_in_flight);
    cfg.speculative_bytes = 35 << 20;
    assert_int_equal(3, xs_size_limits(&cfg).speculative_in_flight);
    cfg.speculative_bytes = 1;
    assert_int_equal(1, xs_size_limits(&cfg).speculative_in_flight);
}

static void names_follow_from_the_socket_path(void **state)
{
    (void)state;
    char a[XS_REGION_PREFIX_BYTES];
    char b[XS_REGION_PREFIX_BYTES];
    char name[MOE_SHM_NAME_BYTES];
    xs_region_prefix("/run/pregate/store.sock", a);
    xs_region_prefix("/run/pregate/store2.sock", b);
    assert_int_equal(strlen("/pregate-0123456789abcdef"), strlen(a));
    assert_string_not_equal(a, b);
    xs_lease_region_name(a, 4294967295u, name);
    assert_non_null(strstr(name, "-lease-4294967295"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_is_a_slot_for_every_expert_and_more_is_not_taken),
        cmocka_unit_test(sizes_and_shares_are_rounded_down_to_slots),
        cmocka_unit_test(too_little_names_the_minimum_in_bytes),
        cmocka_unit_test(more_than_the_machine_has_is_refused),
        cmocka_unit_test(nonsense_is_refused_with_what_is_expected),
        cmocka_unit_test(the_ram_minimum_holds_for_every_size),
        cmocka_unit_test(fixed_leases_leave_the_rest_to_reads),
        cmocka_unit_test(when_every_expert_has_a_slot_nothing_is_scarce),
        cmocka_unit_test(speculation_is_one_expert_or_eight_mebibytes),
        cmocka_unit_test(names_follow_from_the_socket_path),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
