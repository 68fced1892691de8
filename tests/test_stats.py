"""Intervals over seeds on synthetic data whose truth is known, and every formula against scipy or statsmodels.

Two runs of one seed hardly correlate in our studies (docs/experiments.md), so coverage is simulated at any correlation;
and false winners where each of two equal arms was tuned by itself.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from nanokimi.measure.stats import (
    LEVEL,
    NOT_DISTINGUISHABLE,
    SeedDifference,
    choice_variance,
    compare_pairs,
    hierarchical_bootstrap,
    holm,
    holm_of_distinct,
    in_words,
    paired_t,
    search_variance,
    t_cdf,
    t_quantile,
)
from nanokimi.measure.story_world import wilson

EXPERIMENTS = 2000


def at_most(share: float, experiments: int) -> float:
    """What a rate of `share` does not exceed by the luck of so many experiments: three standard errors."""
    return share + 3 * math.sqrt(share * (1 - share) / experiments)


# ---- against scipy and statsmodels


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 12, 49])
def test_students_t_is_scipys(degrees: int) -> None:
    ts = [-40.0, -2.5, 0.0, 0.3, 1.0, 4.7, 40.0]
    assert [t_cdf(t, degrees) for t in ts] == pytest.approx(scipy_stats.t.cdf(ts, degrees), abs=1e-13)
    shares = [0.5, 0.6, 0.9, 0.975, 0.9999]
    found = [t_quantile(share, degrees) for share in shares]
    assert found == pytest.approx(scipy_stats.t.ppf(shares, degrees), rel=1e-9, abs=1e-12)


def test_there_is_no_quantile_without_degrees_of_freedom() -> None:
    with pytest.raises(ValueError, match="0 degrees"):
        t_quantile(0.975, 0)


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_the_paired_t_test_is_scipys(seeds: int) -> None:
    first, second = np.random.default_rng(seeds).normal(2, 0.01, (2, seeds))
    found, expected = paired_t(list(first), list(second)), scipy_stats.ttest_rel(first, second)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_holm_is_that_of_statsmodels() -> None:
    generator = np.random.default_rng(1)
    for count in (1, 2, 13, 39):
        p_values = list(generator.uniform(0, 1, count) ** 4)
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], rel=1e-12)
    assert holm([]) == []


@pytest.mark.parametrize(("right", "total"), [(0, 10), (1, 10), (8, 10), (50, 50), (49, 150)])
def test_wilsons_interval_is_that_of_statsmodels(right: int, total: int) -> None:
    assert wilson(right, total) == pytest.approx(proportion_confint(right, total, method="wilson"), abs=1e-6)


# ---- intervals over seeds


def test_a_paired_interval_by_hand() -> None:
    found = paired_t([1.0, 2.0, 3.0], [0.5, 1.0, 3.5])  # differences 0.5, 1, -0.5: mean 1/3, deviation 0.7638
    half = 4.302653 * math.sqrt(7 / 12) / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((1 / 3, 1 / 3 - half, 1 / 3 + half), rel=1e-6)
    t = (1 / 3) / (math.sqrt(7 / 12) / math.sqrt(3))
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t**2), rel=1e-9)  # the closed form for 2 degrees
    assert not found.distinguishable
    assert paired_t([1.0], [2.0]).low == -math.inf


@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_cover_the_truth_whatever_pairing_is_worth(seeds: int, correlation: float) -> None:
    """95% intervals hold the truth in 93 to 97% of 2,000 experiments, and 3 to 6.5% of equal arms have a winner."""
    generator = np.random.default_rng(11)
    shape = (EXPERIMENTS, seeds)
    shared, *own = generator.normal(0, 0.02, (3, *shape))
    first, second = (math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * one for one in own)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] == pytest.approx(correlation, abs=0.05)
    for truth in (-0.02, 0.0):
        found = [paired_t(a + truth, b) for a, b in zip(first, second, strict=True)]
        assert 0.93 <= sum(one.low <= truth <= one.high for one in found) / EXPERIMENTS <= 0.97
    assert sum(one.distinguishable for one in found) / EXPERIMENTS <= at_most(LEVEL, EXPERIMENTS)


@pytest.mark.parametrize(("looks", "share"), [((3, 5), 0.087), ((4, 5), 0.074), ((4, 6, 8), 0.106)])
def test_a_comparison_that_is_repeated_with_more_seeds_has_more_false_winners(
    looks: tuple[int, ...], share: float
) -> None:
    """As docs/experiments.md says of equal arms without a search: the interval is that of one look."""
    differences = np.random.default_rng(12).normal(0, 0.02, (EXPERIMENTS, max(looks)))
    zeros = [0.0] * max(looks)
    found = [any(paired_t(row[:n], zeros[:n]).distinguishable for n in looks) for row in differences]
    assert sum(found) / EXPERIMENTS == pytest.approx(
        share, abs=3 * math.sqrt(share * (1 - share) / EXPERIMENTS)
    )
    assert sum(found) / EXPERIMENTS > LEVEL


def test_what_the_searches_add_widens_the_interval() -> None:
    first, second = [1.0, 2.0, 3.0], [0.5, 1.0, 3.5]
    plain, wide = paired_t(first, second), paired_t(first, second, extra_variance=0.5)
    assert wide.mean == plain.mean and wide.p > plain.p
    expected = (plain.high - plain.mean) ** 2 + t_quantile(0.975, 2) ** 2 * 0.5
    assert (wide.high - wide.mean) ** 2 == pytest.approx(expected)
    assert paired_t([1.0, 2.0], [0.5, 1.5], extra_variance=0.01).p > 0, "equal differences are not certainty"
    unknown = paired_t(first, second, extra_variance=math.inf)
    assert in_words(unknown) == "not distinguishable (the search's noise is unknown)" and unknown.p == 1


# ---- the search


def landscape(generator: np.random.Generator, trials: int) -> np.ndarray:
    """True losses of a search's trials, in standard deviations of a run: from flat to steep."""
    steep = math.exp(generator.uniform(math.log(0.1), math.log(3)))
    if trials == 4:  # rates around an optimum
        return steep * (np.arange(4) - 1.5 - generator.uniform(-0.5, 0.5)) ** 2
    drawn = generator.uniform(-1, 1, (trials, 5))  # five settings, of which some matter
    return np.asarray(steep * (drawn**2 * [4, 2, 1, 0.5, 0.25]).sum(axis=1))


