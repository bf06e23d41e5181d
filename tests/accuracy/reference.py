#!/usr/bin/env python3
"""reference.py - what PyTorch gets where `gpu-worker eval` is run: f32 on the CPU, switch.py.

    reference.py MODEL_DIR... >results/eval-pytorch.json        (from tests/accuracy)

Pairs: restore-heldout.tsv. Loss: each reference forced, mean -ln p of its tokens, end token included;
exact match and character error rate: of greedy answers (gpu-worker/quality/eval.h). Of each checkpoint
its config.json and weights are told by their SHA-256, so that test_eval.py notices a file left behind
by a new checkpoint. Needs torch, safetensors and sentencepiece; test_eval.py needs only what this prints.
"""
import datetime
import json
import pathlib
import sys

import sentencepiece
import torch
from torch.nn import functional as F

import metrics
import store
import switch
import train

HERE = pathlib.Path(__file__).parent
PAIRS = HERE / "restore-heldout.tsv"
BATCH = 32
MAX_OUTPUT_TOKENS = 256  # gpu-worker's default


@torch.no_grad()
def forced_logprobs(model, ids, target):
    """[batch, n]: of padding 0."""
    decoder_ids = F.pad(target, (1, 0))[:, :-1]
    logits, _ = model(ids, (ids > 0).long(), decoder_ids, (target > 0).long())
    logprobs = logits.double().log_softmax(-1).gather(2, target[..., None])[..., 0]
    return logprobs.masked_fill(target == 0, 0)


def reference(path, pairs):
    model = switch.from_checkpoint(path).eval()
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{path}/spiece.model")
    end = model.cfg["eos_token_id"]
    encoded = [[pieces.encode(text) + [end] for text in pair] for pair in pairs]
    logprob = 0.0
    for at in range(0, len(pairs), BATCH):
        ids, target = (train.padded(rows, max(map(len, rows))) for rows in zip(*encoded[at:at + BATCH]))
        logprob += forced_logprobs(model, ids, target).sum().item()
    answers = train.answer(model, [text for text, _ in pairs], pieces, "cpu", MAX_OUTPUT_TOKENS)
    n_tokens = sum(len(target) for _, target in encoded)
    scores = metrics.score(list(zip(answers, (r for _, r in pairs))))
    return {"model": pathlib.Path(path).name, "sha256": store.checkpoint_hash(path),
            "n_pairs": len(pairs), "n_tokens": n_tokens, "loss": round(-logprob / n_tokens, 9),
            "exact_match": round(scores["exact_match"], 6),
            "character_error_rate": round(scores["character_error_rate"], 6)}


def main():
    torch.set_num_threads(1)  # products this small are far slower when threads wait for a busy core
    lines = [line for line in PAIRS.read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split("\t") for line in lines]
    versions = f"torch {torch.__version__}, sentencepiece {sentencepiece.__version__}, python {sys.version.split()[0]}"
    models = [reference(path, pairs) for path in sys.argv[1:]]
    print(json.dumps({"command": "reference.py " + " ".join(sys.argv[1:]), "versions": versions,
                      "date": str(datetime.date.today()), "arithmetic": "f32, cpu", "pairs": PAIRS.name,
                      "models": models}, indent=1))


if __name__ == "__main__":
    main()
