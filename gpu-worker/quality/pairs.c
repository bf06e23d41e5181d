/* pairs.c - see pairs.h. */
#include "gpu-worker/quality/pairs.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"

#define MAX_FILE_BYTES (1ull << 30)

typedef struct loader {
    const char *path;
    uint64_t limit;
    gw_pairs *pairs;
    uint32_t capacity;
    moe_err *err;
} loader;

void gw_pairs_strip(const char *text, char *out)
{
    size_t n = 0;
    for (; *text != '\0'; text++) {
        char c = (char)tolower((unsigned char)*text);
        bool kept = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '\'';
        if (kept) {
            out[n++] = c;
        } else if (n > 0 && out[n - 1] != ' ') {
            out[n++] = ' ';
        }
    }
    out[n > 0 && out[n - 1] == ' ' ? n - 1 : n] = '\0';
}

void gw_pairs_fini(gw_pairs *p)
{
    for (uint32_t i = 0; i < p->n; i++) {
        free(p->items[i].input);
        free(p->items[i].reference);
    }
    free(p->items);
    *p = (gw_pairs){0};
}

static moe_status no_memory(loader *l)
{
    return MOE_FAIL(l->err, MOE_ERR_NO_MEMORY, "pairs of %s", l->path);
}

/* Takes both strings, also on failure. */
static moe_status add(loader *l, char *input, char *reference)
{
    gw_pairs *p = l->pairs;
    if (input == NULL || reference == NULL) {
        free(input);
        free(reference);
        return no_memory(l);
    }
    if (*input == '\0' || *reference == '\0') {
        free(input);
        free(reference);
        return MOE_OK;
    }
    if (p->n == l->capacity) {
        uint32_t capacity = l->capacity == 0 ? 256 : 2 * l->capacity;
        gw_pair *items = realloc(p->items, capacity * sizeof *items);
        if (items == NULL) {
            free(input);
            free(reference);
            return no_memory(l);
        }
        p->items = items;
        l->capacity = capacity;
    }
    p->items[p->n++] = (gw_pair){.input = input, .reference = reference};
    return MOE_OK;
}

static bool is_full(const loader *l)
{
    return l->limit > 0 && l->pairs->n >= l->limit;
}

/* Bytes of the sentence that text begins with. */
static size_t sentence_bytes(const char *text)
{
    size_t i = 0;
    while (text[i] != '\0') {
        bool ends = strchr(".!?", text[i]) != NULL;
        i++;
        if (!ends) {
            continue;
        }
        i += strspn(text + i, "\"')]");
        if (text[i] == ' ' || text[i] == '\0') {
            return i;
        }
    }
    return i;
}

static moe_status add_sentences(loader *l, const char *text)
{
    moe_status st = MOE_OK;
    while (st == MOE_OK && !is_full(l)) {
        text += strspn(text, " ");
        size_t bytes = sentence_bytes(text);
        if (bytes == 0) {
            break;
        }
        char *reference = strndup(text, bytes);
        char *input = reference != NULL ? malloc(bytes + 1) : NULL;
        if (input != NULL) {
            gw_pairs_strip(reference, input);
        }
        st = add(l, input, reference);
        text += bytes;
    }
    return st;
}

static moe_status add_line(loader *l, char *line, uint32_t number)
{
    char *tab = strchr(line, '\t');
    if (l->pairs->derived) {
        return add_sentences(l, line);
    }
    if (tab == NULL) {
        return MOE_FAIL(l->err, MOE_ERR_FORMAT, "%s:%u: no TAB between input and reference",
                        l->path, number);
    }
    *tab = '\0';
    return add(l, strdup(line), strdup(tab + 1));
}

static moe_status add_lines(loader *l, char *text)
{
    moe_status st = MOE_OK;
    bool first = true;
    char *line = NULL;
    for (uint32_t number = 1; st == MOE_OK && !is_full(l); number++) {
        line = strsep(&text, "\n");
        if (line == NULL) {
            break;
        }
        line[strcspn(line, "\r")] = '\0';
        if (*line == '\0' || *line == '#') {
            continue;
        }
        if (first) {
            l->pairs->derived = strchr(line, '\t') == NULL;
            first = false;
        }
        st = add_line(l, line, number);
    }
    return st;
}

moe_status gw_pairs_load(const char *path, uint64_t limit, gw_pairs *out, moe_err *err)
{
    char *text = NULL;
    size_t bytes = 0;
    gw_pairs pairs = {0};
    loader l = {.path = path, .limit = limit, .pairs = &pairs, .err = err};
    moe_status st = moe_file_read(path, MAX_FILE_BYTES, &text, &bytes, err);
    if (st == MOE_OK) {
        st = add_lines(&l, text);
    }
    if (st == MOE_OK && pairs.n == 0) {
        st = MOE_FAIL(err, MOE_ERR_FORMAT, "%s: no pairs in it", path);
    }
    free(text);
    if (st != MOE_OK) {
        gw_pairs_fini(&pairs);
        return st;
    }
    *out = pairs;
    return MOE_OK;
}
