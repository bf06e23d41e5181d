/* waves_internal.h - what the files of the fetch thread's book share. waves.c cuts sets into waves,
 * seats and signals them; waves_entries.c brings one expert into its cell; waves_guess.c copies
 * what is only guessed; waves_fill.c fills RESIDENT's cells. Everything here is the fetch thread's.
 */
#ifndef GW_WAVES_INTERNAL_H
#define GW_WAVES_INTERNAL_H

#include "gpu-worker/fetch/plan.h"
#include "gpu-worker/fetch/waves.h"

enum { GW_FILL_WINDOW = 64 }; /* experts under way while RESIDENT fills its cells */

typedef enum gw_entry_state {
    GW_ENTRY_WAITING = 0, /* no seat yet: the expert is `needed` */
    GW_ENTRY_SEATED,      /* a cell is reserved for it */
    GW_ENTRY_QUEUED,      /* its bytes are in its cell, or will be before the wave's signal */
    GW_ENTRY_FAILED       /* holds nothing; its rows fail */
} gw_entry_state;

typedef struct gw_entry {
    uint32_t expert; /* flat */
    uint32_t cell;
    gw_entry_state state;
    bool predicted;    /* its mail ran ahead of the block */
    bool announced;    /* a PREDICT named it */
    bool fetched;      /* copied for this wave (or fill), not found in a cell */
    bool active;       /* the gate chose it (PREFETCH_ALL plans more) */
    int64_t since_ns;  /* seated, or its wave was reached: the deadline runs */
    int64_t wanted_ns; /* 0: no WANT was needed */
} gw_entry;

typedef struct gw_wave {
    uint32_t block, index; /* flat block; 0: not planned */
    uint32_t n;
    gw_entry *entries; /* [n] borrowed from ws->entries */
    bool signalled, done;
    int64_t reached_ns; /* 0: not yet */
} gw_wave;

typedef struct gw_guess {
    uint32_t n; /* 0: none */
    uint32_t block;
    bool next_step; /* that block is the next step's */
    gw_entry entries[KRN_MAX_WAVE_EXPERTS];
} gw_guess;

struct gw_waves {
    gw_waves_cfg cfg;
    const moe_model_shape *shape; /* borrowed from the client */
    uint32_t max_blocks;          /* of a stack */

    bool open;
    uint64_t step;
    moe_stack stack;
    uint32_t n_waves;
    gw_wave *waves;    /* [max_blocks][max_waves] owned */
    gw_entry *entries; /* [max_blocks][n_experts] owned */
    uint8_t *planned;  /* [max_blocks] owned: the block's waves are cut */
    uint32_t *order;   /* [max_blocks * max_waves] owned: waves in the order of planning */
    uint32_t n_order;
    uint32_t next_seat;  /* waves before it have all their cells */
    uint32_t first_open; /* waves before it are signalled */
    gw_guess guess;
    bool *guessed;        /* [n_cells] owned: a guess began its copy, nothing has used it yet */
    uint64_t guess_bytes; /* of guessed copies begun in this step */
    bool asked;           /* PREDICT or WANT went out since begin */
    bool deadline_missed; /* by an expert, since begin */
    int64_t routed_ns;    /* RESIDENT: of the block before, in this step; 0: none */

    uint32_t fill_next; /* RESIDENT: experts before it are under way or in cells */
    uint32_t fill_n;
    gw_entry fill[GW_FILL_WINDOW];

    bool stopping;
    moe_err fatal; /* status MOE_OK: the device is well */
    char failed_text[GW_FAILED_TEXT_BYTES];
    uint32_t list[KRN_MAX_EXPERTS]; /* scratch: flat experts of one message */
    uint16_t set[KRN_MAX_EXPERTS];  /* scratch of planning */
    uint16_t sorted[KRN_MAX_EXPERTS];
    uint8_t near[KRN_MAX_EXPERTS];
};

/* ---- small things, of waves.c ---- */

static inline void gw_count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}
static inline char *gw_waves_cell(const gw_waves *ws, uint32_t cell)
{
    return ws->cfg.cells + (size_t)cell * (size_t)ws->cfg.cell_bytes;
}
/* Of the step: the first one counts. */
void gw_waves_note_failure(gw_waves *ws, const char *text);
/* The first device failure ends all copying; waits are still released. */
void gw_waves_note_fatal(gw_waves *ws, const moe_err *err);

/* ---- one expert: waves_entries.c ---- */

uint64_t gw_waves_expert_bytes(const gw_waves *ws);
moe_block_counters *gw_waves_counters(const gw_waves *ws, uint32_t expert);
gw_speculation *gw_waves_account(const gw_waves *ws, uint32_t expert);
gw_near gw_waves_nearness(const gw_waves *ws, uint32_t expert);
/* The first n of ws->list, of a block so far ahead (1: the next). */
void gw_waves_predict_list(gw_waves *ws, uint32_t distance, uint32_t n);
/* A cell for the expert, out of a reservation or what is spare (then perhaps GW_NO_CELL). What is
 * evicted for it unused is counted as wasted. */
uint32_t gw_waves_take_cell(gw_waves *ws, uint32_t expert, bool reserved);
/* Gives up what the entry holds in the pool. */
void gw_entry_release(gw_waves *ws, const gw_entry *e);
/* Leases and queues the copy into a cell taken for it. On failure the cell is given back, unless
 * the device failed: then some bytes may still come. */
MOE_MUST_CHECK moe_status gw_entry_begin_copy(gw_waves *ws, gw_entry *e, uint32_t cell,
                                              bool speculative, int64_t now_ns, moe_err *err);
/* Queues what can be queued of entries that have cells, fails what is hopeless and wants the rest.
 * True if any entry moved. */
bool gw_entries_queue(gw_waves *ws, gw_entry *entries, uint32_t n, bool may_want, int64_t now_ns);
/* Tells the store what will be needed soon: those of the list that it does not have ready. */
void gw_entries_predict(gw_waves *ws, gw_entry *entries, uint32_t n);

/* ---- guesses: waves_guess.c ---- */

/* NULL: it is not among the guessed. */
const gw_entry *gw_guess_find(const gw_waves *ws, uint32_t expert);
void gw_guess_begin(gw_waves *ws, const krn_mail *m);
/* One more guess gets its copy, if it can. */
bool gw_guess_advance(gw_waves *ws, int64_t now_ns);
/* What the plan needs of it is protected by then, the rest is not. */
void gw_guess_dissolve(gw_waves *ws);
/* Of a block further ahead: the store may bring it from the drive, no cell is taken. */
void gw_guess_tell_store(gw_waves *ws, const krn_mail *m, uint32_t distance);

#endif
