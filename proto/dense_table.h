/* dense_table.h - the dense region: weights that every worker keeps, and the checkpoint's files.
 *
 * Loaded by the store before its first WELCOME, read-only for workers.
 *
 * offset  size  field
 *      0     8  magic "PGDENSE1", written last
 *      8    16  store_uuid
 *     24     4  n_entries
 *     28     4  reserved
 *     32   ...  entries [n_entries] moe_dense_entry
 *   then payloads, each at a multiple of 256 bytes
 */
#ifndef WIRE_PROTO_DENSE_TABLE_H
#define WIRE_PROTO_DENSE_TABLE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define MOE_DENSE_MAGIC "PGDENSE1"
enum { MOE_DENSE_ENTRIES_OFF = 32, MOE_DENSE_ALIGN = 256, MOE_DENSE_NAME_BYTES = 160 };

typedef enum moe_dense_kind { MOE_DENSE_TENSOR = 1, MOE_DENSE_FILE = 2 } moe_dense_kind;

typedef struct moe_dense_entry {
    char name[MOE_DENSE_NAME_BYTES]; /* tensor name as in the checkpoint, or file name */
    uint32_t kind;                   /* moe_dense_kind */
    uint32_t dtype;                  /* moe_dtype; 0 for files */
    uint32_t n_dims;
    uint32_t dims[4];
    uint32_t reserved;
    uint64_t off, bytes;
} moe_dense_entry;

typedef struct moe_dense_header {
    _Atomic uint64_t magic;
    uint8_t store_uuid[16];
    uint32_t n_entries;
    uint32_t reserved;
} moe_dense_header;

_Static_assert(sizeof(moe_dense_header) == MOE_DENSE_ENTRIES_OFF, "table above");
_Static_assert(sizeof(moe_dense_entry) == 208, "no holes");

#endif
