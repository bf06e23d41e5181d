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
CELLS, ROUNDS = "16", 3  # of 56 experts


def add_predictors(store, scratch):
    predictors = os.path.join(scratch, "predictors.safetensors")
    store.worker("calibrate", "--pairs", FIT, "--held-out", HELD_OUT, "--fetch-policy", "resident",
                 "--out", predictors)
    store.run("expert-pack", "add", store.dir, predictors)
    store.stop()
    store.start()


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


def main():
    bin_dir = os.path.abspath(sys.argv[1])
    out = os.path.abspath(sys.argv[2] if len(sys.argv) > 2 else
                          os.path.join(HERE, "results", "predictors-throughput.json"))
    backend = sys.argv[3] if len(sys.argv) > 3 else "cuda"
    os.chdir(os.path.join(HERE, "..", ".."))
    few = ["--cells", CELLS, "--fetch-policy"]
    with tempfile.TemporaryDirectory(prefix="pregate-throughput-") as scratch:
        with Store(bin_dir, ORDINARY, scratch) as store:
            store.backend = backend
            add_predictors(store, scratch)
            rows = rounds(store, {
                "on demand": [*few, "on-demand"],
                "nobody guesses": [*few, "pregated", "--predict", "none"],
                "next routers guess": [*few, "pregated", "--predict", "router"],
                "calibrated predictors guess": [*few, "pregated", "--predict", "store"],
                "resident": ["--fetch-policy", "resident"]})
    with tempfile.TemporaryDirectory(prefix="pregate-throughput-") as scratch:
        with Store(bin_dir, PREGATED, scratch) as store:
            store.backend = backend
            rows += rounds(store, {
                "pre-gated checkpoint, on demand": [*few, "on-demand"],
                "pre-gated checkpoint": [*few, "pregated"],
                "pre-gated checkpoint, resident": ["--fetch-policy", "resident"]})
    with open(out, "w") as file:
        json.dump(rows, file, indent=1)
        file.write("\n")
    for r in rows:
        print("%-32s %8.3f s  (%s)  hits %d late %d misses %d" % (
            r["way"], r["seconds_p50"], " ".join("%.2f" % s for s in r["seconds_of_all_rounds"]),
            r["cell_hits"], r["cell_late"], r["cell_misses"]))


main()
