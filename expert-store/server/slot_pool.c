/* slot_pool.c - see slot_pool.h. Free slots are a stack; the lowest slots are taken first. */
#include "expert-store/server/slot_pool.h"

#include <stdlib.h>

struct xs_slot_pool {
    uint32_t n_slots, n_made;
    uint32_t n_in[XS_N_SLOT_STATES];
    xs_slot *slots;       /* [n_slots], owned */
    uint32_t *free_stack; /* [n_in[FREE]] of [n_slots], owned */
};

static void push_free(xs_slot_pool *p, uint32_t slot)
{
    p->slots[slot].free_at = p->n_in[XS_SLOT_FREE];
    p->free_stack[p->n_in[XS_SLOT_FREE]] = slot;
    p->n_in[XS_SLOT_FREE]++;
}

/* The hole is filled by the top of the stack. */
static void remove_free(xs_slot_pool *p, uint32_t slot)
{
    uint32_t at = p->slots[slot].free_at;
    p->n_in[XS_SLOT_FREE]--;
    uint32_t top = p->free_stack[p->n_in[XS_SLOT_FREE]];
    p->free_stack[at] = top;
    p->slots[top].free_at = at;
}

static void move(xs_slot_pool *p, uint32_t slot, xs_slot_state to)
{
    xs_slot *s = &p->slots[slot];
    if (s->state == XS_SLOT_FREE) {
        remove_free(p, slot);
    } else {
        p->n_in[s->state]--;
    }
    s->state = to;
    if (to == XS_SLOT_FREE) {
        push_free(p, slot);
    } else {
        p->n_in[to]++;
    }
}

moe_status xs_slot_pool_create(uint32_t n_slots, xs_slot_pool **out, moe_err *err)
{
    MOE_ASSERT(n_slots > 0);
    xs_slot_pool *p = calloc(1, sizeof *p);
    if (p != NULL) {
        p->n_slots = n_slots;
        p->slots = calloc(n_slots, sizeof *p->slots);
        p->free_stack = calloc(n_slots, sizeof *p->free_stack);
    }
    if (p == NULL || p->slots == NULL || p->free_stack == NULL) {
        xs_slot_pool_destroy(p);
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "tables for %u slots", n_slots);
    }
    p->n_in[XS_SLOT_UNMADE] = n_slots;
    *out = p;
    return MOE_OK;
}

void xs_slot_pool_destroy(xs_slot_pool *p)
{
    if (p == NULL) {
        return;
    }
    free(p->slots);
    free(p->free_stack);
    free(p);
}

void xs_slot_pool_grow(xs_slot_pool *p, uint32_t n_made)
{
    MOE_ASSERT(n_made >= p->n_made && n_made <= p->n_slots);
    for (uint32_t i = n_made; i > p->n_made; i--) {
        move(p, i - 1, XS_SLOT_FREE);
    }
    p->n_made = n_made;
}

static void fill(xs_slot *s, uint32_t expert, xs_fetch_class why)
{
    s->expert = expert;
    s->why = why;
    s->wanted = false;
    s->unverified = false;
    s->n_holds = 0;
    s->uses_at_load = 0;
    s->uses_at_sieve = 0;
    s->loaded_ns = 0;
}

moe_status xs_slot_pool_acquire(xs_slot_pool *p, uint32_t expert, xs_fetch_class why,
                                uint32_t *out_slot, moe_err *err)
{
    if (p->n_in[XS_SLOT_FREE] == 0) {
        return MOE_FAIL(err, MOE_ERR_NO_SLOT, "none of %u slots is free", p->n_made);
    }
    uint32_t slot = p->free_stack[p->n_in[XS_SLOT_FREE] - 1];
    move(p, slot, XS_SLOT_LOADING);
    fill(&p->slots[slot], expert, why);
    *out_slot = slot;
    return MOE_OK;
}

void xs_slot_pool_adopt(xs_slot_pool *p, uint32_t slot, uint32_t expert, int64_t now_ns)
{
    xs_slot *s = xs_slot_pool_at(p, slot);
    MOE_ASSERT(s->state == XS_SLOT_FREE);
    move(p, slot, XS_SLOT_READY);
    fill(s, expert, XS_FETCH_WARM);
    s->unverified = true;
    s->wanted = true; /* an earlier store's load: not ours to call wasted */
    s->loaded_ns = now_ns;
}

void xs_slot_pool_publish(xs_slot_pool *p, uint32_t slot, int64_t now_ns)
{
    xs_slot *s = xs_slot_pool_at(p, slot);
    MOE_ASSERT(s->state == XS_SLOT_LOADING);
    move(p, slot, XS_SLOT_READY);
    s->loaded_ns = now_ns;
}

void xs_slot_pool_release(xs_slot_pool *p, uint32_t slot)
{
    MOE_ASSERT(xs_slot_pool_at(p, slot)->state > XS_SLOT_FREE);
    move(p, slot, XS_SLOT_FREE);
}

void xs_slot_pool_condemn(xs_slot_pool *p, uint32_t slot)
{
    xs_slot *s = xs_slot_pool_at(p, slot);
    MOE_ASSERT(s->state == XS_SLOT_FREE || s->state == XS_SLOT_READY);
    move(p, slot, XS_SLOT_CONDEMNED);
}

xs_slot *xs_slot_pool_at(xs_slot_pool *p, uint32_t slot)
{
    MOE_ASSERT(slot < p->n_slots);
    return &p->slots[slot];
}

uint32_t xs_slot_pool_size(const xs_slot_pool *p)
{
    return p->n_slots;
}

uint32_t xs_slot_pool_count(const xs_slot_pool *p, xs_slot_state state)
{
    return p->n_in[state];
}
