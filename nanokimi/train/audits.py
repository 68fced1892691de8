"""The audit of a run's model: after training and, if the user's code is in it, also before step 0."""

from __future__ import annotations

import torch
from torch import nn

from nanokimi.config import ModuleConfig, RunConfig
from nanokimi.config.rules_variant import plugins_of
from nanokimi.data.store import PreparedData
from nanokimi.errors import UserError
from nanokimi.measure.audit import AuditResult, audit, audit_passes
from nanokimi.measure.audit_confirm import UNDECIDED
from nanokimi.measure.audit_inputs import windows_of
from nanokimi.model.build import build_model
from nanokimi.model.user_module import UserModule, reason_of, require_logits
from nanokimi.train.sharding import require_splittable


def audit_run(model: nn.Module, config: RunConfig, data: PreparedData) -> AuditResult:
    """Audit a run's model on its validation text, in batches of the shape that its evaluation uses."""
    train, vocab_size = config.train, config.family.model.vocab_size
    assert vocab_size is not None, "resolve() fills this in"
    return audit(
        model,
        vocab_size=vocab_size,
        context=train.context_length,
        batch_size=train.eval_batch_size,
        windows=windows_of(data.val_ids, train.context_length),
    )


def audit_users(model: nn.Module, config: RunConfig, data: PreparedData) -> AuditResult:
    """Audit a model with a class of the user's in it. Raises UserError if that class fails."""
    try:
        return audit_run(model, config, data)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{config.title} cannot be audited: {type(error).__name__}: {reason_of(error)}"
        ) from None


def passes_of_run(model: nn.Module, config: RunConfig, data: PreparedData) -> int:
    """The forward passes that `audit_run` makes of a causal model."""
    train, vocab_size = config.train, config.family.model.vocab_size
    assert vocab_size is not None, "resolve() fills this in"
    windows = windows_of(data.val_ids, train.context_length)
    return len(audit_passes(model, vocab_size, train.context_length, train.eval_batch_size, windows))


def require_sound(config: RunConfig, data: PreparedData) -> None:
    """Build, run and audit a model of the user's code as it is before step 0. Our own are audited only after training.

    Raises UserError if the model cannot run, cannot be trained by as many processes, or reads tokens that it must not
    see.
    """
    model = built_if_users(config)
    if model is None:
        return
    require_splittable(model, config.title)
    found = audit_users(model, config, data)
    if not found.causal:
        loss = "could not be ranked" if found.verdict == UNDECIDED else "would be meaningless"
        raise UserError(
            f"{config.title} is {found.verdict} before its first step: {found.where}; its loss {loss}"
        )


def built_if_users(config: RunConfig) -> nn.Module | None:
    """The model, if a class of the user's is in it, after one batch. Raises UserError if it cannot run."""
    settings = config.family.model
    if isinstance(settings, ModuleConfig):
        model = build_model(settings, config.seed)
        assert isinstance(model, UserModule)
        require_logits(model)
        return model
    parts = [part for part in plugins_of(config.family) if part != config.family.optim.name]
    if not parts:
        return None
    model = build_model(settings, config.seed)
    require_training_pass(model, config, " and ".join(parts))
    return model


def require_training_pass(model: nn.Module, config: RunConfig, what: str) -> None:
    """Run a batch of two windows forward and backward. Raises UserError, naming `what`, if that fails."""
    vocab_size, context = config.family.model.vocab_size, config.train.context_length
    assert vocab_size is not None, "resolve() fills this in"
    ids_BT = torch.arange(2 * context).reshape(2, context) % vocab_size
    try:
        logits_BTW = model(ids_BT, want_max_logits=config.family.optim.clips).logits_BTW
        logits_BTW.float().mean().backward()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what} cannot run: {type(error).__name__}: {reason_of(error)}") from None
    model.zero_grad(set_to_none=True)
