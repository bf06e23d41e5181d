/* score.c - see score.h. */
#include "gpu-worker/quality/score.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT_BYTES = 64 << 10 };

typedef enum case_pattern { CASE_NONE = 0, CASE_FIRST, CASE_OTHER } case_pattern;

typedef struct word {
    const char *text; /* borrowed; word 0 is empty: the start of the text */
    uint32_t bytes;
    uint32_t gap_bytes; /* from its end to the next word */
    case_pattern pattern;
} word;

typedef struct words {
    word *items; /* owned */
    uint32_t n;
} words;

/* ---- F1 -------------------------------------------------------------------------------------- */

static double ratio(double part, double whole)
{
    return whole > 0 ? part / whole : 1.0;
}

double gw_f1_precision(const gw_f1 *f)
{
    return ratio((double)f->n_right, (double)f->n_answer);
}

double gw_f1_recall(const gw_f1 *f)
{
    return ratio((double)f->n_right, (double)f->n_reference);
}

double gw_f1_value(const gw_f1 *f)
{
    return ratio(2.0 * (double)f->n_right, (double)(f->n_answer + f->n_reference));
}

double gw_score_error_rate(const gw_score *s)
{
    return s->n_chars > 0 ? (double)s->n_errors / (double)s->n_chars : 0.0;
}

/* ---- characters ------------------------------------------------------------------------------ */

/* Bytes of the code point at s, 1 when it is not valid UTF-8. Stops at the text's NUL. */
static uint32_t code_point_bytes(const unsigned char *s)
{
    uint32_t n = s[0] >= 0xf0 && s[0] < 0xf8 ? 4 : s[0] >= 0xe0 ? 3 : s[0] >= 0xc0 ? 2 : 1;
    if (s[0] >= 0xf8) {
        return 1;
    }
    for (uint32_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80) {
            return 1;
        }
    }
    return n;
}

/* Each code point as one number: its bytes, which is all that comparing needs. */
static uint32_t code_points(const char *text, uint32_t *out)
{
    const unsigned char *at = (const unsigned char *)text;
    uint32_t n = 0;
    while (*at != '\0') {
        uint32_t bytes = code_point_bytes(at);
        uint32_t value = 0;
        for (uint32_t i = 0; i < bytes; i++) {
            value = value << 8 | at[i];
        }
        out[n++] = value;
        at += bytes;
    }
    return n;
}

static uint32_t least(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t ab = a < b ? a : b;
    return ab < c ? ab : c;
}

/* row: [n_b + 1] scratch */
static uint32_t edit_distance(const uint32_t *a, uint32_t n_a, const uint32_t *b, uint32_t n_b,
                              uint32_t *row)
{
    for (uint32_t j = 0; j <= n_b; j++) {
        row[j] = j;
    }
    for (uint32_t i = 1; i <= n_a; i++) {
        uint32_t diagonal = row[0];
        row[0] = i;
        for (uint32_t j = 1; j <= n_b; j++) {
            uint32_t cost = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = least(cost, row[j] + 1, row[j - 1] + 1);
        }
    }
    return row[n_b];
}

static moe_status count_characters(const char *answer, const char *reference, gw_score *s,
                                   moe_err *err)
{
    size_t n_a = strlen(answer), n_r = strlen(reference);
    uint32_t *scratch = calloc(n_a + 2 * n_r + 1, sizeof *scratch);
    if (scratch == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "distance of two texts");
    }
    uint32_t *a = scratch, *r = scratch + n_a, *row = r + n_r;
    uint32_t len_a = code_points(answer, a), len_r = code_points(reference, r);
    s->n_errors += edit_distance(a, len_a, r, len_r, row);
    s->n_chars += len_r;
    free(scratch);
    return MOE_OK;
}

/* ---- words ----------------------------------------------------------------------------------- */

static bool is_word_byte(char c)
{
    unsigned char u = (unsigned char)c;
    return u >= 0x80 || isalnum(u) || c == '\'';
}

static case_pattern pattern_of(const char *text, uint32_t bytes)
{
    uint32_t n_letters = 0, n_capitals = 0;
    bool first = false;
    for (uint32_t i = 0; i < bytes; i++) {
        unsigned char u = (unsigned char)text[i];
        if (isalpha(u)) {
            first = first || (n_letters == 0 && isupper(u));
            n_letters++;
            n_capitals += isupper(u) != 0;
        }
    }
    if (n_capitals == 0) {
        return CASE_NONE;
    }
    return first && n_capitals == 1 ? CASE_FIRST : CASE_OTHER;
}

