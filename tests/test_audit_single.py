"""The audit of models that compute in single precision: rounding is no leak, and no leak passes for rounding."""

from __future__ import annotations

from collections.abc import Callable

import audit_models
import pytest
import torch
from audit_models import CONTEXT, VOCAB, Embedded, when
from audit_single_models import CLEAN, HIDDEN, LEAKY, UNDECIDED
from torch import nn

import nanokimi
from nanokimi.measure.audit import AuditResult
from nanokimi.measure.audit_double import Precision


def audit(module: nn.Module) -> AuditResult:
    return nanokimi.audit(module, vocab_size=VOCAB, context=CONTEXT)


def refusing(module: nn.Module) -> nn.Module:
    """The module, which cannot run in float64 any more."""

    def refuse(module: nn.Module, ids: object) -> None:
        if any(parameter.dtype == torch.float64 for parameter in module.parameters()):
            raise RuntimeError("\"experts\" not implemented for 'Double'")

    module.register_forward_pre_hook(refuse)
    return module


@pytest.mark.parametrize("name", CLEAN)
def test_a_router_in_single_precision_that_nearly_ties_passes(name: str) -> None:
    result = audit(CLEAN[name]())
    assert (result.verdict, result.causal, result.where) == ("causal", True, None), result
    assert result.max_leak > 100 * result.tolerance, "the ties do tip"


@pytest.mark.parametrize("name", UNDECIDED)
def test_without_float64_it_is_said_that_nobody_can_tell(name: str) -> None:
    result = audit(UNDECIDED[name]())
    assert (result.verdict, result.causal, result.not_excluded) == ("UNDECIDED", False, ()), result
    assert result.where is not None and "moves with" in result.where and "float64 would tell" in result.where
    reason = "not implemented for 'Double'" if name.startswith("refuses") else "computes in single precision"
    assert reason in result.where


@pytest.mark.parametrize("name", LEAKY)
def test_a_leak_beside_the_near_ties_is_caught(name: str) -> None:
    result = audit(LEAKY[name]())
    assert (result.verdict, result.causal) == ("LEAKING", False), result
    assert result.where is not None and "sees tokens from position" in result.where


@pytest.mark.parametrize("name", HIDDEN)
def test_a_leak_that_looks_like_a_near_tie_does_not_pass(name: str) -> None:
    result = audit(HIDDEN[name]())
    assert result.verdict in ("UNDECIDED", "LEAKING") and not result.causal, result


@pytest.mark.parametrize("name", audit_models.LEAKY)
def test_no_leak_passes_because_a_model_cannot_run_in_float64(name: str) -> None:
    """One of them has near-ties everywhere, and there nobody can tell."""
    result = audit(refusing(audit_models.LEAKY[name]()))
    assert result.verdict == ("UNDECIDED" if name == "after many near-ties" else "LEAKING"), result
    assert not result.causal


@pytest.mark.parametrize("name", ["near-ties that tip", "rounding that depends on the batch"])
def test_coarse_rounding_without_float64_is_no_leak_and_no_pass(name: str) -> None:
    assert audit(refusing(audit_models.CLEAN[name]())).verdict == "UNDECIDED"


@pytest.mark.parametrize(
    "cast",
    [
        lambda x: x.float(),
        lambda x: x.to(torch.float32),
        lambda x: x.type(torch.bfloat16),
        lambda x: x.softmax(-1, dtype=torch.float32),
        lambda x: x + torch.zeros(3),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0]),
        lambda x: torch.zeros(3, dtype=torch.float16) + x,
    ],
)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_every_cast_becomes_one_to_float64(
    cast: Callable[[torch.Tensor], torch.Tensor], mode: Callable[[], torch.no_grad]
) -> None:
    number = torch.full((2, 3), 1 + 1e-12, dtype=torch.float64)
    watched, raised = Precision(raised=False), Precision(raised=True)
    with mode(), watched.context():
        cast(number)
    with mode(), raised.context():
        found = cast(number)
    assert watched.single and not raised.single and found.dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32
    with mode(), (clean := Precision(raised=False)).context():
        number @ number.T
    assert not clean.single


def test_numbers_that_stay_in_single_precision_are_noticed() -> None:
    with (raised := Precision(raised=True)).context():
        torch.from_numpy(torch.ones(3, dtype=torch.float64).numpy().astype("float32")) + 1
    assert raised.single


def test_a_module_that_fails_in_float64_for_a_leak_of_its_own_is_still_leaking() -> None:
    """The replaced casts may break a module's code; what it then returns is not taken for its logits."""

    class Garbled(Embedded):
        def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
            if self.wte.dtype == torch.float64 and torch.get_default_dtype() != torch.float64:
                raise RuntimeError("only in single precision")
            logits_BTW = super().forward(ids_BT)
            return torch.zeros_like(logits_BTW) if self.wte.dtype == torch.float64 else logits_BTW

    assert audit(Garbled(when(lambda model, ids: True))).verdict == "LEAKING"
    assert audit(Garbled()).verdict == "causal"
