/* inspect.h - describes a store, for people or as JSON. Threads: no state. */
#ifndef XS_INSPECT_H
#define XS_INSPECT_H

#include "common/status.h"
#include "common/text.h"
#include "expert-store/catalog/catalog.h"

void xs_inspect_text(const xs_catalog *c, moe_text *out);
void xs_inspect_json(const xs_catalog *c, moe_text *out);

#endif
