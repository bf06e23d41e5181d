/* The wire's bytes: what proto/README.md shows is what encode.c writes and decode.c reads, and
 * nothing else gets through. argv[1] is proto/README.md. */
#include <ctype.h>
#include <math.h>
#include <msgpack.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/messages.h"

void *__real_calloc(size_t n, size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);

static int calls_until_failure = -1; /* counts down; the call that makes it 0 fails; -1: none */

static bool fails_now(void)
{
    return calls_until_failure > 0 && --calls_until_failure == 0;
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    return fails_now() ? NULL : __real_calloc(n, bytes);
}

void *__wrap_realloc(void *p, size_t bytes)
{
    return fails_now() ? NULL : __real_realloc(p, bytes);
}

static const char *readme_path;

/* ---- one message of every kind, and its bytes ------------------------------------------------ */

static void fill_hello(wire_message *m)
{
    snprintf(m->hello.name, sizeof m->hello.name, "gpu-worker");
    m->hello.pid = 4242;
}

/* Member by member: messages are compared with their padding, which must stay 0. */
static void fill_region(wire_region *r, uint32_t purpose, const char *name, uint64_t bytes)
{
    r->purpose = purpose;
    snprintf(r->name, sizeof r->name, "%s", name);
    r->bytes = bytes;
    r->page_bytes = 4096;
}

static void fill_welcome(wire_message *m)
{
    wire_welcome *w = &m->welcome;
    m->h.boot = 2;
    for (uint8_t i = 0; i < 16; i++) {
        w->store_uuid[i] = (uint8_t)(0xa0 + i);
    }
    w->worker_id = 1;
    w->lease_capacity = 64;
    w->slot_bytes = 9441280;
    w->expert_bytes = 9437184;
    w->expert_dtype = 2;
    w->n_slots = 1024;
    w->n_experts = 1536;
    w->n_regions = 2;
    fill_region(&w->regions[0], WIRE_REGION_SLOTS, "/pregate-a-slots", 9667870720);
    fill_region(&w->regions[1], WIRE_REGION_LEASES, "/pregate-a-lease-1", 36864);
    snprintf(w->model_name, sizeof w->model_name, "switch-base");
    w->pinned = 1;
}

static void fill_predict(wire_message *m)
{
    m->h.boot = 2;
    m->h.step = 300;
    m->experts.distance = 1;
    m->experts.n = 3;
    m->experts.experts[0] = 5;
    m->experts.experts[1] = 200;
    m->experts.experts[2] = 70000;
}

static void fill_one_expert(wire_message *m)
{
    m->h.boot = 2;
    m->h.step = 300;
    m->experts.n = 1;
    m->experts.experts[0] = 5;
}

static void fill_no_experts(wire_message *m)
{
    m->h.boot = 2;
    m->h.step = 300;
}

static void fill_failed(wire_message *m)
{
    fill_no_experts(m);
    m->failed.status = MOE_ERR_CORRUPT;
    snprintf(m->failed.text, sizeof m->failed.text, "expert 5: chunk 3");
    m->failed.n = 1;
    m->failed.experts[0] = 5;
}

static void fill_stats(wire_message *m)
{
    m->plain.flags = 1;
}

static void fill_stats_reply(wire_message *m)
{
    m->h.boot = 2;
    moe_metrics_add(&m->stats_reply.metrics, MOE_METRIC_COUNTER, "reads_total", "Reads done.", 1.5,
                    "block=\"dec0\"");
}

static void fill_two_experts(wire_message *m)
{
    m->experts.n = 2;
    m->experts.experts[0] = 0;
    m->experts.experts[1] = 127;
}

static void fill_pin(wire_message *m)
{
    fill_two_experts(m);
    m->experts.distance = 1;
}

static void fill_nothing(wire_message *m)
{
    (void)m;
}

static void fill_pong(wire_message *m)
{
    m->h.boot = 2;
    m->h.step = UINT64_C(0x0123456789abcdef);
}

static void fill_done(wire_message *m)
{
    m->h.boot = 2;
    snprintf(m->outcome.text, sizeof m->outcome.text, "2 experts");
}

static void fill_resize(wire_message *m)
{
    snprintf(m->resize.text, sizeof m->resize.text, "16GiB");
}

static void fill_error(wire_message *m)
{
    m->h.boot = 2;
    m->h.step = 300;
    m->outcome.status = MOE_ERR_FORMAT;
    snprintf(m->outcome.text, sizeof m->outcome.text, "WANT: experts (key 8) is missing");
}

