/* access_trace.c - see access_trace.h. */
#include "expert-store/policy/access_trace.h"

#include <string.h>

_Static_assert(offsetof(xs_trace_header, n_experts) == 24, "table in the header");
_Static_assert(offsetof(xs_trace_header, slot_bytes) == 40, "table in the header");
_Static_assert(offsetof(xs_trace_header, model) == 64, "table in the header");
_Static_assert(sizeof(xs_trace_header) == XS_TRACE_HEADER_BYTES, "table in the header");

enum {
    MAX_VARINT_BYTES = 10,
    KIND_BITS = 3,
    MAX_EXPERTS = 1 << 24 /* a board has no more slots */
};
#define MAX_STEP_US (INT64_MAX >> (KIND_BITS + 1)) /* what t * 8 + kind has room for */

static bool has_number(xs_trace_kind kind)
{
    return kind == XS_TRACE_USE || kind == XS_TRACE_PREDICT || kind == XS_TRACE_LOAD;
}

/* ---- writing ---- */

static size_t put_varint(uint64_t v, uint8_t *out)
{
    size_t n = 0;
    while (v >= 0x80) {
        out[n++] = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    out[n++] = (uint8_t)v;
    return n;
}

static uint64_t zigzag(int64_t v)
{
    return v < 0 ? 2 * (uint64_t)(-(v + 1)) + 1 : 2 * (uint64_t)v;
}

static int64_t unzigzag(uint64_t v)
{
    return (v & 1) != 0 ? -(int64_t)(v >> 1) - 1 : (int64_t)(v >> 1);
}

size_t xs_trace_encode(const xs_trace_event *e, int64_t *last_us, uint8_t *out)
{
    int64_t step = e->at_us - *last_us;
    MOE_ASSERT(step <= MAX_STEP_US && step >= -MAX_STEP_US);
    size_t n = put_varint(zigzag(step) << KIND_BITS | (uint64_t)e->kind, out);
    n += put_varint(e->expert, out + n);
    if (has_number(e->kind)) {
        n += put_varint(e->n, out + n);
    }
    *last_us = e->at_us;
    return n;
}

/* ---- reading ---- */

/* False: the data ends within it, or it is longer than any. */
static bool take_varint(const uint8_t **at, const uint8_t *end, uint64_t *out)
{
    uint64_t v = 0;
    for (int i = 0; i < MAX_VARINT_BYTES && *at < end; i++) {
        uint8_t byte = *(*at)++;
        v |= (uint64_t)(byte & 0x7f) << (7 * i);
        if (byte < 0x80) {
            *out = v;
            return true;
        }
    }
    return false;
}

moe_status xs_trace_open(const void *data, size_t bytes, xs_trace_header *out_header,
                         xs_trace_reader *out_reader, moe_err *err)
{
    xs_trace_header h;
    if (bytes < sizeof h || memcmp(data, XS_TRACE_MAGIC, sizeof h.magic) != 0) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "not a trace of expert-store --record-trace");
    }
    memcpy(&h, data, sizeof h);
    h.model[sizeof h.model - 1] = '\0';
    if (h.n_experts == 0 || h.n_experts > MAX_EXPERTS || h.per_block == 0 ||
        h.n_experts % h.per_block != 0 || h.enc_blocks > h.n_experts / h.per_block ||
        h.n_slots == 0 || h.n_slots > MAX_EXPERTS) {
        return MOE_FAIL(err, MOE_ERR_FORMAT,
                        "trace of %u experts, %u a block, %u encoder blocks, %u slots: cannot be",
                        h.n_experts, h.per_block, h.enc_blocks, h.n_slots);
    }
    *out_reader = (xs_trace_reader){.at = (const uint8_t *)data + sizeof h,
                                    .end = (const uint8_t *)data + bytes,
                                    .n_experts = h.n_experts};
    *out_header = h;
    return MOE_OK;
}

moe_status xs_trace_next(xs_trace_reader *r, xs_trace_event *out, bool *out_end, moe_err *err)
{
    uint64_t first = 0;
    uint64_t expert = 0;
    uint64_t n = 1;
    bool whole = take_varint(&r->at, r->end, &first) && take_varint(&r->at, r->end, &expert);
    xs_trace_kind kind = (xs_trace_kind)(first & ((1u << KIND_BITS) - 1));
    if (whole && has_number(kind)) {
        whole = take_varint(&r->at, r->end, &n);
    }
    if (!whole && r->at == r->end) {
        *out_end = true;
        return MOE_OK;
    }
    int64_t step = unzigzag(first >> KIND_BITS);
    int64_t at_us = 0;
    if (!whole || kind >= XS_N_TRACE_KINDS || expert >= r->n_experts || n > UINT32_MAX ||
        (kind == XS_TRACE_USE && n == 0) || __builtin_add_overflow(r->last_us, step, &at_us)) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "a record of kind %d about expert %llu of %u",
                        (int)kind, (unsigned long long)expert, r->n_experts);
    }
    r->last_us = at_us;
    *out = (xs_trace_event){
        .kind = kind, .at_us = at_us, .expert = (uint32_t)expert, .n = (uint32_t)n};
    *out_end = false;
    return MOE_OK;
}
