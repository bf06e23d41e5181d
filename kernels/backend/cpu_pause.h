/* cpu_pause.h - the hint inside a short spin loop. Threads: no state. */
#ifndef KRN_CPU_PAUSE_H
#define KRN_CPU_PAUSE_H

static inline void krn_cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
