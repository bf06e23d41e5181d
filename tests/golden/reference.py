#!/usr/bin/env python3
"""A Switch Transformer in numpy, ordinary and pre-gated: the reference that shares no code with pregate.

    reference.py check MODEL_DIR [GOLDEN.json]      compare with a golden file, say the differences
    reference.py golden MODEL_DIR [MAX_TOKENS]
        MODEL_DIR/golden.json anew, for the texts that it has, and the smallest margins in it
    reference.py capacity MODEL_DIR N OUT.json [CASES]
        what the checkpoint computes under --expert-capacity checkpoint with capacity N: cases like
        those of golden.json, an expert of -1 where a token was dropped

Needs numpy, and sentencepiece for `golden`; reads safetensors (f32, bf16) itself. Arithmetic is f32, as in the goldens.
Expert capacity is the rule of transformers 4.x: per sequence and forward call, in token order, only
the first N tokens of an expert are computed; a later one's feed-forward output is 0. A cached decode
step has one token, so the decoder never drops.
"""
import json
import math
import pathlib
import struct
import sys

import numpy as np

F32 = np.float32


def read_tensors(directory):
    tensors = {}
    for path in sorted(pathlib.Path(directory).glob("*.safetensors")):
        raw = path.read_bytes()
        header_bytes = struct.unpack("<Q", raw[:8])[0]
        for name, entry in json.loads(raw[8:8 + header_bytes]).items():
            if name == "__metadata__":
                continue
            begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
            if entry["dtype"] == "BF16":
                bits = np.frombuffer(raw[begin:end], np.uint16).astype(np.uint32) << 16
                values = bits.view(F32)
            elif entry["dtype"] == "F32":
                values = np.frombuffer(raw[begin:end], F32)
            else:
                raise SystemExit(f"{path}: {name} has dtype {entry['dtype']}")
            tensors[name] = values.reshape(entry["shape"])
    return tensors


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def activation(name):
    if name == "relu":
        return lambda x: np.maximum(x, F32(0))
    if name == "gelu":
        erf = np.vectorize(math.erf, otypes=[np.float64])
        return lambda x: (0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))).astype(F32)
    if name == "gelu_new":
        return lambda x: (0.5 * x * (1.0 + np.tanh(
            math.sqrt(2.0 / math.pi) * (x + 0.044715 * x ** 3)))).astype(F32)
    raise SystemExit(f"activation {name}")


def bucket(rel, both_directions, n, max_distance):
    """rel: key position - query position, an integer array."""
    start = np.zeros_like(rel)
    if both_directions:
        n //= 2
        start = np.where(rel > 0, n, 0)
        r = np.abs(rel)
    else:
        r = np.maximum(-rel, 0)
    exact = n // 2
    ratio = np.log(np.maximum(r, 1).astype(F32) / F32(exact)) / F32(math.log(max_distance / exact))
    far = np.minimum(n - 1, exact + np.floor(ratio * F32(n - exact)).astype(int))
    return start + np.where(r < exact, r, far)


