"""The verdict: a winner only where other seeds would say so; and the interval over the text, which decides nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanokimi.compare.report import dropped_arms, earlier_numbers_of_seeds, with_looks
from nanokimi.compare.verdict import paired_difference, pairs_of, verdict
from nanokimi.config import SpreadConfig
from nanokimi.measure.stats import compare_pairs, t_quantile

# ---- paired difference


def test_the_paired_difference_equals_a_naive_computation() -> None:
    """120 windows in 50 blocks of 2 or 3; Student's t for 49 degrees of freedom is 2.0096."""
    generator = np.random.default_rng(0)
    first, second = generator.gamma(4, 10, 120), generator.gamma(4, 10, 120)
    counts = generator.integers(1, 17, 120)
    tokens = int(counts.sum())
    found = paired_difference(first, second, counts)
    token_mean = sum(float(a) - float(b) for a, b in zip(first, second, strict=True)) / tokens
    total, excess, position = 0.0, [], 0
    for block in range(50):
        size = 3 if block < 20 else 2
        block_sum = sum(float(first[i]) - float(second[i]) for i in range(position, position + size))
        total += block_sum
        excess.append(block_sum - token_mean * sum(int(n) for n in counts[position : position + size]))
        position += size
    assert position == 120
    deviation = math.sqrt(sum(x**2 for x in excess) / 49)
    half = 2.0096 * deviation * math.sqrt(50) / tokens
    assert found.difference == pytest.approx(total / tokens)
    assert found.low == pytest.approx(total / tokens - half, rel=1e-3)
    assert found.high == pytest.approx(total / tokens + half, rel=1e-3)


def test_the_paired_difference_is_antisymmetric_and_sees_pairs() -> None:
    generator = np.random.default_rng(1)
    hardness = generator.gamma(4, 10, 200)  # some windows are hard for both models: pairing removes that
    first, second = hardness + generator.normal(0, 0.1, 200), hardness + 1 + generator.normal(0, 0.1, 200)
    tokens = np.ones(200, dtype=int)
    one, other = paired_difference(first, second, tokens), paired_difference(second, first, tokens)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.high - one.low < 0.1 and one.high < 0


@pytest.mark.parametrize("windows", [12, 50, 75, 200, 520])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_the_interval_covers_the_truth_in_95_of_100_experiments(windows: int, mean: float) -> None:
    generator = np.random.default_rng(windows)
    covered = 0
    for _ in range(2000):
        differences = generator.normal(mean, 1.0, windows)
        found = paired_difference(differences, np.zeros(windows), np.ones(windows, dtype=int))
        covered += found.low <= mean <= found.high
    assert 0.93 < covered / 2000 < 0.97, covered / 2000


def test_unequal_stretches_do_not_widen_the_interval() -> None:
    """A difference common to all tokens is no noise, however windows, and blocks of one or two, differ in length."""
    tokens = np.arange(75) % 7 + 1
    differences = np.random.default_rng(0).normal(10.0, 0.1, 75) * tokens
    found = paired_difference(differences, np.zeros(75), tokens)
    assert found.low < 10.0 < found.high and found.high - found.low < 0.15


