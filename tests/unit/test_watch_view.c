/* The picture of expert-stat --watch: what its rows say, how it fits a screen; the characters of
 * the map; quantiles of an interval. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "expert-store/stat/lookup.h"
#include "expert-store/stat/watch_view.h"
#include "proto/expert_map.h"

/* ---- the map's characters ---- */

static void every_place_and_heat_has_its_character(void **state)
{
    (void)state;
    char seen[128] = {0};
    for (uint32_t place = WIRE_MAP_DRIVE; place <= WIRE_MAP_LEASED; place++) {
        for (uint32_t heat = 0; heat <= WIRE_MAP_MAX_HEAT; heat++) {
            char c = wire_map_char((wire_map_place)place, heat);
            wire_map_place got_place = WIRE_MAP_DRIVE;
            uint32_t got_heat = 99;
            assert_true(wire_map_read(c, &got_place, &got_heat));
            assert_int_equal(place, got_place);
            assert_int_equal(place == WIRE_MAP_LOADING ? 0 : heat, got_heat);
            seen[(unsigned char)c] = 1;
        }
    }
    for (int c = 0; c < 128; c++) {
        wire_map_place place;
        uint32_t heat;
        assert_int_equal(seen[c], wire_map_read((char)c, &place, &heat));
    }
}

static void heat_doubles(void **state)
{
    (void)state;
    const uint64_t uses[] = {0, 1, 2, 3, 6, 7, 510, 511, 512, 1ull << 60};
    const uint32_t heat[] = {0, 1, 1, 2, 2, 3, 8, 9, 9, 9};
    for (int i = 0; i < 10; i++) {
        assert_int_equal(heat[i], wire_map_heat(uses[i]));
    }
}

/* ---- lists ---- */

static void gauge(moe_metrics *m, const char *name, const char *labels, double value)
{
    moe_metrics_add(m, MOE_METRIC_GAUGE, name, "h", value, "%s", labels);
}

/* A store whose counters all stand at `base`. */
static void fill(moe_metrics *m, double base)
{
    moe_metrics_init(m);
    gauge(m, "pregate_store_info", "model=\"toy\"", 1);
    gauge(m, "pregate_store_engine", "engine=\"io_uring\"", 1);
    gauge(m, "pregate_store_direct", "", 1);
    gauge(m, "pregate_store_pinned", "", 0);
    gauge(m, "pregate_store_uptime_seconds", "", 90);
    gauge(m, "pregate_store_boot", "", 3);
    gauge(m, "pregate_store_workers", "", 2);
    gauge(m, "pregate_store_queue_depth", "class=\"near\"", 5);
    gauge(m, "pregate_store_read_bytes_total", "", base * 1e9);
    gauge(m, "pregate_worker_copy_bytes_total", "worker=\"1\"", base * 1e10);
    gauge(m, "pregate_store_evictions_total", "", base);
    gauge(m, "pregate_worker_output_tokens_total", "worker=\"1\"", 100 * base);
    for (int b = 0; b < 2; b++) {
        const char *label = b == 0 ? "block=\"enc0\"" : "block=\"dec0\"";
        gauge(m, "pregate_slot_hit_total", label, 3 * base);
        gauge(m, "pregate_slot_late_total", label, 0);
        gauge(m, "pregate_slot_miss_total", label, base);
        gauge(m, "pregate_store_block_ready", label, 2);
    }
    gauge(m, WIRE_MAP_METRIC, "block=\"dec0\",from=\"0\",map=\"aB+3\"", 1);
    gauge(m, WIRE_MAP_METRIC, "block=\"enc0\",from=\"3\",map=\"J\"", 1);
    gauge(m, WIRE_MAP_METRIC, "block=\"enc0\",from=\"0\",map=\"jab\"", 1);
}

typedef struct picture {
    moe_metrics before, now;
    moe_text text;
} picture;

static const char *draw(picture *p, const xs_screen *screen, bool with_earlier)
{
    moe_text_init(&p->text);
    fill(&p->before, 1);
    fill(&p->now, 3);
    xs_watch_view(&p->now, with_earlier ? &p->before : NULL, 2, screen, &p->text);
    assert_int_equal(MOE_OK, moe_text_finish(&p->text, NULL));
    return p->text.data;
}

static void drop(picture *p)
{
    moe_metrics_fini(&p->before);
    moe_metrics_fini(&p->now);
    moe_text_fini(&p->text);
}

static void shows(const char *text, const char *part)
{
    if (strstr(text, part) == NULL) {
        fail_msg("no \"%s\" in:\n%s", part, text);
    }
}

static const xs_screen plain = {.columns = 120, .rows = 30};

static void rates_are_of_the_time_between_two_lists(void **state)
{
    (void)state;
    picture p;
    const char *text = draw(&p, &plain, true);
    shows(text, "toy  up 90.0 s, boot 3  io_uring, NOT PINNED\n");
    shows(text, "drive -> slots  #####.....  1.00 GB/s    slots -> cells  #########. 10.00 GB/s\n");
    shows(text, "slots  hit 75.0 %   late 0.0 %    miss 25.0 %    evicted 1/s, wasted 0/s\n");
    shows(text, "tokens 100/s, steps 0/s, workers 2\n");
    shows(text, "queue  demand 0, near 5, far 0, warm 0; in flight 0\n");
    drop(&p);
}

static void without_an_earlier_list_nothing_has_a_rate(void **state)
{
    (void)state;
    picture p;
    const char *text = draw(&p, &plain, false);
    shows(text, "drive -> slots  ..........     - GB/s");
    shows(text, "slots  hit -        late -        miss -         evicted -, wasted -\n");
    shows(text, "enc0          -    2/4  j a b J \n");
    drop(&p);
}

