/* decode.c - [msgpack-c] bytes from a peer become a message struct, or a named error.
 *
 * Two passes. check_bytes() walks the bytes without memory of its own and bounds depth and the sum
 * of everything the bytes declare; only then may msgpack-c, which allocates whatever an array
 * header declares, build its objects. The second pass copies the fields that the kind's table
 * names. Nothing of the input is borrowed afterwards. Any thread.
 */
#include <msgpack.h>
#include <stdlib.h>
#include <string.h>

#include "proto/fields.h"

/* ---- first pass: walk the bytes -------------------------------------------------------------- */

typedef struct reader {
    const uint8_t *at, *end; /* borrowed: the message */
} reader;

/* What one header byte says: bytes of payload to skip, and elements that follow. */
typedef struct item {
    uint64_t payload;
    uint64_t elements;
} item;

static uint64_t big_endian(const uint8_t *p, uint32_t n)
{
    uint64_t v = 0;
    for (uint32_t i = 0; i < n; i++) {
        v = v << 8 | p[i];
    }
    return v;
}

/* The formats 0xc0..0xdf: a length or count field of `length` bytes, `fixed` bytes of payload
 * besides, and what the length counts. */
typedef struct format {
    uint8_t length;
    uint8_t fixed;
    uint8_t elements_per_count; /* 0: it counts bytes */
} format;

static const format formats[32] = {
    [0xc4 - 0xc0] = {1, 0, 0},                             /* bin 8 */
    [0xc5 - 0xc0] = {2, 0, 0},  [0xc6 - 0xc0] = {4, 0, 0}, /* bin 16, 32 */
    [0xc7 - 0xc0] = {1, 1, 0},  [0xc8 - 0xc0] = {2, 1, 0}, /* ext 8, 16 */
    [0xc9 - 0xc0] = {4, 1, 0},                             /* ext 32 */
    [0xca - 0xc0] = {0, 4, 0},  [0xcb - 0xc0] = {0, 8, 0}, /* floats */
    [0xcc - 0xc0] = {0, 1, 0},  [0xcd - 0xc0] = {0, 2, 0}, /* uint 8, 16 */
    [0xce - 0xc0] = {0, 4, 0},  [0xcf - 0xc0] = {0, 8, 0}, /* uint 32, 64 */
    [0xd0 - 0xc0] = {0, 1, 0},  [0xd1 - 0xc0] = {0, 2, 0}, /* int 8, 16 */
    [0xd2 - 0xc0] = {0, 4, 0},  [0xd3 - 0xc0] = {0, 8, 0}, /* int 32, 64 */
    [0xd4 - 0xc0] = {0, 2, 0},  [0xd5 - 0xc0] = {0, 3, 0}, /* fixext 1, 2 */
    [0xd6 - 0xc0] = {0, 5, 0},  [0xd7 - 0xc0] = {0, 9, 0}, /* fixext 4, 8 */
    [0xd8 - 0xc0] = {0, 17, 0}, [0xd9 - 0xc0] = {1, 0, 0}, /* ..., str 8 */
    [0xda - 0xc0] = {2, 0, 0},  [0xdb - 0xc0] = {4, 0, 0}, /* str 16, 32 */
    [0xdc - 0xc0] = {2, 0, 1},  [0xdd - 0xc0] = {4, 0, 1}, /* array */
    [0xde - 0xc0] = {2, 0, 2},  [0xdf - 0xc0] = {4, 0, 2}, /* map */
}; /* nil, false and true have neither; 0xc1 is refused before the table is asked */

static int read_item(reader *r, item *out)
{
    if (r->at == r->end) {
        return 0;
    }
    uint8_t b = *r->at++;
    *out = (item){0, 0};
    if (b <= 0x7f || b >= 0xe0) { /* small integers */
        return 1;
    }
    if (b <= 0x8f) {
        out->elements = 2ull * (b & 0x0fu);
        return 1;
    }
    if (b <= 0x9f) {
        out->elements = b & 0x0fu;
        return 1;
    }
    if (b <= 0xbf) {
        out->payload = b & 0x1fu;
        return 1;
    }
    const format *f = &formats[b - 0xc0];
    if (b == 0xc1 || r->end - r->at < f->length) {
        return 0;
    }
    uint64_t count = big_endian(r->at, f->length);
    r->at += f->length;
    out->payload = f->fixed + (f->elements_per_count == 0 ? count : 0);
    out->elements = count * f->elements_per_count;
    return 1;
}

