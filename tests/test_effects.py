"""The comparisons of a study: which of them are one test under several names, and that Holm counts it once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanokimi.measure.stats import holm
from nanokimi.runtime.files import read_json_lines
from nanokimi.study import effects
from nanokimi.study.effects import Tested, key_of_test
from nanokimi.study.study import report_of

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def weight_of_each_run(comparison: dict[str, Any], plan: dict[str, Any]) -> dict[str, float]:
    """How much each run counts in a comparison."""
    runs = {arm["name"]: arm["runs"] for arm in plan["arms"]}
    found: dict[str, float] = {}
    for name, weight in comparison["weights"].items():
        for key in runs[name][comparison["budget"]]:
            found[key] = found.get(key, 0.0) + weight
    return {key: weight for key, weight in found.items() if weight}


@pytest.mark.parametrize("name", ["ladder-shakespeare", "ladder-tales"])
def test_holm_counts_a_test_under_several_names_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every comparison against every earlier one, run by run; the rest is Holm over the first of each kind."""
    monkeypatch.setattr(effects, "hierarchical_bootstrap", lambda *_: (0.0, 0.0))  # slow, and decides nothing
    *lines, plan = read_json_lines(RESULTS / f"{name}.jsonl")
    report = report_of(plan, {line["key"]: line for line in lines})
    judged = [one for one in report["effects"] if one["mean"] is not None]
    kinds: list[dict[str, float]] = []
    kind_of, p_values = [], []
    for one in judged:
        weights = weight_of_each_run(one, plan)
        if not weights:
            assert (one["p"], one["holm_p"], one["mean"]) == (1.0, 1.0, 0.0), "runs against themselves"
            continue
        turned = {key: -weight for key, weight in weights.items()}
        (kind,) = [i for i, known in enumerate(kinds) if known in (weights, turned)] or [len(kinds)]
        if kind == len(kinds):
            kinds.append(weights)
            p_values.append(one["p"])
        kind_of.append(kind)
    assert 2 < len(kinds) < len(kind_of), "several names of one test are there"
    assert [one["tests"] for one in judged] == [len(kinds)] * len(judged)
    wanted = holm(p_values)
    found = [one for one in judged if weight_of_each_run(one, plan)]
    assert [one["p"] for one in found] == pytest.approx([p_values[kind] for kind in kind_of], rel=1e-9)
    assert [one["holm_p"] for one in found] == pytest.approx([wanted[kind] for kind in kind_of], rel=1e-9)
    said = f"{len(judged)} comparisons are judged, which are only {len(kinds)} distinct tests"
    assert any(label.startswith(said) for label in report["labels"])


def test_the_same_weights_of_the_same_runs_are_one_test() -> None:
    runs = {"a": ["1", "2"], "b": ["3", "4"], "b again": ["3", "4"], "c": ["5", "6"]}
    by_budget = {name: {"tokens": keys} for name, keys in runs.items()}

    def made(**weights: float) -> Tested:
        named = {name.replace("_", " "): weight for name, weight in weights.items()}
        return key_of_test({"weights": named, "budget": "tokens"}, by_budget)

    assert made(a=1, b=-1) == made(b_again=-1, a=1) == made(b=1, a=-1) == made(a=1, b=-0.5, b_again=-0.5)
    assert len({made(a=1, b=-1), made(a=1, c=-1), made(a=2, b=-1), made(a=1, b=1)}) == 4
    assert made(b=1, b_again=-1) == frozenset(), "runs against themselves"
