"""switch.py - a Switch Transformer in PyTorch that can be trained and pre-gated.

Computes what gpu-worker computes (gpu-worker/engine/forward.h), with the tensor names of Hugging Face
but for the experts of a block, which are two stacked tensors here and one by one in a checkpoint
(load_checkpoint, save_checkpoint). Nothing in a training step waits for the device.

Gates of one stack, over its MoE blocks in order, with lookahead n (0: ordinary):
  block b < n          keeps `router` for itself
  block b + n exists   has `pregate`, applied to its own normed input, which decides block b + n
With n = 1 that is the form that expert-pack reads. `hash` and `random` routing choose experts by
token id and at random: what gating is worth at all.
"""
import json
import math
import pathlib
import re

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

MASKED = -1e9  # added to attention scores; exact zero after the softmax in f32 and in bf16
ALIGN = 8      # rows of one expert start at a multiple of it: 16 bytes, what grouped_mm asks for
SHARD_BYTES = 15 << 20


def is_sparse(layer, step):
    return step > 0 and (step == 1 or layer % step == 1)


def product_dtype(x):
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class RMSNorm(nn.Module):
    """In f32; the result has the type that the matrix products use."""

    def __init__(self, d_model, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            h = F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)
        return h.to(product_dtype(x))


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
        """Of the last n_q of n_k positions."""
        rel = torch.arange(n_k, device=device)[None, :] - torch.arange(n_k - n_q, n_k, device=device)[:, None]
        return self.relative_attention_bias(self.bucket(rel)).permute(2, 0, 1)[None]

    def split(self, t):
        return t.view(t.shape[0], -1, self.heads, self.d_head).transpose(1, 2)

    def forward(self, x, memory, mask, kept=None):
        """mask: additive, broadcastable to [batch, heads, n_q, n_k]. No 1/sqrt(d): T5's habit. kept: the
        keys and values of earlier calls by module; `memory` (None: nothing is new) is put behind them."""
        keys = () if memory is None else (self.split(self.k(memory)), self.split(self.v(memory)))
        if kept is not None:
            if self in kept:
                keys = [torch.cat(two, 2) for two in zip(kept[self], keys)] if keys else kept[self]
            kept[self] = keys
        out = F.scaled_dot_product_attention(self.split(self.q(x)), *keys, attn_mask=mask, scale=1.0)
        return self.o(out.transpose(1, 2).flatten(2))


def hidden(module, cfg):
    """What stands between the two products: as Hugging Face has it, with dropout."""
    act, rate = ACTIVATIONS[cfg["dense_act_fn"]], cfg["dropout_rate"]
    return lambda v: F.dropout(act(v), rate, module.training)


ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "gelu_new": lambda v: F.gelu(v, approximate="tanh")}


