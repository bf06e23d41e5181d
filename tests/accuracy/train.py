#!/usr/bin/env python3
"""train.py - trains an ordinary Switch Transformer, and fine-tunes one into a pre-gated one.

  python3 tests/accuracy/train.py base  --config DIR --text TRAIN.txt --dev DEV.txt --out DIR
  python3 tests/accuracy/train.py tune  --from DIR --encoder-lookahead 1 --decoder-lookahead 1 ... --out DIR

Task: restore case, punctuation and a few typos of English stripped to [a-z0-9' ]. Any text file of
one paragraph a line serves; --dev is never trained on. `tune` follows Pre-gated MoE, Sec. IV-B: take
pretrained weights, rewire the gates (switch.rewire), train on the task at a constant learning rate;
with lookahead 0 it is the ordinary model with the same extra budget, the fair comparison.
`--freeze-experts --distil 1.0` trains gates only, against the ordinary model's choices.

Needs torch (a GPU for anything real), safetensors, sentencepiece. Prints one JSON line: settings,
seed, loss, and on held-out text exact match and character error rate; --result appends it to a file.
"""
import argparse
import json
import pathlib
import random
import re
import time

import sentencepiece
import torch
from torch.nn import functional as F

import metrics
import switch

MAX_TOKENS = 96


def strip(text):
    return " ".join(re.sub(r"[^a-z0-9' ]+", " ", text.lower()).split())


def typo(word, rng):
    at = rng.randrange(len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:at] + word[at + 1:]
    if kind == 1:
        return word[:at] + word[at + 1] + word[at] + word[at + 2:]
    return word[:at + 1] + word[at:]


def make_pair(paragraph, rng, typo_rate=0.02):
    """A run of 5 to 60 words: (what is left of it, itself)."""
    words = paragraph.split()
    n = rng.randint(5, 60)
    at = rng.randrange(max(1, len(words) - n))
    reference = " ".join(words[at:at + n])
    source = [typo(w, rng) if len(w) > 3 and rng.random() < typo_rate else w for w in strip(reference).split()]
    return " ".join(source), reference


class Pairs:
    """Endless batches of similar length: a pool is sorted and cut by padded tokens, then shuffled."""

    def __init__(self, path, pieces, tokens_per_batch, seed):
        self.paragraphs = [p for p in pathlib.Path(path).read_text().splitlines() if len(p.split()) > 5]
        self.pieces, self.budget, self.rng = pieces, tokens_per_batch, random.Random(seed)

    def encode(self, text):
        return self.pieces.encode(text)[:MAX_TOKENS - 1] + [1]

    def batches(self):
        while True:
            pool = [make_pair(self.rng.choice(self.paragraphs), self.rng) for _ in range(8192)]
            pool = sorted(((self.encode(a), self.encode(b)) for a, b in pool), key=lambda p: max(map(len, p)))
            cut, batch = [], []
            for pair in pool:
                if batch and max(map(len, pair)) * (len(batch) + 1) > self.budget:
                    cut.append(batch)
                    batch = []
                batch.append(pair)
            self.rng.shuffle(cut)
            yield from cut


def pad(rows, device):
    width = max(map(len, rows))
    ids = torch.tensor([r + [0] * (width - len(r)) for r in rows], device=device)
    keep = torch.arange(width, device=device)[None] < torch.tensor([len(r) for r in rows], device=device)[:, None]
    return ids, keep


def loss_of(model, batch, device, teacher=None, distil=0.0):
    ids, keep = pad([a for a, _ in batch], device)
    target, target_keep = pad([b for _, b in batch], device)
    decoder_ids = F.pad(target, (1, 0))[:, :-1] * target_keep
    logits, aux = model(ids, keep, decoder_ids, target_keep)
    loss = F.cross_entropy(logits[target_keep].float(), target[target_keep])
    total = loss + 0.01 * aux
    if teacher is not None and distil > 0:
        with torch.no_grad():
            wanted, _ = teacher(ids, keep, decoder_ids, target_keep)
        total = total + distil * F.kl_div(logits[target_keep].float().log_softmax(-1),
                                          wanted[target_keep].float().log_softmax(-1),
                                          log_target=True, reduction="batchmean")
    return total, loss


