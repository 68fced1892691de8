"""Which optimizer updates which parameter: one table of rules, read from top to bottom, the first match wins.

Muon, and whatever else treats matrices as matrices, takes the hidden ones. AdamW takes the embeddings and the head
(their rows are tokens, not directions), norm gains and biases. Norm gains are decayed beside Muon (Moonlight,
appendix D, found it needed), never by nanoGPT's AdamW nor by other optimizers that take every parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from nanokimi.config import OptimConfig
from nanokimi.errors import UserError
from nanokimi.optim.adamw import AdamW, leave_the_compiler_out
from nanokimi.optim.lion import Lion
from nanokimi.optim.muon import Muon
from nanokimi.optim.named import build_foreign
from nanokimi.optim.qk_clip import MuonClip, ShampooClip
from nanokimi.optim.rms_logits import can_estimate, rms_logits
from nanokimi.optim.shampoo import Shampoo
from nanokimi.optim.soap import SOAP
from nanokimi.optim.true_muon import TrueMuon

Algorithm = Literal["muon", "adamw"]


@dataclass(frozen=True)
class Rule:
    """Parameters whose name contains `pattern` (a regular expression) and how they are updated under Muon."""

    pattern: str
    algorithm: Algorithm
    blocks: Literal["whole", "qkv", "heads"] = "whole"


ROUTER = r"\.gate\.weight$"
RULES = (
    Rule(r"(^|[._]|word)emb|unembed|wte|wpe|latents$|(^|[._])(head|output|classifier)\.", "adamw"),
    Rule(r"norm|ln_\w+\.|\.bias$", "adamw"),
    Rule(ROUTER, "muon"),  # the router; OptimConfig.router may hand it to AdamW
    Rule(r"\.c_attn\.weight$", "muon", "qkv"),
    Rule(
        r"\.(q|k|v|q_b|kv_b)_proj\.weight$", "muon", "heads"
    ),  # cut into heads only if OptimConfig.split_heads
    Rule(r"", "muon"),
)
MATRIX_OPTIMIZERS = ("muon", "muonclip", "truemuon", "shampoo", "shampooclip", "soap")
"""Names in OptimConfig of those that take what RULES give to Muon and leave the rest to AdamW."""


def find_rule(name: str) -> Rule:
    """The first rule that matches a parameter's name."""
    return next(rule for rule in RULES if re.search(rule.pattern, name))


def assign(
    name: str, shape: tuple[int, ...], *, num_heads: int = 1, router: Algorithm = "muon"
) -> tuple[Algorithm, int]:
    """How a parameter is updated under Muon: (algorithm, row blocks that are matrices of their own)."""
    rule = find_rule(name)
    algorithm = router if rule.pattern == ROUTER else rule.algorithm
    if algorithm == "adamw" or len(shape) not in (2, 3):  # no matrix, nor a stack of them
        return "adamw", 1
    if rule.blocks == "qkv" and shape[-2] == 3 * shape[-1]:
        return "muon", 3
    return "muon", num_heads if rule.blocks == "heads" else 1


def muon_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], *, num_heads: int = 1, router: Algorithm = "muon"
) -> list[dict[str, Any]]:
    """Parameter groups for Muon, MuonClip, TrueMuon, Shampoo or SOAP, each parameter in exactly one of them.

    Embeddings and heads are known by their names (see RULES): look over the groups when the model is not ours.
    Parameters with three axes are taken as stacks of matrices, as our experts are.

    Args:
        named_parameters: `model.named_parameters()`.
        num_heads: blocks that the rows of query, key and value projections are cut into (1: kept whole); not for
            models whose heads share keys.
        router: the router's optimizer.
    """
    groups: dict[tuple[Algorithm, int], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        key = assign(name, tuple(parameter.shape), num_heads=num_heads, router=router)
        groups.setdefault(key, []).append(parameter)
    return [{"params": members, "algorithm": a, "blocks": blocks} for (a, blocks), members in groups.items()]


def adamw_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """nanoGPT's groups: weight decay for whatever has two axes or more, none for vectors."""
    parameters = [p for _, p in named_parameters]
    decayed = [p for p in parameters if p.dim() >= 2]
    kept = [p for p in parameters if p.dim() < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, optim: OptimConfig, num_heads: int) -> torch.optim.Optimizer:
    """The optimizer that `optim` describes. Every group keeps its peak rate as `peak_lr` for the schedule.

    Raises UserError if an optimizer that is not this package's own does not exist, does not take a setting, or cannot
    train a model here.
    """
    leave_the_compiler_out()
    if optim.name in MATRIX_OPTIMIZERS:
        optimizer = build_matrix_optimizer(model, optim, num_heads)
    else:
        named = list(model.named_parameters())
        groups = adamw_groups(named, optim.weight_decay)
        if optim.name == "adamw":
            fused = named[0][1].device.type in ("cpu", "cuda")
            optimizer = AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused)
        elif optim.name == "lion":
            optimizer = Lion(groups, lr=optim.lr, betas=optim.betas)
        else:
            del groups[0]["weight_decay"]  # the class may have none
            groups = [group for group in groups if group["params"]]
            optimizer = build_foreign(groups, optim)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def build_matrix_optimizer(model: nn.Module, optim: OptimConfig, num_heads: int) -> torch.optim.Optimizer:
    """One of MATRIX_OPTIMIZERS, AdamW's rate in its groups."""
    heads = num_heads if optim.split_heads else 1
    groups = muon_groups(model.named_parameters(), num_heads=heads, router=optim.router)
    for group in groups:
        of_matrices = group["algorithm"] == "muon" or optim.adamw_lr is None
        group["lr"] = optim.lr if of_matrices else optim.adamw_lr
    options: dict[str, Any] = dict(weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps)
    if optim.name in ("shampoo", "shampooclip", "soap"):
        options |= dict(shampoo_beta=optim.shampoo_beta, precondition_every=optim.precondition_every)
        if optim.name == "soap":
            return SOAP(groups, optim.lr, **options)
        options |= dict(handover_steps=optim.handover_steps)
        if optim.name == "shampoo":
            return Shampoo(groups, optim.lr, **options)
        return ShampooClip(groups, optim.lr, **clip_options(model, optim), **options)
    ns_dtype = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}[optim.ns_dtype]
    options |= dict(
        momentum=optim.momentum, nesterov=optim.nesterov, ns_steps=optim.ns_steps, ns_dtype=ns_dtype
    )
    if optim.name == "truemuon":
        return TrueMuon(groups, optim.lr, **options)
    if optim.name == "muon":
        return Muon(groups, optim.lr, **options)
    return MuonClip(groups, optim.lr, **clip_options(model, optim), **options)


def clip_options(model: nn.Module, optim: OptimConfig) -> dict[str, Any]:
    """What QK-Clip needs beside the optimizer's own settings. Raises UserError where the attention has no heads."""
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
                "optim.qk_clip_logits rms: nothing is known of this attention's weights; use exact"
            )
        estimate = partial(rms_logits, model)
    return dict(attentions=attentions, tau=optim.qk_clip_tau, estimate=estimate)
