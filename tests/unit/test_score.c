/* Scores on texts small enough to count by hand; the expected numbers were. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu-worker/quality/score.h"

static gw_score score_of(const char *answer, const char *reference)
{
    gw_score s = {0};
    assert_int_equal(MOE_OK, gw_score_add(&s, answer, reference, NULL));
    return s;
}

static void assert_f1(const gw_f1 *f, uint64_t right, uint64_t answer, uint64_t reference)
{
    assert_int_equal(right, f->n_right);
    assert_int_equal(answer, f->n_answer);
    assert_int_equal(reference, f->n_reference);
}

static void equal_texts_have_no_errors(void **state)
{
    (void)state;
    gw_score s = score_of("Madam Speaker, it is 5 p.m.", "Madam Speaker, it is 5 p.m.");
    assert_int_equal(1, s.n_exact);
    assert_int_equal(0, s.n_errors);
    assert_int_equal(27, s.n_chars);
    assert_f1(&s.capitals, 2, 2, 2);
    assert_f1(&s.punctuation, 3, 3, 3); /* "," and both "." */
}

static void distance_counts_code_points_not_bytes(void **state)
{
    (void)state;
    assert_int_equal(3, score_of("kitten", "sitting").n_errors);
    assert_int_equal(6, score_of("", "abcdef").n_errors);
    assert_int_equal(4, score_of("abcd", "").n_errors);
    gw_score s = score_of("caf\xc3\xa9", "cafe"); /* one substitution */
    assert_int_equal(1, s.n_errors);
    assert_int_equal(4, s.n_chars);
    s = score_of("caf\xe9", "caf\xc3\xa9\xe2\x82\xac"); /* an invalid byte is one code point */
    assert_int_equal(2, s.n_errors);
    assert_int_equal(5, s.n_chars);
}

static void capitals_count_by_pattern(void **state)
{
    (void)state;
    /* reference: We, AIDS, O'Neil are capital; the answer has WE, AIDS, and Of too many */
    gw_score s = score_of("WE fight AIDS Of O'Neil", "We fight AIDS of O'Neil");
    assert_f1(&s.capitals, 2, 4, 3); /* AIDS and O'Neil */
    s = score_of("aids", "AIDS");
    assert_f1(&s.capitals, 0, 0, 1);
    s = score_of("5Th", "5Th"); /* the first letter is the T */
    assert_f1(&s.capitals, 1, 1, 1);
    s = score_of("Aids", "AIds"); /* first only is not other */
    assert_f1(&s.capitals, 0, 1, 1);
}

static void marks_belong_to_the_word_before_them(void **state)
{
    (void)state;
    /* gaps of the reference: start "\"", after small "-", after business ",", after 85 ".\"" */
    gw_score s = score_of("small business, committed $85.", "\"small-business, committed $85.\"");
    assert_f1(&s.punctuation, 2, 3, 5);  /* "," and " $"; of the 5th the quote is missing */
    s = score_of("so . far", "so. far"); /* spaces in a gap do not count */
    assert_f1(&s.punctuation, 1, 1, 1);
}

static void words_are_aligned_over_insertions_and_typos(void **state)
{
    (void)state;
    /* "the" is missing, "wrods" is a typo of "Words": aligned, but case and mark must still match
     */
    gw_score s =
        score_of("We took First words. Of wrods, end.", "We took the First words. of Words, end.");
    assert_f1(&s.capitals, 2, 3, 3); /* We, First; Of is wrong; Words is missed */
    assert_f1(&s.punctuation, 3, 3, 3);
    /* equal costs: from the end, a pair before a lone word, so X is what became of C */
    s = score_of("X.", "a, C.");
    assert_f1(&s.capitals, 1, 1, 1);
    assert_f1(&s.punctuation, 1, 1, 2);
    s = score_of("a, C.", "X.");
    assert_f1(&s.capitals, 1, 1, 1);
    assert_f1(&s.punctuation, 1, 2, 1);
    s = score_of("", "Gone.");
    assert_f1(&s.capitals, 0, 0, 1);
    assert_f1(&s.punctuation, 0, 0, 1);
}

static void files_add_up(void **state)
{
    (void)state;
    gw_score s = {0};
    assert_int_equal(MOE_OK, gw_score_add(&s, "Abc", "abc", NULL));
    assert_int_equal(MOE_OK, gw_score_add(&s, "abcdefg", "abcdefg", NULL));
    assert_int_equal(2, s.n_pairs);
    assert_int_equal(1, s.n_exact);
    assert_true(fabs(gw_score_error_rate(&s) - 0.1) < 1e-15);
    assert_f1(&s.capitals, 0, 1, 0);
}

static void ratios_of_nothing_are_one(void **state)
{
    (void)state;
    const gw_f1 none = {0}, some = {.n_right = 1, .n_answer = 2, .n_reference = 4};
    const gw_f1 silent = {.n_reference = 3};
    assert_true(gw_f1_value(&none) == 1.0 && gw_f1_precision(&none) == 1.0);
    assert_true(fabs(gw_f1_value(&some) - 1.0 / 3) < 1e-15);
    assert_true(gw_f1_precision(&some) == 0.5 && gw_f1_recall(&some) == 0.25);
    assert_true(gw_f1_value(&silent) == 0.0 && gw_f1_recall(&silent) == 0.0);
    const gw_score empty = {0};
    assert_true(gw_score_error_rate(&empty) == 0.0);
}

static void a_text_too_long_changes_nothing(void **state)
{
    (void)state;
    gw_score s = score_of("a", "b");
    const gw_score before = s;
    char *huge = calloc(1, (64 << 10) + 2);
    assert_non_null(huge);
    memset(huge, 'x', (64 << 10) + 1);
    moe_err err = {0};
    assert_int_equal(MOE_ERR_LIMIT, gw_score_add(&s, huge, "b", &err));
    assert_non_null(strstr(err.text, "65536"));
    assert_memory_equal(&before, &s, sizeof s);
    free(huge);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_texts_have_no_errors),
        cmocka_unit_test(distance_counts_code_points_not_bytes),
        cmocka_unit_test(capitals_count_by_pattern),
        cmocka_unit_test(marks_belong_to_the_word_before_them),
        cmocka_unit_test(words_are_aligned_over_insertions_and_typos),
        cmocka_unit_test(files_add_up),
        cmocka_unit_test(ratios_of_nothing_are_one),
        cmocka_unit_test(a_text_too_long_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
