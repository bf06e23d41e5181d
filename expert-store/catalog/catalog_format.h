/* catalog_format.h - the catalogue's keys and records, byte by byte. Used by catalog.c and
 * catalog_writer.c only.
 *
 * One LMDB environment with four named databases. All integers are little-endian, except those in
 * the key of an expert, which are big-endian so that LMDB's byte order is the order of experts.
 *
 * meta     key "meta" -> xs_meta_record; key "job" -> text, what is being packed (resume only)
 * experts  xs_expert_key -> xs_expert_head, xs_part_entry [n_parts], XXH3-64 [n_chunks]
 * tensors  name (no NUL) -> xs_tensor_head, XXH3-64 [n_chunks]
 * files    name (no NUL) -> the bytes
 *
 * Beside the environment, catalog/data.xxh3 holds the XXH3-64 of the finished data.mdb (16 hex
 * digits and a newline): LMDB trusts its pages, so a reader checks them all before LMDB sees any. A
 * store without it is unfinished.
 *
 * A change that an older reader would misread raises XS_LAYOUT_VERSION. More forms of an expert
 * (quantised) are further variants of the key, which this reader skips.
 */
#ifndef XS_CATALOG_FORMAT_H
#define XS_CATALOG_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#define XS_MAGIC "PGSTORE1"
#define XS_META_KEY "meta"
#define XS_JOB_KEY "job"
#define XS_DATA_FILE "data.mdb"
#define XS_HASH_FILE "data.xxh3"
enum { XS_LAYOUT_VERSION = 1, XS_STATE_UNFINISHED = 0, XS_STATE_FINISHED = 1 };

/* Key of an expert.  offset  size  field    meaning (big-endian)
 *                         0     4  variant  0: as packed
 *                         4     4  stack    moe_stack
 *                         8     4  block    MoE block of the stack, from 0
 *                        12     4  expert   in the block                                     */
typedef struct xs_expert_key {
    uint32_t variant_be, stack_be, block_be, expert_be;
} xs_expert_key;
_Static_assert(sizeof(xs_expert_key) == 16, "table above");

/* Meta record.  offset  size  field         meaning
 *                    0     8  magic         "PGSTORE1"
 *                    8     4  version       XS_LAYOUT_VERSION
 *                   12     4  state         XS_STATE_*; FINISHED is the last thing written
 *                   16    16  uuid          of this packing
 *                   32    64  model_name    NUL-padded
 *                   96     4  expert_dtype  moe_dtype
 *                  100     4  n_segments    segments/000000.seg to n_segments - 1
 *                  104     4  n_experts     entries of `experts` with variant 0
 *                  108     4  n_tensors     entries of `tensors`
 *                  112     4  n_files       entries of `files`
 *                  116     4  reserved      0                                                  */
typedef struct xs_meta_record {
    char magic[8];
    uint32_t version, state;
    uint8_t uuid[16];
    char model_name[64];
    uint32_t expert_dtype, n_segments, n_experts, n_tensors, n_files, reserved;
} xs_meta_record;
_Static_assert(offsetof(xs_meta_record, uuid) == 16, "table above");
_Static_assert(offsetof(xs_meta_record, model_name) == 32, "table above");
_Static_assert(offsetof(xs_meta_record, expert_dtype) == 96, "table above");
_Static_assert(sizeof(xs_meta_record) == 120, "table above");

/* Where bytes lie.  offset  size  field          meaning
 *                        0     4  segment
 *                        4     4  n_chunks       hashes at the record's end
 *                        8     8  off            in the segment, multiple of 4096
 *                       16     8  payload_bytes
 *                       24     8  padded_bytes   multiple of 4096, the rest is zeros           */
typedef struct xs_extent_entry {
    uint32_t segment, n_chunks;
    uint64_t off, payload_bytes, padded_bytes;
} xs_extent_entry;
_Static_assert(offsetof(xs_extent_entry, off) == 8, "table above");
_Static_assert(sizeof(xs_extent_entry) == 32, "table above");

/* Expert record.  offset  size  field    meaning
 *                      0    32  extent
 *                     32     4  layer    number in the checkpoint
 *                     36     4  n_parts  1 to XS_MAX_PARTS                                     */
typedef struct xs_expert_head {
    xs_extent_entry extent;
    uint32_t layer, n_parts;
} xs_expert_head;
_Static_assert(offsetof(xs_expert_head, layer) == 32, "table above");
_Static_assert(sizeof(xs_expert_head) == 40, "table above");

/* One matrix.  offset  size  field  meaning
 *                   0     8  off    from the extent's start
 *                   8     4  dtype  moe_dtype
 *                  12     4  rows
 *                  16     4  cols
 *                  20     4  reserved  0                                                        */
typedef struct xs_part_entry {
    uint64_t off;
    uint32_t dtype, rows, cols, reserved;
} xs_part_entry;
_Static_assert(offsetof(xs_part_entry, rows) == 12, "table above");
_Static_assert(sizeof(xs_part_entry) == 24, "table above");

/* Tensor record.  offset  size  field    meaning
 *                      0    32  extent
 *                     32     4  dtype    moe_dtype
 *                     36     4  n_dims   1 to 4
 *                     40    16  dims     unused ones are 1                                      */
typedef struct xs_tensor_head {
    xs_extent_entry extent;
    uint32_t dtype, n_dims, dims[4];
} xs_tensor_head;
_Static_assert(offsetof(xs_tensor_head, dims) == 40, "table above");
_Static_assert(sizeof(xs_tensor_head) == 56, "table above");

#endif
