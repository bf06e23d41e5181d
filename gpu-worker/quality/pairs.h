/* pairs.h - texts to score or calibrate with: an input and the answer it should get.
 *
 * A file is one of two things, by its first line that is neither empty nor a comment (`#`):
 *   with a TAB     pairs, one a line: input TAB reference
 *   without        running text, a paragraph a line, from which pairs of the demo's task (restore
 *                  case and punctuation) are made: a sentence ends behind . ! or ?, and quotes or
 *                  brackets that close there, before a space; its input is what gw_pairs_strip
 *                  leaves of it
 * Empty inputs and references are passed over. Called by eval and calibrate; main thread.
 */
#ifndef GW_PAIRS_H
#define GW_PAIRS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"

typedef struct gw_pair {
    char *input, *reference; /* owned */
} gw_pair;

typedef struct gw_pairs {
    gw_pair *items; /* [n] owned */
    uint32_t n;
    bool derived; /* from running text */
} gw_pairs;

/* limit: at most so many pairs; 0: all. MOE_ERR_FORMAT names a line without its TAB, and a file
 * without pairs. */
MOE_MUST_CHECK moe_status gw_pairs_load(const char *path, uint64_t limit, gw_pairs *out,
                                        moe_err *err);
void gw_pairs_fini(gw_pairs *p); /* accepts zeroed */
/* Letters in lower case; all but a-z 0-9 ' becomes a space; runs of spaces become one, none at the
 * ends. out: strlen(text) + 1 bytes. */
void gw_pairs_strip(const char *text, char *out);

#endif
