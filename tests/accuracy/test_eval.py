"""`gpu-worker eval` against the golden answers of both demo models: the texts come from golden.json,
the scores of its output_text from metrics.py, and both must agree, under two fetch policies. And against
PyTorch on restore-heldout.tsv: results/eval-pytorch.json, which reference.py makes.

    test_eval.py BIN_DIR MODEL_DIR...
"""
import json
import os
import subprocess
import sys
import tempfile

import metrics
from store import Store, checkpoint_hash

HERE = os.path.dirname(os.path.abspath(__file__))
LOSS_TOLERANCE = 1e-5  # relative; f32 sums in another order; --json has six digits


def flat(result, prefix=""):
    out = {}
    for key, value in result.items():
        if isinstance(value, dict):
            out.update(flat(value, prefix + key + "."))
        else:
            out[prefix + key] = value
    return out


def check_pytorch(store, model):
    with open(os.path.join(HERE, "results", "eval-pytorch.json")) as file:
        reference = json.load(file)
    digest = checkpoint_hash(model)
    wanted = [m for m in reference["models"] if m["sha256"] == digest]
    assert wanted, f"{model} is not in eval-pytorch.json: run reference.py again"
    wanted = wanted[0]
    got = json.loads(store.worker("eval", "--pairs", os.path.join(HERE, reference["pairs"]), "--json"))
    for key in ("n_pairs", "n_tokens", "exact_match", "character_error_rate"):
        assert got[key] == wanted[key], (model, key, got[key], wanted[key])
    assert abs(got["loss"] / wanted["loss"] - 1) < LOSS_TOLERANCE, (model, got["loss"], wanted["loss"])
    return got["loss"], wanted["loss"]


def check(bin_dir, model):
    with open(os.path.join(model, "golden.json")) as file:
        cases = json.load(file)
    expected = metrics.score([(c["output_text"], c["reference"]) for c in cases])
    expected["inputs"] = metrics.score([(c["text"], c["reference"]) for c in cases])
    expected = flat(expected)
    n_tokens = None
    with tempfile.TemporaryDirectory(prefix="pregate-eval-") as scratch:
        pairs = os.path.join(scratch, "pairs.tsv")
        with open(pairs, "w") as file:
            file.write("# the goldens\n")
            file.writelines(f"{c['text']}\t{c['reference']}\n" for c in cases)
        with Store(bin_dir, model, scratch) as store:
            losses = []
            for policy in ("resident", "pregated"):
                got = json.loads(store.worker("eval", "--pairs", pairs, "--json", "--fetch-policy",
                                              policy, "--max-output-tokens", "96"))
                assert got["n_pairs"] == len(cases) and got["n_skipped"] == 0, got
                assert got["fetch_policy"] == policy and got["backend"] == "cpu", got
                figures = flat({k: got[k] for k in got if k in (
                    "exact_match", "character_error_rate", "punctuation", "capitals", "inputs")})
                assert set(figures) == set(expected), (figures, expected)
                for key, value in expected.items():
                    assert abs(figures[key] - value) < 1e-6, (model, key, figures[key], value)
                losses.append(got["loss"])
                n_tokens = got["n_tokens"]
            assert losses[0] == losses[1] and 0.05 < losses[0] < 2, losses
            few = json.loads(store.worker("eval", "--pairs", pairs, "--json", "--limit", "3",
                                          "--max-input-tokens", "40"))
            assert few["n_pairs"] == 2 and few["n_skipped"] == 1, few  # the second has 77 tokens
            pytorch = check_pytorch(store, model)
    print(f"{os.path.basename(os.path.normpath(model))}: {len(cases)} pairs, {n_tokens} tokens, "
          f"loss {losses[0]:.4f}, error rate {expected['character_error_rate']:.4f}; "
          f"held out: loss {pytorch[0]:.6f}, PyTorch {pytorch[1]:.6f}")


if __name__ == "__main__":
    for directory in sys.argv[2:]:
        check(sys.argv[1], directory)