@pytest.mark.parametrize(
    ("trials", "tuning_seeds", "seeds"), [(4, 1, 5), (4, 2, 5), (4, 3, 3), (8, 1, 5), (16, 2, 5), (50, 1, 3)]
)
def test_equal_arms_tuned_apart_have_few_false_winners(trials: int, tuning_seeds: int, seeds: int) -> None:
    """At most 5%, up to the luck of 500 experiments, and fewer than without the searches' noise."""
    generator, experiments = np.random.default_rng(trials + seeds), 500
    old = new = 0
    for _ in range(experiments):
        truth_K = landscape(generator, trials)
        runs, noise = [], 0.0
        for _ in range(2):
            tried = truth_K[:, None] + generator.normal(size=(trials, tuning_seeds))
            judged = list(truth_K[tried.mean(axis=1).argmin()] + generator.normal(size=seeds))
            runs.append(judged)
            noise += choice_variance(tried.tolist(), judged, draws=300)
        old += paired_t(*runs).distinguishable
        new += paired_t(*runs, extra_variance=noise).distinguishable
    assert new / experiments <= at_most(LEVEL, experiments) and new < old
    if (trials, tuning_seeds) == (8, 1):
        assert old / experiments > at_most(LEVEL, experiments), "what this is against is there"


def test_the_search_s_variance_is_that_of_what_it_picks() -> None:
    """Two trials whose means are one standard error of a mean apart: a coin with a known chance and two known sides."""
    apart, deviation = 0.02, 0.02 * math.sqrt(2)
    tried = [[1 - deviation / math.sqrt(2), 1 + deviation / math.sqrt(2)]]
    tried.append([loss + apart for loss in tried[0]])
    wrong = scipy_stats.norm.cdf(-1 / math.sqrt(2))
    expected = apart**2 * wrong * (1 - wrong)
    assert choice_variance(tried) == pytest.approx(expected, rel=0.05)
    assert choice_variance([*tried, [None, 0.5], []]) == choice_variance(tried), "what diverged is not picked"


def test_a_search_that_cannot_err_adds_nothing_and_an_unknown_noise_everything() -> None:
    steep = [[1.0, 1.001], [2.0, 2.001], [3.0, 3.001]]
    assert choice_variance(steep) == 0.0
    assert choice_variance([[1.0, 1.2]]) == choice_variance([]) == 0.0, "there was no choice"
    once = [[1.0], [1.01], [1.3]]
    assert choice_variance(once) == math.inf, "one tuning seed says nothing of its noise"
    assert choice_variance(once, [1.02, 1.04]) > 0, "the judged runs do"
    assert choice_variance(once, [1.02, 1.04]) < choice_variance(once, [1.0, 1.06])
    wild = [[1.0, 1.1], [1.1, 1.0], [3.0, 9.0], [4.0, 8.0]]
    assert choice_variance(wild) < 0.01, "the worse half's scatter is not the better half's"


