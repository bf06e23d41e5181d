"""Makes results/predictors-throughput.json: how fast a model with real routing answers real text,
one sequence at a time, when nobody guesses, when next routers or calibrated predictors do, and when
it is truly pre-gated. Run it on a machine with a GPU.

    throughput.py BIN_DIR [OUT_FILE] [BACKEND]      BACKEND: cuda unless said

Every round runs every way once, in turns; the medians of the rounds count. Seconds are of the whole
of `gpu-worker eval` (references forced, then greedy): a way's tokens are the same in every round.
"""
import json
import os
import statistics
import sys
import tempfile

from store import Store

HERE = os.path.dirname(os.path.abspath(__file__))
ORDINARY, PREGATED = "tests/golden/restore-base", "deploy/models/restore-pregated"
FIT, HELD_OUT = "tests/accuracy/restore-fit.txt", "tests/accuracy/restore-heldout.tsv"
ROUNDS = 3
FEW = ["--cells", "16", "--fetch-policy"]  # of 56 experts
ORDINARY_WAYS = {"on demand": [*FEW, "on-demand"],
                 "nobody guesses": [*FEW, "pregated", "--predict", "none"],
                 "next routers guess": [*FEW, "pregated", "--predict", "router"],
                 "calibrated predictors guess": [*FEW, "pregated", "--predict", "store"],
                 "resident": ["--fetch-policy", "resident"]}
PREGATED_WAYS = {"pre-gated checkpoint, on demand": [*FEW, "on-demand"],
                 "pre-gated checkpoint": [*FEW, "pregated", "--predict", "none"],
                 "the same, first block guessed": [*FEW, "pregated", "--predict", "store"],
                 "pre-gated checkpoint, resident": ["--fetch-policy", "resident"]}


def rounds(store, ways):
    seconds = {name: [] for name in ways}
    last = {}
    for _ in range(ROUNDS + 1):
        for name, args in ways.items():
            last[name] = json.loads(store.worker("eval", "--pairs", HELD_OUT, "--max-batch", "1",
                                                 "--json", *args))
            seconds[name].append(last[name]["seconds"])
    return [{"way": name, "seconds_p50": statistics.median(seconds[name][1:]),  # the first warms up
             "seconds_of_all_rounds": sorted(seconds[name][1:]), **last[name]} for name in ways]


def measure(bin_dir, model, backend, ways):
    with tempfile.TemporaryDirectory(prefix="pregate-throughput-") as scratch:
        with Store(bin_dir, model, scratch, backend=backend) as store:
            store.calibrate("--pairs", FIT, "--held-out", HELD_OUT, "--fetch-policy", "resident")
            return rounds(store, ways)


def main():
    bin_dir = os.path.abspath(sys.argv[1])
    out = os.path.abspath(sys.argv[2] if len(sys.argv) > 2 else
                          os.path.join(HERE, "results", "predictors-throughput.json"))
    backend = sys.argv[3] if len(sys.argv) > 3 else "cuda"
    os.chdir(os.path.join(HERE, "..", ".."))
    rows = (measure(bin_dir, ORDINARY, backend, ORDINARY_WAYS)
            + measure(bin_dir, PREGATED, backend, PREGATED_WAYS))
    with open(out, "w") as file:
        json.dump(rows, file, indent=1)
        file.write("\n")
    for r in rows:
        print("%-32s %8.3f s  (%s)  hits %d late %d misses %d" % (
            r["way"], r["seconds_p50"], " ".join("%.2f" % s for s in r["seconds_of_all_rounds"]),
            r["cell_hits"], r["cell_late"], r["cell_misses"]))


main()
