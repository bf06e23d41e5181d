/* fetch_queue.h - which expert is read next: orders by need, merges equal ones, cancels void ones.
 *
 * Classes, most needed first: DEMAND (a WANT), NEAR (predicted one block ahead), FAR (further),
 * WARM (operator's PREFETCH, start-up fill). Within a class: first asked, first read.
 * One entry per expert; asking again adds the asker, at a more urgent class also moves the entry to
 * that class's end. An entry never moves down again, not even when the urgent asker cancels.
 * Askers: a set of workers (bit per registry place) with the step they asked at; cancel(worker,
 * step) removes that worker's asks up to that step (asked several times: the latest step counts)
 * and drops entries nobody asks for any more.
 * Speculation is bounded by the caller: peek says the class before pop.
 * Threads: one owner. Memory: fixed at creation, sized by n_experts; nothing allocates later.
 */
#ifndef XS_FETCH_QUEUE_H
#define XS_FETCH_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"

typedef enum xs_fetch_class {
    XS_FETCH_DEMAND = 0,
    XS_FETCH_NEAR,
    XS_FETCH_FAR,
    XS_FETCH_WARM,
    XS_N_FETCH_CLASSES
} xs_fetch_class;

typedef struct xs_fetch_queue xs_fetch_queue;
MOE_MUST_CHECK moe_status xs_fetch_queue_create(uint32_t n_experts, xs_fetch_queue **out,
                                                moe_err *err);
void xs_fetch_queue_destroy(xs_fetch_queue *q);
/* worker < 64: registry place; 63 and class WARM for operators. True if this merged with an entry.
 */
bool xs_fetch_queue_push(xs_fetch_queue *q, uint32_t expert, xs_fetch_class cls, uint32_t worker,
                         uint64_t step, int64_t now_ns);
/* The most urgent entry; false when empty. asked_ns: when it was first asked. */
bool xs_fetch_queue_peek(const xs_fetch_queue *q, uint32_t *out_expert, xs_fetch_class *out_cls,
                         int64_t *out_asked_ns);
bool xs_fetch_queue_pop(xs_fetch_queue *q, uint32_t *out_expert, xs_fetch_class *out_cls,
                        uint64_t *out_workers, int64_t *out_asked_ns);
bool xs_fetch_queue_remove(xs_fetch_queue *q, uint32_t expert);
/* Returns how many entries were dropped. step UINT64_MAX: everything of this worker (its death). */
uint32_t xs_fetch_queue_cancel(xs_fetch_queue *q, uint32_t worker, uint64_t step);
uint32_t xs_fetch_queue_length(const xs_fetch_queue *q, xs_fetch_class cls);

#endif
