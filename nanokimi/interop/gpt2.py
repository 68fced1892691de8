"""NanoGPT as GPT-2 (transformers' GPT2LMHeadModel), and back: the configuration and the weights.

The names of parameters are the same. The stock class stores four matrices of each block transposed and has every bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nanokimi.config import GPTConfig
from nanokimi.errors import UserError
from nanokimi.interop.deepseek import Tensors, checked

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""Stored transposed."""
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
BUFFERS = (".attn.bias", ".attn.masked_bias")
"""Causal masks that older files hold."""
NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
}
"""GPT-2's settings and ours."""
DEFAULTS: dict[str, Any] = {
    **{"n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None, "n_positions": 1024, "vocab_size": 50257},
    **{"layer_norm_epsilon": 1e-5, "initializer_range": 0.02},
}


def gpt2_config(config: GPTConfig) -> dict[str, Any]:
    """The config.json of a resolved NanoGPT, without the ids of special tokens."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(config, ours) for theirs, ours in NAMES.items()},
        "activation_function": config.activation_function,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "tie_word_embeddings": True,
    }


def gpt_config(content: Mapping[str, Any], *, bias: bool) -> GPTConfig:
    """The NanoGPT of a GPT-2 config.json.

    Raises UserError for a setting that NanoGPT does not have, or that has an impossible value.
    """
    activation = content.get("activation_function", "gelu_new")
    if activation not in ("gelu", "gelu_new"):
        raise UserError(f"config.json has activation_function {activation}, and NanoGPT gelu or gelu_new")
    if not content.get("tie_word_embeddings", True):
        raise UserError("config.json has a head of its own (tie_word_embeddings false), and NanoGPT none")
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if content.get(name):
            raise UserError(f"config.json has {name}, which NanoGPT does not have")
    if not content.get("scale_attn_weights", True):
        raise UserError("config.json has scale_attn_weights false, and NanoGPT scales the attention's logits")
    dropouts = [content.get(f"{name}_pdrop", 0.1) or 0.0 for name in ("resid", "embd", "attn")]
    values = {ours: content.get(theirs, DEFAULTS[theirs]) for theirs, ours in NAMES.items()}
    dropout = dropouts[0] if dropouts.count(dropouts[0]) == len(dropouts) else 0.0
    return checked(GPTConfig, {**values, "bias": bias, "dropout": dropout, "activation_function": activation})


def to_gpt2(weights: Mapping[str, torch.Tensor]) -> Tensors:
    """The tensors of a stock folder: matrices transposed, missing biases 0, the tied head left out."""
    result: Tensors = {}
    for name, tensor in weights.items():
        if name == HEAD:
            continue
        result[name] = tensor.t().contiguous() if name.endswith(CONV1D) else tensor.contiguous()
        bias = name.removesuffix("weight") + "bias"
        if (
            not name.endswith(("wte.weight", "wpe.weight"))
            and name.endswith(".weight")
            and bias not in weights
        ):
            result[bias] = torch.zeros(tensor.shape[0])
    return result


def from_gpt2(tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, bool]:
    """Our state dictionary from the tensors of a folder, in fp32, and whether the model needs biases.

    Biases that are all 0 are left out together.
    """
    result: Tensors = {}
    for name, tensor in tensors.items():
        name = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        if name.endswith(BUFFERS) and tensor.dim() != 1 or name.endswith(".masked_bias"):
            continue
        wide = tensor.float()
        result[name] = wide.t().contiguous() if name.endswith(CONV1D) and wide.dim() == 2 else wide
    biases = [name for name in result if name.endswith(".bias")]
    used = any(bool(result[name].any()) for name in biases)
    if not used:
        result = {name: tensor for name, tensor in result.items() if not name.endswith(".bias")}
    if EMBEDDING in result:
        head = result.setdefault(HEAD, result[EMBEDDING])
        if not torch.equal(head, result[EMBEDDING]):
            raise UserError("the weights have a head that differs from the embedding, and NanoGPT ties them")
    return result, used
