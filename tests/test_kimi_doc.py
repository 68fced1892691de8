"""docs/kimi-k2.md quotes the code as it is, shows what its script draws, and states Kimi K2's own sizes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nanokimi.measure.cost import model_cost

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "kimi-k2.md"
QUOTATION = re.compile(r"<!-- code: (\S+) -->\n```python\n(.*?)```\n", flags=re.DOTALL)


def imported(name: str) -> ModuleType:
    """A script of benchmarks/, which is no package's."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return __import__(name)
    finally:
        sys.path.pop(0)


def stands_in(quotation: str, source: str) -> bool:
    """Whether the source has these lines, one after another; they may be indented and broken differently."""
    return "".join(quotation.split()) in "".join(source.split())


def test_every_quotation_is_what_the_source_says() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    found = QUOTATION.findall(text)
    assert len(found) == text.count("```python") >= 8, "each block of code names its source"
    for name, quotation in found:
        assert stands_in(quotation, (ROOT / name).read_text(encoding="utf-8")), f"{name} has no\n{quotation}"


def test_a_changed_line_of_the_source_is_found() -> None:
    source = "def f(x):\n    y = 2 * (\n        x\n    )\n    # twice\n    return y\n"
    assert stands_in("y = 2 * (x)\n# twice\nreturn y\n", source)
    for changed in ("y = 3 * (x)\n", "# thrice\nreturn y\n", "y = 2 * (x)\nreturn y\n"):
        assert not stands_in(changed, source)


def test_the_diagrams_are_those_that_the_script_draws(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    diagrams = imported("diagrams")
    monkeypatch.setattr(sys, "argv", ["diagrams.py", "--check"])
    assert diagrams.main() == 0, capsys.readouterr().err
    shown = re.findall(r"\(images/(kimi-[\w-]+)\.svg\)", DOCUMENT.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(diagrams.DIAGRAMS)


def test_kimi_k2s_sizes_give_the_parameters_that_its_authors_report() -> None:
    """1.04T, of which 32.6B are active with the input embedding (arXiv 2507.20534)."""
    model = imported("kimi_tables").KIMI_K2
    cost = model_cost(model, 1)
    assert cost.params_total == pytest.approx(1.04e12, rel=0.015)
    embedding = model.vocab_size * model.hidden_size
    assert cost.params_active + embedding == pytest.approx(32.6e9, rel=0.015)