static const struct golden {
    wire_kind kind;
    void (*fill)(wire_message *m); /* of a zeroed message */
    const char *hex;
} goldens[] = {
    {WIRE_HELLO, fill_hello,
     "87 00 01 01 01 02 00 03 00 04 aa 67 70 75 2d 77 6f 72 6b 65 72 05 cd 10 92 06 00"},
    {WIRE_WELCOME, fill_welcome,
     "8f 00 02 01 01 02 02 03 00"
     "0d c4 10 a0 a1 a2 a3 a4 a5 a6 a7 a8 a9 aa ab ac ad ae af"
     "06 01 0e 40 0f ce 00 90 10 00 10 ce 00 90 00 00 11 02 12 cd 04 00 13 cd 06 00"
     "14 92"
     "84 16 01 04 b0 2f 70 72 65 67 61 74 65 2d 61 2d 73 6c 6f 74 73"
     "17 cf 00 00 00 02 40 40 00 00 18 cd 10 00"
     "84 16 04 04 b2 2f 70 72 65 67 61 74 65 2d 61 2d 6c 65 61 73 65 2d 31"
     "17 cd 90 00 18 cd 10 00"
     "04 ab 73 77 69 74 63 68 2d 62 61 73 65 15 01"},
    {WIRE_PREDICT, fill_predict,
     "86 00 03 01 01 02 02 03 cd 01 2c 07 01 08 93 05 cc c8 ce 00 01 11 70"},
    {WIRE_WANT, fill_one_expert, "86 00 04 01 01 02 02 03 cd 01 2c 07 00 08 91 05"},
    {WIRE_READY, fill_one_expert, "86 00 05 01 01 02 02 03 cd 01 2c 07 00 08 91 05"},
    {WIRE_FAILED, fill_failed,
     "87 00 06 01 01 02 02 03 cd 01 2c 09 06"
     "0a b1 65 78 70 65 72 74 20 35 3a 20 63 68 75 6e 6b 20 33 08 91 05"},
    {WIRE_CANCEL, fill_no_experts, "86 00 07 01 01 02 02 03 cd 01 2c 07 00 08 90"},
    {WIRE_STATS, fill_stats, "85 00 08 01 01 02 00 03 00 0b 01"},
    {WIRE_STATS_REPLY, fill_stats_reply,
     "85 00 09 01 01 02 02 03 00 0c 91"
     "96 ab 72 65 61 64 73 5f 74 6f 74 61 6c a0 ac 62 6c 6f 63 6b 3d 22 64 65 63 30 22"
     "ab 52 65 61 64 73 20 64 6f 6e 65 2e 01 cb 3f f8 00 00 00 00 00 00"},
    {WIRE_PREFETCH, fill_two_experts, "86 00 0a 01 01 02 00 03 00 07 00 08 92 00 7f"},
    {WIRE_PIN, fill_pin, "86 00 0b 01 01 02 00 03 00 07 01 08 92 00 7f"},
    {WIRE_EVICT, fill_two_experts, "86 00 0c 01 01 02 00 03 00 07 00 08 92 00 7f"},
    {WIRE_DRAIN, fill_nothing, "85 00 0d 01 01 02 00 03 00 0b 00"},
    {WIRE_DONE, fill_done, "86 00 0e 01 01 02 02 03 00 09 00 0a a9 32 20 65 78 70 65 72 74 73"},
    {WIRE_PING, fill_nothing, "85 00 0f 01 01 02 00 03 00 0b 00"},
    {WIRE_PONG, fill_pong, "85 00 10 01 01 02 02 03 cf 01 23 45 67 89 ab cd ef 0b 00"},
    {WIRE_ERROR, fill_error,
     "86 00 11 01 01 02 02 03 cd 01 2c 09 05"
     "0a d9 20 57 41 4e 54 3a 20 65 78 70 65 72 74 73 20 28 6b 65 79 20 38 29 20 69 73 20 6d 69 73"
     "73 69 6e 67"},
    {WIRE_RESIZE, fill_resize, "85 00 12 01 01 02 00 03 00 0a a5 31 36 47 69 42"},
};
enum { N_GOLDENS = sizeof goldens / sizeof goldens[0] };

static size_t unhex(const char *hex, uint8_t *out, size_t max)
{
    size_t n = 0;
    for (const char *p = hex; *p != '\0';) {
        if (*p == ' ') {
            p++;
            continue;
        }
        unsigned byte = 0;
        assert_int_equal(1, sscanf(p, "%2x", &byte));
        assert_true(n < max);
        out[n++] = (uint8_t)byte;
        p += 2;
    }
    return n;
}

static void make(const struct golden *g, wire_message *m)
{
    memset(m, 0, sizeof *m);
    m->h.kind = g->kind;
    m->h.version = WIRE_VERSION;
    g->fill(m);
}

static void release(wire_message *m)
{
    if (m->h.kind == WIRE_STATS_REPLY) {
        moe_metrics_fini(&m->stats_reply.metrics);
    }
}

/* Decodes a heap copy of exactly these bytes, so that asan sees a read past them. */
static moe_status decode_copy(const void *data, size_t bytes, wire_message *out, moe_err *err)
{
    if (bytes == 0) {
        return wire_decode(NULL, 0, out, err);
    }
    void *copy = malloc(bytes);
    assert_non_null(copy);
    memcpy(copy, data, bytes);
    moe_status st = wire_decode(copy, bytes, out, err);
    free(copy);
    return st;
}

