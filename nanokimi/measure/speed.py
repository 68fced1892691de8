"""Timing of any callable after warm-up, with the device synchronised: median and quartiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import cast

import torch

from nanokimi.kernels.decode import decode_step, decoding_model
from nanokimi.model.build import LanguageModel
from nanokimi.model.cache import Cache
from nanokimi.runtime.device import fenced_seconds


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the median and the quartiles of repeated calls."""

    median_ms: float
    lower_ms: float
    upper_ms: float


def time_calls(
    call: Callable[[], object], device: torch.device, *, repeats: int = 20, warm_up: int = 3
) -> Timing:
    """Time `call` after `warm_up` calls that are not counted."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(repeats):
        start = fenced_seconds(device)
        call()
        times.append((fenced_seconds(device) - start) * 1e3)
    lower, _, upper = quantiles(times, n=4)
    return Timing(median(times), lower, upper)


@torch.inference_mode()
def generation_latency(model: LanguageModel, context_length: int) -> tuple[Timing, Timing]:
    """Timings of prefill (reading a prompt of half the context) and of decoding one more token. Batch 1, fp32.

    As in generation, a small model on a GPU does both on the CPU.
    """
    if getattr(model, "can_cache", True):
        model = cast(LanguageModel, decoding_model(model))
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    layers = model.config.num_hidden_layers
    prompt_length = max(context_length // 2, 1)
    prompt_1T = torch.zeros(1, prompt_length, dtype=torch.long, device=device)
    prefill = time_calls(lambda: model(prompt_1T, Cache(layers, context_length)), device)
    if not getattr(model, "can_cache", True):  # the whole window is read again for each token
        longer_1T = prompt_1T.new_zeros(1, min(prompt_length + 1, context_length))
        decoded = time_calls(lambda: model(longer_1T), device)
        model.train(was_training)
        return prefill, decoded
    decode = decode_step(model)
    cache = Cache(layers, context_length)
    model(prompt_1T, cache)

    def decode_one() -> None:
        for layer in cache.layers:  # always at the same position, so that every call does equal work
            layer.length = min(prompt_length, context_length - 1)
        decode(0, cache)

    decoded = time_calls(decode_one, device, repeats=50)
    model.train(was_training)
    return prefill, decoded
