#!/usr/bin/env python3
"""table.py - what the runs of table.sh say: means, spread and a plot. Standard library only.

  table.py collect TABLE.jsonl [KEY=VALUE ...] >RESULT.json   usual settings, what is different in each run
  table.py RESULT.json PLOT.svg                               Markdown on standard output, and the plot

A run is called VARIANT-EXPERTS-SEED; the variants of a base are compared with the ordinary one. The
error rate is that of `dev_wide`; cer_narrow, on one piece of every paragraph, is for the record.
"""
import json
import re
import statistics
import sys

KEYS = ("start", "set", "task", "encoder_lookahead", "decoder_lookahead", "routing", "freeze_experts", "distil",
        "steps", "tokens", "rows", "lr", "warmup", "cool", "ema", "weight_decay", "sample", "seed", "workers",
        "device", "parameters")
FIRST = ("ordinary", "both0")  # what others are compared with


def collect(path, notes):
    with open(path) as file:
        rows = [json.loads(line) for line in file]
    usual = {key: statistics.mode(json.dumps(row[key]) for row in rows) for key in KEYS if key in rows[0]}
    lines = []
    for row in sorted(rows, key=lambda row: row["name"]):
        scores = {"seconds": row["train_seconds"], "cer_narrow": row["dev"]["cer"], **row["dev_wide"]}
        other = {key: row[key] for key in usual if json.dumps(row[key]) != usual[key]}
        lines.append(json.dumps({"name": row["name"], **other, **{key: round(value, 5) for key, value in scores.items()}}))
    usual = {**dict(note.split("=", 1) for note in notes), **{key: json.loads(value) for key, value in usual.items()}}
    print(f'{{"unless said otherwise": {json.dumps(usual)},\n "runs": [\n  ' + ",\n  ".join(lines) + "]}")


def groups(runs):
    """{base: {variant: [error rate by seed]}}; the growing of bases is left out."""
    found = {}
    for run in runs:
        name = re.fullmatch(r"(?:(deep|vowels-1000|vowels)-)?(\w+)-(\d+)-\d+", run["name"])
        if name:
            base = f"{name[3]} experts" + (f", {name[1]}" if name[1] else "")
            found.setdefault(base, {}).setdefault(name[2], []).append(run["cer"])
    return {base: dict(sorted(found[base].items(), key=lambda item: (item[0] not in FIRST, item[0])))
            for base in sorted(found, key=lambda base: (base.count(","), len(base), base))}


def spread(values):
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def markdown(found):
    print("| base | variant | seeds | mean | standard deviation | against ordinary | standard error of that |")
    print("|---|---|---|---|---|---|---|")
    for base, variants in found.items():
        first = next(iter(variants.values()))
        for name, values in variants.items():
            apart = statistics.mean(values) - statistics.mean(first)
            error = (spread(values) ** 2 / len(values) + spread(first) ** 2 / len(first)) ** 0.5
            show = lambda x, form: "-" if x != x else format(x, form)
            print(f"| {base} | {name} | {len(values)} | {statistics.mean(values):.4f} | {show(spread(values), '.4f')} | "
                  + ("" if values is first else f"{apart:+.4f}") + " | "
                  + ("" if values is first else show(error, ".4f")) + " |")


def plot(found, path):
    """A dot for every run, a line at the mean; one scale for the bases whose rates are alike."""
    found = {base: variants for base, variants in found.items() if "vowels" not in base}
    rates = [rate for variants in found.values() for values in variants.values() for rate in values]
    low, high = min(rates) - 0.0002, max(rates) + 0.0002
    at = lambda rate: 190 + 500 * (rate - low) / (high - low)
    body, y = [], 20
    for base, variants in found.items():
        body.append(f'<text x="8" y="{y + 4}" font-weight="bold">{base}</text>')
        for name, values in variants.items():
            y += 18
            mean = at(statistics.mean(values))
            body.append(f'<text x="180" y="{y + 4}" text-anchor="end">{name}</text>'
                        f'<path d="M190 {y}H690" stroke="#ddd"/><path d="M{mean:.1f} {y - 7}v14" stroke="#c33" stroke-width="2"/>')
            body += [f'<circle cx="{at(v):.1f}" cy="{y}" r="3.5" fill="#36c" fill-opacity=".7"/>' for v in values]
        y += 26
    step = 0.001
    for tick in range(int(low / step) + 1, int(high / step) + 1):
        x = at(tick * step)
        body.append(f'<path d="M{x:.1f} 8V{y - 12}" stroke="#eee"/><text x="{x:.1f}" y="{y}" text-anchor="middle">{tick * step:.3f}</text>')
    body.append(f'<text x="440" y="{y + 16}" text-anchor="middle">character error rate; a dot is a run, red their mean</text>')
    with open(path, "w") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{y + 26}" font-family="sans-serif" '
                   f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>' + "\n".join(body) + "</svg>\n")


def main():
    if sys.argv[1] == "collect":
        return collect(sys.argv[2], sys.argv[3:])
    with open(sys.argv[1]) as file:
        found = groups(json.load(file)["runs"])
    markdown(found)
    plot(found, sys.argv[2])


if __name__ == "__main__":
    main()
