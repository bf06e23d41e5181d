"""switch.py - a Switch Transformer in PyTorch that can be trained and pre-gated.

Computes what gpu-worker computes (gpu-worker/engine/forward.h), with the tensor names of Hugging Face, so a
state dict is a checkpoint. Experts are dispatched by sorting: each runs once on its own rows.

Gates of one stack, over its MoE blocks in order, with lookahead n (0: ordinary):
  block b < n          keeps `router` for itself
  block b + n exists   has `pregate`, applied to its own normed input, which decides block b + n
With n = 1 that is the form that expert-pack reads. `hash` and `random` routing choose experts by
token id and at random: what gating is worth at all.
"""
import json
import math
import pathlib

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F


def is_sparse(layer, step):
    return step > 0 and (step == 1 or layer % step == 1)


class RMSNorm(nn.Module):
    def __init__(self, d_model, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps).to(x.dtype) * self.weight


class Attention(nn.Module):
    def __init__(self, cfg, bias, causal):
        super().__init__()
        inner = cfg["num_heads"] * cfg["d_kv"]
        self.heads, self.d_head, self.causal = cfg["num_heads"], cfg["d_kv"], causal
        self.q = nn.Linear(cfg["d_model"], inner, bias=False)
        self.k = nn.Linear(cfg["d_model"], inner, bias=False)
        self.v = nn.Linear(cfg["d_model"], inner, bias=False)
        self.o = nn.Linear(inner, cfg["d_model"], bias=False)
        self.n_buckets = cfg["relative_attention_num_buckets"]
        self.max_distance = cfg["relative_attention_max_distance"]
        if bias:
            self.relative_attention_bias = nn.Embedding(self.n_buckets, self.heads)

    def bucket(self, rel):
        n, start = self.n_buckets, torch.zeros_like(rel)
        if self.causal:
            distance = (-rel).clamp(min=0)
        else:
            n //= 2
            start, distance = (rel > 0).long() * n, rel.abs()
        exact = n // 2
        far = exact + (torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
                       * (n - exact)).long()
        return start + torch.where(distance < exact, distance, far.clamp(max=n - 1))

    def position_bias(self, n_q, n_k, device):
        rel = torch.arange(n_k, device=device)[None, :] - torch.arange(n_q, device=device)[:, None]
        return self.relative_attention_bias(self.bucket(rel)).permute(2, 0, 1)[None]

    def forward(self, x, memory, mask):
        """mask: additive, broadcastable to [batch, heads, n_q, n_k]. No 1/sqrt(d): T5's habit."""
        def split(t):
            return t.view(t.shape[0], -1, self.heads, self.d_head).transpose(1, 2)
        out = F.scaled_dot_product_attention(split(self.q(x)), split(self.k(memory)), split(self.v(memory)),
                                             attn_mask=mask.to(x.dtype), scale=1.0)
        return self.o(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.wi = nn.Linear(cfg["d_model"], cfg["d_ff"], bias=False)
        self.wo = nn.Linear(cfg["d_ff"], cfg["d_model"], bias=False)
        self.act = {"relu": F.relu, "gelu": F.gelu,
                    "gelu_new": lambda v: F.gelu(v, approximate="tanh")}[cfg["dense_act_fn"]]

    def forward(self, x):
        return self.wo(self.act(self.wi(x)))


class Gate(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.classifier = nn.Linear(cfg["d_model"], cfg["num_experts"], bias=False)

    def forward(self, h):
        return F.linear(h.float(), self.classifier.weight.float())


class MoE(nn.Module):
    """One sparse feed-forward. `decision` is the [rows, n_experts] logits that decide it."""

    def __init__(self, cfg, has_router, has_pregate):
        super().__init__()
        if has_router:
            self.router = Gate(cfg)
        if has_pregate:
            self.pregate = Gate(cfg)
        self.experts = nn.ModuleDict({f"expert_{e}": FeedForward(cfg) for e in range(cfg["num_experts"])})

    def forward(self, h, decision, keep):
        """h: [rows, d_model]; keep: [rows] bool, padding is not computed. Returns output, aux loss."""
        p = decision.softmax(-1)
        weight, chosen = p.max(-1)
        n_experts = p.shape[-1]
        order = torch.argsort(torch.where(keep, chosen, n_experts), stable=True)
        counts = torch.bincount(chosen[keep], minlength=n_experts)
        rows = h[order]
        pieces, at = [], 0
        for e, n in enumerate(counts.tolist()):
            if n:
                pieces.append(self.experts[f"expert_{e}"](rows[at:at + n]))
            at += n
        out = torch.zeros_like(h)
        if pieces:
            out = out.index_copy(0, order[:at], torch.cat(pieces).to(h.dtype))
        share = counts.float() / keep.sum().clamp(min=1)
        aux = n_experts * (share * p[keep].mean(0)).sum()
        return out * weight[:, None].to(h.dtype), aux


class Layer(nn.Module):
    """Hugging Face's nesting: layer.0 self-attention, (layer.1 cross-attention,) last feed-forward."""

    def __init__(self, cfg, first, decoder, moe):
        super().__init__()
        eps = cfg["layer_norm_epsilon"]
        self.layer = nn.ModuleList()
        names = ["SelfAttention"] + (["EncDecAttention"] if decoder else [])
        for i, name in enumerate(names):
            sub = nn.Module()
            sub.add_module(name, Attention(cfg, bias=first and i == 0, causal=decoder))
            sub.layer_norm = RMSNorm(cfg["d_model"], eps)
            self.layer.append(sub)
        sub = nn.Module()
        sub.mlp = moe if moe is not None else FeedForward(cfg)
        sub.layer_norm = RMSNorm(cfg["d_model"], eps)
        self.layer.append(sub)


class Stack(nn.Module):
    def __init__(self, cfg, decoder, lookahead, routing):
        super().__init__()
        n_layers = cfg["num_decoder_layers"] if decoder else cfg["num_layers"]
        n_sparse = cfg["num_sparse_decoder_layers"] if decoder else cfg["num_sparse_encoder_layers"]
        step = n_layers // n_sparse if n_sparse else 0
        self.decoder, self.lookahead, self.routing = decoder, lookahead, routing
        self.n_experts, self.dropout = cfg["num_experts"], cfg["dropout_rate"]
        sparse = [i for i in range(n_layers) if is_sparse(i, step)]
        self.block = nn.ModuleList()
        for i in range(n_layers):
            moe = None
            if i in sparse:
                b = sparse.index(i)
                moe = MoE(cfg, has_router=routing == "gate" and (lookahead == 0 or b < lookahead),
                          has_pregate=routing == "gate" and lookahead > 0 and b + lookahead < len(sparse))
            self.block.append(Layer(cfg, i == 0, decoder, moe))
        self.final_layer_norm = RMSNorm(cfg["d_model"], cfg["layer_norm_epsilon"])

    def forward(self, x, ids, keep, memory=None, memory_keep=None):
        n = x.shape[1]
        far = torch.finfo(torch.float32).min
        bias = self.block[0].layer[0].SelfAttention.position_bias(n, n, x.device)
        bias = bias + torch.where(keep[:, None, None, :], 0.0, far)
        if self.decoder:
            bias = bias + torch.full((n, n), far, device=x.device).triu(1)
            cross = torch.where(memory_keep[:, None, None, :], 0.0, far)
        drop = lambda t: F.dropout(t, self.dropout, self.training)
        carried, aux, b = {}, 0.0, 0
        x = drop(x)
        for layer in self.block:
            sub = layer.layer[0]
            h = sub.layer_norm(x)
            x = x + drop(sub.SelfAttention(h, h, bias))
            if self.decoder:
                sub = layer.layer[1]
                x = x + drop(sub.EncDecAttention(sub.layer_norm(x), memory, cross))
            sub = layer.layer[-1]
            h = sub.layer_norm(x)
            if isinstance(sub.mlp, MoE):
                rows = h.flatten(0, 1)
                decision = self.decide(sub.mlp, rows, ids.flatten(), carried.pop(b, None))
                if hasattr(sub.mlp, "pregate"):
                    carried[b + self.lookahead] = sub.mlp.pregate(rows)
                out, block_aux = sub.mlp(rows, decision, keep.flatten())
                x, aux, b = x + drop(out.view_as(x)), aux + block_aux, b + 1
            else:
                x = x + drop(sub.mlp(h))
        return drop(self.final_layer_norm(x)), aux

    def decide(self, moe, rows, ids, carried):
        if self.routing == "hash":
            return 20.0 * F.one_hot((ids * 2654435761 >> 7) % self.n_experts, self.n_experts).float()
        if self.routing == "random":
            return 20.0 * F.one_hot(torch.randint(self.n_experts, ids.shape, device=ids.device),
                                    self.n_experts).float()
        return carried if carried is not None else moe.router(rows)


class Switch(nn.Module):
    """lookahead: {"encoder": n, "decoder": n}; routing: gate, hash or random."""

    def __init__(self, cfg, lookahead=None, routing="gate"):
        super().__init__()
        lookahead = lookahead or {"encoder": 0, "decoder": 0}
        self.cfg, self.lookahead = cfg, lookahead
        self.shared = nn.Embedding(cfg["vocab_size"], cfg["d_model"])
        self.encoder = Stack(cfg, False, lookahead["encoder"], routing)
        self.decoder = Stack(cfg, True, lookahead["decoder"], routing)

    def forward(self, ids, keep, decoder_ids, decoder_keep):
        memory, aux = self.encoder(self.shared(ids), ids, keep)
        x, decoder_aux = self.decoder(self.shared(decoder_ids), decoder_ids, decoder_keep, memory, keep)
        return F.linear(x * self.cfg["d_model"] ** -0.5, self.shared.weight), aux + decoder_aux

    @torch.no_grad()
    def greedy(self, ids, keep, max_tokens):
        memory, _ = self.encoder(self.shared(ids), ids, keep)
        out = torch.zeros((ids.shape[0], 1), dtype=torch.long, device=ids.device)
        done = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
        for _ in range(max_tokens):
            x, _ = self.decoder(self.shared(out), out, torch.ones_like(out, dtype=torch.bool), memory, keep)
            token = F.linear(x[:, -1], self.shared.weight).argmax(-1).masked_fill(done, 0)
            out, done = torch.cat([out, token[:, None]], 1), done | (token == self.cfg["eos_token_id"])
            if done.all():
                break
        return out[:, 1:]


def initialise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("norm.weight"):
                continue
            scale = 1.0 if name == "shared.weight" else p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator) * scale)