static void assert_same_message(const wire_message *a, const wire_message *b)
{
    assert_int_equal(a->h.kind, b->h.kind);
    if (a->h.kind != WIRE_STATS_REPLY) {
        assert_memory_equal(a, b, sizeof *a);
        return;
    }
    const moe_metrics *x = &a->stats_reply.metrics, *y = &b->stats_reply.metrics;
    assert_memory_equal(&a->h, &b->h, sizeof a->h);
    assert_int_equal(x->n, y->n);
    for (uint32_t i = 0; i < x->n; i++) {
        assert_string_equal(x->items[i].name, y->items[i].name);
        assert_string_equal(x->items[i].suffix, y->items[i].suffix);
        assert_string_equal(x->items[i].labels, y->items[i].labels);
        assert_string_equal(x->items[i].help, y->items[i].help);
        assert_int_equal(x->items[i].kind, y->items[i].kind);
        assert_memory_equal(&x->items[i].value, &y->items[i].value, sizeof(double));
    }
}

static void every_kind_encodes_to_its_golden_bytes(void **state)
{
    (void)state;
    static wire_message m;
    for (size_t i = 0; i < N_GOLDENS; i++) {
        uint8_t want[512];
        size_t n = unhex(goldens[i].hex, want, sizeof want);
        make(&goldens[i], &m);
        m.h.version = 77; /* ignored: this build's version is sent */
        wire_buffer got = {0};
        assert_int_equal(MOE_OK, wire_encode(&m, &got, NULL));
        assert_int_equal(n, got.bytes);
        assert_memory_equal(want, got.data, n);
        wire_buffer_fini(&got);
        release(&m);
    }
}

static void every_kind_decodes_from_its_golden_bytes(void **state)
{
    (void)state;
    static wire_message want, got;
    for (size_t i = 0; i < N_GOLDENS; i++) {
        uint8_t bytes[512];
        size_t n = unhex(goldens[i].hex, bytes, sizeof bytes);
        make(&goldens[i], &want);
        memset(&got, 0, sizeof got);
        assert_int_equal(MOE_OK, decode_copy(bytes, n, &got, NULL));
        assert_same_message(&want, &got);
        release(&want);
        release(&got);
    }
}

static void every_kind_has_a_golden_and_a_name(void **state)
{
    (void)state;
    for (uint32_t kind = 1; strcmp("?", wire_kind_name(kind)) != 0; kind++) {
        assert_int_equal(kind, goldens[kind - 1].kind);
        assert_true(kind <= N_GOLDENS);
    }
    assert_string_equal("?", wire_kind_name(0));
    assert_string_equal("RESIZE", wire_kind_name(N_GOLDENS));
    assert_string_equal("?", wire_kind_name(N_GOLDENS + 1));
    assert_string_equal("?", wire_kind_name(UINT32_MAX));
}

static void squeeze(char *text)
{
    char *to = text;
    for (const char *from = text; *from != '\0'; from++) {
        if (!isspace((unsigned char)*from)) {
            *to++ = *from;
        }
    }
    *to = '\0';
}

static void the_specification_shows_these_bytes(void **state)
{
    (void)state;
    static char readme[1 << 18], hex[2048];
    FILE *f = fopen(readme_path, "r");
    assert_non_null(f);
    size_t n = fread(readme, 1, sizeof readme - 1, f);
    fclose(f);
    readme[n] = '\0';
    squeeze(readme);
    for (size_t i = 0; i < N_GOLDENS; i++) {
        snprintf(hex, sizeof hex, "%s", goldens[i].hex);
        squeeze(hex);
        if (strstr(readme, hex) == NULL) {
            fail_msg("%s does not show %s as %s", readme_path, wire_kind_name(goldens[i].kind),
                     goldens[i].hex);
        }
    }
}

/* ---- messages with one thing changed --------------------------------------------------------- */

typedef enum edit { DROP, REPLACE_BY_NIL, REPEAT, ADD_UNKNOWN } edit;

