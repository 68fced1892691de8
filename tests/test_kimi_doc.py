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


def test_each_idea_has_its_picture_its_code_and_its_worth() -> None:
    """Every diagram beside about ten lines of code, and beside what the ablation study says that the idea is worth."""
    ideas = re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:-2]
    assert len(ideas) == 6, "the whole model, and five ideas"
    for idea in ideas:
        title = idea.partition("\n")[0]
        assert len(re.findall(r"\(images/kimi-[\w-]+\.svg\)", idea)) == 1, title
        code = [line for _, quotation in QUOTATION.findall(idea) for line in quotation.splitlines()]
        assert 2 <= len(code) <= 12, title
        assert ("<!-- table worth-" in idea) == (idea is not ideas[0]), title


ROUNDING = 0.00056
"""Half of the last digit here, and of that in the results."""
RESULT = re.compile(
    r"^\| ([^|]+) \| ([+-]\S+) \| ([+-]\S+) to ([+-]\S+) \|(?:.*\|)? ([^|]+) \|$", re.MULTILINE
)


def test_the_worths_are_those_of_the_results() -> None:
    """Each difference, interval and verdict stands, with a digit more, among the results of the same text."""
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    known: dict[str, list[tuple[list[float], str]]] = {}
    for study, text in imported("kimi_tables").TEXTS.items():
        (table,) = re.findall(rf"<!-- table {study}: .*?<!-- end", results, re.DOTALL)
        known[text] = [(list(map(float, numbers)), verdict) for _, *numbers, verdict in RESULT.findall(table)]
        assert len(known[text]) > 20
    worths = re.findall(
        r"^\| [^|]+ \| ([^|]+) \| ([+-]\S+) \| ([+-]\S+) to ([+-]\S+) \| ([^|]+) \|$",
        DOCUMENT.read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    assert len(worths) == 2 * 15
    for text, *numbers, verdict in worths:
        found = [
            words
            for exact, words in known[text]
            if all(abs(one - float(number)) < ROUNDING for one, number in zip(exact, numbers, strict=True))
        ]
        assert any(words.partition(" by ")[0] == verdict for words in found), (text, numbers, verdict, found)


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