def rewire(state, model):
    """A pre-gate starts as the router of the block it decides; the rest is carried over by name."""
    new = {}
    for stack_name in ("encoder", "decoder"):
        stack, n = getattr(model, stack_name), model.lookahead[stack_name]
        sparse = [i for i, layer in enumerate(stack.block) if isinstance(layer.layer[-1].mlp, MoE)]
        tail = lambda i: f"{stack_name}.block.{i}.layer.{len(stack.block[i].layer) - 1}.mlp"
        for b, i in enumerate(sparse):
            if n > 0 and b + n < len(sparse):
                new[f"{tail(i)}.pregate.classifier.weight"] = state[f"{tail(sparse[b + n])}.router.classifier.weight"]
    wanted = model.state_dict()
    new.update({k: v for k, v in state.items() if k in wanted and k not in new})
    model.load_state_dict(new)


def load_checkpoint(path):
    """config and state dict of a Hugging Face directory (safetensors, one file or shards)."""
    path = pathlib.Path(path)
    cfg = json.loads((path / "config.json").read_text())
    state = {}
    for shard in sorted(path.glob("*.safetensors")):
        state.update(load_file(shard))
    return cfg, {k: v.float() for k, v in state.items()}


def save_checkpoint(model, path, spiece, dtype=torch.bfloat16):
    """The Hugging Face layout that expert-pack reads; lookahead 0, or 1 in both stacks."""
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    n = set(model.lookahead.values())
    if n not in ({0}, {1}):
        raise ValueError(f"only ordinary checkpoints and lookahead 1 in both stacks can be exported, not {model.lookahead}")
    cfg = dict(model.cfg)
    cfg.pop("pregate", None)
    cfg["architectures"] = ["SwitchTransformersForConditionalGeneration"]
    if n == {1}:
        cfg["architectures"] = ["PregatedSwitchTransformersForConditionalGeneration"]
        cfg["pregate"] = {"lookahead": 1}
    (path / "config.json").write_text(json.dumps(cfg, indent=1))
    save_file({k: v.to(dtype).contiguous() for k, v in model.state_dict().items()}, path / "model.safetensors")
    (path / "spiece.model").write_bytes(pathlib.Path(spiece).read_bytes())
