/* lease.pml - the lease protocol of proto/lease_table.h, with crashes of both sides, for Spin.
 *
 * Two workers with one lease word each, a store, two experts, two slots. The store loads, evicts,
 * condemns (an expert found corrupt leaves the board while it may be read), sweeps, cleans up after
 * dead workers, dies anywhere and is followed by one that adopts. A worker takes, reads, releases,
 * and dies wherever it holds a lease; its successor starts once its lease word was cleaned.
 *
 * Each access to memory that the other side writes is a step of its own, so all interleavings of
 * them are searched; what one side does with its own memory in between is part of that step. All
 * accesses are sequentially consistent, which is what seq_cst gives the ones that matter. Bounded is
 * the number of loads (LOADS), and with it the generations: none repeats. With 3, 9.7 million states,
 * about 10 s and 0.6 GB; with 4, 83 million, 160 s and 3.9 GB, found correct too. -DWORKERS=3: a third
 * worker; with LOADS=2, 14.5 million states, found correct.
 *
 * Asserted:  a slot is not written while a live worker reads it;
 *            what a worker reads is the content its lease was taken on, at begin and end;
 *            an adopting store finds on the board what is being read, unless it was condemned.
 * Planted bugs, one at a time (run.sh checks that each is found):
 *   -DNO_RECHECK            a worker does not look at the board again
 *   -DLEASE_BY_EXPERT       a lease names its expert, not its slot
 *   -DNO_EVICTING           an eviction shows ABSENT while it still looks for leases: a store that
 *                           dies then loses an expert in use (its slot is safe even so, by adoption)
 *   -DADOPT_WITHOUT_LEASES  a new store does not look at the tables of workers it finds
 */
#ifndef LOADS
#define LOADS 3
#endif
#ifndef WORKERS
#define WORKERS 2
#endif

#define ABSENT 0
#define LOADING 1
#define READY 2
#define EVICTING 3

/* A board word: generation, slot, state. A lease word: 0, or the board word it was taken from. */
#define WORD(gen, slot, state) ((gen) * 8 + (slot) * 4 + (state))
#define GEN(word) ((word) / 8)
#define SLOT(word) (((word) / 4) % 2)
#define STATE(word) ((word) % 4)

byte board[2];
byte lease[WORKERS];

/* What the model knows and no process may ask, except `alive`, which is the worker's flock. */
byte content[2];      /* by slot: generation of the load it holds whole; 0: none */
bool reading[WORKERS * 2]; /* [worker * 2 + slot] */
byte lost_on_purpose; /* generations condemned while read, one bit each */
bool alive[WORKERS] = true;

#ifdef LEASE_BY_EXPERT
#define LEASE_OF(x, word) ((x) + 1)
#define NAMES(leased, slot)                                                                        \
    ((leased) == 1 && SLOT(board[0]) == (slot) || (leased) == 2 && SLOT(board[1]) == (slot))
#else
#define LEASE_OF(x, word) (word)
#define NAMES(leased, slot) ((leased) != 0 && SLOT(leased) == (slot))
#endif

#ifdef NO_EVICTING
#define UNDECIDED ABSENT
#else
#define UNDECIDED EVICTING
#endif

proctype worker(byte me)
{
    byte x, e;
idle:
    atomic {
        x = 0; e = 0;
        if /* 1: anything but READY changes nothing */
        :: STATE(board[0]) == READY -> e = board[0]
        :: STATE(board[1]) == READY -> e = board[1]; x = 1
        fi
    };
    lease[me] = LEASE_OF(x, e); /* 2 */
    if                          /* 3 */
#ifdef NO_RECHECK
    :: reading[me * 2 + SLOT(e)] = true
#else
    :: atomic { board[x] == e -> reading[me * 2 + SLOT(e)] = true }
    :: board[x] != e -> lease[me] = 0; goto idle
#endif
    :: goto dead
    fi;
    assert(content[SLOT(e)] == GEN(e)); /* the copy begins */
    if
    :: atomic { /* the copy has ended: release */
        assert(content[SLOT(e)] == GEN(e));
        reading[me * 2 + SLOT(e)] = false;
        lease[me] = 0
    }; goto idle
    :: goto dead
    fi;
dead: /* the kernel gives its lock back, and its copies have ended */
    atomic { reading[me * 2] = false; reading[me * 2 + 1] = false; x = 0; e = 0; alive[me] = false };
    atomic { lease[me] == 0 -> alive[me] = true }; /* the next one */
    goto idle
}

/* The store's own memory, gone when it dies. */
bool is_free[2], condemned[2];
bool known[WORKERS]; /* lease tables it has mapped */
byte last_gen;

#define KNOWN_NAMES(w, slot) (known[w] && NAMES(lease[w], slot))
#if WORKERS == 3 /* a third one, where the other two are looked at in turn or together */
#define LOOK_AT_THE_THIRD(slot) found = found || KNOWN_NAMES(2, slot);
#define THIRD_READS(slot) || reading[4 + (slot)]
#else
#define LOOK_AT_THE_THIRD(slot)
#define THIRD_READS(slot)
#endif
#define SOMEONE_READS(slot) (reading[slot] || reading[2 + (slot)] THIRD_READS(slot))
#define HAS(x, slot) (STATE(board[x]) == READY && SLOT(board[x]) == (slot))
/* The board shows what worker w reads in the slot, if it reads there. */
#define SHOWN_AS(word, slot)                                                                       \
    ((word) == WORD(content[slot], slot, READY) || (word) == WORD(content[slot], slot, EVICTING))
