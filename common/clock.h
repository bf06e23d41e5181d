/* clock.h - monotonic time and deadlines, in int64_t nanoseconds.
 * Tests may install a fake clock; then moe_now_ns() returns what they set and moe_sleep_ns() only
 * advances it. Threads: any. */
#ifndef MOE_COMMON_CLOCK_H
#define MOE_COMMON_CLOCK_H

#include <stdint.h>

#define MOE_NS_PER_US 1000LL
#define MOE_NS_PER_MS 1000000LL
#define MOE_NS_PER_S 1000000000LL

int64_t moe_now_ns(void);
void moe_sleep_ns(int64_t ns); /* resumes after EINTR until the time is up */
/* now_ns >= 0 freezes the clock at now_ns; -1 returns to the real one. Tests only. */
void moe_clock_fake(int64_t now_ns);

#endif
