"""`gpu-worker eval` against the golden answers of both demo models: the texts come from golden.json,
the scores of its output_text from metrics.py, and both must agree, under two fetch policies.

    test_eval.py BIN_DIR MODEL_DIR...
"""
import json
import os
import subprocess
import sys
import tempfile

import metrics
from store import Store


def flat(result, prefix=""):
    out = {}
    for key, value in result.items():
        if isinstance(value, dict):
            out.update(flat(value, prefix + key + "."))
        else:
            out[prefix + key] = value
    return out


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
    print(f"{os.path.basename(os.path.normpath(model))}: {len(cases)} pairs, {n_tokens} tokens, "
          f"loss {losses[0]:.4f}, error rate {expected['character_error_rate']:.4f}")


if __name__ == "__main__":
    for directory in sys.argv[2:]:
        check(sys.argv[1], directory)
