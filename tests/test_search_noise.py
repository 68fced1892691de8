"""The luck of a search stays with the arms that have its settings, in nats that count where they are judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanokimi.errors import UserError
from nanokimi.measure.stats import search_variance
from nanokimi.runtime.files import read_json_lines
from nanokimi.study import effects, study
from nanokimi.study.ladder import ADAMW_END, END
from nanokimi.study.search_noise import inherited_noise, noise_of_searches
from nanokimi.study.settle import with_search_from_outside
from nanokimi.study.study import noise_of_inherited, report_of

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
TRIALS = [[1.0], [1.002], [1.3]]
WITHOUT = "without Muon and QK-Clip"
"""An arm of the ablation study that inherits the settings of a corner with which it is not compared."""


def test_the_luck_of_a_search_stays_with_the_arms_that_inherit_it() -> None:
    """Widths without a search of their own would otherwise have the narrowest intervals of all."""

    def row(inherited: float | None, parent: str | None = None) -> dict[str, Any]:
        return {"inherited_variance": inherited, "tuning": {"inherited_from": parent} if parent else {}}

    rows = {"A, 64": row(0.0), "B, 64": row(0.0), "A, 32": row(4e-6, "A, 64"), "A, 96": row(4e-6, "A, 64")}
    rows["B, 96"] = row(9e-6, "B, 64")

    def noise(**weights: float) -> float:
        by_name = {name.replace("_", ", "): weight for name, weight in weights.items()}
        return inherited_noise(by_name, {name: rows[name] for name in by_name})

    assert noise(A_96=1, B_96=-1) == pytest.approx(13e-6)
    assert noise(A_96=1, B_64=-1) == pytest.approx(4e-6), "B's own search is counted elsewhere"
    assert noise(A_96=1, A_32=-1) == noise(A_96=1, A_64=-1) == 0.0, "they share one search"
    rows["B, 96"] = row(None, "B, 64")
    assert noise(A_96=1, B_96=-1) == float("inf")


def planned(losses: list[float | None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A searched arm of a plan whose judged runs ended with these losses, and its runs."""
    results = {str(i): {"val_loss": loss} for i, loss in enumerate(losses)}
    tuning = {"kind": "search", "patterns": 1, "table": [{"losses": losses} for losses in TRIALS]}
    return {"tuning": tuning, "runs": {"tokens": list(results)}}, results


def test_what_is_inherited_counts_by_the_runs_that_scatter_more() -> None:
    """A search misled by 0.001 at one size may cost 0.1 at another, where runs scatter a hundred times as much."""
    steady, wild = [1.0, 1.001, 1.002], [2.0, 2.1, 2.2]
    parent, results = planned(steady)  # type: ignore[arg-type]
    assert noise_of_inherited(parent, results, wild) == search_variance(TRIALS, wild, patterns=1) > 0.5 * 0.01
    assert noise_of_inherited(parent, results, [1.0, 1.0, 1.0]) == search_variance(TRIALS, steady, patterns=1)
    assert noise_of_inherited(None, results, wild) == 0.0
    gone, results = planned([1.0, None, 1.2])
    assert noise_of_inherited(gone, results, steady) == search_variance(TRIALS, steady, patterns=1)


def test_a_search_outside_the_study_counts_as_one_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ladder --design leave-one-out` searches a corner that is none of its arms: its noise was left out."""
    monkeypatch.setattr(effects, "hierarchical_bootstrap", lambda *_: (0.0, 0.0))
    *runs, plan = read_json_lines(RESULTS / "ladder-tales.jsonl")
    results = {run["key"]: run for run in runs}
    records = {arm["name"]: arm["tuning"] for arm in plan["arms"]}
    arms = [arm for arm in plan["arms"] if arm["name"] in (END, WITHOUT)]
    comparisons = [one for one in plan["comparisons"] if one["name"] == WITHOUT]

    def interval(arms: list[dict[str, Any]]) -> list[float]:
        report = report_of({**plan, "arms": arms, "comparisons": comparisons}, results)
        (found,) = report["effects"]
        ends: list[float] = found["ci95"]
        return ends

    corner = [arm for arm in plan["arms"] if arm["name"] == ADAMW_END]
    inside, names = interval(arms + corner), {END, WITHOUT}
    told = [{**arm, "tuning": with_search_from_outside(arm["tuning"], records, names)} for arm in arms]
    outside, without = interval(told), interval(arms)
    width = inside[1] - inside[0]
    assert width * 0.9 < outside[1] - outside[0] <= width, (
        "of its own runs' scatter alone, so hardly narrower"
    )
    assert without[1] - without[0] < 0.9 * (outside[1] - outside[0])


def test_a_record_keeps_the_search_of_an_outsider_and_of_no_other() -> None:
    parent = {"kind": "search", "patterns": 2, "table": [{"losses": losses} for losses in TRIALS]}
    child = {"kind": "inherited", "inherited_from": "parent", "table": []}
    records = {"parent": parent, "child": child}
    kept = with_search_from_outside(child, records, {"child"})
    assert kept["inherited_searches"] == [
        {"file": "tuned.json", "arm": "parent", "patterns": 2, "losses": TRIALS}
    ]
    assert with_search_from_outside(kept, records, {"child", "parent"}) == child, "its row tells it now"
    assert with_search_from_outside(parent, records, {"child"}) == parent
    elsewhere = {**child, "inherited_file": "k2-1m.json"}
    assert with_search_from_outside(elsewhere, records, {"child"}) == elsewhere
    with pytest.raises(UserError, match="no record of 'parent'"):
        with_search_from_outside(child, {"child": child}, {"child"})


def test_a_wide_arm_s_search_is_no_certainty_at_a_narrow_one() -> None:
    """In the recorded study runs scatter fifty times as much at 32 wide as at 64, where the settings were found."""
    *runs, plan = read_json_lines(RESULTS / "scale-tales.jsonl")
    rows = {row["name"]: row for row in study.arm_rows(plan, {run["key"]: run for run in runs})}
    pair = {name: rows[name] for name in ("NanoKimi, 32 wide", "NanoGPT with Muon, 32 wide")}
    noise = noise_of_searches(dict(zip(pair, (1.0, -1.0), strict=True)), pair)
    own = sum(row["search_variance"] for row in pair.values())
    assert noise - own == pytest.approx(sum(row["inherited_variance"] for row in pair.values()))
    assert noise - own > own, "a half run of each counts"
