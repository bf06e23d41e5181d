/* fields.c - the tables of fields.h, and the names of kinds. Const data; any thread. */
#include "proto/fields.h"

/* The members of one wire_field, in its order. */
#define U32(type, member, key) key, #member, WIRE_TYPE_U32, offsetof(type, member), 0, 0
#define U64(type, member, key) key, #member, WIRE_TYPE_U64, offsetof(type, member), 0, 0
#define STR(type, member, key)                                                                     \
    key, #member, WIRE_TYPE_STR, offsetof(type, member), 0, sizeof(((type *)0)->member)
#define BIN(type, member, key)                                                                     \
    key, #member, WIRE_TYPE_BIN, offsetof(type, member), 0, sizeof(((type *)0)->member)
#define LIST(wire_type, type, member, count, key, max)                                             \
    key, #member, wire_type, offsetof(type, member), offsetof(type, count), max
#define LAYOUT(fields) fields, sizeof(fields) / sizeof((fields)[0])

static const wire_field header_fields[] = {
    {U32(wire_header, kind, WIRE_KEY_KIND)},
    {U32(wire_header, version, WIRE_KEY_VERSION)},
    {U32(wire_header, boot, WIRE_KEY_BOOT)},
    {U64(wire_header, step, WIRE_KEY_STEP)},
};
static const wire_field region_fields[] = {
    {U32(wire_region, purpose, WIRE_KEY_PURPOSE)},
    {STR(wire_region, name, WIRE_KEY_NAME)},
    {U64(wire_region, bytes, WIRE_KEY_BYTES)},
    {U32(wire_region, page_bytes, WIRE_KEY_PAGE_BYTES)},
};
static const wire_field hello_fields[] = {
    {STR(wire_hello, name, WIRE_KEY_NAME)},
    {U32(wire_hello, pid, WIRE_KEY_PID)},
    {U32(wire_hello, worker_id, WIRE_KEY_WORKER_ID)},
};
static const wire_field welcome_fields[] = {
    {BIN(wire_welcome, store_uuid, WIRE_KEY_STORE_UUID)},
    {U32(wire_welcome, worker_id, WIRE_KEY_WORKER_ID)},
    {U32(wire_welcome, lease_capacity, WIRE_KEY_LEASE_CAPACITY)},
    {U64(wire_welcome, slot_bytes, WIRE_KEY_SLOT_BYTES)},
    {U64(wire_welcome, expert_bytes, WIRE_KEY_EXPERT_BYTES)},
    {U32(wire_welcome, expert_dtype, WIRE_KEY_EXPERT_DTYPE)},
    {U32(wire_welcome, n_slots, WIRE_KEY_N_SLOTS)},
    {U32(wire_welcome, n_experts, WIRE_KEY_N_EXPERTS)},
    {LIST(WIRE_TYPE_REGIONS, wire_welcome, regions, n_regions, WIRE_KEY_REGIONS, WIRE_MAX_REGIONS)},
    {STR(wire_welcome, model_name, WIRE_KEY_NAME)},
    {U32(wire_welcome, pinned, WIRE_KEY_PINNED)},
};
static const wire_field experts_fields[] = {
    {U32(wire_experts, distance, WIRE_KEY_DISTANCE)},
    {LIST(WIRE_TYPE_U32S, wire_experts, experts, n, WIRE_KEY_EXPERTS, WIRE_MAX_EXPERTS)},
};
static const wire_field failed_fields[] = {
    {U32(wire_failed, status, WIRE_KEY_STATUS)},
    {STR(wire_failed, text, WIRE_KEY_TEXT)},
    {LIST(WIRE_TYPE_U32S, wire_failed, experts, n, WIRE_KEY_EXPERTS, WIRE_MAX_EXPERTS)},
};
static const wire_field plain_fields[] = {
    {U32(wire_plain, flags, WIRE_KEY_FLAGS)},
};
static const wire_field outcome_fields[] = {
    {U32(wire_outcome, status, WIRE_KEY_STATUS)},
    {STR(wire_outcome, text, WIRE_KEY_TEXT)},
};
static const wire_field resize_fields[] = {
    {STR(wire_resize, text, WIRE_KEY_TEXT)},
};
static const wire_field stats_reply_fields[] = {
    {LIST(WIRE_TYPE_METRICS, wire_stats_reply, metrics, metrics.n, WIRE_KEY_METRICS,
          WIRE_MAX_METRICS)},
};

const wire_layout wire_header_layout = {LAYOUT(header_fields)};
const wire_layout wire_region_layout = {LAYOUT(region_fields)};

static const struct {
    const char *name;
    wire_layout layout;
} kinds[] = {
    [WIRE_HELLO] = {"HELLO", {LAYOUT(hello_fields)}},
    [WIRE_WELCOME] = {"WELCOME", {LAYOUT(welcome_fields)}},
    [WIRE_PREDICT] = {"PREDICT", {LAYOUT(experts_fields)}},
    [WIRE_WANT] = {"WANT", {LAYOUT(experts_fields)}},
    [WIRE_READY] = {"READY", {LAYOUT(experts_fields)}},
    [WIRE_FAILED] = {"FAILED", {LAYOUT(failed_fields)}},
    [WIRE_CANCEL] = {"CANCEL", {LAYOUT(experts_fields)}},
    [WIRE_STATS] = {"STATS", {LAYOUT(plain_fields)}},
    [WIRE_STATS_REPLY] = {"STATS_REPLY", {LAYOUT(stats_reply_fields)}},
    [WIRE_PREFETCH] = {"PREFETCH", {LAYOUT(experts_fields)}},
    [WIRE_PIN] = {"PIN", {LAYOUT(experts_fields)}},
    [WIRE_EVICT] = {"EVICT", {LAYOUT(experts_fields)}},
    [WIRE_DRAIN] = {"DRAIN", {LAYOUT(plain_fields)}},
    [WIRE_DONE] = {"DONE", {LAYOUT(outcome_fields)}},
    [WIRE_PING] = {"PING", {LAYOUT(plain_fields)}},
    [WIRE_PONG] = {"PONG", {LAYOUT(plain_fields)}},
    [WIRE_ERROR] = {"ERROR", {LAYOUT(outcome_fields)}},
    [WIRE_RESIZE] = {"RESIZE", {LAYOUT(resize_fields)}},
};

static int kind_is_known(uint32_t kind)
{
    return kind < sizeof kinds / sizeof kinds[0] && kinds[kind].name != NULL;
}

const wire_layout *wire_layout_of(uint32_t kind)
{
    return kind_is_known(kind) ? &kinds[kind].layout : NULL;
}

const char *wire_kind_name(uint32_t kind)
{
    return kind_is_known(kind) ? kinds[kind].name : "?";
}
