/* Any bytes: wire_decode refuses them with a reason, or gives a message that encodes to bytes which
 * decode and encode to themselves. Input: one message. Run by tests/fuzz/replay.c or libFuzzer. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/messages.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void release(wire_message *m)
{
    if (m->h.kind == WIRE_STATS_REPLY) {
        moe_metrics_fini(&m->stats_reply.metrics);
    }
}

static void must(int holds)
{
    if (!holds) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static wire_message first, second;
    moe_err err = {0};
    if (wire_decode(data, bytes, &first, &err) != MOE_OK) {
        must(err.status != MOE_OK && err.text[0] != '\0');
        return 0;
    }
    wire_buffer once = {0}, twice = {0};
    must(wire_encode(&first, &once, NULL) == MOE_OK);
    must(wire_decode(once.data, once.bytes, &second, NULL) == MOE_OK);
    must(wire_encode(&second, &twice, NULL) == MOE_OK);
    must(once.bytes == twice.bytes && memcmp(once.data, twice.data, once.bytes) == 0);
    wire_buffer_fini(&once);
    wire_buffer_fini(&twice);
    release(&first);
    release(&second);
    return 0;
}
