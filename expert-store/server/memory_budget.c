/* memory_budget.c - see memory_budget.h. */
#include "expert-store/server/memory_budget.h"

#include <stdio.h>

#include "common/clock.h"
#include "common/log.h"

enum { SMALL_PAGES_MATTER_BYTES = 64 << 20 }; /* below, no drive is kept from its speed */

/* ---- limits ---- */

static uint32_t region_mode(const xs_config *cfg)
{
    return cfg->allow_uid[0] != '\0' ? 0640 : 0600;
}

xs_regions_cfg xs_budget_regions_cfg(const xs_store *s)
{
    return (xs_regions_cfg){.endpoint_path = s->endpoint_path,
                            .ram_bytes = s->cfg->ram_bytes,
                            .max_workers = (uint32_t)s->cfg->max_workers,
                            .leases_per_worker = s->cfg->leases_per_worker,
                            .mode = region_mode(s->cfg)};
}

void xs_budget_set_limits(xs_store *s)
{
    const xs_limits_cfg cfg = {.n_slots = s->regions.n_budget,
                               .n_experts = s->model.shape.n_experts_total,
                               .max_workers = (uint32_t)s->cfg->max_workers,
                               .slot_bytes = s->model.slot_bytes,
                               .leases_per_worker = s->cfg->leases_per_worker,
                               .speculative_bytes = s->cfg->speculative_bytes,
                               .reader_in_flight = xs_reader_max_in_flight(s->reader)};
    s->limits = xs_size_limits(&cfg);
}

/* Pins must leave a slot for each worker and one to read into, unless every expert has its own. */
uint32_t xs_budget_max_pinned(const xs_store *s)
{
    uint32_t needed = (uint32_t)s->cfg->max_workers + 1;
    uint32_t n_slots = s->regions.n_budget;
    if (n_slots >= s->model.shape.n_experts_total) {
        return n_slots;
    }
    return n_slots > needed ? n_slots - needed : 0;
}

/* ---- memory that comes ---- */

static void log_not_pinned(const char *why)
{
    moe_log(MOE_LOG_WARN, "store", "not_pinned",
            "reason=\"%s\" cost=\"slots may be swapped out; workers that cannot pin them copy "
            "about 6 times slower\"",
            why);
}

/* Of what this process made: what adopted memory consists of is not known. */
static void log_memory_made(const xs_store *s)
{
    uint64_t bytes = s->memory.made_bytes;
    uint64_t huge_bytes = s->memory.huge_bytes;
    moe_log(MOE_LOG_INFO, "store", "memory_made", "slots=%u bytes=%llu huge_bytes=%llu ms=%lld",
            s->memory.n_made, (unsigned long long)bytes, (unsigned long long)huge_bytes,
            (long long)(s->memory.took_ns / MOE_NS_PER_MS));
    if (s->model.catalog != NULL && bytes >= SMALL_PAGES_MATTER_BYTES &&
        bytes - huge_bytes > bytes / 8) {
        moe_log(MOE_LOG_WARN, "store", "small_pages",
                "bytes=%llu huge_bytes=%llu cost=\"a drive may deliver half as much into 4 KiB "
                "pages\"",
                (unsigned long long)bytes, (unsigned long long)huge_bytes);
    }
}

moe_status xs_budget_open(xs_store *s, moe_err *err)
{
    const xs_slot_memory_cfg cfg = {
        .slots = &s->regions.slots,
        .slot_bytes = s->model.slot_bytes,
        .n_made = atomic_load_explicit(&xs_store_board(s)->n_made, memory_order_acquire),
        .n_wanted = s->regions.n_budget,
        .pin = s->cfg->pin,
        .piece_bytes = s->cfg->test_memory_piece,
        .pause_ns = (int64_t)s->cfg->test_memory_pause_ms * MOE_NS_PER_MS};
    s->n_promised = s->regions.n_budget;
    s->n_ordered = s->regions.n_budget - s->regions.n_over_budget;
    if (s->regions.n_over_budget > 0) {
        moe_log(MOE_LOG_WARN, "store", "memory_over_budget",
                "slots=%u over=%u reason=\"a worker may have registered them with its device\" "
                "change=\"start again without workers, or raise ram_bytes\"",
                s->regions.n_budget, s->regions.n_over_budget);
    }
    return xs_slot_memory_create(&cfg, &s->slot_memory, err);
}

