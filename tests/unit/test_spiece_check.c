/* What is taken for a sentencepiece model: the demo's file, and none of its damaged forms.
 * Argument: that file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/file.h"
#include "expert-store/pack/spiece_check.h"

static char *model;
static size_t n_bytes;

static moe_status check(const void *data, size_t bytes, uint32_t *n_pieces)
{
    moe_err err = {0};
    moe_status st = xs_spiece_check(data, bytes, n_pieces, &err);
    assert_true(st == MOE_OK || strstr(err.text, "not a sentencepiece model") != NULL);
    return st;
}

static void the_pieces_of_a_model_are_counted(void **state)
{
    (void)state;
    uint32_t n = 0;
    assert_int_equal(MOE_OK, check(model, n_bytes, &n));
    assert_int_equal(4096, n);
}

/* Cut between two fields a file still is a message; anywhere else it is not. */
static void a_cut_file_is_refused(void **state)
{
    (void)state;
    uint32_t n = 0, n_taken = 0;
    for (size_t cut = 1; cut <= 200; cut++) {
        n_taken += check(model, n_bytes - cut, &n) == MOE_OK;
    }
    assert_true(n_taken <= 2);
}

static void other_bytes_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
    } cases[] = {
        {"", 0},                                            /* no pieces */
        {"\022\001x", 3},                                   /* a field, but no piece */
        {"\n", 1},                                          /* no length */
        {"\n\005abc", 5},                                   /* a piece beyond the end */
        {"\n\377\377\377\377\377\377\377\377\377\001", 11}, /* far beyond it */
        {"\n\377\377\377\377\377\377\377\377\377\377", 11}, /* a length without an end */
        {"\002\001x", 3},                                   /* field 0 */
        {"\013", 1},                                        /* a group */
        {"\015abc", 4},                                     /* half a number */
        {"{\"model\": 1}", 12},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t n = 0;
        if (check(cases[i].bytes, cases[i].n, &n) == MOE_OK) {
            fail_msg("case %zu was taken", i);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_pieces_of_a_model_are_counted),
        cmocka_unit_test(a_cut_file_is_refused),
        cmocka_unit_test(other_bytes_are_refused),
    };
    if (argc != 2 || moe_file_read(argv[1], 16u << 20, &model, &n_bytes, NULL) != MOE_OK) {
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(model);
    return failed;
}
