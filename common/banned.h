/* banned.h - calls that are too easy to get wrong become compile errors. Force-included into every
 * C file of ours (pregate_flags). Use snprintf or memcpy for strings, strtoull-style checked
 * parsing (common/config.h) for numbers, strcspn for splitting and a seeded generator for random
 * numbers.
 *
 * The headers that declare these names come first: a poisoned name may not even be declared later.
 */
#ifndef MOE_COMMON_BANNED_H
#define MOE_COMMON_BANNED_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#pragma GCC poison strcpy strcat sprintf vsprintf gets atoi atol strtok rand

#endif
