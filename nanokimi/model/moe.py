"""The mixture of experts of DeepSeek-V3 and Kimi K2 (arXiv 2412.19437, section 2.1.2).

A router sends each token to K of E small feed-forward experts, and a shared expert sees every token. The choice depends
on the token alone, never on other tokens, so the model stays causal. The load is balanced by a bias that affects the
choice but not the gates and is adjusted after each step (arXiv 2408.15664), and by a small loss for each sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from nanokimi.config import KimiConfig
from nanokimi.config.rules import routed_scaling
from nanokimi.model.layers import SwiGLU
from nanokimi.model.output import Routing

ExpertLinear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the `count` largest numbers of the last axis, in no particular order."""
    return scores.topk(count, dim=-1, sorted=False).indices


class Router(nn.Module):
    """Sigmoid scores, a choice of the top K that adds a bias, and normalised, scaled gates. Always in at least fp32."""

    largest = staticmethod(largest)
    """`kernels` may replace it by a faster function with the same arguments."""

    e_score_correction_bias: torch.Tensor

    def __init__(self, config: KimiConfig) -> None:
        super().__init__()
        self.num_chosen = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.scaling = config.routed_scaling_factor or routed_scaling(
            config.n_routed_experts, self.num_chosen
        )
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))

    def forward(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Routing]:
        """Return the chosen experts (M, K), their gates (M, K) and the routing."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            # not .float(), so that a float64 model routes in float64
            x = x_BTD if x_BTD.dtype == torch.float64 else x_BTD.float()
            scores_BTE = F.linear(x, self.weight.to(x.dtype)).sigmoid()
            scores_ME = scores_BTE.flatten(0, 1)
            chosen_MK = self.largest(scores_ME + self.e_score_correction_bias, self.num_chosen)
            gates_MK = scores_ME.gather(1, chosen_MK)
            if self.norm_topk_prob:
                gates_MK = gates_MK / (gates_MK.sum(dim=-1, keepdim=True) + 1e-20)
            routing = self._report(scores_BTE, chosen_MK)
        return chosen_MK, gates_MK * self.scaling, routing

    def _report(self, scores_BTE: torch.Tensor, chosen_MK: torch.Tensor) -> Routing:
        B, T, E = scores_BTE.shape
        counts_E = count_experts(chosen_MK.view(1, -1), E)[0]
        shares_BTE = scores_BTE / scores_BTE.sum(dim=-1, keepdim=True)
        # Equations 17 to 20, for each sequence: f is an expert's share of the choices that the scores would make
        # without the bias (1 if the load is even), P its mean score. f has no gradient.
        own_choice_BTK = self.largest(scores_BTE, self.num_chosen)
        f_BE = count_experts(own_choice_BTK.flatten(1), E).to(scores_BTE.dtype) * (E / (self.num_chosen * T))
        balance_loss = (f_BE * shares_BTE.mean(dim=1)).sum(dim=-1).mean()
        return Routing(counts_E, mean_entropy(shares_BTE), balance_loss)

    @torch.no_grad()
    def update_bias_(self, counts_E: torch.Tensor, speed: float) -> None:
        """Make experts with less than their share of tokens more likely to be chosen, and the others less likely.

        The update is centred, as in Moonlight. That changes no choice and keeps the biases from drifting.
        """
        direction_E = (counts_E.mean() - counts_E).sign()
        self.e_score_correction_bias += speed * (direction_E - direction_E.mean())


def mean_entropy(shares: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the entropy, in nats, of the shares on the last axis."""
    return -(shares * shares.clamp_min(1e-20).log()).sum(dim=-1).mean().detach()


def count_experts(chosen_BP: torch.Tensor, experts: int) -> torch.Tensor:
    """How often each expert occurs in each row, (B, E), in fp32: exact, and without waiting for the device."""
    counts_BE = torch.zeros(chosen_BP.shape[0], experts, device=chosen_BP.device)
    return counts_BE.scatter_add_(1, chosen_BP, torch.ones_like(chosen_BP, dtype=torch.float32))


