"""The mixture of experts of DeepSeek-V3 and Kimi K2 (arXiv 2412.19437, section 2.1.2).

A router gives each token K of E small feed-forward experts; a shared expert sees every token. The choice depends on
the token alone, never on other tokens, so the model stays causal. Balance comes from a bias that steers the choice
but not the weights, nudged after each step against the load (arXiv 2408.15664), and from a small sequence-wise loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from nanokimi.config import KimiConfig
from nanokimi.config.rules import routed_scaling
from nanokimi.model.by_hand import experts_by_hand, takes_fast_path
from nanokimi.model.layers import SwiGLU
from nanokimi.model.output import Routing

MANY_EXPERTS, FEW_CHOSEN = 16, 4  # measured: docs/performance.md


class Router(nn.Module):
    """Sigmoid scores, bias-corrected choice of the top K, normalised and scaled gates. Always in fp32."""

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
        """Return the chosen experts (M, K), their gates (M, K) and what there is to report."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            # not .float(): a float64 model routes in float64
            x = x_BTD if x_BTD.dtype == torch.float64 else x_BTD.float()
            scores_BTE = F.linear(x, self.weight.to(x.dtype)).sigmoid()
            scores_ME = scores_BTE.flatten(0, 1)
            chosen_MK = largest(scores_ME + self.e_score_correction_bias, self.num_chosen)
            gates_MK = scores_ME.gather(1, chosen_MK)
            if self.norm_topk_prob:
                gates_MK = gates_MK / (gates_MK.sum(dim=-1, keepdim=True) + 1e-20)
            routing = self._report(scores_BTE, chosen_MK)
        return chosen_MK, gates_MK * self.scaling, routing

    def _report(self, scores_BTE: torch.Tensor, chosen_MK: torch.Tensor) -> Routing:
        B, T, E = scores_BTE.shape
        counts_E = count_experts(chosen_MK.view(1, -1), E)[0]
        shares_BTE = scores_BTE / scores_BTE.sum(dim=-1, keepdim=True)
        entropy = -(shares_BTE * shares_BTE.clamp_min(1e-20).log()).sum(dim=-1).mean().detach()
        # eq. 17-20, per sequence: f is an expert's share of the choices that the scores alone would make, without
        # the bias (1 when even); P is its mean score. f carries no gradient
        own_choice_BTK = largest(scores_BTE, self.num_chosen)
        f_BE = count_experts(own_choice_BTK.flatten(1), E).to(scores_BTE.dtype) * (E / (self.num_chosen * T))
        balance_loss = (f_BE * shares_BTE.mean(dim=1)).sum(dim=-1).mean()
        return Routing(counts_E, entropy, balance_loss)

    @torch.no_grad()
    def update_bias_(self, counts_E: torch.Tensor, speed: float) -> None:
        """Make experts that got less than their share likelier to be chosen, and the others less likely.

        Centred as in Moonlight, which changes no choice and keeps the biases from drifting together.
        """
        direction_E = (counts_E.mean() - counts_E).sign()
        self.e_score_correction_bias += speed * (direction_E - direction_E.mean())


