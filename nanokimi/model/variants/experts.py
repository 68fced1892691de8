"""Other mixtures of experts than Kimi K2's: all experts, weighted (soft), the K best of a softmax (topk), and experts
that choose tokens (expert_choice), which sees the future and is included to show that the audit detects it.

Each layer returns its output and a Routing, and has its router as `gate`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from nanokimi.config import VariantConfig
from nanokimi.model.layers import SwiGLU
from nanokimi.model.moe import MixtureOfExperts, Router, count_experts, mean_entropy
from nanokimi.model.output import Routing
from nanokimi.model.variants.attention import as_kimi
from nanokimi.model.variants.feed_forward import MLP, expert_stack, hidden_units, shared_experts


class SoftmaxRouter(nn.Module):
    """A softmax over the experts for each token. Always in at least fp32."""

    def __init__(self, config: VariantConfig) -> None:
        super().__init__()
        self.num_chosen, self.norm_topk_prob = config.num_experts_per_tok, config.norm_topk_prob
        self.scaling = config.routed_scaling_factor or 1.0
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def shares(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Softmax over the experts (M, E)."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            x_MD = x_BTD.flatten(0, 1).to(torch.promote_types(x_BTD.dtype, torch.float32))
            return F.linear(x_MD, self.weight.to(x_MD.dtype)).softmax(dim=-1)

    def forward(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Routing]:
        """The K best experts (M, K), their gates (M, K), and the routing with Switch's balance loss.

        That is E * sum of f * P (arXiv 2101.03961, eq. 4), where f is an expert's fraction of the choices, without
        gradient, and P its mean share, both over the whole batch.
        """
        shares_ME = self.shares(x_BTD)
        gates_MK, chosen_MK = shares_ME.topk(self.num_chosen, dim=-1, sorted=False)
        counts_E = count_experts(chosen_MK.view(1, -1), shares_ME.shape[1])[0]
        balance_loss = shares_ME.shape[1] * (counts_E / chosen_MK.numel() * shares_ME.mean(dim=0)).sum()
        if self.norm_topk_prob:
            gates_MK = gates_MK / gates_MK.sum(dim=-1, keepdim=True)
        return chosen_MK, gates_MK * self.scaling, Routing(counts_E, mean_entropy(shares_ME), balance_loss)


class ExpertLayer(nn.Module):
    """Router, experts and shared experts. Subclasses say how they are combined."""

    gate: Router | SoftmaxRouter
    shared_experts: MLP | SwiGLU | None

    def __init__(self, config: VariantConfig) -> None:
        super().__init__()
        sigmoid = config.experts == "sigmoid-bias"
        self.gate = Router(as_kimi(config)) if sigmoid else SoftmaxRouter(config)
        self.experts = expert_stack(config)
        self.shared_experts = shared_experts(config)

    def forward(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        """(B, T, D) -> (B, T, D) and the routing."""
        y_MD, routing = self.routed(x_BTD)
        y_BTD = y_MD.to(x_BTD.dtype).view_as(x_BTD)
        return y_BTD if self.shared_experts is None else y_BTD + self.shared_experts(x_BTD), routing

    def routed(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        """The output of the routed experts (M, D), and the routing."""
        raise NotImplementedError


class ChosenExperts(ExpertLayer):
    """Each token goes to the K experts that its router chose. No token is dropped."""

    def routed(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        """The mixture of nanokimi.model.moe with any router and any form of expert."""
        chosen_MK, gates_MK, routing = self.gate(x_BTD)
        return self.experts(x_BTD.flatten(0, 1), chosen_MK, gates_MK, routing.counts_E), routing


class SoftExperts(ExpertLayer):
    """Every expert sees every token, weighted by a softmax. Nothing is sparse, so it costs as much as all experts."""

    gate: SoftmaxRouter

    def routed(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        """The counts in the routing are sums of the softmax weights."""
        shares_ME = self.gate.shares(x_BTD)
        gates_EM1 = (shares_ME * self.gate.scaling).t().unsqueeze(-1)
        hidden_EMF = hidden_units(self.experts, x_BTD.flatten(0, 1)) * gates_EM1
        y_MD = torch.einsum("emf,edf->md", hidden_EMF.to(x_BTD.dtype), self.experts.down_proj)
        return y_MD, Routing(shares_ME.detach().sum(dim=0), mean_entropy(shares_ME), shares_ME.new_zeros(()))


class ExpertChoice(ExpertLayer):
    """Each expert takes the tokens that want it most, of the whole batch (arXiv 2202.09368). IT LEAKS.

    Whether an expert takes a token depends on all other tokens, including later ones and those of other rows. That
    makes the training loss of a language model void, and generation token by token computes another function. The load
    is perfectly even, which is why one of the earlier systems used it. It is kept to show what the audit finds.
    """

    gate: SoftmaxRouter
    needs_whole_text = True

    def __init__(self, config: VariantConfig) -> None:
        super().__init__(config)
        self.capacity_factor = config.capacity_factor

    def routed(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        """Every expert takes at least one token."""
        x_MD, shares_ME = x_BTD.flatten(0, 1), self.gate.shares(x_BTD)
        gates_EC, taken_EC = self.choose(shares_ME)
        y_ECD = hidden_units(self.experts, x_MD[taken_EC]) @ self.experts.down_proj.mT
        y_ECD = y_ECD.to(gates_EC.dtype) * (gates_EC * self.gate.scaling).unsqueeze(-1)
        y_MD = torch.zeros_like(x_MD, dtype=y_ECD.dtype).index_add(0, taken_EC.flatten(), y_ECD.flatten(0, 1))
        counts_E = torch.full((len(taken_EC),), float(taken_EC.shape[1]), device=x_MD.device)
        return y_MD, Routing(counts_E, mean_entropy(shares_ME), shares_ME.new_zeros(()))

    def choose(self, shares_ME: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The shares (E, C) and the numbers (E, C) of the tokens that each expert takes."""
        M, E = shares_ME.shape
        capacity = min(max(int(self.capacity_factor * M / E), 1), M)
        gates_EC, taken_EC = shares_ME.t().topk(capacity, dim=-1)
        return gates_EC, taken_EC


def sigmoid_bias(config: VariantConfig) -> ChosenExperts | MixtureOfExperts:
    """Kimi K2's router; with SwiGLU experts, all of Kimi K2's own layer."""
    return MixtureOfExperts(as_kimi(config)) if config.feed_forward == "swiglu" else ChosenExperts(config)


EXPERTS: dict[str, Callable[[VariantConfig], nn.Module]] = {
    "soft": SoftExperts,
    "topk": ChosenExperts,
    "sigmoid-bias": sigmoid_bias,
    "expert_choice": ExpertChoice,
}
"""The module of each mixture; config/variant_parts.py has its settings, checks and costs under the same name."""