/* The golden's map with the pair at `at` edited (ADD_UNKNOWN: pairs put before it). */
static void edited(const struct golden *g, edit what, uint32_t at, msgpack_sbuffer *out)
{
    uint8_t bytes[512];
    size_t n = unhex(g->hex, bytes, sizeof bytes);
    msgpack_unpacked u;
    msgpack_unpacked_init(&u);
    assert_int_equal(MSGPACK_UNPACK_SUCCESS, msgpack_unpack_next(&u, (const char *)bytes, n, NULL));
    const msgpack_object_map *map = &u.data.via.map;
    msgpack_sbuffer_init(out);
    msgpack_packer pk;
    msgpack_packer_init(&pk, out, msgpack_sbuffer_write);
    uint32_t extra = what == REPEAT ? 1 : what == ADD_UNKNOWN ? 3 : 0;
    msgpack_pack_map(&pk, map->size + extra - (what == DROP));
    for (uint32_t i = 0; i < map->size; i++) {
        if (i == at && what == ADD_UNKNOWN) {
            msgpack_pack_uint32(&pk, 99);
            msgpack_pack_array(&pk, 2);
            msgpack_pack_nil(&pk);
            msgpack_pack_map(&pk, 1);
            msgpack_pack_true(&pk);
            msgpack_pack_double(&pk, 0.5);
            msgpack_pack_str(&pk, 1);
            msgpack_pack_str_body(&pk, "x", 1);
            msgpack_pack_int(&pk, -1);
            msgpack_pack_int(&pk, -7);
            msgpack_pack_ext(&pk, 3, 5);
            msgpack_pack_ext_body(&pk, "abc", 3);
        }
        for (uint32_t k = i == at && what == DROP; k <= (uint32_t)(i == at && what == REPEAT);
             k++) {
            msgpack_pack_object(&pk, map->ptr[i].key);
            if (i == at && what == REPLACE_BY_NIL) {
                msgpack_pack_nil(&pk);
            } else {
                msgpack_pack_object(&pk, map->ptr[i].val);
            }
        }
    }
    msgpack_unpacked_destroy(&u);
}

static uint32_t n_pairs(const struct golden *g)
{
    unsigned head = 0;
    assert_int_equal(1, sscanf(g->hex, "%2x", &head));
    return head & 0x0fu;
}

static void a_missing_mistyped_or_repeated_field_is_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        edit what;
        const char *says;
    } edits[] = {{DROP, "is missing"}, {REPLACE_BY_NIL, "is not"}, {REPEAT, "comes twice"}};
    static wire_message m;
    for (size_t i = 0; i < N_GOLDENS; i++) {
        for (uint32_t at = 0; at < n_pairs(&goldens[i]); at++) {
            for (size_t k = 0; k < 3; k++) {
                msgpack_sbuffer b;
                moe_err err = {0};
                edited(&goldens[i], edits[k].what, at, &b);
                assert_int_equal(MOE_ERR_FORMAT, decode_copy(b.data, b.size, &m, &err));
                assert_non_null(strstr(err.text, edits[k].says));
                if (at >= 4) { /* the header could be read: an answer can name kind and step */
                    assert_int_equal(goldens[i].kind, m.h.kind);
                    assert_non_null(strstr(err.text, wire_kind_name(goldens[i].kind)));
                }
                msgpack_sbuffer_destroy(&b);
            }
        }
    }
}

static void unknown_keys_are_ignored_wherever_they_stand(void **state)
{
    (void)state;
    static wire_message want, got;
    for (size_t i = 0; i < N_GOLDENS; i++) {
        for (uint32_t at = 0; at < n_pairs(&goldens[i]); at++) {
            msgpack_sbuffer b;
            edited(&goldens[i], ADD_UNKNOWN, at, &b);
            make(&goldens[i], &want);
            memset(&got, 0, sizeof got);
            assert_int_equal(MOE_OK, decode_copy(b.data, b.size, &got, NULL));
            assert_same_message(&want, &got);
            release(&want);
            release(&got);
            msgpack_sbuffer_destroy(&b);
        }
    }
}

static void a_message_cut_off_anywhere_is_refused(void **state)
{
    (void)state;
    static wire_message m;
    for (size_t i = 0; i < N_GOLDENS; i++) {
        uint8_t bytes[512];
        size_t n = unhex(goldens[i].hex, bytes, sizeof bytes);
        for (size_t cut = 0; cut < n; cut++) {
            assert_int_equal(MOE_ERR_FORMAT, decode_copy(bytes, cut, &m, NULL));
        }
        bytes[n] = 0xc0;
        assert_int_equal(MOE_ERR_FORMAT, decode_copy(bytes, n + 1, &m, NULL)); /* and one more */
    }
}

static moe_status decode_hex(const char *hex, wire_message *m, moe_err *err)
{
    uint8_t bytes[512];
    size_t n = unhex(hex, bytes, sizeof bytes);
    memset(m, 0, sizeof *m);
    return decode_copy(bytes, n, m, err);
}

static void another_version_is_refused_with_both_numbers(void **state)
{
    (void)state;
    static wire_message m;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_VERSION, decode_hex("85 00 0f 01 02 02 00 03 09 0b 00", &m, &err));
    assert_string_equal("protocol version 2, this side speaks 1", err.text);
    assert_int_equal(9, m.h.step);
    /* Version first: what a kind of another version means is not ours to say. */
    assert_int_equal(MOE_ERR_VERSION, decode_hex("84 00 cd 03 e8 01 02 02 00 03 09", &m, NULL));
    assert_int_equal(MOE_ERR_VERSION, decode_hex("85 00 0f 01 00 02 00 03 09 0b 00", &m, NULL));
}

