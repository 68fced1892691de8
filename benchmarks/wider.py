"""The recorded verdicts that would fall if each whole search added half a run's variance more to an interval.

So much keeps winners among equal arms below 5% where noise also decides the course of a search
(`false_winners.py`); our intervals do not have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from false_winners import COMPARISONS, POINTS, STUDIES
from recorded import RESULTS, judged
from study_tables import study_report

from nanokimi.compare import verdict
from nanokimi.measure.stats import LEVEL, NOT_DISTINGUISHABLE, finished_trials, run_variance, search_variance
from nanokimi.study import study

SHARE = 0.5
Judged = dict[str, tuple[str, float]]
"""What is said of each comparison, and its p after Holm."""


def wider(losses_by_trial: Sequence[Sequence[float | None]], judged: Sequence[float] = ()) -> float:
    """`search_variance`, for a whole search with its share of a run's variance."""
    found = search_variance(losses_by_trial, judged)
    if len(losses_by_trial) < POINTS:  # a grid of rates
        return found
    trials = finished_trials(losses_by_trial)
    return found + SHARE * run_variance(trials, judged) / len(trials[0])


@contextmanager
def widened() -> Iterator[None]:
    """Comparisons and studies are judged with the wider intervals."""
    kept = [(module, module.search_variance) for module in (verdict, study)]
    for module, _ in kept:
        module.search_variance = wider  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, function in kept:
            module.search_variance = function  # type: ignore[assignment]


def verdicts(report: Callable[[Path], dict[str, Any]]) -> dict[str, Judged]:
    """Every comparison of the recorded results, by result and name."""
    found: dict[str, Judged] = {}
    for title, name in COMPARISONS.items():
        pairs = judged(name)[3]
        found[title] = {f"{p['first']} minus {p['second']}": (p["words"], p["holm_p"]) for p in pairs}
    for title, name in STUDIES.items():
        effects = report(RESULTS / f"{name}.jsonl")["effects"]
        found[title] = {one["name"]: (one["words"], one["holm_p"]) for one in effects}
    return found


def wider_table() -> str:
    """The verdicts that would fall, and how many there are."""
    now = verdicts(study_report)
    with widened():
        then = verdicts(study_report.__wrapped__)  # without its cache
    lines = ["| result | winners | would fall (Holm p now, and with wider intervals) |", "|---|---|---|"]
    for title, comparisons in now.items():
        winners = {
            name: p for name, (words, p) in comparisons.items() if not words.startswith(NOT_DISTINGUISHABLE)
        }
        fallen = [
            f"{name} ({p:.3f}, {then[title][name][1]:.3f})"
            for name, p in winners.items()
            if then[title][name][1] >= LEVEL or then[title][name][0].startswith(NOT_DISTINGUISHABLE)
        ]
        lines.append(f"| {title} | {len(winners)} | {'; '.join(fallen) or 'none'} |")
    return "\n".join(lines)
