"""How often one of two equal arms is named a winner, if each is tuned by itself: simulations, without training.

    python benchmarks/false_winners.py --record docs/results/false-winners.jsonl

Two equal arms are searched and judged many times, each with its own noise, by the functions that judge a comparison.
A right interval of 95% names a winner in at most 5% of the tries. Two kinds of truth:

- Recorded tables: the trials of every arm of the recorded comparisons and studies (docs/results). Their losses are
  taken for true, and each run scatters as that arm's judged runs did. The trials are those of the table, whatever the
  noise: so this tests the interval, not where a search goes. An arm that inherits has only its grid of rates here.
- Bowls: `nanokimi sweep --search` itself, with the budgets that were used, on losses that are quadratic in the eight
  hyperparameters (each pair interacting, the optimum anywhere in the middle half). Noise then also decides around which
  point a search goes on. `height` says how steep a truth is: so many standard deviations of a run the middle one of a
  search's first points lies above the best.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from recorded import RESULTS, print_and_record, read_comparison

from nanokimi.compare.earlier_searches import patterns_of
from nanokimi.config import RunConfig
from nanokimi.config.files import load_config
from nanokimi.config.rules import resolve
from nanokimi.measure.stats import LEVEL, choice_variance, course_variance, paired_t
from nanokimi.runtime.files import read_json_lines
from nanokimi.study.search import Asked, Design, search
from nanokimi.study.space import BY_NAME, HYPERPARAMETERS

COMPARISONS = {
    "the default comparison, short stories": "tales-short",
    "nanoGPT's recipe, tinyshakespeare": "shakespeare-char",
}
STUDIES = {
    "ablation study, tinyshakespeare": "ladder-shakespeare",
    "ablation study, short stories": "ladder-tales",
    "four sizes, short stories": "scale-tales",
}
POINTS = 16
BUDGETS = (
    (Design(points=POINTS, rounds=1), 5),
    (Design(points=POINTS, rounds=2), 3),
    (Design(points=POINTS, rounds=2), 5),  # the default comparison before November 30, 2026
    (Design(points=POINTS, rounds=3), 4),  # the default comparison
    (Design(points=POINTS, rounds=3), 5),
)
"""The searches of the recorded results, each with one tuning seed, and how many seeds judged their arms."""
HEIGHTS = (10, 30, 100, 300, 1000, 2000)
"""Of the bowls; the recorded searches have 17 to 744."""
BOWL = np.sqrt([4, 1, 2, 0.6, 0.3, 0.6, 0.4, 0.8])
"""How much each hyperparameter matters, as in tests/test_search.py."""
STEPS = 500
DRAWS = 500
"""Of the bootstrap in `choice_variance`; more change nothing here."""
TESTS = 39
"""Of an ablation study: a winner whose p is the smallest of so many survives Holm's correction below LEVEL / TESTS."""
Row = dict[str, Any]
Judged = tuple[list[float], float, float]
"""The losses of an arm's seeds, the variance that its search adds, and the part of it that is of its choice alone."""
OneArm = Callable[[np.random.Generator], Judged]
"""Tunes and judges an arm once."""


@dataclass(frozen=True)
class TunedArm:
    """A recorded arm: the losses of its trials, by tuning seed, and how its runs scatter."""

    name: str
    trials: list[list[float]]
    patterns: int
    """Of the search that made them; 0 for a grid of rates."""
    deviation: float
    seeds: int
    height: float | None
    """How far the middle one of a search's first points lies above its best trial, in deviations."""


def recorded_arms() -> Iterator[tuple[str, TunedArm]]:
    """Every tuned arm of the recorded results with the name of its result. Trials that diverged are left out."""
    for title, name in COMPARISONS.items():
        head, runs = read_comparison(name)
        for arm, record in head["search"].items():
            losses = [run["val_loss"] for run in runs if run["arm"] == arm]
            yield title, tuned_arm(arm, record, losses)
    for title, name in STUDIES.items():
        *runs, plan = read_json_lines(RESULTS / f"{name}.jsonl")
        losses_by_key = {run["key"]: run["val_loss"] for run in runs}
        seen = set()
        for arm in sorted(plan["arms"], key=lambda arm: -len(arm["tuning"]["table"])):
            keys = tuple(arm["runs"]["tokens"])
            if keys not in seen:  # an arm with another's runs is the same arm
                seen.add(keys)
                losses = [losses_by_key[key] for key in keys]
                yield title, tuned_arm(arm["name"], arm["tuning"], losses)


def tuned_arm(name: str, record: Row, judged: Sequence[float]) -> TunedArm:
    """An arm from its tuning record and the validation losses of its judged runs."""
    table, patterns = record["table"], patterns_of(record)
    trials = [row["losses"] for row in table if None not in row["losses"]]
    deviation, height = float(np.std(judged, ddof=1)), None
    if patterns:
        first = [
            math.inf if None in row["losses"] else float(np.mean(row["losses"])) for row in table[:POINTS]
        ]
        height = (float(np.median(first)) - min(float(np.mean(losses)) for losses in trials)) / deviation
    return TunedArm(name, trials, patterns, deviation, len(judged), height)


def with_variances(judged: list[float], tried: Sequence[Sequence[float]], patterns: int) -> Judged:
    """The losses of an arm's seeds, with what its trials add to an interval."""
    choice = choice_variance(tried, judged, draws=DRAWS)
    return judged, choice + course_variance(tried, judged, patterns=patterns), choice


