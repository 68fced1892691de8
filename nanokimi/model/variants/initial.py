"""The initial weights of a variant, for all of its parts."""

from __future__ import annotations

import math

import torch
from torch import nn

from nanokimi.config import VariantConfig
from nanokimi.model.layers import RMSNorm
from nanokimi.model.moe import Experts, Router
from nanokimi.model.variants.experts import SoftmaxRouter
from nanokimi.model.variants.feed_forward import StackedMLP

RESIDUAL_OUTPUTS = ("o_proj", "down_proj")


@torch.no_grad()
def initialise_(model: nn.Module, config: VariantConfig) -> None:
    """Matrices and biases follow `config.initialization`, and norm gains are 1.

    A part that has parameters of another kind initialises them in `init_own_weights`.
    """
    if config.initialization in ("gpt2", "flat"):
        normal_(model, config)
    else:
        uniform_(model, config)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | RMSNorm):
            nn.init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif callable(init_own_weights := getattr(module, "init_own_weights", None)):
            init_own_weights()


def normal_(model: nn.Module, config: VariantConfig) -> None:
    """Zero biases and normal matrices; with "gpt2" those of residual outputs divided by the root of their number."""
    std = small = config.initializer_range
    if config.initialization == "gpt2":
        small /= math.sqrt(2 * config.num_hidden_layers)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=small if name.endswith(RESIDUAL_OUTPUTS) else std)
        elif isinstance(module, Experts | StackedMLP | Router | SoftmaxRouter):
            for key, parameter in module.named_parameters():
                nn.init.normal_(parameter, std=small if key in RESIDUAL_OUTPUTS else std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def uniform_(model: nn.Module, config: VariantConfig) -> None:
    """As in torch's own layers, with each expert and the router as an nn.Linear, or with Glorot's formula ("xavier").

    torch draws the weights and biases of a linear layer uniformly within 1 / sqrt(inputs), and embeddings from the
    standard normal distribution. Glorot (AISTATS 2010, eq. 16) draws every matrix within sqrt(6 / (inputs + outputs)).
    """
    xavier = config.initialization == "xavier"
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
            matrices = [module.weight] if xavier else []
        elif isinstance(module, nn.Linear):
            if module.bias is not None:
                nn.init.uniform_(module.bias, *within(module.in_features**-0.5))
            tied = name == "lm_head" and config.tie_word_embeddings
            matrices = [] if tied else [module.weight]  # tied: it is the embedding's
        elif isinstance(module, Experts | StackedMLP | Router | SoftmaxRouter):
            matrices = list(module.parameters())
        else:
            continue
        for matrix in matrices:
            outputs, inputs = matrix.shape[-2:]
            nn.init.uniform_(matrix, *within((6 / (inputs + outputs)) ** 0.5 if xavier else inputs**-0.5))


def within(bound: float) -> tuple[float, float]:
    """The interval from minus the bound to the bound."""
    return -bound, bound
