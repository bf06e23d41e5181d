#!/usr/bin/env python3
"""train.py - trains an ordinary Switch Transformer, and fine-tunes one into a pre-gated one.

  train.py base --config DIR [--set d_model=256 ...] --text TRAIN.txt --dev DEV.txt --out DIR
  train.py grow --from DIR --set num_experts=32 ...   more experts, or more MoE blocks (switch.grow)
  train.py tune --from DIR --encoder-lookahead 1 --decoder-lookahead 1 ...
  train.py eval --from DIR --dev DEV.txt

Task `restore`: case, punctuation and a few typos of English stripped to [a-z0-9' ]. Task `vowels`:
stripped text of whose words only the first letter and the consonants are left. Any text file of one
paragraph a line serves; --dev is never trained on. `tune` follows Pre-gated MoE, Sec. IV-B: take
pretrained weights, rewire the gates (switch.rewire), train on; with lookahead 0 it is the ordinary
model with the same extra budget, the fair comparison. `--distil W` adds W times the KL divergence from
the answers of a teacher to the loss: of --teacher, a checkpoint of any size with the same pieces, or the
mean of several, or the ordinary model that training starts from (with --freeze-experts: gates only).
--more adds text of other kinds, which --more-share of the pairs come from.

A run ends after --steps, or at the time --until if that comes first; the learning rate falls to zero
over the last --cool of it. What is scored and saved is the running mean of the weights (--ema),
rounded to bf16. --agree W runs every batch twice with different dropout and adds W times the mean
symmetric KL divergence of the two answers to the loss (R-Drop, Liang et al. 2021): little text is
learnt by heart less. Prints one JSON line: settings, seed, budget, and on held-out text exact match and
character error rate: `dev` on one piece of every paragraph, `dev_wide` on --dev-passes of them.
Needs torch (a GPU for anything real), safetensors, sentencepiece.
"""
import argparse
import functools
import itertools
import json
import math
import pathlib
import random
import re
import sys
import time

import sentencepiece
import torch
from torch.nn import functional as F

import metrics
import switch

AUX_WEIGHT = 0.01
LABEL_SMOOTHING = 0.05
NOT_IN_RESULTS = ("config", "text", "more", "dev", "out", "result", "report", "until")


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


def make_pair(words, rng, task, typo_rate=0.02):
    """A run of 5 to 60 words of a paragraph: (what is left of it, itself)."""
    n = rng.randint(5, 60)
    at = rng.randrange(max(1, len(words) - n))
    reference = " ".join(words[at:at + n])
    if task == "vowels":
        reference = strip(reference)
        return re.sub(r"(?<=\w)[aeiou]", "", reference), reference
    source = [typo(w, rng) if len(w) > 3 and rng.random() < typo_rate else w for w in strip(reference).split()]
    return " ".join(source), reference


def longer_more_often(texts, rng):
    """Endless picks, each text in proportion to its words."""
    ends = list(itertools.accumulate(map(len, texts)))
    while True:
        yield rng.choices(texts, cum_weights=ends)[0]


def paragraphs(path):
    """Of those of more than five words: the words."""
    return [words for words in map(str.split, pathlib.Path(path).read_text().splitlines()) if len(words) > 5]


def padded(rows, width):
    return torch.tensor([r + [0] * (width - len(r)) for r in rows])


def pack(pairs, width):
    """Rows of pairs whose longer sides have room in `width` together: best fit, the longest first."""
    with_room = [[] for _ in range(width + 1)]
    for pair in sorted(pairs, key=lambda p: -max(map(len, p))):
        size = max(map(len, pair))
        room = next((room for room in range(size, width + 1) if with_room[room]), None)
        row = [] if room is None else with_room[room].pop()
        row.append(pair)
        with_room[(width if room is None else room) - size].append(row)
    return [row for rows in with_room for row in rows]


class Batches(torch.utils.data.IterableDataset):
    """Endless batches [ids, part, decoder ids, decoder part, target][row][token] of one size; part says
    which of the pairs packed into a row a token belongs to, 0: padding. Every worker has its own random
    numbers and the loader takes turns, so the order depends on the seed and the number of workers alone."""

    def __init__(self, args, spiece):
        self.paragraphs, self.spiece = paragraphs(args.text), spiece
        self.more, self.more_share = paragraphs(args.more) if args.more else [], args.more_share
        self.task, self.rows, self.seed, self.sample = args.task, args.rows, args.seed, args.sample
        self.width = args.max_tokens

    def pairs(self, rng):
        pieces = sentencepiece.SentencePieceProcessor(model_file=self.spiece)
        of_word = functools.lru_cache(1 << 18)(pieces.encode)
        encode = lambda text: [piece for word in text.split() for piece in of_word(word)]
        more = longer_more_often(self.more, rng)
        while True:
            other = self.more and rng.random() < self.more_share
            source, reference = make_pair(next(more) if other else rng.choice(self.paragraphs), rng, self.task)
            cut = rng.random() < self.sample
            ids = pieces.encode(source, enable_sampling=True, alpha=0.3, nbest_size=-1) if cut else encode(source)
            yield ids[:self.width - 1] + [1], encode(reference)[:self.width - 1] + [1]

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(self.seed * 1000 + (worker.id if worker else 0))
        sentencepiece.set_random_generator_seed(rng.randrange(1 << 31))
        pairs, rows = self.pairs(rng), []
        while True:
            waiting = [pair for row in rows for pair in row]
            while len(rows) < self.rows:  # always that many: a step is compiled for one shape
                waiting += itertools.islice(pairs, self.rows)
                rows = pack(waiting, self.width) if len(waiting) >= 3 * self.rows else []
            yield torch.stack([padded([[x for i, pair in enumerate(row, 1) for x in side(i, *pair)]
                                       for row in rows[:self.rows]], self.width) for side in SIDES])
            rows = rows[self.rows:]