static void an_unknown_kind_is_refused_and_its_header_is_known(void **state)
{
    (void)state;
    static wire_message m;
    moe_err err = {0};
    assert_int_equal(MOE_ERR_UNSUPPORTED, decode_hex("84 00 13 01 01 02 03 03 09", &m, &err));
    assert_string_equal("message kind 19 is unknown", err.text);
    assert_int_equal(19, m.h.kind);
    assert_int_equal(3, m.h.boot);
    assert_int_equal(9, m.h.step);
    assert_int_equal(MOE_ERR_UNSUPPORTED, decode_hex("84 00 00 01 01 02 03 03 09", &m, NULL));
    assert_int_equal(MOE_ERR_UNSUPPORTED,
                     decode_hex("84 00 ce ff ff ff ff 01 01 02 03 03 09", &m, NULL));
    m.h.kind = 19;
    wire_buffer b = {0};
    assert_int_equal(MOE_ERR_UNSUPPORTED, wire_encode(&m, &b, NULL));
    assert_null(b.data);
}

static void malformed_bytes_are_refused(void **state)
{
    (void)state;
    static const char *const hexes[] = {
        "",                                 /* nothing */
        "c1",                               /* the byte msgpack never uses */
        "00",                               /* not a map */
        "c0",                               /* nil */
        "94 0f 01 00 00",                   /* an array */
        "85 00 0f 01 01 02 00 03 00 0b c1", /* c1 as a value */
        "85 00 0f 01 01 02 00 03 00 0b ff", /* flags = -1 */
        "85 00 0f 01 01 02 00 03 00 0b cf 00 00 00 01 00 00 00 00", /* flags = 2^32 */
        "85 00 0f 01 01 02 00 03 00 0b ca 00 00 00 00",             /* flags = 0.0f */
        "85 00 ff 01 01 02 00 03 00 0b 00",                         /* kind = -1 */
        "85 00 0f 01 01 02 00 03 d3 ff ff ff ff ff ff ff ff 0b 00", /* step = -1 */
        "86 00 04 01 01 02 00 03 00 07 00 08 91 ff",                /* an expert = -1 */
        "86 00 04 01 01 02 00 03 00 07 00 08 91 91 05",             /* an expert = [5] */
        "86 00 04 01 01 02 00 03 00 07 00 08 05",                   /* experts = 5 */
        "86 00 0e 01 01 02 00 03 00 09 00 0a a3 61 00 62",          /* text "a\0b" */
        "86 00 0e 01 01 02 00 03 00 09 00 0a c4 01 61",             /* text as binary */
        "85 00 09 01 01 02 00 03 00 0c 91 95 a1 61 a0 a0 a0 01",    /* a metric of five */
        "85 00 09 01 01 02 00 03 00 0c 91 96 a1 61 a0 a0 a0 01 05", /* its value an integer */
        "85 00 09 01 01 02 00 03 00 0c 91 96 05 a0 a0 a0 01 cb 00 00 00 00 00 00 00 00",
        "85 00 09 01 01 02 00 03 00 0c 91 05", /* a metric = 5 */
    };
    static wire_message m;
    for (size_t i = 0; i < sizeof hexes / sizeof hexes[0]; i++) {
        moe_status st = decode_hex(hexes[i], &m, NULL);
        if (st != MOE_ERR_FORMAT) {
            fail_msg("'%s' gave %s", hexes[i], moe_status_name(st));
        }
    }
}

static void other_widths_of_the_same_numbers_are_read(void **state)
{
    (void)state;
    static wire_message m;
    /* PING with map 16, every number in a wider form, step as a positive signed 64-bit one. */
    assert_int_equal(MOE_OK, decode_hex("de 00 05 cc 00 cd 00 0f ce 00 00 00 01 01 02 cc 00 03 "
                                        "d3 00 00 00 00 00 00 00 07 d1 00 0b d2 00 00 00 03",
                                        &m, NULL));
    assert_int_equal(WIRE_PING, m.h.kind);
    assert_int_equal(7, m.h.step);
    assert_int_equal(3, m.plain.flags);
}

static void a_longer_metric_is_read_and_its_rest_ignored(void **state)
{
    (void)state;
    static wire_message m;
    assert_int_equal(MOE_OK,
                     decode_hex("85 00 09 01 01 02 00 03 00 0c 91 97 a1 61 a4 5f 73 75 6d a0 a0 02 "
                                "cb 7f f8 00 00 00 00 00 00 93 c0 c0 c0",
                                &m, NULL));
    assert_int_equal(1, m.stats_reply.metrics.n);
    assert_string_equal("a", m.stats_reply.metrics.items[0].name);
    assert_string_equal("_sum", m.stats_reply.metrics.items[0].suffix);
    assert_int_equal(MOE_METRIC_GAUGE, m.stats_reply.metrics.items[0].kind);
    assert_true(isnan(m.stats_reply.metrics.items[0].value));
    release(&m);
}

/* ---- limits ---------------------------------------------------------------------------------- */

