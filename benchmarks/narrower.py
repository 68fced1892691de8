"""The recorded verdicts that differ from those of our earlier, narrower intervals.

They lacked what a whole search adds for where noise led it (`stats.search_variance`). In studies, the noise of a search
whose settings an arm inherits was that in the nats of the searched arm alone, and Holm's correction counted a test
again for every name that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from false_winners import COMPARISONS, STUDIES
from recorded import RESULTS, Row, judged
from study_tables import study_report

from nanokimi.measure.stats import NOT_DISTINGUISHABLE, choice_variance
from nanokimi.study.study import noise_of_search

Judged = dict[str, dict[str, Any]]
"""Each comparison of a result, by name."""


def of_choice(
    losses_by_trial: Sequence[Sequence[float | None]], judged: Sequence[float] = (), *, patterns: int
) -> float:
    """`search_variance` as it was."""
    return choice_variance(losses_by_trial, judged)


def by_the_searched_arm(parent: Row | None, results: dict[str, Row], judged: Sequence[float]) -> float:
    """`noise_of_inherited` as it was."""
    if parent is None:
        return 0.0
    own = [results[key]["val_loss"] for key in parent["runs"]["tokens"]]
    return noise_of_search(parent, results, own)


def by_name(comparison: dict[str, Any], runs: object) -> object:
    """`key_of_test` as if every name were a test of its own."""
    return frozenset({comparison["name"]})


@contextmanager
def narrower() -> Iterator[None]:
    """Comparisons and studies are judged as they were."""
    with ExitStack() as stack:
        for module in ("compare.verdict", "study.study"):
            stack.enter_context(patch(f"nanokimi.{module}.search_variance", of_choice))
        stack.enter_context(patch("nanokimi.study.study.noise_of_inherited", by_the_searched_arm))
        stack.enter_context(patch("nanokimi.study.effects.key_of_test", by_name))
        # slow, and decides nothing
        stack.enter_context(patch("nanokimi.study.effects.hierarchical_bootstrap", lambda *_: (0.0, 0.0)))
        yield


def verdicts(report: Callable[[Path], dict[str, Any]]) -> dict[str, Judged]:
    """Every comparison of the recorded results, by result and name."""
    found: dict[str, Judged] = {}
    for title, name in COMPARISONS.items():
        found[title] = {f"{pair['first']} minus {pair['second']}": pair for pair in judged(name)[3]}
    for title, name in STUDIES.items():
        found[title] = {one["name"]: one for one in report(RESULTS / f"{name}.jsonl")["effects"]}
    return found


def is_winner(one: dict[str, Any]) -> bool:
    """Whether one side of a comparison is named better."""
    return one["mean"] is not None and not one["words"].startswith(NOT_DISTINGUISHABLE)


def told(one: dict[str, Any]) -> str:
    """The deciding interval of a comparison, its p after Holm, and the verdict."""
    low, high = one["ci95"]
    return f"{low:+.3f} to {high:+.3f}, p {one['holm_p']:.3f}: {one['words'].split(' by ')[0]}"


def changed_verdicts_table() -> str:
    """Every comparison whose verdict changed, then and now, and how many winners each result has."""
    now = verdicts(study_report)
    with narrower():
        then = verdicts(study_report.__wrapped__)  # without its cache
    lines = [
        "| result | comparison | difference | then: interval, p after Holm | now |",
        "|---|---|---|---|---|",
    ]
    for title, comparisons in now.items():
        counts = [sum(map(is_winner, some[title].values())) for some in (then, now)]
        lines.append(
            f"| {title} | winners in all | | {counts[0]} of {len(comparisons)} | {counts[1]} of {len(comparisons)} |"
        )
        for name, one in comparisons.items():
            before = then[title][name]
            if is_winner(before) != is_winner(one):
                lines.append(f"| | {name} | {one['mean']:+.3f} | {told(before)} | {told(one)} |")
    return "\n".join(lines)
