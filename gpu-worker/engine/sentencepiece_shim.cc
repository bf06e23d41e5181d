// sentencepiece_shim.cc - [libsentencepiece] see sentencepiece_shim.h. The one C++ file.
#include "gpu-worker/engine/sentencepiece_shim.h"

#include <sentencepiece_processor.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

struct gw_spm {
    sentencepiece::SentencePieceProcessor processor;
};

extern "C" int gw_spm_create(const void *model, size_t bytes, gw_spm **out, char *why,
                             size_t why_bytes)
{
    gw_spm *m = nullptr;
    try {
        m = new gw_spm;
        const auto status = m->processor.LoadFromSerializedProto(
            std::string(static_cast<const char *>(model), bytes));
        if (status.ok()) {
            *out = m;
            return 0;
        }
        std::snprintf(why, why_bytes, "%s", status.ToString().c_str());
    } catch (const std::exception &e) {
        std::snprintf(why, why_bytes, "%s", e.what());
    }
    delete m;
    return 1;
}

extern "C" void gw_spm_destroy(gw_spm *m)
{
    delete m;
}

extern "C" uint32_t gw_spm_n_pieces(const gw_spm *m)
{
    return static_cast<uint32_t>(m->processor.GetPieceSize());
}

extern "C" int gw_spm_encode(const gw_spm *m, const char *text, size_t bytes, int32_t **out_ids,
                             size_t *out_n)
{
    try {
        std::vector<int> ids;
        if (!m->processor.Encode({text, bytes}, &ids).ok()) {
            return 1;
        }
        auto *copy = static_cast<int32_t *>(std::malloc((ids.size() + 1) * sizeof(int32_t)));
        if (copy == nullptr) {
            return 1;
        }
        for (size_t i = 0; i < ids.size(); i++) {
            copy[i] = ids[i];
        }
        *out_ids = copy;
        *out_n = ids.size();
        return 0;
    } catch (const std::exception &) {
        return 1;
    }
}

extern "C" int gw_spm_decode(const gw_spm *m, const int32_t *ids, size_t n, char **out_text)
{
    try {
        std::string text;
        if (!m->processor.Decode(std::vector<int>(ids, ids + n), &text).ok()) {
            return 1;
        }
        auto *copy = static_cast<char *>(std::malloc(text.size() + 1));
        if (copy == nullptr) {
            return 1;
        }
        std::memcpy(copy, text.c_str(), text.size() + 1);
        *out_text = copy;
        return 0;
    } catch (const std::exception &) {
        return 1;
    }
}
