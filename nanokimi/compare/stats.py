"""How sure a difference over seeds is: the paired t interval (it decides), a bootstrap (shown), Holm over many rungs.

Two sources of noise: which text was scored, and which seed drew weights and batches. Arms are paired by seed (same
batches) and scored on the same text, so a difference is taken within each seed, and its mean over seeds judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

LEVEL = 0.05
DRAWS = 10_000
DRAWS_AT_A_TIME = 1000
NOT_DISTINGUISHABLE = "not distinguishable"


@dataclass(frozen=True)
class SeedDifference:
    """First arm minus second, in nats per token: mean over paired seeds, intervals, and the paired t test's p."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    bootstrap: tuple[float, float] | None = None

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


def paired_t(first: Sequence[float], second: Sequence[float]) -> SeedDifference:
    """Mean difference of runs paired by seed, its 95% t interval and two-sided p; infinitely wide for one seed."""
    differences = np.subtract(first, second)
    count, mean = len(differences), float(np.mean(differences))
    if count < 2:
        return SeedDifference(mean, -math.inf, math.inf, 1.0, count)
    error = float(np.std(differences, ddof=1)) / math.sqrt(count)
    half = t_quantile(1 - LEVEL / 2, count - 1) * error
    if error == 0:
        return SeedDifference(mean, mean, mean, 1.0 if mean == 0 else 0.0, count)
    p = 2 * (1 - t_cdf(abs(mean) / error, count - 1))
    return SeedDifference(mean, mean - half, mean + half, max(p, 0.0), count)


def hierarchical_bootstrap(
    differences_SG: np.ndarray, tokens_G: np.ndarray, *, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """Percentile 95% interval of the mean difference per token, over seeds (S) and then stretches of text (G).

    `differences_SG` is the first arm's total nats minus the second's. All seeds are scored on the same text, so one
    draw of stretches serves all the seeds that are drawn. Tokens of a stretch stay together: they depend.
    """
    generator = np.random.default_rng(seed)
    seeds, stretches = differences_SG.shape
    means = []
    for start in range(0, draws, DRAWS_AT_A_TIME):
        rows = min(DRAWS_AT_A_TIME, draws - start)
        times_RS = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=rows)
        times_RG = generator.multinomial(stretches, np.full(stretches, 1 / stretches), size=rows)
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


def in_words(difference: SeedDifference, adjusted_p: float | None = None) -> str:
    """ "lower by 0.0123", "higher by ..." or "not distinguishable": a winner needs both the interval and Holm's p."""
    if difference.seeds < 2:
        return f"{NOT_DISTINGUISHABLE} (one seed)"
    if difference.low == difference.high == 0:
        return f"{NOT_DISTINGUISHABLE}: every run ended the same"
    if not difference.distinguishable:
        return NOT_DISTINGUISHABLE
    if adjusted_p is not None and adjusted_p >= LEVEL:
        return f"{NOT_DISTINGUISHABLE} after Holm"
    return f"{'lower' if difference.mean < 0 else 'higher'} by {abs(difference.mean):.4f}"
