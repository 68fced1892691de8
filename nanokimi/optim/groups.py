"""Which optimizer updates which parameter: a table of rules, of which the first that matches applies.

Muon and the other optimizers of matrices update the hidden matrices. AdamW updates embeddings and the head (their rows
are tokens, not directions), norm gains and biases. Beside Muon, norm gains are decayed (Moonlight, appendix D, found it
necessary). Optimizers of every parameter, such as nanoGPT's AdamW, do not decay them. With AdamW alone the same rules
say which parameters `adamw_lr` is the rate of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from torch import nn

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
    Rule(ROUTER, "muon"),  # unless OptimConfig.router is adamw
    Rule(r"\.c_attn\.weight$", "muon", "qkv"),
    # split into heads only with OptimConfig.split_heads
    Rule(r"\.(q|k|v|q_b|kv_b)_proj\.weight$", "muon", "heads"),
    Rule(r"", "muon"),
)


def find_rule(name: str) -> Rule:
    """The first rule that matches a parameter's name."""
    return next(rule for rule in RULES if re.search(rule.pattern, name))


def assign(
    name: str, shape: tuple[int, ...], *, num_heads: int = 1, router: Algorithm = "muon"
) -> tuple[Algorithm, int]:
    """How a parameter is updated under Muon: (algorithm, number of matrices that its rows divide into)."""
    rule = find_rule(name)
    algorithm = router if rule.pattern == ROUTER else rule.algorithm
    if algorithm == "adamw" or len(shape) not in (2, 3):  # neither a matrix nor a stack of matrices
        return "adamw", 1
    if rule.blocks == "qkv" and shape[-2] == 3 * shape[-1]:
        return "muon", 3
    return "muon", num_heads if rule.blocks == "heads" else 1


def muon_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], *, num_heads: int = 1, router: Algorithm = "muon"
) -> list[dict[str, Any]]:
    """Parameter groups for Muon, MuonClip, TrueMuon, Shampoo or SOAP, each parameter in exactly one of them.

    Embeddings and heads are recognized by their names (RULES), so check the groups if the model is not ours. Parameters
    with three axes are treated as stacks of matrices, like our experts.

    Args:
        named_parameters: `model.named_parameters()`.
        num_heads: matrices that the rows of query, key and value projections are split into (1: not split). Leave it
            at 1 for models whose heads share keys.
        router: the router's optimizer.
    """
    groups: dict[tuple[Algorithm, int], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        key = assign(name, tuple(parameter.shape), num_heads=num_heads, router=router)
        groups.setdefault(key, []).append(parameter)
    return [{"params": members, "algorithm": a, "blocks": blocks} for (a, blocks), members in groups.items()]


def adamw_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    rates: Mapping[Algorithm, float] | None = None,
) -> list[dict[str, Any]]:
    """nanoGPT's groups: weight decay for parameters with two or more axes, none for vectors.

    With `rates` they are divided, and each part has the rate of the algorithm that would update it under Muon. The
    order of the parameters does not depend on `rates`, because a checkpoint numbers their states by it.
    """
    named = list(named_parameters)
    groups = []
    for decay, members in (
        (weight_decay, [(name, p) for name, p in named if p.dim() >= 2]),
        (0.0, [(name, p) for name, p in named if p.dim() < 2]),
    ):
        if rates is None:
            groups.append({"params": [p for _, p in members], "weight_decay": decay})
            continue
        for algorithm, part in groupby(
            members, key=lambda member: assign(member[0], tuple(member[1].shape))[0]
        ):
            groups.append({"params": [p for _, p in part], "weight_decay": decay, "lr": rates[algorithm]})
    return groups
