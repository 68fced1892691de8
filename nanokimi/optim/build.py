"""THE OPTIMIZERS by name. To add one, write its class, its row in OPTIMIZERS of config/rules.py, and its row here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from nanokimi.config import OptimConfig
from nanokimi.errors import UserError
from nanokimi.optim.adamw import AdamW, has_fused, leave_the_compiler_out
from nanokimi.optim.groups import Algorithm, adamw_groups, muon_groups
from nanokimi.optim.lion import Lion
from nanokimi.optim.muon import Muon
from nanokimi.optim.named import build_third_party
from nanokimi.optim.qk_clip import MuonClip, ShampooClip
from nanokimi.optim.rms_logits import can_estimate, rms_logits
from nanokimi.optim.shampoo import Shampoo
from nanokimi.optim.soap import SOAP
from nanokimi.optim.true_muon import TrueMuon

Groups = list[dict[str, Any]]
Builder = Callable[[nn.Module, OptimConfig, Groups], torch.optim.Optimizer]

ELEMENTWISE: dict[str, Builder] = {
    "adamw": lambda model, optim, groups: AdamW(
        groups,
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        fused=has_fused(next(model.parameters()).device),
    ),
    "lion": lambda model, optim, groups: Lion(groups, lr=optim.lr, betas=optim.betas),
}
"""Optimizers that treat every number alike, with nanoGPT's parameter groups."""

OF_MATRICES: dict[str, Builder] = {
    "muon": lambda model, optim, groups: Muon(groups, optim.lr, **of_muon(optim)),
    "muonclip": lambda model, optim, groups: MuonClip(
        groups, optim.lr, **clip_options(model, optim), **of_muon(optim)
    ),
    "truemuon": lambda model, optim, groups: TrueMuon(groups, optim.lr, **of_muon(optim)),
    "shampoo": lambda model, optim, groups: Shampoo(groups, optim.lr, **of_shampoo(optim)),
    "shampooclip": lambda model, optim, groups: ShampooClip(
        groups, optim.lr, **clip_options(model, optim), **of_shampoo(optim)
    ),
    "soap": lambda model, optim, groups: SOAP(groups, optim.lr, **of_soap(optim)),
}
"""Optimizers of the parameters that groups.RULES give to Muon; AdamW updates the others."""


def build_optimizer(model: nn.Module, optim: OptimConfig, num_heads: int) -> torch.optim.Optimizer:
    """The optimizer that `optim` describes. Every group has its peak rate as `peak_lr`, for the schedule.

    Raises UserError if an optimizer of a library or of the user's does not exist, does not take a setting, or cannot
    train a model here.
    """
    leave_the_compiler_out()
    if optim.name in OF_MATRICES:
        optimizer = OF_MATRICES[optim.name](model, optim, matrix_groups(model, optim, num_heads))
    else:
        rates: dict[Algorithm, float] | None = None
        if optim.name == "adamw" and optim.adamw_lr is not None:
            rates = {"muon": optim.lr, "adamw": optim.adamw_lr}
        groups = adamw_groups(model.named_parameters(), optim.weight_decay, rates)
        if optim.name in ELEMENTWISE:
            optimizer = ELEMENTWISE[optim.name](model, optim, groups)
        else:
            del groups[0]["weight_decay"]  # the class may have none
            optimizer = build_third_party([group for group in groups if group["params"]], optim)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def matrix_groups(model: nn.Module, optim: OptimConfig, num_heads: int) -> Groups:
    """Groups for one of OF_MATRICES, with AdamW's own rate in AdamW's groups."""
    heads = num_heads if optim.split_heads else 1
    groups = muon_groups(model.named_parameters(), num_heads=heads, router=optim.router)
    for group in groups:
        of_matrices = group["algorithm"] == "muon" or optim.adamw_lr is None
        group["lr"] = optim.lr if of_matrices else optim.adamw_lr
    return groups


def of_adamw(optim: OptimConfig) -> dict[str, Any]:
    """The settings of the AdamW inside an optimizer of matrices."""
    return dict(weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps)


def of_muon(optim: OptimConfig) -> dict[str, Any]:
    """The settings of Muon, MuonClip and TrueMuon."""
    ns_dtype = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}[optim.ns_dtype]
    own = dict(momentum=optim.momentum, nesterov=optim.nesterov, ns_steps=optim.ns_steps, ns_dtype=ns_dtype)
    return of_adamw(optim) | own


def of_soap(optim: OptimConfig) -> dict[str, Any]:
    """The settings of SOAP."""
    own = dict(shampoo_beta=optim.shampoo_beta, precondition_every=optim.precondition_every)
    return of_adamw(optim) | own


def of_shampoo(optim: OptimConfig) -> dict[str, Any]:
    """The settings of Shampoo."""
    return of_soap(optim) | dict(handover_steps=optim.handover_steps)


def clip_options(model: nn.Module, optim: OptimConfig) -> dict[str, Any]:
    """The arguments of QK-Clip. Raises UserError if the attention has no heads that it could rescale."""
    attentions = model.attentions()  # type: ignore[operator]  # every model of ours has it
    if not all(hasattr(attention, "rescale_heads_") for attention in attentions):
        raise UserError(
            f"optim.name {optim.name}: the model's attention has no heads that QK-Clip could rescale "
            f"(rescale_heads_); use {optim.name.removesuffix('clip')}"
        )
    estimate = None
    if optim.qk_clip_logits == "rms":
        if not can_estimate(model):
            raise UserError(
                "optim.qk_clip_logits rms: this attention's weights have unknown names; use exact"
            )
        estimate = partial(rms_logits, model)
    return dict(attentions=attentions, tau=optim.qk_clip_tau, estimate=estimate)