#define SHOWN(w, slot)                                                                             \
    (!reading[(w) * 2 + (slot)] || (lost_on_purpose >> content[slot]) & 1 ||                       \
     SHOWN_AS(board[0], slot) || SHOWN_AS(board[1], slot))

inline repair(i) /* a word left behind in the middle of something */
{
    if
    :: STATE(board[i]) == EVICTING -> board[i] = WORD(GEN(board[i]), SLOT(board[i]), READY)
    :: STATE(board[i]) == LOADING -> board[i] = WORD(GEN(board[i]), SLOT(board[i]), ABSENT)
    :: else
    fi
}

proctype store()
{
    byte x, s;
    bool found;
adopt: /* the instance lock: the reads of the dead one have landed */
    atomic {
        assert(SHOWN(0, 0) && SHOWN(0, 1));
        assert(SHOWN(1, 0) && SHOWN(1, 1));
#if WORKERS == 3
        assert(SHOWN(2, 0) && SHOWN(2, 1));
#endif
        x = 0; s = 0; found = false;
        is_free[0] = false; is_free[1] = false;
        condemned[0] = false; condemned[1] = false;
#ifdef ADOPT_WITHOUT_LEASES
        known[0] = false; known[1] = false;
#else
        known[0] = true; known[1] = true; /* from the registry, before anything else */
#if WORKERS == 3
        known[2] = true;
#endif
#endif
        last_gen = (GEN(board[0]) > GEN(board[1]) -> GEN(board[0]) : GEN(board[1]))
    };
    repair(0);
    repair(1);
    do /* slots that no expert has: free, unless a lease names them */
    :: atomic { s < 2 && (HAS(0, s) || HAS(1, s)) -> s++ }
    :: atomic { s < 2 && !HAS(0, s) && !HAS(1, s) -> found = KNOWN_NAMES(0, s) };
       LOOK_AT_THE_THIRD(s)
       atomic {
           found = found || KNOWN_NAMES(1, s);
           condemned[s] = found; is_free[s] = !found; found = false; s++
       }
    :: s == 2 -> break
    :: goto adopt /* die */
    od;

serve:
    atomic {
        x = 0; s = 0; found = false;
        if
        :: x = 0
        :: x = 1
        fi;
        if
        :: STATE(board[x]) == ABSENT && last_gen < LOADS && (is_free[0] || is_free[1]) ->
            s = (is_free[0] -> 0 : 1); goto load
        :: STATE(board[x]) == READY -> s = SLOT(board[x]); goto evict
        :: STATE(board[x]) == READY -> s = SLOT(board[x]); goto condemn
        :: condemned[x] -> s = x; goto sweep
        :: !alive[x] && lease[x] != 0 -> lease[x] = 0; goto serve /* clean up after worker x */
#if WORKERS == 3
        :: !alive[2] && lease[2] != 0 -> lease[2] = 0; goto serve
#endif
        :: goto adopt                                             /* die */
        fi
    };

load:
    atomic { is_free[s] = false; last_gen++; board[x] = WORD(last_gen, s, LOADING) };
    if
    :: atomic { /* the first byte lands */
        assert(!SOMEONE_READS(s));
        content[s] = 0
    }
    :: goto adopt
    fi;
    if
    :: atomic { content[s] = last_gen; board[x] = WORD(last_gen, s, READY) }
    :: atomic { board[x] = WORD(last_gen, s, ABSENT); is_free[s] = true } /* the read failed */
    :: content[s] = last_gen; goto adopt
    :: goto adopt
    fi;
    goto serve;

evict:
    found = KNOWN_NAMES(0, s); /* 1 */
    LOOK_AT_THE_THIRD(s)
    atomic {
        found = found || KNOWN_NAMES(1, s);
        if
        :: found -> goto serve
        :: else
        fi
    };
    board[x] = WORD(GEN(board[x]), s, UNDECIDED); /* 2 */
    if
    :: found = KNOWN_NAMES(0, s) /* 3 */
    :: goto adopt
    fi;
    LOOK_AT_THE_THIRD(s)
    found = found || KNOWN_NAMES(1, s);
    if /* 4 */
    :: atomic { found -> board[x] = WORD(GEN(board[x]), s, READY) }
    :: atomic { !found -> board[x] = WORD(GEN(board[x]), s, ABSENT); is_free[s] = true }
    :: goto adopt
    fi;
    goto serve;

condemn:
    atomic {
        condemned[s] = true;
        if
        :: SOMEONE_READS(s) -> lost_on_purpose = lost_on_purpose | (1 << GEN(board[x]))
        :: else
        fi;
        board[x] = WORD(GEN(board[x]), s, ABSENT)
    };
    goto serve;

sweep:
    found = KNOWN_NAMES(0, s);
    LOOK_AT_THE_THIRD(s)
    atomic {
        found = found || KNOWN_NAMES(1, s);
        if
        :: !found -> condemned[s] = false; is_free[s] = true
        :: else
        fi
    };
    goto serve
}

init
{
    atomic {
        run store(); run worker(0); run worker(1);
#if WORKERS == 3
        run worker(2)
#endif
    }
}