/* Accepts exactly one object of at most WIRE_MAX_DEPTH levels, all of whose declared elements fit:
 * every element takes at least a byte, so those still owed may not exceed the bytes left. What
 * msgpack-c will allocate is then bounded by sizeof(msgpack_object) * min(bytes, the limit). */
static moe_status check_bytes(const void *data, size_t bytes, moe_err *err)
{
    reader r = {data, (const uint8_t *)data + bytes};
    uint64_t owed[WIRE_MAX_DEPTH + 1] = {1}; /* per level: elements still to come */
    uint64_t owed_total = 1, declared = 1;
    uint32_t depth = 0;
    while (owed_total > 0) {
        while (owed[depth] == 0) {
            depth--;
        }
        item it;
        if (!read_item(&r, &it) || it.payload > (uint64_t)(r.end - r.at)) {
            return MOE_FAIL(err, MOE_ERR_FORMAT, "message of %zu bytes is cut off or malformed",
                            bytes);
        }
        r.at += it.payload;
        owed[depth]--;
        owed_total += it.elements - 1;
        declared += it.elements;
        if (owed_total > (uint64_t)(r.end - r.at)) {
            return MOE_FAIL(err, MOE_ERR_FORMAT,
                            "message of %zu bytes declares more elements than it can hold", bytes);
        }
        if (declared > WIRE_MAX_ELEMENTS) {
            return MOE_FAIL(err, MOE_ERR_LIMIT, "message has more than %d elements",
                            WIRE_MAX_ELEMENTS);
        }
        if (it.elements > 0) {
            if (depth == WIRE_MAX_DEPTH) {
                return MOE_FAIL(err, MOE_ERR_LIMIT, "message is nested deeper than %d",
                                WIRE_MAX_DEPTH);
            }
            owed[++depth] = it.elements;
        }
    }
    if (r.at != r.end) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "%td bytes follow the message", r.end - r.at);
    }
    return MOE_OK;
}

/* ---- second pass: objects into fields -------------------------------------------------------- */

/* The value under `key`. A key may not come twice: readers would differ in which one counts. */
static moe_status find(const msgpack_object_map *map, const wire_field *f,
                       const msgpack_object **out, moe_err *err)
{
    const msgpack_object *found = NULL;
    for (uint32_t i = 0; i < map->size; i++) {
        const msgpack_object_kv *kv = &map->ptr[i];
        if (kv->key.type == MSGPACK_OBJECT_POSITIVE_INTEGER && kv->key.via.u64 == f->key) {
            if (found != NULL) {
                return MOE_FAIL(err, MOE_ERR_FORMAT, "%s (key %u) comes twice", f->name, f->key);
            }
            found = &kv->val;
        }
    }
    if (found == NULL) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "%s (key %u) is missing", f->name, f->key);
    }
    *out = found;
    return MOE_OK;
}

static moe_status get_u64(const msgpack_object *o, uint64_t max, const char *name, uint64_t *out,
                          moe_err *err)
{
    if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER || o->via.u64 > max) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "%s is not an integer from 0 to %llu", name,
                        (unsigned long long)max);
    }
    *out = o->via.u64;
    return MOE_OK;
}

static moe_status get_u32(const msgpack_object *o, const char *name, uint32_t *out, moe_err *err)
{
    uint64_t v = 0;
    moe_status st = get_u64(o, UINT32_MAX, name, &v, err);
    if (st == MOE_OK) {
        *out = (uint32_t)v;
    }
    return st;
}

