"""The audit against the lists of audit_models.py: every leak is caught, nothing clean is accused."""

from __future__ import annotations

import pytest
from audit_models import CHANCE, CLEAN, CONTEXT, LEAKY, VOCAB

import nanokimi


@pytest.mark.parametrize("name", LEAKY)
def test_a_leak_is_caught(name: str) -> None:
    result = nanokimi.audit(LEAKY[name](), vocab_size=VOCAB, context=CONTEXT)
    assert (result.verdict, result.causal) == ("LEAKING", False), result
    assert result.where is not None and "sees" in result.where


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_model_passes(name: str) -> None:
    if name.startswith("transformers"):
        pytest.importorskip("transformers", reason="transformers is not installed")
    result = nanokimi.audit(CLEAN[name](), vocab_size=VOCAB, context=CONTEXT)
    assert (result.verdict, result.causal, result.where) == ("causal", True, None), result


@pytest.mark.parametrize("name", CHANCE)
def test_chance_is_an_answer_of_its_own(name: str) -> None:
    result = nanokimi.audit(CHANCE[name](), vocab_size=VOCAB, context=CONTEXT)
    assert (result.verdict, result.causal) == ("NONDETERMINISTIC", False), result
    assert result.where is not None and "same ids" in result.where


def test_there_are_as_many_as_asked_for() -> None:
    """README says how many; benchmarks/tables.py counts them."""
    assert len(LEAKY) >= 40 and len(CLEAN) >= 20