/* The fixed beginning in hex, then `n` times the byte `fill`. */
static moe_status decode_filled(const char *hex, uint8_t fill, size_t n, wire_message *m,
                                moe_err *err)
{
    size_t max = strlen(hex) / 2 + n + 1;
    uint8_t *bytes = malloc(max);
    assert_non_null(bytes);
    size_t head = unhex(hex, bytes, max - n);
    memset(bytes + head, fill, n);
    moe_status st = decode_copy(bytes, head + n, m, err);
    free(bytes);
    return st;
}

static void expert_lists_have_a_limit_on_both_sides(void **state)
{
    (void)state;
    static wire_message m, back;
    make(&goldens[WIRE_WANT - 1], &m);
    m.experts.n = WIRE_MAX_EXPERTS;
    for (uint32_t i = 0; i < WIRE_MAX_EXPERTS; i++) {
        m.experts.experts[i] = UINT32_MAX - i;
    }
    wire_buffer b = {0};
    assert_int_equal(MOE_OK, wire_encode(&m, &b, NULL));
    assert_true(b.bytes <= WIRE_MAX_REQUEST_BYTES);
    memset(&back, 0, sizeof back);
    assert_int_equal(MOE_OK, decode_copy(b.data, b.bytes, &back, NULL));
    assert_same_message(&m, &back);
    wire_buffer_fini(&b);
    m.experts.n = WIRE_MAX_EXPERTS + 1;
    assert_int_equal(MOE_ERR_LIMIT, wire_encode(&m, &b, NULL));
    assert_null(b.data);
    moe_err err = {0};
    assert_int_equal(MOE_ERR_LIMIT, decode_filled("86 00 04 01 01 02 00 03 00 07 00 08 dc 04 01", 0,
                                                  1025, &m, &err));
    assert_string_equal("WANT: experts: 1025 elements, at most 1024", err.text);
    assert_int_equal(
        MOE_OK, decode_filled("86 00 04 01 01 02 00 03 00 07 00 08 dc 04 00", 0, 1024, &m, NULL));
}

static void texts_have_a_limit_on_both_sides(void **state)
{
    (void)state;
    static wire_message m;
    wire_buffer b = {0};
    make(&goldens[WIRE_DONE - 1], &m);
    memset(m.outcome.text, 'x', sizeof m.outcome.text);
    assert_int_equal(MOE_ERR_LIMIT, wire_encode(&m, &b, NULL));
    m.outcome.text[WIRE_MAX_TEXT - 1] = '\0';
    assert_int_equal(MOE_OK, wire_encode(&m, &b, NULL));
    assert_int_equal(MOE_OK, decode_copy(b.data, b.bytes, &m, NULL));
    assert_int_equal(WIRE_MAX_TEXT - 1, strlen(m.outcome.text));
    wire_buffer_fini(&b);
    assert_int_equal(MOE_ERR_LIMIT, decode_filled("86 00 0e 01 01 02 00 03 00 09 00 0a da 01 90",
                                                  'x', 400, &m, NULL));
    assert_int_equal(
        MOE_OK, decode_filled("86 00 0e 01 01 02 00 03 00 09 00 0a da 01 8f", 'x', 399, &m, NULL));
}

static void regions_and_metrics_have_a_limit_on_both_sides(void **state)
{
    (void)state;
    static wire_message m;
    wire_buffer b = {0};
    make(&goldens[WIRE_WELCOME - 1], &m);
    m.welcome.n_regions = WIRE_MAX_REGIONS + 1;
    assert_int_equal(MOE_ERR_LIMIT, wire_encode(&m, &b, NULL));
    m.welcome.n_regions = WIRE_MAX_REGIONS;
    assert_int_equal(MOE_OK, wire_encode(&m, &b, NULL));
    assert_int_equal(MOE_OK, decode_copy(b.data, b.bytes, &m, NULL));
    wire_buffer_fini(&b);

    make(&goldens[WIRE_STATS_REPLY - 1], &m);
    for (uint32_t i = 1; i < WIRE_MAX_METRICS; i++) {
        moe_metrics_add(&m.stats_reply.metrics, MOE_METRIC_GAUGE, "many", "", i, "i=\"%u\"", i);
    }
    assert_int_equal(MOE_OK, wire_encode(&m, &b, NULL));
    static wire_message back;
    assert_int_equal(MOE_OK, decode_copy(b.data, b.bytes, &back, NULL));
    assert_same_message(&m, &back);
    release(&back);
    wire_buffer_fini(&b);
    moe_metrics_add(&m.stats_reply.metrics, MOE_METRIC_GAUGE, "one_more", "", 0, "i=\"x\"");
    assert_int_equal(MOE_ERR_LIMIT, wire_encode(&m, &b, NULL));
    release(&m);
    assert_int_equal(MOE_ERR_LIMIT, decode_filled("85 00 09 01 01 02 00 03 00 0c dc 40 01", 0,
                                                  WIRE_MAX_METRICS + 1, &m, NULL));
}

