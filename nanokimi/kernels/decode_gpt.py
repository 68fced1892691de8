"""Decoding of NanoGPT on a CPU, batch 1, in C (decode_gpt.c): one call per token instead of a hundred of torch's."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from nanokimi.kernels.structs import KERNELS, Fields, Layers, here, pointers, struct
from nanokimi.model.cache import Cache
from nanokimi.model.gpt import GPTBlock, NanoGPT
from nanokimi.runtime.c_compiler import native_library

GPTLayer = struct(
    "width heads hidden",
    "eps",
    "gain_1 shift_1 in in_bias out out_bias gain_2 shift_2 up up_bias down down_bias keys values",
)


class NativeGPT:
    """Decodes like the NanoGPT that it is made from, whose weights it reads in place."""

    def __init__(self, model: NanoGPT, decode: Callable[..., None]) -> None:
        self.model, self.decode = model, decode
        decoder = model.transformer
        self.layers = Layers(GPTLayer, [gpt_fields(cast(GPTBlock, block)) for block in decoder.h])
        last = (decoder.ln_f.weight, decoder.ln_f.bias, model.lm_head.weight)
        self.last = [None if p is None else ctypes.c_void_p(self.layers.address(p)) for p in last]

    @torch.inference_mode()
    def __call__(self, token: int, cache: Cache) -> torch.Tensor:
        """Append one token to the cache and return the next logits (W,)."""
        position, decoder = cache.length, self.model.transformer
        self.layers.point_to(cache, "keys", "values")
        x_D = decoder.wte.weight[token] + decoder.wpe.weight[position]
        logits_W = x_D.new_empty(decoder.wte.num_embeddings)
        layers = self.layers.structs
        self.decode(layers, len(layers), *self.last, len(logits_W), *pointers(x_D), *here(position, logits_W))
        return logits_W


def gpt_library() -> ctypes.CDLL | None:
    """The functions of decode_gpt.c, or None where they cannot be compiled."""
    return native_library(KERNELS / "decode_gpt.c")


def native_gpt(model: NanoGPT) -> NativeGPT | None:
    """The decoder in C, or None if this machine cannot compile it."""
    library = gpt_library()
    return None if library is None else NativeGPT(model, library.decode_gpt)


def gpt_fields(block: GPTBlock) -> Fields:
    """Sizes and matrices of a block."""
    linear: dict[str, nn.Linear] = {
        **{"in": block.attn.c_attn, "out": block.attn.c_proj},
        **{"up": block.mlp.c_fc, "down": block.mlp.c_proj},
    }
    fields: Fields = {
        "width": block.attn.c_proj.in_features,
        "heads": block.attn.num_heads,
        "hidden": block.mlp.c_fc.out_features,
        "eps": block.ln_1.eps,
    }
    for number, norm in ((1, block.ln_1), (2, block.ln_2)):
        fields |= {f"gain_{number}": norm.weight, f"shift_{number}": norm.bias}
    for name, layer in linear.items():
        fields |= {name: layer.weight, f"{name}_bias": layer.bias}
    return fields
