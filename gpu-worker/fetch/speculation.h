/* speculation.h - does guessing pay? One account per block, in time on the link.
 *
 * Of each guessed copy the account hears how it ended:
 *   used    a wave used it; `hidden` of its time on the link had passed when that wave was reached
 *   wasted  its cell was given to another expert, or the copy was given up, before any use: all of
 *           its time on the link was for nothing, and may have held up a copy that was needed
 * A block is judged after GW_JUDGE_AFTER ends. If its guesses wasted more than they hid, it is off:
 * GW_FIRST_PAUSE of its guesses are passed over, then a few are let through as a probe; while
 * probes do not pay, pauses double up to GW_LAST_PAUSE. A probe that pays turns the block on.
 * Threads: the fetch thread writes; the counters for metrics are atomics that anyone may read.
 */
#ifndef GW_SPECULATION_H
#define GW_SPECULATION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    GW_JUDGE_AFTER = 32, /* guessed copies that have ended; GW_PROBE while off */
    GW_PROBE = 8,
    GW_FIRST_PAUSE = 128, /* guesses */
    GW_LAST_PAUSE = 8192
};

typedef struct gw_speculation {
    /* for metrics; relaxed: each is a count of its own */
    _Atomic uint64_t n_used, n_wasted, n_passed_over;
    _Atomic uint64_t hidden_ns, wasted_ns, wasted_bytes;
    _Atomic bool off;
    /* the fetch thread's */
    uint32_t n_ended;          /* since the last judgement */
    int64_t balance_ns;        /* hidden - wasted since then */
    uint32_t pause, n_to_pass; /* length of the latest pause; guesses of it that are left */
} gw_speculation;

/* Once for each guess: may its copies begin? */
bool gw_speculation_allows(gw_speculation *s);
void gw_speculation_used(gw_speculation *s, int64_t hidden_ns);
void gw_speculation_wasted(gw_speculation *s, int64_t link_ns, uint64_t bytes);
bool gw_speculation_is_off(const gw_speculation *s);
/* Share of the copies that ended which were used; 1 before any. */
double gw_speculation_useful(const gw_speculation *s);

#endif