SIDES = (lambda i, ids, target: ids, lambda i, ids, target: [i] * len(ids),
         lambda i, ids, target: [0] + target[:-1], lambda i, ids, target: [i] * len(target),
         lambda i, ids, target: target)


def disagreement(log_p, counts):
    """Of the first half of [rows, vocabulary] with the second: mean symmetric KL over what counts."""
    one, other = log_p.chunk(2)
    apart = ((one.exp() - other.exp()) * (one - other)).sum(-1) / 2
    counts = counts.chunk(2)[0]
    return (apart * counts).sum() / counts.sum()


def answers_of(teachers, sides):
    """Log of their mean probabilities."""
    with torch.no_grad():
        all_of_them = [teacher(*sides)[0].flatten(0, 1).float().log_softmax(-1) for teacher in teachers]
        return torch.logsumexp(torch.stack(all_of_them), 0) - math.log(len(teachers))


def loss_of(model, batch, teachers=(), distil=0.0, agree=0.0):
    *sides, target = torch.cat([batch, batch], 1) if agree > 0 else batch
    logits, aux = model(*sides)
    logits, target = logits.flatten(0, 1).float(), target.flatten()
    loss = F.cross_entropy(logits, target, ignore_index=0, label_smoothing=LABEL_SMOOTHING)
    total = loss + AUX_WEIGHT * aux
    if teachers:
        wanted = answers_of(teachers, sides)
        apart = F.kl_div(logits.log_softmax(-1), wanted, log_target=True, reduction="none").sum(-1)
        total = total + distil * (apart * (target > 0)).sum() / (target > 0).sum()
    if agree > 0:
        total = total + agree * disagreement(logits.log_softmax(-1), target > 0)
    return total, loss


