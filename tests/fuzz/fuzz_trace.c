/* A trace is a file anyone may have written: whatever it holds, reading ends, and what comes out is
 * in order and in range. */
#include "expert-store/replay/access_list.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    xs_trace_header header;
    xs_access_list list = {0};
    if (xs_access_list_read(data, bytes, &header, &list, NULL) != MOE_OK) {
        return 0;
    }
    for (uint64_t i = 0; i < list.n; i++) {
        MOE_ASSERT(list.items[i].expert < header.n_experts && list.items[i].n >= 1);
        MOE_ASSERT(i == 0 || list.items[i - 1].at_us <= list.items[i].at_us);
    }
    xs_access_list_fini(&list);
    return 0;
}