class Model:
    def __init__(self, directory, capacity=None):
        self.config = c = json.loads((pathlib.Path(directory) / "config.json").read_text())
        self.w = read_tensors(directory)
        self.capacity = capacity
        self.act = activation(c["dense_act_fn"])
        self.margin = np.inf  # between the two likeliest experts, the smallest seen
        self.pregated = c.get("pregate", {}).get("lookahead", 0) > 0
        self.depth = {"encoder": c["num_layers"], "decoder": c["num_decoder_layers"]}
        self.sparse = {"encoder": c["num_sparse_encoder_layers"],
                       "decoder": c["num_sparse_decoder_layers"]}

    def norm(self, x, name):
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean + F32(self.config["layer_norm_epsilon"])) * self.w[name]

    def is_sparse(self, stack, layer):
        if self.sparse[stack] == 0:
            return False
        step = self.depth[stack] // self.sparse[stack]
        return step == 1 or layer % step == 1

    def bias(self, stack, n):
        c = self.config
        rel = np.arange(n)[None, :] - np.arange(n)[:, None]
        table = self.w[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        buckets = bucket(rel, stack == "encoder", c["relative_attention_num_buckets"],
                         c["relative_attention_max_distance"])
        bias = table[buckets].transpose(2, 0, 1).copy()
        if stack == "decoder":
            bias[:, rel > 0] = -np.inf
        return bias

    def attention(self, at, h, keys_of, bias):
        heads, d_head = self.config["num_heads"], self.config["d_kv"]
        split = lambda x, m: (x @ self.w[f"{at}.{m}.weight"].T).reshape(
            -1, heads, d_head).transpose(1, 0, 2)
        scores = split(h, "q") @ split(keys_of, "k").transpose(0, 2, 1)
        if bias is not None:
            scores = scores + bias
        mixed = softmax(scores) @ split(keys_of, "v")
        return mixed.transpose(1, 0, 2).reshape(h.shape[0], -1) @ self.w[f"{at}.o.weight"].T

    def gate(self, at, kind, h):
        p = softmax(h @ self.w[f"{at}.mlp.{kind}.classifier.weight"].T)
        two = np.sort(p, axis=-1)[:, -2:]
        self.margin = min(self.margin, float((two[:, 1] - two[:, 0]).min()))
        chosen = p.argmax(axis=-1)  # ties: the lowest
        return chosen, p[np.arange(len(h)), chosen]

    def kept(self, chosen, dropping):
        """Which tokens the capacity leaves, and the choices with -1 for the others."""
        seen, choices = {}, []
        for expert in chosen:
            seen[expert] = seen.get(expert, 0) + 1
            choices.append(int(expert) if not dropping or seen[expert] <= self.capacity else -1)
        return np.array(choices)

    def moe(self, at, h, route, dropping, used):
        choices = self.kept(route[0], dropping)
        used.append([int(e) for e in choices])
        y = np.zeros_like(h)
        for expert in set(choices) - {-1}:
            rows = np.nonzero(choices == expert)[0]
            of = f"{at}.mlp.experts.expert_{expert}"
            inner = self.act(h[rows] @ self.w[f"{of}.wi.weight"].T)
            y[rows] = route[1][rows, None] * (inner @ self.w[f"{of}.wo.weight"].T)
        return y

    def embedding(self, stack):
        own = self.w.get(f"{stack}.embed_tokens.weight")
        return own if own is not None and not self.config["tie_word_embeddings"] \
            else self.w["shared.weight"]

    def stack(self, stack, ids, encoder_out=None):
        """Output after the final norm, and [block][position] experts."""
        x = self.embedding(stack)[ids]
        bias = self.bias(stack, len(ids))
        dropping = self.capacity is not None and stack == "encoder"
        used, carried = [], None
        for i in range(self.depth[stack]):
            block = f"{stack}.block.{i}"
            h = self.norm(x, f"{block}.layer.0.layer_norm.weight")
            x = x + self.attention(f"{block}.layer.0.SelfAttention", h, h, bias)
            if stack == "decoder":
                h = self.norm(x, f"{block}.layer.1.layer_norm.weight")
                x = x + self.attention(f"{block}.layer.1.EncDecAttention", h, encoder_out, None)
            at = f"{block}.layer.{1 if stack == 'encoder' else 2}"
            h = self.norm(x, f"{at}.layer_norm.weight")
            if not self.is_sparse(stack, i):
                x = x + self.act(h @ self.w[f"{at}.mlp.wi.weight"].T) @ self.w[f"{at}.mlp.wo.weight"].T
                continue
            first, last = not used, len(used) + 1 == self.sparse[stack]
            route = self.gate(at, "router", h) if first or not self.pregated else carried
            if self.pregated and not last:
                carried = self.gate(at, "pregate", h)
            x = x + self.moe(at, h, route, dropping, used)
        return self.norm(x, f"{stack}.final_layer_norm.weight"), used

    def logits(self, h):
        if self.config["tie_word_embeddings"]:
            return (h * F32(self.config["d_model"] ** -0.5)) @ self.w["shared.weight"].T
        return h @ self.w["lm_head.weight"].T

    def decode(self, encoder_out, ids):
        h, used = self.stack("decoder", ids, encoder_out)
        return self.logits(h), used

    def greedy(self, encoder_out, n_tokens, stop_at_eos=True):
        ids = [self.config["decoder_start_token_id"]]
        while len(ids) <= n_tokens:
            ids.append(int(self.decode(encoder_out, ids)[0][-1].argmax()))
            if stop_at_eos and ids[-1] == self.config["eos_token_id"]:
                break
        return ids[1:]


def check_sequence(model, case):
    """A golden.json of whole answers (the restore models, capacity)."""
    encoder_out, encoder_used = model.stack("encoder", case["input_ids"])
    answer = model.greedy(encoder_out, len(case["output_ids"]))
    start = model.config["decoder_start_token_id"]
    logits, decoder_used = model.decode(encoder_out, [start] + case["output_ids"][:-1])
    sums = logits.astype(np.float64).sum(axis=-1)
    return {
        "ids": answer == case["output_ids"],
        "encoder experts": encoder_used == case["encoder_experts"],
        "decoder experts": decoder_used == case["decoder_experts"],
        "encoder l2": abs(np.linalg.norm(encoder_out) - case["encoder_out_l2"]),
        "sum": float(np.abs(sums - case["logits_sum_per_step"]).max()),
    }


def check_fixture(model, case):
    """A golden.json with all logits."""
    encoder_out, _ = model.stack("encoder", case["input_ids"])
    logits, _ = model.decode(encoder_out, case["decoder_input_ids"])
    n = len(case["greedy"]) - 1
    return {
        "greedy": model.greedy(encoder_out, n, stop_at_eos=False) == case["greedy"][1:],
        "encoder": float(np.abs(encoder_out - case["encoder_out"]).max()),
        "logits": float(np.abs(logits - case["logits"]).max()),
    }


def check(directory, golden=None):
    cases = json.loads(pathlib.Path(golden or pathlib.Path(directory) / "golden.json").read_text())
    for case in cases:
        model = Model(directory, case.get("expert_capacity"))
        compare = check_fixture if "logits" in case else check_sequence
        print(" ".join(f"{k}={v}" for k, v in compare(model, case).items()))


def answer(model, input_ids, max_tokens):
    """What a golden file says of one prompt, and [rows, vocabulary] logits."""
    encoder_out, encoder_used = model.stack("encoder", input_ids)
    output = model.greedy(encoder_out, max_tokens)
    start = model.config["decoder_start_token_id"]
    logits, decoder_used = model.decode(encoder_out, [start] + output[:-1])
    top5 = np.argsort(-logits[0], kind="stable")[:5]
    return {
        "input_ids": input_ids, "output_ids": output,
        "encoder_experts": encoder_used, "decoder_experts": decoder_used,
        "first_logits_top5": [[int(i), round(float(logits[0][i]), 5)] for i in top5],
        "logits_sum_per_step": [round(float(s), 4) for s in logits.astype(np.float64).sum(axis=-1)],
        "encoder_out_l2": round(float(np.linalg.norm(encoder_out)), 5),
    }, logits


def write(out, cases):
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    pathlib.Path(out).write_text(f"[{lines}]\n")


def golden(directory, max_tokens=96):
    import sentencepiece  # nothing else needs it
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{directory}/spiece.model")
    out = pathlib.Path(directory) / "golden.json"
    model, cases = Model(directory), []
    margin = np.inf
    for case in json.loads(out.read_text()):
        found, logits = answer(model, pieces.encode(case["text"]) + [1], int(max_tokens))
        text = pieces.decode([t for t in found["output_ids"] if t > 1])
        cases.append({"text": case["text"], "reference": case["reference"], "output_text": text, **found})
        two = np.sort(logits, axis=-1)[:, -2:]
        margin = min(margin, float((two[:, 1] - two[:, 0]).min()))
    write(out, cases)
    print(f"{out}: smallest margin of a token {margin:.2g}, of an expert {model.margin:.2g}")


def capacity(directory, n, out, n_cases=4):
    """Prompts come from the checkpoint's golden.json."""
    prompts = json.loads((pathlib.Path(directory) / "golden.json").read_text())
    model = Model(directory, int(n))
    write(out, [{"expert_capacity": int(n), **answer(model, case["input_ids"], 24)[0]}
                for case in prompts[:int(n_cases)]])


if __name__ == "__main__":
    command = {"check": check, "golden": golden, "capacity": capacity}.get(sys.argv[1] if len(sys.argv) > 1 else "")
    if command is None or len(sys.argv) < 3:
        raise SystemExit(__doc__)
    command(*sys.argv[2:])
