/* predictor_file.c - see predictor_file.h. */
#include "gpu-worker/quality/predictor_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/text.h"

enum { DATA_ALIGN = 8, PATH_BYTES = 1024 };

static void header(moe_text *t, const gw_fitted *fitted, uint32_t n, uint32_t n_experts,
                   uint32_t d_model, const char *note)
{
    char name[GW_PREDICTOR_NAME_BYTES];
    uint64_t bytes = sizeof(float) * (uint64_t)n_experts * d_model;
    moe_text_printf(t, "{\"__metadata__\":{\"note\":");
    moe_text_json_string(t, note, strlen(note));
    moe_text_printf(t, "}");
    for (uint32_t i = 0; i < n; i++) {
        gw_predictor_name(&fitted[i].what, name);
        moe_text_printf(
            t, ",\"%s\":{\"dtype\":\"F32\",\"shape\":[%u,%u],\"data_offsets\":[%llu,%llu]}", name,
            n_experts, d_model, (unsigned long long)(i * bytes),
            (unsigned long long)((i + 1) * bytes));
    }
    moe_text_printf(t, "}");
    while (t->len % DATA_ALIGN != 0 && !t->failed) {
        moe_text_append(t, " ", 1);
    }
}

static bool write_all(FILE *f, const moe_text *head, const gw_fitted *fitted, uint32_t n,
                      uint32_t n_experts, uint32_t d_model)
{
    unsigned char length[8];
    moe_store_le64(length, head->len);
    bool ok = fwrite(length, sizeof length, 1, f) == 1 && fwrite(head->data, head->len, 1, f) == 1;
    for (uint32_t i = 0; i < n && ok; i++) {
        size_t n_weights = (size_t)n_experts * d_model;
        ok = fwrite(fitted[i].weight, sizeof(float), n_weights, f) == n_weights;
    }
    return ok && fflush(f) == 0 && fsync(fileno(f)) == 0;
}

moe_status gw_predictor_file_write(const char *path, const gw_fitted *fitted, uint32_t n,
                                   uint32_t n_experts, uint32_t d_model, const char *note,
                                   moe_err *err)
{
    char part[PATH_BYTES];
    if (snprintf(part, sizeof part, "%s.part", path) >= (int)sizeof part) {
        return MOE_FAIL(err, MOE_ERR_INVALID, "path of over %d bytes: %.100s...", PATH_BYTES, path);
    }
    moe_text head;
    moe_text_init(&head);
    header(&head, fitted, n, n_experts, d_model, note);
    moe_status st = moe_text_finish(&head, err);
    FILE *f = NULL;
    if (st == MOE_OK) {
        f = fopen(part, "wb");
        st = f != NULL ? MOE_OK
                       : MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, errno,
                                         "cannot create %.200s", part);
    }
    if (st == MOE_OK) {
        bool ok = write_all(f, &head, fitted, n, n_experts, d_model);
        int code = errno;
        ok = fclose(f) == 0 && ok;
        if (!ok || rename(part, path) != 0) {
            st = MOE_FAIL_NATIVE(err, MOE_ERR_IO, MOE_LAYER_ERRNO, ok ? errno : code,
                                 "cannot write %.200s", path);
            (void)unlink(part);
        }
    }
    moe_text_fini(&head);
    return st;
}