class FeedForward(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.wi = nn.Linear(cfg["d_model"], cfg["d_ff"], bias=False)
        self.wo = nn.Linear(cfg["d_ff"], cfg["d_model"], bias=False)
        self.act = hidden(self, cfg)

    def forward(self, x):
        return self.wo(self.act(self.wi(x)))


class Experts(nn.Module):
    """All feed-forwards of one block. Rows come sorted by expert, ends[e] is where those of e end."""

    grouped = False  # one grouped product for all experts (CUDA, bf16); see use_grouped_products

    def __init__(self, cfg):
        super().__init__()
        self.wi = nn.Parameter(torch.empty(cfg["num_experts"], cfg["d_ff"], cfg["d_model"]))
        self.wo = nn.Parameter(torch.empty(cfg["num_experts"], cfg["d_model"], cfg["d_ff"]))
        self.act = hidden(self, cfg)

    def forward(self, rows, ends):
        if self.grouped and rows.dtype == torch.bfloat16:
            product = getattr(F, "grouped_mm", None) or torch._grouped_mm
            times = lambda x, w: product(x, w.to(x.dtype).transpose(1, 2), offs=ends.int())
            return times(self.act(times(rows, self.wi)), self.wo)
        out, begin = [], 0
        for e, end in enumerate(ends.tolist()):
            out.append(F.linear(self.act(F.linear(rows[begin:end], self.wi[e])), self.wo[e]))
            begin = end
        return torch.cat([*out, torch.zeros_like(rows[begin:])])


def use_grouped_products(device):
    """Turns grouped products on where they give what one product per expert gives, else says why not."""
    torch.manual_seed(0)
    cfg = {"num_experts": 4, "d_ff": 64, "d_model": 32, "dense_act_fn": "relu", "dropout_rate": 0.0}
    experts = Experts(cfg).to(device)
    for p in experts.parameters():
        nn.init.normal_(p, std=0.2)
    ends = torch.tensor([24, 24, 32, 88], device=device)  # one has no rows, the last 8 rows no expert
    start = torch.randn(96, 32, device=device, dtype=torch.bfloat16)

    def results(grouped):
        Experts.grouped = grouped
        experts.zero_grad()
        rows = start.clone().requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            out = experts(rows, ends)[:88]
        (out.float() ** 2).sum().backward()
        return [t.detach().float() for t in (out, rows.grad[:88], experts.wi.grad, experts.wo.grad)]

    try:
        for one, other in zip(results(False), results(True)):
            if not (one - other).abs().max() <= 0.02 * one.abs().max():
                raise RuntimeError("the results differ")
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        Experts.grouped = False
        print(f"grouped products are off: {str(error).splitlines()[0]}", flush=True)


class Take(torch.autograd.Function):
    """x[index] for distinct indices: the gradient is a plain copy back, not a sum."""

    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):
        index, = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, grad.shape[1]).index_copy_(0, index, grad), None


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
        self.experts = Experts(cfg)

    def forward(self, h, decision, keep):
        """h: [rows, d_model]; keep: [rows] bool, padding counts for nothing. Returns output, aux loss."""
        p = decision.softmax(-1)
        weight, chosen = p.max(-1)
        n_experts, n_rows = p.shape[-1], p.shape[0]
        mine = chosen[:, None] == torch.arange(n_experts, device=h.device)
        counts = mine.sum(0)
        room = (counts + ALIGN - 1) // ALIGN * ALIGN
        ends = room.cumsum(0)
        order = chosen.argsort(stable=True)
        gap = (ends - room) - (counts.cumsum(0) - counts)
        place = torch.empty_like(order).scatter_(
            0, order, torch.arange(n_rows, device=h.device) + gap[chosen[order]])
        rows = h.new_zeros(n_rows + n_experts * ALIGN, h.shape[1]).index_copy(0, place, h)
        out = Take.apply(self.experts(rows, ends), place)
        kept = keep.sum().clamp(min=1)
        aux = n_experts * ((mine & keep[:, None]).sum(0) / kept * (p * keep[:, None]).sum(0) / kept).sum()
        return out * weight[:, None].to(out.dtype), aux


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

    def forward(self, x, ids, part, memory=None, memory_part=None, kept=None):
        """part: [batch, n], which of the texts packed into a row a token belongs to, 0: padding. With
        kept (Attention.forward) x is one token a row, the next."""
        n = x.shape[1]
        dtype = product_dtype(x)
        own = self.block[0].layer[0].SelfAttention
        cross = None
        if self.decoder:
            cross = torch.where(part[:, None, :, None] == memory_part[:, None, None, :], 0.0, MASKED).to(dtype)
        if kept is None:
            bias = own.position_bias(n, n, x.device)
            bias = bias + torch.where(part[:, None, :, None] == part[:, None, None, :], 0.0, MASKED)
            if self.decoder:
                bias = bias + torch.full((n, n), MASKED, device=x.device).triu(1)
        else:
            bias = own.position_bias(n, n + (kept[own][0].shape[2] if own in kept else 0), x.device)
        bias = bias.to(dtype)
        drop = lambda t: F.dropout(t, self.dropout, self.training)
        carried, aux, b = {}, 0.0, 0
        x = drop(x)
        for layer in self.block:
            sub = layer.layer[0]
            h = sub.layer_norm(x)
            x = x + drop(sub.SelfAttention(h, h, bias, kept))
            if self.decoder:
                sub = layer.layer[1]
                source = None if kept and sub.EncDecAttention in kept else memory
                x = x + drop(sub.EncDecAttention(sub.layer_norm(x), source, cross, kept))
            sub = layer.layer[-1]
            h = sub.layer_norm(x)
            if isinstance(sub.mlp, MoE):
                rows = h.flatten(0, 1)
                decision = self.decide(sub.mlp, rows, ids.flatten(), carried.pop(b, None))
                if hasattr(sub.mlp, "pregate"):
                    carried[b + self.lookahead] = sub.mlp.pregate(rows)
                out, block_aux = sub.mlp(rows, decision, part.flatten() > 0)
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

    def forward(self, ids, part, decoder_ids, decoder_part):
        memory, aux = self.encoder(self.shared(ids), ids, part)
        x, decoder_aux = self.decoder(self.shared(decoder_ids), decoder_ids, decoder_part, memory, part)
        return F.linear(x * self.cfg["d_model"] ** -0.5, self.shared.weight), aux + decoder_aux

    @torch.no_grad()
    def greedy(self, ids, max_tokens):
        part = (ids > 0).long()
        memory, _ = self.encoder(self.shared(ids), ids, part)
        token, one, kept = torch.zeros_like(ids[:, :1]), torch.ones_like(ids[:, :1]), {}
        done, out = torch.zeros_like(token, dtype=torch.bool), []
        for step in range(max_tokens):
            x, _ = self.decoder(self.shared(token), token, one, memory, part, kept)
            token = F.linear(x, self.shared.weight).argmax(-1).masked_fill(done, 0)
            out.append(token)
            done |= token == self.cfg["eos_token_id"]
            if step % 8 == 7 and done.all():
                break
        return torch.cat(out, 1)


