#!/usr/bin/env python3
"""Makes tests/fixtures/models: tiny random checkpoints and what transformers computes from them.

Run it where torch (CPU is enough), transformers and safetensors are installed:

    python3 scripts/make_model_fixtures.py

A fixture is a Hugging Face model directory plus

    expected.json  prompt (100 tokens), tokens (what greedy decoding gives: tokens[0] after the
                   prompt, then one per step for 64 steps), rows (positions whose logits are kept),
                   margin (the smallest gap between first and second choice of any step)
    expected.f32   those logits, [rows, vocab] little-endian fp32

Everything is computed in fp32 from the weights as stored.  dakd keeps K and V of bf16 and f16
models in that type, so for those the reference rounds K and V as they enter its cache.  Prompts are
drawn until every step has a margin of MARGIN, so that greedy tokens do not hang on rounding.

rope.json holds rows of cosines and sines of the rope kinds, far beyond what the checkpoints reach.
"""
import json
import os
import shutil

import torch
from safetensors.torch import save_file
from transformers import (AutoModelForCausalLM, DynamicCache, LlamaConfig, MistralConfig, OPTConfig,
                          Qwen2Config, Qwen3Config)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "fixtures", "models")
PROMPT = 100
STEPS = 64
ROWS = [0, 31, 63, 64, 99, 100, 131, 163]
MARGIN = 0.03

LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=16.0,
            beta_slow=2.0)


