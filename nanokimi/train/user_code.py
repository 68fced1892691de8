"""Code of the user's, tried before it is trained: a whole model must give logits and must not read the answer."""

from __future__ import annotations

from nanokimi.config import ModuleConfig, RunConfig
from nanokimi.data.store import PreparedData
from nanokimi.errors import UserError
from nanokimi.measure.audit import audit
from nanokimi.measure.audit_inputs import windows_of
from nanokimi.model.build import build_model
from nanokimi.model.user_module import UserModule, require_logits


def require_sound(config: RunConfig, data: PreparedData) -> None:
    """Build and audit a model of the user's as it is before step 0; models of our own are audited when trained.

    Raises UserError if it cannot run, or reads tokens that it must not see.
    """
    if not isinstance(config.arm.model, ModuleConfig):
        return
    model = build_model(config.arm.model, config.seed)
    assert isinstance(model, UserModule)
    require_logits(model)
    vocab_size = config.arm.model.vocab_size
    assert vocab_size is not None, "resolve() fills this in"
    context = config.train.context_length
    found = audit(model, vocab_size=vocab_size, context=context, windows=windows_of(data.val_ids, context))
    if not found.causal:
        raise UserError(
            f"{config.title} is {found.verdict} before its first step: {found.where}; its loss would be void"
        )