@torch.no_grad()
def evaluate(model, path, pieces, device, limit):
    model.eval()
    rng = random.Random(0)
    pairs = [make_pair(p, rng) for p in pathlib.Path(path).read_text().splitlines() if len(p.split()) > 5][:limit]
    answers = []
    for at in range(0, len(pairs), 64):
        ids, keep = pad([pieces.encode(a)[:MAX_TOKENS - 1] + [1] for a, _ in pairs[at:at + 64]], device)
        for row in model.greedy(ids, keep, MAX_TOKENS).tolist():
            answers.append(pieces.decode([t for t in (row[:row.index(1)] if 1 in row else row) if t > 1]))
    references = [r for _, r in pairs]
    return {"pairs": len(pairs), "exact": sum(a == r for a, r in zip(answers, references)) / len(pairs),
            "cer": metrics.character_error_rate(answers, references)}


def train(model, args, pieces, device, teacher):
    parameters = [p for name, p in model.named_parameters() if not args.freeze_experts or "gate" in name or "router" in name]
    optimiser = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    batches = Pairs(args.text, pieces, args.tokens, args.seed).batches()
    begin, mean = time.time(), None
    model.train()
    for step in range(args.steps):
        warm = min(1.0, (step + 1) / max(1, args.warmup))
        cool = 1.0 if args.command == "tune" else min(1.0, (args.steps - step) / (0.3 * args.steps))
        optimiser.param_groups[0]["lr"] = args.lr * warm * cool
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            total, loss = loss_of(model, next(batches), device, teacher, args.distil)
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step % args.report == 0 or step == args.steps - 1:
            mean = loss.item()
            print(f"step {step} loss {mean:.4f} {time.time() - begin:.0f} s", flush=True)
    return {"steps": args.steps, "last_loss": mean, "seconds": round(time.time() - begin)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["base", "tune"])
    parser.add_argument("--config", help="base: a directory with config.json and spiece.model")
    parser.add_argument("--from", dest="start", help="tune: the checkpoint to start from")
    parser.add_argument("--text", required=True)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--out", help="write the checkpoint here")
    parser.add_argument("--result", help="append the JSON line to this file")
    parser.add_argument("--encoder-lookahead", type=int, default=0)
    parser.add_argument("--decoder-lookahead", type=int, default=0)
    parser.add_argument("--routing", choices=["gate", "hash", "random"], default="gate")
    parser.add_argument("--experts", type=int, help="base: other than the config's")
    parser.add_argument("--freeze-experts", action="store_true")
    parser.add_argument("--distil", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=32768, help="padded tokens of a batch, one side")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dev-limit", type=int, default=700)
    parser.add_argument("--report", type=int, default=100)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = pathlib.Path(args.config if args.command == "base" else args.start)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(source / "spiece.model"))
    lookahead = {"encoder": args.encoder_lookahead, "decoder": args.decoder_lookahead}
    teacher = None
    if args.command == "base":
        cfg = json.loads((source / "config.json").read_text())
        cfg["num_experts"] = args.experts or cfg["num_experts"]
        model = switch.Switch(cfg, lookahead, args.routing)
        switch.initialise(model, args.seed)
    else:
        cfg, state = switch.load_checkpoint(source)
        model = switch.Switch(cfg, lookahead, args.routing)
        switch.rewire(state, model)
        if args.distil > 0:
            teacher = switch.Switch(cfg)
            switch.rewire(state, teacher)
            teacher.to(device).eval()
    model.to(device)
    row = {"command": args.command, "from": str(source.name), "lookahead": lookahead, "routing": args.routing,
           "experts": cfg["num_experts"], "seed": args.seed, "lr": args.lr, "tokens": args.tokens,
           "freeze_experts": args.freeze_experts, "distil": args.distil, "device": device}
    row.update(train(model, args, pieces, device, teacher))
    row.update(evaluate(model, args.dev, pieces, device, args.dev_limit))
    if args.out:
        switch.save_checkpoint(model, args.out, source / "spiece.model")
    print(json.dumps(row))
    if args.result:
        with open(args.result, "a") as f:
            f.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