def expert_linear(x_PD: torch.Tensor, counts_E: torch.Tensor, weight_EFD: torch.Tensor) -> torch.Tensor:
    """Each row times its expert's matrix, (P, F). Rows are sorted by expert, with counts_E[e] rows for expert e."""
    rows = x_PD.split([int(n) for n in counts_E.tolist()])
    return torch.cat([F.linear(x, weight) for x, weight in zip(rows, weight_EFD.unbind(0), strict=True)])


def by_expert(
    experts: Callable[[torch.Tensor], torch.Tensor],
    x_MD: torch.Tensor,
    chosen_MK: torch.Tensor,
    gates_MK: torch.Tensor,
) -> torch.Tensor:
    """sum_k gates[m, k] * (expert chosen[m, k] on token m), (M, D) -> (M, D).

    `experts` takes the token-expert pairs sorted by expert, (P, D) -> (P, D).
    """
    K, order_P = chosen_MK.shape[1], chosen_MK.flatten().argsort(stable=True)
    # Permutations, unlike scattered additions, are deterministic forward and backward.
    y_PD = experts(x_MD.repeat_interleave(K, dim=0).index_select(0, order_P))
    y_MKD = y_PD.index_select(0, order_P.argsort()).unflatten(0, (-1, K))
    return (y_MKD.to(gates_MK.dtype) * gates_MK.unsqueeze(-1)).sum(dim=1)


def mix_experts(
    x_MD: torch.Tensor,
    chosen_MK: torch.Tensor,
    gates_MK: torch.Tensor,
    counts_E: torch.Tensor,
    matrices: tuple[torch.Tensor, ...],
    linear: ExpertLinear = expert_linear,
) -> torch.Tensor:
    """The chosen SwiGLU experts of each token, weighted by their gates, (M, D) -> (M, D).

    `matrices` are gate (E, F, D), up (E, F, D) and down (E, D, F), and `counts_E` the tokens of each expert.
    """
    gate_EFD, up_EFD, down_EDF = matrices

    def experts(x_PD: torch.Tensor) -> torch.Tensor:
        hidden_PF = F.silu(linear(x_PD, counts_E, gate_EFD)) * linear(x_PD, counts_E, up_EFD)
        return linear(hidden_PF, counts_E, down_EDF)

    return by_expert(experts, x_MD, chosen_MK, gates_MK).to(x_MD.dtype)


class Experts(nn.Module):
    """E SwiGLU experts, their matrices stacked on the first axis."""

    mix = staticmethod(mix_experts)
    """`kernels` may replace it by a faster function with the same arguments."""

    def __init__(self, config: KimiConfig) -> None:
        super().__init__()
        E, F_, D = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_proj = nn.Parameter(torch.empty(E, F_, D))
        self.up_proj = nn.Parameter(torch.empty(E, F_, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, F_))

    def forward(
        self, x_MD: torch.Tensor, chosen_MK: torch.Tensor, gates_MK: torch.Tensor, counts_E: torch.Tensor
    ) -> torch.Tensor:
        """sum_k gates[m, k] * (expert chosen[m, k] on token m), (M, D) -> (M, D)."""
        matrices = (self.gate_proj, self.up_proj, self.down_proj)
        return self.mix(x_MD, chosen_MK, gates_MK, counts_E, matrices)


class MixtureOfExperts(nn.Module):
    """Routed experts and a shared one. There is no capacity limit, and no token is dropped."""

    def __init__(self, config: KimiConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts: SwiGLU | None = None
        if config.n_shared_experts > 0:
            self.shared_experts = SwiGLU(
                config.hidden_size, config.n_shared_experts * config.moe_intermediate_size
            )

    def forward(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, Routing]:
        """(B, T, D) -> (B, T, D) and the routing."""
        chosen_MK, gates_MK, routing = self.gate(x_BTD)
        y_MD = self.experts(x_BTD.flatten(0, 1), chosen_MK, gates_MK, routing.counts_E)
        y_BTD = y_MD.view_as(x_BTD)
        if self.shared_experts is not None:
            y_BTD = y_BTD + self.shared_experts(x_BTD)
        return y_BTD, routing
