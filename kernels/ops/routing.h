/* routing.h - the records that the gate, the dispatch, the experts and the host share.
 *
 * krn_routing: one complete routing record (device memory), carried from the block that made it to
 * the block that uses it. Ties in the gate go to the lower expert.
 *   ids     : [n_rows, top_k] i32   expert, -1: dropped by expert capacity
 *   weights : [n_rows, top_k] f32   softmax probability of ids
 *   order   : [n_rows * top_k] i32  pair index (row * top_k + k), sorted by expert, stable
 *   offsets : [n_experts + 1] i32   order[offsets[e] .. offsets[e+1]) are expert e's pairs
 *
 * krn_wave: which experts a wave runs and where they lie. Mapped memory, written by the host before
 * the signal that the compute stream waits for, reused only after the wave's DONE mail.
 *
 * krn_mail: what the device tells the host, in a ring of mapped memory. The publisher writes the
 * payload, then (release, system scope) seq. seq counts from 1; mail n lies at ring[n % depth].
 */
#ifndef KRN_OPS_ROUTING_H
#define KRN_OPS_ROUTING_H

#include <stdint.h>

#ifdef __cplusplus
typedef uint32_t krn_seq; /* device code: written by publish_cuda.cu behind its own fence */
#else
#include <stdatomic.h>
typedef _Atomic uint32_t krn_seq;
#endif

enum { KRN_MAX_WAVE_EXPERTS = 64, KRN_MAX_EXPERTS = 512 };

typedef struct krn_routing {
    int32_t *ids;
    float *weights;
    int32_t *order;
    int32_t *offsets;
} krn_routing;

typedef struct krn_wave_entry {
    const void *weights; /* cell, device memory: wi [d_ff, d_model] then wo [d_model, d_ff] */
    int32_t expert;      /* within the block */
    uint32_t failed;     /* 1: weights names a zeroed cell; the expert's rows are marked failed */
} krn_wave_entry;

typedef struct krn_wave {
    uint32_t n; /* 0: an empty wave, nothing to do */
    uint32_t reserved;
    krn_wave_entry entry[KRN_MAX_WAVE_EXPERTS]; /* rising expert */
} krn_wave;

typedef enum krn_mail_kind {
    KRN_MAIL_ROUTED = 1, /* block's experts are decided: the set below */
    KRN_MAIL_GUESSED,    /* block's experts are guessed: the set below */
    KRN_MAIL_REACHED,    /* compute is about to wait for (block, wave) */
    KRN_MAIL_DONE        /* (block, wave) has run; its row and cells may be reused */
} krn_mail_kind;

typedef struct krn_mail {
    krn_seq seq;
    uint32_t kind;  /* krn_mail_kind */
    uint32_t block; /* flat block */
    uint32_t wave;
    int64_t time_ns; /* device time on the host's clock, as near as the backend can */
    uint32_t n;      /* ROUTED, GUESSED: active experts, rising */
    uint32_t reserved;
    uint16_t expert[KRN_MAX_EXPERTS]; /* within the block */
} krn_mail;

#endif
