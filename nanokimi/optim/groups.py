"""Which optimizer updates which parameter: one table of rules, read from top to bottom, the first match wins.

Muon, and whatever else treats matrices as matrices, takes the hidden ones. AdamW takes the embeddings and the head
(their rows are tokens, not directions), norm gains and biases. Norm gains are decayed beside Muon (Moonlight,
appendix D, found it needed), never by nanoGPT's AdamW nor by other optimizers that take every parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
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
    Rule(ROUTER, "muon"),  # the router; OptimConfig.router may hand it to AdamW
    Rule(r"\.c_attn\.weight$", "muon", "qkv"),
    Rule(
        r"\.(q|k|v|q_b|kv_b)_proj\.weight$", "muon", "heads"
    ),  # cut into heads only if OptimConfig.split_heads
    Rule(r"", "muon"),
)


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
