"""Decoding in C (kernels/decode_kimi.c, decode_gpt.c): one call a token instead of a hundred operations of torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from nanokimi.model.cache import Cache
from nanokimi.model.folded import FoldedAttention, FoldedDense, FoldedExperts, FoldedKimi
from nanokimi.model.gpt import GPTBlock, NanoGPT
from nanokimi.runtime.native import KERNELS, native_library, pointers, struct

Fields = dict[str, int | float | torch.Tensor | None]


KimiLayer = struct(
    "width heads latent rotary query_low dense shared experts chosen expert_width normalise",
    "scaling eps latent_eps",
    "in query_down query_up latent_gain out first bias down expert_gate_up expert_down rows",
)
GPTLayer = struct(
    "width heads hidden",
    "eps",
    "gain_1 shift_1 in in_bias out out_bias gain_2 shift_2 up up_bias down down_bias keys values",
)


class Layers:
    """An array of structs, and the tensors that they point to."""

    def __init__(self, kind: type[ctypes.Structure], layers: list[Fields]) -> None:
        self.structs = (kind * len(layers))()
        self.kept: list[torch.Tensor] = []
        for one, fields in zip(self.structs, layers, strict=True):
            for name, value in fields.items():
                setattr(one, name, self.address(value) if isinstance(value, torch.Tensor) else value)

    def address(self, tensor: torch.Tensor) -> int:
        """Where the tensor lies, or a contiguous copy of it, as long as this object lives."""
        self.kept.append(tensor.detach().contiguous())
        return self.kept[-1].data_ptr()

    def point_to(self, cache: Cache, *names: str) -> None:
        """Make room for one token more, and let the members `names` point to the buffers of each layer's cache."""
        assert cache.length > 0, "the prompt comes first: read it with the model"
        for layer in cache.layers:
            for buffer in layer.buffers:
                assert buffer.dtype == torch.float32 and len(buffer) == 1, "C reads one sequence in fp32"
        for one, layer in zip(self.structs, cache.layers, strict=True):
            layer.extend()
            for name, buffer in zip(names, layer.buffers, strict=True):
                setattr(one, name, buffer.data_ptr())


class NativeKimi:
    """Decodes as the FoldedKimi that it is made of, which holds the weights."""

    def __init__(self, folded: FoldedKimi, decode: Callable[..., None]) -> None:
        self.folded, self.decode = folded, decode
        fields = [attention_fields(a) | feed_forward_fields(f) for a, f in folded.layers]
        self.layers = Layers(KimiLayer, fields)
        self.turns_SR = torch.view_as_real(folded.turns_SR).flatten(1).contiguous()
        self.head = ctypes.c_void_p(self.layers.address(folded.head_WD))

    @torch.inference_mode()
    def __call__(self, token: int, cache: Cache) -> torch.Tensor:
        """Append one token to the cache; return the logits (W,) of the next."""
        position = cache.length
        self.layers.point_to(cache, "rows")
        x_D = self.folded.embedding_WD[token].clone()
        logits_W = x_D.new_empty(len(self.folded.head_WD))
        layers, turn = self.layers.structs, self.turns_SR[position]
        self.decode(
            layers,
            len(layers),
            self.head,
            len(logits_W),
            *pointers(x_D, turn),
            *here(position, logits_W),
        )
        return logits_W


class NativeGPT:
    """Decodes as the NanoGPT that it is made of, reading its weights where they lie."""

    def __init__(self, model: NanoGPT, decode: Callable[..., None]) -> None:
        self.model, self.decode = model, decode
        decoder = model.transformer
        self.layers = Layers(GPTLayer, [gpt_fields(cast(GPTBlock, block)) for block in decoder.h])
        last = (decoder.ln_f.weight, decoder.ln_f.bias, model.lm_head.weight)
        self.last = [None if p is None else ctypes.c_void_p(self.layers.address(p)) for p in last]

    @torch.inference_mode()
    def __call__(self, token: int, cache: Cache) -> torch.Tensor:
        """Append one token to the cache; return the logits (W,) of the next."""
        position, decoder = cache.length, self.model.transformer
        self.layers.point_to(cache, "keys", "values")
        x_D = decoder.wte.weight[token] + decoder.wpe.weight[position]
        logits_W = x_D.new_empty(decoder.wte.num_embeddings)
        layers = self.layers.structs
        self.decode(layers, len(layers), *self.last, len(logits_W), *pointers(x_D), *here(position, logits_W))
        return logits_W


def native_kimi(folded: FoldedKimi) -> NativeKimi | None:
    """The decoder in C, if this machine can compile it."""
    library = native_library(KERNELS / "decode_kimi.c")
    return None if library is None else NativeKimi(folded, library.decode_kimi)


def native_gpt(model: NanoGPT) -> NativeGPT | None:
    """The decoder in C, if this machine can compile it."""
    library = native_library(KERNELS / "decode_gpt.c")
    return None if library is None else NativeGPT(model, library.decode_gpt)


def here(position: int, logits_W: torch.Tensor) -> list[Any]:
    """The last arguments of both functions: position, threads, and where the logits go."""
    return [position, torch.get_num_threads(), *pointers(logits_W)]


def attention_fields(attention: FoldedAttention) -> Fields:
    """Sizes and matrices of a layer's attention."""
    fields: Fields = {
        "width": attention.in_XD.shape[1],
        "heads": attention.heads,
        "latent": attention.latent_dim,
        "rotary": attention.rotary_dim,
        "eps": attention.eps,
        "latent_eps": attention.latent_eps,
        "in": attention.in_XD,
        "latent_gain": attention.latent_gain_C,
        "out": attention.out_DX,
    }
    if attention.q_low is not None:
        down_QD, up_XQ = attention.q_low
        fields |= {"query_low": len(down_QD), "query_down": down_QD, "query_up": up_XQ}
    return fields


def feed_forward_fields(part: FoldedDense | FoldedExperts) -> Fields:
    """Sizes and matrices of a layer's feed-forward part."""
    if isinstance(part, FoldedDense):
        return {"dense": part.down_DF.shape[1], "first": part.gate_up_GD, "down": part.down_DF}
    fields: Fields = {
        "experts": len(part.down_EDF),
        "chosen": part.num_chosen,
        "expert_width": part.down_EDF.shape[2],
        "normalise": int(part.norm_topk_prob),
        "scaling": part.scaling,
        "first": part.first_XD,
        "bias": part.bias_E,
        "expert_gate_up": part.gate_up_EGD,
        "expert_down": part.down_EDF,
    }
    if part.shared_down_DF is not None:
        fields |= {"shared": part.shared_down_DF.shape[1], "down": part.shared_down_DF}
    return fields


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
