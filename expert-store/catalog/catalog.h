/* catalog.h - [LMDB] what a store directory contains: expert -> extent, dense tensors, files.
 *
 * NAME.store/
 *   catalog/    one LMDB environment with four named databases (catalog_format.h: byte by byte)
 *     meta      magic, layout version, store UUID, model name, expert dtype, finished flag
 *     experts   key: variant, stack, block, expert (big-endian) -> extent and chunk hashes
 *     tensors   name -> extent, dtype, shape, chunk hashes
 *     files     config.json, spiece.model, tokenizer.json, ... byte for byte
 *   segments/   000000.seg ...: extents without headers, each at a multiple of 4096
 *
 * Threads: a catalogue is const once open: any thread may read it. A writer has one thread.
 * Memory: open copies the whole index and closes the database again, so nothing later can fault or
 * block; pointers handed out are borrowed until the catalogue closes.
 * Shutdown: close frees; a writer closed without finish leaves a resumable, unfinished catalogue.
 */
#ifndef XS_CATALOG_H
#define XS_CATALOG_H

#include <stddef.h>
#include <stdint.h>

#include "common/dtype.h"
#include "common/model_shape.h"
#include "common/status.h"

enum { XS_EXTENT_ALIGN = 4096, XS_MAX_PARTS = 8, XS_NAME_BYTES = 160 };

typedef struct xs_extent {
    uint32_t segment;  /* segments/%06u.seg */
    uint32_t n_chunks; /* moe_n_chunks(payload_bytes) */
    uint64_t off;      /* multiple of XS_EXTENT_ALIGN */
    uint64_t payload_bytes;
    uint64_t padded_bytes;  /* multiple of XS_EXTENT_ALIGN; what a direct read transfers */
    const uint64_t *hashes; /* [n_chunks] XXH3-64, borrowed */
} xs_extent;

typedef struct xs_part { /* one matrix inside an expert's extent */
    uint64_t off;        /* from the extent's start */
    uint32_t dtype;      /* moe_dtype */
    uint32_t rows, cols;
} xs_part;

typedef struct xs_expert_record {
    xs_extent extent;
    uint32_t layer; /* layer number in the checkpoint */
    uint32_t n_parts;
    xs_part parts[XS_MAX_PARTS];
} xs_expert_record;

typedef struct xs_tensor_record {
    char name[XS_NAME_BYTES];
    uint32_t dtype, n_dims, dims[4];
    xs_extent extent;
} xs_tensor_record;

typedef struct xs_catalog_info {
    uint8_t uuid[16];
    char model_name[64];
    moe_model_shape shape; /* parsed from the stored config.json */
    uint32_t expert_dtype; /* moe_dtype */
    uint64_t expert_bytes; /* payload of one expert, the same for all */
    uint64_t slot_bytes;   /* padded_bytes of one expert */
    uint32_t n_segments;
    uint32_t n_tensors, n_files;
    uint64_t dense_bytes; /* sum of tensor payloads */
} xs_catalog_info;

typedef struct xs_catalog xs_catalog; /* opaque */

/* Opens a finished store for reading and loads the whole index into memory. Errors name the path:
 * MOE_ERR_NOT_FOUND, MOE_ERR_FORMAT (not a store; unfinished: says so and names the remedy),
 * MOE_ERR_VERSION, MOE_ERR_CORRUPT (the index does not match its own checksum), MOE_ERR_IO (a
 * segment shorter than an extent that lies in it). */
MOE_MUST_CHECK moe_status xs_catalog_open(const char *store_dir, xs_catalog **out, moe_err *err);
void xs_catalog_close(xs_catalog *c); /* accepts NULL */
const xs_catalog_info *xs_catalog_get_info(const xs_catalog *c);
/* By flat index (common/model_shape.h); never NULL for index < n_experts_total. */
const xs_expert_record *xs_catalog_expert(const xs_catalog *c, uint32_t expert_index);
const xs_tensor_record *xs_catalog_tensor(const xs_catalog *c, uint32_t i); /* i < n_tensors */
/* Files: name and bytes, borrowed. i < n_files */
void xs_catalog_file(const xs_catalog *c, uint32_t i, const char **out_name, const void **out_data,
                     size_t *out_bytes);
/* "<store_dir>/segments/%06u.seg" */
void xs_segment_path(const char *store_dir, uint32_t segment, char *out, size_t out_bytes);
void xs_catalog_segment_path(const xs_catalog *c, uint32_t segment, char *out, size_t out_bytes);

/* ---- writing (expert-pack only) ---- */
typedef struct xs_catalog_writer xs_catalog_writer;
/* dir is the working directory "NAME.store.partial"; creates or reopens (resume) its catalogue. */
MOE_MUST_CHECK moe_status xs_catalog_writer_open(const char *dir, xs_catalog_writer **out,
                                                 moe_err *err);
void xs_catalog_writer_close(xs_catalog_writer *w); /* without finish: stays unfinished */
MOE_MUST_CHECK moe_status xs_catalog_put_expert(xs_catalog_writer *w, moe_stack stack,
                                                uint32_t block, uint32_t expert,
                                                const xs_expert_record *rec, moe_err *err);
MOE_MUST_CHECK moe_status xs_catalog_put_tensor(xs_catalog_writer *w, const xs_tensor_record *rec,
                                                moe_err *err);
MOE_MUST_CHECK moe_status xs_catalog_put_file(xs_catalog_writer *w, const char *name,
                                              const void *data, size_t bytes, moe_err *err);
/* Resume: what an earlier run committed. Items are packed in one fixed order (experts by flat
 * index, then tensors), so the counts say where to go on. */
typedef struct xs_catalog_progress {
    uint32_t n_experts, n_tensors;
} xs_catalog_progress;
void xs_catalog_writer_progress(const xs_catalog_writer *w, xs_catalog_progress *out);
/* What is being packed, as text of the packer's choosing: a later run compares it before it
 * resumes. get: borrowed until close, "" when never set. set: stored by the next commit. */
const char *xs_catalog_writer_job(const xs_catalog_writer *w);
MOE_MUST_CHECK moe_status xs_catalog_writer_set_job(xs_catalog_writer *w, const char *job,
                                                    moe_err *err);
/* A copy of a finished catalogue becomes another packing (pack/add.h): it gets a new UUID, and
 * tensors whose names begin with prefix leave it. */
MOE_MUST_CHECK moe_status xs_catalog_amend(xs_catalog_writer *w, const char *prefix,
                                           uint32_t *out_n_dropped, moe_err *err);
/* Commits what was put so far (a resumable point), after the caller fsynced the segments. */
MOE_MUST_CHECK moe_status xs_catalog_writer_commit(xs_catalog_writer *w, moe_err *err);
/* Marks the catalogue finished and commits: it becomes readable. */
MOE_MUST_CHECK moe_status xs_catalog_writer_finish(xs_catalog_writer *w, const char *model_name,
                                                   uint32_t expert_dtype, moe_err *err);

#endif
