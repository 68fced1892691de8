"""Decoding of one sequence, by the model itself, or faster on a CPU with absorbed weights and in C."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from nanokimi.kernels.accelerate import accelerate_
from nanokimi.kernels.decode_gpt import gpt_library, native_gpt
from nanokimi.kernels.decode_kimi import AbsorbedKimi, kimi_library, native_kimi
from nanokimi.kernels.structs import Choice
from nanokimi.model.cache import Cache
from nanokimi.model.gpt import NanoGPT
from nanokimi.model.kimi import NanoKimi

# Parameters. In larger models reading the weights takes the time, and absorbing makes them larger.
LARGEST_ABSORBED = 30_000_000
# Parameters of a model that decodes on the CPU although it is on a GPU. There, one token of a small model costs nothing
# but launches (docs/gpu.md counts them), about 5 us each, for which a CPU reads some MB of weights. Estimated only.
LARGEST_ON_CPU = 5_000_000

DECODING = "decoded token"
GPT_IN_C, ABSORBED, ABSORBED_IN_C = "C", "absorbed weights", "absorbed weights, C"
ON_CPU = "a copy on the CPU"
DecodeStep = Callable[[int, Cache], torch.Tensor]


def model_step(model: nn.Module) -> DecodeStep:
    """The reference: the model's own forward pass with one more token."""
    device = next(model.parameters()).device

    def step(token: int, cache: Cache) -> torch.Tensor:
        return cast(torch.Tensor, model(torch.tensor([[token]], device=device), cache).logits_BTW[0, -1])

    return step


def decoding_model(model: nn.Module) -> nn.Module:
    """The model that decodes for a model: itself, or, for a small one on a GPU, a copy on the CPU."""
    if not decodes_on_cpu(model):
        return model
    copied = copy.deepcopy(model).cpu()
    accelerate_(copied)
    return copied


def decodes_on_cpu(model: nn.Module) -> bool:
    """Whether a CPU is taken to decode faster than the GPU that this model is on."""
    weight = next(model.parameters())
    return (
        weight.device.type in ("cuda", "mps")
        and weight.dtype == torch.float32
        and isinstance(model, NanoGPT | NanoKimi)
        and sum(p.numel() for p in model.parameters()) <= LARGEST_ON_CPU
    )


def decode_step(model: nn.Module) -> DecodeStep:
    """The fastest function for this model and machine: (token id, cache of all earlier tokens) -> next logits (W,).

    For a small NanoKimi it holds absorbed copies of the present weights.
    """
    return decode_choice(model)[1]


def decode_choice(model: nn.Module) -> tuple[Choice, DecodeStep]:
    """The choice that `decode_step` makes, and the function itself."""
    choice = decode_form(model)
    if choice.form == GPT_IN_C:
        return choice, cast(DecodeStep, native_gpt(cast(NanoGPT, model)))
    if choice.form in (ABSORBED, ABSORBED_IN_C):
        absorbed = AbsorbedKimi(cast(NanoKimi, model))
        return choice, absorbed if choice.form == ABSORBED else cast(DecodeStep, native_kimi(absorbed))
    return choice, model_step(model)


def decode_form(model: nn.Module) -> Choice:
    """The choice that `decode_step` makes, without making the function."""
    weight = next(model.parameters())
    if decodes_on_cpu(model):
        return Choice(DECODING, ON_CPU, "a small model on a GPU, where launches take the time")
    fp32_on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    exact_gpt = isinstance(model, NanoGPT) and model.config.activation_function == "gelu"
    if fp32_on_cpu and exact_gpt and gpt_library() is not None:
        return Choice(DECODING, GPT_IN_C, "NanoGPT in fp32 on a CPU, and a C compiler")
    small = isinstance(model, NanoKimi) and sum(p.numel() for p in model.parameters()) <= LARGEST_ABSORBED
    if fp32_on_cpu and small:
        form = ABSORBED if kimi_library() is None else ABSORBED_IN_C
        return Choice(DECODING, form, "a small NanoKimi in fp32 on a CPU")
    return Choice(DECODING, "reference", "nothing faster here")