class RoundingCache(DynamicCache):
    """Keeps K and V rounded to a type, as fp32."""

    def __init__(self, config, dtype):
        super().__init__(config=config)
        self.rounding = dtype

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        key_states = key_states.to(self.rounding).float()
        value_states = value_states.to(self.rounding).float()
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def randomise(model, seed):
    gen = torch.Generator().manual_seed(seed)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=gen)
            if p is head:
                p.copy_(noise * 2.5 / p.shape[-1] ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                p.copy_(0.2 * noise)
            elif "embed" in name:
                p.copy_(noise * 0.7)
            else:
                p.copy_(noise * 1.3 / p.shape[-1] ** 0.5)


@torch.no_grad()
def run(model, prompt, dtype):
    cache = RoundingCache(model.config, dtype)
    out = model(torch.tensor([prompt]), past_key_values=cache, use_cache=True).logits[0]
    logits = [out[i] for i in range(PROMPT)]
    tokens = []
    margin = 1e9
    for step in range(STEPS + 1):
        top = torch.topk(logits[-1], 2)
        margin = min(margin, float(top.values[0] - top.values[1]))
        tokens.append(int(top.indices[0]))
        if margin < MARGIN or step == STEPS:
            break
        out = model(torch.tensor([tokens[-1:]]), past_key_values=cache, use_cache=True).logits[0]
        logits.append(out[0])
    return tokens, margin, logits


def expect(model, path, dtype, seed):
    vocab = model.config.vocab_size
    for attempt in range(3000):
        gen = torch.Generator().manual_seed(seed * 10000 + attempt)
        prompt = torch.randint(3, vocab, (PROMPT,), generator=gen).tolist()
        tokens, margin, logits = run(model, prompt, dtype)
        if margin >= MARGIN and len(set(tokens)) > 8:
            break
    else:
        raise SystemExit(f"{path}: no prompt with margins of {MARGIN}")
    with open(os.path.join(path, "expected.json"), "w") as f:
        json.dump(dict(prompt=prompt, tokens=tokens, rows=ROWS, margin=round(margin, 5)), f)
        f.write("\n")
    with open(os.path.join(path, "expected.f32"), "wb") as f:
        f.write(torch.stack([logits[r] for r in ROWS]).numpy().astype("<f4").tobytes())
    print(f"{os.path.basename(path)}: prompt {attempt}, margin {margin:.4f}, "
          f"{len(set(tokens))} distinct tokens, logits std {torch.stack(logits).std():.2f}")


def old_style(path):
    """Rewrites config.json with the keys that transformers used before version 5."""
    name = os.path.join(path, "config.json")
    with open(name) as f:
        config = json.load(f)
    rope = config.pop("rope_parameters", None)
    if rope:
        config["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        config["rope_scaling"] = None if kind == "default" else dict(type=kind, **rope)
    config["torch_dtype"] = config.pop("dtype")
    with open(name, "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")


def fixture(name, config, seed, weights=None, dtype=torch.float32, shards=None, old=False,
            copied_head=False):
    """weights: the fixture whose tensors this one shares, by a symbolic link."""
    path = os.path.join(ROOT, name)
    shutil.rmtree(path, ignore_errors=True)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.eval()
    if weights:
        own = AutoModelForCausalLM.from_pretrained(os.path.join(ROOT, weights))
        model.load_state_dict(own.state_dict())
    else:
        randomise(model, seed)
    model.to(dtype).save_pretrained(path, **({"max_shard_size": shards} if shards else {}))
    single = os.path.join(path, "model.safetensors")
    if weights:
        os.remove(single)
        os.symlink(os.path.join("..", weights, "model.safetensors"), single)
    if copied_head:
        save_file({k: v.clone().contiguous() for k, v in model.state_dict().items()}, single)
    if old:
        old_style(path)
    for entry in os.scandir(path):
        os.chmod(entry.path, 0o644)  # save_file leaves 0600
    # Read back, not converted back: model.to() rounds the rotary frequencies too.
    stored = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32,
                                                  attn_implementation="eager")
    expect(stored.eval(), path, dtype, seed)


def make_checkpoints():
    common = dict(hidden_size=64, num_hidden_layers=2, vocab_size=200, max_position_embeddings=256,
                  rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2)
    mha = dict(common, num_attention_heads=4, intermediate_size=60, vocab_size=211)
    gqa = dict(common, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
               intermediate_size=64)
    qwen2 = dict(common, num_attention_heads=4, num_key_value_heads=2, intermediate_size=72)
    qwen3 = dict(common, num_attention_heads=2, num_key_value_heads=1, head_dim=64,
                 intermediate_size=72, tie_word_embeddings=True, eos_token_id=[2, 5])
    opt = dict(hidden_size=64, num_hidden_layers=2, vocab_size=200, max_position_embeddings=256,
               num_attention_heads=4, ffn_dim=96, word_embed_proj_dim=64, dropout=0.0)

    def theta(kind=None, base=10000.0):
        return dict(kind or dict(rope_type="default"), rope_theta=base)

    fixture("llama-mha", LlamaConfig(**mha, rope_parameters=theta()), 1, old=True)
    fixture("llama-gqa", LlamaConfig(**gqa, rope_parameters=theta(base=500000.0)), 2)
    fixture("llama-linear", LlamaConfig(**gqa, rope_parameters=theta(dict(
        rope_type="linear", factor=2.5))), 3, weights="llama-gqa", old=True)
    fixture("llama-dynamic", LlamaConfig(
        **dict(gqa, max_position_embeddings=128), rope_parameters=theta(dict(
            rope_type="dynamic", factor=2.0))), 4, weights="llama-gqa", old=True)
    fixture("llama-llama3", LlamaConfig(**gqa, rope_parameters=theta(LLAMA3)), 5,
            weights="llama-gqa")
    fixture("llama-yarn", LlamaConfig(**gqa, rope_parameters=theta(YARN)), 6, weights="llama-gqa")
    fixture("llama-tied-bias", LlamaConfig(**dict(
        common, num_attention_heads=2, num_key_value_heads=1, head_dim=96, num_hidden_layers=1,
        intermediate_size=56, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        rope_parameters=theta()), 7)
    fixture("mistral", MistralConfig(**gqa, sliding_window=None, rope_parameters=theta()), 8,
            weights="llama-gqa")
    fixture("mistral-window", MistralConfig(**gqa, sliding_window=24, rope_parameters=theta()), 9,
            weights="llama-gqa")
    fixture("qwen2", Qwen2Config(**qwen2, rope_parameters=theta()), 10, old=True)
    fixture("qwen2-window", Qwen2Config(
        **qwen2, use_sliding_window=True, sliding_window=24, max_window_layers=1,
        rope_parameters=theta()), 11, weights="qwen2")
    fixture("qwen3", Qwen3Config(**qwen3, rope_parameters=theta(base=1000000.0)), 12)
    fixture("opt", OPTConfig(**opt), 13)
    fixture("llama-bf16", LlamaConfig(**gqa, rope_parameters=theta()), 14, dtype=torch.bfloat16,
            shards="120KB")
    fixture("qwen3-bf16", Qwen3Config(**qwen3, rope_parameters=theta()), 15, dtype=torch.bfloat16,
            copied_head=True)
    fixture("qwen2-f16", Qwen2Config(**qwen2, rope_parameters=theta()), 16, dtype=torch.float16,
            old=True)
    fixture("opt-f16", OPTConfig(**opt), 17, dtype=torch.float16)


def make_rope():
    def case(parameters, head_dim=32, max_positions=2048, positions=(0, 1, 77, 2047)):
        config = dict(hidden_size=head_dim * 2, num_attention_heads=2, head_dim=head_dim,
                      max_position_embeddings=max_positions, rope_parameters=parameters)
        rows = []
        for p in positions:  # a module of its own each: dynamic remembers the longest seen
            own = dict(config, rope_parameters=dict(parameters))
            rope = LlamaRotaryEmbedding(LlamaConfig(**own))
            cos, sin = rope(torch.zeros(1), torch.tensor([[p]]))
            half = head_dim // 2
            rows.append([float(f"{float(v):.9g}") for v in cos[0, 0, :half]] +
                        [float(f"{float(v):.9g}") for v in sin[0, 0, :half]])
        return dict(config=config, positions=list(positions), rows=rows)

    far = (0, 1, 100, 8191, 8192, 50000, 131071)
    cases = [
        case(dict(rope_type="default", rope_theta=10000.0)),
        case(dict(rope_type="default", rope_theta=1e6), 128, 131072, far),
        case(dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
        case(dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0), 32, 2048,
             (0, 1, 2047, 2048, 2049, 3000, 4095)),
        case(dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                  high_freq_factor=4.0, original_max_position_embeddings=8192), 128, 131072, far),
        case(dict(rope_type="yarn", rope_theta=1e6, factor=4.0,
                  original_max_position_embeddings=32768), 128, 131072, far),
        case(dict(rope_type="yarn", rope_theta=10000.0, factor=8.0, truncate=False,
                  original_max_position_embeddings=256, beta_fast=20.0, beta_slow=1.5)),
        case(dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, mscale=0.7, mscale_all_dim=1.1,
                  original_max_position_embeddings=64)),
        case(dict(rope_type="yarn", rope_theta=10000.0, factor=2.0, attention_factor=0.8,
                  original_max_position_embeddings=1024)),
    ]
    with open(os.path.join(ROOT, "rope.json"), "w") as f:
        json.dump(cases, f)
        f.write("\n")


if __name__ == "__main__":
    os.makedirs(ROOT, exist_ok=True)
    torch.set_num_threads(1)
    make_rope()
    make_checkpoints()