@torch.no_grad()
def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Where the `count` largest of the last axis stand, in no order."""
    if scores.device.type != "cpu" or scores.shape[-1] <= MANY_EXPERTS or count > FEW_CHOSEN:
        return scores.topk(count, dim=-1, sorted=False).indices
    left, found = scores.clone(), []  # on a CPU, a maximum at a time is faster than topk
    for _ in range(count):
        found.append(left.max(dim=-1, keepdim=True).indices)
        left.scatter_(-1, found[-1], float("-inf"))
    return torch.cat(found, dim=-1)


def count_experts(chosen_BP: torch.Tensor, experts: int) -> torch.Tensor:
    """How often each expert stands in each row, (B, E), in fp32: exact, and without asking the device for its size."""
    counts_BE = torch.zeros(chosen_BP.shape[0], experts, device=chosen_BP.device)
    return counts_BE.scatter_add_(1, chosen_BP, torch.ones_like(chosen_BP, dtype=torch.float32))


class Experts(nn.Module):
    """E SwiGLU experts, their matrices stacked on the first axis."""

    def __init__(self, config: KimiConfig) -> None:
        super().__init__()
        E, F_, D = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_proj = nn.Parameter(torch.empty(E, F_, D))
        self.up_proj = nn.Parameter(torch.empty(E, F_, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, F_))

    def forward(self, x_PD: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
        """Apply expert e to its rows; the rows of `x_PD` are sorted by expert, counts_E[e] of them for expert e."""
        dtype = (
            torch.get_autocast_dtype(x_PD.device.type)
            if torch.is_autocast_enabled(x_PD.device.type)
            else x_PD.dtype
        )
        x_PD = x_PD.to(dtype)
        matrices = [p.to(dtype) for p in (self.gate_proj, self.up_proj, self.down_proj)]
        return expert_kernel(x_PD, self.gate_proj)(x_PD, counts_E, *matrices)

    def mixed(
        self, x_MD: torch.Tensor, chosen_MK: torch.Tensor, gates_MK: torch.Tensor, counts_E: torch.Tensor
    ) -> torch.Tensor:
        """sum_k gates[m, k] * (expert chosen[m, k] on token m), (M, D) -> (M, D); counts_E: tokens of each expert."""
        if takes_fast_path(x_MD):
            weights = (self.gate_proj, self.up_proj, self.down_proj)
            fixed = torch.compiler.is_compiling()
            return experts_by_hand(x_MD, chosen_MK, gates_MK, counts_E, weights, fixed)
        K, order_P = chosen_MK.shape[1], chosen_MK.flatten().argsort(stable=True)  # pairs, grouped by expert
        # there and back by permutations, which add nothing up: forward and backward are deterministic
        x_PD = x_MD.repeat_interleave(K, dim=0).index_select(0, order_P)
        y_PD = self(x_PD, counts_E)
        y_MKD = y_PD.index_select(0, order_P.argsort()).unflatten(0, (-1, K))
        return (y_MKD.to(gates_MK.dtype) * gates_MK.unsqueeze(-1)).sum(dim=1).to(x_MD.dtype)


def expert_kernel(x_PD: torch.Tensor, gate_EFD: torch.Tensor) -> Callable[..., torch.Tensor]:
    """The faster of the two functions below for these rows; they compute the same."""
    return grouped_swiglu if can_group(x_PD, gate_EFD) else looped_swiglu


def can_group(x_PD: torch.Tensor, gate_EFD: torch.Tensor) -> bool:
    """Whether torch's grouped matrix product takes these: CPU or CUDA, not float64, rows of whole 16 bytes."""
    aligned = all(size * x_PD.element_size() % 16 == 0 for size in gate_EFD.shape[1:])
    return x_PD.device.type in ("cpu", "cuda") and x_PD.dtype != torch.float64 and aligned


def grouped_swiglu(
    x_PD: torch.Tensor,
    counts_E: torch.Tensor,
    gate_EFD: torch.Tensor,
    up_EFD: torch.Tensor,
    down_EDF: torch.Tensor,
) -> torch.Tensor:
    """All experts in three grouped products, without the host ever learning the counts."""
    ends_E = counts_E.cumsum(0).to(torch.int32)
    gate_PF = F.grouped_mm(x_PD, gate_EFD.transpose(-2, -1), offs=ends_E)
    up_PF = F.grouped_mm(x_PD, up_EFD.transpose(-2, -1), offs=ends_E)
    return F.grouped_mm(F.silu(gate_PF) * up_PF, down_EDF.transpose(-2, -1), offs=ends_E)


def looped_swiglu(
    x_PD: torch.Tensor,
    counts_E: torch.Tensor,
    gate_EFD: torch.Tensor,
    up_EFD: torch.Tensor,
    down_EDF: torch.Tensor,
) -> torch.Tensor:
    """One expert after another: the plain form, and the one that runs everywhere."""
    rows = x_PD.split([int(n) for n in counts_E.tolist()])
    experts = zip(rows, gate_EFD.unbind(0), up_EFD.unbind(0), down_EDF.unbind(0), strict=True)
    return torch.cat(
        [F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down) for x, gate, up, down in experts]
    )


class MixtureOfExperts(nn.Module):
    """Routed experts plus a shared one. Every chosen expert gets its token: no capacity limit, nothing dropped."""

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
        y_MD = self.experts.mixed(x_BTD.flatten(0, 1), chosen_MK, gates_MK, routing.counts_E)
        y_BTD = y_MD.view_as(x_BTD)
        if self.shared_experts is not None:
            y_BTD = y_BTD + self.shared_experts(x_BTD)
        return y_BTD, routing
