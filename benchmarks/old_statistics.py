"""What the statistics of the first studies were worth: equal arms judged as they were, and their recall intervals.

    python benchmarks/old_statistics.py --record docs/results/old-statistics.jsonl

docs/corrections.md ("Statistics") quotes the lines. They are about the withdrawn results in docs/results/old:

- `correlation`: of two arms over the seeds, the mean over all pairs of arms that are not the same runs.
- `quadratic`: whole studies of equal arms. Each arm's rate is tuned by itself by the functions that tuned it then, on
  losses that are quadratic in the rate's logarithm: `height` standard deviations of a run above the best, one doubling
  away from it. Arms are judged in pairs by the t interval over seeds alone; it should name a winner in 5%.
- `table`: the same for each recorded arm, whose tuning curve is taken for true. The rates are those of the curve, and
  each run scatters as that arm's judged runs did.
- `recall`: how often 95% intervals contain the true share of right answers, computed exactly. All seeds answer some of
  the questions alike (a share of `correlation`), and the others each for itself, so two seeds' answers to one question
  correlate by as much. `pooled` takes all answers for independent, as we did; `one_seed` asks one seed only.
- `answers`: the variance of the recorded shares of right answers from seed to seed, over that of independent answers,
  with a 95% interval. It is 1 minus the correlation if the seeds' models are equally good, and otherwise more.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import numpy as np
from recorded import RESULTS, print_and_record

from nanokimi.measure.stats import paired_t
from nanokimi.measure.story_world import wilson
from nanokimi.runtime.files import read_json_lines
from nanokimi.study.tune import Points, best_of, geometric_grid, is_interior, next_value

STUDIES = {
    "ablation study, tinyshakespeare": "ladder-shakespeare",
    "ablation study, tales": "ladder-tales",
    "four sizes, tales": "scale-tales",
}
PAIRS = 12
"""Of equal arms in a simulated study: as many arms as the ablation studies had."""
POINTS, FACTOR, ROUNDS, TUNING_SEEDS, SEEDS = 3, 2.0, 4, 2, 5
"""How the studies tuned and judged: a grid of rates, extended until each arm's best is interior, at most so often."""
HEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
QUESTIONS, RECALL_SEEDS = 50, 3
SHARES = (0.2, 0.3, 0.4)
"""True shares of right answers; those recorded over the three seeds are 0.23 to 0.37."""
CORRELATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
Row = dict[str, Any]


# ---- equal arms, tuned apart


def tuned_rates(height: float, optima: np.ndarray, generator: np.random.Generator) -> list[float]:
    """The rate that each arm of a study ends with, in units of the configured one; `optima` are in doublings of it.

    As the studies did: while one arm's best rate lies at the edge, every arm tries another one.
    """
    curves: list[Points] = [{} for _ in optima]
    due = [geometric_grid(1.0, FACTOR, POINTS) for _ in optima]
    for _ in range(ROUNDS + 1):
        for points, optimum, rates in zip(curves, optima, due, strict=True):
            for rate in rates:
                noise = generator.normal() / math.sqrt(TUNING_SEEDS)
                points[rate] = quadratic(height, rate, optimum) + noise
        if all(map(is_interior, curves)):
            break
        due = [[next_value(points, FACTOR)] for points in curves]
    return [best_of(points) for points in curves]


def quadratic(height: float, rate: float, optimum: float) -> float:
    """The true loss at a rate, in standard deviations of a run."""
    return float(height * (math.log2(rate) - optimum) ** 2)


def winners_in_study(height: float, generator: np.random.Generator) -> int:
    """In how many pairs of equal arms one is named a winner; each pair's best rate lies within a doubling."""
    optima = np.repeat(generator.uniform(-1, 1, PAIRS), 2)
    rates = tuned_rates(height, optima, generator)
    judged = [
        list(quadratic(height, rate, optimum) + generator.normal(size=SEEDS))
        for rate, optimum in zip(rates, optima, strict=True)
    ]
    return sum(
        paired_t(one, other).distinguishable for one, other in zip(judged[::2], judged[1::2], strict=True)
    )


def winners_from_table(
    truth_K: np.ndarray, deviation: float, tries: int, generator: np.random.Generator
) -> int:
    """The same for pairs of one recorded arm: rates with these true losses, each tried by every tuning seed."""

    def tuned_and_judged() -> list[float]:
        seen_K = truth_K + generator.normal(0, deviation / math.sqrt(TUNING_SEEDS), len(truth_K))
        return list(truth_K[seen_K.argmin()] + generator.normal(0, deviation, SEEDS))

    return sum(paired_t(tuned_and_judged(), tuned_and_judged()).distinguishable for _ in range(tries))


