/* fetch_queue.c - one table row per expert; rows in the queue hang in the list of their class.
 * Owned by the server's event loop, which is the only caller and thread; at shutdown destroy drops
 * what is queued, since whoever asked is told by the server. */
#include "expert-store/reader/fetch_queue.h"

#include <stdlib.h>

enum { MAX_WORKERS = 64, NONE = UINT32_MAX };

typedef struct entry {
    uint32_t prev, next; /* experts in the same class; NONE at the ends */
    uint64_t workers;    /* bit per asker; 0: not in the queue */
    int64_t asked_ns;    /* by the first asker */
    xs_fetch_class cls;
} entry;

typedef struct class_list {
    uint32_t head, tail; /* NONE when empty */
    uint32_t length;
} class_list;

struct xs_fetch_queue {
    uint32_t n_experts;
    entry *entries;  /* [n_experts] owned */
    uint64_t *steps; /* [n_experts][MAX_WORKERS] latest step each asker asked at, owned */
    class_list lists[XS_N_FETCH_CLASSES];
};

moe_status xs_fetch_queue_create(uint32_t n_experts, xs_fetch_queue **out, moe_err *err)
{
    xs_fetch_queue *q = NULL;
    moe_status st = MOE_OK;
    if (n_experts == 0 || n_experts == NONE) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "a fetch queue for %u experts", n_experts);
    }
    q = calloc(1, sizeof *q);
    if (q != NULL) {
        q->entries = calloc(n_experts, sizeof *q->entries);
        q->steps = calloc((size_t)n_experts * MAX_WORKERS, sizeof *q->steps);
    }
    if (q == NULL || q->entries == NULL || q->steps == NULL) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a fetch queue for %u experts", n_experts);
        goto fail;
    }
    q->n_experts = n_experts;
    for (int cls = 0; cls < XS_N_FETCH_CLASSES; cls++) {
        q->lists[cls] = (class_list){.head = NONE, .tail = NONE};
    }
    *out = q;
    return MOE_OK;
fail:
    xs_fetch_queue_destroy(q);
    return st;
}

void xs_fetch_queue_destroy(xs_fetch_queue *q)
{
    if (q == NULL) {
        return;
    }
    free(q->entries);
    free(q->steps);
    free(q);
}

static void append(xs_fetch_queue *q, uint32_t expert, xs_fetch_class cls)
{
    class_list *list = &q->lists[cls];
    entry *e = &q->entries[expert];
    e->cls = cls;
    e->prev = list->tail;
    e->next = NONE;
    if (list->tail == NONE) {
        list->head = expert;
    } else {
        q->entries[list->tail].next = expert;
    }
    list->tail = expert;
    list->length++;
}

static void unlink_entry(xs_fetch_queue *q, uint32_t expert)
{
    entry *e = &q->entries[expert];
    class_list *list = &q->lists[e->cls];
    if (e->prev == NONE) {
        list->head = e->next;
    } else {
        q->entries[e->prev].next = e->next;
    }
    if (e->next == NONE) {
        list->tail = e->prev;
    } else {
        q->entries[e->next].prev = e->prev;
    }
    list->length--;
}

bool xs_fetch_queue_push(xs_fetch_queue *q, uint32_t expert, xs_fetch_class cls, uint32_t worker,
                         uint64_t step, int64_t now_ns)
{
    MOE_ASSERT(expert < q->n_experts && cls < XS_N_FETCH_CLASSES && worker < MAX_WORKERS);
    entry *e = &q->entries[expert];
    uint64_t *asked_step = &q->steps[(size_t)expert * MAX_WORKERS + worker];
    uint64_t bit = 1ull << worker;
    bool merged = e->workers != 0;
    if (!merged) {
        e->asked_ns = now_ns;
        append(q, expert, cls);
    } else if (cls < e->cls) {
        unlink_entry(q, expert);
        append(q, expert, cls);
    }
    if ((e->workers & bit) == 0 || step > *asked_step) {
        *asked_step = step;
    }
    e->workers |= bit;
    return merged;
}

bool xs_fetch_queue_peek(const xs_fetch_queue *q, uint32_t *out_expert, xs_fetch_class *out_cls,
                         int64_t *out_asked_ns)
{
    for (int cls = 0; cls < XS_N_FETCH_CLASSES; cls++) {
        uint32_t head = q->lists[cls].head;
        if (head != NONE) {
            *out_expert = head;
            *out_cls = (xs_fetch_class)cls;
            *out_asked_ns = q->entries[head].asked_ns;
            return true;
        }
    }
    return false;
}

bool xs_fetch_queue_pop(xs_fetch_queue *q, uint32_t *out_expert, xs_fetch_class *out_cls,
                        uint64_t *out_workers, int64_t *out_asked_ns)
{
    if (!xs_fetch_queue_peek(q, out_expert, out_cls, out_asked_ns)) {
        return false;
    }
    *out_workers = q->entries[*out_expert].workers;
    return xs_fetch_queue_remove(q, *out_expert);
}

bool xs_fetch_queue_remove(xs_fetch_queue *q, uint32_t expert)
{
    MOE_ASSERT(expert < q->n_experts);
    if (q->entries[expert].workers == 0) {
        return false;
    }
    unlink_entry(q, expert);
    q->entries[expert].workers = 0;
    return true;
}

uint32_t xs_fetch_queue_cancel(xs_fetch_queue *q, uint32_t worker, uint64_t step)
{
    MOE_ASSERT(worker < MAX_WORKERS);
    uint64_t bit = 1ull << worker;
    uint32_t n_dropped = 0;
    for (int cls = 0; cls < XS_N_FETCH_CLASSES; cls++) {
        uint32_t next = NONE;
        for (uint32_t expert = q->lists[cls].head; expert != NONE; expert = next) {
            entry *e = &q->entries[expert];
            next = e->next;
            bool asked = (e->workers & bit) != 0;
            if (!asked || q->steps[(size_t)expert * MAX_WORKERS + worker] > step) {
                continue;
            }
            if (e->workers == bit) {
                xs_fetch_queue_remove(q, expert);
                n_dropped++;
            } else {
                e->workers &= ~bit;
            }
        }
    }
    return n_dropped;
}

uint32_t xs_fetch_queue_length(const xs_fetch_queue *q, xs_fetch_class cls)
{
    MOE_ASSERT(cls < XS_N_FETCH_CLASSES);
    return q->lists[cls].length;
}
