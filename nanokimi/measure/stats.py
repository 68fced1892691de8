"""How sure a difference over seeds is: the paired t interval (it decides), a bootstrap (shown), Holm over a study.

Three sources of noise: which seed drew weights and batches, which trial a noisy search picked, and which text was
scored. Arms are paired by seed (same batches) and scored on the same text, so a difference is taken within each seed,
and its mean over seeds judged. Pairing gains little here: runs of two arms with one seed hardly correlate ("How sure"
in docs/experiments.md has the figures). The interval asks for no correlation, it takes the differences' own deviation.
What the search adds cannot be seen in those differences, since all seeds of an arm share one chosen setting: it is
added.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations
from typing import Any

import numpy as np

LEVEL = 0.05
DRAWS = 10_000
DRAWS_AT_A_TIME = 1000
NOT_DISTINGUISHABLE = "not distinguishable"
SHARE_OF_A_RUN = 0.5
"""Of the variance of a run: what noise adds by steering a search, for each pattern. Calibrated by
benchmarks/false_winners.py."""


@dataclass(frozen=True)
class SeedDifference:
    """First arm minus second, in nats per token: mean over paired seeds, intervals, and the paired t test's p."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    extra_variance: float = 0.0
    """Of the mean, from the searches: part of the interval and of p."""

    @property
    def distinguishable(self) -> bool:
        """Whether zero lies outside the interval that decides."""
        return self.low > 0 or self.high < 0


def t_cdf(t: float, degrees: int) -> float:
    """Student's t distribution for whole degrees of freedom, exactly (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = cosine if degrees % 2 else 1.0
    total = 0.0
    for k in range(2 + degrees % 2, degrees + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    within = 2 / math.pi * (angle + sine * total) if degrees % 2 else sine * total
    return 0.5 + within / 2


@cache
def t_quantile(probability: float, degrees: int) -> float:
    """The value below which Student's t lies with this probability (above one half), by bisection."""
    if degrees < 1 or not 0.5 <= probability < 1:
        raise ValueError(f"no t quantile of {probability} with {degrees} degrees of freedom")
    low, high = 0.0, 1.0
    while t_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def paired_t(
    first: Sequence[float],
    second: Sequence[float],
    *,
    extra_variance: float = 0.0,
    least_variance: float = 0.0,
) -> SeedDifference:
    """Mean difference of runs paired by seed, its 95% t interval and two-sided p; infinitely wide for one seed.

    `extra_variance` of the mean (that of both arms' searches) is added to what the seeds show. The degrees of freedom
    stay those of the seeds: more of them (Satterthwaite's) would claim that the search's part is known exactly.
    `least_variance` is that of one difference by rounding alone: where a few seeds happen to show less, it is taken.
    """
    differences = np.subtract(first, second)
    count, mean = len(differences), float(np.mean(differences))
    if count < 2 or not math.isfinite(extra_variance):
        return SeedDifference(mean, -math.inf, math.inf, 1.0, count, extra_variance)
    variance = max(float(np.var(differences, ddof=1)), least_variance)
    error = math.sqrt(variance / count + extra_variance)
    half = t_quantile(1 - LEVEL / 2, count - 1) * error
    if error == 0:
        return SeedDifference(mean, mean, mean, 1.0 if mean == 0 else 0.0, count)
    p = 2 * (1 - t_cdf(abs(mean) / error, count - 1))
    return SeedDifference(mean, mean - half, mean + half, max(p, 0.0), count, extra_variance)


def finished_trials(losses_by_trial: Sequence[Sequence[float | None]]) -> list[np.ndarray]:
    """The trials whose runs all ended with a loss, the best first."""
    trials = [
        np.array(losses, dtype=float)
        for losses in losses_by_trial
        if losses and all(loss is not None and math.isfinite(loss) for loss in losses)
    ]
    return sorted(trials, key=lambda losses: float(losses.mean()))


