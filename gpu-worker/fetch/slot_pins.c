/* slot_pins.c - see slot_pins.h. */
#include "gpu-worker/fetch/slot_pins.h"

static void pin_up_to(gw_slot_pins *p, uint32_t n_slots)
{
    uint64_t slot_bytes = gw_store_client_welcome(p->client)->slot_bytes;
    const char *slots = gw_store_client_slots(p->client);
    const char *from = slots + p->n_pinned * slot_bytes;
    uint64_t bytes = (n_slots - p->n_pinned) * slot_bytes;
    if (p->n_ranges == GW_MAX_PINNED_RANGES ||
        p->ops->backend.host_register(p->device, from, bytes, NULL) != MOE_OK) {
        atomic_store_explicit(&p->failed, true, memory_order_relaxed);
        return;
    }
    p->ranges[p->n_ranges++] = from;
    p->n_pinned = n_slots;
}

void gw_slot_pins_init(gw_slot_pins *p, const krn_ops *ops, krn_device *device,
                       gw_store_client *client)
{
    *p = (gw_slot_pins){.ops = ops, .device = device, .client = client};
    uint32_t n_made = gw_store_client_n_made(client);
    if (n_made > 0) {
        pin_up_to(p, n_made);
    }
}

void gw_slot_pins_fini(gw_slot_pins *p)
{
    while (p->n_ranges > 0) {
        p->ops->backend.host_unregister(p->device, p->ranges[--p->n_ranges]);
    }
}

bool gw_slot_pins_cover(gw_slot_pins *p, uint32_t slot)
{
    if (slot >= p->n_pinned && !gw_slot_pins_has_failed(p)) {
        uint32_t n_made = gw_store_client_n_made(p->client);
        bool all = gw_store_client_is_made(p->client);
        if (n_made > slot && (all || n_made >= 2 * (uint64_t)p->n_pinned)) {
            pin_up_to(p, n_made);
        }
    }
    return slot < p->n_pinned;
}

bool gw_slot_pins_has_failed(const gw_slot_pins *p)
{
    return atomic_load_explicit(&p->failed, memory_order_relaxed);
}
