/* make_checkpoint MODEL DIR [SHARDS]: writes the bf16 checkpoint of a synthetic model (seed 1), for
 * benchmarks that need a large one without a download. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/checkpoint_writer.h"

int main(int argc, char **argv)
{
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: make_checkpoint MODEL DIR [SHARDS]\n");
        return 2;
    }
    ck c;
    ck_init(&c, argv[1], MOE_BF16, 1);
    unsigned long shards = argc == 4 ? strtoul(argv[3], NULL, 10) : 1;
    if (shards > 1 && shards < 1000) {
        ck_split(&c, (uint32_t)shards);
    }
    ck_write(&c, argv[2]);
    ck_fini(&c);
    return 0;
}