static void an_incomplete_list_of_metrics_is_not_sent(void **state)
{
    (void)state;
    static wire_message m;
    make(&goldens[WIRE_STATS_REPLY - 1], &m);
    m.stats_reply.metrics.failed = 1;
    wire_buffer b = {0};
    assert_int_equal(MOE_ERR_NO_MEMORY, wire_encode(&m, &b, NULL));
    release(&m);
}

static void size_depth_and_elements_have_a_limit(void **state)
{
    (void)state;
    static wire_message m;
    /* PING with unknown key 99: binary that fills the largest message, and one byte more. */
    const char *head = "86 00 0f 01 01 02 00 03 00 0b 00 63 c6 00 3f ff ef";
    assert_int_equal(MOE_OK, decode_filled(head, 0, WIRE_MAX_MESSAGE_BYTES - 17, &m, NULL));
    assert_int_equal(MOE_ERR_LIMIT, decode_filled(head, 0, WIRE_MAX_MESSAGE_BYTES - 16, &m, NULL));
    /* Levels: the map, then arrays of one. */
    assert_int_equal(MOE_OK,
                     decode_hex("86 00 0f 01 01 02 00 03 00 0b 00 63 91 91 91 91 91 c0", &m, NULL));
    assert_int_equal(
        MOE_ERR_LIMIT,
        decode_hex("86 00 0f 01 01 02 00 03 00 0b 00 63 91 91 91 91 91 91 c0", &m, NULL));
    assert_int_equal(MOE_ERR_LIMIT, decode_filled("", 0x91, 60000, &m, NULL));
    /* Elements: the map and its twelve, then an array. */
    const size_t rest = WIRE_MAX_ELEMENTS - 13;
    assert_int_equal(MOE_OK, decode_filled("86 00 0f 01 01 02 00 03 00 0b 00 63 dd 00 03 ff f3",
                                           0xc0, rest, &m, NULL));
    assert_int_equal(MOE_ERR_LIMIT,
                     decode_filled("86 00 0f 01 01 02 00 03 00 0b 00 63 dd 00 03 ff f4", 0xc0,
                                   rest + 1, &m, NULL));
}

/* The most address space this process ever had, in bytes: allocations that were never touched and
 * those already freed show here. */
static uint64_t peak_bytes(void)
{
    char line[256];
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "VmPeak: %llu kB", &kib) == 1) {
            break;
        }
    }
    fclose(f);
    assert_true(kib > 0);
    return kib * 1024;
}

static void declared_sizes_are_not_believed(void **state)
{
    (void)state;
    static const char *const liars[] = {
        "dd 10 00 00 00 c0",                                  /* array of 2^28 in 6 bytes */
        "df 10 00 00 00 c0",                                  /* map */
        "dd ff ff ff ff c0",                                  /* array of 2^32 - 1 */
        "db 7f ff ff ff 61",                                  /* string */
        "c6 7f ff ff ff 61",                                  /* binary */
        "c9 7f ff ff ff 01 61",                               /* extension */
        "81 00 dd 04 00 00 00 c0",                            /* one level down */
        "86 00 04 01 01 02 00 03 00 07 00 08 dd 10 00 00 00", /* as WANT's experts */
        "92 dd 00 00 00 02 c0 c0 dd 10 00 00 00 c0",          /* behind an honest one */
    };
    static wire_message m;
    uint64_t before = peak_bytes();
    for (size_t i = 0; i < sizeof liars / sizeof liars[0]; i++) {
        assert_int_equal(MOE_ERR_FORMAT, decode_hex(liars[i], &m, NULL));
    }
    assert_true(peak_bytes() - before < (16u << 20));
}

/* Each array alone would fit into the bytes that are left; their sum does not. */
static void the_sum_of_declared_sizes_is_bounded(void **state)
{
    (void)state;
    static wire_message m;
    enum { N = WIRE_MAX_REQUEST_BYTES };
    static uint8_t bytes[N];
    uint64_t before = peak_bytes();
    bytes[0] = 0xdd; /* an array of arrays, each as large as all that follows it */
    bytes[1] = bytes[2] = 0;
    bytes[3] = (N / 5 - 1) >> 8;
    bytes[4] = (N / 5 - 1) & 0xff;
    for (uint32_t at = 5; at + 5 <= N; at += 5) {
        uint32_t left = N - at - 5;
        bytes[at] = 0xdd;
        bytes[at + 1] = bytes[at + 2] = 0;
        bytes[at + 3] = (uint8_t)(left >> 8);
        bytes[at + 4] = (uint8_t)left;
    }
    assert_int_equal(MOE_ERR_FORMAT, decode_copy(bytes, N, &m, NULL));
    assert_true(peak_bytes() - before < (16u << 20));
}

/* ---- failures inside, and noise from outside ------------------------------------------------- */

