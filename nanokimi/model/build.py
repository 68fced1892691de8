"""One place that knows both models."""

from __future__ import annotations

import torch

from nanokimi.config import GPTConfig, KimiConfig
from nanokimi.model.gpt import NanoGPT
from nanokimi.model.kimi import NanoKimi

LanguageModel = NanoKimi | NanoGPT


def build_model(config: KimiConfig | GPTConfig, seed: int) -> LanguageModel:
    """The model of a resolved configuration, with initial weights that follow from the seed alone."""
    torch.manual_seed(seed)
    return NanoKimi(config) if isinstance(config, KimiConfig) else NanoGPT(config)