static void a_block_is_a_row_of_experts(void **state)
{
    (void)state;
    picture p;
    const char *text = draw(&p, &plain, true);
    shows(text, "enc0     75.0 %    2/4  j a b J \n"); /* two samples, in any order */
    shows(text, "dec0     75.0 %    2/4  a B + 3 \n");
    drop(&p);
}

static void a_narrow_screen_puts_several_experts_into_a_cell(void **state)
{
    (void)state;
    picture p;
    xs_screen narrow = {.columns = 24 + 4, .rows = 30};
    shows(draw(&p, &narrow, true), "dec0     75.0 %    2/4  aB+3\n");
    drop(&p);
    narrow.columns = 24 + 2;
    const char *text = draw(&p, &narrow, true);
    shows(text, "dec0     75.0 %    2/4  B3\n"); /* the nearest of each two */
    shows(text, "enc0     75.0 %    2/4  jJ\n"); /* the warmest; a slot before a drive */
    drop(&p);
    narrow.columns = 10;
    shows(draw(&p, &narrow, true), "toy  up 90\n");
    drop(&p);
}

static uint32_t count_lines(const char *text)
{
    uint32_t n = 0;
    for (; *text != '\0'; text++) {
        n += *text == '\n';
    }
    return n;
}

static void a_low_screen_says_how_many_blocks_are_missing(void **state)
{
    (void)state;
    picture p;
    xs_screen low = {.columns = 80, .rows = 9};
    const char *text = draw(&p, &low, true);
    assert_int_equal(9, count_lines(text));
    shows(text, "dec0");
    drop(&p);
    low.rows = 8;
    text = draw(&p, &low, true);
    assert_int_equal(8, count_lines(text));
    shows(text, "... and 2 more: ");
    drop(&p);
}

static void colours_change_only_where_the_cell_changes(void **state)
{
    (void)state;
    picture p;
    const xs_screen colourful = {.columns = 120, .rows = 30, .color = true, .utf8 = true};
    const char *text = draw(&p, &colourful, true);
    shows(text, "drive \u2192 slots  \u2588\u2588\u2588\u2588\u2588\u2591\u2591\u2591\u2591\u2591");
    shows(text, "2/4  \033[38;5;243m\u2588 \033[38;5;234m\u2588 \033[38;5;235m\u2588 "
                "\033[38;5;46m\u2588 \033[0m\n");
    drop(&p);
    const xs_screen ascii = {.columns = 120, .rows = 30, .color = true};
    shows(draw(&p, &ascii, true),
          "\033[38;5;234m. \033[38;5;22m# \033[38;5;220m# \033[38;5;21m# \033[0m");
    drop(&p);
}

static void maps_that_make_no_sense_are_drawn_as_far_as_they_do(void **state)
{
    (void)state;
    moe_metrics m;
    moe_text t;
    moe_metrics_init(&m);
    moe_text_init(&t);
    gauge(&m, "pregate_store_block_ready", "block=\"dec0\"", 0);
    gauge(&m, WIRE_MAP_METRIC, "block=\"dec0\",from=\"4000000000\",map=\"AAAA\"", 1);
    gauge(&m, WIRE_MAP_METRIC, "block=\"dec0\",from=\"0\",map=\"A?~A\"", 1);
    gauge(&m, WIRE_MAP_METRIC, "block=\"dec0\"", 1);
    xs_watch_view(&m, NULL, 0, &plain, &t);
    assert_int_equal(MOE_OK, moe_text_finish(&t, NULL));
    shows(t.data, "0/4  A a a A \n");
    moe_text_fini(&t);
    moe_metrics_fini(&m);
}

/* ---- quantiles ---- */

static void quantiles_are_of_what_came_since(void **state)
{
    (void)state;
    moe_histogram h = {0};
    moe_metrics before;
    moe_metrics now;
    moe_metrics_init(&before);
    moe_metrics_init(&now);
    for (int i = 0; i < 100; i++) {
        moe_histogram_add_ns(&h, 1000); /* 1 us, long ago */
    }
    moe_metrics_add_histogram(&before, "h", "h", &h, "%s", "");
    for (int i = 0; i < 10; i++) {
        moe_histogram_add_ns(&h, i < 8 ? 1000000 : 30000000);
    }
    moe_metrics_add_histogram(&now, "h", "h", &h, "%s", "");
    assert_true(fabs(xs_stat_quantile(&now, NULL, "h", 0.5) - 1e-6) < 1e-12);
    assert_true(fabs(xs_stat_quantile(&now, &before, "h", 0.5) - 1.024e-3) < 1e-9);
    assert_true(fabs(xs_stat_quantile(&now, &before, "h", 0.9) - 32.768e-3) < 1e-9);
    assert_true(isnan(xs_stat_quantile(&now, &now, "h", 0.5)));
    moe_metrics_fini(&before);
    moe_metrics_fini(&now);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_place_and_heat_has_its_character),
        cmocka_unit_test(heat_doubles),
        cmocka_unit_test(rates_are_of_the_time_between_two_lists),
        cmocka_unit_test(without_an_earlier_list_nothing_has_a_rate),
        cmocka_unit_test(a_block_is_a_row_of_experts),
        cmocka_unit_test(a_narrow_screen_puts_several_experts_into_a_cell),
        cmocka_unit_test(a_low_screen_says_how_many_blocks_are_missing),
        cmocka_unit_test(colours_change_only_where_the_cell_changes),
        cmocka_unit_test(maps_that_make_no_sense_are_drawn_as_far_as_they_do),
        cmocka_unit_test(quantiles_are_of_what_came_since),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
