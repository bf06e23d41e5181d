/* Any bytes as the body of /v1/completions: refused with a reason, or a request that keeps its
 * promises. Input: the body. Run by tests/fuzz/replay.c or libFuzzer. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "gpu-worker/serve/completions.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { VOCAB = 4096, MAX_INPUT = 64, MAX_OUTPUT = 100 };

static void must(int holds)
{
    if (!holds) {
        abort();
    }
}

static void check(const gw_completion_request *r, const uint8_t *data, size_t bytes)
{
    must(r->n_prompts >= 1 && r->n_prompts <= GW_MAX_PROMPTS);
    must(r->max_tokens >= 1 && r->max_tokens <= MAX_OUTPUT);
    must(r->temperature >= 0 && r->temperature <= 2 && r->top_p > 0 && r->top_p <= 1);
    for (uint32_t p = 0; p < r->n_prompts; p++) {
        must(r->prompt[p].n >= 1 && r->prompt[p].n <= MAX_INPUT);
        must(r->prompt[p].ids[r->prompt[p].n - 1] == 1);
        for (uint32_t i = 0; i < r->prompt[p].n; i++) {
            must(r->prompt[p].ids[i] >= 0 && r->prompt[p].ids[i] < VOCAB);
        }
    }
    for (uint32_t i = 0; i < r->n_stops; i++) {
        must(r->stop[i][0] != '\0' && strlen(r->stop[i]) < GW_STOP_BYTES);
    }
    const char *text = (const char *)data; /* any text will do */
    must(gw_stop_find(r, text, bytes) <= bytes && gw_stop_holdback(r, text, bytes) <= bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const gw_completion_limits limits = {.model_name = "demo",
                                                .vocab = VOCAB,
                                                .max_input_tokens = MAX_INPUT,
                                                .max_output_tokens = MAX_OUTPUT};
    gw_completion_request r = {0};
    const char *param = NULL;
    moe_err err = {0};
    if (gw_completion_parse((const char *)data, bytes, &limits, &r, &param, &err) != MOE_OK) {
        must(err.status != MOE_OK && err.text[0] != '\0' && r.n_prompts == 0);
        return 0;
    }
    check(&r, data, bytes);
    gw_completion_request_fini(&r);
    return 0;
}
