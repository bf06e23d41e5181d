/* evict.h - which slot to give up: pure functions over what is known of the candidates.
 * No clock, no locks, no memory: tests and the offline replayer call the same code.
 */
#ifndef XS_EVICT_H
#define XS_EVICT_H

#include <stdbool.h>
#include <stdint.h>

typedef enum xs_evict_policy {
    XS_EVICT_LRU = 0,
    XS_EVICT_LFU,
    XS_EVICT_SIEVE,
    XS_EVICT_PREDICTED
} xs_evict_policy;
enum { XS_N_EVICT_POLICIES = XS_EVICT_PREDICTED + 1 };

typedef struct xs_candidate { /* one READY slot */
    uint32_t slot, expert;
    uint64_t uses;       /* of its expert lately, over all its stays: popularity.h */
    int64_t last_use_ns; /* latest over workers; load time if never used */
    int64_t loaded_ns;
    bool leased;    /* now, by anyone: never chosen */
    bool pinned;    /* by the operator or held for a WANT: never chosen */
    bool predicted; /* asked for in the near future: PREDICTED never chooses it */
    bool visited;   /* SIEVE's bit: used since the hand passed */
} xs_candidate;

const char *xs_evict_policy_name(xs_evict_policy policy); /* as expert-store --evict takes it */

/* Index into c[0..n) or -1 when nothing may go. How they compare:
 * tests/bench/results/eviction.jsonl LRU        the longest unused LFU        the fewest uses, of
 * those the longest unused. With counts that outlive a stay and fade it follows both a constant
 * popularity and a change of topic; with counts that begin anew at each load it did neither (tried
 * on Zipf 0.8: 90 % of the best static set's hits, 52 % over five topics) PREDICTED  LFU over what
 * is not predicted SIEVE      the first unvisited one from the hand on, in the order of loading;
 * clears the visited bits it passes (the caller carries them over to the next call) *hand is the
 * number of the slot SIEVE's hand stands at, kept by the caller between calls, 0 at first; if that
 * slot is no candidate, the hand starts at the oldest load. Others ignore it. Ties: the lowest
 * slot, so that replays are exact. Cost: O(n); SIEVE O(n) per slot it passes. */
int64_t xs_evict_choose(xs_evict_policy policy, xs_candidate *c, uint32_t n, uint32_t *hand);

#endif