/* out has max bytes and is NUL-terminated and zero-filled after the text. */
static moe_status get_text(const msgpack_object *o, const char *name, char *out, size_t max,
                           moe_err *err)
{
    if (o->type != MSGPACK_OBJECT_STR) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "%s is not a string", name);
    }
    size_t n = o->via.str.size;
    if (n >= max) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "%s has %zu bytes, at most %zu", name, n, max - 1);
    }
    if (n > 0 && memchr(o->via.str.ptr, '\0', n) != NULL) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "%s contains a NUL byte", name);
    }
    memset(out, 0, max);
    if (n > 0) {
        memcpy(out, o->via.str.ptr, n);
    }
    return MOE_OK;
}

static moe_status get_bin(const msgpack_object *o, const wire_field *f, void *out, moe_err *err)
{
    if (o->type != MSGPACK_OBJECT_BIN || o->via.bin.size != f->max) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "%s is not binary of %u bytes", f->name, f->max);
    }
    memcpy(out, o->via.bin.ptr, f->max);
    return MOE_OK;
}

static moe_status check_array(const msgpack_object *o, const wire_field *f, moe_err *err)
{
    if (o->type != MSGPACK_OBJECT_ARRAY) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "%s is not an array", f->name);
    }
    if (o->via.array.size > f->max) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "%s: %u elements, at most %u", f->name,
                        o->via.array.size, f->max);
    }
    return MOE_OK;
}

static moe_status get_u32s(const msgpack_object_array *a, const wire_field *f, uint32_t *out,
                           moe_err *err)
{
    moe_status st = MOE_OK;
    for (uint32_t i = 0; i < a->size && st == MOE_OK; i++) {
        st = get_u32(&a->ptr[i], f->name, &out[i], err);
    }
    return st;
}

static moe_status get_fields(const msgpack_object_map *map, const wire_layout *layout, void *base,
                             moe_err *err);

static moe_status get_regions(const msgpack_object_array *a, wire_region *out, moe_err *err)
{
    moe_status st = MOE_OK;
    for (uint32_t i = 0; i < a->size && st == MOE_OK; i++) {
        if (a->ptr[i].type != MSGPACK_OBJECT_MAP) {
            return MOE_FAIL(err, MOE_ERR_FORMAT, "region %u is not a map", i);
        }
        st = get_fields(&a->ptr[i].via.map, &wire_region_layout, &out[i], err);
    }
    return st;
}

/* Elements past the known ones are a later version's, and ignored. */
static moe_status get_metric(const msgpack_object *o, moe_metric *out, moe_err *err)
{
    if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size < WIRE_METRIC_FIELDS) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "a metric is not an array of %d", WIRE_METRIC_FIELDS);
    }
    const msgpack_object *v = o->via.array.ptr;
    if (v[5].type != MSGPACK_OBJECT_FLOAT64) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "the value of a metric is not a float 64");
    }
    out->value = v[5].via.f64;
    moe_status st = get_text(&v[0], "metric name", out->name, sizeof out->name, err);
    if (st == MOE_OK) {
        st = get_text(&v[1], "metric suffix", out->suffix, sizeof out->suffix, err);
    }
    if (st == MOE_OK) {
        st = get_text(&v[2], "metric labels", out->labels, sizeof out->labels, err);
    }
    if (st == MOE_OK) {
        st = get_text(&v[3], "metric help", out->help, sizeof out->help, err);
    }
    if (st == MOE_OK) {
        st = get_u32(&v[4], "metric kind", &out->kind, err);
    }
    return st;
}

static moe_status get_metrics(const msgpack_object_array *a, moe_metrics *out, moe_err *err)
{
    moe_metrics m;
    moe_metrics_init(&m);
    if (a->size > 0) {
        m.items = calloc(a->size, sizeof *m.items);
        if (m.items == NULL) {
            return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "%u metrics", a->size);
        }
    }
    m.n = m.capacity = a->size;
    moe_status st = MOE_OK;
    for (uint32_t i = 0; i < a->size && st == MOE_OK; i++) {
        st = get_metric(&a->ptr[i], &m.items[i], err);
    }
    if (st != MOE_OK) {
        moe_metrics_fini(&m);
        return st;
    }
    *out = m;
    return MOE_OK;
}