def test_each_pattern_adds_half_a_run_for_where_noise_led_it_and_a_grid_has_none() -> None:
    once, judged = [[1.0], [1.01], [1.3], [None]], [1.02, 1.04, 1.06]
    assert search_variance(once, judged, patterns=0) == choice_variance(once, judged)
    for patterns in (1, 2):
        assert search_variance(once, judged, patterns=patterns) == pytest.approx(
            choice_variance(once, judged) + 0.5 * patterns * np.var(judged, ddof=1)
        )
    twice = [[1.0, 1.2], [1.5, 1.5]]
    for tried, seeds in ((twice, 2), ([*twice, [1.05]], 2)):
        added = search_variance(tried, patterns=1) - choice_variance(tried)
        assert added == pytest.approx(0.5 * 0.02 / seeds), (
            "the better half's variance is 0.02, over the tuning seeds"
        )
    assert search_variance([[1.0, 1.2]], patterns=1) == search_variance([], patterns=1) == 0.0
    assert (
        search_variance([[1.0], [1.1]], patterns=0) == search_variance([[1.0], [1.1]], patterns=1) == math.inf
    )


# ---- pairs of a report


def test_every_pair_is_judged_and_holm_counts_all_of_them() -> None:
    generator = np.random.default_rng(4)
    losses = {
        name: list(loss + generator.normal(0, 0.01, 3)) for name, loss in (("a", 1), ("b", 2), ("c", 2))
    }
    found = compare_pairs(losses, {"a": 1e-6})
    assert [(one["first"], one["second"]) for one in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [one["holm_p"] for one in found] == holm([one["p"] for one in found])
    assert found[0]["words"].startswith("lower by ") and found[2]["words"] == NOT_DISTINGUISHABLE
    for one in found:
        extra = 1e-6 * ((one["first"] == "a") + (one["second"] == "a"))
        alone = paired_t(losses[one["first"]], losses[one["second"]], extra_variance=extra)
        assert (one["mean"], one["ci95"], one["p"]) == (alone.mean, [alone.low, alone.high], alone.p)
        assert (one["tests"], one["seeds"]) == (3, 3) and one["mean"] == pytest.approx(
            np.mean(one["per_seed"])
        )


def test_a_pair_has_the_noise_of_every_earlier_search_but_one_that_both_arms_share() -> None:
    losses = {"a": [1.0, 1.1, 1.3], "b": [2.0, 2.2, 2.1], "c": [2.0, 1.9, 2.3]}
    inherited = {"a": {"old": 4e-4, "older": 1e-4}, "b": {"older": 1e-4}, "c": {}}
    found = compare_pairs(losses, {"a": 2e-4, "b": 3e-4}, inherited)
    for one, extra in zip(found, (2e-4 + 3e-4 + 4e-4, 2e-4 + 4e-4 + 1e-4, 3e-4 + 1e-4), strict=True):
        alone = paired_t(losses[one["first"]], losses[one["second"]], extra_variance=extra)
        assert one["ci95"] == pytest.approx([alone.low, alone.high]) and one["p"] == pytest.approx(alone.p)
    (same,) = compare_pairs({"a": [1.0, 1.1], "b": [1.0, 1.1]}, {}, {"a": {"old": 1.0}})
    assert same["ci95"] == [0, 0], "equal runs are equal whatever a search picked"


def test_seeds_that_agree_by_luck_do_not_show_less_noise_than_rounding_makes() -> None:
    """A model with itself had a winner so, by 0.002: its three differences were alike."""
    losses = {"a": [1.0, 1.1, 1.3], "b": [1.0020, 1.1021, 1.3019]}
    (alone,), (known,) = compare_pairs(losses), compare_pairs(losses, rounding=0.002)
    assert alone["words"].startswith("lower by") and known["words"] == NOT_DISTINGUISHABLE
    half = float(scipy_stats.t.ppf(0.975, 2)) * 0.002 * math.sqrt(2 / 3)
    assert known["ci95"] == pytest.approx([known["mean"] - half, known["mean"] + half])
    assert known["p"] == pytest.approx(2 * scipy_stats.t.sf(0.002 / (0.002 * math.sqrt(2 / 3)), 2))
    losses["b"] = [1.2, 1.5, 1.9]
    assert compare_pairs(losses, rounding=0.002) == compare_pairs(losses), "these scatter more by themselves"
    (same,) = compare_pairs({"a": [1.0, 1.1], "b": [1.0, 1.1]}, rounding=0.002)
    assert same["ci95"] == [0, 0]


def test_one_seed_has_no_interval_and_no_winner() -> None:
    (found,) = compare_pairs({"a": [1.0], "b": [2.0]}, {})
    assert found["ci95"] is found["p"] is found["holm_p"] is None
    assert found["mean"] == -1.0 and found["words"] == "not distinguishable (one seed)"
    (unknown,) = compare_pairs({"a": [1.0, 1.1], "b": [2.0, 2.1]}, {"a": math.inf})
    assert unknown["ci95"] is None and "unknown" in unknown["words"]
    (same,) = compare_pairs({"a": [1.0, 1.1], "b": [1.0, 1.1]}, {"a": 1.0, "b": 1.0})
    assert same["words"] == "not distinguishable: every run ended the same" and same["ci95"] == [0, 0]
    with pytest.raises(ValueError, match="a has 1 seeds, b 2: they cannot be paired"):
        compare_pairs({"a": [1.0], "b": [2.0, 3.0]}, {})


# ---- many at once


def test_holm_keeps_false_winners_among_many_components_rare() -> None:
    """Twelve components that do nothing, each against the one before: uncorrected, nearly half have a winner."""
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


def test_the_bootstrap_is_the_naive_one_and_with_one_seed_scipys() -> None:
    """Up to the noise of the draws: the first draws indices one at a time."""
    generator = np.random.default_rng(8)
    differences_SG, tokens_G = generator.normal(1, 2, (5, 9)), np.arange(20, 29)
    naive = []
    for _ in range(10_000):
        chosen = generator.integers(0, 5, 5)
        blocks = generator.integers(0, 9, 9)
        nats = np.mean([differences_SG[s, blocks].sum() for s in chosen])
        naive.append(nats / tokens_G[blocks].sum())
    expected = np.percentile(naive, [2.5, 97.5])
    assert hierarchical_bootstrap(differences_SG, tokens_G) == pytest.approx(expected, abs=0.003)
    scipys = scipy_stats.bootstrap(
        (differences_SG[0], tokens_G),
        lambda nats, tokens, axis: nats.sum(axis) / tokens.sum(axis),
        paired=True, method="percentile", rng=generator,
    ).confidence_interval  # fmt: skip
    found = hierarchical_bootstrap(differences_SG[:1], tokens_G)
    assert found == pytest.approx((scipys.low, scipys.high), abs=0.003)


def closed_bonferroni(p_values: list[float]) -> list[float]:
    """Holm's adjusted p from its definition: the largest Bonferroni p of all sets of tests that hold this one."""
    count = len(p_values)
    found = [0.0] * count
    for chosen in range(1, 2**count):
        members = [i for i in range(count) if chosen >> i & 1]
        together = min(1.0, len(members) * min(p_values[i] for i in members))
        for i in members:
            found[i] = max(found[i], together)
    return found


def test_holm_counts_a_test_once_however_many_names_it_has() -> None:
    """Against every set of the distinct tests, each with the larger p if its entries differ."""
    generator = np.random.default_rng(8)
    for _ in range(50):
        distinct = int(generator.integers(1, 8))
        p_values = [float(p) for p in generator.uniform(0, 1, distinct) ** 3]
        tests = [*range(distinct), *generator.integers(0, distinct, 5).tolist()]
        generator.shuffle(tests)
        entries = [p_values[test] for test in tests]
        wanted = closed_bonferroni(p_values)
        assert holm_of_distinct(entries, tests) == pytest.approx([wanted[test] for test in tests], rel=1e-12)
        assert max(holm_of_distinct(entries, tests)) <= max(holm(entries)), "more tests are never easier"
    assert holm_of_distinct([0.01, 0.02, 0.03], ["a", "a", "b"]) == pytest.approx([0.04, 0.04, 0.04])
    assert holm_of_distinct([], []) == []


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


# ---- shares over questions and seeds


def test_what_is_said() -> None:
    def difference(low: float, high: float, seeds: int = 5) -> SeedDifference:
        return SeedDifference((low + high) / 2, low, high, 0.01, seeds)

    assert in_words(difference(-0.03, -0.01)) == "lower by 0.0200"
    assert in_words(difference(0.01, 0.03), 0.04) == "higher by 0.0200"
    assert in_words(difference(0.01, 0.03), 0.06) == "not distinguishable after Holm"
    assert in_words(difference(-0.01, 0.03)) == "not distinguishable"
    assert in_words(SeedDifference(0.1, -math.inf, math.inf, 1.0, 1)) == "not distinguishable (one seed)"
