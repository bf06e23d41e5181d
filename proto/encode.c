/* encode.c - [msgpack-c] a message struct becomes bytes: one map with small integer keys.
 *
 * Owns nothing between calls. Packing errors (only memory can fail) are gathered and looked at
 * once at the end; limits are checked while walking. Any thread.
 */
#include <msgpack.h>
#include <stdlib.h>
#include <string.h>

#include "proto/fields.h"

typedef struct encoder {
    msgpack_packer pk;
    int bad; /* sticky: an append failed */
} encoder;

static moe_status put_text(encoder *e, const char *text, size_t max, const char *name, moe_err *err)
{
    size_t n = strnlen(text, max);
    if (n == max) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "%s is not NUL-terminated in its %zu bytes", name, max);
    }
    e->bad |= msgpack_pack_str(&e->pk, n);
    e->bad |= msgpack_pack_str_body(&e->pk, text, n);
    return MOE_OK;
}

static void put_u32s(encoder *e, const uint32_t *values, uint32_t n)
{
    e->bad |= msgpack_pack_array(&e->pk, n);
    for (uint32_t i = 0; i < n; i++) {
        e->bad |= msgpack_pack_uint32(&e->pk, values[i]);
    }
}

/* A sample is an array, not a map: a reply carries thousands. Order: messages.h. */
static moe_status put_metrics(encoder *e, const moe_metrics *m, moe_err *err)
{
    if (m->failed) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "the list of metrics is incomplete");
    }
    moe_status st = MOE_OK;
    e->bad |= msgpack_pack_array(&e->pk, m->n);
    for (uint32_t i = 0; i < m->n && st == MOE_OK; i++) {
        const moe_metric *x = &m->items[i];
        const struct {
            const char *text;
            size_t max;
        } texts[] = {{x->name, sizeof x->name},
                     {x->suffix, sizeof x->suffix},
                     {x->labels, sizeof x->labels},
                     {x->help, sizeof x->help}};
        e->bad |= msgpack_pack_array(&e->pk, WIRE_METRIC_FIELDS);
        for (size_t t = 0; t < sizeof texts / sizeof texts[0] && st == MOE_OK; t++) {
            st = put_text(e, texts[t].text, texts[t].max, "metric text", err);
        }
        e->bad |= msgpack_pack_uint32(&e->pk, x->kind);
        e->bad |= msgpack_pack_double(&e->pk, x->value);
    }
    return st;
}

static moe_status put_fields(encoder *e, const wire_layout *layout, const void *base, moe_err *err);

static moe_status put_regions(encoder *e, const wire_region *regions, uint32_t n, moe_err *err)
{
    moe_status st = MOE_OK;
    e->bad |= msgpack_pack_array(&e->pk, n);
    for (uint32_t i = 0; i < n && st == MOE_OK; i++) {
        e->bad |= msgpack_pack_map(&e->pk, wire_region_layout.n);
        st = put_fields(e, &wire_region_layout, &regions[i], err);
    }
    return st;
}

static moe_status put_field(encoder *e, const wire_field *f, const void *base, moe_err *err)
{
    const void *at = (const char *)base + f->off;
    uint32_t n = 0;
    if (f->type == WIRE_TYPE_U32S || f->type == WIRE_TYPE_REGIONS || f->type == WIRE_TYPE_METRICS) {
        memcpy(&n, (const char *)base + f->count_off, sizeof n);
        if (n > f->max) {
            return MOE_FAIL(err, MOE_ERR_LIMIT, "%s: %u elements, at most %u", f->name, n, f->max);
        }
    }
    e->bad |= msgpack_pack_uint8(&e->pk, f->key);
    switch (f->type) {
    case WIRE_TYPE_U32:
        e->bad |= msgpack_pack_uint32(&e->pk, *(const uint32_t *)at);
        return MOE_OK;
    case WIRE_TYPE_U64:
        e->bad |= msgpack_pack_uint64(&e->pk, *(const uint64_t *)at);
        return MOE_OK;
    case WIRE_TYPE_STR:
        return put_text(e, at, f->max, f->name, err);
    case WIRE_TYPE_BIN:
        e->bad |= msgpack_pack_bin(&e->pk, f->max);
        e->bad |= msgpack_pack_bin_body(&e->pk, at, f->max);
        return MOE_OK;
    case WIRE_TYPE_U32S:
        put_u32s(e, at, n);
        return MOE_OK;
    case WIRE_TYPE_REGIONS:
        return put_regions(e, at, n, err);
    case WIRE_TYPE_METRICS:
        return put_metrics(e, at, err);
    }
    return MOE_FAIL(err, MOE_ERR_INTERNAL, "%s has no wire type", f->name);
}

static moe_status put_fields(encoder *e, const wire_layout *layout, const void *base, moe_err *err)
{
    moe_status st = MOE_OK;
    for (uint32_t i = 0; i < layout->n && st == MOE_OK; i++) {
        st = put_field(e, &layout->fields[i], base, err);
    }
    return st;
}

moe_status wire_encode(const wire_message *m, wire_buffer *out, moe_err *err)
{
    const wire_layout *layout = wire_layout_of(m->h.kind);
    if (layout == NULL) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED, "message kind %u does not exist", m->h.kind);
    }
    wire_header header = m->h;
    header.version = WIRE_VERSION;
    msgpack_sbuffer bytes;
    msgpack_sbuffer_init(&bytes);
    encoder e = {.bad = 0};
    msgpack_packer_init(&e.pk, &bytes, msgpack_sbuffer_write);

    e.bad |= msgpack_pack_map(&e.pk, wire_header_layout.n + layout->n);
    moe_status st = put_fields(&e, &wire_header_layout, &header, err);
    if (st == MOE_OK) {
        st = put_fields(&e, layout, m, err);
    }
    if (st == MOE_OK && e.bad) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "bytes of a %s", wire_kind_name(m->h.kind));
    }
    if (st == MOE_OK && bytes.size > WIRE_MAX_MESSAGE_BYTES) {
        st = MOE_FAIL(err, MOE_ERR_LIMIT, "%s of %zu bytes, at most %d", wire_kind_name(m->h.kind),
                      bytes.size, WIRE_MAX_MESSAGE_BYTES);
    }
    if (st != MOE_OK) {
        msgpack_sbuffer_destroy(&bytes);
        return st;
    }
    out->bytes = bytes.size;
    out->data = msgpack_sbuffer_release(&bytes); /* malloc'ed: wire_buffer_fini frees it */
    return MOE_OK;
}

void wire_buffer_fini(wire_buffer *b)
{
    free(b->data);
    b->data = NULL;
    b->bytes = 0;
}
