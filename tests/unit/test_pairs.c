/* Files of pairs, and pairs made from running text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "gpu-worker/quality/pairs.h"

static char path[64];

/* Loads these bytes as a file. */
static moe_status load(const char *text, uint64_t limit, gw_pairs *out, moe_err *err)
{
    (void)snprintf(path, sizeof path, "/tmp/pregate-pairs-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal((ssize_t)strlen(text), write(fd, text, strlen(text)));
    close(fd);
    moe_status st = gw_pairs_load(path, limit, out, err);
    unlink(path);
    return st;
}

static void assert_pair(const gw_pairs *p, uint32_t i, const char *input, const char *reference)
{
    assert_true(i < p->n);
    assert_string_equal(input, p->items[i].input);
    assert_string_equal(reference, p->items[i].reference);
}

static void a_line_with_a_tab_is_a_pair(void **state)
{
    (void)state;
    gw_pairs p;
    assert_int_equal(
        MOE_OK, load("# where it is from\n\na b\tA, b.\r\n# c\nc\tC\td\n\tempty\n", 0, &p, NULL));
    assert_false(p.derived);
    assert_int_equal(2, p.n);
    assert_pair(&p, 0, "a b", "A, b.");
    assert_pair(&p, 1, "c", "C\td");
    gw_pairs_fini(&p);
}

static void running_text_is_cut_into_sentences(void **state)
{
    (void)state;
    gw_pairs p;
    assert_int_equal(MOE_OK, load("He said \"Go.\" It cost $1,500. Why?  No end\nNext: ob-gyn's "
                                  "p.m.x ... \n!\n",
                                  0, &p, NULL));
    assert_true(p.derived);
    assert_int_equal(5, p.n); /* "!" leaves no input */
    assert_pair(&p, 0, "he said go", "He said \"Go.\"");
    assert_pair(&p, 1, "it cost 1 500", "It cost $1,500.");
    assert_pair(&p, 2, "why", "Why?");
    assert_pair(&p, 3, "no end", "No end");
    assert_pair(&p, 4, "next ob gyn's p m x", "Next: ob-gyn's p.m.x ...");
    gw_pairs_fini(&p);
}

static void the_limit_ends_reading(void **state)
{
    (void)state;
    gw_pairs p;
    assert_int_equal(MOE_OK, load("One. Two. Three. Four.\nFive.\n", 3, &p, NULL));
    assert_int_equal(3, p.n);
    gw_pairs_fini(&p);
    assert_int_equal(MOE_OK, load("a\tb\nno tab here, but never read\n", 1, &p, NULL));
    assert_int_equal(1, p.n);
    gw_pairs_fini(&p);
}

static void refusals_name_the_line(void **state)
{
    (void)state;
    gw_pairs p;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_FORMAT, load("a\tb\nc d\n", 0, &p, &err));
    assert_non_null(strstr(err.text, ":2: no TAB"));
    assert_int_equal(MOE_ERR_FORMAT, load("# nothing\n\n", 0, &p, &err));
    assert_non_null(strstr(err.text, "no pairs"));
    assert_int_equal(MOE_ERR_NOT_FOUND, gw_pairs_load("/nonexistent/pairs", 0, &p, &err));
}

static void stripping_leaves_words_and_single_spaces(void **state)
{
    (void)state;
    char out[64];
    gw_pairs_strip("  \"We've $85 -- Madam\xc3\xa9, 5!\" ", out);
    assert_string_equal("we've 85 madam 5", out);
    gw_pairs_strip("?!", out);
    assert_string_equal("", out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_with_a_tab_is_a_pair),
        cmocka_unit_test(running_text_is_cut_into_sentences),
        cmocka_unit_test(the_limit_ends_reading),
        cmocka_unit_test(refusals_name_the_line),
        cmocka_unit_test(stripping_leaves_words_and_single_spaces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
