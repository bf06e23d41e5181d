/* expert_list.c - see expert_list.h. */
#include "expert-store/stat/expert_list.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct range {
    uint32_t first, n;
} range;

static bool read_number(const char **at, uint32_t *out)
{
    if (!isdigit((unsigned char)**at)) {
        return false;
    }
    char *end = NULL;
    unsigned long long v = strtoull(*at, &end, 10);
    *at = end;
    *out = v > UINT32_MAX ? UINT32_MAX : (uint32_t)v;
    return true;
}

/* "3" or "3-5" below `limit`. */
static bool read_span(const char **at, uint32_t limit, range *out)
{
    uint32_t first = 0;
    if (!read_number(at, &first)) {
        return false;
    }
    uint32_t last = first;
    if (**at == '-') {
        *at += 1;
        if (!read_number(at, &last)) {
            return false;
        }
    }
    *out = (range){.first = first, .n = last - first + 1};
    return first <= last && last < limit;
}

/* "enc0" or "dec3" to a flat block. */
static bool read_block(const char **at, const xs_expert_space *s, uint32_t *out_block)
{
    bool decoder = strncmp(*at, "dec", 3) == 0;
    if (!decoder && strncmp(*at, "enc", 3) != 0) {
        return false;
    }
    *at += 3;
    uint32_t block = 0;
    uint32_t n_blocks = s->n_experts / s->per_block;
    if (!read_number(at, &block)) {
        return false;
    }
    uint32_t limit = decoder ? n_blocks - s->enc_blocks : s->enc_blocks;
    *out_block = decoder ? s->enc_blocks + block : block;
    return block < limit;
}

static bool read_part(const char **at, const xs_expert_space *s, range *out)
{
    uint32_t block = 0;
    if (strncmp(*at, "all", 3) == 0) {
        *at += 3;
        *out = (range){.n = s->n_experts};
        return true;
    }
    if (isdigit((unsigned char)**at)) {
        return read_span(at, s->n_experts, out);
    }
    if (!read_block(at, s, &block)) {
        return false;
    }
    *out = (range){.n = s->per_block};
    if (**at == ':') {
        *at += 1;
        if (!read_span(at, s->per_block, out)) {
            return false;
        }
    }
    out->first += block * s->per_block;
    return true;
}

moe_status xs_expert_list_parse(const char *text, const xs_expert_space *space,
                                uint32_t **out_experts, uint32_t *out_n, moe_err *err)
{
    const char *at = text;
    uint32_t n = 0;
    bool *chosen = calloc(space->n_experts, sizeof *chosen);
    uint32_t *experts = calloc(space->n_experts, sizeof *experts);
    moe_status st = MOE_OK;
    if (chosen == NULL || experts == NULL) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "list of %u experts", space->n_experts);
        goto fail;
    }
    for (bool more = true; more; more = *at++ == ',') {
        const char *part = at;
        range r = {0};
        if (!read_part(&at, space, &r) || (*at != ',' && *at != '\0')) {
            st = MOE_FAIL(err, MOE_ERR_INVALID,
                          "experts \"%.40s\": expected all, 3, 0-15, dec0 or enc1:3-5, with "
                          "experts below %u (%u a block), separated by commas",
                          part, space->n_experts, space->per_block);
            goto fail;
        }
        memset(chosen + r.first, true, r.n);
    }
    for (uint32_t x = 0; x < space->n_experts; x++) {
        experts[n] = x;
        n += chosen[x];
    }
    free(chosen);
    *out_experts = experts;
    *out_n = n;
    return MOE_OK;
fail:
    free(chosen);
    free(experts);
    return st;
}
