/* access_trace.h - the file that expert-store --record-trace writes and expert-replay reads.
 *
 * Header, little-endian:
 * offset size field
 *      0    8  magic "PGTRACE1"
 *      8   16  store_uuid
 *     24    4  n_experts       flat, all blocks
 *     28    4  per_block       experts of a block
 *     32    4  enc_blocks      the decoder's first block is this flat one
 *     36    4  n_slots         of the memory that was recorded
 *     40    8  slot_bytes
 *     48    4  policy          xs_evict_policy that was at work
 *     52    4  period_us       how often uses were looked at
 *     56    4  predict_keep_us how long a prediction counted
 *     60    4  reserved, 0
 *     64   64  model name, NUL-padded
 *    128       records, until the end of the file
 *
 * Record: varint t * 8 + kind, varint expert, and a varint for USE, PREDICT and LOAD. t is the
 * zigzag of the microseconds since the record before; varints are LEB128. About five bytes each.
 *   USE      n  a worker leased the slot of this expert n times since the last look (a use is a
 *               copy from a slot: what is found in a cell needs no slot and is no use). The time is
 *               the latest lease's, so uses of one period are in their order, but stand behind
 *               other records of that period; n > 1 says that the earlier times are unknown
 *   WANT        a worker asked for it, was not asking already
 *   PREDICT  n  a worker expects to need it n blocks later
 *   LOAD     n  its read began, for the class n (xs_fetch_class)
 *   EVICT       it left its slot
 * A file may end within a record: the process was killed. It may lack what the last second brought.
 * Threads: one owner each; no state besides the structs.
 */
#ifndef XS_ACCESS_TRACE_H
#define XS_ACCESS_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

#define XS_TRACE_MAGIC "PGTRACE1"
enum { XS_TRACE_HEADER_BYTES = 128, XS_TRACE_MAX_RECORD_BYTES = 30 };

typedef enum xs_trace_kind {
    XS_TRACE_USE = 0,
    XS_TRACE_WANT,
    XS_TRACE_PREDICT,
    XS_TRACE_LOAD,
    XS_TRACE_EVICT,
    XS_N_TRACE_KINDS
} xs_trace_kind;

typedef struct xs_trace_header {
    char magic[8];
    uint8_t store_uuid[16];
    uint32_t n_experts, per_block, enc_blocks, n_slots;
    uint64_t slot_bytes;
    uint32_t policy, period_us, predict_keep_us, reserved;
    char model[64];
} xs_trace_header;

typedef struct xs_trace_event {
    xs_trace_kind kind;
    int64_t at_us; /* since the recording began */
    uint32_t expert;
    uint32_t n; /* as in the table above; 1 where there is none */
} xs_trace_event;

/* Appends one record to out (at least XS_TRACE_MAX_RECORD_BYTES); *last_us is the state between
 * records, 0 at first. Returns its bytes. */
size_t xs_trace_encode(const xs_trace_event *e, int64_t *last_us, uint8_t *out);

typedef struct xs_trace_reader {
    const uint8_t *at, *end; /* borrowed */
    int64_t last_us;
    uint32_t n_experts;
} xs_trace_reader;

/* data stays borrowed by the reader. MOE_ERR_FORMAT: not a trace, or sizes that cannot be. */
MOE_MUST_CHECK moe_status xs_trace_open(const void *data, size_t bytes, xs_trace_header *out_header,
                                        xs_trace_reader *out_reader, moe_err *err);
/* *out_end: there was no whole record left; *out is as it was. MOE_ERR_FORMAT: a record that no
 * store writes. */
MOE_MUST_CHECK moe_status xs_trace_next(xs_trace_reader *r, xs_trace_event *out, bool *out_end,
                                        moe_err *err);

#endif