def run_variance(trials: Sequence[np.ndarray], judged: Sequence[float] = ()) -> float:
    """The variance of a run's loss: pooled over the better half of the trials, the best first, and the judged runs."""
    groups = [*trials[: (len(trials) + 1) // 2], np.array(judged, dtype=float)]
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups if len(group) > 1)
    degrees = sum(len(group) - 1 for group in groups if len(group) > 1)
    return squares / degrees if degrees else math.inf


def search_variance(
    losses_by_trial: Sequence[Sequence[float | None]],
    judged: Sequence[float] = (),
    *,
    patterns: int,
    draws: int = DRAWS,
) -> float:
    """The variance that a search adds to an arm's true loss: by what it picks, and by where noise leads it.

    A grid of rates around an inherited one has no patterns and so `choice_variance` alone, a whole search
    (`nanokimi sweep --search`) also `course_variance`.
    """
    found = choice_variance(losses_by_trial, judged, draws=draws)
    return found + course_variance(losses_by_trial, judged, patterns=patterns)


def course_variance(
    losses_by_trial: Sequence[Sequence[float | None]], judged: Sequence[float] = (), *, patterns: int
) -> float:
    """The variance that a search adds because noise decides around which point each of its patterns lies.

    A pattern's trials lie around the best of the earlier ones, so noise decides which trials there are. No variance
    over the trials that were made can show that. For each pattern it is SHARE_OF_A_RUN of the variance of a run,
    divided by the tuning seeds.

    The share is calibrated, not derived: where equal arms are searched apart by our budgets on losses that are
    quadratic in the eight hyperparameters, without it far more than 5% of the comparisons have a winner, with 0.5 about
    5% at most (table "How wide is wide enough" in docs/experiments.md, by benchmarks/false_winners.py; one or two
    patterns, one tuning seed).
    """
    trials = finished_trials(losses_by_trial)
    if not patterns or len(trials) < 2:
        return 0.0  # nothing was chosen
    return patterns * SHARE_OF_A_RUN * run_variance(trials, judged) / max(map(len, trials))


def choice_variance(
    losses_by_trial: Sequence[Sequence[float | None]], judged: Sequence[float] = (), *, draws: int = DRAWS
) -> float:
    """The variance that picking the trial with the lowest mean adds to an arm's true loss.

    A trial's losses are those of the tuning seeds, None where a run diverged: such a trial cannot be picked. Parametric
    bootstrap: the search is repeated with the trials' means as the truth, noise of their pooled deviation is added to
    each, and the variance of the picked trials' truths is taken. The deviation is that within the better half of the
    trials (the worse half begins to diverge, scatters more and is hardly ever picked) and within `judged`, the losses
    of the arm's runs at the chosen setting: with one tuning seed they alone tell it, and without them the variance is
    infinite. All are losses of the validation part, on which the trials were picked.

    The means are not shrunk towards each other. They are wider apart than the truths, so a flat search is charged too
    much; shrunken by what the noise explains, trials that nearly tie would be charged too little. The trials themselves
    are taken as given.
    """
    trials = finished_trials(losses_by_trial)
    if len(trials) < 2:
        return 0.0  # nothing was chosen
    variance = run_variance(trials, judged)
    if not math.isfinite(variance):
        return math.inf
    means_K = np.array([losses.mean() for losses in trials])
    errors_K = np.sqrt(variance / np.array([len(losses) for losses in trials]))
    noise_RK = np.random.default_rng(0).normal(size=(draws, len(trials)))
    above_K = means_K - means_K[0]
    return float(np.var(above_K[(above_K + errors_K * noise_RK).argmin(axis=1)]))


def compare_pairs(
    losses_by_arm: dict[str, list[float]],
    search_variances: dict[str, float] | None = None,
    inherited: dict[str, dict[Hashable, float]] | None = None,
    *,
    rounding: float | None = None,
) -> list[dict[str, Any]]:
    """Every pair of arms, first minus second, judged together: Holm counts all the pairs of the report.

    Losses are by seed, the same seeds for all arms; an arm without an entry in `search_variances` was not searched.
    `inherited` has the variance of each earlier search that an arm has settings of. Two arms with settings of one
    search share its luck, which their difference lacks. With one seed there is no interval, no p and no winner.
    """
    searched, earlier, found = search_variances or {}, inherited or {}, []
    for first, second in combinations(losses_by_arm, 2):
        one, other = losses_by_arm[first], losses_by_arm[second]
        if len(one) != len(other):
            raise ValueError(f"{first} has {len(one)} seeds, {second} {len(other)}: they cannot be paired")
        extra = searched.get(first, 0.0) + searched.get(second, 0.0)
        extra += unshared(earlier.get(first, {}), earlier.get(second, {}))
        least = 2 * (rounding or 0.0) ** 2
        if one == other:
            extra = least = 0.0
        found.append((first, second, paired_t(one, other, extra_variance=extra, least_variance=least)))
    adjusted = holm([difference.p for *_, difference in found])
    entries = []
    for (first, second, difference), holm_p in zip(found, adjusted, strict=True):
        sure = math.isfinite(difference.low)
        per_seed = np.subtract(losses_by_arm[first], losses_by_arm[second])
        entries.append(
            {
                "first": first,
                "second": second,
                "mean": difference.mean,
                "ci95": [difference.low, difference.high] if sure else None,
                "p": difference.p if sure else None,
                "holm_p": holm_p if sure else None,
                "tests": len(found),
                "seeds": difference.seeds,
                "per_seed": [float(x) for x in per_seed],
                "words": in_words(difference, holm_p),
            }
        )
    return entries


def unshared(first: Mapping[Hashable, float], second: Mapping[Hashable, float]) -> float:
    """The variance of the searches that only one of two arms has settings of."""
    return sum({**first, **second}[search] for search in first.keys() ^ second.keys())


@lru_cache(maxsize=1)
def _drawn(seeds: int, stretches: int, seed: int, draws: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """How often each draw takes each seed and each stretch; kept, because a study's comparisons all need the same."""
    generator = np.random.default_rng(seed)
    chances_S, chances_G = np.full(seeds, 1 / seeds), np.full(stretches, 1 / stretches)
    found = []
    for start in range(0, draws, DRAWS_AT_A_TIME):
        rows = min(DRAWS_AT_A_TIME, draws - start)
        times_RS = generator.multinomial(seeds, chances_S, size=rows)
        found.append((times_RS, generator.multinomial(stretches, chances_G, size=rows).astype(np.int32)))
    return found


def hierarchical_bootstrap(
    differences_SG: np.ndarray, tokens_G: np.ndarray, *, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """Percentile 95% interval of the mean difference per token, over seeds (S) and then stretches of text (G).

    `differences_SG` is the first arm's total nats minus the second's. All seeds are scored on the same text, so one
    draw of stretches serves all the seeds that are drawn. Tokens of a stretch stay together: they depend.
    """
    seeds, stretches = differences_SG.shape
    means = []
    for times_RS, times_RG in _drawn(seeds, stretches, seed, draws):
        nats_R = (times_RS @ differences_SG * times_RG).sum(axis=1) / seeds
        means.append(nats_R / (times_RG @ tokens_G))
    low, high = np.percentile(np.concatenate(means), [100 * LEVEL / 2, 100 - 100 * LEVEL / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: below 0.05 with at most 5% chance of any false one among all."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(largest, 1.0)
    return adjusted


def holm_of_distinct(p_values: Sequence[float], tests: Sequence[Hashable]) -> list[float]:
    """Holm's adjusted p-values, where entries with an equal entry in `tests` are one test, with the largest p of them.

    To count one test several times would only make the others harder to pass.
    """
    largest: dict[Hashable, float] = {}
    for test, p in zip(tests, p_values, strict=True):
        largest[test] = max(largest.get(test, 0.0), p)
    adjusted = dict(zip(largest, holm(list(largest.values())), strict=True))
    return [adjusted[test] for test in tests]


def in_words(difference: SeedDifference, adjusted_p: float | None = None) -> str:
    """ "lower by 0.0123", "higher by ..." or "not distinguishable": a winner needs both the interval and Holm's p."""
    if difference.seeds < 2:
        return f"{NOT_DISTINGUISHABLE} (one seed)"
    if not math.isfinite(difference.extra_variance):
        return f"{NOT_DISTINGUISHABLE} (the search's noise is unknown)"
    if difference.low == difference.high == 0:
        return f"{NOT_DISTINGUISHABLE}: every run ended the same"
    if not difference.distinguishable:
        return NOT_DISTINGUISHABLE
    if adjusted_p is not None and adjusted_p >= LEVEL:
        return f"{NOT_DISTINGUISHABLE} after Holm"
    return f"{'lower' if difference.mean < 0 else 'higher'} by {abs(difference.mean):.4f}"
