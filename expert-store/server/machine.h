/* machine.h - what this machine and process have of memory, as Linux says. Threads: any; no state.
 */
#ifndef XS_MACHINE_H
#define XS_MACHINE_H

#include <stdint.h>

/* Unknown: UINT64_MAX, so that it bounds nothing. */
uint64_t xs_total_ram(void);
uint64_t xs_available_ram(void);  /* without swapping, and in this control group */
uint64_t xs_free_shm(void);       /* of /dev/shm */
uint64_t xs_resident_bytes(void); /* of this process; 0 if unknown */

#endif