def compiled(model, batch, *rest):
    """loss_of, compiled where that works."""
    fast = torch.compile(loss_of, dynamic=False, fullgraph=True)
    try:
        fast(model, batch, *rest)[0].backward()
    except Exception as error:  # whatever a compiler may raise
        print(f"not compiled: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        fast = loss_of
    model.zero_grad(set_to_none=True)
    return fast


def answer(model, texts, pieces, device, max_tokens):
    """Greedy, in f32, in batches of similar length."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    answers = [""] * len(texts)
    for at in range(0, len(order), 1024):
        chosen = order[at:at + 1024]
        rows = [pieces.encode(texts[i])[:max_tokens - 1] + [1] for i in chosen]
        ids = padded(rows, max(map(len, rows))).to(device)
        for i, row in zip(chosen, model.greedy(ids, max_tokens).tolist()):
            answers[i] = pieces.decode([t for t in (row[:row.index(1)] if 1 in row else row) if t > 1])
    return answers


def evaluate(model, args, pieces, device):
    model.eval()
    rng, texts = random.Random(0), paragraphs(args.dev)[:args.dev_limit]
    pairs = [make_pair(p, rng, args.task) for _ in range(args.dev_passes) for p in texts]
    answers, references = answer(model, [text for text, _ in pairs], pieces, device, args.max_tokens), [r for _, r in pairs]
    score = lambda n: {"pairs": n, "exact": sum(map(str.__eq__, answers[:n], references[:n])) / n,
                       "cer": metrics.character_error_rate(answers[:n], references[:n])}
    return {"dev": score(len(texts)), "dev_wide": score(len(pairs))}


def train(model, args, spiece, device, teachers):
    for name, p in model.named_parameters():
        p.requires_grad_(not args.freeze_experts or "gate" in name or "router" in name)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.98), weight_decay=args.weight_decay,
                                  fused=device == "cuda")
    loader = torch.utils.data.DataLoader(Batches(args, spiece), batch_size=None, num_workers=args.workers,
                                         pin_memory=device == "cuda", prefetch_factor=8 if args.workers else None)
    mean = [p.detach().clone() for p in parameters]
    model.train()
    autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
    loss_fn, begin, last, tokens = loss_of, time.time(), None, 0
    for step, batch in enumerate(loader):
        batch = batch.to(device, non_blocking=True)
        if args.compile and step == 0:
            with autocast:
                loss_fn = compiled(model, batch, teachers, args.distil, args.agree)
            print(f"{args.name} compiled in {time.time() - begin:.0f} s", file=sys.stderr, flush=True)
            begin = time.time()
        now = time.time()
        done = max(step / args.steps, (now - begin) / max(args.until - begin, 1e-9))
        if done >= 1:
            break
        optimiser.param_groups[0]["lr"] = args.lr * min(1.0, (step + 1) / max(1, args.warmup),
                                                        (1 - done) / max(args.cool, 1e-9))
        with autocast:
            total, loss = loss_fn(model, batch, teachers, args.distil, args.agree)
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(mean, parameters, 1 - min(args.ema, (step + 1) / (step + 10)))
        tokens += batch[0].numel()
        if step % args.report == 0:
            last = loss.item()
            print(f"{args.name} step {step} loss {last:.4f} {now - begin:.0f} s, "
                  f"{tokens / (time.time() - begin):.0f} tokens/s", file=sys.stderr, flush=True)
    seconds = time.time() - begin
    with torch.no_grad():
        for p, m in zip(parameters, mean):
            p.copy_(m)
    return {"steps": step, "last_loss": last, "train_seconds": round(seconds, 1),
            "padded_tokens": tokens, "tokens_per_second": round(tokens / seconds)}


def build(args, source, lookahead, device):
    """The model to start from, and its teachers."""
    teachers = [switch.from_checkpoint(path).to(device).eval() for path in args.teacher]
    if args.command == "base":
        cfg, state = json.loads((source / "config.json").read_text()), None
    else:
        cfg, state = switch.load_checkpoint(source)
    changes = dict(change.split("=") for change in args.set)
    cfg.update({key: type(cfg[key])(value) for key, value in changes.items()})
    if args.command == "eval":
        lookahead = dict.fromkeys(lookahead, cfg.get("pregate", {}).get("lookahead", 0))
    model = switch.Switch(cfg, lookahead, args.routing)
    if args.command == "base":
        switch.initialise(model, args.seed)
    elif args.command == "grow":
        switch.grow(state, model, args.seed)
    elif args.command == "eval":
        model.load_state_dict(state)
    else:
        switch.rewire(state, model)
        if args.distil > 0 and not teachers:
            teachers = [switch.from_checkpoint(source).to(device).eval()]
    return model.to(device), teachers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["base", "grow", "tune", "eval"])
    parser.add_argument("--name", default="train", help="what the result is called")
    parser.add_argument("--config", help="base: a directory with config.json and spiece.model")
    parser.add_argument("--from", dest="start", help="grow, tune, eval: the checkpoint to start from")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="other than the config's")
    parser.add_argument("--task", choices=["restore", "vowels"], default="restore")
    parser.add_argument("--text", help="what to train on")
    parser.add_argument("--more", help="more text, of other kinds")
    parser.add_argument("--more-share", type=float, default=0.35)
    parser.add_argument("--dev", required=True)
    parser.add_argument("--out", help="write the checkpoint here")
    parser.add_argument("--result", help="append the JSON line to this file")
    parser.add_argument("--encoder-lookahead", type=int, default=0)
    parser.add_argument("--decoder-lookahead", type=int, default=0)
    parser.add_argument("--routing", choices=["gate", "hash", "random"], default="gate")
    parser.add_argument("--freeze-experts", action="store_true", help="train the gates only")
    parser.add_argument("--distil", type=float, default=0.0)
    parser.add_argument("--teacher", action="append", default=[], metavar="DIR")
    parser.add_argument("--agree", type=float, default=0.0)
    parser.add_argument("--max-tokens", type=int, default=96, help="of a side, end token included")
    parser.add_argument("--steps", type=int, default=1 << 30)
    parser.add_argument("--until", type=float, default=float("inf"), help="time of day, in seconds since 1970")
    parser.add_argument("--rows", type=int, default=344, help="of a batch; each has pairs of up to --max-tokens a side")
    parser.add_argument("--compile", action="store_true", help="torch.compile: a minute at first, then faster steps")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=0, help="steps")
    parser.add_argument("--cool", type=float, default=1.0)
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--sample", type=float, default=0.3, help="part of the inputs that are cut into random pieces")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes that make batches")
    parser.add_argument("--dev-limit", type=int, default=700)
    parser.add_argument("--dev-passes", type=int, default=1)
    parser.add_argument("--report", type=int, default=100)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        switch.use_grouped_products(device)
    torch.manual_seed(args.seed)
    source = pathlib.Path(args.config if args.command == "base" else args.start)
    spiece = str(source / "spiece.model")
    model, teachers = build(args, source, {"encoder": args.encoder_lookahead, "decoder": args.decoder_lookahead}, device)
    row = {key: value for key, value in vars(args).items() if key not in NOT_IN_RESULTS}
    row = {**row, "start": source.name, "teacher": [pathlib.Path(t).name for t in args.teacher],
           "parameters": sum(p.numel() for p in model.parameters()), "device":
           torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    if args.command != "eval":
        row.update(train(model, args, spiece, device, teachers))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
    if args.out:
        switch.save_checkpoint(model, args.out, spiece)
    pieces = sentencepiece.SentencePieceProcessor(model_file=spiece)
    row.update(evaluate(model, args, pieces, device))
    print(json.dumps(row), flush=True)
    if args.result:
        with open(args.result, "a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