static moe_status get_list(const msgpack_object *o, const wire_field *f, void *base, moe_err *err)
{
    void *at = (char *)base + f->off;
    moe_status st = check_array(o, f, err);
    if (st != MOE_OK) {
        return st;
    }
    const msgpack_object_array *a = &o->via.array;
    if (f->type == WIRE_TYPE_METRICS) {
        return get_metrics(a, at, err); /* carries its own count */
    }
    st = f->type == WIRE_TYPE_REGIONS ? get_regions(a, at, err) : get_u32s(a, f, at, err);
    if (st == MOE_OK) {
        memcpy((char *)base + f->count_off, &a->size, sizeof a->size);
    }
    return st;
}

static moe_status get_field(const msgpack_object *o, const wire_field *f, void *base, moe_err *err)
{
    void *at = (char *)base + f->off;
    switch (f->type) {
    case WIRE_TYPE_U32:
        return get_u32(o, f->name, at, err);
    case WIRE_TYPE_U64:
        return get_u64(o, UINT64_MAX, f->name, at, err);
    case WIRE_TYPE_STR:
        return get_text(o, f->name, at, f->max, err);
    case WIRE_TYPE_BIN:
        return get_bin(o, f, at, err);
    case WIRE_TYPE_U32S:
    case WIRE_TYPE_REGIONS:
    case WIRE_TYPE_METRICS:
        return get_list(o, f, base, err);
    }
    return MOE_FAIL(err, MOE_ERR_INTERNAL, "%s has no wire type", f->name);
}

static moe_status get_fields(const msgpack_object_map *map, const wire_layout *layout, void *base,
                             moe_err *err)
{
    moe_status st = MOE_OK;
    for (uint32_t i = 0; i < layout->n && st == MOE_OK; i++) {
        const msgpack_object *o = NULL;
        st = find(map, &layout->fields[i], &o, err);
        if (st == MOE_OK) {
            st = get_field(o, &layout->fields[i], base, err);
        }
    }
    return st;
}

static moe_status get_message(const msgpack_object *o, wire_message *out, moe_err *err)
{
    if (o->type != MSGPACK_OBJECT_MAP) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "message is not a map");
    }
    moe_status st = get_fields(&o->via.map, &wire_header_layout, &out->h, err);
    if (st == MOE_OK && out->h.version != WIRE_VERSION) {
        st = MOE_FAIL(err, MOE_ERR_VERSION, "protocol version %u, this side speaks %d",
                      out->h.version, WIRE_VERSION);
    }
    if (st != MOE_OK) {
        return st;
    }
    const wire_layout *layout = wire_layout_of(out->h.kind);
    if (layout == NULL) {
        return MOE_FAIL(err, MOE_ERR_UNSUPPORTED, "message kind %u is unknown", out->h.kind);
    }
    moe_err inner;
    st = get_fields(&o->via.map, layout, out, &inner);
    if (st != MOE_OK) {
        return MOE_FAIL(err, st, "%s: %s", wire_kind_name(out->h.kind), inner.text);
    }
    return MOE_OK;
}

moe_status wire_decode(const void *data, size_t bytes, wire_message *out, moe_err *err)
{
    memset(&out->h, 0, sizeof out->h);
    if (bytes == 0) {
        return MOE_FAIL(err, MOE_ERR_FORMAT, "message is empty");
    }
    if (bytes > WIRE_MAX_MESSAGE_BYTES) {
        return MOE_FAIL(err, MOE_ERR_LIMIT, "message of %zu bytes, at most %d", bytes,
                        WIRE_MAX_MESSAGE_BYTES);
    }
    moe_status st = check_bytes(data, bytes, err);
    if (st != MOE_OK) {
        return st;
    }
    msgpack_unpacked unpacked;
    msgpack_unpacked_init(&unpacked);
    msgpack_unpack_return got = msgpack_unpack_next(&unpacked, data, bytes, NULL);
    if (got == MSGPACK_UNPACK_SUCCESS) {
        st = get_message(&unpacked.data, out, err);
    } else if (got == MSGPACK_UNPACK_NOMEM_ERROR) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "objects of a message of %zu bytes", bytes);
    } else {
        st = MOE_FAIL(err, MOE_ERR_FORMAT, "message of %zu bytes is malformed", bytes);
    }
    msgpack_unpacked_destroy(&unpacked);
    return st;
}
