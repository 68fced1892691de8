"""The audit of a run's model: after training and, if the model is the user's class, also before step 0."""

from __future__ import annotations

from torch import nn

from nanokimi.config import ModuleConfig, RunConfig
from nanokimi.data.store import PreparedData
from nanokimi.errors import UserError
from nanokimi.measure.audit import AuditResult, audit, audit_passes
from nanokimi.measure.audit_inputs import windows_of
from nanokimi.model.build import build_model
from nanokimi.model.user_module import UserModule, require_logits


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


def passes_of_run(model: nn.Module, config: RunConfig, data: PreparedData) -> int:
    """The forward passes that `audit_run` makes of a causal model."""
    train, vocab_size = config.train, config.family.model.vocab_size
    assert vocab_size is not None, "resolve() fills this in"
    windows = windows_of(data.val_ids, train.context_length)
    return len(audit_passes(model, vocab_size, train.context_length, train.eval_batch_size, windows))


def require_sound(config: RunConfig, data: PreparedData) -> None:
    """Build and audit a user's model as it is before step 0. Our own models are audited only after training.

    Raises UserError if the model cannot run, or reads tokens that it must not see.
    """
    if not isinstance(config.family.model, ModuleConfig):
        return
    model = build_model(config.family.model, config.seed)
    assert isinstance(model, UserModule)
    require_logits(model)
    found = audit_run(model, config, data)
    if not found.causal:
        raise UserError(
            f"{config.title} is {found.verdict} before its first step: {found.where}; its loss would be meaningless"
        )
