/* sampler.c - see sampler.h. */
#include "gpu-worker/engine/sampler.h"

#include <math.h>
#include <stdlib.h>

/* The finaliser of splitmix64: every input bit reaches every output bit. */
static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

double gw_uniform(uint64_t seed, uint32_t position)
{
    uint64_t bits = mix(mix(seed + 0x9e3779b97f4a7c15ull) + 0x9e3779b97f4a7c15ull * position);
    return (double)(bits >> 11) * 0x1.0p-53;
}

static int more_probable_first(const void *a, const void *b)
{
    const gw_candidate *x = a;
    const gw_candidate *y = b;
    if (x->p != y->p) {
        return x->p > y->p ? -1 : 1;
    }
    return x->id < y->id ? -1 : 1;
}

/* scratch[i] = exp((logit - max) / temperature), not normalised; returns their sum. */
static double weigh(const float *logits, uint32_t vocab, float temperature, gw_candidate *scratch)
{
    float max = -INFINITY;
    for (uint32_t i = 0; i < vocab; i++) {
        max = logits[i] > max ? logits[i] : max;
    }
    double sum = 0.0;
    for (uint32_t i = 0; i < vocab; i++) {
        float p = logits[i] == max ? 1.0f : expf((logits[i] - max) / temperature);
        scratch[i] = (gw_candidate){.p = isnan(p) ? 0.0f : p, .id = (int32_t)i};
        sum += (double)scratch[i].p;
    }
    return sum;
}

/* Keeps the nucleus in scratch, most probable first; returns its size, and its mass in *mass.
 * Tokens below (1 - top_p) / vocab of the mass stay below 1 - top_p all together, so none of them
 * is in the nucleus: only the rest is sorted. */
static uint32_t nucleus(gw_candidate *scratch, uint32_t vocab, float top_p, double *mass)
{
    double floor_p = (1.0 - (double)top_p) * *mass / (double)vocab;
    uint32_t n = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        if ((double)scratch[i].p >= floor_p) {
            scratch[n++] = scratch[i];
        }
    }
    qsort(scratch, n, sizeof *scratch, more_probable_first);
    double wanted = (double)top_p * *mass;
    double sum = 0.0;
    uint32_t size = 0;
    while (size < n && sum < wanted) {
        sum += (double)scratch[size++].p;
    }
    *mass = sum;
    return size;
}

int32_t gw_sample(const float *logits, uint32_t vocab, float temperature, float top_p,
                  uint64_t seed, uint32_t position, gw_candidate *scratch)
{
    double mass = weigh(logits, vocab, temperature, scratch);
    uint32_t n = vocab;
    if (top_p < 1.0f) {
        n = nucleus(scratch, vocab, top_p, &mass);
    }
    double target = gw_uniform(seed, position) * mass;
    double sum = 0.0;
    int32_t last = 0; /* what rounding at the far end of the sum falls back to */
    for (uint32_t i = 0; i < n; i++) {
        sum += (double)scratch[i].p;
        if (scratch[i].p > 0.0f) {
            last = scratch[i].id;
        }
        if (sum > target) {
            return scratch[i].id;
        }
    }
    return last;
}
