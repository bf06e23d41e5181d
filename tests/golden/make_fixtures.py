#!/usr/bin/env python3
"""Makes tests/golden/fixtures: tiny random Switch checkpoints and what transformers computes on them.

    python3 tests/golden/make_fixtures.py OUT_DIR        (torch, transformers, safetensors)

Each fixture is a Hugging Face directory plus golden.json: a list of cases with input_ids,
decoder_input_ids, logits [position][vocab], encoder_out [position][d_model] and greedy (12 tokens
after the start token, without a cache). Seeds are fixed; float32 throughout.

Those checked in are of transformers 5.17 (relu) and 5.24 (gelu). Three habits of both shape this script: the activation is read from `dense_act_fn`, not
from `feed_forward_proj`; cached generation fails when encoder and decoder differ in depth, so
greedy decoding here is a plain loop over full forward passes; and a stack with no sparse layers
gets the sparse step n_layers, which makes its second layer sparse unless the step is set to 0.
"""
import json
import pathlib
import sys

import torch
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

COMMON = dict(
    vocab_size=64, d_model=32, d_kv=8, num_heads=4, d_ff=48, dropout_rate=0.0,
    router_jitter_noise=0.0, router_dtype="float32", relative_attention_num_buckets=8,
    relative_attention_max_distance=20, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
)
FIXTURES = {
    # 4+4 layers, every second sparse, tied head, many small shards, capacity far too small
    "relu-tied-step2-capacity2": dict(
        num_layers=4, num_decoder_layers=4, num_sparse_encoder_layers=2, num_sparse_decoder_layers=2,
        num_experts=4, expert_capacity=2, dense_act_fn="relu", tie_word_embeddings=True),
    # every layer sparse, separate embeddings and head, tanh-form gelu; rows of no whole vectors
    "gelu-new-untied-step1": dict(d_ff=20,
        num_layers=2, num_decoder_layers=3, num_sparse_encoder_layers=2, num_sparse_decoder_layers=3,
        num_experts=5, expert_capacity=64, dense_act_fn="gelu_new", tie_word_embeddings=False),
    # no experts in the encoder, every third decoder layer sparse, erf-form gelu
    "gelu-tied-dense-encoder": dict(d_ff=20,
        num_layers=2, num_decoder_layers=6, num_sparse_encoder_layers=0, num_sparse_decoder_layers=2,
        num_experts=3, expert_capacity=64, dense_act_fn="gelu", tie_word_embeddings=True),
}
SHARD_BYTES = {"relu-tied-step2-capacity2": "60KB"}


def randomise(model, generator):
    """Scales at which the gates differ clearly and the logits spread, unlike the default init."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "layer_norm" in name:
                p.copy_(1.0 + 0.1 * torch.randn(p.shape, generator=generator))
            elif "router" in name:
                p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5 * 2.0)
            elif "relative_attention_bias" in name:
                p.copy_(2.0 * torch.randn(p.shape, generator=generator))
            elif "Attention" in name:
                p.copy_(2.0 * torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
            elif name.endswith("shared.weight") or "embed_tokens" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
            else:
                p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)


def case(model, n_input, n_decoder, generator):
    ids = torch.randint(2, 64, (1, n_input), generator=generator)
    ids[0, -1] = 1
    decoder_ids = torch.randint(2, 64, (1, n_decoder), generator=generator)
    decoder_ids[0, 0] = 0
    with torch.no_grad():
        out = model(input_ids=ids, decoder_input_ids=decoder_ids, use_cache=False)
        greedy = torch.zeros((1, 1), dtype=torch.long)
        for _ in range(12):
            logits = model(input_ids=ids, decoder_input_ids=greedy, use_cache=False).logits
            greedy = torch.cat([greedy, logits[:, -1:].argmax(-1)], dim=1)
    return dict(
        input_ids=ids[0].tolist(), decoder_input_ids=decoder_ids[0].tolist(),
        logits=[[round(v, 6) for v in row] for row in out.logits[0].tolist()],
        encoder_out=[[round(v, 6) for v in row] for row in out.encoder_last_hidden_state[0].tolist()],
        greedy=greedy[0].tolist())


def main():
    out_dir = pathlib.Path(sys.argv[1])
    for seed, (name, dims) in enumerate(FIXTURES.items(), start=11):
        generator = torch.Generator().manual_seed(seed)
        config = SwitchTransformersConfig(**{**COMMON, **dims})
        if config.num_sparse_encoder_layers == 0:
            config.encoder_sparse_step = 0
        model = SwitchTransformersForConditionalGeneration(config).eval()
        randomise(model, generator)
        path = out_dir / name
        model.save_pretrained(path, max_shard_size=SHARD_BYTES.get(name, "1GB"))
        cases = [case(model, n, m, generator) for n, m in ((5, 9), (17, 12), (33, 7), (1, 4))]
        (path / "golden.json").write_text(json.dumps(cases))
        (path / "generation_config.json").unlink(missing_ok=True)
        for f in path.iterdir():
            f.chmod(0o644)
        print(name, sum(f.stat().st_size for f in path.iterdir()), "bytes")


if __name__ == "__main__":
    main()