def initialise(model, seed):
    """Each matrix keeps the size of what it gets; q is smaller, for scores have no 1/sqrt(d_kv)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("norm.weight"):
                continue
            scale = 1.0 if name == "shared.weight" else p.shape[-1] ** -0.5
            if name.endswith(".q.weight"):
                scale *= model.cfg["d_kv"] ** -0.5
            p.copy_(torch.randn(p.shape, generator=generator) * scale)


def moe_names(model):
    """Of each stack: the prefixes of its MoE blocks' tensors, in order."""
    return [[name for name, module in model.named_modules()
             if name.startswith(stack) and isinstance(module, MoE)] for stack in ("encoder.", "decoder.")]


def rewire(state, model):
    """A pre-gate that `state` lacks starts as the router of the block it decides; the rest is carried over
    by name."""
    wanted = model.state_dict()
    new = {k: v for k, v in state.items() if k in wanted}
    for names, n in zip(moe_names(model), model.lookahead.values()):
        for name, later in zip(names, names[n:] if n > 0 else []):
            pregate, router = f"{name}.pregate.classifier.weight", f"{later}.router.classifier.weight"
            if pregate not in new:
                new[pregate] = state[router]
    model.load_state_dict(new)


def grow(state, model, seed):
    """Sparse upcycling: the experts of a block are copies of those that it has in `state` (of its one
    feed-forward where it is dense there), told apart by noise on the gate. A copy is chosen with a
    fraction of the probability, which scales its output, so `wo` is larger by as much."""
    generator = torch.Generator().manual_seed(seed)
    wanted = model.state_dict()
    new = {k: v for k, v in state.items() if k in wanted}
    n_experts, d_model = model.cfg["num_experts"], model.cfg["d_model"]
    for name in sum(moe_names(model), []):
        dense = f"{name}.wi.weight" in state
        source = {w: state[f"{name}.{w}.weight"][None] if dense else state[f"{name}.experts.{w}"] for w in ("wi", "wo")}
        copies = torch.arange(n_experts) % source["wi"].shape[0]
        new[f"{name}.experts.wi"] = source["wi"][copies]
        new[f"{name}.experts.wo"] = source["wo"][copies] * (n_experts / source["wo"].shape[0])
        gate = f"{name}.router.classifier.weight"
        noise = torch.randn(n_experts, d_model, generator=generator) * 0.5 * d_model ** -0.5
        new[gate] = noise + (0 if dense else state[gate][copies])
    model.load_state_dict(new)


def load_checkpoint(path):
    """config and state dict of a Hugging Face directory (safetensors, one file or shards)."""
    path = pathlib.Path(path)
    cfg = json.loads((path / "config.json").read_text())
    state, experts = {}, {}
    for shard in sorted(path.glob("*.safetensors")):
        for name, tensor in load_file(shard).items():
            one = re.fullmatch(r"(.*\.experts)\.expert_(\d+)\.(w[io])\.weight", name)
            if one:
                experts.setdefault(f"{one[1]}.{one[3]}", {})[int(one[2])] = tensor.float()
            else:
                state[name] = tensor.float()
    state.update({name: torch.stack([of[e] for e in range(len(of))]) for name, of in experts.items()})
    return cfg, state


def from_checkpoint(path):
    """The model that a Hugging Face directory holds."""
    cfg, state = load_checkpoint(path)
    model = Switch(cfg, dict.fromkeys(("encoder", "decoder"), cfg.get("pregate", {}).get("lookahead", 0)))
    model.load_state_dict(state)
    return model


def one_by_one(state):
    for name, tensor in state.items():
        block, _, w = name.rpartition(".")
        if block.endswith(".experts"):
            yield from ((f"{block}.expert_{e}.{w}.weight", t) for e, t in enumerate(tensor))
        else:
            yield name, tensor


def save_checkpoint(model, path, spiece, dtype=torch.bfloat16):
    """The Hugging Face layout that expert-pack reads; lookahead 0, or 1 in both stacks. config.json comes last."""
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    n = set(model.lookahead.values())
    if n not in ({0}, {1}):
        raise ValueError(f"only ordinary checkpoints and lookahead 1 in both stacks can be exported, not {model.lookahead}")
    shards, room = [{}], SHARD_BYTES
    for name, tensor in sorted(one_by_one(model.state_dict())):
        tensor = tensor.to(dtype).cpu().contiguous()
        room -= tensor.nbytes
        if room < 0:
            shards.append({})
            room = SHARD_BYTES - tensor.nbytes
        shards[-1][name] = tensor
    where = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, path / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, file))
    size = sum(t.nbytes for shard in shards for t in shard.values())
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": where}, indent=0))
    (path / "spiece.model").write_bytes(pathlib.Path(spiece).read_bytes())
    cfg = dict(model.cfg)
    cfg.pop("pregate", None)
    cfg["architectures"] = ["SwitchTransformersForConditionalGeneration"]
    if n == {1}:
        cfg["architectures"] = ["PregatedSwitchTransformersForConditionalGeneration"]
        cfg["pregate"] = {"lookahead": 1}
    (path / "config.json").write_text(json.dumps(cfg, indent=1))