def recorded_arms(study: str) -> dict[tuple[float, ...], Row]:
    """The arms of a recorded study by the losses of their judged runs; arms whose runs ended the same are one."""
    *runs, plan = read_json_lines(RESULTS / "old" / f"{study}.jsonl")
    losses = {run["key"]: run["val_loss"] for run in runs}
    return {tuple(losses[key] for key in arm["runs"]["tokens"]): arm for arm in reversed(plan["arms"])}


# ---- recall


def alike_or_apart(share: float, correlation: float) -> np.ndarray:
    """The chances of 0, 1, ... right answers to one question under all seeds."""
    apart = np.array(
        [
            math.comb(RECALL_SEEDS, right) * share**right * (1 - share) ** (RECALL_SEEDS - right)
            for right in range(RECALL_SEEDS + 1)
        ]
    )
    alike = np.zeros(RECALL_SEEDS + 1)
    alike[0], alike[-1] = 1 - share, share
    return correlation * alike + (1 - correlation) * apart


def coverage(share: float, chances_of_one: np.ndarray) -> float:
    """How often Wilson's interval contains the share, if each question has these chances of 0, 1, ... right answers."""
    chances = np.ones(1)
    for _ in range(QUESTIONS):
        chances = np.convolve(chances, chances_of_one)
    total = len(chances) - 1
    intervals = [wilson(right, total) for right in range(total + 1)]
    return float(sum(chances[right] for right, (low, high) in enumerate(intervals) if low <= share <= high))


def scatter_of_answers() -> Row:
    """How far the recorded shares of right answers scatter over the seeds, over all arms and distances."""
    lines = read_json_lines(RESULTS / "old" / "tales.jsonl")
    shares: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        for distance, found in line["tales"]["recall"].items():
            shares.setdefault((line["name"], distance), []).append(found["share"])
    independent = sum(fmean(found) * (1 - fmean(found)) / QUESTIONS for found in shares.values())
    scatter = sum(map(variance, shares.values())) / independent
    degrees = sum(len(found) - 1 for found in shares.values())
    by_chance = np.random.default_rng(0).chisquare(degrees, 100_000) / degrees
    low, high = (float(scatter / quantile) for quantile in np.quantile(by_chance, [0.975, 0.025]))
    return {"scatter": scatter, "low": low, "high": high}


# ---- the lines


def rows(studies: int, tries: int) -> Iterator[Row]:
    """Every line but the head."""
    arms = {title: recorded_arms(name) for title, name in STUDIES.items()}
    for title, found in arms.items():
        pairs = [np.corrcoef(one, other)[0, 1] for one, other in combinations(found, 2)]
        yield {
            "kind": "correlation",
            "study": title,
            "arms": len(found),
            "correlation": float(np.mean(pairs)),
        }
    for height in HEIGHTS:
        generator = np.random.default_rng(zlib.crc32(f"quadratic {height}".encode()))
        winners = sum(winners_in_study(height, generator) for _ in range(studies))
        yield {"kind": "quadratic", "height": height, "tries": studies * PAIRS, "winners": winners}
    for title, found in arms.items():
        for losses, arm in found.items():
            generator = np.random.default_rng(zlib.crc32((title + arm["name"]).encode()))
            truth_K = np.array([loss for _, loss in arm["tuning"]["curve"] if loss is not None])
            about = {
                "kind": "table",
                "study": title,
                "arm": arm["name"],
                "trials": len(truth_K),
                "tries": tries,
            }
            deviation = float(np.std(losses, ddof=1))
            yield about | {"winners": winners_from_table(truth_K, deviation, tries, generator)}
    for share in SHARES:
        one_seed = coverage(share, np.array([1 - share, share]))
        for correlation in CORRELATIONS:
            pooled = coverage(share, alike_or_apart(share, correlation))
            about = {"kind": "recall", "share": share, "correlation": correlation}
            yield about | {"pooled": pooled, "one_seed": one_seed}
    yield {"kind": "answers"} | scatter_of_answers()


def main() -> None:
    """Compute, print each line, and record them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--studies", type=int, default=1000, help="simulated for each height")
    parser.add_argument("--tries", type=int, default=2000, help="for each recorded arm")
    parser.add_argument("--record", type=Path, default=None, help="write the lines to this file")
    chosen = parser.parse_args()
    if min(chosen.studies, chosen.tries) < 1:
        parser.error("--studies and --tries must be at least 1")
    print_and_record("old_statistics.py", rows(chosen.studies, chosen.tries), chosen.record)


if __name__ == "__main__":
    main()
