"""What benchmarks/old_statistics.py says of the first studies' intervals, where the answer is known otherwise."""

from __future__ import annotations

import importlib
import itertools
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import proportion_confint

from nanokimi.runtime.files import read_json_lines

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which is no package's."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("old_statistics")


def test_the_record_is_what_the_script_gives(old: ModuleType) -> None:
    """Every line is there; what is simulated has other numbers in one try, the rest has the same."""

    def about(row: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in row.items() if key not in ("tries", "winners")}

    kept = read_json_lines(old.RESULTS / "old-statistics.jsonl")[1:]
    for then, now in zip(kept, old.rows(1, 1), strict=True):
        assert about(then) == pytest.approx(about(now))
    assert min(row["tries"] for row in kept if "tries" in row) == 2000
    assert max(row["winners"] / row["tries"] for row in kept if row["kind"] == "quadratic") > 0.1


def chance_of_a_winner(apart: float, seeds: int) -> float:
    """Of the t test between means that are so many standard deviations of a run apart."""
    limit = scipy_stats.t.ppf(0.975, seeds - 1)
    t = scipy_stats.nct(seeds - 1, apart / math.sqrt(2 / seeds))
    return float(t.sf(limit) + t.cdf(-limit))


@pytest.mark.parametrize("apart", [0.0, 1.0, 4.0])
def test_two_rates_give_the_winners_that_can_be_computed(apart: float, old: ModuleType) -> None:
    """Each arm takes the worse of two rates with a known chance; if one does, the t test sees it with a known power."""
    tries = 4000
    found = old.winners_from_table(np.array([0.0, 0.5 * apart]), 0.5, tries, np.random.default_rng(0)) / tries
    worse = scipy_stats.norm.cdf(-apart / math.sqrt(2 / old.TUNING_SEEDS))
    differ = 2 * worse * (1 - worse)
    expected = (1 - differ) * 0.05 + differ * chance_of_a_winner(apart, old.SEEDS)
    assert found == pytest.approx(expected, abs=3 * math.sqrt(expected * (1 - expected) / tries))
    if apart == 1:
        assert found > 0.06, "two rates are enough for false winners"


def test_without_noise_each_arm_gets_the_tried_rate_next_to_its_optimum(old: ModuleType) -> None:
    """From the grid 1/2, 1, 2: one arm beyond its edge makes the other, too, try a fourth rate and a fifth."""
    quiet = np.random.default_rng(0)
    assert old.tuned_rates(1e9, np.array([0.1, 0.2]), quiet) == [1.0, 1.0]
    assert old.tuned_rates(1e9, np.array([-2.1, 0.26]), quiet) == [0.25, pytest.approx(2**0.25, rel=1e-3)]


def test_rates_that_hardly_matter_make_no_false_winners(old: ModuleType) -> None:
    generator, studies = np.random.default_rng(1), 300
    shares = [
        sum(old.winners_in_study(height, generator) for _ in range(studies)) / studies / old.PAIRS
        for height in (0.0, 3.0)
    ]
    assert shares[0] == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / studies / old.PAIRS))
    assert shares[1] > 0.065


@pytest.mark.parametrize("share", [0.2, 0.3, 0.4])
@pytest.mark.parametrize(("correlation", "worth"), [(0.0, 1), (1.0, 3)])
def test_answers_that_are_all_apart_or_all_alike_are_binomial(
    share: float, correlation: float, worth: int, old: ModuleType
) -> None:
    """Each of the binomial trials counts for as many of the 150 as `worth`."""
    total, trials = 150, 150 // worth
    covered = [
        right
        for right in range(trials + 1)
        if (ends := proportion_confint(right * worth, total, method="wilson"))[0] <= share <= ends[1]
    ]
    expected = scipy_stats.binom.pmf(covered, trials, share).sum()
    assert old.coverage(share, old.alike_or_apart(share, correlation)) == pytest.approx(expected, abs=1e-9)


def test_two_seeds_answers_correlate_as_the_line_says(old: ModuleType) -> None:
    """From the number of right answers alone, since the seeds are alike: each way to have it is equally likely."""
    share, correlation, seeds = 0.3, 0.4, old.RECALL_SEEDS
    chances = old.alike_or_apart(share, correlation)
    both = sum(
        chances[sum(answers)] / math.comb(seeds, sum(answers)) * answers[0] * answers[1]
        for answers in itertools.product((0, 1), repeat=seeds)
    )
    assert chances.sum() == pytest.approx(1) and chances @ np.arange(seeds + 1) == pytest.approx(
        seeds * share
    )
    assert (both - share**2) / (share * (1 - share)) == pytest.approx(correlation)
