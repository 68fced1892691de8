"""Feed-forward layers, dense or as a stack of experts: two matrices around GELU, ReLU or squared ReLU, or SwiGLU."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from nanokimi.config import VariantConfig
from nanokimi.config.rules_variant import dense_width
from nanokimi.model.layers import SwiGLU
from nanokimi.model.moe import Experts, by_expert, expert_linear
from nanokimi.model.variants.attention import as_kimi

Activation = Callable[[torch.Tensor], torch.Tensor]


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """The square of ReLU (Primer, arXiv 2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Activation] = {"gelu": F.gelu, "relu": F.relu, "relu2": squared_relu}


class MLP(nn.Module):
    """down(act(up x))."""

    def __init__(self, form: str, hidden_size: int, intermediate_size: int, bias: bool) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[form]
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.down_proj(self.activation(self.up_proj(x_BTD)))


def dense_layer(config: VariantConfig) -> MLP | SwiGLU:
    """The feed-forward layer of a block without experts."""
    if config.feed_forward == "swiglu":
        return SwiGLU(config.hidden_size, dense_width(config))
    return MLP(config.feed_forward, config.hidden_size, dense_width(config), config.bias)


def shared_experts(config: VariantConfig) -> MLP | SwiGLU | None:
    """The experts that see every token, as one layer."""
    width = config.n_shared_experts * config.moe_intermediate_size
    if width == 0:
        return None
    if config.feed_forward == "swiglu":
        return SwiGLU(config.hidden_size, width)
    return MLP(config.feed_forward, config.hidden_size, width, bias=False)


class StackedMLP(nn.Module):
    """E experts down(act(up x)), their matrices stacked on the first axis."""

    linear = staticmethod(expert_linear)
    """`kernels` may replace it by a faster function with the same arguments."""

    def __init__(self, config: VariantConfig) -> None:
        super().__init__()
        E, F_, D = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.activation = ACTIVATIONS[config.feed_forward]
        self.up_proj = nn.Parameter(torch.empty(E, F_, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, F_))

    def forward(
        self, x_MD: torch.Tensor, chosen_MK: torch.Tensor, gates_MK: torch.Tensor, counts_E: torch.Tensor
    ) -> torch.Tensor:
        """sum_k gates[m, k] * (expert chosen[m, k] on token m), (M, D) -> (M, D), like `moe.Experts`."""

        def experts(x_PD: torch.Tensor) -> torch.Tensor:
            hidden_PF = self.activation(self.linear(x_PD, counts_E, self.up_proj))
            return self.linear(hidden_PF, counts_E, self.down_proj)

        return by_expert(experts, x_MD, chosen_MK, gates_MK)


Stack = Experts | StackedMLP


def expert_stack(config: VariantConfig) -> Stack:
    """E experts of the configured form."""
    return Experts(as_kimi(config)) if config.feed_forward == "swiglu" else StackedMLP(config)


def hidden_units(stack: Stack, x_EMD: torch.Tensor) -> torch.Tensor:
    """Hidden units (E, M, F) of each expert, for its own rows (E, M, D) or for rows that all share (M, D)."""
    up_EMF = x_EMD @ stack.up_proj.mT
    if isinstance(stack, Experts):
        return F.silu(x_EMD @ stack.gate_proj.mT) * up_EMF
    return stack.activation(up_EMF)