def from_table(arm: TunedArm, generator: np.random.Generator) -> Judged:
    """The arm's trials again with other noise, the best of them judged."""
    truth_K = [float(np.mean(losses)) for losses in arm.trials]
    tried = [
        list(true + generator.normal(0, arm.deviation, len(losses)))
        for true, losses in zip(truth_K, arm.trials, strict=True)
    ]
    chosen = min(range(len(tried)), key=lambda k: float(np.mean(tried[k])))
    judged = list(truth_K[chosen] + generator.normal(0, arm.deviation, arm.seeds))
    return with_variances(judged, tried, arm.patterns)


def twice(arm: TunedArm, number: int) -> tuple[OneArm, OneArm]:
    """The arm and its equal."""
    return partial(from_table, arm), partial(from_table, arm)


def units_of(settings: dict[str, Any], width: int) -> np.ndarray:
    """The coordinates of settings of NanoKimi with MuonClip in the searched space."""
    values = {
        "lr": settings["optim.lr"],
        "adamw_ratio": settings["optim.adamw_lr"] / settings["optim.lr"],
        "init_scale": settings["model.initializer_range"] * math.sqrt(width),
        "warmup": settings["optim.warmup_steps"] / STEPS,
        "weight_decay": settings["optim.weight_decay"],
        "decay": "cosine" if settings["optim.schedule"] == "cosine" else settings["optim.decay_fraction"],
        "beta2": 1 - settings["optim.betas"][1],
        "momentum": 1 - settings["optim.momentum"],
    }
    return np.array([BY_NAME[one.name].unit(values[one.name]) for one in HYPERPARAMETERS])


def bowl(generator: np.random.Generator) -> Callable[[np.ndarray], float]:
    """A loss that is 0 at its optimum, and about 1 at the middle one of a search's first points."""
    count = len(HYPERPARAMETERS)
    centre = generator.uniform(0.25, 0.75, count)
    askew = np.diag(BOWL) + generator.normal(0, 0.1 * BOWL.mean(), (count, count))
    return lambda units: float(((askew @ (units - centre)) ** 2).sum())


@cache
def searched_config() -> RunConfig:
    """A NanoKimi, whose optimizer has all eight hyperparameters."""
    return resolve(load_config("ladder-tales"), vocab_size=1024, device="cpu", dtype="fp32", threads=1)


def searched(
    loss: Callable[[np.ndarray], float], design: Design, seeds: int, generator: np.random.Generator
) -> Judged:
    """A whole search on this loss with noise of 1, and the best trial judged."""
    config = searched_config()
    width = config.nanokimi.model.hidden_size

    def score(asked: Sequence[Asked]) -> list[float]:
        return [loss(units_of(settings, width)) + generator.normal() for _, settings, _ in asked]

    record = search({"NanoKimi": config}, score, [1], STEPS, design)["NanoKimi"]
    judged = list(loss(units_of(record["best"], width)) + generator.normal(size=seeds))
    return with_variances(judged, [row["losses"] for row in record["table"]], design.rounds)


def named_winners(pair: Callable[[int], tuple[OneArm, OneArm]], tries: int, name: str) -> Row:
    """In how many tries two equal arms have a winner: as we judge, and with parts of the interval left out.

    `without_share` lacks what the patterns add for where noise led them, `without_search` all that searches add.
    `among_39` are winners whose p would survive Holm's correction as the smallest of 39, as in an ablation study.
    """
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    found = dict.fromkeys(
        ("winners", "without_share", "without_search", "among_39", "among_39_without_share"), 0
    )
    for number in range(tries):
        (first, *one), (second, *other) = (arm(generator) for arm in pair(number))
        judged, without_share = (
            paired_t(first, second, extra_variance=a + b) for a, b in zip(one, other, strict=True)
        )
        found["winners"] += judged.distinguishable
        found["without_share"] += without_share.distinguishable
        found["without_search"] += paired_t(first, second).distinguishable
        found["among_39"] += judged.p * TESTS < LEVEL
        found["among_39_without_share"] += without_share.p * TESTS < LEVEL
    return {"tries": tries, **found}


def two_searches(design: Design, seeds: int, height: float, number: int) -> tuple[OneArm, OneArm]:
    """Two equal arms in the bowl of this number."""
    loss = bowl(np.random.default_rng(number))

    def scaled(units: np.ndarray) -> float:
        return height * loss(units)

    arm = partial(searched, scaled, design, seeds)
    return arm, arm


def rows(tries: int, table_tries: int) -> Iterator[Row]:
    """A line for each budget and steepness of bowls, and for each recorded arm."""
    for design, seeds in BUDGETS:
        for height in HEIGHTS:
            pair = partial(two_searches, design, seeds, height)
            about = {"kind": "bowl", "trials": design.trials, "seeds": seeds, "height": height}
            yield about | named_winners(pair, tries, f"{design} {height}")
    for title, arm in recorded_arms():
        about = {
            "kind": "table",
            "study": title,
            "arm": arm.name,
            "trials": len(arm.trials),
            "seeds": arm.seeds,
        }
        found = named_winners(partial(twice, arm), table_tries, title + arm.name)
        yield about | {"height": arm.height} | found


def main() -> None:
    """Simulate, print each line, and record them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tries", type=int, default=600, help="for each bowl")
    parser.add_argument("--table_tries", type=int, default=600, help="for each recorded arm")
    parser.add_argument("--record", type=Path, default=None, help="write the lines to this file")
    chosen = parser.parse_args()
    print_and_record("false_winners.py", rows(chosen.tries, chosen.table_tries), chosen.record)


if __name__ == "__main__":
    main()
