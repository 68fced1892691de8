"""The sizes of a GPU day's speed part: GPT-2's 124M for NanoGPT, and a NanoKimi with as many active parameters."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import rows

from nanokimi.config import RunConfig
from nanokimi.config.files import load_config
from nanokimi.profiling.bench import synthetic_config

VOCABULARY, CONTEXT, BATCH = 50304, 1024, 12  # nanoGPT's bench.py
GPT2 = """\
dataset: {tokenizer: bpe, vocab_size: 50304}
train: {context_length: 1024, batch_size: 12, eval_batch_size: 12, max_steps: 1000000, device: cuda}
nanogpt:
  model: {hidden_size: 768, num_hidden_layers: 12, num_attention_heads: 12, bias: false}
  optim: {lr: 1.0e-4, betas: [0.9, 0.95], weight_decay: 0.01}
nanokimi:
  model:
    {hidden_size: 768, num_hidden_layers: 12, num_attention_heads: 12, q_lora_rank: 384, kv_lora_rank: 128,
     qk_nope_head_dim: 64, qk_rope_head_dim: 32, v_head_dim: 64, intermediate_size: 2304, moe_intermediate_size: 768,
     n_routed_experts: 16, num_experts_per_tok: 2}
  optim: {name: muonclip, lr: 1.0e-4}
"""
TINY = """\
dataset: {tokenizer: bpe, vocab_size: 512}
train: {context_length: 32, batch_size: 4, eval_batch_size: 4, max_steps: 1000000, device: cuda}
nanogpt:
  model: {hidden_size: 48, num_hidden_layers: 2, num_attention_heads: 3, bias: false}
nanokimi:
  model:
    {hidden_size: 48, num_hidden_layers: 2, num_attention_heads: 3, q_lora_rank: 24, kv_lora_rank: 16,
     qk_nope_head_dim: 16, qk_rope_head_dim: 8, v_head_dim: 16, intermediate_size: 128, moe_intermediate_size: 48,
     n_routed_experts: 4, num_experts_per_tok: 2}
  optim: {name: muonclip}
"""
PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "3090": 71e12}
"""Dense bf16 products per second by the datasheets, by a word of the GPU's name."""


def sized(tiny: bool, model: str, **train: Any) -> RunConfig:
    """A model's configuration for synthetic tokens, with changes of its `train` group."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sizes.yaml"
        path.write_text(TINY if tiny else GPT2)
        config = synthetic_config(load_config(str(path), ["--model", model]))
    return replace(config, train=replace(config.train, **train))


def peak_of(gpu: dict[str, Any] | None) -> float | None:
    """The datasheet's bf16 rate of a GPU; None if it is not known."""
    name = "" if gpu is None else gpu["name"]
    return next((rate for word, rate in PEAK_BF16.items() if word in name), None)


assert rows  # it makes nanokimi importable
