"""A user's class as a model: any torch module from token ids to logits, called like the other models.

Its inside is unknown, so it generates without a cache, its attention logits are not seen, and its costs are counted by
running it (`measure.cost_module`).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from nanokimi.config import ModuleConfig
from nanokimi.errors import UserError
from nanokimi.model.output import Output
from nanokimi.runtime.plugins import load_plugin
from nanokimi.runtime.text import one_line


class UserModule(nn.Module):
    """Token ids (B, T) to logits (B, T, W) by a user's module."""

    can_cache = False

    def __init__(self, config: ModuleConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.module = build_module(config)
        # nanoGPT's model, and those derived from it, compute only the last position unless they are given targets.
        self.wants_targets = "targets" in inspect.signature(self.module.forward).parameters

    def forward(self, ids_BT: torch.Tensor, cache: None = None, want_max_logits: bool = False) -> Output:
        """Logits of the next token at each position."""
        ids_BT = ids_BT.contiguous()  # the module may call view() on them, as nanoGPT's does
        output = self.module(ids_BT, targets=ids_BT) if self.wants_targets else self.module(ids_BT)
        return Output(logits_of(output))


def build_module(config: ModuleConfig) -> nn.Module:
    """The user's module. Raises UserError for any exception in the class."""
    cls = load_plugin(config.source)
    taken = inspect.signature(cls).parameters
    everything = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    given = {"vocab_size": config.vocab_size, "context_length": config.max_position_embeddings}
    arguments = {name: value for name, value in given.items() if name in taken} | config.arguments
    unknown = [name for name in arguments if name not in taken and not everything]
    if unknown:
        raise UserError(
            f"{config.source} takes no argument '{unknown[0]}': it takes {', '.join(taken) or 'none'}"
        )
    try:
        module = cls(**arguments)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{config.source} cannot be built: {type(error).__name__}: {reason_of(error)}"
        ) from None
    if not isinstance(module, nn.Module) or not any(p.requires_grad for p in module.parameters()):
        raise UserError(
            f"{config.source} is not a torch module with trainable parameters, so there is nothing to train"
        )
    if any(map(is_lazy, module.parameters())):
        raise UserError(
            f"{config.source} has parameters without a shape (torch's lazy layers): name their sizes instead"
        )
    return module


def logits_of(output: Any) -> torch.Tensor:
    """The logits in a module's output: a tensor, the first item of a tuple, or `logits` of an object or dictionary."""
    if isinstance(output, dict):
        output = output.get("logits")
    output = getattr(output, "logits", output)
    return output[0] if isinstance(output, tuple | list) else output


def require_logits(model: UserModule) -> None:
    """Run the module on a few tokens. Raises UserError if it fails or does not return logits (B, T, W)."""
    config = model.config
    assert config.vocab_size is not None and config.max_position_embeddings is not None, (
        "resolve() fills these in"
    )
    shape = (2, config.max_position_embeddings)
    try:
        with torch.no_grad():
            logits = model(torch.zeros(shape, dtype=torch.long)).logits_BTW
    except (Exception, SystemExit) as error:
        raise UserError(f"{config.source} cannot run: {type(error).__name__}: {reason_of(error)}") from None
    if not isinstance(logits, torch.Tensor) or logits.dim() != 3 or logits.shape[:2] != shape:
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(
            f"{config.source} returned {found} for ids of shape {shape}: expected logits (B, T, W)"
        )
    if logits.shape[2] < config.vocab_size:
        raise UserError(f"{config.source} gives {logits.shape[2]} logits for {config.vocab_size} tokens")


def reason_of(error: BaseException) -> str:
    """An exception's message on one line, cut to 300 characters."""
    return (one_line(error) or "no message")[:300]