static void encoding_survives_every_failed_allocation(void **state)
{
    (void)state;
    static wire_message m;
    make(&goldens[WIRE_STATS_REPLY - 1], &m);
    for (int i = 0; i < 5000; i++) {
        moe_metrics_add(&m.stats_reply.metrics, MOE_METRIC_GAUGE, "many", "help", i, "i=\"%d\"", i);
    }
    for (int n = 1;; n++) {
        wire_buffer b = {0};
        calls_until_failure = n;
        moe_status st = wire_encode(&m, &b, NULL);
        bool injected = calls_until_failure == 0;
        calls_until_failure = -1;
        if (!injected) {
            assert_true(n > 3);
            assert_int_equal(MOE_OK, st);
            wire_buffer_fini(&b);
            break;
        }
        assert_int_equal(MOE_ERR_NO_MEMORY, st);
        assert_null(b.data);
    }
    release(&m);
}

static void decoding_survives_a_failed_allocation(void **state)
{
    (void)state;
    static wire_message m;
    calls_until_failure = 1;
    assert_int_equal(MOE_ERR_NO_MEMORY, decode_hex(goldens[WIRE_STATS_REPLY - 1].hex, &m, NULL));
    assert_int_equal(0, calls_until_failure);
    calls_until_failure = -1;
}

static uint64_t next_random(uint64_t *s) /* xorshift64 */
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

/* Whatever the bytes are: a named refusal, or a message that can be sent and read again. */
static void mutated_messages_are_refused_or_consistent(void **state)
{
    (void)state;
    enum { ROUNDS = 60000 };
    static wire_message m, again;
    uint64_t seed = UINT64_C(0x9e3779b97f4a7c15);
    uint32_t accepted = 0;
    for (int round = 0; round < ROUNDS; round++) {
        uint8_t bytes[512];
        size_t n = unhex(goldens[(size_t)round % N_GOLDENS].hex, bytes, sizeof bytes);
        assert_true(n > 0);
        for (uint64_t edits = 1 + next_random(&seed) % 4; edits > 0; edits--) {
            uint64_t at = next_random(&seed) % n, noise = next_random(&seed);
            uint64_t flipped = bytes[at] ^ UINT64_C(1) << noise % 8;
            bytes[at] = (uint8_t)(next_random(&seed) % 2 ? noise : flipped);
        }
        moe_err err = {0};
        moe_status st = decode_copy(bytes, n, &m, &err);
        if (st != MOE_OK) {
            assert_true(st == MOE_ERR_FORMAT || st == MOE_ERR_VERSION ||
                        st == MOE_ERR_UNSUPPORTED || st == MOE_ERR_LIMIT);
            assert_true(err.text[0] != '\0');
            continue;
        }
        accepted++;
        wire_buffer b = {0};
        assert_int_equal(MOE_OK, wire_encode(&m, &b, NULL));
        assert_int_equal(MOE_OK, decode_copy(b.data, b.bytes, &again, NULL));
        wire_buffer_fini(&b);
        release(&m);
        release(&again);
    }
    assert_true(accepted > 100 && accepted < ROUNDS / 2); /* the loop reaches both sides */
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s proto/README.md\n", argv[0]);
        return 2;
    }
    readme_path = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(declared_sizes_are_not_believed), /* first: it looks at the peak */
        cmocka_unit_test(the_sum_of_declared_sizes_is_bounded),
        cmocka_unit_test(every_kind_encodes_to_its_golden_bytes),
        cmocka_unit_test(every_kind_decodes_from_its_golden_bytes),
        cmocka_unit_test(every_kind_has_a_golden_and_a_name),
        cmocka_unit_test(the_specification_shows_these_bytes),
        cmocka_unit_test(a_missing_mistyped_or_repeated_field_is_refused_by_name),
        cmocka_unit_test(unknown_keys_are_ignored_wherever_they_stand),
        cmocka_unit_test(a_message_cut_off_anywhere_is_refused),
        cmocka_unit_test(another_version_is_refused_with_both_numbers),
        cmocka_unit_test(an_unknown_kind_is_refused_and_its_header_is_known),
        cmocka_unit_test(malformed_bytes_are_refused),
        cmocka_unit_test(other_widths_of_the_same_numbers_are_read),
        cmocka_unit_test(a_longer_metric_is_read_and_its_rest_ignored),
        cmocka_unit_test(expert_lists_have_a_limit_on_both_sides),
        cmocka_unit_test(texts_have_a_limit_on_both_sides),
        cmocka_unit_test(regions_and_metrics_have_a_limit_on_both_sides),
        cmocka_unit_test(an_incomplete_list_of_metrics_is_not_sent),
        cmocka_unit_test(size_depth_and_elements_have_a_limit),
        cmocka_unit_test(encoding_survives_every_failed_allocation),
        cmocka_unit_test(decoding_survives_a_failed_allocation),
        cmocka_unit_test(mutated_messages_are_refused_or_consistent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL) != 0;
}
