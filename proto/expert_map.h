/* expert_map.h - one character per expert, for pictures of a store: where it is, and how warm.
 *
 * A STATS with flag WIRE_STATS_MAPS is answered with samples of WIRE_MAP_METRIC, whose labels are
 * block="dec0", from="48" (the first expert's number within its block) and map="aB+3...", up to
 * WIRE_MAP_EXPERTS characters:
 *   a..j  on the drive        +    being read
 *   A..J  in a slot           0..9 in a slot that a worker is reading now
 * a, A and 0 mean heat 0, j, J and 9 heat 9. Heat h: used 2^h - 1 to 2^(h+1) - 2 times lately, what
 * is long ago counting less; 9 also more. "Lately" is the store's own memory of uses
 * (expert-store/policy/popularity.h).
 * Threads: no state.
 */
#ifndef WIRE_PROTO_EXPERT_MAP_H
#define WIRE_PROTO_EXPERT_MAP_H

#include <stdbool.h>
#include <stdint.h>

#define WIRE_MAP_METRIC "pregate_store_expert_map"
enum { WIRE_MAP_EXPERTS = 48, WIRE_MAP_MAX_HEAT = 9 };

typedef enum wire_map_place {
    WIRE_MAP_DRIVE = 0,
    WIRE_MAP_LOADING,
    WIRE_MAP_SLOT,
    WIRE_MAP_LEASED
} wire_map_place;

static inline uint32_t wire_map_heat(uint64_t uses)
{
    uint32_t heat = 0;
    while (heat < WIRE_MAP_MAX_HEAT && uses + 1 >= 2ull << heat) {
        heat++;
    }
    return heat;
}

static inline char wire_map_char(wire_map_place place, uint32_t heat)
{
    static const char first[] = {'a', '+', 'A', '0'};
    return (char)(first[place] + (place == WIRE_MAP_LOADING ? 0 : (char)heat));
}

/* False: no such character. */
static inline bool wire_map_read(char c, wire_map_place *out_place, uint32_t *out_heat)
{
    wire_map_place place = c == '+'               ? WIRE_MAP_LOADING
                           : c >= 'a' && c <= 'j' ? WIRE_MAP_DRIVE
                           : c >= 'A' && c <= 'J' ? WIRE_MAP_SLOT
                                                  : WIRE_MAP_LEASED;
    if (place == WIRE_MAP_LEASED && (c < '0' || c > '9')) {
        return false;
    }
    *out_place = place;
    *out_heat = (uint32_t)(c - wire_map_char(place, 0));
    return true;
}

#endif
