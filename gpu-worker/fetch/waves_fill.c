/* waves_fill.c - see waves.h: RESIDENT brings all experts into cells before the first step. */
#include "gpu-worker/fetch/waves_internal.h"

static void fill_window(gw_waves *ws, int64_t now_ns)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < ws->fill_n; i++) {
        if (ws->fill[i].state == GW_ENTRY_SEATED) {
            ws->fill[kept++] = ws->fill[i];
        } else {
            gw_entry_release(ws, &ws->fill[i]);
        }
    }
    ws->fill_n = kept;
    while (ws->fill_n < GW_FILL_WINDOW && ws->fill_next < ws->shape->n_experts_total &&
           gw_cell_pool_reserve(ws->cfg.pool)) {
        ws->fill[ws->fill_n++] = (gw_entry){.expert = ws->fill_next++,
                                            .state = GW_ENTRY_SEATED,
                                            .predicted = true,
                                            .since_ns = now_ns};
    }
}

bool gw_waves_fill(gw_waves *ws, int64_t now_ns, moe_status *out_st, moe_err *err)
{
    fill_window(ws, now_ns);
    gw_entries_queue(ws, ws->fill, ws->fill_n, true, now_ns);
    if (ws->fatal.status != MOE_OK) {
        *out_st = gw_waves_health(ws, err);
        return true;
    }
    if (ws->failed_text[0] != '\0') {
        *out_st = MOE_FAIL(err, MOE_ERR_IO, "cannot fill the cells: %.300s", ws->failed_text);
        return true;
    }
    *out_st = MOE_OK;
    return ws->fill_next == ws->shape->n_experts_total && ws->fill_n == 0 &&
           gw_dma_is_idle(ws->cfg.dma);
}
