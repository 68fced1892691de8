"""Intervals over seeds, on synthetic data whose truth is known; tables of Student's t; Holm by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nanokimi.compare.stats import (
    NOT_DISTINGUISHABLE,
    SeedDifference,
    hierarchical_bootstrap,
    holm,
    in_words,
    paired_t,
    t_cdf,
    t_quantile,
)

EXPERIMENTS = 2000


def t_cdf_by_integration(t: float, degrees: int) -> float:
    """The density summed up: slow, and shares nothing with the code."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    xs = np.linspace(0, t, 200_001)
    ys = scale * (1 + xs**2 / degrees) ** (-(degrees + 1) / 2)
    return 0.5 + float(np.sum((ys[1:] + ys[:-1]) / 2 * np.diff(xs)))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 12, 49])
@pytest.mark.parametrize("t", [-2.5, 0.0, 0.3, 1.0, 4.7])
def test_students_t_is_the_integral_of_its_density(t: float, degrees: int) -> None:
    assert t_cdf(t, degrees) == pytest.approx(t_cdf_by_integration(t, degrees), abs=1e-8)


def test_quantiles_are_those_of_the_printed_tables() -> None:
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042, 120: 1.980}
    assert {n: round(t_quantile(0.975, n), 3) for n in printed} == printed
    with pytest.raises(ValueError, match="0 degrees"):
        t_quantile(0.975, 0)


def test_a_paired_interval_by_hand() -> None:
    found = paired_t([1.0, 2.0, 3.0], [0.5, 1.0, 3.5])  # differences 0.5, 1, -0.5: mean 1/3, deviation 0.7638
    half = 4.302653 * math.sqrt(7 / 12) / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((1 / 3, 1 / 3 - half, 1 / 3 + half), rel=1e-6)
    t = (1 / 3) / (math.sqrt(7 / 12) / math.sqrt(3))
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t**2), rel=1e-9)  # the closed form for 2 degrees
    assert not found.distinguishable
    assert paired_t([1.0], [2.0]).low == -math.inf


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_the_truth_and_null_comparisons_have_no_winner(seeds: int) -> None:
    """Issue E, 4: 95% intervals cover 93-97% over 2,000 experiments; a false winner in at most 7% of nulls."""
    generator = np.random.default_rng(11)
    # What a seed does to both arms: pairing removes it.
    shared = generator.normal(0, 0.05, (EXPERIMENTS, seeds))
    covered = winners = 0
    for truth in (-0.02, 0.0):
        first = shared + truth + generator.normal(0, 0.01, shared.shape)
        second = shared + generator.normal(0, 0.01, shared.shape)
        found = [paired_t(a, b) for a, b in zip(first, second, strict=True)]
        covered = sum(one.low <= truth <= one.high for one in found)
        assert 0.93 <= covered / EXPERIMENTS <= 0.97
        winners = sum(not in_words(one).startswith(NOT_DISTINGUISHABLE) for one in found)
    assert winners / EXPERIMENTS <= 0.07


def test_holm_keeps_false_winners_among_many_rungs_rare() -> None:
    """Twelve rungs that do nothing, each against the one before: uncorrected, nearly half have a winner."""
    generator = np.random.default_rng(5)
    losses = generator.normal(2, 0.01, (EXPERIMENTS, 13, 5))
    families = {"uncorrected": 0, "holm": 0}
    for ladder in losses:
        found = [paired_t(b, a) for a, b in zip(ladder, ladder[1:], strict=False)]
        adjusted = holm([one.p for one in found])
        families["uncorrected"] += any(one.distinguishable for one in found)
        words = [in_words(one, p) for one, p in zip(found, adjusted, strict=True)]
        families["holm"] += any(not word.startswith(NOT_DISTINGUISHABLE) for word in words)
    assert families["uncorrected"] / EXPERIMENTS > 0.3
    assert families["holm"] / EXPERIMENTS <= 0.07


def test_the_bootstrap_covers_when_there_are_seeds_enough() -> None:
    """Over seeds and text at once; for few seeds a percentile bootstrap is too narrow: it is only shown."""
    generator = np.random.default_rng(3)
    tokens_G = generator.integers(50, 150, 60)
    experiments, coverage = 300, {}
    for seeds in (4, 25):
        covered = 0
        for i in range(experiments):
            per_token_SG = (
                0.01
                + generator.normal(0, 0.004, (seeds, 1))
                + generator.normal(0, 0.01, (1, 60))  # what the text does to every seed
                + generator.normal(0, 0.01, (seeds, 60))
            )
            low, high = hierarchical_bootstrap(per_token_SG * tokens_G, tokens_G, seed=i, draws=400)
            covered += low <= 0.01 <= high
        coverage[seeds] = covered / experiments
    assert 0.92 <= coverage[25] <= 0.99
    assert coverage[4] < coverage[25]


def test_the_bootstrap_is_the_naive_one() -> None:
    """The same as drawing indices one at a time, up to the noise of the draws."""
    generator = np.random.default_rng(8)
    differences_SG, tokens_G = generator.normal(1, 2, (5, 9)), np.arange(20, 29)
    naive = []
    for _ in range(10_000):
        chosen = generator.integers(0, 5, 5)
        stretches = generator.integers(0, 9, 9)
        nats = np.mean([differences_SG[s, stretches].sum() for s in chosen])
        naive.append(nats / tokens_G[stretches].sum())
    expected = np.percentile(naive, [2.5, 97.5])
    assert hierarchical_bootstrap(differences_SG, tokens_G) == pytest.approx(expected, abs=0.003)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([]) == []


def test_what_is_said() -> None:
    def difference(low: float, high: float, seeds: int = 5) -> SeedDifference:
        return SeedDifference((low + high) / 2, low, high, 0.01, seeds)

    assert in_words(difference(-0.03, -0.01)) == "lower by 0.0200"
    assert in_words(difference(0.01, 0.03), 0.04) == "higher by 0.0200"
    assert in_words(difference(0.01, 0.03), 0.06) == "not distinguishable after Holm"
    assert in_words(difference(-0.01, 0.03)) == "not distinguishable"
    assert in_words(SeedDifference(0.1, -math.inf, math.inf, 1.0, 1)) == "not distinguishable (one seed)"
