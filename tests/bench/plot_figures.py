#!/usr/bin/env python3
"""Draws the paper's evaluation figures (Pre-gated MoE, Figures 10-12, 14, 15, 16) from rows of
`gpu-worker bench`.

   plot_figures.py OUT_DIR ROWS.jsonl[.gz]|DIR ...

Figure 10  block latency, relative to resident      Figure 14  block latency by active experts
Figure 11  tokens per second, with the link floor    Figure 15  tokens per second by cached share
Figure 12  peak device memory                        Figure 16  the same with experts on the drive
A figure without rows is left out and named. One picture per machine and dtype; nothing is drawn that
was not measured, except the link floor, which is computed from the same row.
Needs matplotlib (pip install matplotlib).
"""
import collections
import glob
import gzip
import json
import os
import sys

POLICIES = ["resident", "pregated", "on-demand", "prefetch-all"]
COLOURS = {"resident": "#4c4c4c", "pregated": "#1f77b4", "on-demand": "#ff7f0e",
           "prefetch-all": "#d62728"}


def load(paths):
    rows = []
    for path in paths:
        files = sorted(glob.glob(os.path.join(path, "*.jsonl*"))) if os.path.isdir(path) else [path]
        for name in files:
            with (gzip.open if name.endswith(".gz") else open)(name, "rt") as f:
                rows += [json.loads(line) for line in f if line.strip()]
    return rows


def model_order(model):
    """switch-base-8 before switch-base-128 before switch-large-128."""
    parts = model.replace("-pregated", "").split("-")
    return [p.zfill(6) if p.isdigit() else p for p in parts]


def short(model):
    return model.replace("switch-", "").replace("-pregated", "")


def active_experts(row):
    kind, _, k = row["routing"].partition(":")
    return int(k) if kind == "forced" else None


def latest(rows, *keys):
    """{key values: row}; the last of equal ones."""
    return {tuple(r[k] for k in keys): r for r in rows}


def bars(ax, rows, value, label):
    """Groups of bars: models, and in each the policies."""
    table = latest(rows, "model", "policy")
    models = sorted({m for m, _ in table}, key=model_order)
    present = [p for p in POLICIES if any((m, p) in table for m in models)]
    width = 0.8 / len(present)
    for i, policy in enumerate(present):
        at = [k for k, m in enumerate(models)
              if (m, policy) in table and value(table, m, policy) is not None]
        heights = [value(table, models[k], policy) for k in at]
        ax.bar([k + (i - (len(present) - 1) / 2) * width for k in at], heights, width,
               label=policy, color=COLOURS[policy])
    ax.set_xticks(range(len(models)), [short(m) for m in models])
    ax.set_ylabel(label)
    return models, table


def lines(ax, series, label_x, label_y):
    for name, points in sorted(series.items()):
        points.sort()
        ax.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    ax.set_xlabel(label_x)
    ax.set_ylabel(label_y)


def main_rows(rows):
    return [r for r in rows if r["batch"] == 1 and r["tier"] == "ram" and
            r["bench"] not in ("active", "cache", "drive", "trace") and active_experts(r) is None]


def figure_10(ax, rows):
    rows = [r for r in main_rows(rows) if r["block_ms_p50"]]

    def relative(table, model, policy):
        ours, resident = table[model, policy], table.get((model, "resident"))
        return ours["block_ms_p50"] / resident["block_ms_p50"] if resident else None

    if not any(r["policy"] == "resident" for r in rows):
        return False
    bars(ax, rows, relative, "block latency / resident")
    ax.set_yscale("log")
    ax.axhline(1, color="black", linewidth=0.5)
    return True


def figure_11(ax, rows):
    rows = main_rows(rows)
    if not rows:
        return False
    models, table = bars(ax, rows, lambda t, m, p: t[m, p]["tokens_per_s"], "tokens per second")
    for k, model in enumerate(models):
        row = table.get((model, "pregated"))
        if row and row["link_floor_ms"] > 0:
            floor = 1e3 / row["link_floor_ms"]
            ax.plot([k - 0.4, k + 0.4], [floor, floor], color="black", linestyle=":",
                    label="link floor of pregated" if k == 0 else None)
    return True


def figure_12(ax, rows):
    rows = main_rows(rows)
    if not rows:
        return False
    bars(ax, rows, lambda t, m, p: t[m, p]["device_bytes_peak"] / 1e9, "peak device memory, GB")
    return True


def figure_14(ax, rows):
    series = collections.defaultdict(list)
    for r in rows:
        k = active_experts(r)
        if k is not None and r["block_ms_p50"]:
            series[f"{short(r['model'])} {r['policy']}"].append((k, r["block_ms_p50"]))
    lines(ax, series, "active experts of a block", "block latency, ms")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    return bool(series)


def cached(rows, bench):
    series = collections.defaultdict(list)
    for r in rows:
        if r["bench"] == bench and r["policy"] != "resident":
            name = f"{short(r['model'])} {r['policy']} {r['cell_policy']}"
            series[name].append((100 * r["cells_share"], r["tokens_per_s"]))
    return series


def figure_15(ax, rows):
    series = cached(rows, "cache")
    lines(ax, series, "cells, % of all experts", "tokens per second")
    return bool(series)


def figure_16(ax, rows):
    series = cached([r for r in rows if r["tier"] == "drive"], "drive")
    lines(ax, series, "cells, % of all experts", "tokens per second, experts on the drive")
    return bool(series)


FIGURES = {"figure10": figure_10, "figure11": figure_11, "figure12": figure_12,
           "figure14": figure_14, "figure15": figure_15, "figure16": figure_16}


def draw(plt, out_dir, title, suffix, rows):
    drawn = []
    for name, figure in FIGURES.items():
        fig, ax = plt.subplots(figsize=(7, 4))
        if figure(ax, rows):
            ax.set_title(f"{name.replace('figure', 'Figure ')}: {title}", fontsize=9)
            ax.legend(fontsize=8)
            ax.grid(axis="y", alpha=0.3)
            fig.tight_layout()
            fig.savefig(os.path.join(out_dir, f"{name}{suffix}.svg"))
            drawn.append(name)
        plt.close(fig)
    return drawn


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        import matplotlib
        matplotlib.use("Agg")
        matplotlib.rcParams["svg.hashsalt"] = "pregate"  # equal rows, equal files
        import matplotlib.pyplot as plt
    except ImportError:
        print("plot_figures: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        sys.exit(77)
    out_dir, rows = sys.argv[1], load(sys.argv[2:])
    os.makedirs(out_dir, exist_ok=True)
    groups = collections.defaultdict(list)
    for r in rows:
        groups[r["machine"], r["dtype"]].append(r)
    for i, ((machine, dtype), group) in enumerate(sorted(groups.items())):
        suffix = "" if len(groups) == 1 else f"-{i + 1}"
        drawn = draw(plt, out_dir, f"{machine}, {dtype}", suffix, group)
        missing = [f for f in FIGURES if f not in drawn]
        print(f"{machine}, {dtype}: {' '.join(drawn) or 'nothing'} drawn" +
              (f"; no rows for {' '.join(missing)}" if missing else ""))
    if not rows:
        sys.exit("plot_figures: no rows")


if __name__ == "__main__":
    main()
