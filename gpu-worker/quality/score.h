/* score.h - how close an answer is to its reference: counts that add up over a file of pairs.
 *
 *   characters   Levenshtein distance in code points (an invalid UTF-8 byte is one); the error rate
 *                of a file is the sum of distances over the sum of reference lengths
 *   exact        the same bytes
 *   words        longest runs of ASCII letters, digits, ' and bytes above 127. The words of answer
 *                and reference are aligned at the least edit distance of their lower-case forms;
 *                among equal alignments, read from the end, a pair of words goes before a reference
 *                word alone, that before an answer's word alone
 *   capitals     positives are words with a capital letter; right when the aligned words have the
 *                same pattern: first letter only, or other
 *   punctuation  positives are gaps with marks: what lies behind a word (or before the first one)
 *                and is neither word nor space; right when the marks behind aligned words are equal
 * tests/accuracy/metrics.py says the same in another language. Pure; any thread.
 */
#ifndef GW_SCORE_H
#define GW_SCORE_H

#include <stdint.h>

#include "common/status.h"

typedef struct gw_f1 {
    uint64_t n_right, n_answer, n_reference;
} gw_f1;
/* 0 of 0 is 1: nothing to find, nothing claimed. */
double gw_f1_precision(const gw_f1 *f);
double gw_f1_recall(const gw_f1 *f);
double gw_f1_value(const gw_f1 *f);

typedef struct gw_score {
    uint64_t n_pairs, n_exact;
    uint64_t n_errors, n_chars; /* edit distance; code points of the references */
    gw_f1 punctuation, capitals;
} gw_score;
/* Adds one pair. MOE_ERR_LIMIT: a text of more than 64 KiB. On failure *s is unchanged. */
MOE_MUST_CHECK moe_status gw_score_add(gw_score *s, const char *answer, const char *reference,
                                       moe_err *err);
double gw_score_error_rate(const gw_score *s); /* 0 without characters */

#endif
