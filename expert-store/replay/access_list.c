/* access_list.c - see access_list.h. */
#include "expert-store/replay/access_list.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

void xs_access_list_fini(xs_access_list *l)
{
    free(l->items);
    *l = (xs_access_list){0};
}

static moe_status reserve(xs_access_list *l, uint64_t capacity, moe_err *err)
{
    xs_access *items = realloc(l->items, capacity * sizeof *items);
    if (items == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "a trace of %llu accesses",
                        (unsigned long long)capacity);
    }
    l->items = items;
    l->capacity = capacity;
    return MOE_OK;
}

moe_status xs_access_list_add(xs_access_list *l, const xs_access *a, moe_err *err)
{
    MOE_ASSERT(a->expert < l->n_experts && a->n >= 1);
    if (l->n == l->capacity) {
        moe_status st = reserve(l, l->capacity > 0 ? 2 * l->capacity : 1024, err);
        if (st != MOE_OK) {
            return st;
        }
    }
    l->items[l->n++] = *a;
    return MOE_OK;
}

/* One step of a merge sort from the bottom: nearly sorted input costs nearly nothing. */
static void merge(const xs_access *from, uint64_t mid, uint64_t end, xs_access *to)
{
    uint64_t a = 0;
    uint64_t b = mid;
    for (uint64_t i = 0; i < end; i++) {
        bool take_a = a < mid && (b >= end || from[a].at_us <= from[b].at_us);
        to[i] = take_a ? from[a++] : from[b++];
    }
}

moe_status xs_access_list_sort(xs_access_list *l, moe_err *err)
{
    xs_access *from = l->items;
    xs_access *to = malloc((l->n + 1) * sizeof *to);
    if (to == NULL) {
        return MOE_FAIL(err, MOE_ERR_NO_MEMORY, "sorting %llu accesses", (unsigned long long)l->n);
    }
    for (uint64_t width = 1; width < l->n; width *= 2) {
        for (uint64_t at = 0; at < l->n; at += 2 * width) {
            uint64_t left = l->n - at;
            merge(from + at, width < left ? width : left, 2 * width < left ? 2 * width : left,
                  to + at);
        }
        xs_access *sorted = to;
        to = from;
        from = sorted;
    }
    l->items = from;
    l->capacity = from != NULL ? l->n : 0;
    free(to);
    return MOE_OK;
}

uint64_t xs_access_list_uses(const xs_access_list *l)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < l->n; i++) {
        n += l->items[i].kind == XS_ACCESS_USE ? l->items[i].n : 0;
    }
    return n;
}

uint32_t xs_access_list_distinct(const xs_access_list *l)
{
    bool *used = calloc(l->n_experts + 1u, sizeof *used);
    uint32_t n = 0;
    for (uint64_t i = 0; i < l->n && used != NULL; i++) {
        const xs_access *a = &l->items[i];
        if (a->kind == XS_ACCESS_USE && !used[a->expert]) {
            used[a->expert] = true;
            n++;
        }
    }
    free(used);
    return n;
}

/* ---- recorded traces ---- */

static moe_status read_events(xs_trace_reader *reader, xs_access_list *l, moe_err *err)
{
    for (;;) {
        xs_trace_event e;
        bool end = false;
        moe_status st = xs_trace_next(reader, &e, &end, err);
        if (st != MOE_OK || end) {
            return st;
        }
        if (e.kind == XS_TRACE_USE || e.kind == XS_TRACE_PREDICT) {
            bool is_use = e.kind == XS_TRACE_USE;
            const xs_access a = {.at_us = e.at_us,
                                 .expert = e.expert,
                                 .n = is_use ? e.n : 1,
                                 .kind = is_use ? XS_ACCESS_USE : XS_ACCESS_PREDICTION};
            st = xs_access_list_add(l, &a, err);
        }
        if (st != MOE_OK) {
            return st;
        }
    }
}

moe_status xs_access_list_read(const void *data, size_t bytes, xs_trace_header *out_header,
                               xs_access_list *out, moe_err *err)
{
    xs_trace_header header;
    xs_trace_reader reader;
    moe_status st = xs_trace_open(data, bytes, &header, &reader, err);
    if (st != MOE_OK) {
        return st;
    }
    xs_access_list l = {.n_experts = header.n_experts};
    st = read_events(&reader, &l, err);
    if (st == MOE_OK) {
        st = xs_access_list_sort(&l, err);
    }
    if (st != MOE_OK) {
        xs_access_list_fini(&l);
        return st;
    }
    *out_header = header;
    *out = l;
    return MOE_OK;
}

/* ---- made-up traces ---- */

static uint64_t next_random(uint64_t *state) /* splitmix64: any seed is a good one */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static double next_unit(uint64_t *state) /* [0, 1) */
{
    return (double)(next_random(state) >> 11) * 0x1p-53;
}

static void shuffle(uint32_t *experts, uint32_t n, uint64_t *random)
{
    for (uint32_t i = 0; i < n; i++) {
        experts[i] = i;
    }
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = (uint32_t)(next_unit(random) * i);
        uint32_t other = experts[j];
        experts[j] = experts[i - 1];
        experts[i - 1] = other;
    }
}

static void sum_up(double *sums, uint32_t n, double exponent)
{
    double sum = 0;
    for (uint32_t k = 0; k < n; k++) {
        sum += pow(k + 1.0, -exponent);
        sums[k] = sum;
    }
}

/* The first rank whose sum is above `at`. */
static uint32_t find_rank(const double *sums, uint32_t n, double at)
{
    uint32_t low = 0;
    uint32_t high = n - 1;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (sums[mid] > at) {
            high = mid;
        } else {
            low = mid + 1;
        }
    }
    return low;
}

moe_status xs_access_list_zipf(const xs_zipf *z, xs_access_list *out, moe_err *err)
{
    MOE_ASSERT(z->n_experts > 0 && z->n_topics > 0);
    xs_access_list l = {.n_experts = z->n_experts};
    uint64_t random = z->seed;
    double *sums = calloc(z->n_experts, sizeof *sums);
    uint32_t *by_rank = calloc(z->n_experts, sizeof *by_rank);
    moe_status st = MOE_OK;
    if (sums == NULL || by_rank == NULL) {
        st = MOE_FAIL(err, MOE_ERR_NO_MEMORY, "popularity of %u experts", z->n_experts);
        goto out;
    }
    sum_up(sums, z->n_experts, z->exponent);
    uint64_t per_topic = (z->n_uses + z->n_topics - 1) / z->n_topics;
    for (uint64_t i = 0; i < z->n_uses && st == MOE_OK; i++) {
        if (i % per_topic == 0) {
            shuffle(by_rank, z->n_experts, &random);
        }
        double at = next_unit(&random) * sums[z->n_experts - 1];
        const xs_access a = {
            .at_us = (int64_t)i, .expert = by_rank[find_rank(sums, z->n_experts, at)], .n = 1};
        st = xs_access_list_add(&l, &a, err);
    }
    if (st == MOE_OK) {
        *out = l;
        l = (xs_access_list){0};
    }
out:
    xs_access_list_fini(&l);
    free(sums);
    free(by_rank);
    return st;
}
