"""`build_model`: the model of any configuration."""

from __future__ import annotations

import torch

from nanokimi.config import GPTConfig, KimiConfig, ModelConfig, ModuleConfig
from nanokimi.model.gpt import NanoGPT
from nanokimi.model.kimi import NanoKimi
from nanokimi.model.user_module import UserModule
from nanokimi.model.variants.variant import Variant
from nanokimi.runtime.device import is_out_of_memory

LanguageModel = NanoKimi | NanoGPT | Variant | UserModule


def build_model(config: ModelConfig, seed: int) -> LanguageModel:
    """The model of a resolved configuration. Its initial weights depend on the seed alone.

    Raises MemoryError if it does not fit into memory.
    """
    torch.manual_seed(seed)
    try:
        if isinstance(config, KimiConfig):
            return NanoKimi(config)
        if isinstance(config, ModuleConfig):
            return UserModule(config)
        return NanoGPT(config) if isinstance(config, GPTConfig) else Variant(config)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise MemoryError("the model's weights do not fit into memory: make it smaller") from None
        raise
