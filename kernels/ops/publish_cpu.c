/* publish_cpu.c - writes one mail into the ring that the host polls. */
#include "kernels/backend/backend_cpu.h"
#include "kernels/ops/ops_check.h"
#include "kernels/ops/ops_cpu.h"

#include "common/clock.h"

static uint32_t list_experts(const krn_publish_args *a, uint16_t *expert)
{
    uint32_t n = 0;
    for (uint32_t e = 0; e < a->n_experts; e++) {
        if (a->all_experts || a->offsets[e] < a->offsets[e + 1]) {
            expert[n++] = (uint16_t)e;
        }
    }
    return n;
}

static void run(const void *args, krn_team *team)
{
    (void)team;
    const krn_publish_args *a = args;
    uint32_t seq = *a->counter + 1;
    krn_mail *mail = &a->ring[seq & (a->depth - 1)];
    mail->kind = a->kind;
    mail->block = a->block;
    mail->wave = a->wave;
    mail->time_ns = moe_now_ns();
    mail->n = 0;
    if (a->kind == KRN_MAIL_ROUTED || a->kind == KRN_MAIL_GUESSED) {
        mail->n = list_experts(a, mail->expert);
    }
    *a->counter = seq;
    atomic_store_explicit(&mail->seq, seq,
                          memory_order_release); /* pairs with the reader's acquire */
}

moe_status krn_cpu_publish(krn_stream *s, const krn_publish_args *a, moe_err *err)
{
    moe_status st = krn_publish_check(a, err);
    if (st != MOE_OK) {
        return st;
    }
    return krn_cpu_submit(s, run, a, sizeof *a, err);
}