/* More is given out only once it is there: what a worker got is not taken back. */
static void raise_limits(xs_store *s)
{
    xs_budget_set_limits(s);
    xs_residency_set_max_pinned(s->residency, xs_budget_max_pinned(s));
    xs_workers_set_capacity(s->workers, s->limits.lease_capacity);
}

static void set_budget(xs_store *s, uint32_t n_budget)
{
    s->regions.n_budget = n_budget;
    xs_residency_set_budget(s->residency, n_budget);
}

/* A store that has what it was started with goes on with it; another stops (server.c). */
static void settle_for_less(xs_store *s)
{
    moe_log(MOE_LOG_ERROR, "store", "memory_not_made",
            "slots=%u of=%u reason=\"%s\" effect=\"serves with what there is\" change=\"free "
            "memory, then raise the budget again\"",
            s->memory.n_made, s->regions.n_budget, s->memory.failure.text);
    s->memory.failure = (moe_err){0};
    set_budget(s, s->memory.n_made);
    raise_limits(s);
}

void xs_budget_take(xs_store *s)
{
    xs_slot_memory_report now;
    if (s->memory.ended || !xs_slot_memory_look(s->slot_memory, &now)) {
        return;
    }
    const bool was_registered = xs_reader_get_report(s->reader)->registered_buffers;
    const bool was_not_pinned = s->memory.not_pinned[0] != '\0';
    s->memory = now;
    xs_residency_grow(s->residency, now.n_made);
    if (!xs_reader_add_slots(s->reader, now.n_made, !now.ended) && was_registered) {
        xs_log_degraded_reads(s);
    }
    if (now.not_pinned[0] != '\0' && !was_not_pinned) {
        log_not_pinned(now.not_pinned);
    }
    if (now.ended && now.failure.status == MOE_OK) {
        log_memory_made(s);
        raise_limits(s);
    } else if (now.ended && now.n_made >= s->n_promised) {
        settle_for_less(s);
    }
}

/* ---- more of it ---- */

moe_status xs_budget_raise(xs_store *s, const char *ram_bytes, char *out_text, moe_err *err)
{
    xs_regions_cfg cfg = xs_budget_regions_cfg(s);
    const uint32_t before = s->regions.n_budget;
    uint32_t n_budget = 0;
    cfg.ram_bytes = ram_bytes;
    cfg.present_bytes = before * s->model.slot_bytes;
    moe_status st =
        xs_regions_size(&cfg, &s->model, moe_shm_allocated(&s->regions.slots), &n_budget, err);
    if (st != MOE_OK) {
        return st;
    }
    if (n_budget < before) {
        return MOE_FAIL(err, MOE_ERR_LIMIT,
                        "--ram-bytes %.40s is %u slots, there are %u: stop the workers, then the "
                        "store, and start it with less; with --keep-memory what fits stays",
                        ram_bytes, n_budget, before);
    }
    if (n_budget > before && xs_recorder_active(s->recorder)) {
        return MOE_FAIL(err, MOE_ERR_BUSY,
                        "a trace of %u slots is being recorded: start the store with more memory, "
                        "or without --record-trace",
                        before);
    }
    s->n_ordered = n_budget;
    if (n_budget > before) {
        set_budget(s, n_budget);
        xs_slot_memory_grow(s->slot_memory, n_budget);
        s->memory.ended = false; /* there will be news */
        moe_log(MOE_LOG_INFO, "store", "budget_raised", "slots=%u from=%u", n_budget, before);
    }
    snprintf(
        out_text, WIRE_MAX_TEXT,
        "%u slots, %.1f MiB, %u of them still to be made. Set ram_bytes in the configuration, too: "
        "a start reads it there.%s",
        n_budget, (double)(n_budget * s->model.slot_bytes) / (1 << 20), n_budget - s->memory.n_made,
        xs_workers_count(s->workers) > 0 ? " Workers that are connected keep the number of leases "
                                           "they have until they start again."
                                         : "");
    return MOE_OK;
}