static moe_status split(const char *text, words *out, moe_err *err)
{
    size_t bytes = strlen(text);
    word *items = calloc(bytes / 2 + 2, sizeof *items); /* at most every other byte begins one */
    if (items == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "words of a text of %zu bytes", bytes);
    }
    uint32_t n = 1;
    items[0].text = text;
    for (size_t i = 0; i < bytes;) {
        if (!is_word_byte(text[i])) {
            items[n - 1].gap_bytes++;
            i++;
            continue;
        }
        word *w = &items[n++];
        w->text = text + i;
        while (i < bytes && is_word_byte(text[i])) {
            w->bytes++;
            i++;
        }
        w->pattern = pattern_of(w->text, w->bytes);
    }
    *out = (words){.items = items, .n = n};
    return MOE_OK;
}

static bool same_letters(const word *a, const word *b)
{
    if (a->bytes != b->bytes) {
        return false;
    }
    for (uint32_t i = 0; i < a->bytes; i++) {
        if (tolower((unsigned char)a->text[i]) != tolower((unsigned char)b->text[i])) {
            return false;
        }
    }
    return true;
}

/* The next mark of a gap at or after *i; '\0' at its end. */
static char next_mark(const word *w, uint32_t *i)
{
    while (*i < w->gap_bytes) {
        char c = w->text[w->bytes + (*i)++];
        if (!isspace((unsigned char)c)) {
            return c;
        }
    }
    return '\0';
}

static bool has_marks(const word *w)
{
    uint32_t i = 0;
    return next_mark(w, &i) != '\0';
}

static bool same_marks(const word *a, const word *b)
{
    uint32_t i = 0, j = 0;
    for (;;) {
        char x = next_mark(a, &i);
        if (x != next_mark(b, &j)) {
            return false;
        }
        if (x == '\0') {
            return true;
        }
    }
}

static void count_claims(const words *w, uint64_t *n_capitals, uint64_t *n_marks)
{
    for (uint32_t i = 0; i < w->n; i++) {
        *n_capitals += w->items[i].pattern != CASE_NONE;
        *n_marks += has_marks(&w->items[i]);
    }
}

static void count_pair(const word *a, const word *r, gw_score *s)
{
    s->capitals.n_right += a->pattern != CASE_NONE && a->pattern == r->pattern;
    s->punctuation.n_right += has_marks(r) && same_marks(a, r);
}

/* distance: [n_a][n_r], of the words before; the first words, the empty ones, are a pair. */
static void fill_distances(const words *a, const words *r, uint32_t *distance)
{
    for (uint32_t i = 0; i < a->n; i++) {
        uint32_t *row = distance + (size_t)i * r->n;
        for (uint32_t j = 0; j < r->n; j++) {
            if (i == 0 || j == 0) {
                row[j] = i + j;
                continue;
            }
            const uint32_t *above = row - r->n;
            bool differ = !same_letters(&a->items[i], &r->items[j]);
            row[j] = least(above[j - 1] + differ, row[j - 1] + 1, above[j] + 1);
        }
    }
}

static void count_aligned(const words *a, const words *r, const uint32_t *distance, gw_score *s)
{
    uint32_t i = a->n - 1, j = r->n - 1;
    while (i > 0 && j > 0) {
        const uint32_t *row = distance + (size_t)i * r->n, *above = row - r->n;
        bool differ = !same_letters(&a->items[i], &r->items[j]);
        if (row[j] == above[j - 1] + differ) {
            count_pair(&a->items[i--], &r->items[j--], s);
        } else if (row[j] == row[j - 1] + 1) {
            j--;
        } else {
            i--;
        }
    }
    count_pair(&a->items[0], &r->items[0], s);
}

static moe_status count_words(const char *answer, const char *reference, gw_score *s, moe_err *err)
{
    words a = {0}, r = {0};
    uint32_t *distance = NULL;
    moe_status st = split(answer, &a, err);
    if (st == MOE_OK) {
        st = split(reference, &r, err);
    }
    if (st == MOE_OK) {
        distance = calloc((size_t)a.n * r.n, sizeof *distance);
        st = distance != NULL ? MOE_OK
                              : MOE_FAIL(err, MOE_ERR_NO_MEMORY, "alignment of %u words", a.n);
    }
    if (st == MOE_OK) {
        count_claims(&a, &s->capitals.n_answer, &s->punctuation.n_answer);
        count_claims(&r, &s->capitals.n_reference, &s->punctuation.n_reference);
        fill_distances(&a, &r, distance);
        count_aligned(&a, &r, distance, s);
    }
    free(distance);
    free(a.items);
    free(r.items);
    return st;
}

moe_status gw_score_add(gw_score *s, const char *answer, const char *reference, moe_err *err)
{
    gw_score sum = *s;
    if (strlen(answer) > MAX_TEXT_BYTES || strlen(reference) > MAX_TEXT_BYTES) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "a text of more than %d bytes", MAX_TEXT_BYTES);
    }
    moe_status st = count_characters(answer, reference, &sum, err);
    if (st == MOE_OK) {
        st = count_words(answer, reference, &sum, err);
    }
    if (st != MOE_OK) {
        return st;
    }
    sum.n_pairs++;
    sum.n_exact += strcmp(answer, reference) == 0;
    *s = sum;
    return MOE_OK;
}