def test_one_window_gives_no_interval() -> None:
    found = paired_difference(np.array([3.0]), np.array([1.0]), np.array([4]))
    assert (found.difference, found.low, found.high) == (0.5, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("degrees", "value"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (49, 2.010)],
)
def test_quantiles_of_students_t_agree_with_the_table(degrees: int, value: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(value, rel=1e-3)


# ---- verdict

BASELINES: dict[str, dict[str, float | None]] = {"5-gram": {"test_loss": 3.0, "bits_per_byte": 2.0}}


def arm(name: str, losses: list[float], leaking: str | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "seeds": list(range(len(losses))),
        "test_loss": sum(losses) / len(losses),
        "leaking": leaking,
    }


def judge(
    losses: dict[str, list[float]], *, leaks: tuple[str, ...] = (), spread: SpreadConfig | None = None
) -> dict[str, Any]:
    arms = [arm(name, row, "LEAKING: row 1" if name in leaks else None) for name, row in losses.items()]
    sound = {name: row for name, row in losses.items() if name not in leaks}
    return verdict(arms, compare_pairs(sound, {}), BASELINES, spread)


LOW, MIDDLE, HIGH = [1.50, 1.51, 1.49, 1.50], [1.80, 1.79, 1.81, 1.80], [2.10, 2.11, 2.10, 2.09]


@pytest.mark.parametrize("order", [("NanoKimi", "Muon", "NanoGPT"), ("NanoGPT", "NanoKimi", "Muon")])
def test_the_arm_below_all_others_wins(order: tuple[str, str, str]) -> None:
    found = judge(dict(zip(order, (LOW, MIDDLE, HIGH), strict=True)))
    assert found["winner"] == order[0] and found["ranked"] is True
    assert f"{order[0]} is better than {order[1]} by 0.3000" in found["sentence"]
    assert "means of 4 seeds" in found["sentence"] and "1.5000" in found["sentence"]


def test_a_report_knows_how_far_rounding_moves_the_runs_of_its_preset() -> None:
    losses = {"A": [1.0, 1.1, 1.3], "B": [1.0020, 1.1021, 1.3019]}
    arms = [{**arm(name, row), "search": None} for name, row in losses.items()]
    runs = [
        {"arm": name, "test_loss": loss, "val_loss": loss} for name, row in losses.items() for loss in row
    ]
    spread = SpreadConfig(seed=0.05, rounding=0.002, runs=5, file="spread.jsonl")
    for known, winner in ((None, "A"), (replace(spread, rounding=None), "A"), (spread, None)):
        assert verdict(arms, pairs_of(arms, runs, known), BASELINES, known)["winner"] == winner


def test_one_seed_names_no_winner_and_says_how_far_runs_differ() -> None:
    found = judge({"A": [1.0], "B": [9.0]})
    assert found["winner"] is None and "was not measured" in found["sentence"]
    spread = SpreadConfig(seed=0.05, rounding=0.02, runs=24, file="null.jsonl")
    sentence = judge({"A": [1.0], "B": [9.0]}, spread=spread)["sentence"]
    assert "0.050 from seed to seed" in sentence and "0.020 by rounding alone" in sentence
    spread = SpreadConfig(seed=0.05, rounding=None, runs=3, file="x.jsonl")
    sentence = judge({"A": [1.0], "B": [9.0]}, spread=spread)["sentence"]
    assert "0.050 from seed to seed (standard deviation):" in sentence and "rounding" not in sentence


def test_a_lead_over_all_but_one_names_no_winner() -> None:
    found = judge({"A": LOW, "B": [1.6, 1.4, 1.55, 1.5], "C": HIGH})
    assert found["winner"] is None
    assert (
        "A is better than C" in found["sentence"]
        and "A is not distinguishable from B: no winner" in found["sentence"]
    )


def test_few_seeds_without_a_winner_advise_more_and_four_do_not() -> None:
    unequal = [1.6, 1.4, 1.55, 1.5, 1.52]
    advice = "2 seeds only a large difference is told from chance: compare with --seeds 5 or more, from another --seed"
    assert advice in judge({"A": LOW[:2], "B": unequal[:2]})["sentence"]
    assert "told from chance" not in judge({"A": LOW, "B": unequal[:4]})["sentence"]
    assert "told from chance" not in judge({"A": LOW, "B": HIGH})["sentence"], "the winner is known"


def test_the_same_arm_twice_is_a_draw() -> None:
    assert judge({"A": LOW, "A again": LOW})["winner"] is None


@pytest.mark.parametrize("leaks", [("A",), ("B",), ("A", "B")])
def test_a_leaking_model_is_never_ranked_however_low_its_loss(leaks: tuple[str, ...]) -> None:
    found = judge({"A": [0.1, 0.1, 0.11], "B": [0.1, 0.12, 0.1], "C": [1.5, 1.5, 1.51]}, leaks=leaks)
    assert found["winner"] not in leaks and found["ranked"] is False and "LEAKING" in found["sentence"]
    assert [name for name in ("A", "B", "C") if f"{name} is LEAKING" in found["sentence"]] == list(leaks)
    json.dumps(found, allow_nan=False)


def test_models_above_a_five_gram_are_told_so() -> None:
    assert "None beats a 5-gram" in judge({"A": [3.1, 3.1], "B": [3.3, 3.3]})["sentence"]
    assert "5-gram" not in judge({"A": [2.9, 2.9], "B": [3.3, 3.3]})["sentence"]


def test_a_floor_that_no_window_can_reach_is_not_called_attainable() -> None:
    rows = [arm("A", [1.0, 1.1]) | {"floor_gap": 0.75, "attainable_floor": 0.3}]
    assert "Above the attainable floor: 0.7500." in verdict(rows, [], BASELINES, None)["sentence"]
    sentence = verdict([rows[0] | {"attainable_floor": None}], [], BASELINES, None)["sentence"]
    assert "attainable" not in sentence and "text's entropy" in sentence and "0.7500" in sentence


def test_identical_arms_win_at_most_one_time_in_twenty() -> None:
    """Arms of one distribution, three seeds each, 2,000 comparisons of three arms."""
    generator = np.random.default_rng(0)
    winners = 0
    for _ in range(2000):
        losses = {name: list(generator.normal(2.0, 0.05, 3)) for name in "ABC"}
        winners += judge(losses)["winner"] is not None
    assert winners <= 0.05 * 2000 + 3 * math.sqrt(0.05 * 0.95 * 2000), winners


def test_seeds_that_were_added_later_are_said(tmp_path: Path) -> None:
    """`--resume --seeds 3 --allow-changes` after two seeds without a winner named one and said nothing."""
    for number, seeds in enumerate((2, 3), start=1):
        (tmp_path / f"config-before-{number}.yaml").write_text(f"compare: {{seeds: {seeds}}}\n")
    (tmp_path / "config-before-3.yaml").write_text("seed: 1\n")
    earlier = earlier_numbers_of_seeds(tmp_path)
    assert earlier == [2, 3]
    found = {"winner": "A", "ranked": True, "sentence": "A is better than B."}
    told = with_looks(found, earlier, 4)
    assert (
        told["winner"] == "A"
        and "raised from 2 and 3 to 4 after the comparison had begun" in told["sentence"]
    )
    assert with_looks(found, [4], 4) == with_looks(found, [], 4) == found


def test_seeds_and_arms_that_were_left_out_later_are_said(tmp_path: Path) -> None:
    """Of five seeds without a winner, the first three may have one; and of two arms one pair is judged, not three."""
    before = "compare: {seeds: 5}\narms: {A: {from: nanokimi}, B: {from: nanogpt}, C: {from: nanogpt}}\n"
    (tmp_path / "config-before-1.yaml").write_text(before)
    (tmp_path / "config-before-2.yaml").write_text("compare: {seeds: 2}\n")
    assert earlier_numbers_of_seeds(tmp_path) == [2, 5]
    assert dropped_arms(tmp_path, ["A", "B", "NanoKimi", "NanoGPT"]) == ["C"]
    assert dropped_arms(tmp_path, ["A", "B"]) == ["C", "NanoKimi", "NanoGPT"]
    found = {"winner": "A", "ranked": True, "sentence": "A is better than B."}
    told = with_looks(found, [2, 5], 3, ["C"])["sentence"]
    assert (
        "BEWARE: the number of seeds was raised from 2 to 3, the number of seeds was lowered from 5 to 3 and C was "
        "left out after the comparison had begun"
    ) in told
    assert with_looks(found, [5], 1, ["C"]) == found, "with one seed there is no winner"
